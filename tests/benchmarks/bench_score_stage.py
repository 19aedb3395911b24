"""The scoring stage, from published features to published predictions, against the bare library's predict on an array
in memory.

Every measurement is a process of its own, warmed by a small night: `python -m tests.benchmarks.bench_score_stage ACTION
FAMILY FOLDER [ROWS… | NIGHT]`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from config.calendar import ONE_DAY, Interval, cutoff
from config.settings import ROOT

FEATURES = 20
NIGHT = date(2024, 1, 3)
SMALL = 1_000
MODEL = "item_minutes"
AIM = 1.5
# DuckDB takes what it is allowed before it spills: little, so that the peak shows whether anything grows with the rows.
MEMORY_GB = 0.5

DATASET_YAML = f"""
dataset: items
title: Generated items
owner: bench
owner_url: mailto:bench@example.com
licence: CC0-1.0
time_zone: UTC
replay: {{from: 2024-01-02, to: 2024-12-31, first_night: 2024-01-03}}
tables:
  orders:
    description: Items due tomorrow.
    source: {{kind: file, uri: none.csv}}
    key: [item]
    known_at: {{sql: "due_utc - INTERVAL 1 DAY"}}
    columns:
      item: {{type: int64, nullable: false, description: the item}}
      due_utc: {{type: timestamp, nullable: false, description: when it is due}}
features:
  readings:
    description: {FEATURES} numbers of each item.
    entities: [item]
    reads: [orders]
    lookback: 0 days
    ttl: 1 day
    columns:
""" + "".join(f"      r{i}: {{type: float64, description: a number}}\n" for i in range(FEATURES))

OUTPUTS: dict[str, Any] = {
    "minutes": {"kind": "regression", "objective": "median", "interval": 0.8, "gate": "mae"},
    "late_probability": {"kind": "binary", "above": 0.0, "gate": "brier"},
}
MODEL_YAML = """
model: item_minutes
title: Generated model
owner: bench
owner_url: mailto:bench@example.com
deadline: "06:00"
dataset: items
spine: {table: orders, entity: [item], target_time: due_utc}
label: {table: orders, column: item, matures_after: 1 day}
features: [readings]
outputs:
  minutes: {kind: regression, objective: median, interval: 0.8, gate: mae}
  late_probability: {kind: binary, above: 0, gate: brier}
trainer: {family: FAMILY, seed: 7}
split: {train: 20 days}
"""
PARAMS: dict[str, dict[str, Any]] = {
    "xgboost": {"n_estimators": 300, "max_depth": 6, "learning_rate": 0.05, "early_stopping_rounds": 300},
    "keras": {"hidden": [128, 64], "epochs": 3, "patience": 3},
}


def run_score(rows: int) -> list[dict[str, Any]]:
    """Both families at `rows` and a tenth of them: seconds and peak memory of the stage, and its ratio to the bare
    predict.
    """
    found = []
    for family in ("xgboost", "keras"):
        with tempfile.TemporaryDirectory(prefix="bench-score-") as folder:
            _child("prepare", family, folder, str(rows // 10), str(rows))
            for night, count in ((NIGHT, rows // 10), (NIGHT + ONE_DAY, rows)):
                bare = _child("bare", family, folder, str(night))
                stage = _child("stage", family, folder, str(night))
                what = f"{family}, {count:,} rows × {FEATURES}"
                found += [
                    {"what": f"{what}: bare predict, 4 outputs", "against": "", "ratio": None, "aim": "", **bare},
                    {
                        "what": f"{what}: score, retrieve to publish",
                        "against": "bare predict",
                        "ratio": stage["seconds"] / bare["seconds"],
                        "aim": f"≤ {AIM}" if count == rows else "",
                        **stage,
                    },
                ]
    return found


def _child(*arguments: str) -> dict[str, Any]:
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", __name__, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, env=quiet
    )
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def _lake(folder: Path) -> Any:
    from config.catalog.load import load_catalog
    from config.settings import Settings
    from lake.lake import Lake

    settings = Settings(home=folder / "var", catalogs=(folder,), duckdb_memory_gb=MEMORY_GB)
    return Lake(settings, load_catalog(settings))


def prepare(family: str, folder: Path, rows: list[int]) -> None:
    """A lake with a small night, then one of each number of items, and a trained champion."""
    from lake.lake import Lake
    from lake.publish import publish
    from lake.tables import feature_table, valid_table

    for name, text in (("datasets/items", DATASET_YAML), (f"models/{MODEL}", MODEL_YAML.replace("FAMILY", family))):
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    lake: Lake = _lake(folder)
    dataset = lake.dataset("items")
    tables = (valid_table(lake.settings, dataset, "orders"), feature_table(lake.settings, dataset, "readings"))
    for offset, count in enumerate([SMALL, *rows]):
        day = NIGHT + (offset - 1) * ONE_DAY
        known, item = cutoff(day, "UTC"), np.arange(count)
        stamp = pa.timestamp("us", tz="UTC")
        fixed = {"item": pa.array(item, pa.int64()), "data_date": pa.repeat(pa.scalar(day, pa.date32()), count)}
        at, due = (
            pa.repeat(pa.scalar(known, stamp), count),
            pa.repeat(pa.scalar(known + timedelta(hours=6), stamp), count),
        )
        orders = pa.table(
            {**fixed, "due_utc": due, "known_at_utc": at, "revision": pa.repeat(pa.scalar(0, pa.int32()), count)}
        )
        readings = pa.table(
            {**fixed, **{f"r{i}": column for i, column in enumerate(_numbers(count).T.copy())}, "event_timestamp": at}
        )
        for table, content in zip(tables, (orders, readings), strict=True):
            with lake.scratch("bench") as scratch:
                night = Interval.of(day)
                publish(
                    lake.publications,
                    table,
                    content.select(table.schema.names).cast(table.schema),
                    night,
                    replaces={night.start: None},
                    lineage=lake.lineage("items", "bench"),
                    scratch=scratch,
                )
    _champion(lake, family, folder)


def _numbers(count: int) -> Any:
    return np.random.default_rng(3).normal(size=(count, FEATURES))


def _champion(lake: Any, family: str, folder: Path) -> None:
    from cli.installation import prepare as make_secrets
    from lake.artifact import combined_digest
    from lake.ledger import Promotion
    from lake.signature import sign
    from serving.predictors import read_manifest
    from tests.training.jobs import write_job
    from training.__main__ import run

    count = 4_000
    numbers = _numbers(count)
    columns: dict[str, Any] = {f"readings__r{i}": numbers[:, i] for i in range(FEATURES)}
    label = numbers[:, :5].sum(axis=1) + np.sin(3 * numbers[:, 5]) * numbers[:, 6]
    days = pa.array(np.repeat(np.arange(19_000, 19_040), count // 40), pa.int32()).cast(pa.date32())
    split = np.where(np.arange(count) < count * 0.8, "train", "validation")
    rows = pa.table(
        {"data_date": days, **columns, "label": label, "baseline": pa.nulls(count, pa.float64()), "split": split}
    )
    entry = {"outputs": OUTPUTS, "trainer": {"family": family, "device": "cpu"}}
    outputs = list(lake.model(MODEL).output_columns)
    job = write_job(
        folder / "job",
        family,
        rows=rows,
        params=PARAMS[family],
        model=MODEL,
        entry=entry,
        feature_columns=dict.fromkeys(columns, "float64"),
        output_columns=outputs,
    )
    run(job)
    digest = combined_digest(read_manifest(job)["artifacts"])
    target = lake.settings.artifacts / MODEL / digest
    target.parent.mkdir(parents=True)
    (job / "training_set.json").write_text("{}")
    make_secrets(lake.settings)
    sign(lake.settings, job, MODEL)
    job.rename(target)
    ledger = lake.ledger(MODEL)
    before = NIGHT - ONE_DAY
    promotion = Promotion(MODEL, 1, before, before, datetime(2024, 1, 3, tzinfo=UTC), "bench", digest, "none")
    ledger.append(promotion, seen=ledger.read())


def bare(family: str, folder: Path, night: date) -> dict[str, float]:
    """Seconds of the libraries' own predict on a float32 array that is in memory already."""
    from lake.tables import feature_table
    from serving.predictors import load_predictor

    lake = _lake(folder)
    table = feature_table(lake.settings, lake.dataset("items"), "readings").read([night])
    matrix = np.column_stack([table[f"r{i}"].to_numpy() for i in range(FEATURES)]).astype(np.float32)
    predictor: Any = load_predictor(next((lake.settings.artifacts / MODEL).iterdir()))

    def predict(part: Any) -> None:
        if family == "xgboost":
            for booster in predictor._boosters.values():
                booster.inplace_predict(part, predict_type="margin", missing=np.nan, validate_features=False)
        else:
            for start in range(0, len(part), 65_536):
                np.asarray(predictor._network(part[start : start + 65_536]))

    predict(matrix[:SMALL])
    return _timed(lambda: predict(matrix))


def stage(_family: str, folder: Path, night: date) -> dict[str, float]:
    """Seconds of `serving.score.score` on a night, in a process that has scored the small one."""
    from serving.score import score

    lake = _lake(folder)
    score(lake, MODEL, Interval.of(NIGHT - ONE_DAY), run_id="warm")
    return _timed(lambda: score(lake, MODEL, Interval.of(night), run_id="bench"))


def _timed(work: Any) -> dict[str, float]:
    begin = time.perf_counter()
    work()
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


if __name__ == "__main__":
    action, chosen, place, *more = sys.argv[1:]
    if action == "prepare":
        prepare(chosen, Path(place), [int(count) for count in more])
        print("{}")
    else:
        print(json.dumps((bare if action == "bare" else stage)(chosen, Path(place), date.fromisoformat(more[0]))))

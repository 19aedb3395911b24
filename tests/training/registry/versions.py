"""Model versions that know the answer and miss it by a chosen amount: jobs, test sets and artifact folders without a
training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from config.calendar import ONE_DAY, Interval, cutoff
from lake.artifact import combined_digest, file_digest, folder_digests
from lake.lake import Lake
from lake.signature import sign
from lake.storage import artifact_folder
from serving.predictors import read_manifest
from serving.predictors.contract import Contract, FeatureSpec, Matrix, Predictor, Scores
from tests import toy
from training.registry.register import Registered

MODEL = "ride_minutes"
AS_OF = date(2024, 2, 26)
WINDOWS = {
    "train": Interval(date(2024, 1, 20), date(2024, 2, 10)),
    "validation": Interval(date(2024, 2, 11), date(2024, 2, 16)),
    "test": Interval(date(2024, 2, 17), date(2024, 2, 24)),
}
FEATURES = {"vehicle_daily__rides_7d": "int64", "vehicle_daily__minutes_7d": "float64"}
OUTPUT_COLUMNS = ("ride_minutes", "ride_minutes_lower", "ride_minutes_upper", "long_probability")
LONG = 30.0


class Oracle(Predictor):
    """Reads the label from `minutes_7d` and misses it by `miss` minutes; where `rides_7d` is 0 (depot south) by
    `miss_south`.
    """

    def scores(self, matrix: Matrix) -> Scores:
        params = self.contract.params
        label, south = matrix[:, 1].astype(np.float64), matrix[:, 0] == 0
        time.sleep(params.get("seconds", 0.0))
        label = np.where(south & ("unscored" in params), np.nan, label)
        minutes = label + np.where(south, params.get("miss_south", params["miss"]), params["miss"])
        probability = np.abs((label > LONG) - params.get("unsure", 0.1))
        scores = np.column_stack([minutes, minutes - 10, minutes + 10, probability])
        return scores[:, [self._source(name) for name in self.output_columns]]

    @staticmethod
    def _source(name: str) -> int:
        return OUTPUT_COLUMNS.index(name) if name in OUTPUT_COLUMNS else 0


class NotANumber(Oracle):
    """An oracle whose third row is not a number, and which does not notice."""

    def predict(self, batch: pa.RecordBatch | pa.Table) -> pa.Table:
        scores = self.scores(self.contract.matrix(batch))
        scores[2:3, 0] = np.nan
        return pa.table({name: scores[:, i] for i, name in enumerate(self.output_columns)})


def load_oracle(folder: Path, **_: Any) -> Predictor:
    """In the place of `load_predictor`: the manifest's bytes, and an oracle instead of a trained model."""
    read_manifest(folder)
    contract = Contract.read(folder / "model")
    return (NotANumber if contract.params.get("nan") else Oracle)(contract)


def rows(interval: Interval, *, per_day: int = 60, seed: int = 5) -> pa.Table:
    """Labelled rows of every night: the oracle's features beside the spine's columns; the baseline is 5 minutes off,
    null for one row in ten.
    """
    random = np.random.default_rng(seed)
    nights = [day for day in interval for _ in range(per_day)]
    label = np.round(random.gamma(4, 8, len(nights)), 2)
    depot = random.integers(0, 3, len(nights))
    utc = pa.timestamp("us", tz="UTC")
    return pa.table(
        {
            "event_date": pa.array([day + ONE_DAY for day in nights], pa.date32()),
            "ride": pa.array(list(range(per_day)) * len(interval), pa.int64()),
            "vehicle": pa.array([f"v{n % 6}" for n in range(len(nights))]),
            "depot": pa.array(toy.DEPOTS).take(pa.array(depot)),
            "data_date": pa.array(nights, pa.date32()),
            "target_time_utc": pa.array([cutoff(day, toy.TIME_ZONE) + ONE_DAY / 2 for day in nights], utc),
            "label": label,
            "baseline": pa.array(label + 5, mask=np.arange(len(nights)) % 10 == 0),
            "vehicle_daily__rides_7d": pa.array(np.where(depot == 2, 0, 1), pa.int64()),
            "vehicle_daily__minutes_7d": label,
        }
    )


def with_split(table: pa.Table, split: str) -> pa.Table:
    return table.append_column("split", pa.array([split] * table.num_rows))


def write_set(
    lake: Lake,
    name: str,
    *,
    windows: Mapping[str, Interval] = WINDOWS,
    as_of: date = AS_OF,
    edit_test: Callable[[pa.Table], pa.Table] = lambda table: table,
    per_day: int = 60,
) -> Path:
    """A job folder with its training set, and beside it what the gate reads."""
    job_dir = lake.settings.jobs / MODEL / name
    gate = job_dir.with_name(f"{name}.gate")
    for folder in (job_dir, gate):
        folder.mkdir(parents=True)
    fitted = [with_split(rows(windows[split], per_day=per_day), split) for split in ("train", "validation")]
    pq.write_table(pa.concat_tables(fitted), job_dir / "training_set.parquet")
    pq.write_table(edit_test(with_split(rows(windows["test"], per_day=per_day), "test")), gate / "test_set.parquet")
    described = {
        "model": MODEL,
        "as_of": as_of.isoformat(),
        "training_path": "training_set.parquet",
        "test_path": "test_set.parquet",
        "training_digest": file_digest(job_dir / "training_set.parquet"),
        "test_digest": file_digest(gate / "test_set.parquet"),
        "windows": {split: {"start": str(w.start), "end": str(w.end)} for split, w in windows.items()},
        "rows": {},
        "unlabelled": {},
        "inputs": [{"table": "rides/features/vehicle_daily", "data_date": "2024-02-20", "digest": "d", "version": 3}],
        "pins": {"vehicle_daily": 0},
    }
    (gate / "training_set.json").write_text(json.dumps(described))
    return job_dir


def make_version(
    lake: Lake,
    job_dir: Path,
    version: int,
    *,
    features: Mapping[str, str] = FEATURES,
    outputs: tuple[str, ...] = OUTPUT_COLUMNS,
    **params: Any,
) -> Registered:
    """The stored files of a version trained by that job; `params` say how it misses."""
    described = json.loads((job_dir.with_name(f"{job_dir.name}.gate") / "training_set.json").read_text())
    attempt = lake.settings.artifacts / MODEL / f"making-{version}"
    (attempt / "model").mkdir(parents=True)
    Contract(
        model=MODEL,
        family="xgboost",
        features={name: FeatureSpec(kind) for name, kind in features.items()},
        outputs={name: output.model_dump(mode="json") for name, output in lake.model(MODEL).outputs.items()},
        output_columns=outputs,
        training_set_digest=described["training_digest"],
        as_of=described["as_of"],
        seed=version,
        params={"miss": 1.0} | params,
    ).write(attempt / "model")
    artifacts = {f"model/{name}": digest for name, digest in folder_digests(attempt / "model").items()}
    digest = combined_digest(artifacts)
    manifest = {
        "artifacts": artifacts,
        "training_set_digest": described["training_digest"],
        "identity": f"job-{version}",
    }
    (attempt / "manifest.json").write_text(json.dumps(manifest))
    (attempt / "job.json").write_text(json.dumps({"identity": f"job-{version}", "run_id": f"run-{version}"}))
    (attempt / "training_set.json").write_text(json.dumps(described))
    sign(lake.settings, attempt, MODEL)
    folder = artifact_folder(lake.settings, MODEL, digest)
    attempt.rename(folder)
    return Registered(MODEL, version, digest, f"run-{version}", date.fromisoformat(described["as_of"]), folder)

"""The server metrics, all 58 series of the Numenta Anomaly Benchmark, beside its scoreboard: its own score, standard
profile.

Its detectors stream each series alone, from the first row on, and score a row when it comes. Ours look at a night's
rows at its end, by features of the series' own past, and know distributions of other series: each series is scored by a
model of the other half of them, which never saw it. Labels choose the corpus-wide threshold alone, as in the benchmark.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from config.calendar import Interval
from config.settings import ROOT
from lake.artifact import file_digest
from lake.lake import Lake
from lake.tables import feature_table, valid_table
from serving.predictors import load_predictor, read_manifest
from serving.predictors.contract import read_json, write_json
from tests.benchmarks.nab_score import Scored, nab_score
from tests.benchmarks.published_stages import history, prepare, row, train
from training.job_file import JOB_FILE, job_identity
from training.registry.job import gate_folder

Floats = npt.NDArray[np.float64]

MODEL, DATASET, VIEW = "anomaly_detector", "server_metrics", "departures"
# Standard profile, scoreboard of the benchmark's README.
PUBLISHED = "published windowed Gaussian 39.6, random cut forest 51.7, HTM 70.5, ARTime 74.9"
RANDOM_CUT_FOREST = 51.7
HALVES = 2


def run(folder: Path) -> list[dict[str, Any]]:
    """The catalog's own training on its test nights, then the score of each candidate by halves of the series."""
    lake, rows = history(folder / DATASET, DATASET)
    jobs, prepared = prepare(lake, MODEL)
    measured, features = _tables(lake)
    windows = _windows(measured)
    rows += [prepared, *_references(measured, windows)]
    for job_dir in jobs:
        seconds = train(lake, MODEL, job_dir)
        family = read_manifest(job_dir)["family"]
        rows.append(row(f"{MODEL} {family}, test nights: {_on_test(lake, job_dir)}", seconds))
        began = time.perf_counter()
        scores = np.zeros(features.num_rows)
        for half in range(HALVES):
            own = _half(features) == half
            scores[own] = _scored_by_others(lake, job_dir, features, own, half)
        score, threshold = nab_score(_corpus(features, scores, windows))
        what = f"{MODEL} {family}, {len(windows)} series, each by a model of the other half: NAB score {score:.1f}"
        seconds = time.perf_counter() - began
        rows.append(row(f"{what} at {threshold:.5f}", seconds, PUBLISHED, score / RANDOM_CUT_FOREST))
    for name in (column for column in features.schema.names if column.endswith("departure")):
        alone = pc.fill_null(features[name], 0.0).to_numpy()
        score, _ = nab_score(_corpus(features, alone, windows))
        rows.append(row(f"{name} alone, as it is: NAB score {score:.1f}", 0.0, PUBLISHED, score / RANDOM_CUT_FOREST))
    return rows


def _tables(lake: Lake) -> tuple[pa.Table, pa.Table]:
    """Measurements and their features, each by series and step."""
    replay, dataset = lake.dataset(DATASET).replay, lake.dataset(DATASET)
    assert replay is not None
    nights = Interval.closed(replay.first, replay.last)
    order = [("series", "ascending"), ("step", "ascending")]
    measured = valid_table(lake.settings, dataset, "measurements").read(nights).sort_by(order)
    features = feature_table(lake.settings, dataset, VIEW).read(nights).sort_by(order)
    if not measured["step"].equals(features["step"]):
        raise RuntimeError(f"{measured.num_rows:,} measurements have {features.num_rows:,} rows of features")
    return measured, features


def _windows(measured: pa.Table) -> Mapping[str, list[tuple[int, int]]]:
    """First and last row of each incident's window, by series."""
    spans: dict[str, list[tuple[datetime, datetime]]] = {}
    with (ROOT / "features" / "sources" / "data" / "nab" / "incidents.csv").open(encoding="ascii") as lines:
        for line in csv.DictReader(lines):
            begin, end = (datetime.fromisoformat(line[name]) for name in ("begins", "ends"))
            spans.setdefault(line["series"], []).append((begin, end))
    windows = {}
    for series, part in _by_series(measured).items():
        when = measured["measured_utc"].slice(*part).cast(pa.timestamp("us")).to_numpy()
        inside = [
            np.flatnonzero((when >= np.datetime64(begin)) & (when <= np.datetime64(end)))
            for begin, end in spans.get(series, [])
        ]
        windows[series] = [(int(rows[0]), int(rows[-1])) for rows in inside]
    return windows


def _by_series(table: pa.Table) -> dict[str, tuple[int, int]]:
    """Begin and number of the rows of each series."""
    names, begins, counts = np.unique(table["series"].to_numpy(), return_index=True, return_counts=True)
    return {str(name): (int(b), int(n)) for name, b, n in zip(names, begins, counts, strict=True)}


def _half(features: pa.Table) -> npt.NDArray[np.int64]:
    """Every second series, by name."""
    _, number = np.unique(features["series"].to_numpy(), return_inverse=True)
    return number % HALVES


def _corpus(features: pa.Table, scores: Floats, windows: Mapping[str, list[tuple[int, int]]]) -> list[Scored]:
    return [Scored(scores[b : b + n], windows[series]) for series, (b, n) in _by_series(features).items()]


def _scored_by_others(
    lake: Lake, job_dir: Path, features: pa.Table, own: npt.NDArray[np.bool_], half: int
) -> npt.NDArray[np.float64]:
    """Scores of the masked rows by the same job, trained on nine tenths of the other rows and tuned on the rest."""
    named = features.rename_columns([_feature(name) for name in features.schema.names])
    others = named.filter(pa.array(~own))
    columns = list(read_json(job_dir / JOB_FILE)["feature_columns"])
    split = np.where(np.arange(others.num_rows) % 10 == 0, "validation", "train")
    taught = others.select(["data_date", *columns])
    taught = taught.append_column("label", pa.array(np.zeros(len(split)))).append_column("split", pa.array(split))
    target = job_dir.with_name(f"{job_dir.name}-half-{half}")
    target.mkdir()
    pq.write_table(taught, target / "training_set.parquet")
    job = dict(read_json(job_dir / JOB_FILE))
    job["training_set"] = {"path": "training_set.parquet", "digest": file_digest(target / "training_set.parquet")}
    write_json(target / JOB_FILE, {**job, "identity": job_identity(job)})
    train(lake, MODEL, target)
    scores: Floats = load_predictor(target).predict(named.filter(pa.array(own)))["anomaly"].to_numpy()
    return scores


def _feature(column: str) -> str:
    return f"{VIEW}__{column}" if column.endswith("departure") else column


def _on_test(lake: Lake, job_dir: Path) -> str:
    test = pq.read_table(gate_folder(job_dir) / "test_set.parquet")
    said = load_predictor(job_dir).predict(test)
    output = lake.model(MODEL).outputs["anomaly"]
    columns = {name: np.asarray(said[name].to_numpy(), np.float64) for name in output.judged_columns("anomaly")}
    figures = output.evaluation("anomaly", test["label"].to_numpy(), columns)
    shown = ("average_precision", "precision", "recall", "rate")
    return f"{test.num_rows:,} rows, " + ", ".join(f"{name} {figures[name]:.4f}" for name in shown)


def _references(measured: pa.Table, windows: Mapping[str, list[tuple[int, int]]]) -> list[dict[str, Any]]:
    """Two detectors whose published scores are known: they check the scoring, not the model."""
    values = {s: measured["value"].slice(*part).to_numpy() for s, part in _by_series(measured).items()}
    random = np.random.default_rng(42)
    guesses = [nab_score([Scored(random.random(len(v)), windows[s]) for s, v in values.items()])[0] for _ in range(5)]
    gaussian, _ = nab_score([Scored(_windowed_gaussian(v), windows[s]) for s, v in values.items()])
    return [
        row(f"random numbers, mean of {len(guesses)}: NAB score {np.mean(guesses):.1f}", 0.0, "published 11.0"),
        row(f"windowed Gaussian, written anew: NAB score {gaussian:.1f}", 0.0, "published 39.6", gaussian / 39.6),
    ]


def _windowed_gaussian(values: Floats, size: int = 6_400, step: int = 100) -> Floats:
    """1 minus the tail probability of each value in a Gaussian of the values before, which moves on in steps."""
    place = np.arange(1, len(values))
    begin = np.maximum(place - size, 0) // step * step
    end = np.where(place > size, begin + size, place)
    sums, squares = (np.concatenate([[0.0], np.cumsum((values - values[0]) ** power)]) for power in (1, 2))
    count = end - begin
    mean = (sums[end] - sums[begin]) / count
    spread = np.sqrt(np.maximum((squares[end] - squares[begin]) / count - mean**2, 0.0))
    spread[spread < 1e-9 * max(np.abs(values).max(), 1.0)] = 1e-6
    from scipy.special import erfc

    distance = np.abs(values[1:] - values[0] - mean) / spread
    return np.concatenate([[0.0], 1.0 - 0.5 * erfc(distance / np.sqrt(2.0))])

"""The simulated fleet's models beside the best possible ones: the world's own truth, on the rows of the same test.

Nobody publishes a fleet's failures, so the yardstick is the expectation of each label by who knows the world
(`features/sources/simulation/fleet/truth.py` says what each knows). It is judged like a model, on rows and labels that
the gate judges by.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from config.catalog.source import SimulationSource
from features.sources.simulation.fleet import battery, truth
from features.sources.simulation.fleet.vehicles import Fleet
from lake.lake import Lake
from serving.metrics import metric_named
from serving.predictors import load_predictor, read_manifest
from tests.benchmarks.published_stages import history, prepare, row, train
from training.registry.candidates import validation_error
from training.registry.job import gate_folder

Floats = npt.NDArray[np.float64]

MODELS = ("brake_failure", "maintenance_predictor", "safety_risk", "tire_wear", "fraud_detector")
# How many fills the investigators can look into on a day.
CAPACITY = 2
_METRICS = {"binary": ("roc_auc", "average_precision", "brier", "log_loss"), "regression": ("r2", "rmse", "mae")}


def run(folder: Path) -> list[dict[str, Any]]:
    """Every model; rows with what, seconds, against (the best possible), ratio (ours to it), aim."""
    lake, rows = history(folder / "fleet", "fleet")
    for model in MODELS:
        jobs, prepared = prepare(lake, model)
        rows.append(prepared)
        seconds = sum(train(lake, model, job_dir) for job_dir in jobs)
        best = min(jobs, key=lambda job_dir: validation_error(lake, model, job_dir))
        rows += compared(lake, model, best, seconds)
    return [*rows, *batteries()]


def batteries(vehicles: int = 2_000, evenings: int = 10) -> list[dict[str, Any]]:
    """Starter batteries that fail within 14 days: each voltage alone, beside who knows how aged the battery is.

    No data set uses them yet; evenings are 16 days apart, so that no failure is counted twice.
    """
    fleet, first = Fleet(7, vehicles), date(2024, 6, 1).toordinal()
    days = range(first, first + 16 * evenings, 16)
    shown = pa.concat_tables(battery.battery_days(fleet, day) for day in days)
    failed = [
        np.logical_or.reduce([battery.failed(fleet, day + ahead) for ahead in range(1, battery.WITHIN_DAYS + 1)])
        for day in days
    ]
    label = np.concatenate(failed).astype(np.float64)
    best = np.concatenate([truth.expected(fleet, "battery_reports", day)["expected"].to_numpy() for day in days])
    rows = []
    for metric in ("roc_auc", "average_precision"):
        possible = metric_named(metric).value(label, best)
        for name in ("resting_volts", "cranking_volts"):
            value = metric_named(metric).value(label, -shown[name].to_numpy())
            assert value is not None
            assert possible is not None
            what = (
                f"batteries, low {name} alone, {len(label):,} evenings, {label.mean():.1%} fail: {metric} {value:.4f}"
            )
            against = f"of a possible {possible:.4f} ({truth.KNOWN_BY['battery_reports']})"
            rows.append(row(what, 0.0, against, value / possible))
    return rows


def compared(lake: Lake, model: str, job_dir: Path, seconds: float) -> list[dict[str, Any]]:
    """A trained model's figures on its test rows, and what the world's truth has there."""
    test = pq.read_table(gate_folder(job_dir) / "test_set.parquet")
    entry = lake.model(model)
    name, output = next(iter(entry.outputs.items()))
    ours = load_predictor(job_dir).predict(test)[name].to_numpy()
    best = expectations(lake, model, test)
    label = output.truth(test["label"].to_numpy())
    family = read_manifest(job_dir)["family"]
    figures = []
    for metric in _METRICS[output.kind]:
        mine, possible = (metric_named(metric).value(label, each) for each in (ours, best))
        what = f"{model} {family}, {len(label):,} rows of {label.mean():.4g} in the mean: {metric} {mine:.4f}"
        ratio = mine / possible if mine and possible else None
        figures.append(row(what, seconds, f"of a possible {possible:.4f} ({truth.KNOWN_BY[entry.label.table]})", ratio))
    if model == "fraud_detector":
        figures += investigated(test["data_date"].to_numpy(), label, ours, best)
    return figures


def expectations(lake: Lake, model: str, rows: pa.Table) -> Floats:
    """The world's expectation of the label of each row."""
    entry = lake.model(model)
    source = lake.dataset(entry.dataset).tables[entry.label.table].source
    assert isinstance(source, SimulationSource)
    fleet = Fleet(source.seed, source.vehicles, source.episodes)
    days = rows["event_date"].to_pylist()
    known: dict[tuple[Any, str], float] = {}
    for day in dict.fromkeys(days):
        told = truth.expected(fleet, source.table, day.toordinal())
        key, value = told.columns
        known |= {(day, each): one for each, one in zip(key.to_pylist(), value.to_pylist(), strict=True)}
    key = "transaction" if "transaction" in rows.column_names else "vehicle"
    return np.array([known[row] for row in zip(days, rows[key].to_pylist(), strict=True)])


def investigated(nights: npt.NDArray[Any], label: Floats, ours: Floats, best: Floats) -> list[dict[str, Any]]:
    """Precision among what investigators look into a night, and where the documents' precision of 0.92 is reached."""
    rows = []
    shares = [_precision_at(nights, label, each, CAPACITY) for each in (ours, best)]
    rows.append(
        row(
            f"fraud_detector, the {CAPACITY} most probable of each night: precision {shares[0]:.3f}",
            0.0,
            f"of a possible {shares[1]:.3f}",
            shares[0] / shares[1],
        )
    )
    recalls = [_recall_at_precision(label, each, 0.92) for each in (ours, best)]
    rows.append(
        row(
            f"fraud_detector, recall where precision is 0.92: {recalls[0]:.3f}",
            0.0,
            f"of a possible {recalls[1]:.3f}; documents claim precision 0.92, AUC 0.95",
            recalls[0] / recalls[1],
        )
    )
    return rows


def _precision_at(nights: npt.NDArray[Any], label: Floats, scores: Floats, capacity: int) -> float:
    taken = [label[nights == night][np.argsort(-scores[nights == night])[:capacity]] for night in np.unique(nights)]
    return float(np.concatenate(taken).mean())


def _recall_at_precision(label: Floats, scores: Floats, precision: float) -> float:
    hits = np.cumsum(label[np.argsort(-scores)])
    good = hits / np.arange(1, len(hits) + 1) >= precision
    return float(hits[good].max() / hits[-1]) if good.any() else 0.0

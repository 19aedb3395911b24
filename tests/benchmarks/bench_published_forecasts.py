"""Forecasts of public series beside a seasonal naive and a linear trend: whole histories, trained as processes.

No figure is published for these horizons, so that the yardsticks are computed on the same rows. MASE (Hyndman and
Koehler 2006) divides each series' error by the error that the seasonal naive made of it in the training window, and is
the mean over the series: below 1 is better than the naive was there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from config.calendar import Interval
from config.catalog.model import ModelEntry
from features.labels import baseline
from lake.lake import Lake
from serving.predictors import load_predictor, read_manifest
from tests.benchmarks.published_stages import history, later_nights, prepare, row, train
from training.evaluate import judged_values
from training.registry.job import gate_folder

Floats = npt.NDArray[np.float64]

MODELS = {"taxi": "demand_forecast", "cluster": "resource_usage"}


def run(folder: Path) -> list[dict[str, Any]]:
    """Every data set; rows with what, seconds, against, ratio (ours to the seasonal naive's error), aim."""
    return [line for dataset, model in MODELS.items() for line in forecasts(folder / dataset, dataset, model)]


def forecasts(folder: Path, dataset: str, model: str) -> list[dict[str, Any]]:
    """Every candidate on the gate's test nights, and on the nights after them that it would have scored unchanged."""
    lake, rows = history(folder, dataset)
    entry = lake.model(model)
    jobs, prepared = prepare(lake, model)
    rows.append(prepared)
    training = pq.read_table(jobs[0] / "training_set.parquet")
    fitted = training.filter(pc.equal(training["split"], "train"))
    test = pq.read_table(gate_folder(jobs[0]) / "test_set.parquet")
    nights = {"test": test, "later": _with_baseline(lake, model, later_nights(lake, model, test))}
    constant = float(np.median(_numbers(fitted, "label")))
    for job_dir in jobs:
        seconds = train(lake, model, job_dir)
        predictor, family = load_predictor(job_dir), read_manifest(job_dir)["family"]
        for which, judged in nights.items():
            said, error = _judged(entry, predictor.predict(judged), judged, fitted, constant)
            naive = _filled(judged, constant)
            against = float(np.abs(naive - _numbers(judged, "label")).mean())
            rows.append(
                row(
                    f"{model} {family}, {which} nights ({judged.num_rows:,} rows): {said}",
                    seconds,
                    f"{entry.gate.baseline_words} MAE {against:.4g}{_trend_words(entry, judged)}",
                    error / against,
                )
            )
    return rows


def _judged(
    entry: ModelEntry, predicted: pa.Table, judged: pa.Table, fitted: pa.Table, constant: float
) -> tuple[str, float]:
    """The figures in words, and the mean absolute error."""
    (name, output), label = next(iter(entry.outputs.items())), _numbers(judged, "label")
    figures = output.evaluation(name, label, judged_values(output, name, predicted))
    scaled = mase(entry, judged, np.asarray(predicted[name]), fitted, constant)
    words = f"MAE {figures['mae']:.4g}, pinball {figures['pinball']:.4g}, MASE {scaled:.3f}"
    return f"{words}, {figures['coverage']:.1%} inside its interval", figures["mae"]


def mase(entry: ModelEntry, judged: pa.Table, predicted: Floats, fitted: pa.Table, constant: float) -> float:
    """Mean over the series of their error over the seasonal naive's in the training window; of those known there."""
    series, ratios = entry.entity[:-1], []
    scales = _errors(fitted, series, np.abs(_filled(fitted, constant) - _numbers(fitted, "label")))
    for key, error in _errors(judged, series, np.abs(predicted - _numbers(judged, "label"))).items():
        if scales.get(key):
            ratios.append(error / scales[key])
    return float(np.mean(ratios))


def _errors(rows: pa.Table, series: tuple[str, ...], errors: Floats) -> dict[tuple[Any, ...], float]:
    """Mean error by series."""
    grouped = rows.select(list(series)).append_column("error", pa.array(errors)).group_by(list(series))
    means = grouped.aggregate([("error", "mean")]).to_pylist()
    return {tuple(line[name] for name in series): line["error_mean"] for line in means}


def _filled(rows: pa.Table, constant: float) -> Floats:
    values = _numbers(rows, "baseline")
    filled: Floats = np.where(np.isnan(values), constant, values)
    return filled


def _trend_words(entry: ModelEntry, judged: pa.Table) -> str:
    """The linear trend's error, of a model that has it as a feature."""
    named = next((name for name in judged.column_names if name.endswith("__linear_trend")), None)
    if named is None:
        return ""
    trend, label = _numbers(judged, named), _numbers(judged, "label")
    there = ~np.isnan(trend)
    return f", linear trend {np.abs(trend - label)[there].mean():.4g}"


def _with_baseline(lake: Lake, model: str, rows: pa.Table) -> pa.Table:
    """The rows with what the seasonal naive said in each night."""
    entry = lake.model(model)
    nights = Interval.closed(pc.min(rows["data_date"]).as_py(), pc.max(rows["data_date"]).as_py())
    keys = ["data_date", *entry.entity]
    order = [(key, "ascending") for key in keys]
    joined = rows.drop_columns("baseline").join(baseline(lake, model, nights), keys).sort_by(order)
    return joined.select(rows.column_names).cast(rows.schema)


def _numbers(rows: pa.Table, name: str) -> Floats:
    return np.asarray(rows[name].cast(pa.float64()).to_numpy(), dtype=np.float64)

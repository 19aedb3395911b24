"""How good predictions are, beside the trivial baseline, and the plot of what they rest on; part of the training image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float64]
_PLOTTED_FEATURES = 20


def evaluate(outputs: Mapping[str, Mapping[str, Any]], label: Floats, predictions: pa.Table) -> dict[str, float]:
    """Metrics of every output, named `<output>/<metric>`.

    Args:
        outputs: catalog entries of the outputs, as JSON.
        label: float64 (rows,), at least one.
        predictions: the predictor's table, same rows.
    Returns:
        regression: mae, rmse, bias (prediction minus label), with an interval also coverage (share inside) and width,
        all in the label's unit; binary: brier, log_loss, predicted_rate, rate, and auc where both classes occur.
    """
    metrics: dict[str, float] = {}
    for name, output in outputs.items():
        scores = column(predictions, name)
        if output["kind"] == "binary":
            metrics |= {f"{name}/{key}": value for key, value in binary_metrics(np.where(label > output["above"], 1.0, 0.0), scores).items()}
            continue
        error = scores - label
        metrics |= {f"{name}/mae": float(np.abs(error).mean()), f"{name}/rmse": float(np.sqrt(np.square(error).mean())), f"{name}/bias": float(error.mean())}
        if output.get("interval"):
            lower, upper = column(predictions, f"{name}_lower"), column(predictions, f"{name}_upper")
            metrics |= {f"{name}/coverage": float(((label >= lower) & (label <= upper)).mean()), f"{name}/width": float((upper - lower).mean())}
    return metrics


def baseline_metrics(outputs: Mapping[str, Mapping[str, Any]], fitted_on: Floats, label: Floats, baseline: Floats | None) -> dict[str, float]:
    """Metrics of predicting without a model, named `<output>/baseline_<metric>`.

    Args:
        fitted_on: training labels; their median or mean and their rate are the constants predicted.
        baseline: per row of `label` a value to predict instead of the constant (NaN: the constant), or None.
    """
    metrics: dict[str, float] = {}
    for name, output in outputs.items():
        if output["kind"] == "binary":
            rate = float((fitted_on > output["above"]).mean())
            found = binary_metrics(np.where(label > output["above"], 1.0, 0.0), np.full(len(label), rate))
            metrics |= {f"{name}/baseline_brier": found["brier"], f"{name}/baseline_log_loss": found["log_loss"]}
            continue
        constant = float(np.median(fitted_on) if output["objective"] == "median" else fitted_on.mean())
        values = np.full(len(label), constant) if baseline is None else np.where(np.isnan(baseline), constant, baseline)
        error = values - label
        metrics |= {f"{name}/baseline_mae": float(np.abs(error).mean()), f"{name}/baseline_rmse": float(np.sqrt(np.square(error).mean()))}
    return metrics


def binary_metrics(truth: Floats, probability: Floats) -> dict[str, float]:
    """Brier score, log loss, AUC (absent with one class) and the rates, of 0/1 `truth`."""
    clipped = np.clip(probability, 1e-12, 1.0 - 1e-12)
    metrics = {
        "brier": float(np.square(probability - truth).mean()),
        "log_loss": float(-(truth * np.log(clipped) + (1.0 - truth) * np.log(1.0 - clipped)).mean()),
        "predicted_rate": float(probability.mean()),
        "rate": float(truth.mean()),
    }
    positives, negatives = float(truth.sum()), float(len(truth) - truth.sum())
    if positives and negatives:
        _, inverse, counts = np.unique(probability, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]  # ties share their mean rank
        metrics["auc"] = float((ranks[truth > 0.5].sum() - positives * (positives + 1.0) / 2.0) / (positives * negatives))
    return metrics


def column(predictions: pa.Table, name: str) -> Floats:
    """One output column as float64."""
    values: Floats = predictions.column(name).to_numpy().astype(np.float64)
    return values


def importance_plot(importances: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """Draw each output's largest importances as bars into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    most = min(_PLOTTED_FEATURES, max(len(shares) for shares in importances.values()))
    figure = Figure(figsize=(7.0 * len(importances), 1.2 + 0.28 * most), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for index, (name, shares) in enumerate(importances.items()):
        axes = figure.add_subplot(1, len(importances), index + 1)
        largest = sorted(shares.items(), key=lambda item: (item[1], item[0]))[-_PLOTTED_FEATURES:]
        axes.barh([feature for feature, _ in largest], [share for _, share in largest], color="#3b6ea5")
        axes.set_title(name)
        axes.set_xlabel("share of importance")
    figure.savefig(path, dpi=100)

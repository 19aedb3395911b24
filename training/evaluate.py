"""How good predictions are, beside the trivial baseline; part of the training image.

Every metric has its usual name and is absent, never NaN, where it is not defined: with one class nothing can be ranked,
with labels that are all equal there is no variance to explain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float64]
# A probability at or above it counts as a yes, in the metrics of a decision and in the confusion matrix.
THRESHOLD = 0.5
# The nearest to certainty that the log loss takes a probability for.
_CERTAIN = 1e-12


def evaluate(
    outputs: Mapping[str, Mapping[str, Any]],
    label: Floats,
    predictions: pa.Table,
    groups: npt.NDArray[Any] | None = None,
) -> dict[str, float]:
    """Metrics of every output, named `<output>/<metric>`.

    Args:
        outputs: catalog entries of the outputs, as JSON.
        label: float64 (rows,), at least one.
        predictions: the predictor's table, same rows.
        groups: per row what it is ranked within, for example its data date; None: no ranking metrics.
    Returns:
        regression: as `regression_metrics`, with an interval also coverage (share inside) and width, in the label's
            unit;
        binary: as `binary_metrics`; with `groups` also as `ranking_metrics`, an output's relevance being 0 or 1, or how
            far
        a label lies above the lowest of its group.
    """
    metrics: dict[str, float] = {}
    for name, output in outputs.items():
        scores = column(predictions, name)
        truth = np.where(label > output["above"], 1.0, 0.0) if output["kind"] == "binary" else label
        found = binary_metrics(truth, scores) if output["kind"] == "binary" else regression_metrics(truth, scores)
        if output.get("interval"):
            lower, upper = column(predictions, f"{name}_lower"), column(predictions, f"{name}_upper")
            found |= {
                "coverage": float(((label >= lower) & (label <= upper)).mean()),
                "width": float((upper - lower).mean()),
            }
        if groups is not None:
            found |= ranking_metrics(
                groups, truth if output["kind"] == "binary" else _above_lowest(groups, label), scores
            )
        metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
    return metrics


def baseline_metrics(
    outputs: Mapping[str, Mapping[str, Any]],
    fitted_on: Floats,
    label: Floats,
    baseline: Floats | None,
    *,
    constant: str | None = None,
) -> dict[str, float]:
    """Metrics of predicting without a model, named `<output>/baseline_<metric>`.

    Args:
        fitted_on: training labels; their median or mean and their rate are the constants predicted.
        baseline: per row of `label` a value to predict instead of the constant (NaN: the constant), or None.
        constant: `median` or `mean`; None: what the output's objective aims at.
    """
    metrics: dict[str, float] = {}
    for name, output in outputs.items():
        values = baseline_values(output, fitted_on, len(label), baseline, constant=constant)
        if output["kind"] == "binary":
            found = binary_metrics(np.where(label > output["above"], 1.0, 0.0), values)
            kept = {"brier", "log_loss"}
        else:
            found = regression_metrics(label, values)
            kept = {"mae", "mse", "rmse", "median_absolute_error"}
        metrics |= {f"{name}/baseline_{metric}": found[metric] for metric in found if metric in kept}
    return metrics


def baseline_values(
    output: Mapping[str, Any], fitted_on: Floats, rows: int, baseline: Floats | None, *, constant: str | None = None
) -> Floats:
    """What the baseline predicts for each row; arguments as in `baseline_metrics`. Shape (rows,)."""
    if output["kind"] == "binary":
        return np.full(rows, float((fitted_on > output["above"]).mean()))
    value = float(np.median(fitted_on) if (constant or output["objective"]) == "median" else fitted_on.mean())
    return np.full(rows, value) if baseline is None else np.where(np.isnan(baseline), value, baseline)


def lifts(outputs: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, float]) -> dict[str, float]:
    """`<output>/lift`: `1 - error / baseline error` of the metric the gate judges by; absent where the baseline makes
    no error.

    0 is as good as no model, 1 is without error, below 0 is worse than no model.

    Args:
        metrics: of `evaluate` and `baseline_metrics`, about the same rows.
    """
    found: dict[str, float] = {}
    for name, output in outputs.items():
        error, trivial = metrics[f"{name}/{output['gate']}"], metrics[f"{name}/baseline_{output['gate']}"]
        if trivial > 0.0:
            found[f"{name}/lift"] = 1.0 - error / trivial
    return found


def regression_metrics(truth: Floats, predicted: Floats) -> dict[str, float]:
    """Mae, mse, rmse, median_absolute_error, bias (prediction minus truth), and r2 where the truth is not the same
    everywhere.

    r2 is `1 - sum of squared errors / sum of squared distances from the truth's own mean`: 0 is as good as that mean,
    which no model could know beforehand.
    """
    error = predicted - truth
    squared = float(np.square(error).mean())
    metrics = {
        "mae": float(np.abs(error).mean()),
        "mse": squared,
        "rmse": float(np.sqrt(squared)),
        "median_absolute_error": float(np.median(np.abs(error))),
        "bias": float(error.mean()),
    }
    spread = float(np.square(truth - truth.mean()).mean())
    if truth.min() < truth.max() and spread > 0.0 and np.isfinite(squared / spread):
        metrics["r2"] = 1.0 - squared / spread
    return metrics


def binary_metrics(truth: Floats, probability: Floats, *, threshold: float = THRESHOLD) -> dict[str, float]:
    """Metrics of probabilities, and of the decisions they become at a threshold.

    Args:
        truth: 0 or 1, (rows,), at least one.
        probability: in [0, 1], same shape.
        threshold: a probability at or above it counts as a yes.
    Returns:
        brier, log_loss, rate (of ones), predicted_rate (mean probability); where both classes occur roc_auc; where
        there is a one average_precision; of the decisions accuracy, and where they are defined precision (a yes was
        said), recall (there is a one) and f1 (either).
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    clipped = np.clip(probability, _CERTAIN, 1.0 - _CERTAIN)
    metrics = {
        "brier": float(np.square(probability - truth).mean()),
        "log_loss": float(-(truth * np.log(clipped) + (1.0 - truth) * np.log(1.0 - clipped)).mean()),
        "predicted_rate": float(probability.mean()),
        "rate": float(truth.mean()),
    }
    event, said = truth > 0.5, probability >= threshold
    if event.any():
        metrics["average_precision"] = float(average_precision_score(event, probability))
        if not event.all():
            metrics["roc_auc"] = float(roc_auc_score(event, probability))
    hits, false_alarms, misses = int((event & said).sum()), int((~event & said).sum()), int((event & ~said).sum())
    metrics["accuracy"] = float((event == said).mean())
    if hits + false_alarms:
        metrics["precision"] = hits / (hits + false_alarms)
    if hits + misses:
        metrics["recall"] = hits / (hits + misses)
    if hits + false_alarms + misses:
        metrics["f1"] = 2 * hits / (2 * hits + false_alarms + misses)
    return metrics


def ranking_metrics(groups: npt.NDArray[Any], relevance: Floats, scores: Floats) -> dict[str, float]:
    """How well the scores order the rows of each group; both absent where no group can tell.

    ndcg: discounted cumulative gain, `sum(relevance / log2(1 + rank))`, over that of the best order, averaged over
        groups
    (Järvelin and Kekäläinen 2002; gains as they are, and tied scores share their discounts, as in scikit-learn's
    `ndcg_score`).
    mrr: 1 over the rank of the first of a group's most relevant rows, averaged over groups (Voorhees 1999; with 0 and 1
    that is the first relevant row). Of tied rows the most relevant are counted last: a constant score earns nothing.

    Args:
        groups: (rows,) what each row is ranked within, for example its data date; one dimension, sortable.
        relevance: not negative, (rows,).
        scores: larger ranks higher, (rows,).
    Raises:
        ValueError: a relevance is negative.
    """
    if len(relevance) and relevance.min() < 0.0:
        raise ValueError(f"the relevance of a row must not be negative, the lowest is {relevance.min():g}")
    _, codes = np.unique(groups, return_inverse=True)
    count = int(codes.max()) + 1 if len(codes) else 0
    lowest, highest = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(lowest, codes, relevance)
    np.maximum.at(highest, codes, relevance)
    told = lowest < highest  # where all rows are as relevant, every order is as good
    if not told.any():
        return {}
    starts = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=count))])

    order = np.lexsort((relevance, -scores, codes))
    rank = np.arange(len(order)) - starts[codes[order]]
    discount = 1.0 / np.log2(rank + 2.0)
    ties = np.concatenate([[0], np.cumsum((np.diff(codes[order]) != 0) | (np.diff(scores[order]) != 0))])
    shared = (np.bincount(ties, weights=discount) / np.bincount(ties))[ties]
    gained = np.bincount(codes[order], weights=relevance[order] * shared, minlength=count)

    best = np.lexsort((-relevance, codes))
    best_rank = np.arange(len(best)) - starts[codes[best]]
    reachable = np.bincount(codes[best], weights=relevance[best] / np.log2(best_rank + 2.0), minlength=count)

    first = np.full(count, np.inf)
    top = relevance[order] == highest[codes[order]]
    np.minimum.at(first, codes[order][top], rank[top] + 1.0)
    return {"ndcg": float((gained[told] / reachable[told]).mean()), "mrr": float((1.0 / first[told]).mean())}


def column(predictions: pa.Table, name: str) -> Floats:
    """One output column as float64."""
    values: Floats = predictions.column(name).to_numpy().astype(np.float64)
    return values


def _above_lowest(groups: npt.NDArray[Any], label: Floats) -> Floats:
    """Each label minus the lowest of its group."""
    _, codes = np.unique(groups, return_inverse=True)
    lowest = np.full(int(codes.max()) + 1, np.inf)
    np.minimum.at(lowest, codes, label)
    above: Floats = label - lowest[codes]
    return above

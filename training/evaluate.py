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

from config.catalog.output import SCALE, OutputKind
from serving.metrics.ranking import ranking_metrics

Floats = npt.NDArray[np.float64]


def evaluate(
    outputs: Mapping[str, OutputKind],
    label: Floats,
    predictions: pa.Table,
    groups: npt.NDArray[Any] | None = None,
) -> dict[str, float]:
    """Metrics and facts of every output, named `<output>/<metric>`.

    Args:
        label: float64 (rows,), at least one.
        predictions: the predictor's table, same rows; of a model whose gate is scaled with their `SCALE` beside them,
            or without the figure that needs it.
        groups: per row what it is ranked within, for example its data date; None: no ranking metrics.
    Returns:
        what the output's kind evaluates; with `groups` also `ndcg` and `mrr` of a kind whose rows can be ranked.
    """
    metrics: dict[str, float] = {}
    for name, output in outputs.items():
        columns = judged_values(output, name, predictions)
        figures = output.evaluation(name, label, columns)
        relevance = None if groups is None else output.relevance(groups, label)
        if groups is not None and relevance is not None:
            figures |= ranking_metrics(groups, relevance, output.judged(name, columns))
        metrics |= {f"{name}/{figure}": value for figure, value in figures.items()}
    return metrics


def baseline_metrics(
    outputs: Mapping[str, OutputKind],
    fitted_on: Floats,
    label: Floats,
    baseline: Floats | None,
    *,
    constant: str | None = None,
    scale: Floats | None = None,
) -> dict[str, float]:
    """Errors of predicting without a model, named `<output>/baseline_<metric>`.

    Args:
        fitted_on: training labels; their median or mean and their rates are the constants predicted.
        baseline: per row of `label` a value to predict instead of the constant (NaN: the constant), or None.
        constant: `median` or `mean`; None: what the output's objective aims at.
        scale: of each row's series, where an output's gate needs it.
    """
    metrics: dict[str, float] = {}
    for name, output in outputs.items():
        said, truth = output.baseline(output.constant(fitted_on, constant), len(label), baseline), output.truth(label)
        for measured in output.measured:
            metric = output.metric_named(measured)
            value = None if metric.greater_is_better else metric.value_over(truth, said, scale)
            if value is not None:
                metrics[f"{name}/baseline_{measured}"] = value
    return metrics


def lifts(outputs: Mapping[str, OutputKind], metrics: Mapping[str, float]) -> dict[str, float]:
    """`<output>/lift`: `1 - error / baseline error` of the metric the gate judges by; absent where the baseline makes
    no error, or the labels do not tell it.

    0 is as good as no model, 1 is without error, below 0 is worse than no model.

    Args:
        metrics: of `evaluate` and `baseline_metrics`, about the same rows.
    """
    gained: dict[str, float] = {}
    for name, output in outputs.items():
        error, trivial = metrics.get(f"{name}/{output.gate}"), metrics.get(f"{name}/baseline_{output.gate}")
        if error is not None and trivial:
            gained[f"{name}/lift"] = 1.0 - error / trivial
    return gained


def judged_values(output: OutputKind, name: str, predictions: pa.Table) -> dict[str, Floats]:
    """The judged columns of an output as float64, by name, and the rows' `SCALE` where the output has need of it and
    the table holds it.
    """
    columns = list(output.judged_columns(name))
    if output.scaled and SCALE in predictions.column_names:
        columns.append(SCALE)
    return {column: np.asarray(predictions.column(column).to_numpy(), dtype=np.float64) for column in columns}

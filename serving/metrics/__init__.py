"""Metrics: one file each, whose `METRIC` says how it is computed, pooled and called."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

from config.catalog.output import Metric, RowMetric
from config.errors import NightfleetError

# A file here that defines METRIC is a metric.
NAMES = tuple(
    sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if "\nMETRIC = " in path.read_text(encoding="utf-8")
    )
)


class UnknownMetric(NightfleetError):
    """No code computes a metric of that name."""


@functools.cache
def metric_named(name: str) -> Metric:
    """The metric of that name.

    Raises:
        UnknownMetric: there is none.
    """
    if name not in NAMES:
        raise UnknownMetric(
            f"there is no metric {name!r}. Known: {', '.join(NAMES)}. Fix `gate` of the output in the model's catalog "
            "file, or add the metric as a file in serving/metrics."
        )
    metric: Metric = importlib.import_module(f"serving.metrics.{name}").METRIC
    return metric


def row_metric(name: str) -> RowMetric:
    """As `metric_named`, of a metric that a gate may judge by.

    Raises:
        UnknownMetric: there is none, or it is no mean over rows.
    """
    metric = metric_named(name)
    if not isinstance(metric, RowMetric):
        raise UnknownMetric(f"{name} is no mean over rows, which a gate needs to resample days. Take another metric.")
    return metric


def rooted_checks() -> tuple[str, ...]:
    """Checks of the metrics table whose values are roots of means, the baselines' among them."""
    rooted = [name for name in NAMES if metric_named(name).rooted]
    return tuple(check for name in rooted for check in (name, f"{name}_baseline"))

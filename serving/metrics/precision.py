"""Precision."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import Metric
from serving.metrics.decided import decided

Floats = npt.NDArray[np.float64]


class Precision(Metric):
    """Share of the rows called an event that were one; not defined where none was called one."""

    name = "precision"
    title = "precision"
    words = "precision at 0.5"
    greater_is_better = True

    def value(self, truth: Floats, predicted: Floats) -> float | None:
        """See `Metric.value`."""
        said = decided(predicted)
        if not said.any():
            return None
        from sklearn.metrics import precision_score

        return float(precision_score(truth.astype(np.int64), said))


METRIC = Precision()

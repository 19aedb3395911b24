"""Accuracy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import Metric
from serving.metrics.decided import decided

Floats = npt.NDArray[np.float64]


class Accuracy(Metric):
    """Share of rows that were decided right."""

    name = "accuracy"
    title = "accuracy"
    words = "accuracy at 0.5"
    greater_is_better = True

    def value(self, truth: Floats, predicted: Floats) -> float:
        """See `Metric.value`."""
        from sklearn.metrics import accuracy_score

        return float(accuracy_score(truth.astype(np.int64), decided(predicted)))


METRIC = Accuracy()

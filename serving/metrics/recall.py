"""Recall."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import Metric
from serving.metrics.decided import decided

Floats = npt.NDArray[np.float64]


class Recall(Metric):
    """Share of the events that were called one; not defined without an event."""

    name = "recall"
    title = "recall"
    words = "recall at 0.5"
    greater_is_better = True

    def value(self, truth: Floats, predicted: Floats) -> float | None:
        """See `Metric.value`."""
        event = truth.astype(np.int64)
        if not event.any():
            return None
        from sklearn.metrics import recall_score

        return float(recall_score(event, decided(predicted)))


METRIC = Recall()

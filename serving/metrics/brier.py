"""Brier score: what a probability is judged by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import RowMetric

Floats = npt.NDArray[np.float64]


class BrierScore(RowMetric):
    """Mean square of the distance between a probability and what happened; of classes the sum over all of them."""

    name = "brier"
    title = "Brier"
    words = "Brier score"

    def value(self, truth: Floats, predicted: Floats) -> float:
        """See `Metric.value`."""
        return float(self.row_losses(truth, predicted).mean())

    def row_losses(self, truth: Floats, predicted: Floats) -> Floats:
        """See `RowMetric.row_losses`."""
        if predicted.ndim == 1:
            return np.square(predicted - truth)
        came = np.zeros_like(predicted)
        came[np.arange(len(truth)), truth.astype(np.int64)] = 1.0
        losses: Floats = np.square(predicted - came).sum(axis=1)
        return losses


METRIC = BrierScore()

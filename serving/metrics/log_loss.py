"""Log loss: what a probability is judged by where being sure and wrong is costly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import RowMetric

Floats = npt.NDArray[np.float64]
# The least probability that what happened is taken to have had: it keeps the loss of a certain error finite.
LEAST_LIKELIHOOD = 1e-15


class LogLoss(RowMetric):
    """Mean of minus the logarithm of the probability of what happened, for an event as for classes."""

    name = "log_loss"
    title = "log loss"
    words = "log loss"

    def value(self, truth: Floats, predicted: Floats) -> float:
        """See `Metric.value`."""
        return float(self.row_losses(truth, predicted).mean())

    def row_losses(self, truth: Floats, predicted: Floats) -> Floats:
        """See `RowMetric.row_losses`; scikit-learn has the mean alone, and clips elsewhere in each of its versions."""
        if predicted.ndim == 1:
            likelihood = np.where(truth > 0.5, predicted, 1.0 - predicted)
        else:
            likelihood = predicted[np.arange(len(truth)), truth.astype(np.int64)]
        losses: Floats = -np.log(np.clip(likelihood, LEAST_LIKELIHOOD, 1.0))
        return losses


METRIC = LogLoss()

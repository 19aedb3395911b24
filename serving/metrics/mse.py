"""Mean squared error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import RowMetric

Floats = npt.NDArray[np.float64]


class MeanSquaredError(RowMetric):
    """Mean square of the distance, in the square of the label's unit."""

    name = "mse"
    title = "MSE"
    words = "mean squared error"
    abbreviated = True

    def value(self, truth: Floats, predicted: Floats) -> float:
        """See `Metric.value`."""
        from sklearn.metrics import mean_squared_error

        return float(mean_squared_error(truth, predicted))

    def row_losses(self, truth: Floats, predicted: Floats) -> Floats:
        """See `RowMetric.row_losses`."""
        losses: Floats = np.square(predicted - truth)
        return losses


METRIC = MeanSquaredError()

"""Root mean squared error: what a mean is judged by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import RowMetric

Floats = npt.NDArray[np.float64]


class RootMeanSquaredError(RowMetric):
    """Root of the mean square of the distance; squares are what is pooled."""

    name = "rmse"
    title = "RMSE"
    words = "root mean squared error"
    abbreviated = True
    in_label_unit = True
    rooted = True

    def value(self, truth: Floats, predicted: Floats) -> float:
        """See `Metric.value`."""
        from sklearn.metrics import root_mean_squared_error

        return float(root_mean_squared_error(truth, predicted))

    def row_losses(self, truth: Floats, predicted: Floats) -> Floats:
        """See `RowMetric.row_losses`."""
        losses: Floats = np.square(predicted - truth)
        return losses


METRIC = RootMeanSquaredError()

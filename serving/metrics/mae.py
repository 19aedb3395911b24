"""Mean absolute error: what a median is judged by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import RowMetric

Floats = npt.NDArray[np.float64]


class MeanAbsoluteError(RowMetric):
    """Mean distance between prediction and truth."""

    name = "mae"
    title = "MAE"
    words = "mean absolute error"
    abbreviated = True
    in_label_unit = True

    def value(self, truth: Floats, predicted: Floats) -> float:
        """See `Metric.value`."""
        from sklearn.metrics import mean_absolute_error

        return float(mean_absolute_error(truth, predicted))

    def row_losses(self, truth: Floats, predicted: Floats) -> Floats:
        """See `RowMetric.row_losses`."""
        losses: Floats = np.abs(predicted - truth)
        return losses


METRIC = MeanAbsoluteError()

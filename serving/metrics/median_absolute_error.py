"""Median absolute error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import Metric

Floats = npt.NDArray[np.float64]


class MedianAbsoluteError(Metric):
    """Distance that half of the predictions keep."""

    name = "median_absolute_error"
    title = "median absolute error"
    words = "median absolute error"
    in_label_unit = True

    def value(self, truth: Floats, predicted: Floats) -> float:
        """See `Metric.value`."""
        from sklearn.metrics import median_absolute_error

        return float(median_absolute_error(truth, predicted))


METRIC = MedianAbsoluteError()

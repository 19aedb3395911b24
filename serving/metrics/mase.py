"""Mean absolute scaled error: what forecasts of series of different sizes are judged by together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import RowMetric

Floats = npt.NDArray[np.float64]


class MeanAbsoluteScaledError(RowMetric):
    """Mean of the distances between prediction and truth, each over the scale of its series: how far a season of it lay
    from the season before, on average over the seasons that the night knew.

    Below 1 a forecast is nearer than one season was to the next. A row whose series has no scale, because it is younger
    than two seasons or never changed, adds nothing.
    """

    name = "mase"
    title = "MASE"
    words = "mean absolute error over that of the seasons before"
    abbreviated = True
    scaled = True

    def value(self, truth: Floats, predicted: Floats) -> None:
        """Not defined without a scale, see `value_over`."""
        return None

    def row_losses(self, truth: Floats, predicted: Floats) -> Floats:
        """The distances, as of a scale of 1."""
        losses: Floats = np.abs(predicted - truth)
        return losses

    def losses_over(self, truth: Floats, predicted: Floats, scale: Floats | None) -> Floats:
        """See `RowMetric.losses_over`."""
        if scale is None:
            raise ValueError("mase needs the scale of each row's series, which its training set or night holds")
        losses = self.row_losses(truth, predicted)
        return np.divide(losses, scale, out=np.zeros(len(losses)), where=scale > 0.0)

    def value_over(self, truth: Floats, predicted: Floats, scale: Floats | None) -> float | None:
        """See `Metric.value_over`."""
        return None if scale is None else float(self.losses_over(truth, predicted, scale).mean())


METRIC = MeanAbsoluteScaledError()

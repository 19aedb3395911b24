"""Pinball loss: what quantiles are judged by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import RowMetric

Floats = npt.NDArray[np.float64]


class PinballLoss(RowMetric):
    """Mean over the quantiles of twice their loss, `2 (level - [truth < said]) (truth - said)`: at the median the
    absolute error. Quantiles are (rows, levels); one number a row stands for all of them.
    """

    name = "pinball"
    title = "pinball loss"
    words = "pinball loss of the interval's quantiles"
    in_label_unit = True

    def __init__(self, levels: tuple[float, ...] = (0.1, 0.5, 0.9)) -> None:
        self.levels = levels

    def value(self, truth: Floats, predicted: Floats) -> float:
        """See `Metric.value`."""
        return float(self.row_losses(truth, predicted).mean())

    def row_losses(self, truth: Floats, predicted: Floats) -> Floats:
        """See `RowMetric.row_losses`."""
        said = predicted if predicted.ndim == 2 else predicted[:, None]
        above = truth[:, None] - said
        levels = np.array(self.levels)
        losses: Floats = np.maximum(2.0 * levels * above, 2.0 * (levels - 1.0) * above).mean(axis=1)
        return losses


METRIC = PinballLoss()

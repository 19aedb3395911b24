"""What a ranking loses of Breese's rank score."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import RowMetric
from serving.metrics.ranks import ranks

Floats = npt.NDArray[np.float64]
# The rank at which an item is worth half, the published one.
HALF_LIFE = 5


class RankLoss(RowMetric):
    """1 minus the rank score of Breese, Heckerman and Kadie (1998): an item's worth halves with every `HALF_LIFE - 1`
    ranks, down to 0 beyond the list.
    """

    name = "rank_loss"
    title = "rank loss"
    words = "1 minus Breese's rank score, half-life 5"

    def value(self, truth: Floats, predicted: Floats) -> float:
        """See `Metric.value`."""
        return float(self.row_losses(truth, predicted).mean())

    def row_losses(self, truth: Floats, predicted: Floats) -> Floats:
        """See `RowMetric.row_losses`; `predicted` are items, best first, (rows, items)."""
        losses: Floats = 1.0 - np.exp2(-(ranks(truth, predicted) - 1.0) / (HALF_LIFE - 1.0))
        return losses


METRIC = RankLoss()

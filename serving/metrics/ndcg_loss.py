"""What a ranking loses of its discounted gain (NDCG)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import RowMetric
from serving.metrics.ranks import ranks

Floats = npt.NDArray[np.float64]


class NdcgLoss(RowMetric):
    """1 minus NDCG: with one relevant item a row, NDCG is `1 / log2(1 + rank)` (Järvelin and Kekäläinen 2002), 0 beyond
    the list.
    """

    name = "ndcg_loss"
    title = "NDCG loss"
    words = "1 minus NDCG of the list"

    def value(self, truth: Floats, predicted: Floats) -> float:
        """See `Metric.value`."""
        return float(self.row_losses(truth, predicted).mean())

    def row_losses(self, truth: Floats, predicted: Floats) -> Floats:
        """See `RowMetric.row_losses`; `predicted` are items, best first, (rows, items)."""
        losses: Floats = 1.0 - 1.0 / np.log2(1.0 + ranks(truth, predicted))
        return losses


METRIC = NdcgLoss()

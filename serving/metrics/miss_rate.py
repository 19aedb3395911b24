"""Share of rows whose item is not in the list: 1 minus recall."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import RowMetric
from serving.metrics.ranks import ranks

Floats = npt.NDArray[np.float64]


class MissRate(RowMetric):
    """1 minus recall at the length of the list: with one relevant item a row, it is found or not."""

    name = "miss_rate"
    title = "miss rate"
    words = "share of items that came and were not in the list"

    def value(self, truth: Floats, predicted: Floats) -> float:
        """See `Metric.value`."""
        return float(self.row_losses(truth, predicted).mean())

    def row_losses(self, truth: Floats, predicted: Floats) -> Floats:
        """See `RowMetric.row_losses`; `predicted` are items, best first, (rows, items)."""
        losses: Floats = np.isinf(ranks(truth, predicted)).astype(np.float64)
        return losses


METRIC = MissRate()

"""What a decision cost over what the baseline's would have, under what came true."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import RowMetric

Floats = npt.NDArray[np.float64]


class RelativeCost(RowMetric):
    """1 is the baseline, 0.95 costs 5 % less.

    Truth is a place among the outcomes that costs are given for: 0 the first, 0.5 half-way to the second; one beyond
    the ends costs as the end. Predictions are (rows, 2 * outcomes): costs of the decision, then of the baseline's.
    """

    name = "relative_cost"
    title = "relative cost"
    words = "cost of the decision over the baseline's"

    def value(self, truth: Floats, predicted: Floats) -> float:
        """See `Metric.value`."""
        return float(self.row_losses(truth, predicted).mean())

    def row_losses(self, truth: Floats, predicted: Floats) -> Floats:
        """See `RowMetric.row_losses`."""
        ours, baseline = costs(truth, predicted)
        return np.asarray(ours / baseline)


def costs(truth: Floats, predicted: Floats) -> tuple[Floats, Floats]:
    """Costs of the decision and of the baseline's under what came true, each (rows,); between two outcomes on the line
    that joins them.
    """
    outcomes = predicted.shape[1] // 2
    place = np.clip(truth, 0.0, outcomes - 1.0)
    before = np.minimum(place.astype(np.int64), outcomes - 2)
    share, rows = place - before, np.arange(len(place))

    def at(first: int) -> Floats:
        low, high = predicted[rows, first + before], predicted[rows, first + before + 1]
        return np.asarray(low + share * (high - low))

    return at(0), at(outcomes)


METRIC = RelativeCost()

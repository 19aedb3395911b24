"""What average precision lacks to 1: what a detector of rare events is judged by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import RowMetric

Floats = npt.NDArray[np.float64]

# Draws of days are counted in so many steps of the score at most: more tell the area no better.
_MOST_STEPS = 1_024
_DRAWS_AT_ONCE = 512


class AveragePrecisionLoss(RowMetric):
    """1 - average precision: mean over events of the share of false alarms among the rows scored at least as high.

    A constant score has 1 - the share of events. Not defined where no event was.
    """

    name = "average_precision_loss"
    title = "1 - AP"
    words = "false alarms down to an event, 1 - average precision"
    listwise = True

    def value(self, truth: Floats, predicted: Floats) -> float | None:
        """See `Metric.value`."""
        return float(self.row_losses(truth, predicted).mean()) if (truth > 0.5).any() else None

    def row_losses(self, truth: Floats, predicted: Floats) -> Floats:
        """The share of false alarms at and above each event, over the share of events; 0 for a row without one."""
        event = truth > 0.5
        if not event.any():
            return np.zeros(len(truth))
        order = np.argsort(-predicted, kind="stable")
        at_least = np.searchsorted(-predicted[order], -predicted, side="right")
        hits = np.concatenate([[0], np.cumsum(event[order])])[at_least]
        losses: Floats = np.where(event, 1.0 - hits / at_least, 0.0) / event.mean()
        return losses

    def of_draws(self, truth: Floats, predicted: Floats, day: npt.NDArray[np.int64], weights: Floats) -> Floats:
        """See `RowMetric.of_draws`: ranked anew among the rows of each draw; NaN for a draw without an event."""
        event = truth > 0.5
        steps = np.unique(predicted[event])
        if len(steps) > _MOST_STEPS:
            steps = np.unique(np.quantile(predicted[event], np.linspace(0.0, 1.0, _MOST_STEPS), method="inverted_cdf"))
        # Rows of one step count as alike; those below every event are false alarms of none.
        step = np.searchsorted(steps, predicted, side="right") - 1
        kept, days = step >= 0, weights.shape[1]
        cell = day[kept] * len(steps) + step[kept]
        counts = [
            np.bincount(cell[event[kept] == came], minlength=days * len(steps)).reshape(days, len(steps))[:, ::-1]
            for came in (True, False)
        ]
        losses = np.full(len(weights), np.nan)
        for start in range(0, len(weights), _DRAWS_AT_ONCE):
            part = slice(start, start + _DRAWS_AT_ONCE)
            hit, missed = (weights[part] @ count for count in counts)
            hits, alarms = np.cumsum(hit, axis=1), np.cumsum(hit + missed, axis=1)
            false_share = 1.0 - np.divide(hits, alarms, out=np.ones_like(hits), where=alarms > 0.0)
            drawn = hits[:, -1] if len(steps) else np.zeros(len(hit))
            np.divide((hit * false_share).sum(axis=1), drawn, out=losses[part], where=drawn > 0.0)
        return losses


METRIC = AveragePrecisionLoss()

"""What macro F1 lacks to 1: what a choice of classes is judged by where rare ones count as much as frequent ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import RowMetric
from serving.metrics.decided import decided

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class MacroF1Loss(RowMetric):
    """1 - macro F1: mean over the classes that were said or came true of their errors over twice their hits and errors.

    It is no mean of losses that rows have by themselves: what an error weighs depends on how often its two classes were
    said and came true among the rows judged together.
    """

    name = "macro_f1_loss"
    title = "1 - macro F1"
    words = "what macro F1 lacks to 1, each class counting alike"
    listwise = True

    def value(self, truth: Floats, predicted: Floats) -> float:
        """See `Metric.value`."""
        return float(self.row_losses(truth, predicted).mean())

    def row_losses(self, truth: Floats, predicted: Floats) -> Floats:
        """An error's share of the loss of the class that was said and of the one that came true; 0 for a hit."""
        came, said = truth.astype(np.int64), decided(predicted)
        seen = np.bincount(came, minlength=_classes(came, said)) + np.bincount(said, minlength=_classes(came, said))
        weight = np.divide(1.0, seen, out=np.zeros(len(seen)), where=seen > 0)
        losses: Floats = np.where(came == said, 0.0, weight[came] + weight[said])
        return losses * len(losses) / max(int((seen > 0).sum()), 1)

    def of_draws(self, truth: Floats, predicted: Floats, day: Counts, weights: Floats) -> Floats:
        """See `RowMetric.of_draws`: hits and errors of each class are counted anew among the rows of each draw."""
        came, said = truth.astype(np.int64), decided(predicted)
        classes, days = _classes(came, said), weights.shape[1]

        def drawn(position: Counts, rows: npt.NDArray[np.bool_]) -> Floats:
            cells = np.bincount(day[rows] * classes + position[rows], minlength=days * classes)
            counts: Floats = weights @ cells.reshape(days, classes)
            return counts

        wrong, every = came != said, np.ones(len(came), dtype=bool)
        errors = drawn(came, wrong) + drawn(said, wrong)
        seen = drawn(came, every) + drawn(said, every)
        of_class = np.divide(errors, seen, out=np.zeros_like(errors), where=seen > 0)
        means: Floats = of_class.sum(axis=1) / (seen > 0).sum(axis=1)
        return means


def _classes(came: Counts, said: Counts) -> int:
    """How many positions of classes there are up to the highest that occurs."""
    return int(max(came.max(initial=0), said.max(initial=0))) + 1


METRIC = MacroF1Loss()

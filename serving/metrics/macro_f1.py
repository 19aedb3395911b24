"""Macro F1 of classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import Metric
from serving.metrics.decided import decided

Floats = npt.NDArray[np.float64]


class MacroF1(Metric):
    """Mean of the F1 of each class that was said or came true, rare ones counting as much as frequent ones."""

    name = "macro_f1"
    title = "macro F1"
    words = "macro F1, each class counting alike"
    greater_is_better = True

    def value(self, truth: Floats, predicted: Floats) -> float:
        """See `Metric.value`."""
        from sklearn.metrics import f1_score

        return float(f1_score(truth.astype(np.int64), decided(predicted), average="macro"))


METRIC = MacroF1()

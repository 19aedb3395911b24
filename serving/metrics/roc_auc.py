"""Area under the ROC curve."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import Metric

Floats = npt.NDArray[np.float64]


class AreaUnderCurve(Metric):
    """Probability that an event scores above a non-event, ties counted half; not defined where one kind is missing."""

    name = "roc_auc"
    title = "ROC AUC"
    words = "ROC AUC, 0.5 is guessing"
    greater_is_better = True

    def value(self, truth: Floats, predicted: Floats) -> float | None:
        """See `Metric.value`."""
        event = truth > 0.5
        if event.all() or not event.any():
            return None
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(event, predicted))


METRIC = AreaUnderCurve()

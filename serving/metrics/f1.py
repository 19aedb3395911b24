"""F1 of an event."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import Metric
from serving.metrics.decided import decided

Floats = npt.NDArray[np.float64]


class F1(Metric):
    """Harmonic mean of precision and recall; not defined where no event was and none was called one."""

    name = "f1"
    title = "F1"
    words = "F1 at 0.5"
    greater_is_better = True

    def value(self, truth: Floats, predicted: Floats) -> float | None:
        """See `Metric.value`."""
        event, said = truth.astype(np.int64), decided(predicted)
        if not event.any() and not said.any():
            return None
        from sklearn.metrics import f1_score

        return float(f1_score(event, said))


METRIC = F1()

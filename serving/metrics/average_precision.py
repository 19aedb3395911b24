"""Average precision."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import Metric

Floats = npt.NDArray[np.float64]


class AveragePrecision(Metric):
    """Area under the curve of precision over recall; not defined without an event."""

    name = "average_precision"
    title = "average precision"
    words = "average precision"
    greater_is_better = True

    def value(self, truth: Floats, predicted: Floats) -> float | None:
        """See `Metric.value`."""
        event = truth > 0.5
        if not event.any():
            return None
        from sklearn.metrics import average_precision_score

        return float(average_precision_score(event, predicted))


METRIC = AveragePrecision()

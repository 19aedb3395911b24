"""Coefficient of determination."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from config.catalog.output import Metric

Floats = npt.NDArray[np.float64]


class VarianceExplained(Metric):
    """1 minus the mean square of the distance over the variance of the truth.

    0 is as good as the truth's own mean, which no model could know beforehand; a truth that is the same everywhere has
    none, where scikit-learn says 1 or 0.
    """

    name = "r2"
    title = "R²"
    words = "R², share of the variance explained"
    greater_is_better = True

    def value(self, truth: Floats, predicted: Floats) -> float | None:
        """See `Metric.value`."""
        spread = float(np.square(truth - truth.mean()).mean())
        squared = float(np.square(predicted - truth).mean())
        if not (truth.min() < truth.max() and spread > 0.0 and np.isfinite(squared / spread)):
            return None
        from sklearn.metrics import r2_score

        return float(r2_score(truth, predicted))


METRIC = VarianceExplained()

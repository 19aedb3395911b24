"""What an `anomaly` output keeps with its version: the scale of its score, threshold, severities, usual inputs."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from serving.kinds.anomaly import Output
from serving.predictors.contract import Contract
from training.trainers import Floats, Rows

# Of the scale: so many steps over all rows, and each of so many of the strangest.
_STEPS = 400
# The tail beyond the strangest row falls as these strangest shares of rows do on average.
_TAIL = 0.01


def fit_anomaly(contract: Contract, name: str, strange: Floats, fit: Rows, validation: Rows) -> dict[str, Any]:
    """The numbers that `serving.predictors.anomaly` takes, from validation rows; their labels play no part.

    Args:
        strange: how strange the validation rows are.
    """
    output = cast("Output", contract.kinds[name])
    ordered = np.sort(strange)
    return {
        "scale": _scale(ordered),
        "threshold": _threshold(ordered, output.budget(len(ordered), len(np.unique(validation.nights)))),
        "severity": [float(bound) for bound in np.quantile(ordered, output.severity, method="inverted_cdf")],
        "usual": _usual(contract, fit),
    }


def _scale(ordered: Floats) -> dict[str, Any]:
    rows = len(ordered)
    places = np.concatenate([np.linspace(0, rows - 1, _STEPS), np.arange(max(0, rows - _STEPS), rows)])
    knots = np.unique(ordered[np.rint(places).astype(np.int64)])
    less, up_to = (np.searchsorted(ordered, knots, side=side) for side in ("left", "right"))
    tail = ordered[min(int(rows * (1.0 - _TAIL)), rows - 1) :]
    excess = float((tail - tail[0]).mean())
    return {
        "strangeness": knots.tolist(),
        "shares": ((less + up_to) / (2 * rows)).tolist(),  # equal rows share their ranks
        "tail": excess if excess > 0.0 else 1.0,
    }


def _threshold(ordered: Floats, budget: int) -> float:
    """The least strangeness at and above which not more than `budget` rows lie."""
    above = float(np.nextafter(ordered[-1], np.inf))
    values, first = np.unique(ordered, return_index=True)
    allowed = values[len(ordered) - first <= budget]
    return float(allowed[0]) if len(allowed) else above


def _usual(contract: Contract, fit: Rows) -> list[float | None]:
    """Of each feature a value that most rows are near: the median of numbers, the most frequent category; None where
    all are missing.
    """
    usual: list[float | None] = []
    for index, spec in enumerate(contract.features.values()):
        values = np.asarray(fit.matrix[:, index])
        values = values[~np.isnan(values)]
        if not len(values):
            usual.append(None)
        elif spec.categories is not None:
            usual.append(float(np.bincount(values.astype(np.int64)).argmax()))
        else:
            usual.append(float(np.quantile(values, 0.5, method="inverted_cdf")))
    return usual

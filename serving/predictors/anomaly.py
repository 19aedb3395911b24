"""From how strange a row is to what an `anomaly` output publishes, by numbers that lie in JSON beside the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.predictors.contract import Matrix

Floats = npt.NDArray[np.float64]
# How strange rows of a matrix are, larger is stranger; of a row the same whatever rows are beside it.
Strangeness = Callable[[Matrix], Floats]


def raw_anomaly(strangeness: Strangeness, matrix: Matrix, detail: Mapping[str, Any]) -> Floats:
    """Score, flag, position of the input behind a flag and of the severity, (rows, 4).

    Args:
        detail: as `training.trainers.anomaly` chose it on validation rows.
    """
    strange = strangeness(matrix)
    flagged = strange >= detail["threshold"]
    made_by = np.full(len(strange), -1.0)
    if flagged.any():
        usual = np.array([np.nan if value is None else value for value in detail["usual"]], np.float32)
        made_by[flagged] = _strangest_input(strangeness, matrix[flagged], strange[flagged], usual)
    severity = np.searchsorted(detail["severity"], strange, side="right").astype(np.float64)
    return np.column_stack([tail_share(strange, detail["scale"]), flagged.astype(np.float64), made_by, severity])


def tail_share(strange: Floats, scale: Mapping[str, Any]) -> Floats:
    """The share of validation rows that are less strange; beyond the strangest of them an exponential tail."""
    knots, shares = np.asarray(scale["strangeness"]), np.asarray(scale["shares"])
    beyond = np.maximum(strange - knots[-1], 0.0)
    shared: Floats = np.interp(strange, knots, shares)
    return np.where(beyond > 0.0, 1.0 - (1.0 - shares[-1]) * np.exp(-beyond / scale["tail"]), shared)


def _strangest_input(
    strangeness: Strangeness, matrix: Matrix, strange: Floats, usual: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    """The feature whose usual value in its place makes each row least strange; of equal ones the first."""
    eased = np.empty(matrix.shape)
    for index, value in enumerate(usual):
        changed = matrix.copy()
        changed[:, index] = value
        eased[:, index] = strange - strangeness(changed)
    strongest: npt.NDArray[np.int64] = eased.argmax(axis=1)
    return strongest

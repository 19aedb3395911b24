"""From raw scores to honest ones: probability calibration and interval adjustment, as numbers that lie in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    result: Floats = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return result


def calibrated(logits: Floats, calibration: Mapping[str, Any]) -> Floats:
    """Probabilities in [0, 1] of raw `logits`, by a calibration as `training.trainers.calibration` fitted it."""
    match calibration["method"]:
        case "none":
            return sigmoid(logits)
        case "platt":
            return sigmoid(calibration["slope"] * logits + calibration["intercept"])
        case "isotonic":
            result: Floats = np.interp(logits, calibration["logits"], calibration["probabilities"])
            return result
        case unknown:
            raise ValueError(f"calibration {unknown!r} is none of none, platt, isotonic")


def ordered_interval(center: Floats, lower: Floats, upper: Floats, widen_by: float) -> tuple[Floats, Floats]:
    """Bounds moved outwards by `widen_by` (negative: inwards) that never cross `center`."""
    return np.minimum(lower - widen_by, center), np.maximum(upper + widen_by, center)

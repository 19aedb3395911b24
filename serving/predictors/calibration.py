"""From raw scores to honest ones: probability calibration and interval adjustment, as numbers that lie in JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
            raise ValueError(f"calibration {unknown!r} is not one of none, platt, isotonic")


def class_odds(shares: Floats, least: float) -> Floats:
    """Log odds of each class against all others, from shares (rows, classes); shares nearer to 0 or 1 than `least` are
    no certainty.
    """
    kept = np.clip(shares, least, 1.0 - least)
    odds: Floats = np.log(kept / (1.0 - kept))
    return odds


def softmax(margins: Floats) -> Floats:
    """Shares of classes from margins, (rows, classes), without overflow."""
    raised = np.exp(margins - margins.max(axis=1, keepdims=True))
    shares: Floats = raised / raised.sum(axis=1, keepdims=True)
    return shares


def calibrated_classes(odds: Floats, calibrations: Sequence[Mapping[str, Any]]) -> Floats:
    """Probabilities of classes that add up to 1: each calibrated against all others (Zadrozny and Elkan 2002).

    Args:
        odds: of `class_odds`.
        calibrations: one a class, as `calibrated` takes them.
    """
    apart = np.column_stack([calibrated(odds[:, k], calibration) for k, calibration in enumerate(calibrations)])
    total = apart.sum(axis=1, keepdims=True)
    return np.where(total > 0.0, apart / np.where(total > 0.0, total, 1.0), 1.0 / apart.shape[1])


def adjusted_interval(
    center: Floats, lower: Floats, upper: Floats, adjustment: Mapping[str, Any]
) -> tuple[Floats, Floats]:
    """Bounds of raw ones by an adjustment as `training.trainers.calibration.fit_interval` fitted it: `widen_by`, one
    number, or with `band_edges` one for each band of `center`; an edge belongs to the band below it.
    """
    widen_by = adjustment["widen_by"]
    if "band_edges" in adjustment:
        widen_by = np.array(widen_by)[np.searchsorted(adjustment["band_edges"], center)]
    return ordered_interval(center, lower, upper, widen_by)


def ordered_interval(center: Floats, lower: Floats, upper: Floats, widen_by: float | Floats) -> tuple[Floats, Floats]:
    """Bounds moved outwards by `widen_by` (negative: inwards) that never cross `center`."""
    return np.minimum(lower - widen_by, center), np.maximum(upper + widen_by, center)

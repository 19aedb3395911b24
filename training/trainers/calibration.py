"""Fitting, on the validation split, what makes probabilities and intervals honest. Applied by
`serving.predictors.calibration`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from serving.predictors.calibration import ordered_interval, sigmoid
from training.trainers import TrainingImpossible

Floats = npt.NDArray[np.float64]
Method = Literal["platt", "isotonic", "none"]
# Of fewer, what a band widened for 80 % holds of new rows differs by more than six points from one draw to the next.
_BAND_ROWS = 50


def fit_calibration(logits: Floats, truth: Floats, method: Method) -> dict[str, Any]:
    """A monotone map from raw logits to probabilities, as JSON.

    Args:
        logits: raw scores of validation rows.
        truth: 0 or 1 for each.
    Returns:
        `{"method": "none"}` also where validation knows one class only, for then there is nothing to fit on.
    """
    positives = float(truth.sum())
    if method == "none" or positives in (0.0, float(len(truth))):
        return {"method": "none"}
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        # Counted with one row of each class more than there are, so that no probability is 0 or 1.
        fitted = IsotonicRegression(
            y_min=1.0 / (len(truth) + 2), y_max=1.0 - 1.0 / (len(truth) + 2), out_of_bounds="clip"
        ).fit(logits, truth)
        return {
            "method": "isotonic",
            "logits": fitted.X_thresholds_.tolist(),
            "probabilities": fitted.y_thresholds_.tolist(),
        }
    return _platt(logits, truth, positives)


def fit_class_calibrations(odds: Floats, truth: Floats, method: Method) -> list[dict[str, Any]]:
    """A calibration for each class against all others, as `calibrated_classes` takes them.

    Args:
        odds: log odds of validation rows, (rows, classes).
        truth: position of the class of each.
    """
    return [fit_calibration(odds[:, k], np.where(truth == k, 1.0, 0.0), method) for k in range(odds.shape[1])]


def _platt(logits: Floats, truth: Floats, positives: float) -> dict[str, Any]:
    """Platt scaling by Newton's method, with Platt's smoothed targets."""
    negatives = len(truth) - positives
    target = np.where(truth > 0.5, (positives + 1.0) / (positives + 2.0), 1.0 / (negatives + 2.0))
    base_rate = (positives + 1.0) / (len(truth) + 2.0)
    weights = np.array([1.0, 0.0])
    design = np.column_stack([logits, np.ones_like(logits)])

    def loss(candidate: Floats) -> float:
        margin = design @ candidate
        return float(np.sum(np.logaddexp(0.0, margin) - target * margin))

    current = loss(weights)
    for _ in range(100):
        probability = sigmoid(design @ weights)
        gradient = design.T @ (probability - target)
        curvature = probability * (1.0 - probability)
        hessian = (design * curvature[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-6 and loss(weights - size * step) > current:
            size /= 2.0
        weights = weights - size * step
        following = loss(weights)
        if current - following < 1e-9 * max(1.0, abs(current)):
            break
        current = following
    if weights[0] <= 0.0:  # scores that say nothing, or the opposite: the base rate says more
        return {"method": "platt", "slope": 0.0, "intercept": math.log(base_rate / (1.0 - base_rate))}
    return {"method": "platt", "slope": float(weights[0]), "intercept": float(weights[1])}


def fit_interval(
    output: Mapping[str, Any], label: Floats, center: Floats, lower: Floats, upper: Floats
) -> dict[str, Any]:
    """How bounds are to be moved so that the output's share of new rows falls inside, as `adjusted_interval` takes it.

    Conformalised quantile regression (Romano, Patterson and Candès 2019). With `interval_bands` every band of numbers
    predicted is widened by itself (Mondrian, Boström and Johansson 2020): bounds that hold their share on the whole may
    hold all where numbers are low and half where they are high. Bands hold equally many validation rows.

    Args:
        output: of the contract, with an `interval`.
        label: of validation rows.
        center, lower, upper: what the model says of them, bounds as it learned them.
    Raises:
        TrainingImpossible: there are too few validation rows for so many bands.
    """
    lower, upper = ordered_interval(center, lower, upper, 0.0)
    share, bands = output["interval"], output.get("interval_bands")
    if bands is None:
        return {"widen_by": fit_widening(label, lower, upper, share)}
    if len(label) < bands * _BAND_ROWS:
        raise TrainingImpossible(
            f"interval_bands: {bands} needs {bands * _BAND_ROWS} validation rows, {_BAND_ROWS} a band, and there are "
            f"{len(label)}. Widen `split.validation`, or name fewer bands."
        )
    edges = _band_edges(center, bands)
    band = np.searchsorted(edges, center)
    widen_by = [
        fit_widening(label[band == index], lower[band == index], upper[band == index], share)
        for index in range(len(edges) + 1)
    ]
    return {"band_edges": edges.tolist(), "widen_by": widen_by}


def _band_edges(center: Floats, bands: int) -> Floats:
    """Edges between bands of numbers, from low to high; fewer where equal numbers would leave a band too few rows."""
    edges: list[float] = []
    below = 0
    for edge in np.quantile(center, np.arange(1, bands) / bands, method="lower"):
        upto = int(np.count_nonzero(center <= edge))
        if min(upto - below, len(center) - upto) >= _BAND_ROWS:
            edges.append(float(edge))
            below = upto
    return np.array(edges)


def fit_widening(label: Floats, lower: Floats, upper: Floats, share: float) -> float:
    """By how much to move both bounds outwards (negative: inwards) so that `share` of new rows fall inside: the
    quantile of how far validation labels lie outside, corrected for their number.
    """
    outside = np.maximum(lower - label, label - upper)
    level = min(1.0, math.ceil((len(label) + 1) * share) / len(label))
    return float(np.quantile(outside, level, method="higher"))

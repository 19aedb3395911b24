"""One-sided bounds on a relative improvement, by resampling days.

Errors of one day hang together (one storm delays every flight), so the day is what is drawn with replacement, never
the row. All functions take sums of losses per day; the drawing is done once per judgement and shared by every metric,
so that a model compared with itself has an improvement of exactly 0 in every draw.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 5_000
_COLUMNS_AT_ONCE = 256

Floats = NDArray[np.float64]


def day_weights(days: int, *, seed: int, resamples: int = RESAMPLES) -> Floats:
    """How often each day is drawn.

    Args:
        days: number of days there are, at least 1.
        seed: same seed, same draws.
        resamples: number of draws.
    Returns:
        Whole numbers as float64, shape `(resamples, days)`; every row sums to `days`.
    """
    if days < 1:
        raise ValueError(f"a bootstrap over days needs at least one day, got {days}")
    drawn = np.random.default_rng(seed).multinomial(days, np.full(days, 1.0 / days), size=resamples)
    return drawn.astype(np.float64)


def error_ratio(challenger: Floats, incumbent: Floats, *, root: bool = False) -> Floats:
    """Challenger's error over the incumbent's, elementwise, from sums of losses over the same rows.

    Two perfect models are equal (1); against a perfect incumbent any loss is infinitely worse.

    Args:
        challenger, incumbent: sums of non-negative losses, same shape.
        root: take the square root, for a metric that is one (rmse).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(incumbent > 0, challenger / incumbent, np.where(challenger > 0, np.inf, 1.0))
    return np.sqrt(ratio) if root else ratio


def improvement_bound(
    challenger: Floats, incumbent: Floats, weights: Floats, *, confidence: float, root: bool = False
) -> float:
    """The value that the relative improvement `1 - error_challenger / error_incumbent` exceeds with `confidence`.

    Args:
        challenger, incumbent: sums of losses per day over the same rows, shape `(days,)`.
        weights: of `day_weights`, shape `(resamples, days)`.
        confidence: for example 0.95: the 5 % quantile over the draws is the bound.
    """
    return bound_of_draws(weights @ challenger, weights @ incumbent, confidence=confidence, root=root)


def bound_of_draws(challenger: Floats, incumbent: Floats, *, confidence: float, root: bool = False) -> float:
    """As `improvement_bound`, from what each draw of days makes of both, (draws,); one without either is left out."""
    told = ~(np.isnan(challenger) | np.isnan(incumbent))
    ratio = error_ratio(challenger[told], incumbent[told], root=root)
    # An order statistic, not an interpolation: defined where a draw is infinite, and never better than what was drawn.
    return float(np.quantile(1.0 - ratio, 1.0 - confidence, method="lower"))


def ratio_lower_bounds(
    challenger: Floats, incumbent: Floats, weights: Floats, *, confidence: float, root: bool = False
) -> Floats:
    """For each segment the value that its error ratio exceeds with `confidence`.

    Args:
        challenger, incumbent: sums of losses per day and segment, shape `(days, segments)`.
        weights: shape `(resamples, days)`.
    Returns:
        Shape `(segments,)`.
    """
    bounds = np.empty(challenger.shape[1])
    for start in range(0, challenger.shape[1], _COLUMNS_AT_ONCE):
        part = slice(start, start + _COLUMNS_AT_ONCE)
        ratio = error_ratio(weights @ challenger[:, part], weights @ incumbent[:, part], root=root)
        bounds[part] = np.quantile(ratio, 1.0 - confidence, axis=0, method="lower")
    return bounds

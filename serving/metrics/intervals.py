"""Means and shares with their 95 % intervals, rows taken as independent."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

CONFIDENT = 1.959963984540054  # two-sided 95 % of a normal distribution
_DECIMALS = 6

Floats = npt.NDArray[np.float64]
Bounded = tuple[float, float, float]


def rounded(value: float) -> float:
    """To six decimals, so that equal nights give equal bits."""
    return round(float(value), _DECIMALS)


def mean_and_bounds(values: Floats) -> Bounded:
    """Mean, lower and upper bound, as they are; of a single value the bounds are NaN."""
    mean = float(values.mean())
    half = CONFIDENT * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else float("nan")
    return mean, mean - half, mean + half


def mean_with_interval(values: Floats) -> Bounded:
    """`mean_and_bounds`, rounded."""
    mean, lower, upper = mean_and_bounds(values)
    return rounded(mean), rounded(lower), rounded(upper)


def share_with_interval(hits: int, rows: int) -> Bounded:
    """A share and its 95 % interval by Wilson (1927), which does not claim to be certain where all rows came out
    alike.
    """
    share, square = hits / rows, CONFIDENT**2
    middle = (share + square / (2 * rows)) / (1 + square / rows)
    half = CONFIDENT * math.sqrt(share * (1 - share) / rows + square / (4 * rows**2)) / (1 + square / rows)
    return rounded(share), rounded(max(middle - half, 0.0)), rounded(min(middle + half, 1.0))

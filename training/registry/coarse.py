"""Numbers that are personal data, as far as drift and drawings need them: on a grid of about ten round lines, so that
nobody's own value is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_LEVELS = 10
_DIGITS = 12

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """Multiples of `step` from the `low`-th to the `high`-th."""

    step: float
    low: int
    high: int

    @classmethod
    def of(cls, edges: Sequence[float]) -> Grid:
        """The grid around the inner edges of a column's quantile bins; infinite ones do not count."""
        finite = [edge for edge in edges if math.isfinite(edge)] or [0.0]
        lowest, highest = min(finite), max(finite)
        spread = highest - lowest
        # A constant column: lines at a tenth of its own size.
        if spread <= abs(highest) * 1e-9:
            spread = abs(highest) or 1.0
        rough = spread / _LEVELS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
        return cls(step, math.floor(lowest / step), math.ceil(highest / step))

    @property
    def lines(self) -> list[float]:
        """Edges of bins, ascending."""
        return [self._line(number) for number in range(self.low, self.high + 1)]

    def nearest(self, values: Floats) -> Floats:
        """Each value's nearest line; what lies outside of the grid is brought to its rim, NaN stays."""
        numbers = np.clip(np.round(values / self.step), self.low, self.high)
        rounded: Floats = np.array([self._line(number) for number in np.unique(numbers)])
        return rounded[np.unique(numbers, return_inverse=True)[1]]

    def _line(self, number: float) -> float:
        return float(f"{number * self.step:.{_DIGITS}g}")

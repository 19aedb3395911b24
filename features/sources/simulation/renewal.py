"""Parts that wear, are replaced before or after they fail, and wear again: a renewal process on a clock of wear.

The clock of a vehicle runs as it is used, 1 being a nominal life, and is known in closed form for any day. On it a
part's life is the earlier of two independent Weibull lives: the wear at which it fails, and the wear at which it is
planned to be replaced (competing risks; Kalbfleisch and Prentice, The Statistical Analysis of Failure Time Data, 2002,
chapter 8). The lives of a vehicle's parts are drawn by their number, so that its state on a day is a search among some
tens of sums, and no day needs the days before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.sources.simulation.draws import Floats, uniforms

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_QUADRATURE = np.polynomial.legendre.leggauss(16)


@dataclass(frozen=True)
class Weibull:
    """Lives with the hazard `shape / scale * (age / scale) ** (shape - 1)`."""

    shape: float
    scale: float

    def drawn(self, uniform: Floats) -> Floats:
        """The life of each uniform number."""
        return self.scale * (-np.log(uniform)) ** (1.0 / self.shape)

    def cumulative_hazard(self, age: Floats, stretched: Floats | float = 1.0) -> Floats:
        """Minus the logarithm of the share that is older than `age`, of a scale so many times as large."""
        return (age / (self.scale * stretched)) ** self.shape

    def hazard(self, age: Floats) -> Floats:
        """Failures a unit of age, of those that are as old."""
        return self.shape / self.scale * (age / self.scale) ** (self.shape - 1.0)


@dataclass(frozen=True)
class Part:
    """What wears: the wear at which it fails, and the wear at which it is planned to be replaced."""

    name: str
    fails: Weibull
    planned: Weibull


@dataclass(frozen=True)
class Lives:
    """The lives of one part of each vehicle, arrays of (cycles, vehicles).

    Attributes:
        ends: on the vehicle's clock of wear.
        failed: whether a life ended by failing.
        stretched: factor on the planned wear.
    """

    part: Part
    ends: Floats
    failed: Bools
    stretched: Floats

    def cycle(self, clock: Floats) -> Ints:
        """The number of the life that each vehicle's part is in."""
        return np.asarray((self.ends <= clock).sum(axis=0), dtype=np.int64)

    def wear(self, clock: Floats) -> Floats:
        """How worn each vehicle's part is, 1 being a nominal life."""
        begun = np.vstack([np.zeros(self.ends.shape[1]), self.ends])
        return np.asarray(clock - np.take_along_axis(begun, self.cycle(clock)[None], axis=0)[0])

    def failure_probability(self, clock: Floats, later: Floats) -> Floats:
        """How probable it is that the part fails before the clock shows `later`, by who knows how worn it is.

        The integral over the coming wear of the hazard of failing times the share that is neither failed nor replaced
        by then.
        """
        age = self.wear(clock)
        stretched = np.take_along_axis(self.stretched, self.cycle(clock)[None], axis=0)[0]
        so_far = self._hazards(age, stretched)
        nodes, weights = _QUADRATURE
        half = (later - clock) / 2.0
        total = np.zeros_like(age)
        for node, weight in zip(nodes, weights, strict=True):
            then = age + half * (1.0 + node)
            total += weight * self.part.fails.hazard(then) * np.exp(so_far - self._hazards(then, stretched))
        return np.clip(total * half, 0.0, 1.0)

    def _hazards(self, age: Floats, stretched: Floats) -> Floats:
        return self.part.fails.cumulative_hazard(age) + self.part.planned.cumulative_hazard(age, stretched)


def drawn_lives(part: Part, seed: int, cycles: int, stretch: Floats, between: tuple[Floats, Floats]) -> Lives:
    """The first `cycles` lives of a part of each vehicle.

    Args:
        stretch: (vehicles,) factor on the planned wear of a part that begins its life between the clocks `between`.
    """
    count = len(stretch)
    ends, failed, stretched = np.empty((cycles, count)), np.empty((cycles, count), bool), np.empty((cycles, count))
    begin = np.zeros(count)
    for cycle in range(cycles):
        stretched[cycle] = np.where((begin >= between[0]) & (begin < between[1]), stretch, 1.0)
        fails = part.fails.drawn(uniforms(seed, f"{part.name} fails", cycle, count))
        planned = part.planned.drawn(uniforms(seed, f"{part.name} planned", cycle, count)) * stretched[cycle]
        failed[cycle] = fails < planned
        ends[cycle] = begin + np.minimum(fails, planned)
        begin = ends[cycle]
    return Lives(part, ends, failed, stretched)

"""A group-sequential design: the winner of an A/B test whose longest duration is known, looked at on stated nights.

Where the last night is known, an error rate that is spent on a few stated looks leaves each look more power than one
that must hold at every look for ever. Alpha is spent by the functions of Lan and DeMets ("Discrete sequential
boundaries for clinical trials", Biometrika 70, 1983); the boundaries follow by the recursive numerical integration of
Armitage, McPherson and Rowe (1969), as in Jennison and Turnbull, "Group Sequential Methods with Applications to
Clinical Trials" (2000), chapter 19.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from monitoring.rollout.sequence import Floats, Prefixes, straightened
from monitoring.wording import counted, figures, spaced

Spending = Literal["obrien_fleming", "pocock"]

_NODES = 400
_LEAST_SPENT = 1e-14  # below it the integration is noise: that look stops nothing
_FARTHEST = 8.0  # standard deviations; nothing to speak of lies beyond


@dataclass(frozen=True)
class Design:
    """Two-sided and symmetric: whoever is ahead may win.

    Attributes:
        nights: at each look, ascending; the last is the longest duration.
        alpha: rate at which a winner is declared where there is no difference, both sides and all looks together.
        boundaries: a z statistic farther from 0 stops; infinite at a look that has too little to spend.
    """

    nights: tuple[int, ...]
    alpha: float
    spending: Spending
    boundaries: tuple[float, ...]


@dataclass(frozen=True)
class Outcome:
    """Of an A/B test so far.

    Attributes:
        winner: None while nobody is ahead by enough.
        nights: at the look that decided, else at the newest look; 0 before the first.
        next_look: in nights, None when there is a winner or no look is left: the champion stays.
    """

    winner: Literal["champion", "challenger"] | None
    nights: int
    z: float | None
    boundary: float | None
    next_look: int | None
    sentence: str


def spent(alpha: float, fractions: ArrayLike, spending: Spending) -> Floats:
    """What of `alpha` may be spent on one side until each fraction of the information, cumulated.

    `obrien_fleming` spends next to nothing early and nearly all at the end; `pocock` spends evenly.
    """
    t = np.asarray(fractions, dtype=np.float64)
    if spending == "obrien_fleming":
        return np.asarray(2.0 * special.ndtr(special.ndtri(alpha / 2.0) / np.sqrt(t)))
    return np.asarray(alpha * np.log1p((np.e - 1.0) * t))


def design(nights: Sequence[int], *, alpha: float, spending: Spending = "obrien_fleming") -> Design:
    """Boundaries for looks after so many nights; each night is taken to hold the same information.

    Args:
        nights: ascending, at least 2 each, the last being the longest duration.
        alpha: of both sides, for example 0.05.
    Raises:
        ValueError: no look, or looks that do not ascend from 2; alpha outside (0, 1).
    """
    if not nights or nights[0] < 2 or any(second <= first for first, second in pairwise(nights)):
        raise ValueError(
            f"looks after {list(nights)} nights; needed are ascending numbers from 2, for example 7, 14, 28"
        )
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha is {alpha}; needed is a rate between 0 and 1, for example 0.05")
    fractions = np.asarray(nights, dtype=np.float64) / nights[-1]
    limits = boundaries(fractions, spent(alpha / 2.0, fractions, spending))
    return Design(tuple(nights), alpha, spending, tuple(limits.tolist()))


def boundaries(information: ArrayLike, cumulated: ArrayLike) -> Floats:
    """Symmetric boundaries of z that spend on each side what is cumulated until each look.

    Args:
        information: at each look, ascending, in any unit.
        cumulated: what each side has spent by then, not descending.
    """
    looks = np.asarray(information, dtype=np.float64)
    increments = np.diff(np.asarray(cumulated, dtype=np.float64), prepend=0.0)
    limits = np.full(looks.shape, np.inf)
    region = _Region.start()
    for look, (now, spend) in enumerate(zip(looks, increments, strict=True)):
        if spend > _LEAST_SPENT:
            limits[look] = region.limit(spend, now)
        region = region.next(min(limits[look], _FARTHEST), now)
    return limits


def crossing(limits: ArrayLike, information: ArrayLike, *, drift: float = 0.0) -> tuple[Floats, Floats]:
    """At each look the probability to cross the upper and the lower boundary there, and none before.

    Args:
        limits: of z, at each look; symmetric.
        drift: mean of z at information 1.
    """
    region = _Region.start(drift)
    upper, lower = [], []
    for limit, now in zip(np.asarray(limits, np.float64), np.asarray(information, np.float64), strict=True):
        upper.append(region.beyond(limit, now))
        lower.append(region.below(-limit, now))
        region = region.next(min(limit, _FARTHEST + abs(drift)), now)
    return np.array(upper), np.array(lower)


@dataclass(frozen=True)
class _Region:
    """Density of the score z sqrt(information) on the nodes of the region where nothing has stopped yet."""

    nodes: Floats
    mass: Floats  # density times weight of the quadrature
    information: float
    drift: float

    @classmethod
    def start(cls, drift: float = 0.0) -> _Region:
        return cls(np.zeros(1), np.ones(1), 0.0, drift)

    def _step(self, score: ArrayLike, information: float) -> Floats:
        """Standardized distance of a score from each node, one look later."""
        step = information - self.information
        ahead = np.asarray(score)[..., None] - self.nodes - self.drift * step
        return np.asarray(ahead / np.sqrt(step))

    def beyond(self, limit: float, information: float) -> float:
        return float(special.ndtr(-self._step(limit * np.sqrt(information), information)) @ self.mass)

    def below(self, limit: float, information: float) -> float:
        return float(special.ndtr(self._step(limit * np.sqrt(information), information)) @ self.mass)

    def limit(self, spend: float, information: float) -> float:
        """Where to stop so that so much lies beyond."""
        return float(optimize.brentq(lambda z: self.beyond(z, information) - spend, -_FARTHEST, _FARTHEST))

    def next(self, limit: float, information: float) -> _Region:
        points, weights = _quadrature()
        end = limit * np.sqrt(information)
        density = stats.norm.pdf(self._step(points * end, information)) @ self.mass
        scale = end / np.sqrt(information - self.information)
        return _Region(points * end, density * weights * scale, information, self.drift)


@functools.cache
def _quadrature() -> tuple[Floats, Floats]:
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    return points, weights


def outcome(plan: Design, statistics: Prefixes, *, metric: str, unit: str = "") -> Outcome:
    """Who wins, judged at the stated looks that the nights have reached.

    Look k sees the first `plan.nights[k]` nights in data-date order. A night that comes later than a look which its
    data date precedes would change that look after the fact: hand in no night while an earlier one may still come.

    Args:
        statistics: of `sequence.prefixes` or `unpaired.arms`: harm is the challenger's loss less the champion's.
        metric: the mean loss as an operator calls it; `unit`: the loss's.
    """
    reached = [look for look, nights in enumerate(plan.nights) if nights <= statistics.mean.shape[-1]]
    following = plan.nights[len(reached)] if len(reached) < len(plan.nights) else None
    if not reached:
        text = f"The first look is after {counted(plan.nights[0], 'night')}; so far there are"
        return Outcome(None, 0, None, None, following, f"{text} {counted(statistics.mean.shape[-1], 'night')}.")
    z = z_statistics(statistics)
    stopped = [look for look in reached if abs(z[plan.nights[look] - 1]) >= plan.boundaries[look]]
    look = stopped[0] if stopped else reached[-1]
    nights, boundary = plan.nights[look], plan.boundaries[look]
    value, harm = float(z[nights - 1]), float(statistics.mean[nights - 1])
    beginning = f"After {counted(nights, 'night')} of {plan.nights[-1]} the challenger's {metric} is"
    beginning += f" {figures(abs(harm))}{spaced(unit)} {'higher' if harm > 0 else 'lower'} than the champion's"
    compared = f"z {figures(value)} against a boundary of {figures(boundary)} either way"
    if stopped:
        winner: Literal["champion", "challenger"] = "champion" if value > 0 else "challenger"
        return Outcome(winner, nights, value, boundary, None, f"{beginning}: the {winner} wins ({compared}).")
    then = "no look is left and nobody wins" if following is None else f"the next look is after {following} nights"
    return Outcome(None, nights, value, boundary, following, f"{beginning}, {compared}; {then}.")


def z_statistics(statistics: Prefixes) -> Floats:
    """The t statistic of each prefix as the z of the same p-value; 0 where there is none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.nan_to_num(statistics.mean / statistics.error, nan=0.0, posinf=1e6, neginf=-1e6)
    side = np.sign(t)
    size = straightened(np.abs(t), side * statistics.skewness, statistics.nights)
    tail = special.stdtr(np.maximum(statistics.nights - 1.0, 1e-3), -size)
    return np.asarray(-side * special.ndtri(np.maximum(tail, 1e-300)))

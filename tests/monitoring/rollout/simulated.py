"""Rollouts made up of random nights, all at once: arrays of shape (rollouts, nights), in standard deviations of a
night's paired difference.
"""

from __future__ import annotations

import numpy as np

from monitoring.rollout.looks import Design, z_statistics
from monitoring.rollout.sequence import Floats, bounds, prefixes

NIGHTS = 60
# Monday to Sunday; of mean 0 and of standard deviation 0.7, beside nights of 1.
WEEKDAYS = np.array([1.0, 0.5, 0.0, 0.0, -0.3, -0.8, -0.4])
WEEKDAYS = 0.7 * (WEEKDAYS - WEEKDAYS.mean()) / WEEKDAYS.std()
AUTOCORRELATION = 0.3


def autocorrelated(shocks: Floats) -> Floats:
    """Nights of an AR(1) of the same variance."""
    nights = shocks.copy()
    for night in range(1, shocks.shape[1]):
        nights[:, night] = AUTOCORRELATION * nights[:, night - 1] + np.sqrt(1 - AUTOCORRELATION**2) * shocks[:, night]
    return nights


def seasonal(random: np.random.Generator, nights: Floats) -> Floats:
    """With a pattern of weekdays on top, each rollout beginning on a weekday of its own."""
    first = random.integers(0, 7, len(nights))[:, None]
    return np.asarray(nights + WEEKDAYS[(first + np.arange(nights.shape[1])) % 7])


def heavy(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Student's t with 3 degrees of freedom, of variance 1."""
    return np.asarray(random.standard_t(3, shape) / np.sqrt(3.0))


def gaussian(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return random.standard_normal(shape)


# Mean 0 and, but for weekdays, variance 1. Skewed: to the side on which false rollbacks lie.
WORLDS = {
    "Gaussian": gaussian,
    "autocorrelation 0.3": lambda random, shape: autocorrelated(gaussian(random, shape)),
    "weekdays": lambda random, shape: seasonal(random, gaussian(random, shape)),
    "tails of t(3)": heavy,
    "all three": lambda random, shape: seasonal(random, autocorrelated(heavy(random, shape))),
    "skewness -2": lambda random, shape: 1.0 - random.exponential(size=shape),
    "skewness -6": lambda random, shape: (
        (np.exp(0.5) - np.exp(random.standard_normal(shape))) / np.sqrt((np.e - 1.0) * np.e)
    ),
}


def unequal_rows(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Rows of nights, of which one in twenty has fewer than 0.44 or more than 2.3 times the median."""
    return np.exp(0.5 * random.standard_normal(shape))


def first_crossing(crossed: np.ndarray) -> Floats:
    """The night, from 1, at which each rollout crosses; infinite where none does."""
    return np.where(crossed.any(axis=1), crossed.argmax(axis=1) + 1.0, np.inf)


def rolled_back(harm: Floats, rows: Floats | None = None, *, alpha: float, tolerance: float = 0.0) -> Floats:
    """The night at which the confidence sequence, looked at every night, finds each rollout harmful."""
    lower, _ = bounds(prefixes(harm, np.ones_like(harm) if rows is None else rows), alpha=alpha)
    return first_crossing(lower > tolerance)


def declared(harm: Floats, plan: Design, *, champion: bool = False) -> Floats:
    """The night at which each A/B test has a winner, whoever it is or, asked so, the champion; infinite without one."""
    looks = np.array(plan.nights) - 1
    z = z_statistics(prefixes(harm, np.ones_like(harm)))[:, looks]
    stopped = first_crossing((z if champion else np.abs(z)) >= np.array(plan.boundaries))
    reached = np.isfinite(stopped)
    stopped[reached] = np.array(plan.nights)[stopped[reached].astype(int) - 1]
    return stopped

"""Rollouts made up of random nights and looked at every night: how often is one without harm rolled back, and how soon
one that harms?

`python -m tests.benchmarks.bench_rollout` prints the table of docs/rollout_statistics.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from monitoring.rollout.looks import design
from monitoring.rollout.sequence import Floats, critical_values, prefixes
from tests.benchmarks import bench_rollout_flights
from tests.monitoring.rollout import simulated

ALPHA = 0.05
WITHOUT_HARM, HARMFUL = 2_000, 500
# Of one night's harm, in parts of the champion's loss: that of flights (bench_rollout_flights).
SPREAD = 0.1
HARMS = (0.05, 0.1, 0.2)
# The empirical-Bernstein bound needs a range: half the champion's loss either way.
RANGE = 0.5 / SPREAD


def confidence_sequence(harm: Floats) -> Floats:
    """What `monitoring/rollout` does."""
    return simulated.rolled_back(harm, alpha=ALPHA)


def tolerant(harm: Floats) -> Floats:
    """The same where 1 % of the champion's loss is tolerated."""
    return simulated.rolled_back(harm, alpha=ALPHA, tolerance=0.01 / SPREAD)


def bare_t(harm: Floats) -> Floats:
    """The anytime-valid t-test of Wang and Ramdas alone, without what is added for autocorrelation and skewness."""
    nights, mean, error = _running(harm)
    return simulated.first_crossing(mean - critical_values(nights, ALPHA) * error > 0.0)


def every_night(harm: Floats) -> Floats:
    """A t-test made for one look, at each night from the second."""
    nights, mean, error = _running(harm)
    return simulated.first_crossing(mean - stats.t.ppf(1.0 - ALPHA, np.maximum(nights - 1.0, 1.0)) * error > 0.0)


def asymptotic(harm: Floats) -> Floats:
    """The one-sided asymptotic confidence sequence of Waudby-Smith et al. (2021), tightest at 20 nights."""
    nights, mean, error = _running(harm)
    rho = np.sqrt((-2.0 * np.log(ALPHA) + np.log(-2.0 * np.log(ALPHA) + 1.0)) / 20.0)
    inner = nights * rho**2 + 1.0
    width = np.sqrt(2.0 * inner / (nights * rho**2) * np.log1p(np.sqrt(inner) / (2.0 * ALPHA)))
    return simulated.first_crossing(mean - width * error > 0.0)


def empirical_bernstein(harm: Floats) -> Floats:
    """The predictable plug-in of Waudby-Smith and Ramdas (2020), harm clipped to `RANGE`."""
    x = (np.clip(harm, -RANGE, RANGE) + RANGE) / (2.0 * RANGE)
    k = np.arange(1, x.shape[1] + 1)
    mean = (0.5 + np.cumsum(x, axis=1)) / (k + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2, axis=1)) / (k + 1)
    # The bet of a night is made before it.
    mean, variance = (
        np.hstack([np.full((len(x), 1), first), after[:, :-1]]) for first, after in ((0.5, mean), (0.25, variance))
    )
    bet = np.minimum(np.sqrt(2.0 * np.log(1.0 / ALPHA) / (variance * k * np.log(k + 1.0))), 0.5)
    penalty = np.cumsum((x - mean) ** 2 * (-np.log1p(-bet) - bet), axis=1)
    total = np.cumsum(bet, axis=1)
    lower = np.cumsum(bet * x, axis=1) / total - (np.log(1.0 / ALPHA) + penalty) / total
    return simulated.first_crossing(lower > 0.5)


def group_sequential(harm: Floats) -> Floats:
    """Looks of an A/B test of at most 56 nights; as everywhere here, `ALPHA` is the rate of one side."""
    return simulated.declared(harm, design([7, 14, 28, 56], alpha=2.0 * ALPHA), champion=True)


def _running(harm: Floats) -> tuple[Floats, Floats, Floats]:
    """Nights, mean and standard error of each prefix, nights taken as independent; no error at the first night."""
    statistics = prefixes(harm, np.ones_like(harm), autocorrelated=False)
    return statistics.nights, statistics.mean, np.where(np.isfinite(statistics.error), statistics.error, 1e9)


METHODS: dict[str, Callable[[Floats], Floats]] = {
    "confidence sequence": confidence_sequence,
    "… 1 % tolerated": tolerant,
    "… without its additions": bare_t,
    "asymptotic confidence sequence": asymptotic,
    "empirical Bernstein, clipped": empirical_bernstein,
    "t-test every night": every_night,
    "stated looks": group_sequential,
}


def without_harm(world: str, method: Callable[[Floats], Floats]) -> float:
    """Share of rollouts without harm that are rolled back at some night."""
    nights = simulated.WORLDS[world](np.random.default_rng(1), (WITHOUT_HARM, simulated.NIGHTS))
    return float(np.isfinite(method(nights)).mean())


def with_harm(harm: float, method: Callable[[Floats], Floats], world: str = "Gaussian") -> tuple[float, float]:
    """Share of rollouts with harm, in parts of the champion's loss, that are rolled back; the median night of all."""
    nights = simulated.WORLDS[world](np.random.default_rng(2), (HARMFUL, simulated.NIGHTS)) + harm / SPREAD
    found = method(nights)
    return float(np.isfinite(found).mean()), float(np.median(found))


def run() -> list[dict[str, Any]]:
    """Rates of false rollback as ratios to the promised one, and what is found of harm."""
    rows = []
    for name, method in METHODS.items():
        for world in simulated.WORLDS:
            begun = time.perf_counter()
            rate = without_harm(world, method)
            row = {"what": f"{name}, no harm, {world}: {100 * rate:.1f} % rolled back", "against": f"promised {ALPHA}"}
            promised = method is confidence_sequence and "skewness" not in world
            rows.append(row | {"seconds": time.perf_counter() - begun, "ratio": rate / ALPHA})
            rows[-1]["aim"] = "≤ 1" if promised else ""
        for harm in HARMS:
            begun = time.perf_counter()
            share, night = with_harm(harm, method)
            text = f"{name}, {100 * harm:.0f} % harm: median night {night:.0f}"
            rows.append({"what": text, "against": "harmful rollouts rolled back", "ratio": share})
            rows[-1]["seconds"] = time.perf_counter() - begun
    return rows + bench_rollout_flights.run()


def markdown() -> str:
    """Both tables of docs/rollout_statistics.md."""
    lines = ["| nights | " + " | ".join(METHODS) + " |", "| --- |" + " ---: |" * len(METHODS)]
    for world in simulated.WORLDS:
        rates = " | ".join(f"{100 * without_harm(world, method):.1f} %" for method in METHODS.values())
        lines.append(f"| {world} | {rates} |")
    lines += ["", "| harm | nights | " + " | ".join(METHODS) + " |", "| --- | --- |" + " ---: |" * len(METHODS)]
    for harm in HARMS:
        for world in ("Gaussian", "all three"):
            cells = [with_harm(harm, method, world) for method in METHODS.values()]
            told = " | ".join(f"{100 * share:.0f} %, {_night(night)}" for share, night in cells)
            lines.append(f"| {100 * harm:.0f} % | {world} | {told} |")
    return "\n".join(lines)


def _night(night: float) -> str:
    return f"night {night:.0f}" if np.isfinite(night) else "never"


if __name__ == "__main__":
    print(markdown())

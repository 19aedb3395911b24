from __future__ import annotations

import math

import numpy as np
import pytest

from monitoring.rollout.looks import boundaries, crossing, design, outcome, spent
from monitoring.rollout.sequence import Prefixes, prefixes
from tests.monitoring.rollout import simulated

FIFTHS = np.arange(1, 6) / 5


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        ("obrien_fleming", [4.8769, 3.3570, 2.6803, 2.2898, 2.0310]),
        ("pocock", [2.4380, 2.4268, 2.4102, 2.3966, 2.3860]),
    ],
)
def test_boundaries_are_the_published_ones(spending, published) -> None:
    # Five equal looks, two-sided 0.05: gsDesign, sfLDOF and sfLDPocock, test.type 2.
    assert design([10, 20, 30, 40, 50], alpha=0.05, spending=spending).boundaries == pytest.approx(published, abs=6e-5)


@pytest.mark.parametrize(
    ("information", "power", "bounds"),
    [
        (FIFTHS, 2.0, [3.090232, 2.714078, 2.472737, 2.279811, 2.113968]),
        ([0.1, 0.15, 0.5, 1.0], 3.0, [4.055627, 3.820057, 2.741201, 1.982837]),
    ],
)
def test_boundaries_of_another_implementation(information, power, bounds) -> None:
    # spotify-confidence 4.1.0: sequential_bound_solver.bounds(t, alpha=0.05, rho=power, ztrun=8, sides=2).
    limits = boundaries(information, 0.025 * np.asarray(information) ** power)
    assert limits == pytest.approx(bounds, abs=3e-4)


@pytest.mark.parametrize(
    ("limits", "inflation"), [(np.full(5, 2.413), 1.207), (2.040 * np.sqrt(1 / FIFTHS), 1.026)], ids=["pocock", "obf"]
)
def test_rate_and_power_are_those_of_jennison_and_turnbull(limits, inflation) -> None:
    # Tables 2.1 to 2.4: five looks, two-sided 0.05, power 0.9 at the information of one look times the inflation.
    upper, lower = crossing(limits, FIFTHS)
    assert upper.sum() + lower.sum() == pytest.approx(0.05, abs=5e-5)
    assert upper == pytest.approx(lower)
    drift = (1.959964 + 1.281552) * math.sqrt(inflation)
    assert crossing(limits, FIFTHS, drift=drift)[0].sum() == pytest.approx(0.9, abs=5e-4)


def test_alpha_is_spent_to_the_last_and_no_more() -> None:
    for spending in ("obrien_fleming", "pocock"):
        assert spent(0.025, [1e-9, 1.0], spending) == pytest.approx([0.0, 0.025], abs=1e-9)
        plan = design([7, 9, 28, 56], alpha=0.1, spending=spending)
        upper, lower = crossing(plan.boundaries, np.array(plan.nights) / 56)
        assert upper.cumsum() == pytest.approx(spent(0.05, np.array(plan.nights) / 56, spending), abs=1e-6)
        assert upper.sum() + lower.sum() == pytest.approx(0.1, abs=1e-6)


def test_a_look_with_nothing_to_spend_stops_nothing() -> None:
    assert design([2, 100], alpha=0.05).boundaries[0] == math.inf
    assert design([28], alpha=0.05).boundaries == pytest.approx([1.959964])


@pytest.mark.parametrize(
    ("nights", "alpha", "message"),
    [([], 0.05, "looks after"), ([14, 7], 0.05, "ascending"), ([1, 7], 0.05, "from 2"), ([7], 1.0, "alpha is 1.0")],
)
def test_a_design_without_sense_is_refused(nights, alpha, message) -> None:
    with pytest.raises(ValueError, match=message):
        design(nights, alpha=alpha)


def _nights(count: int, mean: float) -> Prefixes:
    return prefixes(mean + np.random.default_rng(0).normal(0.0, 1.0, count), np.full(count, 500))


def test_a_winner_is_declared_at_stated_looks_alone() -> None:
    plan = design([7, 14, 28], alpha=0.05, spending="pocock")
    early = outcome(plan, _nights(6, -5.0), metric="MAE")
    assert (early.winner, early.nights, early.next_look) == (None, 0, 7)
    assert early.sentence == "The first look is after 7 nights; so far there are 6 nights."
    ahead = outcome(plan, _nights(13, -5.0), metric="MAE", unit="minutes")
    assert (ahead.winner, ahead.nights, ahead.next_look) == ("challenger", 7, None)
    assert ahead.sentence == (
        "After 7 nights of 28 the challenger's MAE is 4.73 minutes lower than the champion's: the challenger wins "
        "(z -2.69 against a boundary of 2.37 either way)."
    )
    assert outcome(plan, _nights(28, 5.0), metric="MAE").winner == "champion"
    # What was decided at an early look stays, whatever came later.
    turned = prefixes(np.concatenate([np.full(14, -5.0) + np.arange(14) % 3, np.full(14, 9.0)]), np.ones(28))
    decided = outcome(plan, turned, metric="MAE")
    assert (decided.winner, decided.nights) == ("challenger", 7)


def test_without_a_winner_the_test_goes_on_to_its_last_look() -> None:
    plan = design([7, 14, 28], alpha=0.05)
    between = outcome(plan, _nights(20, 0.0), metric="MAE")
    assert (between.winner, between.nights, between.next_look) == (None, 14, 28)
    assert between.sentence.endswith("; the next look is after 28 nights.")
    last = outcome(plan, _nights(40, 0.0), metric="MAE")
    assert (last.winner, last.nights, last.next_look) == (None, 28, None)
    assert last.sentence.endswith("; no look is left and nobody wins.")


def test_equal_versions_have_no_winner() -> None:
    plan = design([7, 14], alpha=0.05)
    assert outcome(plan, prefixes(np.zeros(14), np.ones(14)), metric="MAE").winner is None


@pytest.mark.parametrize("world", ["Gaussian", "tails of t(3)"])
def test_tests_without_a_difference_keep_the_promised_rate(world: str) -> None:
    plan = design([7, 14, 28, 56], alpha=0.05)
    nights = simulated.WORLDS[world](np.random.default_rng(5), (2_000, 56))
    declared = simulated.declared(nights, plan)
    assert np.isfinite(declared).mean() <= 0.06  # 0.05 and two standard errors of the simulation


def test_a_known_duration_gives_more_power_than_a_bound_for_ever() -> None:
    nights = 0.5 + simulated.gaussian(np.random.default_rng(6), (500, 56))
    plan = design([7, 14, 28, 56], alpha=0.1)
    by_design = np.isfinite(simulated.declared(nights, plan)).mean()
    for_ever = np.isfinite(simulated.rolled_back(nights, alpha=0.05)).mean()
    assert by_design > for_ever + 0.05

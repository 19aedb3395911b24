from __future__ import annotations

import math
import re
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest
from scipy import integrate, stats

from monitoring.rollout import sequence
from monitoring.rollout.sequence import (
    critical_values,
    distance,
    log_e_value,
    nightly_harm,
    paired,
    paired_segments,
    prefixes,
    straightened,
)
from tests.monitoring.rollout import simulated

FIRST = date(2024, 1, 1)
ALPHA = 0.05


def _dates(count: int) -> list[date]:
    return [FIRST + timedelta(days=k) for k in range(count)]


def _nights(count: int, *, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, count)


@pytest.mark.parametrize(("t", "nights"), [(2.5, 8), (-1.5, 8), (4.0, 30), (0.0, 5), (9.0, 6)])
def test_the_e_value_is_the_mixed_likelihood_ratio_of_the_t_statistic(t: float, nights: int) -> None:
    def ratio(standardized: float) -> float:
        noncentral = stats.nct.pdf(t, nights - 1, standardized * math.sqrt(nights)) / stats.t.pdf(t, nights - 1)
        return float(noncentral * 2.0 * stats.norm.pdf(standardized, scale=sequence.MIXTURE))

    expected, _ = integrate.quad(ratio, 0.0, 8.0, limit=200)
    assert math.exp(log_e_value(t, nights)) == pytest.approx(expected, rel=1e-6)


def test_both_sides_together_are_the_e_process_with_a_gaussian_mixture() -> None:
    x = _nights(12, mean=0.3)
    t = x.mean() / (x.std(ddof=1) / math.sqrt(12))
    both = 0.5 * (np.exp(log_e_value(t, 12)) + np.exp(log_e_value(-t, 12)))
    # Wang and Ramdas 2024, theorem 4.9, with the precision c^2 = 1 / MIXTURE^2.
    precision, total, square = 1.0 / sequence.MIXTURE**2, (x**2).sum(), x.sum() ** 2
    scale = (12 + precision) * total / ((12 + precision) * total - square)
    assert both == pytest.approx(math.sqrt(precision / (12 + precision)) * scale**6)


def test_many_nights_are_those_of_a_known_variance() -> None:
    # confseq 0.0.11, boundaries.normal_log_mixture(t sqrt(n), n, v_opt, 0.05, True) and normal_mixture_bound, with
    # n = 1e6 and the v_opt = 12.91604001 whose precision is 1 / 0.7^2.
    expected = [-7.198955284, -6.551081355, -3.880951279, 2.142017826]
    assert log_e_value([-1.0, 0.0, 2.0, 4.0], 1e6) == pytest.approx(expected, rel=3e-5)
    assert critical_values([1e6], 0.05) == pytest.approx([4.2080155], rel=1e-5)


def test_two_nights_never_bound_the_harm_and_one_catastrophe_needs_five() -> None:
    assert np.isfinite(critical_values([1, 2, 3, 4, 5, 6], ALPHA)).tolist() == [False] * 4 + [True] * 2
    looks = paired(_dates(5), [100.0, 101.0, 99.0, 100.0, 100.5], [10] * 5, alpha=ALPHA)
    assert [look.lower for look in looks[:4]] == [-math.inf] * 4
    assert looks[4].lower > 90


def test_nights_of_equal_size_have_the_standard_error_of_the_textbook() -> None:
    alternating = np.array([1.0, -1.0, 2.0, -2.0, 1.0, -1.0, 1.5, -1.5])  # its autocorrelation is negative: left alone
    statistics = prefixes(alternating, np.full(8, 500.0))
    assert statistics.error[-1] == pytest.approx(stats.sem(alternating))
    assert statistics.mean[-1] == pytest.approx(alternating.mean())
    assert statistics.nights[-1] == pytest.approx(8)
    skewed = np.array([0.0, 1.0, 0.0, 5.0, 0.0, 1.0, 0.5])
    assert prefixes(skewed, np.ones(7)).skewness[-1] == pytest.approx(stats.skew(skewed, bias=False))


def test_a_night_weighs_as_its_rows_do() -> None:
    look = paired(_dates(3), [1.0, 0.0, 0.0], [980, 10, 10], alpha=ALPHA)[-1]
    assert look.harm == pytest.approx(0.98)
    assert look.rows == 1000
    assert prefixes([1.0, 0.0, 0.0], [980, 10, 10]).nights[-1] == pytest.approx(1.04, abs=0.01)


def test_autocorrelated_nights_say_less() -> None:
    repeated = np.repeat(_nights(10), 3)
    once = prefixes(np.random.default_rng(3).permutation(repeated), np.ones(30)).error[-1]
    assert prefixes(repeated, np.ones(30)).error[-1] > 1.5 * once


def test_the_variance_grows_with_the_autocorrelation_freed_of_its_bias() -> None:
    harm = np.array([0.0, 1.0, 1.1, 0.2, -0.9, -0.4, 0.8, 0.3, -0.7, 0.9])
    residual = harm - harm.mean()
    measured = (residual[1:] * residual[:-1]).sum() / (residual**2).sum()
    r = (10 * measured + 1) / 6
    plain, grown = (prefixes(harm, np.ones(10), autocorrelated=given).error[-1] for given in (False, True))
    assert 0.0 < r < 0.8
    assert (grown / plain) ** 2 == pytest.approx((1 + r) / (1 - r))


def test_skewness_is_removed_on_the_side_where_it_misleads_alone() -> None:
    t, nights = np.array([0.5, 2.0, 6.0]), np.array([8.0, 12.0, 30.0])
    left, none, right = np.full(3, -2.0), np.zeros(3), np.full(3, 2.0)
    assert (straightened(t, left, nights) < t).all()
    assert straightened(t, none, nights) == pytest.approx(t)
    assert straightened(t, right, nights) == pytest.approx(t)
    for skewness in (left, none, right):
        assert straightened(distance(t, skewness, nights), skewness, nights) == pytest.approx(t)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tolerance", [-0.3, 0.0, 0.4])
def test_the_e_value_exceeds_its_limit_just_where_the_lower_bound_exceeds_the_tolerance(
    seed: int, tolerance: float
) -> None:
    harm = np.random.default_rng(seed).exponential(size=25) - 0.2
    rows = np.random.default_rng(seed + 100).integers(50, 900, 25)
    looks = paired(_dates(25), harm, rows, alpha=ALPHA, tolerance=tolerance)
    assert [look.lower > tolerance for look in looks] == [look.e_value > 1 / ALPHA for look in looks]
    assert [look.p_value for look in looks] == sorted((look.p_value for look in looks), reverse=True)
    assert looks[-1].p_value == pytest.approx(min(1.0, 1.0 / max(look.e_value for look in looks)))


def test_harm_turned_round_turns_the_bounds_round() -> None:
    harm, rows = np.random.default_rng(4).exponential(size=30), np.arange(100, 130)
    look = paired(_dates(30), harm, rows, alpha=ALPHA)[-1]
    turned = paired(_dates(30), -harm, rows, alpha=ALPHA)[-1]
    assert (turned.lower, turned.upper) == pytest.approx((-look.upper, -look.lower))


def test_a_later_night_changes_no_earlier_look() -> None:
    harm, rows = _nights(20, mean=1e6), np.arange(20) + 5
    looks = paired(_dates(20), harm, rows, alpha=ALPHA)
    assert all(paired(_dates(n), harm[:n], rows[:n], alpha=ALPHA) == looks[:n] for n in (1, 7, 13))


def test_a_distance_from_zero_costs_no_digits() -> None:
    near, far = (paired(_dates(15), _nights(15) + shift, [9] * 15, alpha=ALPHA)[-1] for shift in (0.0, 1e6))
    assert far.upper - far.lower == pytest.approx(near.upper - near.lower, rel=1e-6)


def test_equal_versions_are_bounded_by_zero() -> None:
    look = paired(_dates(10), np.zeros(10), [100] * 10, alpha=ALPHA, tolerance=0.1)[-1]
    assert (look.harm, look.lower, look.upper) == (0.0, 0.0, 0.0)
    assert look.e_value < 1.0
    assert paired([], [], [], alpha=ALPHA) == ()


@pytest.mark.parametrize(
    ("dates", "harm", "rows", "alpha", "message"),
    [
        (_dates(2)[::-1], [0.0, 1.0], [5, 5], 0.05, "ascending order"),
        ([FIRST, FIRST], [0.0, 1.0], [5, 5], 0.05, "each once"),
        (_dates(2), [0.0, math.nan], [5, 5], 0.05, "the harm of 2024-01-02 is not a finite number"),
        (_dates(2), [0.0, 1.0], [5, 0], 0.05, "2024-01-02 has no rows"),
        (_dates(2), [0.0], [5], 0.05, "2 nights, but harm of shape (1,)"),
        (_dates(2), [0.0, 1.0], [5, 5], 5.0, "alpha is 5.0"),
    ],
)
def test_nights_that_cannot_be_judged_are_refused(dates, harm, rows, alpha, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        paired(dates, harm, rows, alpha=alpha)


def test_rows_are_pooled_to_nights_and_segments() -> None:
    days = [FIRST, FIRST, FIRST, FIRST + timedelta(days=1)]
    rows = pa.table(
        {
            "data_date": pa.array(days[::-1], pa.date32()),
            "segment": ["b", "a", "a", "a"],
            "harm": pa.array([4.0, 1.0, 3.0, None]),
        }
    )
    assert nightly_harm(rows).to_pydict() == {"data_date": days[2:], "harm": [2.0, 4.0], "rows": [2, 1]}
    by_segment = nightly_harm(rows, by=["segment"])
    assert by_segment["segment"].to_pylist() == ["a", "b"]
    assert by_segment["harm"].to_pylist() == [2.0, 4.0]


def test_segments_share_the_promised_rate() -> None:
    nights = pa.table(
        {
            "data_date": pa.array(_dates(12) * 2, pa.date32()),
            "segment": ["b"] * 12 + ["a"] * 12,
            "harm": np.concatenate([_nights(12), _nights(12, mean=2.0, seed=1)]),
            "rows": [40] * 24,
        }
    )
    looks = paired_segments(nights, alpha=ALPHA)
    assert list(looks) == ["a", "b"]
    assert looks["b"] == paired(_dates(12), _nights(12), [40] * 12, alpha=ALPHA / 2)
    assert paired_segments(nights, alpha=ALPHA, family=10)["b"][-1].lower < looks["b"][-1].lower
    with pytest.raises(ValueError, match="2 segments came, but the correction is for 1"):
        paired_segments(nights, alpha=ALPHA, family=1)


@pytest.mark.parametrize("world", [world for world in simulated.WORLDS if "skewness" not in world])
def test_rollouts_without_harm_that_are_looked_at_every_night_keep_the_promised_rate(world: str) -> None:
    nights = simulated.WORLDS[world](np.random.default_rng(1), (2_000, simulated.NIGHTS))
    assert np.isfinite(simulated.rolled_back(nights, alpha=ALPHA)).mean() <= ALPHA


def test_nights_of_unequal_size_keep_the_promised_rate() -> None:
    random = np.random.default_rng(2)
    rows = simulated.unequal_rows(random, (2_000, simulated.NIGHTS))
    nights = simulated.gaussian(random, rows.shape) / np.sqrt(rows)
    assert np.isfinite(simulated.rolled_back(nights, rows, alpha=ALPHA)).mean() <= ALPHA


def test_harm_as_large_as_a_night_s_spread_is_found_in_weeks() -> None:
    nights = simulated.gaussian(np.random.default_rng(3), (500, simulated.NIGHTS)) + 1.0
    found = simulated.rolled_back(nights, alpha=ALPHA)
    assert np.isfinite(found).mean() > 0.99
    assert np.median(found) <= 14
    assert not np.isfinite(simulated.rolled_back(nights, alpha=ALPHA, tolerance=2.0)).any()

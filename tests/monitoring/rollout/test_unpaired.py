from __future__ import annotations

import math
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from monitoring.rollout.sequence import prefixes
from monitoring.rollout.unpaired import arms, unpaired

FIRST = date(2024, 1, 1)


def _rows(
    seed: int, *, nights: int, units: int, share: float, harm: float = 0.0, of_unit: float = 0.0, of_night: float = 0.0
) -> pa.Table:
    """Units that differ by `of_unit`, nights that differ for both arms by `of_night`, rows by 1."""
    random = np.random.default_rng(seed)
    challenger = np.arange(units) < share * units
    loss = (
        10.0
        + of_unit * random.standard_normal(units)
        + of_night * random.standard_normal(nights)[:, None]
        + random.standard_normal((nights, units))
        + harm * challenger
    )
    days = [FIRST + timedelta(days=k) for k in range(nights)]
    return pa.table(
        {
            "data_date": pa.array([day for day in days for _ in range(units)]),
            "unit": np.tile([f"unit-{k:03}" for k in range(units)], nights),
            "challenger": np.tile(challenger, nights),
            "loss": loss.ravel(),
        }
    )


def test_the_harm_is_the_mean_over_nights_of_the_difference_of_the_arms() -> None:
    rows = _rows(0, nights=6, units=20, share=0.25, harm=2.0, of_night=50.0)
    losses = rows["loss"].to_numpy().reshape(6, 20)
    looks = unpaired(rows, alpha=0.05)
    assert [look.nights for look in looks] == [1, 2, 3, 4, 5, 6]
    assert looks[-1].rows == 120
    for night, look in enumerate(looks, 1):
        assert look.harm == pytest.approx((losses[:night, :5].mean() - losses[:night, 5:].mean()), rel=1e-9)
        assert look.data_date == FIRST + timedelta(days=night - 1)


def test_rows_of_a_unit_are_one_observation_and_their_order_is_no_matter() -> None:
    rows = _rows(1, nights=8, units=16, share=0.5)
    twice = pa.concat_tables([rows, rows, rows]).take(np.random.default_rng(2).permutation(3 * rows.num_rows))
    looks, tripled = unpaired(rows, alpha=0.05), unpaired(twice, alpha=0.05)
    assert tripled[-1].lower == pytest.approx(looks[-1].lower)
    assert tripled[-1].rows == looks[-1].rows


def test_a_harm_is_found_and_none_is_not() -> None:
    looks = unpaired(_rows(3, nights=20, units=60, share=0.25, harm=1.0, of_unit=0.3, of_night=5.0), alpha=0.05)
    assert looks[-1].lower > 0.3
    assert looks[-1].upper < 1.7
    assert looks[-1].e_value > 20


def test_what_distinguishes_the_units_of_the_arms_is_no_harm() -> None:
    # Nights alone would say after a month, of nearly each of these, that one arm is worse.
    wrong = nights_alone = 0
    for seed in range(40):
        rows = _rows(seed, nights=30, units=20, share=0.5, of_unit=2.0)
        looks = unpaired(rows, alpha=0.05)
        wrong += any(look.lower > 0 or look.upper < 0 for look in looks)
        losses = rows["loss"].to_numpy().reshape(30, 20)
        nights = losses[:, :10].mean(axis=1) - losses[:, 10:].mean(axis=1)
        nights_alone += abs(stats.ttest_1samp(nights, 0.0).statistic) > 3.0
    assert nights_alone >= 24
    assert wrong <= 4


def test_the_variance_is_clustered_by_night_and_by_unit() -> None:
    rows = _rows(7, nights=12, units=10, share=0.4, of_unit=1.0, of_night=9.0)
    loss = rows["loss"].to_numpy().reshape(12, 10) + np.where(np.arange(10) < 4, np.arange(12)[:, None] % 3, 0)
    _, _, statistics = arms(rows.set_column(3, "loss", pa.array(loss.ravel())))
    sides = [loss[:, 4:], loss[:, :4]]
    by_night = prefixes(sides[1].mean(axis=1) - sides[0].mean(axis=1), np.ones(12)).error[-1] ** 2
    residuals = [side - side.mean(axis=1, keepdims=True) for side in sides]
    by_unit = [residual.mean(axis=0).var(ddof=1) / residual.shape[1] for residual in residuals]
    by_row = sum((residual**2).sum() / (residual.size - 1) / residual.size for residual in residuals)
    assert by_night > by_row
    assert statistics.error[-1] ** 2 == pytest.approx(by_night + sum(by_unit) - by_row)
    welch = sum(by_unit) ** 2 / (by_unit[0] ** 2 / 5 + by_unit[1] ** 2 / 3)
    assert statistics.nights[-1] == pytest.approx(min(12.0, welch + 1.0))
    # Nights that say nothing of the difference leave that of the units.
    steady = np.where(np.arange(12)[:, None] % 2, loss[:1], loss[:1] + 1.0)
    _, _, still = arms(rows.set_column(3, "loss", pa.array(steady.ravel())))
    spread = [steady[0, 4:].var(ddof=1) / 6, steady[0, :4].var(ddof=1) / 4]
    assert still.error[-1] ** 2 == pytest.approx(sum(spread))


def test_a_night_weighs_by_the_units_of_both_arms() -> None:
    rows = _rows(8, nights=2, units=8, share=0.5, harm=1.0)
    first, unit = np.repeat([True, False], 8), np.tile(np.arange(8), 2)
    fewer = rows.filter(pa.array(first | (unit < 5)))  # one unit of the champion on the second night
    loss = rows["loss"].to_numpy().reshape(2, 8)
    harms = [loss[0, :4].mean() - loss[0, 4:].mean(), loss[1, :4].mean() - loss[1, 4]]
    assert unpaired(fewer, alpha=0.05)[-1].harm == pytest.approx(np.average(harms, weights=[2.0, 0.8]))


def test_an_arm_of_one_unit_bounds_nothing() -> None:
    looks = unpaired(_rows(4, nights=30, units=20, share=0.05), alpha=0.05)
    assert {(look.lower, look.upper) for look in looks} == {(-math.inf, math.inf)}
    assert {look.e_value for look in looks} == {1.0}


def test_nights_on_which_an_arm_is_empty_are_left_out() -> None:
    rows = _rows(5, nights=4, units=10, share=0.5)
    challenger = rows["challenger"].to_numpy()
    second = np.repeat(np.arange(4), 10) == 1
    without = rows.filter(pa.array(~(second & challenger)))
    assert [look.data_date.day for look in unpaired(without, alpha=0.05)] == [1, 3, 4]
    unknown = rows.set_column(
        3, "loss", pa.array(np.where(second & challenger, np.nan, rows["loss"]), from_pandas=True)
    )
    assert [look.data_date.day for look in unpaired(unknown, alpha=0.05)] == [1, 3, 4]
    assert unpaired(rows.slice(0, 0), alpha=0.05) == ()
    assert unpaired(rows.filter(rows["challenger"]), alpha=0.05) == ()


def test_a_loss_that_is_not_finite_is_refused() -> None:
    rows = _rows(6, nights=2, units=4, share=0.5)
    broken = rows.set_column(3, "loss", pa.array([1.0] * 7 + [math.inf]))
    with pytest.raises(ValueError, match="a loss of 2024-01-02 is not a finite number"):
        unpaired(broken, alpha=0.05)

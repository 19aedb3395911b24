"""The bootstrap over days: what it must never let through, and what it must not depend on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from training.registry.bootstrap import day_weights, error_ratio, improvement_bound, ratio_lower_bounds

DAYS = 14
WEIGHTS = day_weights(DAYS, seed=7, resamples=2_000)
losses = hnp.arrays(np.float64, DAYS, elements=st.floats(0.001, 1_000.0))


def test_weights_draw_as_many_days_as_there_are_and_repeat_with_the_seed() -> None:
    assert WEIGHTS.shape == (2_000, DAYS)
    assert (WEIGHTS.sum(axis=1) == DAYS).all()
    assert (day_weights(DAYS, seed=7, resamples=2_000) == WEIGHTS).all()
    assert (day_weights(DAYS, seed=8, resamples=2_000) != WEIGHTS).any()
    with pytest.raises(ValueError, match="at least one day, got 0"):
        day_weights(0, seed=7)


@given(sums=losses, confidence=st.floats(0.51, 0.999), root=st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_model_never_improves_on_itself(sums: np.ndarray, confidence: float, root: bool) -> None:
    assert improvement_bound(sums, sums, WEIGHTS, confidence=confidence, root=root) == 0.0


@given(challenger=losses, incumbent=losses, more=losses, root=st.booleans())
@settings(max_examples=50, deadline=None)
def test_more_loss_never_raises_the_bound(
    challenger: np.ndarray, incumbent: np.ndarray, more: np.ndarray, root: bool
) -> None:
    before = improvement_bound(challenger, incumbent, WEIGHTS, confidence=0.95, root=root)
    after = improvement_bound(challenger + more, incumbent, WEIGHTS, confidence=0.95, root=root)
    assert after <= before


@given(challenger=losses, incumbent=losses, low=st.floats(0.51, 0.8), high=st.floats(0.8, 0.99))
@settings(max_examples=50, deadline=None)
def test_more_confidence_never_raises_the_bound(
    challenger: np.ndarray, incumbent: np.ndarray, low: float, high: float
) -> None:
    assert improvement_bound(challenger, incumbent, WEIGHTS, confidence=high) <= improvement_bound(
        challenger, incumbent, WEIGHTS, confidence=low
    )


@given(challenger=losses, incumbent=losses)
@settings(max_examples=50, deadline=None)
def test_the_bound_lies_within_what_single_days_show_and_below_the_estimate(
    challenger: np.ndarray, incumbent: np.ndarray
) -> None:
    bound = improvement_bound(challenger, incumbent, WEIGHTS, confidence=0.95)
    by_day = 1 - challenger / incumbent
    assert by_day.min() - 1e-9 <= bound <= by_day.max() + 1e-9


@given(challenger=losses, incumbent=losses, root=st.booleans())
@settings(max_examples=50, deadline=None)
def test_segments_are_bounded_like_the_whole(challenger: np.ndarray, incumbent: np.ndarray, root: bool) -> None:
    """A segment's lower ratio bound, with challenger and incumbent swapped, mirrors the improvement's own bound."""
    two = np.column_stack([challenger, challenger])
    bounds = ratio_lower_bounds(two, np.column_stack([incumbent, challenger]), WEIGHTS, confidence=0.95, root=root)
    point = float(error_ratio(challenger.sum(), incumbent.sum(), root=root))
    assert bounds[0] <= np.quantile(error_ratio(WEIGHTS @ challenger, WEIGHTS @ incumbent, root=root), 0.5) + 1e-12
    assert bounds[1] == 1.0
    assert point > 0


def test_one_bad_day_among_good_ones_does_not_carry_the_bound() -> None:
    """Better on 13 days and far worse on one: resampled rows would pass it, resampled days do not."""
    incumbent, challenger = np.full(DAYS, 100.0), np.full(DAYS, 95.0)
    assert improvement_bound(challenger, incumbent, WEIGHTS, confidence=0.95) == pytest.approx(0.05)
    challenger[3] = 160.0
    assert challenger.sum() < incumbent.sum() + 1
    assert improvement_bound(challenger, incumbent, WEIGHTS, confidence=0.95) < 0


def test_perfect_incumbents() -> None:
    nothing, something = np.zeros(DAYS), np.ones(DAYS)
    assert improvement_bound(nothing, nothing, WEIGHTS, confidence=0.95) == 0.0
    assert improvement_bound(something, nothing, WEIGHTS, confidence=0.95) == -np.inf
    assert improvement_bound(nothing, something, WEIGHTS, confidence=0.95) == 1.0


def test_root_is_taken_of_the_mean_not_of_each_day() -> None:
    assert error_ratio(np.array([4.0]), np.array([1.0]), root=True)[0] == 2.0


def test_the_bound_holds_as_often_as_it_says() -> None:
    """Repeated draws of 30 days of which the true improvement is 0.1: the 95 % bound lies below it about 95 times in
    100.
    """
    generator = np.random.default_rng(1)
    weights = day_weights(30, seed=3, resamples=1_000)
    below = 0
    for _ in range(300):
        storms = generator.gamma(2.0, 50.0, 30)
        below += improvement_bound(0.9 * storms * generator.normal(1, 0.2, 30), storms, weights, confidence=0.95) < 0.1
    assert 0.89 <= below / 300 <= 0.99

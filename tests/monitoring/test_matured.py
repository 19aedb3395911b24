"""Errors of several nights together: the ratio of the sums, and an interval that holds it as often as it says."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.catalog.output import Metric
from monitoring.matured import JudgedNight, last_of_version, pooled
from serving.metrics import metric_named

MAE, RMSE = metric_named("mae"), metric_named("rmse")
FIRST = date(2024, 3, 1)


def nights(errors: list[float], baselines: list[float], rows: list[int], version: int | None = 1) -> list[JudgedNight]:
    return [
        JudgedNight(FIRST + timedelta(days=k), version, e, b, n)
        for k, (e, b, n) in enumerate(zip(errors, baselines, rows, strict=True))
    ]


def test_nights_weigh_by_their_rows() -> None:
    found = pooled(nights([1.0, 4.0], [2.0, 2.0], [300, 100]), MAE)
    assert found is not None
    assert found.ratio == pytest.approx((300 + 400) / 800)
    assert found.error == pytest.approx(700 / 400)
    assert (found.nights, found.rows, found.first, found.last) == (2, 400, FIRST, FIRST + timedelta(days=1))
    assert found.lower is found.upper is None, "two nights say nothing about how nights differ"


def test_roots_are_added_as_squares() -> None:
    found = pooled(nights([3.0, 4.0], [5.0, 5.0], [10, 10]), RMSE)
    assert found is not None
    assert found.ratio == pytest.approx(np.sqrt(12.5) / 5)
    assert found.error == pytest.approx(np.sqrt(12.5))


def test_nothing_to_pool() -> None:
    assert pooled([], MAE) is None
    assert pooled(nights([1.0], [0.0], [10]), MAE) is None, "a faultless baseline"


@given(
    st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100), st.integers(1, 10_000)), min_size=3, max_size=40),
    st.sampled_from([MAE, RMSE]),
)
def test_the_interval_holds_the_ratio(found: list[tuple[float, float, int]], metric: Metric) -> None:
    errors, baselines, rows = (list(column) for column in zip(*found, strict=True))
    result = pooled(nights(errors, baselines, rows), metric)  # type: ignore[arg-type]
    assert result is not None
    assert result.lower is not None
    assert result.upper is not None
    assert 0 <= result.lower <= result.ratio + 1e-9
    assert result.upper >= result.ratio - 1e-9


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(7)
    held = 0
    for _ in range(400):
        base = random.uniform(10, 30, 14)
        error = base * 0.8 * random.normal(1, 0.1, 14)
        found = pooled(nights(error.tolist(), base.tolist(), random.integers(500, 1500, 14).tolist()), MAE)
        assert found is not None
        assert found.lower is not None
        assert found.upper is not None
        held += found.lower <= 0.8 <= found.upper
    assert 0.91 <= held / 400 <= 0.99


def test_the_last_nights_of_a_version() -> None:
    found = [*nights([1] * 3, [1] * 3, [1] * 3, version=1), *nights([2] * 2, [1] * 2, [1] * 2, version=2)]
    assert [n.error for n in last_of_version(found, 1, 2)] == [1, 1]
    assert last_of_version(found, None, 5) == []

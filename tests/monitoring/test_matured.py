"""Errors of several nights together: the ratio of the sums, and an interval that holds it as often as it says."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.calendar import Interval
from config.catalog import output
from lake.lake import Lake
from lake.metrics import Metric, publish_metrics
from monitoring.matured import JudgedNight, LastNights, ever_judged, last_judged, pooled
from serving.metrics import metric_named
from tests import toy
from tests.serving.scenario import MODEL

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
def test_the_interval_holds_the_ratio(found: list[tuple[float, float, int]], metric: output.Metric) -> None:
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


def _judge(lake: Lake, model: str, about: date, version: int, error: float) -> None:
    rows = [
        Metric(model, about, about, check, "ok", output, value=value, n=10, role="champion", model_version=version)
        for output, declared in lake.model(model).outputs.items()
        for check, value in ((declared.gate, error), (f"{declared.gate}_baseline", 1.0))
    ]
    publish_metrics(lake, model, "performance", rows, Interval.of(about), run_id="r")


def test_the_last_nights_of_a_version_are_counted_in_nights_and_end_at_the_model_s_own_newest(tmp_path: Path) -> None:
    lake = toy.toy_lake(tmp_path)
    for weeks, version in ((0, 1), (9, 1), (20, 1), (21, 2)):
        _judge(lake, MODEL, FIRST + timedelta(weeks=weeks), version, weeks + 1.0)

    def errors(version: int, last: date, count: int) -> list[float]:
        nights_of = last_judged(lake, {MODEL: LastNights(version, last, count)})
        return [night.error for night in nights_of.get((MODEL, "ride_minutes"), [])]

    newest = FIRST + timedelta(weeks=21)
    assert errors(1, newest, 2) == [10.0, 21.0]
    assert errors(1, newest, 50) == [1.0, 10.0, 21.0]
    assert errors(2, newest, 2) == [22.0]
    assert errors(1, FIRST + timedelta(weeks=10), 1) == [10.0]
    assert errors(3, newest, 5) == []
    assert last_judged(lake, {}) == {}
    assert ever_judged(lake, [MODEL]) == {MODEL}
    assert ever_judged(lake, []) == set()

"""Numbers with an interval: their metrics against scikit-learn's, and what they refuse."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from serving.kinds.regression import Output

SEEDS = st.integers(0, 2**32 - 1)


def regression_metrics(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    return Output().evaluation("y", truth, {"y": predicted})


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 300), st.floats(1e-3, 1e6))
def test_regression_metrics_equal_scikit_learn(seed: int, count: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    truth, predicted = random.normal(size=count) * scale, random.normal(size=count) * scale
    assert regression_metrics(truth, predicted) == pytest.approx(
        {
            "mae": sk.mean_absolute_error(truth, predicted),
            "mse": sk.mean_squared_error(truth, predicted),
            "rmse": sk.root_mean_squared_error(truth, predicted),
            "median_absolute_error": sk.median_absolute_error(truth, predicted),
            "r2": sk.r2_score(truth, predicted),
            "bias": (predicted - truth).mean(),
        }
    )


def test_equal_labels_have_no_r2() -> None:
    found = regression_metrics(np.full(3, 0.1), np.array([0.1, 0.2, 0.3]))
    assert "r2" not in found
    assert found["mae"] == pytest.approx(0.1)


def test_losses_by_hand() -> None:
    label, predicted = np.array([10.0, 40.0]), np.array([12.0, 35.0])
    assert Output(gate="mae").row_losses(label, predicted).tolist() == [2.0, 5.0]
    assert Output(gate="rmse").row_losses(label, predicted).tolist() == [4.0, 25.0]


def test_a_lower_bound_above_the_upper_is_a_defect() -> None:
    rows = pa.table({"y": [1.0, 1.0], "y_lower": [0.0, 2.5], "y_upper": [2.0, 2.0]})
    [defect] = Output(interval=0.8).defects("y", rows)
    assert (defect.column, defect.bad.to_pylist(), defect.what) == ("y_lower", [False, True], "lie above y_upper")
    assert Output().defects("y", rows) == []


def test_the_baseline_is_the_row_s_own_value_or_the_constant() -> None:
    output = Output(objective="median")
    label = np.array([0.0, 0.0, 9.0])
    assert (output.constant(label, None), output.constant(label, "mean")) == (0.0, 3.0)
    assert Output(objective="mean").constant(label, None) == 3.0
    assert output.baseline(2.0, 2, np.array([1.0, np.nan])).tolist() == [1.0, 2.0]
    assert output.baseline(2.0, 2, None).tolist() == [2.0, 2.0]
    assert output.stored_constant({"median": 1.0, "mean": 2.0}, "y", "mean") == 2.0
    assert output.stored_constant({"median": 1.0, "mean": 2.0}, "y", "same_hour_last_week") == 1.0


def test_an_interval_that_misses_its_share_is_warned_of() -> None:
    output = Output(interval=0.8)
    assert output.weaknesses("y", {"y/coverage": 0.76}) == []
    [warning] = output.weaknesses("y", {"y/coverage": 0.6})
    assert "should hold 80 % of outcomes and held 60 %" in warning


def test_an_interval_is_judged_where_numbers_are_low_and_where_they_are_high() -> None:
    output = Output(interval=0.8)
    label = np.arange(9.0)
    half = np.array([3.0] * 3 + [1.0] * 3 + [0.5] * 3)
    off = np.array([2.0, 2, 2, 2, 2, 0, 2, 0, 0])
    figures = output.evaluation("y", label, {"y": label, "y_lower": label + off - half, "y_upper": label + off + half})
    assert [figures[f"coverage_{third}"] for third in ("lowest", "middle", "highest")] == pytest.approx(
        [1, 1 / 3, 2 / 3]
    )
    assert [figures[f"width_{third}"] for third in ("lowest", "middle", "highest")] == [6.0, 2.0, 1.0]
    assert figures["coverage"] == pytest.approx(6 / 9)
    assert set(figures) <= set(output.figure_words())
    alike = {"y": np.ones(3), "y_lower": np.zeros(3), "y_upper": np.ones(3)}
    assert "coverage_middle" not in output.evaluation("y", np.ones(3), alike), "nothing is said of a third without rows"


def test_an_interval_that_holds_its_share_on_the_whole_alone_is_warned_of() -> None:
    held = {"y/coverage": 0.8, "y/coverage_lowest": 0.99, "y/coverage_middle": 0.75, "y/coverage_highest": 0.62}
    assert Output(interval=0.8).weaknesses("y", held) == [
        "y: the interval holds its 80 % of outcomes on the whole, but by prediction 99 % of the lowest third, too wide "
        "there; 62 % of the highest third, too narrow there."
    ]
    assert Output(interval=0.8).weaknesses("y", held | {"y/coverage_lowest": 0.88, "y/coverage_highest": 0.72}) == []


def test_bands_without_an_interval_are_refused_and_unset_ones_leave_the_catalog_s_digest() -> None:
    with pytest.raises(ValueError, match="interval_bands: no `interval` is there to hold its share in each"):
        Output(interval_bands=3)
    assert "interval_bands" not in Output(interval=0.8).model_dump(mode="json")
    assert Output(interval=0.8, interval_bands=3).model_dump(mode="json")["interval_bands"] == 3


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=4))
def test_the_root_of_the_mean_square_is_never_below_the_mean_distance(errors: list[float]) -> None:
    label = np.zeros(len(errors))
    measured = {one.check: one.value for one in Output().measurements("minutes", label, {"minutes": np.array(errors)})}
    assert measured["rmse"] >= measured["mae"]  # type: ignore[operator]


def test_one_row_has_one_error() -> None:
    measured = Output().measurements("minutes", np.zeros(1), {"minutes": np.array([0.019833])})
    assert {one.check: one.value for one in measured if one.check in ("mae", "rmse")} == {
        "mae": 0.019833, "rmse": 0.019833,
    }  # fmt: skip

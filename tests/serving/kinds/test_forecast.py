"""Forecasts: numbers that stop at a minimum, and quantiles judged together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics as sk

from config.catalog.output import output_of
from serving.kinds.forecast import Output
from serving.metrics.pinball import PinballLoss
from serving.predictions import BadPredictions, check_outputs
from tests import series

LABEL = np.array([0.0, 4.0, 10.0])
COLUMNS = {
    "y": np.array([1.0, 4.0, 6.0]),
    "y_lower": np.array([0.0, 2.0, 5.0]),
    "y_upper": np.array([3.0, 5.0, 8.0]),
}


def test_the_pinball_loss_is_scikit_learns_doubled_and_of_a_median_the_absolute_error() -> None:
    output = Output(interval=0.9, gate="pinball")
    judged = output.judged("y", COLUMNS)
    expected = [
        2 * sk.mean_pinball_loss(LABEL, said, alpha=level)
        for level, said in zip((0.05, 0.5, 0.95), judged.T, strict=True)
    ]
    assert output.row_losses(LABEL, judged).mean() == pytest.approx(np.mean(expected))
    assert expected[1] == pytest.approx(np.abs(LABEL - COLUMNS["y"]).mean())
    figures = output.evaluation("y", LABEL, COLUMNS)
    assert figures["pinball"] == pytest.approx(np.mean(expected))
    assert figures["mae"] == pytest.approx(expected[1])
    assert figures["coverage"] == pytest.approx(2 / 3)
    measured = {m.check: m for m in output.measurements("y", LABEL, COLUMNS)}
    assert measured["pinball"].value == pytest.approx(np.mean(expected), abs=1e-6)
    assert measured["interval_coverage"].threshold == 0.9
    assert output.bias(LABEL, judged).tolist() == [1.0, 0.0, -4.0]


def test_without_an_interval_the_loss_is_that_of_the_median() -> None:
    output = Output()
    columns = {"y": COLUMNS["y"]}
    figures = output.evaluation("y", LABEL, columns)
    assert figures["pinball"] == pytest.approx(figures["mae"])
    assert "pinball" not in {m.check for m in output.measurements("y", LABEL, columns)}
    assert output.judged("y", columns).tolist() == columns["y"].tolist()


def test_a_baselines_one_number_stands_for_all_quantiles() -> None:
    said = Output(interval=0.8, gate="pinball").baseline(2.0, 3, np.array([1.0, np.nan, 9.0]))
    assert said.tolist() == [1.0, 2.0, 9.0]
    loss = PinballLoss((0.1, 0.5, 0.9))
    one, three = loss.row_losses(LABEL, said), loss.row_losses(LABEL, np.column_stack([said] * 3))
    assert one.tolist() == three.tolist()
    assert "one number for all quantiles" in Output(interval=0.8, gate="pinball").baseline_words("seasonal_naive")


def test_what_is_counted_is_never_forecast_below_zero() -> None:
    output = Output(interval=0.8, minimum=0)
    raw = np.array([[1.0, -2.0, 3.0], [-5.0, -7.0, -1.0]])
    published = output.published("y", raw)
    assert {name: values.tolist() for name, values in published.items()} == {
        "y": [1.0, 0.0],
        "y_lower": [0.0, 0.0],
        "y_upper": [3.0, 0.0],
    }
    assert Output(interval=0.8).published("y", raw)["y"].tolist() == [1.0, -5.0]


def test_a_number_below_the_minimum_is_not_published(tmp_path: Path) -> None:
    """As a predictor says it that does not go through the kind, for example one of a team's own."""
    entry = series.lake_of(tmp_path).model(series.MODEL)
    said = pa.table({"load": [1.0, 2.0], "load_lower": [0.0, -2.0], "load_upper": [1.0, 3.0]})
    with pytest.raises(BadPredictions, match="load_lower lie below the minimum 0"):
        check_outputs(entry, said, 2, version=1)


def test_the_gate_needs_what_it_judges() -> None:
    with pytest.raises(ValueError, match="give the output an `interval`"):
        output_of({"kind": "forecast", "gate": "pinball"})
    assert output_of({"kind": "forecast"}).gate == "mae"


def test_errors_by_how_far_ahead_are_those_of_the_steps_rows() -> None:
    output = Output(interval=0.8)
    label = np.array([10.0, 10.0, 20.0, 20.0])
    said = {
        "load": label + np.array([1.0, 3.0, -4.0, 0.0]),
        "load_lower": label - 2.0,
        "load_upper": label + np.array([2.0, -1.0, 2.0, 2.0]),
    }
    steps = output.by_step("load", label, said, np.array([12.0, 10.0, 20.0, 20.0]), np.array([6.0, 6.0, 0.0, 0.0]))
    assert (steps.first_hours, steps.last_hours, steps.rows) == ((0.0, 6.0), (0.0, 6.0), (2, 2))
    assert (steps.error, steps.baseline, steps.inside, steps.wanted) == ((2.0, 2.0), (0.0, 1.0), (1.0, 0.5), 0.8)
    hours = np.arange(720.0)
    many = Output().by_step("load", hours, {"load": hours + hours}, hours, hours)
    assert (len(many.rows), set(many.rows), many.inside) == (48, {15}, ())
    assert (many.first_hours[:2], many.last_hours[:2]) == ((0.0, 15.0), (14.0, 29.0))
    assert many.error[1] == 22.0

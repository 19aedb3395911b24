"""Metrics of a model's outputs, its baseline's, and the lift between them."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from config.catalog.output import outputs_of
from training.evaluate import baseline_metrics, evaluate, lifts

OUTPUTS = outputs_of(
    {
        "y": {"kind": "regression", "objective": "median", "interval": 0.8, "gate": "mae"},
        "p": {"kind": "binary", "above": 1.0, "gate": "brier"},
    }
)


def test_metrics_of_both_kinds() -> None:
    predictions = pa.table(
        {"y": [1.0, 2.0, 5.0], "y_lower": [0.0, 2.5, 4.0], "y_upper": [2.0, 3.0, 6.0], "p": [0.0, 1.0, 1.0]}
    )
    metrics = evaluate(OUTPUTS, np.array([1.0, 2.0, 3.0]), predictions)
    assert metrics["y/mae"] == pytest.approx(2 / 3)
    assert metrics["y/bias"] == pytest.approx(2 / 3)
    assert metrics["y/rmse"] == pytest.approx((4 / 3) ** 0.5)
    assert metrics["y/coverage"] == pytest.approx(1 / 3)
    assert metrics["y/width"] == pytest.approx((2 + 0.5 + 2) / 3)
    assert metrics["p/brier"] == 0
    assert metrics["p/f1"] == 1
    assert "y/ndcg" not in metrics


def test_a_number_is_ranked_by_how_far_it_lies_above_the_lowest_of_its_group() -> None:
    label, days = np.array([-30.0, 10.0, 0.0, 5.0]), np.array([1, 1, 2, 2])
    said = pa.table({"y": [1.0, 2.0, 5.0, 4.0], "p": [0.1, 0.9, 0.3, 0.2], "y_lower": label, "y_upper": label})
    metrics = evaluate(OUTPUTS, label, said, days)
    assert metrics["y/mrr"] == pytest.approx((1 + 1 / 2) / 2)
    assert metrics["y/ndcg"] == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert metrics["p/mrr"] == pytest.approx((1 + 1 / 2) / 2)


def test_baseline_is_the_training_constant_or_the_row_s_own_value() -> None:
    fitted_on, label = np.array([0.0, 0.0, 9.0]), np.array([1.0, 2.0])
    assert baseline_metrics(OUTPUTS, fitted_on, label, None)["y/baseline_mae"] == pytest.approx(1.5)
    assert baseline_metrics(OUTPUTS, fitted_on, label, None, constant="mean")["y/baseline_mae"] == pytest.approx(1.5)
    assert baseline_metrics(OUTPUTS, fitted_on, label, None, constant="mean")["y/baseline_rmse"] == pytest.approx(
        (2.5) ** 0.5
    )
    assert baseline_metrics(OUTPUTS, fitted_on, label, np.array([1.0, np.nan]))["y/baseline_mae"] == pytest.approx(1.0)
    assert baseline_metrics(OUTPUTS, fitted_on, label, None)["p/baseline_brier"] == pytest.approx(
        ((1 / 3) ** 2 + (2 / 3) ** 2) / 2
    )


def test_lift_is_the_share_of_the_baseline_s_error_that_is_gone() -> None:
    metrics = {"y/mae": 3.0, "y/baseline_mae": 4.0, "y/rmse": 9.0, "p/brier": 0.3, "p/baseline_brier": 0.2}
    assert lifts(OUTPUTS, metrics) == pytest.approx({"y/lift": 0.25, "p/lift": -0.5})
    assert "y/lift" not in lifts(OUTPUTS, metrics | {"y/baseline_mae": 0.0})

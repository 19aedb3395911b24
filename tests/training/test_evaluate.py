"""The metrics against scikit-learn's, and the plot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from training.evaluate import baseline_metrics, binary_metrics, evaluate, importance_plot

OUTPUTS = {"y": {"kind": "regression", "objective": "median", "interval": 0.8}, "p": {"kind": "binary", "above": 1.0}}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 300), st.integers(1, 20))
def test_binary_metrics_equal_scikit_learn(seed: int, count: int, values: int) -> None:
    random = np.random.default_rng(seed)
    truth = np.concatenate([[0.0, 1.0], random.integers(0, 2, count).astype(float)])
    probability = np.round(random.random(count + 2) * values) / values  # ties
    found = binary_metrics(truth, probability)
    assert found["auc"] == pytest.approx(roc_auc_score(truth, probability))
    assert found["brier"] == pytest.approx(brier_score_loss(truth, probability))
    assert found["log_loss"] == pytest.approx(log_loss(truth, np.clip(probability, 1e-12, 1 - 1e-12)))


def test_one_class_has_no_auc() -> None:
    assert "auc" not in binary_metrics(np.zeros(3), np.array([0.1, 0.2, 0.3]))


def test_metrics_of_both_kinds() -> None:
    predictions = pa.table({"y": [1.0, 2.0, 5.0], "y_lower": [0.0, 2.5, 4.0], "y_upper": [2.0, 3.0, 6.0], "p": [0.0, 1.0, 1.0]})
    metrics = evaluate(OUTPUTS, np.array([1.0, 2.0, 3.0]), predictions)
    assert metrics["y/mae"] == pytest.approx(2 / 3)
    assert metrics["y/bias"] == pytest.approx(2 / 3)
    assert metrics["y/rmse"] == pytest.approx((4 / 3) ** 0.5)
    assert metrics["y/coverage"] == pytest.approx(1 / 3)
    assert metrics["y/width"] == pytest.approx((2 + 0.5 + 2) / 3)
    assert metrics["p/brier"] == 0


def test_baseline_is_the_training_constant_or_the_row_s_own_value() -> None:
    fitted_on, label = np.array([0.0, 0.0, 9.0]), np.array([1.0, 2.0])
    assert baseline_metrics(OUTPUTS, fitted_on, label, None)["y/baseline_mae"] == pytest.approx(1.5)
    assert baseline_metrics(OUTPUTS, fitted_on, label, np.array([1.0, np.nan]))["y/baseline_mae"] == pytest.approx(1.0)
    assert baseline_metrics(OUTPUTS, fitted_on, label, None)["p/baseline_brier"] == pytest.approx(((1 / 3) ** 2 + (2 / 3) ** 2) / 2)


def test_the_plot_is_a_png_whatever_the_importances(tmp_path: Path) -> None:
    importance_plot({"y": {f"feature_{i}": 1 / 60 for i in range(60)}, "p": {"feature_0": 0.0}}, "toy", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")

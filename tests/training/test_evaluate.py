"""The metrics against scikit-learn's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from training.evaluate import (
    THRESHOLD,
    baseline_metrics,
    binary_metrics,
    evaluate,
    lifts,
    ranking_metrics,
    regression_metrics,
)

OUTPUTS: dict[str, dict[str, Any]] = {
    "y": {"kind": "regression", "objective": "median", "interval": 0.8, "gate": "mae"},
    "p": {"kind": "binary", "above": 1.0, "gate": "brier"},
}
SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 300), st.integers(1, 20))
def test_binary_metrics_equal_scikit_learn(seed: int, count: int, values: int) -> None:
    random = np.random.default_rng(seed)
    truth = np.concatenate([[0.0, 1.0], random.integers(0, 2, count).astype(float)])
    probability = np.round(random.random(count + 2) * values) / values  # ties
    found = binary_metrics(truth, probability)
    said = probability >= THRESHOLD
    expected = {
        "brier": sk.brier_score_loss(truth, probability),
        "log_loss": sk.log_loss(truth, np.clip(probability, 1e-12, 1 - 1e-12)),
        "roc_auc": sk.roc_auc_score(truth, probability),
        "average_precision": sk.average_precision_score(truth, probability),
        "accuracy": sk.accuracy_score(truth, said),
        "recall": sk.recall_score(truth, said),
        "f1": sk.f1_score(truth, said),
        "rate": truth.mean(),
        "predicted_rate": probability.mean(),
    }
    if said.any():
        expected["precision"] = sk.precision_score(truth, said)
    assert found == pytest.approx(expected)


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


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 12), st.integers(1, 15), st.integers(1, 10))
def test_ranking_metrics_equal_scikit_learn_group_by_group(seed: int, queries: int, most: int, values: int) -> None:
    random = np.random.default_rng(seed)
    groups = np.sort(random.integers(0, queries, queries * most))
    relevance, scores = (
        random.integers(0, 4, len(groups)).astype(float),
        np.round(random.random(len(groups)) * values),
    )  # ties in both
    gains, ranks = [], []
    for group in np.unique(groups):
        mine, said = relevance[groups == group], scores[groups == group]
        if mine.min() == mine.max():
            continue
        gains.append(sk.ndcg_score([mine], [said]))
        best = said[mine == mine.max()].max()
        ranks.append(1.0 / (1 + (said > best).sum() + ((said == best) & (mine < mine.max())).sum()))
    shuffled = random.permutation(len(groups))
    found = ranking_metrics(groups[shuffled], relevance[shuffled], scores[shuffled])
    assert found == pytest.approx({"ndcg": np.mean(gains), "mrr": np.mean(ranks)} if gains else {})


def test_ranking_by_hand() -> None:
    days = np.array(["mon", "mon", "mon", "tue", "tue", "wed"])
    found = ranking_metrics(days, np.array([1.0, 0.0, 0.0, 0.0, 1.0, 1.0]), np.array([0.2, 0.9, 0.1, 0.3, 0.8, 0.5]))
    # Monday's one comes second, Tuesday's first; Wednesday has one row, which no order can misplace: it is left out.
    assert found["mrr"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["ndcg"] == pytest.approx((1 / math.log2(3) + 1) / 2)


def test_a_constant_score_ranks_nothing_and_negative_relevance_is_refused() -> None:
    assert ranking_metrics(np.zeros(4), np.array([0.0, 0.0, 0.0, 1.0]), np.ones(4))["mrr"] == 0.25
    assert ranking_metrics(np.zeros(2), np.ones(2), np.array([0.0, 1.0])) == {}
    assert ranking_metrics(np.zeros(0), np.zeros(0), np.zeros(0)) == {}
    with pytest.raises(ValueError, match=r"must not be negative, the lowest is -1"):
        ranking_metrics(np.zeros(2), np.array([-1.0, 0.0]), np.zeros(2))


@pytest.mark.parametrize(
    ("truth", "probability", "absent"),
    [
        ([0.0, 0.0, 0.0], [0.1, 0.2, 0.3], {"roc_auc", "average_precision", "precision", "recall", "f1"}),
        ([0.0, 0.0, 0.0], [0.1, 0.2, 0.9], {"roc_auc", "average_precision", "recall"}),
        ([1.0, 1.0, 1.0], [0.1, 0.2, 0.3], {"roc_auc", "precision"}),
        ([0.0, 1.0, 0.0], [0.1, 0.2, 0.3], {"precision"}),
    ],
)
def test_what_is_not_defined_is_absent(truth: list[float], probability: list[float], absent: set[str]) -> None:
    found = binary_metrics(np.array(truth), np.array(probability))
    assert absent == {"roc_auc", "average_precision", "accuracy", "precision", "recall", "f1"} - set(found)
    assert all(math.isfinite(value) for value in found.values())


def test_equal_labels_have_no_r2() -> None:
    found = regression_metrics(np.full(3, 0.1), np.array([0.1, 0.2, 0.3]))
    assert "r2" not in found
    assert found["mae"] == pytest.approx(0.1)


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

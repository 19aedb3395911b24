"""Probabilities of an event: their metrics against scikit-learn's, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from serving.kinds.binary import Output
from serving.metrics.decided import THRESHOLD

SEEDS = st.integers(0, 2**32 - 1)


def binary_metrics(truth: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    return Output(above=0.5).evaluation("p", truth, {"p": probability})


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
    # scikit-learn clips both ends, and its own version's way.
    log_loss = sk.log_loss(truth, np.clip(probability, 1e-15, 1 - 1e-15))
    assert found.pop("log_loss") == pytest.approx(log_loss, rel=1e-4)
    assert found == pytest.approx(expected)


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


def test_losses_by_hand() -> None:
    label, chance = np.array([10.0, 40.0]), np.array([0.2, 0.7])
    assert Output(above=30, gate="brier").row_losses(label, chance) == pytest.approx([0.04, 0.09])
    assert Output(above=30, gate="log_loss").row_losses(label, chance) == pytest.approx([-np.log(0.8), -np.log(0.7)])


@given(label=st.floats(-1e6, 1e6), predicted=st.floats(0, 1), gate=st.sampled_from(["brier", "log_loss"]))
def test_losses_are_finite_and_zero_only_when_certain_and_right(label: float, predicted: float, gate: str) -> None:
    [loss] = Output.model_validate({"above": 0, "gate": gate}).row_losses(np.array([label]), np.array([predicted]))
    assert np.isfinite(loss)
    assert loss >= 0
    assert (loss == 0) <= (abs(predicted - (label > 0)) < 1e-6)


def test_a_number_outside_0_and_1_is_a_defect() -> None:
    [defect] = Output(above=1).defects("p", pa.table({"p": [0.0, 1.0, 1.0000001, -0.1]}))
    assert defect.bad.to_pylist() == [False, False, True, True]


def test_one_sided_labels_teach_nothing() -> None:
    output = Output(above=15)
    assert output.unlearnable(np.array([16.0, 17.0]), "training rows") == "all 2 training rows lie above 15"
    assert output.unlearnable(np.array([15.0, 1.0]), "training rows") == "all 2 training rows lie at or below 15"
    assert output.unlearnable(np.array([15.0, 16.0]), "training rows") is None


def test_the_baseline_is_one_rate_whatever_the_gate_s_rule() -> None:
    output = Output(above=1)
    rate = output.constant(np.array([0.0, 2.0, 3.0, 4.0]), "same_hour_last_week")
    assert rate == 0.75
    assert output.stored_constant({"median": 2.5, "rates": {"p": 0.75}}, "p", "median") == 0.75
    assert output.stored_constant({"median": 2.5, "rates": {}}, "p", "median") is None
    assert output.baseline(rate, 2, np.array([9.0, 9.0])).tolist() == [0.75, 0.75]

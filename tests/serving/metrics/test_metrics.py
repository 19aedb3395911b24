"""Metrics: what they are by hand and by scikit-learn, and how nights are pooled."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics as sk

from serving.metrics import NAMES, UnknownMetric, metric_named, rooted_checks, row_metric
from serving.metrics.intervals import mean_with_interval, share_with_interval

RANDOM = np.random.default_rng(5)
NUMBERS, SAID = RANDOM.normal(size=200), RANDOM.normal(size=200)
EVENTS, CHANCES = (RANDOM.random(200) < 0.3).astype(float), RANDOM.random(200)
CLASSES, SHARES = RANDOM.integers(0, 4, 200).astype(float), RANDOM.dirichlet(np.ones(4), 200)


def test_every_file_but_the_tools_is_a_metric_of_its_name() -> None:
    assert {metric_named(name).name for name in NAMES} == set(NAMES)
    assert {"mae", "rmse", "brier", "log_loss", "macro_f1", "macro_f1_loss", "roc_auc"} <= set(NAMES)
    assert rooted_checks() == ("rmse", "rmse_baseline")


def test_an_unknown_metric_names_those_there_are() -> None:
    with pytest.raises(UnknownMetric, match=r"no metric 'guess'. Known: accuracy, .*rmse"):
        metric_named("guess")
    with pytest.raises(UnknownMetric, match=r"roc_auc is no mean over rows"):
        row_metric("roc_auc")


@pytest.mark.parametrize("name", ["mae", "mse", "rmse", "brier", "log_loss"])
def test_the_value_is_the_mean_of_the_rows_losses(name: str) -> None:
    truth, predicted = (EVENTS, CHANCES) if name in {"brier", "log_loss"} else (NUMBERS, SAID)
    metric = row_metric(name)
    whole = metric.value(truth, predicted)
    assert metric.of_mean(metric.row_losses(truth, predicted).mean()) == pytest.approx(whole)
    halves = [(metric.value(truth[part], predicted[part]), len(truth[part])) for part in (slice(0, 50), slice(50, 200))]
    assert metric.pooled([(value or 0.0, rows) for value, rows in halves]) == pytest.approx(whole)


def test_probabilities_of_classes_are_scored_as_scikit_learn_does() -> None:
    assert metric_named("log_loss").value(CLASSES, SHARES) == pytest.approx(sk.log_loss(CLASSES, SHARES))
    said = SHARES.argmax(axis=1)
    assert metric_named("macro_f1").value(CLASSES, SHARES) == pytest.approx(sk.f1_score(CLASSES, said, average="macro"))
    assert metric_named("accuracy").value(CLASSES, SHARES) == pytest.approx(sk.accuracy_score(CLASSES, said))
    two = np.column_stack([1.0 - CHANCES, CHANCES])
    assert metric_named("brier").value(EVENTS, two) == pytest.approx(2 * sk.brier_score_loss(EVENTS, CHANCES))
    assert metric_named("log_loss").value(EVENTS, two) == pytest.approx(metric_named("log_loss").value(EVENTS, CHANCES))


def test_a_certain_error_costs_a_finite_loss_and_the_same_in_every_shape() -> None:
    once = metric_named("log_loss").value(np.array([1.0]), np.array([0.0]))
    assert once == pytest.approx(-np.log(1e-15))
    assert metric_named("log_loss").value(np.array([1.0]), np.array([[1.0, 0.0]])) == once


def test_ties_count_half_in_the_area_under_the_curve() -> None:
    event = RANDOM.random(300) < 0.3
    score = np.round(RANDOM.random(300) + 0.2 * event, 1).astype(np.float64)
    positive, negative = score[event], score[~event]
    pairs = (positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2
    assert metric_named("roc_auc").value(event.astype(float), score) == pytest.approx(pairs)
    assert metric_named("roc_auc").value(np.zeros(3), np.ones(3)) is None


def test_pooled_ratios_weigh_rows_and_squares_of_rooted_errors() -> None:
    mae, rmse = metric_named("mae"), metric_named("rmse")
    assert mae.pooled_ratio([(2.0, 1), (4.0, 3)], [(4.0, 1), (4.0, 3)]) == pytest.approx(14 / 16)
    assert rmse.pooled_ratio([(3.0, 1), (4.0, 1)], [(5.0, 2)]) == pytest.approx(np.sqrt(25 / 50))
    assert mae.pooled_ratio([], []) is None
    assert mae.pooled([]) is None
    assert rmse.pooled([(3.0, 1), (4.0, 1)]) == pytest.approx(np.sqrt(12.5))


def test_shares_never_claim_to_be_certain() -> None:
    assert share_with_interval(3, 3) == pytest.approx((1.0, 0.438503, 1.0))
    assert share_with_interval(0, 3) == pytest.approx((0.0, 0.0, 0.561497))
    share, lower, upper = share_with_interval(60, 100)
    assert (share, round(lower, 4), round(upper, 4)) == (0.6, 0.5020, 0.6906)


def test_one_row_has_a_mean_and_no_interval() -> None:
    mean, lower, upper = mean_with_interval(np.array([2.0]))
    assert mean == 2.0
    assert np.isnan([lower, upper]).all()


def test_the_names_of_all_metrics_load_nothing_heavy() -> None:
    heavy = "[m for m in ('numpy', 'pyarrow', 'sklearn') if m in sys.modules]"
    code = f"import sys; import serving.metrics; print({heavy})"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_average_precision_is_computed_anew_among_the_rows_of_each_draw() -> None:
    from sklearn.metrics import average_precision_score

    random = np.random.default_rng(1)
    metric = row_metric("average_precision_loss")
    truth = (random.random(600) < 0.1).astype(float)
    score = np.round(random.normal(size=600) + truth, 1)
    day = np.arange(600) // 50
    assert metric.value(truth, score) == pytest.approx(1 - average_precision_score(truth, score))
    assert metric.value(truth, np.full(600, 0.2)) == pytest.approx(1 - truth.mean())
    assert metric.value(np.zeros(3), np.ones(3)) is None
    weights = random.multinomial(12, np.full(12, 1 / 12), size=5).astype(float)
    for drawn, counts in zip(metric.of_draws(truth, score, day, weights), weights.astype(int), strict=True):
        rows = np.concatenate([np.tile(np.flatnonzero(day == d), n) for d, n in enumerate(counts)]).astype(int)
        assert drawn == pytest.approx(1 - average_precision_score(truth[rows], score[rows]))
    alone = np.eye(12)[[int(day[truth > 0][0])]] * 12
    without = np.where(day == day[truth > 0][0], 0.0, truth)
    assert np.isnan(metric.of_draws(without, score, day, alone)).all(), "a draw without an event tells nothing"


def test_macro_f1_is_computed_anew_among_the_rows_of_each_draw() -> None:
    random = np.random.default_rng(2)
    metric = row_metric("macro_f1_loss")
    truth = random.choice(5, 600, p=[0.5, 0.3, 0.15, 0.04, 0.01]).astype(float)
    shares = random.dirichlet(np.ones(6), 600) + 0.5 * np.eye(6)[truth.astype(int)]
    said, day = shares.argmax(axis=1), np.arange(600) // 50
    assert metric.value(truth, shares) == pytest.approx(1 - sk.f1_score(truth, said, average="macro"))
    assert metric.row_losses(truth, shares)[said == truth].max() == 0
    alone, wrong = np.array([2.0]), np.array([[1.0, 0.0, 0.0]])
    assert metric.value(alone, wrong) == 1.0, "classes that neither came nor were said do not count"
    weights = random.multinomial(12, np.full(12, 1 / 12), size=5).astype(float)
    for drawn, counts in zip(metric.of_draws(truth, shares, day, weights), weights.astype(int), strict=True):
        rows = np.concatenate([np.tile(np.flatnonzero(day == d), n) for d, n in enumerate(counts)]).astype(int)
        assert drawn == pytest.approx(1 - sk.f1_score(truth[rows], said[rows], average="macro"))

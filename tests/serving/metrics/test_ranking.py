"""The ranking metrics against scikit-learn's, group by group."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from serving.metrics.ranking import ranking_metrics

SEEDS = st.integers(0, 2**32 - 1)


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

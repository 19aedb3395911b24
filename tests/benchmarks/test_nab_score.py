"""The benchmark's score on corpora small enough to be scored by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.nab_score import Scored, nab_score

ROWS = 200
WINDOWS = [(60, 79), (140, 159)]


def scored(**alarms: float) -> Scored:
    """A series whose rows are scored 0 but for those named `r<row>`."""
    scores = np.zeros(ROWS)
    for row, score in alarms.items():
        scores[int(row[1:])] = score
    return Scored(scores, WINDOWS)


def test_saying_nothing_is_0_and_each_window_from_its_first_row_100() -> None:
    assert nab_score([scored()]) == (0.0, np.inf)
    assert nab_score([scored(r60=1, r140=1)]) == pytest.approx((100, 1))
    assert nab_score([scored(r60=0.9, r140=0.4), scored(r60=0.5, r140=0.7)]) == pytest.approx((100, 0.4))
    assert nab_score([scored(r60=1, r61=1, r79=1, r140=1)])[0] == pytest.approx(100), "later ones inside cost nothing"


def test_a_late_detection_earns_less_and_one_window_is_half() -> None:
    assert nab_score([scored(r60=1)])[0] == pytest.approx(50)
    last = (2 / (1 + np.exp(-5 / 20)) - 1) / (2 / (1 + np.exp(-5)) - 1)
    assert nab_score([scored(r60=1, r159=1)])[0] == pytest.approx(50 + 25 * (1 + last))


def test_a_false_alarm_costs_and_less_shortly_after_a_window() -> None:
    assert nab_score([scored(r60=1, r140=1, r45=1)])[0] == pytest.approx(100 * (4 - 0.11) / 4)
    soon = 0.11 * (1 - 2 / (1 + np.exp(5 / 19)))
    assert nab_score([scored(r60=1, r140=1, r80=1)])[0] == pytest.approx(100 * (4 - soon) / 4)
    assert nab_score([scored(r60=1, r140=1, r29=1)])[0] == pytest.approx(100), "the first 15 % count for nothing"


def test_one_threshold_serves_the_whole_corpus() -> None:
    noisy = Scored(np.where(np.arange(ROWS) < 100, 0.8, 0.0), [])
    score, threshold = nab_score([scored(r60=0.9, r140=0.5), noisy])
    assert threshold == 0.9, "falling to 0.5 would find the second window at the price of 70 false alarms"
    assert score == pytest.approx(50)
    with pytest.raises(ValueError, match="no series has a window"):
        nab_score([noisy])

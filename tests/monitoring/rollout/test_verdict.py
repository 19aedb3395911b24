from __future__ import annotations

import math
from datetime import date

import pytest

from monitoring.rollout.sequence import Look
from monitoring.rollout.verdict import judge, judge_segments


def _look(lower: float, upper: float, nights: int = 12) -> Look:
    harm = (lower + upper) / 2 if math.isfinite(lower + upper) else 0.75
    return Look(date(2024, 1, nights), nights, 900 * nights, harm, lower, upper, 1.0, 1.0)


@pytest.mark.parametrize(
    ("look", "finding", "sentence"),
    [
        (
            _look(0.4, 1.1),
            "harmful",
            "After 12 nights the challenger's MAE is 0.4 to 1.1 minutes higher than the champion's, more than the 0.2 "
            "tolerated.",
        ),
        (
            _look(-0.3, 0.1),
            "harmless",
            "After 12 nights the challenger's MAE is between 0.3 minutes lower and 0.1 minutes higher than the "
            "champion's, within the 0.2 tolerated.",
        ),
        (
            _look(-1.1, -0.3),
            "harmless",
            "After 12 nights the challenger's MAE is 0.3 to 1.1 minutes lower than the champion's.",
        ),
        (
            _look(-0.3, 0.9),
            "undecided",
            "After 12 nights the challenger's MAE is between 0.3 minutes lower and 0.9 minutes higher than the "
            "champion's; whether that is more than the 0.2 tolerated, further nights must tell.",
        ),
        (
            _look(-math.inf, math.inf, 1),
            "undecided",
            "After 1 night the challenger's MAE is 0.75 minutes higher than the champion's so far, too few nights to "
            "bound it.",
        ),
        (
            _look(0.0, 0.0),
            "harmless",
            "After 12 nights the challenger's MAE is 0 minutes higher than the champion's.",
        ),
    ],
)
def test_a_verdict_is_read_by_an_operator(look, finding, sentence) -> None:
    verdict = judge([_look(5.0, 9.0, 2), look], tolerance=0.2, metric="MAE", unit="minutes")
    assert (verdict.finding, verdict.sentence, verdict.look) == (finding, sentence, look)


@pytest.mark.parametrize(("lower", "upper"), [(0.2, 0.9), (-0.4, 0.2), (-math.inf, 0.4), (0.1, math.inf)])
def test_a_bound_at_the_tolerance_decides_nothing(lower: float, upper: float) -> None:
    assert judge([_look(lower, upper)], tolerance=0.2, metric="MAE").finding == "undecided"


def test_without_mature_nights_nothing_is_known() -> None:
    verdict = judge([], tolerance=0.2, metric="MAE")
    assert (verdict.finding, verdict.look) == ("undecided", None)
    assert verdict.sentence == "No night of the rollout has mature labels yet."


def test_harmful_segments_come_first() -> None:
    looks = {"AA": [_look(-1.0, 0.0)], "HA": [_look(0.4, 1.1)], "UA": [_look(-0.1, 0.9)], "YV": []}
    verdicts = judge_segments(looks, tolerance=0.2, metric="MAE", unit="minutes")
    assert [verdict.segment for verdict in verdicts] == ["HA", "UA", "AA", "YV"]
    assert verdicts[0].sentence.startswith("In HA, after 12 nights the challenger's MAE is 0.4 to 1.1 minutes higher")

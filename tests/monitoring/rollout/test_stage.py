"""A rollout moved by its nights: what is measured, and what follows."""

from __future__ import annotations

import pytest

import training.registry.delivery as delivery
from config.calendar import ONE_DAY, Interval
from lake.lake import Lake
from lake.metrics import read_metrics
from lake.rollouts import Kind
from monitoring.rollout.checks import GROUP
from monitoring.rollout.stage import _Night, move_rollout
from tests.serving.rollout.scenario import FIRST, begin, champion_with_nights, next_unscored, scored, shares
from tests.serving.scenario import MODEL, use_linear

NIGHTS = [FIRST + number * ONE_DAY for number in range(12)]


@pytest.fixture
def lake(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A champion that has scored one night."""
    use_linear(monkeypatch)
    monkeypatch.setattr(delivery, "check_files_of", lambda *_: None)
    monkeypatch.setattr(delivery, "repair_alias", lambda *_: None)
    monkeypatch.setattr(delivery, "effective_from", next_unscored)
    return champion_with_nights(toy_lake)


def moved(lake: Lake, nights: int) -> list[tuple[Kind, int]]:
    """Score and judge that many nights; kind and step of the ledger's lines after the first."""
    for night in NIGHTS[1 : 1 + nights]:
        scored(lake, night)
        move_rollout(lake, MODEL, Interval.of(night), run_id=f"monitor {night}")
    return [(line.kind, line.step) for line in lake.rollouts(MODEL).read().lines][1:]


def test_a_canary_goes_through_its_steps_and_is_finished(lake: Lake) -> None:
    begin(lake, strategy="canary", steps=[0.3, 1.0], nights=1, advance="nights", slope=1.126)
    lines = moved(lake, 3)
    said = [line.reason for line in lake.rollouts(MODEL).read().lines]
    assert lines == [("advanced", 1), ("finished", 1)], said
    assert shares(lake, NIGHTS[:4]) == [None, 0.3, 1.0, None]


def test_harm_shows_in_the_labels_and_rolls_back(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Night, "_usual_shift", lambda *_: None)  # that would stop it before any label
    begin(lake, strategy="shadow", nights=10, slope=3.0)
    lines = moved(lake, 9)
    said = [line.reason for line in lake.rollouts(MODEL).read().lines]
    assert lines[-1][0] == "rolled_back", said
    assert "the challenger's" in said[-1], said


def test_a_night_judged_again_writes_nothing(lake: Lake) -> None:
    begin(lake, strategy="shadow", nights=10, slope=1.126)
    moved(lake, 2)
    before = lake.rollouts(MODEL).read()
    again = move_rollout(lake, MODEL, Interval.of(NIGHTS[2]), run_id="again")
    assert (again.committed, lake.rollouts(MODEL).read()) == (0, before)


def test_a_challenger_far_away_is_stopped_before_any_label(lake: Lake) -> None:
    begin(
        lake,
        strategy="canary",
        steps=[0.3, 1.0],
        slope=4.0,
        guardrails={"disagreement": 5.0, "disagreement_share": 0.1},
    )
    assert moved(lake, 1) == [("rolled_back", 0)]
    reason = lake.rollouts(MODEL).read().lines[-1].reason
    assert "differs by more than 5" in reason
    rows = read_metrics(lake, MODEL, GROUP).to_pylist()
    assert ("guardrail_disagreement", "failing") in {(row["check"], row["status"]) for row in rows}


def test_where_predictions_change_outcomes_only_what_each_served_is_compared(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Night, "_usual_shift", lambda *_: None)
    begin(lake, strategy="canary", steps=[0.5, 1.0], interferes=True, slope=1.126)
    moved(lake, 4)
    rows = read_metrics(lake, MODEL, GROUP).to_pylist()
    harm = [row for row in rows if row["check"] == "harm" and row["column"] == "ride_minutes" and row["segment"] == ""]
    # Of the two nights with labels: units that each version served, not the sixty rows of both.
    assert [row["n"] for row in harm] == [None, None, 1, 2]


def test_without_a_rollout_there_is_nothing_to_do(lake: Lake) -> None:
    assert move_rollout(lake, MODEL, Interval.of(NIGHTS[0]), run_id="r").rows == 0

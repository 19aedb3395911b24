"""Rollouts from their start to their end: the plan of each night, and what a process that ended leaves open."""

from __future__ import annotations

from datetime import date

import pyarrow.compute as pc
import pytest
import sqlalchemy as sa

import training.registry.delivery as delivery
from config.calendar import ONE_DAY, Interval
from lake.assignment import plan_of
from lake.lake import Lake
from lake.ledger import NoChampion
from lake.rollouts import RolloutLine, RolloutSnapshot
from lake.signed_lines import LedgerConflict
from lake.stored_rollouts import stored_rollouts
from serving.rollout.flip import flip
from serving.score import score
from tests.serving.rollout.scenario import (
    FIRST,
    begin,
    block,
    champion_with_nights,
    next_unscored,
    rows_of,
    scored,
    served_by_challenger,
    shares,
)
from tests.serving.scenario import MODEL, publish_inputs, use_linear
from training.registry.approval import ReasonMissing

NIGHTS = [FIRST + number * ONE_DAY for number in range(10)]


@pytest.fixture
def lake(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A champion that has scored one night."""
    use_linear(monkeypatch)
    monkeypatch.setattr(delivery, "check_files_of", lambda *_: None)
    monkeypatch.setattr(delivery, "repair_alias", lambda *_: None)
    monkeypatch.setattr(delivery, "effective_from", next_unscored)
    return champion_with_nights(toy_lake)


def test_a_canary_takes_over_by_shares_and_becomes_champion(lake: Lake) -> None:
    begin(lake, strategy="canary", steps=[0.3, 0.6, 1.0])
    inside = []
    for night, step in zip(NIGHTS[1:4], ("advanced", "advanced", "finished"), strict=True):
        scored(lake, night)
        inside.append({row["ride"] for row in rows_of(lake, night).to_pylist() if row["role"] == "challenger"})
        served_by_challenger(lake, night)
        move = delivery.advance if step == "advanced" else delivery.finish
        assert move(lake, MODEL, by="monitor", reason="no harm", night=night).kind == step
    scored(lake, NIGHTS[4])
    assert shares(lake, NIGHTS[:5]) == [None, 0.3, 0.6, 1.0, None]
    newest = lake.ledger(MODEL).read().newest
    assert newest is not None
    assert (newest.version, newest.effective_from) == (2, NIGHTS[4])
    assert set(rows_of(lake, NIGHTS[4])["version"].to_pylist()) == {2}
    assert len(inside[0]) == 30


def test_a_night_keeps_its_plan_when_it_is_scored_again(lake: Lake) -> None:
    begin(lake, strategy="canary", steps=[0.5, 1.0])
    scored(lake, NIGHTS[1])
    delivery.advance(lake, MODEL, by="monitor", reason="no harm", night=NIGHTS[1])
    scored(lake, NIGHTS[2])
    delivery.roll_back(lake, MODEL, by="ada", reason="odd numbers")
    before = [rows_of(lake, night) for night in NIGHTS[:3]]
    again = score(lake, MODEL, Interval.closed(NIGHTS[0], NIGHTS[2]), run_id="again")
    assert again.committed == 0
    assert [rows_of(lake, night) for night in NIGHTS[:3]] == before
    scored(lake, NIGHTS[3])
    assert shares(lake, NIGHTS[:4]) == [None, 0.5, 1.0, None]


def test_the_same_night_decides_once(lake: Lake) -> None:
    begin(lake, strategy="canary", steps=[0.3, 0.6, 1.0])
    scored(lake, NIGHTS[1])
    first = delivery.advance(lake, MODEL, by="monitor", reason="no harm", night=NIGHTS[1])
    assert delivery.advance(lake, MODEL, by="monitor again", reason="no harm", night=NIGHTS[1]) == first
    assert [line.kind for line in lake.rollouts(MODEL).read().lines] == ["started", "advanced"]


def test_two_that_decide_at_once_write_one_line(lake: Lake) -> None:
    begin(lake, strategy="canary", steps=[0.3, 0.6, 1.0])
    seen = lake.rollouts(MODEL).read()
    delivery.hold(lake, MODEL, by="ada", reason="a holiday")
    with pytest.raises(LedgerConflict, match="the rollouts of ride_minutes changed"):
        lake.rollouts(MODEL).append(seen.lines[-1], seen=seen)


def test_blue_green_switches_and_goes_back_in_the_same_night(lake: Lake) -> None:
    begin(lake, strategy="blue_green")
    scored(lake, NIGHTS[1])
    assert served_by_challenger(lake, NIGHTS[1]) == set()
    delivery.advance(lake, MODEL, by="monitor", reason="no harm", night=NIGHTS[1])
    scored(lake, NIGHTS[2])
    assert len(served_by_challenger(lake, NIGHTS[2])) == 30
    ids = set(rows_of(lake, NIGHTS[2])["prediction_id"].to_pylist())
    line = delivery.roll_back(lake, MODEL, by="ada", reason="brakes were missed")
    assert (line.kind, line.effective_from) == ("returned", NIGHTS[2])
    assert served_by_challenger(lake, NIGHTS[2]) == set()
    assert set(rows_of(lake, NIGHTS[2])["prediction_id"].to_pylist()) == ids
    last = lake.rollouts(MODEL).read().lines[-1]
    assert (last.kind, last.effective_from, last.reason) == ("rolled_back", NIGHTS[3], "brakes were missed")
    with lake.engine.connect() as connection:
        query = sa.text(
            f"SELECT role, served FROM predictions_{MODEL} WHERE data_date = :night AND superseded_at IS NULL"
        )
        stored = {tuple(row) for row in connection.execute(query, {"night": NIGHTS[2].isoformat()})}
    assert stored == {("champion", 1), ("challenger", 0)}
    scored(lake, NIGHTS[3])
    assert shares(lake, NIGHTS[:4]) == [None, 0.0, 0.0, None]


def test_a_night_that_another_plan_scored_is_left_as_it_is_by_a_return(lake: Lake) -> None:
    begin(lake, strategy="blue_green")
    scored(lake, NIGHTS[1])
    delivery.advance(lake, MODEL, by="monitor", reason="no harm", night=NIGHTS[1])
    before = RolloutSnapshot(MODEL, -1, ())  # as a late process read the ledger
    score(
        lake, MODEL, Interval.of(NIGHTS[2]), run_id="late", planned=lambda ledger, _, day: plan_of(ledger, before, day)
    )
    line = delivery.roll_back(lake, MODEL, by="ada", reason="brakes were missed")
    assert (line.kind, line.effective_from) == ("rolled_back", NIGHTS[3])
    assert delivery.settle(lake, MODEL, by="next run") == []
    assert set(rows_of(lake, NIGHTS[2])["role"].to_pylist()) == {"champion"}


@pytest.mark.parametrize("point", ["before the flip", "after the flip"])
def test_a_blue_green_return_that_was_cut_is_completed(lake: Lake, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    begin(lake, strategy="blue_green")
    scored(lake, NIGHTS[1])
    delivery.advance(lake, MODEL, by="monitor", reason="no harm", night=NIGHTS[1])
    scored(lake, NIGHTS[2])

    def cut(*arguments: object, **named: object) -> bool:
        if point == "after the flip":
            flip(*arguments, **named)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(delivery, "flip", cut)
    with pytest.raises(KeyboardInterrupt):
        delivery.roll_back(lake, MODEL, by="ada", reason="brakes were missed")
    monkeypatch.setattr(delivery, "flip", flip)
    delivery.settle(lake, MODEL, by="next run")
    assert served_by_challenger(lake, NIGHTS[2]) == set()
    assert [line.kind for line in lake.rollouts(MODEL).read().lines][-2:] == ["returned", "rolled_back"]
    assert delivery.settle(lake, MODEL, by="one more") == []


def test_a_finish_that_was_cut_is_a_promotion_at_once_and_written_by_the_next_run(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(lake, strategy="shadow")
    scored(lake, NIGHTS[1])
    with monkeypatch.context() as cut:
        cut.setattr(delivery, "settle", lambda *_, **__: [])
        delivery.finish(lake, MODEL, by="monitor", reason="no harm", night=NIGHTS[1])
    assert [p.version for p in lake.ledger(MODEL).read().promotions] == [1]
    scored(lake, NIGHTS[2])
    assert set(rows_of(lake, NIGHTS[2])["version"].to_pylist()) == {2}
    assert delivery.settle(lake, MODEL, by="next run") == ["version 2 is champion from 2024-01-23 on"]
    assert score(lake, MODEL, Interval.of(NIGHTS[2]), run_id="again").committed == 0
    assert [p.version for p in lake.ledger(MODEL).read().promotions] == [1, 2]


def test_groups_take_turns_the_smallest_first(lake: Lake) -> None:
    begin(lake, strategy="rolling", by="depot", order=["south"])
    rollout = lake.rollouts(MODEL).read().running
    assert rollout is not None
    steps = rollout.steps
    assert steps[0].groups == ("south",)
    assert [len(step.groups or ()) for step in steps] == [1, 2, 0]
    assert steps[-1].share == 1.0
    scored(lake, NIGHTS[1])
    served = served_by_challenger(lake, NIGHTS[1])
    assert 0 < len(served) < 30


def test_a_share_that_is_nobody_is_refused_with_the_number_needed(lake: Lake) -> None:
    with pytest.raises(delivery.TooFewUnits, match=r"a share of 0.05 needs 20 units, .* has 6 \(vehicle\)"):
        begin(lake, strategy="canary")
    assert lake.rollouts(MODEL).read().lines == ()


def test_a_challenger_whose_files_are_gone_is_rolled_back_and_the_night_is_not_late(lake: Lake) -> None:
    line = begin(lake, strategy="canary", steps=[0.5, 1.0])
    scored(lake, NIGHTS[1])
    folder = lake.settings.artifacts / MODEL / line.artifact_digest
    folder.rename(folder.with_name("gone"))
    scored(lake, NIGHTS[2])
    assert set(rows_of(lake, NIGHTS[2])["role"].to_pylist()) == {"champion"}
    assert pc.all(rows_of(lake, NIGHTS[2])["served"]).as_py()
    last = lake.rollouts(MODEL).read().lines[-1]
    assert (last.kind, last.effective_from) == ("rolled_back", NIGHTS[2])
    assert "version 2 was promoted, but its files are not in" in last.reason


def test_a_hold_needs_a_reason_and_pauses(lake: Lake) -> None:
    begin(lake, strategy="canary", steps=[0.5, 1.0])
    with pytest.raises(ReasonMissing, match="no reason was given"):
        delivery.hold(lake, MODEL, by="ada", reason=" ")
    delivery.hold(lake, MODEL, by="ada", reason="a holiday")
    rollout = lake.rollouts(MODEL).read().running
    assert rollout is not None
    assert rollout.paused
    delivery.advance(lake, MODEL, by="ada", reason="it is over")
    rollout = lake.rollouts(MODEL).read().running
    assert rollout is not None
    assert (rollout.paused, rollout.step) == (False, 1)
    with pytest.raises(delivery.LastStep, match="is in its last step"):
        delivery.advance(lake, MODEL, by="ada", reason="further")


def test_a_person_s_move_is_done_once_a_run_and_only_as_it_was_meant(lake: Lake) -> None:
    begin(lake, strategy="canary", steps=[0.3, 0.6, 1.0])

    def act(action: str, run_id: str, **meant: int) -> RolloutLine:
        return delivery.act(lake, MODEL, action, by="ada", reason=" calm ", run_id=run_id, **meant)

    first = act("advance", "r1", version=2, step=0)
    assert (first.kind, first.by, first.reason, first.step) == ("advanced", "ada (r1)", "calm", 1)
    assert act("advance", "r1", version=2, step=0) == first
    with pytest.raises(delivery.RolloutMovedOn, match="version 2 in step 1 was meant, but version 2 is in step 2 of 3"):
        act("advance", "r2", version=2, step=0)
    with pytest.raises(delivery.RolloutMovedOn, match="the rollout of version 9 was meant"):
        act("rollback", "r3", version=9)
    act("hold", "r4", version=2)
    assert act("finish", "r5", version=2) == act("finish", "r5", version=2)
    assert [line.kind for line in lake.rollouts(MODEL).read().lines] == ["started", "advanced", "held", "finished"]


def test_a_rollback_ends_the_rollout_first(lake: Lake) -> None:
    begin(lake, strategy="shadow")
    assert delivery.rollback(lake, MODEL, by="ada", reason="no", run_id="r").kind == "rolled_back"
    assert delivery.rollback(lake, MODEL, by="ada", reason="no", run_id="r").kind == "rolled_back"
    with pytest.raises(delivery.NoRollout, match="has no rollout that goes on"):
        delivery.hold(lake, MODEL, by="ada", reason="wait")


def test_without_a_champion_a_refused_version_scores_and_serves_nothing(
    toy_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_linear(monkeypatch)
    publish_inputs(toy_lake)
    with pytest.raises(NoChampion):
        scored(toy_lake, FIRST)
    begin(toy_lake, strategy="shadow", refused_first=True, alone=True)
    scored(toy_lake, FIRST)
    rows = rows_of(toy_lake, FIRST)
    assert set(rows["role"].to_pylist()) == {"challenger"}
    assert not pc.any(rows["served"]).as_py()
    with pytest.raises(delivery.NoRollout, match="runs along without a champion because the gate refused it"):
        delivery.finish(toy_lake, MODEL, by="ada", reason="go")


def test_a_step_of_the_plan_stays_as_it_was_for_nights_before_it(lake: Lake) -> None:
    begin(lake, strategy="canary", steps=[0.3, 1.0])
    delivery.advance(lake, MODEL, by="ada", reason="go")
    snapshot = lake.rollouts(MODEL).read()
    assert snapshot.of(date(2024, 1, 1)) is None
    assert block(strategy="shadow").planned({}) == [{"share": 0.0}]


def test_a_line_counts_though_sql_does_not_answer(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begin(lake, strategy="canary", steps=[0.5, 1.0])
    assert [line.kind for line in stored_rollouts(lake, [MODEL])[MODEL].lines] == ["started"]

    def away(*_: object, **__: object) -> int:
        raise sa.exc.OperationalError("SELECT 1", {}, Exception("the server is away"))

    monkeypatch.setattr(delivery, "project_rollouts", away)
    assert delivery.advance(lake, MODEL, by="ada", reason="looks fine").step == 1
    assert "pages do not show" in caplog.text
    assert [line.kind for line in lake.rollouts(MODEL).read().lines] == ["started", "advanced"]

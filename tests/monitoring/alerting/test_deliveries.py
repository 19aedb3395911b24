"""What people read of a rollout: where it stands, what was measured, what comes next."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest
from pydantic import TypeAdapter

from config.calendar import ONE_DAY, Interval
from config.catalog.rollout import AnyRollout
from lake.lake import Lake
from lake.metrics import Metric, publish_metrics
from lake.rollouts import Rollout, RolloutLine, RolloutSnapshot
from lake.stored_rollouts import project_rollouts
from monitoring.alerting.alarms import open_alarms
from monitoring.alerting.deliveries import (
    Delivery,
    evidence_text,
    guardrails_text,
    news_of,
    next_decision,
    running_deliveries,
    sentence_of,
    share_text,
    step_text,
)
from monitoring.alerting.nightly_summary import entries_of
from monitoring.alerting.outbox import events
from monitoring.alerting.prometheus import scrape
from monitoring.rollout.checks import GROUP, HARM
from tests.serving.scenario import MODEL

FIRST = date(2024, 1, 22)
NOW = datetime(2024, 1, 22, 12, tzinfo=UTC)


def rollout(*moves: RolloutLine, alone: bool = False, **settings: Any) -> Rollout:
    """A rollout as it is after moves of `moved`."""
    block = TypeAdapter(AnyRollout).validate_python(settings)
    steps = [{"share": 0.0}] if alone else block.planned({"north": 1, "south": 3})  # type: ignore[union-attr]
    plain = {**block.model_dump(mode="json", by_alias=True), "unit": ["vehicle"], "salt": "s", "steps": steps}
    line = moved("started", step=0)
    return Rollout((replace(line, settings=json.dumps(plain | ({"alone": True} if alone else {}))), *moves))


def moved(kind: Any, *, step: int, night: date | None = None, by: str = "gate", reason: str = "better") -> RolloutLine:
    at = datetime(2024, 1, 22, tzinfo=UTC)
    return RolloutLine(MODEL, 2, kind, FIRST, FIRST, at, by, "b", "e", reason, step=step, night=night)


def delivery(lake: Lake, one: Rollout, *, nights: int = 2, in_step: int = 2, judged: Any = ()) -> Delivery:
    return Delivery(lake.model(MODEL), one, nights, in_step, FIRST if nights else None, tuple(judged))


def row(check: str, column: str = "ride_minutes", **values: Any) -> dict[str, Any]:
    return {"check": check, "column": column, "segment": "", "status": "ok", "reason": None, "n": 3, **values}


def test_a_summary_tells_what_moved_and_not_what_stayed() -> None:
    lines = [
        moved("started", step=0),
        moved("held", step=0, night=FIRST),
        replace(moved("held", step=0, by="ada", reason="wait"), effective_from=FIRST + ONE_DAY),
        replace(moved("advanced", step=1, night=FIRST + ONE_DAY), effective_from=FIRST + 2 * ONE_DAY),
        replace(moved("rolled_back", step=1, night=FIRST + 2 * ONE_DAY), effective_from=FIRST + 3 * ONE_DAY),
    ]
    numbered = tuple(replace(line, sequence=number) for number, line in enumerate(lines, 1))
    snapshot = RolloutSnapshot(MODEL, 0, numbered)
    told = [[line.kind for line in news_of(snapshot, FIRST + number * ONE_DAY)] for number in range(4)]
    assert told == [["started"], ["held", "advanced"], ["rolled_back"], []]
    assert sentence_of(numbered[3]) == (
        f"the rollout of version 2 goes to step 2, from data date {FIRST + 2 * ONE_DAY} on: better"
    )


def test_a_breached_guardrail_is_told_before_those_that_hold(toy_lake: Lake) -> None:
    rails = [
        row("guardrail_finite"),
        row("guardrail_shift", status="failing", reason="It moved."),
        row("guardrail_range", status="not_evaluated", reason="no range"),
    ]
    one = rollout(strategy="canary")
    assert guardrails_text(delivery(toy_lake, one, judged=rails)) == (
        "1 breached: It moved. 1 of 3 hold, 1 not evaluated."
    )
    assert guardrails_text(delivery(toy_lake, one, judged=rails[:1])) == "1 of 1 hold."
    assert guardrails_text(delivery(toy_lake, one)).startswith("not evaluated")


def test_evidence_names_outputs_and_the_segments_with_harm(toy_lake: Lake) -> None:
    rows = [
        row("harm", reason="After 3 nights it is better."),
        row("harm", segment="depot=a", status="failing", reason="In depot=a it is worse."),
        row("harm", segment="depot=b", reason="In depot=b it is better."),
        row("champion_loss", reason=None),
    ]
    told = evidence_text(delivery(toy_lake, rollout(strategy="canary"), judged=rows))
    assert told == "ride_minutes: After 3 nights it is better. In depot=a it is worse."
    assert evidence_text(delivery(toy_lake, rollout(strategy="canary"))).startswith("not evaluated")


def test_a_refused_first_version_is_not_in_service(toy_lake: Lake) -> None:
    one = delivery(toy_lake, rollout(strategy="shadow", alone=True))
    assert (step_text(one), share_text(one)) == ("not in service", "nothing")
    assert next_decision(one).startswith("It scores and serves nothing")


def test_what_it_serves_is_a_share_groups_or_everything(toy_lake: Lake) -> None:
    canary = rollout(moved("advanced", step=3), strategy="canary")
    groups = rollout(strategy="rolling", by="depot")
    shown = [share_text(delivery(toy_lake, one)) for one in (rollout(strategy="canary"), canary, groups)]
    assert shown == ["5 % of the units", "everything", "north of depot"]


def test_without_any_rollout_nothing_is_read(toy_lake: Lake) -> None:
    assert running_deliveries(toy_lake, [MODEL]) == {}


# ---- who is told -----------------------------------------------------------------------------------------------------


@pytest.fixture
def running(toy_lake: Lake) -> Lake:
    """A canary in its second step, whose newest evening found a breach and the harm of one output."""
    ledger = toy_lake.rollouts(MODEL)
    begun = rollout(strategy="canary").started
    seen = ledger.append(begun, seen=ledger.read())
    ledger.append(moved("advanced", step=1, night=FIRST), seen=seen)
    project_rollouts(toy_lake, MODEL)
    shared: dict[str, Any] = {"column": "ride_minutes", "role": "challenger", "model_version": 2}
    rows = [
        Metric(MODEL, FIRST, FIRST, HARM, "ok", value=0.5, lower=-1.0, upper=2.0, threshold=0.1, n=3, **shared),
        Metric(
            MODEL, FIRST, FIRST, "guardrail_shift", "failing", value=0.9, threshold=0.1, reason="It moved.", **shared
        ),
    ]
    publish_metrics(toy_lake, MODEL, GROUP, rows, Interval.of(FIRST), run_id="t")
    return toy_lake


def end(lake: Lake) -> None:
    ledger = lake.rollouts(MODEL)
    line = moved("rolled_back", step=1, night=FIRST + ONE_DAY, reason="It moved.")
    ledger.append(line, seen=ledger.read())
    project_rollouts(lake, MODEL)


def test_prometheus_has_step_share_and_bounds_while_a_rollout_goes_on(running: Lake) -> None:
    text = scrape(running, now=NOW)[0].decode()
    for sample in (
        'nightfleet_model_rollout_step{model="ride_minutes"} 2.0',
        'nightfleet_model_rollout_served_ratio{model="ride_minutes"} 0.25',
        'nightfleet_model_rollout_harm{bound="upper",model="ride_minutes",output="ride_minutes"} 2.0',
        'nightfleet_model_rollout_harm{bound="tolerance",model="ride_minutes",output="ride_minutes"} 0.1',
    ):
        assert sample in text
    end(running)
    assert "nightfleet_model_rollout_step{" not in scrape(running, now=NOW)[0].decode()


def test_what_the_last_evening_found_is_no_alarm_once_the_rollout_is_over(running: Lake) -> None:
    [alarm] = open_alarms(running, [MODEL], now=NOW)
    assert (alarm.check, alarm.role, alarm.severity) == ("guardrail_shift", "challenger", "critical")
    end(running)
    assert open_alarms(running, [MODEL], now=NOW) == []


def test_a_rollback_is_told_at_once_and_in_the_summary_of_its_night(running: Lake) -> None:
    assert not [event for event in events(running, base_url="http://a", now=NOW) if "rolled back" in event.text]
    end(running)
    [event] = [event for event in events(running, base_url="http://a", now=NOW) if "rolled back" in event.text]
    assert (event.level, event.subject) == ("critical", MODEL)
    assert event.text.endswith("the champion serves everything, from data date 2024-01-22 on: It moved.")
    assert event.link.endswith("/models/ride_minutes#delivery")
    assert not [e for e in events(running, base_url="http://a", now=NOW + 2 * ONE_DAY) if "rolled back" in e.text]
    night = FIRST + ONE_DAY
    [entry] = entries_of(running, night, [MODEL], base_url="http://a", now=NOW)
    assert [line for line in entry.lines if line.startswith("rollout: ")] == [f"rollout: {event.text}"]

"""What people read of a rollout: where it stands, what was measured, what comes next."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest
from pydantic import TypeAdapter

from config.catalog.rollout import AnyRollout
from lake.lake import Lake
from lake.rollouts import Rollout, RolloutLine
from monitoring.alerting.deliveries import (
    Delivery,
    evidence_text,
    guardrails_text,
    next_decision,
    running_deliveries,
    share_text,
    step_text,
)
from tests.serving.scenario import MODEL

FIRST = date(2024, 1, 22)


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


@pytest.mark.parametrize(
    ("settings", "moves", "in_step", "expected"),
    [
        (
            {"strategy": "canary", "nights": 3},
            (),
            2,
            "After 1 more night, once the harm is shown to be within the tolerance, it serves 25 % of units. Undecided"
            " after 60 nights, the champion stays.",
        ),
        (
            {"strategy": "canary", "steps": [0.5, 1.0], "nights": 1, "advance": "nights", "undecided": "ask"},
            (moved("advanced", step=1, night=FIRST),),
            1,
            "If no harm is shown, version 2 becomes champion. Undecided after 60 nights, a person decides.",
        ),
        (
            {"strategy": "rolling", "by": "depot", "nights": 1},
            (),
            1,
            "If no harm is shown, it serves everything. Undecided after 60 nights, the champion stays.",
        ),
        (
            {"strategy": "shadow", "nights": 2, "then": "ask"},
            (),
            2,
            "Once the harm is shown to be within the tolerance, a person is asked. Undecided after 60 nights, the"
            " champion stays.",
        ),
        (
            {"strategy": "canary"},
            (moved("held", step=0, by="ada", reason="the fleet moves depots"), moved("held", step=0, night=FIRST)),
            9,
            "A person decides: held by ada (the fleet moves depots). Harm still rolls it back.",
        ),
    ],
)
def test_the_next_decision_is_told(
    toy_lake: Lake, settings: dict[str, Any], moves: tuple[RolloutLine, ...], in_step: int, expected: str
) -> None:
    assert next_decision(delivery(toy_lake, rollout(*moves, **settings), in_step=in_step)) == expected


def test_an_ab_test_tells_its_next_look_and_when_all_are_over(toy_lake: Lake) -> None:
    one = rollout(strategy="ab_test", nights=8, looks=4)
    told = next_decision(delivery(toy_lake, one, judged=[row("harm", n=3)]))
    assert told.startswith("Look 2 of 4, at 4 nights with mature labels, may declare a winner; 3 so far.")
    over = next_decision(delivery(toy_lake, one, judged=[row("harm", n=8)]))
    assert over == "All looks are over. Undecided after 8 nights, the champion stays."


def test_before_its_first_night_it_says_when_it_begins(toy_lake: Lake) -> None:
    told = next_decision(delivery(toy_lake, rollout(strategy="canary"), nights=0, in_step=0))
    assert told.startswith(f"It begins with the night {FIRST}; 3 nights later, ")


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
    assert next_decision(one).startswith("Train again")


def test_what_it_serves_is_a_share_groups_or_everything(toy_lake: Lake) -> None:
    canary = rollout(moved("advanced", step=3), strategy="canary")
    groups = rollout(strategy="rolling", by="depot")
    shown = [share_text(delivery(toy_lake, one)) for one in (rollout(strategy="canary"), canary, groups)]
    assert shown == ["5 % of units", "everything", "depot north"]


def test_without_any_rollout_nothing_is_read(toy_lake: Lake) -> None:
    assert running_deliveries(toy_lake, [MODEL]) == {}

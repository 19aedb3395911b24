"""What a night means for a rollout, strategy by strategy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest

from lake.rollouts import Kind, Rollout, RolloutLine
from monitoring.rollout.decision import Decision, Standing, decide
from monitoring.rollout.guardrails import Guardrail
from monitoring.rollout.looks import Outcome
from monitoring.rollout.verdict import Finding, Verdict
from tests.serving.rollout.scenario import block

STARTED = RolloutLine(
    model="m",
    version=2,
    kind="started",
    trained_until=date(2024, 1, 1),
    effective_from=date(2024, 1, 2),
    decided_at=datetime(2024, 1, 1, tzinfo=UTC),
    by="gate",
    artifact_digest="b",
    evidence_digest="e",
    reason="better",
    sequence=1,
)
BREACH = Guardrail("minutes: range", "breached", 0.2, 0.001, "A fifth of the rows lies outside.")


def rollout(step: int = 0, *, held_by: str | None = None, alone: bool = False, **settings: Any) -> Rollout:
    parsed = block(**settings)
    document = parsed.model_dump(mode="json", by_alias=True)
    document |= {"steps": parsed.planned({"north": 3, "south": 1}), "salt": "s", "unit": ["u"]}
    if alone:
        document["alone"] = True
    lines = [replace(STARTED, settings=json.dumps(document))]
    if step:
        lines.append(replace(STARTED, kind="advanced", step=step, night=date(2024, 1, 3), sequence=2))
    if held_by:
        lines.append(replace(lines[-1], kind="held", by=held_by, reason="a holiday", night=None, sequence=3))
    return Rollout(tuple(lines))


def verdict(finding: Finding, segment: str | None = None) -> Verdict:
    return Verdict(finding, f"It is {finding}.", None, segment)


def night(
    of: Rollout,
    nights: int,
    *,
    in_step: int | None = None,
    findings: Sequence[Verdict] = (),
    rails: Sequence[Guardrail] = (),
    outcomes: Sequence[Outcome] = (),
) -> Decision:
    return decide(Standing(of, nights, nights if in_step is None else in_step, rails, findings, outcomes))


CANARY: dict[str, Any] = {"strategy": "canary", "steps": [0.05, 0.5, 1.0], "nights": 2}


@pytest.mark.parametrize(
    ("step", "nights", "finding", "move"),
    [
        (0, 1, "harmless", "held"),
        (0, 2, "undecided", "held"),
        (0, 2, "harmless", "advanced"),
        (2, 2, "harmless", "finished"),
        (1, 9, "harmful", "rolled_back"),
        (0, 60, "undecided", "rolled_back"),
    ],
)
def test_a_canary_waits_for_its_nights_and_for_evidence(step: int, nights: int, finding: Finding, move: Kind) -> None:
    assert night(rollout(step, **CANARY), nights, findings=[verdict(finding)]).move == move


def test_a_step_may_go_by_nights_alone_while_no_harm_is_shown() -> None:
    by_nights = rollout(**CANARY, advance="nights")
    assert night(by_nights, 2, findings=[verdict("undecided")]).move == "advanced"
    assert night(by_nights, 2, findings=[]).move == "advanced"
    assert night(by_nights, 2, findings=[verdict("harmful")]).move == "rolled_back"


def test_a_guardrail_stops_before_any_label_and_says_why() -> None:
    assert night(rollout(**CANARY), 1, rails=[BREACH]) == Decision("rolled_back", "A fifth of the rows lies outside.")


def test_a_segment_that_is_harmed_is_enough() -> None:
    findings = [verdict("harmless"), verdict("harmful", "depot=south")]
    assert night(rollout(**CANARY), 2, findings=findings).move == "rolled_back"


def test_a_segment_that_nobody_knows_of_keeps_nobody_waiting() -> None:
    findings = [verdict("harmless"), verdict("undecided", "depot=south")]
    assert night(rollout(**CANARY), 2, findings=findings).move == "advanced"


def test_held_by_a_person_it_moves_only_back() -> None:
    held = rollout(**CANARY, held_by="ada")
    assert night(held, 9, findings=[verdict("harmless")]) == Decision("held", "Held by ada: a holiday")
    assert night(held, 9, findings=[verdict("harmful")]).move == "rolled_back"


@pytest.mark.parametrize(("undecided", "move"), [("roll_back", "rolled_back"), ("finish", "finished"), ("ask", "held")])
def test_labels_that_never_come_end_it_as_the_catalog_says(undecided: str, move: Kind) -> None:
    of = rollout(strategy="shadow", nights=2, max_nights=5, undecided=undecided)
    assert night(of, 4).move == "held"
    decision = night(of, 5)
    assert decision.move == move
    assert decision.reason.startswith("5 nights did not decide it.")


def test_a_shadow_may_ask_a_person_at_its_end() -> None:
    asks = rollout(strategy="shadow", nights=2, then="ask")
    decision = night(asks, 2, findings=[verdict("harmless")])
    assert decision == Decision("held", "It is harmless. A person finishes it, or rolls it back.")
    assert night(rollout(strategy="shadow", nights=2), 2, findings=[verdict("harmless")]).move == "finished"


def test_blue_green_switches_then_is_final() -> None:
    assert night(rollout(strategy="blue_green", nights=2), 2).move == "advanced"
    assert night(rollout(1, strategy="blue_green", nights=2), 3, in_step=1).move == "held"
    assert night(rollout(1, strategy="blue_green", nights=2), 4, in_step=2).move == "finished"


def test_groups_follow_each_other() -> None:
    of = rollout(strategy="rolling", by="depot")
    assert [step.groups for step in of.steps] == [("south",), None]
    assert night(of, 1).move == "advanced"


def test_an_ab_test_declares_the_winner_or_keeps_the_champion() -> None:
    of = rollout(strategy="ab_test", nights=4, looks=2, max_nights=6)
    won = Outcome("challenger", 2, -3.0, 2.9, None, "The challenger wins.")
    lost = replace(won, winner="champion", sentence="The champion wins.")
    open_still = replace(won, winner=None, next_look=4, sentence="Nobody is ahead.")
    over = replace(open_still, next_look=None)
    assert night(of, 3, outcomes=[won]) == Decision("finished", "The challenger wins.")
    assert night(of, 3, outcomes=[won, lost]).move == "rolled_back"
    assert night(of, 3, outcomes=[won, open_still]).move == "held"
    assert night(of, 4, outcomes=[open_still]).move == "held"
    assert night(of, 4, outcomes=[over]).move == "rolled_back"
    assert night(of, 6, outcomes=[]).move == "rolled_back"


def test_a_version_without_a_champion_goes_nowhere() -> None:
    decision = night(rollout(strategy="shadow", alone=True), 60, rails=[BREACH])
    assert decision.move == "held"
    assert "serves nothing" in decision.reason

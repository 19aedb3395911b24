"""What comes next, as a sentence, for every strategy."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Any

import pytest

from lake.rollouts import Rollout, RolloutLine, following
from monitoring.rollout.outlook import outlook, served
from tests.serving.rollout.scenario import block

NIGHT = date(2024, 1, 22)
UNDECIDED = "Undecided after 60 nights, it is rolled back."


def rollout(*, sizes: dict[str, int] | None = None, alone: bool = False, **settings: Any) -> Rollout:
    parsed = block(**settings)
    kept = parsed.model_dump(mode="json", by_alias=True) | {"steps": parsed.planned(sizes or {}), "salt": "s"}
    kept |= {"alone": True} if alone else {}
    at = datetime(2024, 1, 22, tzinfo=UTC)
    line = RolloutLine("m", 2, "started", NIGHT, NIGHT, at, "gate", "a", "e", "better", settings=json.dumps(kept))
    return Rollout((line,))


def moved(of: Rollout, kind: Any, **changed: Any) -> Rollout:
    line = following(of, kind, by="ada", reason="calm", effective_from=NIGHT, **changed)
    return Rollout((*of.lines, line))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"strategy": "canary"},
            "Step 2 of 4 (25 % of the units) after 2 more scored nights, once harm is shown to be below the "
            f"tolerance. {UNDECIDED}",
        ),
        (
            {"strategy": "canary", "advance": "nights", "nights": 1},
            "Step 2 of 4 (25 % of the units) after the next scored night, unless harm is shown.",
        ),
        ({"strategy": "blue_green", "nights": 2}, "Step 2 of 2 (everything) after 1 more scored night, unless"),
        ({"strategy": "shadow", "nights": 1, "undecided": "ask"}, "The challenger is champion after the next scored"),
        ({"strategy": "shadow", "nights": 1, "undecided": "ask"}, "Undecided after 60 nights, a person decides."),
        ({"strategy": "shadow", "then": "ask"}, "A person is asked after 6 more scored nights, once harm"),
        (
            {"strategy": "rolling", "by": "depot", "sizes": {"a": 1, "b": 2, "c": 3}},
            "Step 2 of 3 (a, b of depot) after the next scored night, unless harm is shown.",
        ),
        (
            {"strategy": "ab_test", "nights": 90, "undecided": "finish"},
            "A winner is declared at one of 4 looks within 90 nights. Undecided after 90 nights, the challenger is",
        ),
    ],
)
def test_each_strategy_says_what_comes_next(settings: dict[str, Any], says: str) -> None:
    assert says in outlook(rollout(**settings), nights=1, nights_in_step=1)


def test_a_held_one_and_one_without_a_champion_wait_for_somebody() -> None:
    held = moved(rollout(strategy="canary"), "held")
    assert outlook(held, nights=1, nights_in_step=1).startswith("Held by ada: until a person goes on")
    by_monitor = moved(rollout(strategy="canary"), "held", night=NIGHT)
    assert outlook(by_monitor, nights=1, nights_in_step=1).startswith("Step 2 of 4")
    alone = rollout(strategy="shadow", alone=True)
    assert outlook(alone, nights=1, nights_in_step=1).startswith("It scores and serves nothing until")


def test_the_last_step_is_followed_by_the_end() -> None:
    last = moved(rollout(strategy="canary", steps=[0.5, 1.0]), "advanced", step=1)
    assert served(last, last.steps[last.step]) == "everything"
    assert outlook(last, nights=9, nights_in_step=3).startswith(
        "The challenger is champion after the next scored night"
    )

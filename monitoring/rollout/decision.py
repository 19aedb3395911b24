"""What a night means for a rollout: a pure function of where it stands and of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lake.rollouts import Rollout
from monitoring.rollout.guardrails import Guardrail
from monitoring.rollout.looks import Outcome
from monitoring.rollout.verdict import Verdict
from monitoring.wording import counted

Move = Literal["advanced", "held", "finished", "rolled_back"]


@dataclass(frozen=True)
class Standing:
    """What is known of a rollout on the evening of a scored night.

    Attributes:
        nights: scored nights of the rollout so far, this one included.
        nights_in_step: those of its present step.
        guardrails: of this night, before labels.
        verdicts: after labels, of each output and, where there are segments, of each of them.
        outcomes: of each output's stated looks, for the strategy `ab_test` alone.
    """

    rollout: Rollout
    nights: int
    nights_in_step: int
    guardrails: Sequence[Guardrail]
    verdicts: Sequence[Verdict]
    outcomes: Sequence[Outcome] = ()


@dataclass(frozen=True)
class Decision:
    """What happens to the rollout, with the sentence that its ledger keeps."""

    move: Move
    reason: str


def decide(standing: Standing) -> Decision:
    """The move of one night. What harms is rolled back before anything else is asked, a person's hold included."""
    return (
        _harm(standing)
        or _waits(standing)
        or (_ab_test(standing) if standing.rollout.strategy == "ab_test" else _forward(standing))
    )


def _harm(standing: Standing) -> Decision | None:
    alone = standing.rollout.settings.get("alone")
    breached = [] if alone else [g.explanation for g in standing.guardrails if g.status == "breached"]
    harmful = [verdict.sentence for verdict in standing.verdicts if verdict.finding == "harmful"]
    if breached or harmful:
        return Decision("rolled_back", " ".join(dict.fromkeys([*breached, *harmful])))
    return None


def _waits(standing: Standing) -> Decision | None:
    rollout = standing.rollout
    if rollout.settings.get("alone"):
        return Decision("held", "The gate refused this version and there is no champion: it scores and serves nothing.")
    if rollout.paused:
        held = next(line for line in reversed(rollout.lines) if line.night is None)
        return Decision("held", f"Held by {held.by}: {held.reason}")
    return None


def _ab_test(standing: Standing) -> Decision:
    settings = standing.rollout.settings
    for outcome in standing.outcomes:
        if outcome.winner == "champion":
            return Decision("rolled_back", outcome.sentence)
    if standing.outcomes and all(outcome.winner == "challenger" for outcome in standing.outcomes):
        return Decision("finished", " ".join(outcome.sentence for outcome in standing.outcomes))
    said = " ".join(outcome.sentence for outcome in standing.outcomes) or "No night of the test has mature labels yet."
    # Labels come later than nights: the test ends when its last look is over, or its nights are and no label comes.
    over = standing.outcomes and all(outcome.next_look is None for outcome in standing.outcomes)
    if over or standing.nights >= max(settings["max_nights"], settings["nights"]):
        return _undecided(standing, said)
    return Decision("held", said)


def _forward(standing: Standing) -> Decision:
    rollout = standing.rollout
    settings = rollout.settings
    said = " ".join(dict.fromkeys(v.sentence for v in standing.verdicts if v.segment is None))
    needed = settings["nights"]
    if standing.nights_in_step < needed:
        of_step = "" if rollout.strategy == "shadow" else f" of step {rollout.step + 1}"
        return Decision("held", f"{standing.nights_in_step} of {counted(needed, 'night')}{of_step} are scored. {said}")
    harmless = bool(standing.verdicts) and all(v.finding == "harmless" for v in standing.verdicts if v.segment is None)
    by_nights = settings.get("advance") == "nights"
    if not (harmless or by_nights):
        if standing.nights >= settings["max_nights"]:
            return _undecided(standing, said)
        return Decision("held", said)
    why = said if harmless else f"{counted(standing.nights_in_step, 'night')} without harm. {said}"
    if rollout.step + 1 < len(rollout.steps):
        return Decision("advanced", why)
    if settings.get("then") == "ask":
        return Decision("held", f"{why} A person finishes it, or rolls it back.")
    return Decision("finished", why)


def _undecided(standing: Standing, said: str) -> Decision:
    over = f"{counted(standing.nights, 'night')} did not decide it. {said}"
    policy = standing.rollout.settings["undecided"]
    if policy == "finish":
        return Decision("finished", f"{over} The challenger takes over, as the catalog says.")
    if policy == "ask":
        return Decision("held", f"{over} A person finishes it, or rolls it back.")
    return Decision("rolled_back", f"{over} The champion stays, as the catalog says.")

"""What may happen to a rollout next, as a sentence: what `decide` will ask of the nights to come."""

from __future__ import annotations

from lake.rollouts import Rollout, Step
from monitoring.wording import counted

_UNDECIDED = {"roll_back": "it is rolled back", "finish": "the challenger is champion", "ask": "a person decides"}


def outlook(rollout: Rollout, *, nights: int, nights_in_step: int) -> str:
    """The next decision of a rollout that goes on.

    Args:
        nights: scored nights of the rollout so far.
        nights_in_step: those of its present step.
    """
    settings = rollout.settings
    if settings.get("alone"):
        return "It scores and serves nothing until a version passes the gate, which becomes champion."
    if rollout.paused:
        held = next(line for line in reversed(rollout.lines) if line.night is None)
        return f"Held by {held.by}: until a person goes on, it can only be rolled back."
    most = max(settings["max_nights"], settings["nights"])
    undecided = f"Undecided after {counted(most, 'night')}, {_UNDECIDED[settings['undecided']]}."
    if rollout.strategy == "ab_test":
        looks = counted(settings["looks"], "look")
        return f"A winner is declared at one of {looks} within {counted(settings['nights'], 'night')}. {undecided}"
    left = settings["nights"] - nights_in_step
    when = f"after {counted(left, 'more scored night')}" if left > 0 else "after the next scored night"
    if settings.get("advance") == "nights":
        return f"{_then(rollout)} {when}, unless harm is shown."
    return f"{_then(rollout)} {when}, once harm is shown to be below the tolerance. {undecided}"


def _then(rollout: Rollout) -> str:
    following = rollout.step + 1
    if following < len(rollout.steps):
        return f"Step {following + 1} of {len(rollout.steps)} ({served(rollout, rollout.steps[following])})"
    return "A person is asked" if rollout.settings.get("then") == "ask" else "The challenger is champion"


def served(rollout: Rollout, step: Step) -> str:
    """Whom the challenger serves in a step: `25 % of the units`, `north, south of depot`."""
    if step.groups is not None:
        return f"{', '.join(step.groups)} of {rollout.settings['by']}"
    if step.share in (0.0, 1.0):
        return "everything" if step.share else "nothing"
    return f"{100 * step.share:.3g} % of the units"

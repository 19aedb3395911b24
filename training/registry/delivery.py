"""How a version that passed the gate takes over: at once, or by a rollout that starts, moves on, and ends here.

The ledger of rollouts decides; the ledger of promotions follows it. A process that ends between the two leaves nothing
open: every later run settles it first (`settle`), and until then the plan of a night counts a finished rollout as the
promotion that it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from math import ceil
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from config.calendar import ONE_DAY
from config.catalog.rollout import Stepwise
from config.errors import NightfleetError
from lake.lake import Lake
from lake.ledger import Promotion
from lake.rollouts import (
    Kind,
    Rollout,
    RolloutLine,
    RolloutSnapshot,
    following,
    promotion_of,
    unsettled,
)
from lake.signed_lines import LedgerConflict
from lake.stored_rollouts import project_rollouts
from serving.predictions import predictions_table
from serving.rollout.flip import flip
from serving.rollout.population import units_and_groups
from training.registry.approval import ReasonMissing, stored_decision
from training.registry.decision import Decision, read_decisions
from training.registry.gate import registered_from_json
from training.registry.promotion import (
    ModelFilesDamaged,
    StaleDecision,
    check_files_of,
    check_incumbent,
    check_same,
    checked_promotion,
    effective_from,
    promote,
    promotion_json,
    repair_alias,
    written,
)
from training.registry.promotion import rollback as promote_former
from training.registry.register import Registered

_ATTEMPTS = 5
log = logging.getLogger(__name__)


class NoRollout(NightfleetError):
    """The model has no rollout that goes on."""


class TooFewUnits(NightfleetError):
    """A share of the units would be nobody."""


class LastStep(NightfleetError):
    """A rollout has no further step."""


def deliver_decided(
    lake: Lake, model: str, registered: Mapping[str, Any], decision: Mapping[str, Any], *, by: str
) -> dict[str, Any] | None:
    """`deliver`, with arguments and result as JSON documents; the decision is read from the table by its evidence
    digest.

    Raises:
        StaleDecision: no stored decision has that digest.
    """
    digest = decision["evidence_digest"]
    stored = next((d for d in read_decisions(lake, model) if d.evidence_digest == digest), None)
    if stored is None:
        raise StaleDecision(
            f"{model} has no stored decision with evidence {digest[:12]}…. Nothing was promoted. Clear the gate's task "
            "to judge again."
        )
    line = deliver(lake, stored, registered_from_json(lake, model, registered), by=by)
    return None if line is None else line_json(line)


def line_json(line: Promotion | RolloutLine) -> dict[str, Any]:
    """A line of either ledger as JSON."""
    if isinstance(line, Promotion):
        return promotion_json(line)
    return {name: value.isoformat() if isinstance(value, date) else value for name, value in line.__dict__.items()}


def told(line: Promotion | RolloutLine) -> str:
    """What a line of either ledger does, as a sentence."""
    if isinstance(line, Promotion):
        again = " again" if line.kind == "rollback" else ""
        return f"{line.model}: version {line.version} is champion{again} from data date {line.effective_from} on"
    done = {
        "queued": f"version {line.version} waits",
        "dropped": f"version {line.version} no longer waits",
        "started": f"the rollout of version {line.version} starts",
        "advanced": f"the rollout of version {line.version} goes to step {line.step + 1}",
        "held": f"the rollout of version {line.version} stays in step {line.step + 1}",
        "returned": f"the rollout of version {line.version} is rolled back: that night is served by the champion again",
        "finished": f"version {line.version} is champion",
        "rolled_back": f"the rollout of version {line.version} is rolled back: the champion serves everything",
        "abandoned": f"the rollout of version {line.version} is abandoned",
    }[line.kind]
    return f"{line.model}: {done}, from data date {line.effective_from} on"


def deliver(lake: Lake, decision: Decision, registered: Registered, *, by: str) -> Promotion | RolloutLine | None:
    """Let a passed challenger take over as the catalog says: a promotion, or the start of a rollout; the same decision
    again finds its line and writes nothing.

    Without a champion there is nothing to take over from: a passed challenger is promoted at once, and a refused one
    may run beside nobody, serving nothing (`rollout.refused_first`).

    Returns:
        The line, or None where the gate did not pass it and it does not run along.
    Raises:
        TooFewUnits: a step would serve nobody; says how many units are needed. Nothing is written.
        as `training.registry.promotion.promote`.
    """
    entry = lake.model(decision.model)
    settle(lake, decision.model, by=by)
    seen, rollouts = lake.ledger(decision.model).read(), lake.rollouts(decision.model).read()
    block = entry.stepwise
    passed = decision.verdict == "promote"
    first = seen.newest is None
    there = _line_of(rollouts, decision)
    if there is not None and (passed or there.kind != "queued"):
        return there
    if first and not passed and block is not None and block.refused_first:
        alone = _promotion_alone(lake, decision, registered.artifact_digest, by=by)
        return _started(lake, decision, alone, block, rollouts, alone=True)
    if not passed or first or block is None or written(seen, decision) is not None:
        if passed and rollouts.running is not None:
            _superseded(lake, decision, rollouts.running, rollouts, by=by)
        return promote(lake, decision, registered, by=by)
    check_same(decision, registered)
    promotion = checked_promotion(lake, decision, registered.artifact_digest, by=by, seen=seen)
    if rollouts.running is not None and block.when_busy == "queue":
        reason = f"waits for the rollout of version {rollouts.running.version}"
        line = _line(promotion, "queued", reason=reason, effective_from=promotion.effective_from)
        return _append(lake, line, seen=rollouts).lines[-1]
    return _started(lake, decision, promotion, block, rollouts)


def _line_of(rollouts: RolloutSnapshot, decision: Decision) -> RolloutLine | None:
    """The newest line that started or queued this version on this evidence."""
    lines = (line for line in reversed(rollouts.lines) if line.kind in ("started", "queued"))
    about = (decision.version, decision.evidence_digest)
    return next((line for line in lines if (line.version, line.evidence_digest) == about), None)


def _started(
    lake: Lake,
    decision: Decision,
    promotion: Promotion,
    block: Stepwise,
    rollouts: RolloutSnapshot,
    *,
    alone: bool = False,
) -> RolloutLine:
    """Write the first line of a rollout; `promotion` is what its end would be."""
    model, ledger = decision.model, lake.rollouts(decision.model)
    settings = rollout_settings(lake, block, decision.version, decision.evidence_digest, model=model, alone=alone)
    if rollouts.running is not None:
        rollouts = _superseded(lake, decision, rollouts.running, rollouts, by=promotion.by)
    reason = " ".join(str(reason) for reason in decision.reasons)
    first = max(promotion.effective_from, *(line.effective_from for line in rollouts.lines), date.min)
    line = replace(_line(promotion, "started", reason=reason, effective_from=first), settings=json.dumps(settings))
    try:
        return _append(lake, line, seen=rollouts).lines[-1]
    except LedgerConflict:
        there = _line_of(ledger.read(), decision)  # the same task, run twice at once
        if there is None:
            raise
        return there


def _promotion_alone(lake: Lake, decision: Decision, artifact_digest: str, *, by: str) -> Promotion:
    check_files_of(lake, decision.model, decision.version, artifact_digest)
    decided_at = datetime.now(UTC)
    return Promotion(
        model=decision.model,
        version=decision.version,
        trained_until=decision.as_of,
        effective_from=max(effective_from(lake, decision.model, decided_at=decided_at), decision.as_of),
        decided_at=decided_at,
        by=by,
        artifact_digest=artifact_digest,
        evidence_digest=decision.evidence_digest,
    )


def _line(promotion: Promotion, kind: Kind, *, reason: str, effective_from: date) -> RolloutLine:
    return RolloutLine(
        model=promotion.model,
        version=promotion.version,
        kind=kind,
        trained_until=promotion.trained_until,
        effective_from=effective_from,
        decided_at=promotion.decided_at,
        by=promotion.by,
        artifact_digest=promotion.artifact_digest,
        evidence_digest=promotion.evidence_digest,
        reason=reason,
    )


def rollout_settings(
    lake: Lake, block: Stepwise, version: int, evidence_digest: str, *, model: str, alone: bool = False
) -> dict[str, Any]:
    """What a rollout that starts now goes by to its end, whatever the catalog says later.

    Args:
        alone: there is no champion: it serves nothing.
    Raises:
        TooFewUnits: the smallest share would be less than one unit.
    """
    unit = block.unit or lake.model(model).entity
    plain = block.model_dump(mode="json", by_alias=True)
    salt = hashlib.sha256(f"{model}/{version}/{evidence_digest}".encode()).hexdigest()[:16]
    if alone:
        return {**plain, "unit": list(unit), "salt": salt, "steps": [{"share": 0.0}], "alone": True}
    units, sizes = units_and_groups(lake, model, unit, block.by)
    steps = block.planned(sizes)
    smallest = min((step["share"] for step in steps if step["share"] and not step.get("groups")), default=1.0)
    if units < ceil(1 / smallest):
        raise TooFewUnits(
            f"the rollout of {model} version {version} was not started: a share of {smallest:.3g} needs "
            f"{ceil(1 / smallest)} units, and the newest scored night has {units} ({', '.join(unit)}). Nothing was "
            "written, the champion stays.\n"
            "  Name smaller units (`rollout.unit`), begin with a larger share (`rollout.steps`), or take the strategy "
            "shadow or blue_green. Then clear this task."
        )
    return {**plain, "unit": list(unit), "salt": salt, "steps": steps}


def _superseded(
    lake: Lake, decision: Decision, running: Rollout, rollouts: RolloutSnapshot, *, by: str
) -> RolloutSnapshot:
    reason = f"version {decision.version} passed the gate and takes its place"
    night = next_night(lake, decision.model, running)
    line = following(running, "abandoned", by=by, reason=reason, effective_from=night)
    return _append(lake, line, seen=rollouts)


def _append(lake: Lake, line: RolloutLine, *, seen: RolloutSnapshot) -> RolloutSnapshot:
    """Add a line to the ledger, then to SQL. Where SQL does not answer the line counts all the same, since it must not
    be written twice: the next night's end, or the watch, projects it.
    """
    written_lines = lake.rollouts(line.model).append(line, seen=seen)
    try:
        project_rollouts(lake, line.model, seen=written_lines)
    except SQLAlchemyError as error:
        log.warning("%s: pages do not show the rollout's newest line yet. %s", line.model, error)
    return written_lines


# ---- while it goes on ----------------------------------------------------------------------------------------------


def next_night(lake: Lake, model: str, rollout: Rollout) -> date:
    """First night that a line written now may count for: none that has predictions, none before the rollout's last."""
    return max(effective_from(lake, model), *(line.effective_from for line in rollout.lines))


def advance(lake: Lake, model: str, *, by: str, reason: str, night: date | None = None) -> RolloutLine:
    """Go to the next step, from the next night on.

    Args:
        night: the scored night whose monitoring decided; None: a person did.
    Raises:
        NoRollout: none goes on. LastStep: there is no further step.
        LedgerConflict: another line was written in between; nothing is written.
    """

    def next_line(rollout: Rollout, first: date) -> RolloutLine:
        if rollout.step + 1 >= len(rollout.steps):
            raise LastStep(
                f"{model}: the rollout of version {rollout.version} is in its last step. Nothing was written. Finish "
                f"it (`python -m cli rollout {model} finish`), or roll it back."
            )
        return following(
            rollout, "advanced", by=by, reason=reason, effective_from=first, night=night, step=rollout.step + 1
        )

    return _moved(lake, model, reason, next_line, night)


def hold(lake: Lake, model: str, *, by: str, reason: str, night: date | None = None) -> RolloutLine:
    """Stay in the step. Held by a person, no monitor moves it forward until a person does; it may still be rolled back.

    Raises:
        as `advance`.
    """
    return _moved(
        lake,
        model,
        reason,
        lambda rollout, first: following(rollout, "held", by=by, reason=reason, effective_from=first, night=night),
        night,
    )


def finish(lake: Lake, model: str, *, by: str, reason: str, night: date | None = None) -> RolloutLine:
    """Make the challenger champion, from the next night on.

    Raises:
        as `advance`. ModelFilesDamaged: its files are missing or were changed; nothing is written.
    """

    def last_line(rollout: Rollout, first: date) -> RolloutLine:
        if rollout.settings.get("alone"):
            raise NoRollout(
                f"{model} version {rollout.version} runs along without a champion because the gate refused it. Nothing "
                f"was written. Train again (`{model}_train`): the first version that passes the gate becomes champion."
            )
        check_files_of(lake, model, rollout.version, rollout.started.artifact_digest)
        return following(rollout, "finished", by=by, reason=reason, effective_from=first, night=night)

    line = _moved(lake, model, reason, last_line, night)
    settle(lake, model, by=by)
    repair_alias(lake, model)
    return line


def roll_back(lake: Lake, model: str, *, by: str, reason: str, night: date | None = None) -> RolloutLine:
    """End the rollout; the champion serves everything from the next night on.

    A `blue_green` rollout that has switched serves the newest scored night by the champion again, too: from the rows
    that are stored, in one commit and one SQL transaction.

    Raises:
        as `advance`.
    """
    newest = _newest_scored(lake, model)

    def back(rollout: Rollout, first: date) -> RolloutLine:
        switched = rollout.strategy == "blue_green" and rollout.steps[rollout.step].share == 1.0
        if switched and newest is not None and newest >= rollout.step_since:
            return following(rollout, "returned", by=by, reason=reason, effective_from=newest, night=night, step=0)
        # The champion is known already: it may serve the next night, whatever has been published for it.
        next_unscored = newest + ONE_DAY if newest is not None else first
        soonest = max(min(first, next_unscored), rollout.started.effective_from)
        return following(rollout, "rolled_back", by=by, reason=reason, effective_from=soonest, night=night)

    line = _moved(lake, model, reason, back, night)
    settle(lake, model, by=by)
    return line


def rollback(
    lake: Lake, model: str, *, by: str, reason: str, version: int | None = None, run_id: str | None = None
) -> Promotion | RolloutLine:
    """End the rollout that goes on, else make a former champion champion again (`training.registry.promotion`)."""
    settle(lake, model, by=by)
    rollouts = lake.rollouts(model).read()
    who = by if run_id is None else f"{by} ({run_id})"
    done = [line for line in rollouts.lines if run_id is not None and line.by == who and line.kind == "rolled_back"]
    if done:
        return done[-1]
    if rollouts.running is not None and version is None:
        return roll_back(lake, model, by=who, reason=reason)
    return promote_former(lake, model, by=by, reason=reason, version=version, run_id=run_id)


def _moved(
    lake: Lake,
    model: str,
    reason: str,
    line_of: Callable[[Rollout, date], RolloutLine],
    night: date | None,
) -> RolloutLine:
    if not reason.strip():
        raise ReasonMissing(
            f"the rollout of {model} was left as it is: no reason was given. Nothing was written. Say why; it is kept "
            "in the ledger."
        )
    ledger = lake.rollouts(model)
    seen = ledger.read()
    decided = [line for line in seen.lines if night is not None and line.night == night]
    if decided:
        return decided[-1]  # the same night's monitoring, run again
    if seen.running is None:
        raise NoRollout(
            f"{model} has no rollout that goes on. Nothing was written. `python -m cli rollout {model} status` shows "
            "the last one."
        )
    return _append(lake, line_of(seen.running, next_night(lake, model, seen.running)), seen=seen).lines[-1]


def _newest_scored(lake: Lake, model: str) -> date | None:
    entry = lake.model(model)
    newest = lake.publications.newest(predictions_table(lake.settings, entry, lake.dataset(entry.dataset)))
    return newest.data_date if newest else None


# ---- what a process left open --------------------------------------------------------------------------------------


def settle(lake: Lake, model: str, *, by: str) -> list[str]:
    """Do what a process that ended in between left open, and start what waits; says what was done.

    The promotion of a finished rollout is written, a blue-green night is served by the champion again, the version that
    waits is started or, judged against another champion than the one now, let go.
    """
    done = [*_promoted(lake, model), *_returned(lake, model, by)]
    return [*done, *_started_next(lake, model, by)]


def _promoted(lake: Lake, model: str) -> list[str]:
    done: list[str] = []
    for _ in range(_ATTEMPTS):
        ledger = lake.ledger(model)
        seen = ledger.read()
        waiting = unsettled(seen, lake.rollouts(model).read())
        if not waiting:
            return done
        try:
            ledger.append(waiting[0], seen=seen)
            done.append(f"version {waiting[0].version} is champion from {waiting[0].effective_from} on")
        except LedgerConflict:
            continue  # another process settled it, or wrote something else: look again
    raise LedgerConflict(
        f"the ledger of {model} changed {_ATTEMPTS} times while a finished rollout was written to it. Clear the task."
    )


def _returned(lake: Lake, model: str, by: str) -> list[str]:
    """End a rollout whose newest night goes back to the champion, once that night is served so."""
    ledger = lake.rollouts(model)
    seen = ledger.read()
    running = seen.running
    if running is None or running.last.kind != "returned":
        return []
    flip(lake, model, running.last.effective_from, run_id=by)
    line = replace(
        following(
            running, "rolled_back", by=running.last.by, reason=running.last.reason,
            effective_from=next_night(lake, model, running),
        ),
        night=running.last.night,
    )  # fmt: skip
    try:
        _append(lake, line, seen=seen)
    except LedgerConflict:
        return []  # another process ends it at this moment
    return [f"{running.last.effective_from} is served by the champion again"]


def _started_next(lake: Lake, model: str, by: str) -> list[str]:
    seen = lake.rollouts(model).read()
    waiting = seen.queued
    block = lake.model(model).stepwise
    if waiting is None or seen.running is not None:
        return []
    decision = stored_decision(lake, model, waiting.evidence_digest)
    try:
        if block is None:
            raise StaleDecision(f"the catalog now promotes {model} at once")
        # Who approved it, and that the gate passed it, was looked at when it was queued; that line is signed.
        check_incumbent(decision, lake.ledger(model).read())
        check_files_of(lake, model, waiting.version, waiting.artifact_digest)
        first = max(effective_from(lake, model), waiting.trained_until)
        promotion = replace(promotion_of(waiting), effective_from=first, decided_at=datetime.now(UTC))
        line = _started(lake, decision, promotion, block, seen)
    except (StaleDecision, ModelFilesDamaged, TooFewUnits) as error:
        reason = str(error).splitlines()[0]
        dropped = replace(waiting, kind="dropped", by=by, reason=reason, decided_at=datetime.now(UTC), sequence=0)
        _append(lake, dropped, seen=seen)
        return [f"version {waiting.version}, which waited, was let go: {reason}"]
    return [f"the rollout of version {line.version}, which waited, starts on {line.effective_from}"]

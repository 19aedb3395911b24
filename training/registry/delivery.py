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
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from math import ceil
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from config.calendar import ONE_DAY
from config.catalog.rollout import Stepwise
from config.errors import NightfleetError
from lake.assignment import CHALLENGER, CHAMPION, scored_by
from lake.lake import Lake
from lake.ledger import Promotion
from lake.lineage import Publication
from lake.rollouts import (
    ENDS,
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
from training.registry.approval import DecisionNotFound, ReasonMissing, stored_decision
from training.registry.decision import Decision, DecisionDamaged, check_signed, read_decisions
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


class RolloutMovedOn(NightfleetError):
    """The rollout is no longer as the person who acts on it saw it."""


@dataclass(frozen=True)
class _Asked:
    """Who wants a rollout moved, and why.

    Attributes:
        night: the scored night whose monitoring decided; None: a person did.
        run_id: the run on whose behalf it is done.
        version, step: the rollout that is meant, as whoever asks saw it; None: however it is.
    """

    by: str
    reason: str
    night: date | None
    run_id: str | None
    version: int | None
    step: int | None = None

    @property
    def told(self) -> dict[str, Any]:
        """What the ledger's line says of it."""
        by = self.by if self.run_id is None else f"{self.by} ({self.run_id})"
        return {"by": by, "reason": self.reason.strip(), "night": self.night}


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
    model = decision.model
    settle(lake, model, by=by)
    seen, rollouts = lake.ledger(model).read(), lake.rollouts(model).read()
    block = lake.model(model).stepwise
    there = _line_of(rollouts, decision)
    if there is not None and (there.kind != "dropped" or _newest_under_way(rollouts) > decision.version):
        return there
    if decision.verdict != "promote":
        if seen.newest is None and block is not None and block.refused_first:
            return _started_alone(lake, decision, registered, block, rollouts, by=by)
        return promote(lake, decision, registered, by=by)
    if written(seen, decision) is not None:
        return promote(lake, decision, registered, by=by)
    check_same(decision, registered)
    promotion = checked_promotion(lake, decision, registered.artifact_digest, by=by, seen=seen)
    if seen.newest is None or block is None:
        if rollouts.running is not None:
            _superseded(lake, promotion, rollouts.running, rollouts)
        return promote(lake, decision, registered, by=by)
    if rollouts.running is not None and block.when_busy == "queue":
        return _queued(lake, promotion, rollouts.running, rollouts)
    return _started(lake, decision, promotion, block, rollouts)


def _line_of(rollouts: RolloutSnapshot, decision: Decision) -> RolloutLine | None:
    """The newest line that started, queued, or let go this version on this evidence."""
    lines = (line for line in reversed(rollouts.lines) if line.kind in ("started", "queued", "dropped"))
    about = (decision.version, decision.evidence_digest)
    return next((line for line in lines if (line.version, line.evidence_digest) == about), None)


def _newest_under_way(rollouts: RolloutSnapshot) -> int:
    """The highest version that takes over or waits to, 0 where none does."""
    running = [rollouts.running.version] if rollouts.running is not None else []
    waiting = [rollouts.queued.version] if rollouts.queued is not None else []
    return max([*running, *waiting], default=0)


def _queued(lake: Lake, promotion: Promotion, running: Rollout, rollouts: RolloutSnapshot) -> RolloutLine:
    """Let a passed challenger wait for the end of another's rollout; whoever waited before is let go."""
    if rollouts.queued is not None:
        rollouts = _let_go(
            lake, rollouts.queued, rollouts, by=promotion.by, reason=f"version {promotion.version} waits in its place"
        )
    reason = f"waits for the rollout of version {running.version}"
    line = _line(promotion, "queued", reason=reason, effective_from=promotion.effective_from)
    return _append(lake, line, seen=rollouts).lines[-1]


def _let_go(lake: Lake, waiting: RolloutLine, rollouts: RolloutSnapshot, *, by: str, reason: str) -> RolloutSnapshot:
    line = replace(waiting, kind="dropped", by=by, reason=reason, decided_at=datetime.now(UTC), sequence=0)
    return _append(lake, line, seen=rollouts)


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
    waiting = rollouts.queued
    if waiting is not None and waiting.version != decision.version:
        reason = f"version {decision.version} takes over before it could start"
        rollouts = _let_go(lake, waiting, rollouts, by=promotion.by, reason=reason)
    if rollouts.running is not None:
        rollouts = _superseded(lake, promotion, rollouts.running, rollouts)
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


def _started_alone(
    lake: Lake,
    decision: Decision,
    registered: Registered,
    block: Stepwise,
    rollouts: RolloutSnapshot,
    *,
    by: str,
) -> RolloutLine:
    """Let a refused version score and serve nothing; nobody is asked to approve what is not in service."""
    check_same(decision, registered)
    check_signed(lake, decision)
    check_files_of(lake, decision.model, decision.version, registered.artifact_digest)
    decided_at = datetime.now(UTC)
    alone = Promotion(
        model=decision.model,
        version=decision.version,
        trained_until=decision.as_of,
        effective_from=max(effective_from(lake, decision.model, decided_at=decided_at), decision.as_of),
        decided_at=decided_at,
        by=by,
        artifact_digest=registered.artifact_digest,
        evidence_digest=decision.evidence_digest,
    )
    return _started(lake, decision, alone, block, rollouts, alone=True)


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
    steps = block.planned({})
    shares = [step["share"] for step in steps if 0 < step["share"] < 1]
    if shares or block.by is not None:
        units, sizes = units_and_groups(lake, model, unit, block.by)
        needed = ceil(1 / min(shares, default=1.0))
        if units < needed:
            raise TooFewUnits(
                f"the rollout of {model} version {version} was not started: a share of {min(shares, default=1.0):.3g} "
                f"needs {needed} units, and the newest scored night has {units} ({', '.join(unit)}). Nothing was "
                "written, the champion stays.\n"
                "  Name smaller units (`rollout.unit`), begin with a larger share (`rollout.steps`), or take the "
                "strategy shadow or blue_green. Then clear this task."
            )
        steps = block.planned(sizes)
    return {**plain, "unit": list(unit), "salt": salt, "steps": steps}


def _superseded(lake: Lake, promotion: Promotion, running: Rollout, rollouts: RolloutSnapshot) -> RolloutSnapshot:
    """End a rollout for another version's sake, which is delivered next."""
    reason = f"version {promotion.version} takes its place"
    night = next_night(lake, promotion.model, running)
    line = following(running, "abandoned", by=promotion.by, reason=reason, effective_from=night)
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


def advance(
    lake: Lake,
    model: str,
    *,
    by: str,
    reason: str,
    night: date | None = None,
    run_id: str | None = None,
    version: int | None = None,
    step: int | None = None,
) -> RolloutLine:
    """Go to the next step, from the next night on.

    Args:
        night: the scored night whose monitoring decided; None: a person did. The same night decides once.
        run_id: run on whose behalf it is done; the same run again finds its line and writes nothing.
        version: the challenger that is meant; None: whichever takes over now.
        step: the step that is to be left, 0 for the first; None: whichever holds.
    Raises:
        ReasonMissing: the reason is empty. NoRollout: none goes on. LastStep: there is no further step.
        RolloutMovedOn: another version takes over, or the step was left meanwhile. Nothing is written.
        LedgerConflict: another line was written in between; nothing is written.
    """
    asked = _Asked(by, reason, night, run_id, version, step)

    def next_line(rollout: Rollout, first: date) -> RolloutLine:
        if rollout.step + 1 >= len(rollout.steps):
            raise LastStep(
                f"{model}: the rollout of version {rollout.version} is in its last step. Nothing was written. Finish "
                f"it (`python -m cli rollout {model} finish`), or roll it back."
            )
        return following(rollout, "advanced", effective_from=first, step=rollout.step + 1, **asked.told)

    return _moved(lake, model, asked, next_line)


def hold(
    lake: Lake,
    model: str,
    *,
    by: str,
    reason: str,
    night: date | None = None,
    run_id: str | None = None,
    version: int | None = None,
) -> RolloutLine:
    """Stay in the step. Held by a person, no monitor moves it forward until a person does; it may still be rolled back.

    Args and Raises:
        as `advance`.
    """
    asked = _Asked(by, reason, night, run_id, version)
    return _moved(
        lake, model, asked, lambda rollout, first: following(rollout, "held", effective_from=first, **asked.told)
    )


def finish(
    lake: Lake,
    model: str,
    *,
    by: str,
    reason: str,
    night: date | None = None,
    run_id: str | None = None,
    version: int | None = None,
) -> RolloutLine:
    """Make the challenger champion, from the next night on.

    Args and Raises:
        as `advance`. ModelFilesDamaged: its files are missing or were changed; nothing is written.
    """
    asked = _Asked(by, reason, night, run_id, version)

    def last_line(rollout: Rollout, first: date) -> RolloutLine:
        if rollout.settings.get("alone"):
            raise NoRollout(
                f"{model} version {rollout.version} runs along without a champion because the gate refused it. Nothing "
                f"was written. Train again (`{model}_train`): the first version that passes the gate becomes champion."
            )
        check_files_of(lake, model, rollout.version, rollout.started.artifact_digest)
        return following(rollout, "finished", effective_from=first, **asked.told)

    line = _moved(lake, model, asked, last_line)
    settle(lake, model, by=by)
    repair_alias(lake, model)
    return line


def roll_back(
    lake: Lake,
    model: str,
    *,
    by: str,
    reason: str,
    night: date | None = None,
    run_id: str | None = None,
    version: int | None = None,
) -> RolloutLine:
    """End the rollout; the champion serves everything from the next night on.

    A `blue_green` rollout that has switched serves the newest scored night by the champion again, too: from the rows
    that are stored, in one commit and one SQL transaction.

    Args and Raises:
        as `advance`.
    """
    asked = _Asked(by, reason, night, run_id, version)
    newest = _newest_scored(lake, model)

    def back(rollout: Rollout, first: date) -> RolloutLine:
        if newest is not None and _may_return(rollout, newest):
            return following(rollout, "returned", effective_from=newest.data_date, step=0, **asked.told)
        # The champion is known already: it may serve the next night, whatever has been published for it.
        next_unscored = newest.data_date + ONE_DAY if newest is not None else first
        soonest = max(min(first, next_unscored), rollout.started.effective_from)
        return following(rollout, "rolled_back", effective_from=soonest, **asked.told)

    line = _moved(lake, model, asked, back)
    settle(lake, model, by=by)
    return line


def rollback(
    lake: Lake, model: str, *, by: str, reason: str, version: int | None = None, run_id: str | None = None
) -> Promotion | RolloutLine:
    """End the rollout that goes on, else make a former champion champion again (`training.registry.promotion`).

    Where a former champion is named, it becomes champion, and the rollout, which was judged against another one, ends.
    """
    settle(lake, model, by=by)
    rollouts = lake.rollouts(model).read()
    done = _asked_before(rollouts, run_id)
    if done is not None:
        return done
    if rollouts.running is not None and version is None:
        return roll_back(lake, model, by=by, reason=reason, run_id=run_id)
    line = promote_former(lake, model, by=by, reason=reason, version=version, run_id=run_id)
    running = lake.rollouts(model).read().running
    if running is not None and running.started.decided_at <= line.decided_at:
        roll_back(lake, model, by=by, reason=reason, run_id=run_id, version=running.version)
    return line


ACTIONS = ("advance", "hold", "finish", "rollback")


def act(
    lake: Lake,
    model: str,
    action: str,
    *,
    by: str,
    reason: str,
    run_id: str | None = None,
    version: int | None = None,
    step: int | None = None,
) -> RolloutLine:
    """Do what a person asks of a rollout, by its name in `ACTIONS`; `step` is of `advance` alone.

    Raises:
        as `advance` and `finish`.
    """
    if action == "advance":
        return advance(lake, model, by=by, reason=reason, run_id=run_id, version=version, step=step)
    move = {"hold": hold, "finish": finish, "rollback": roll_back}[action]
    return move(lake, model, by=by, reason=reason, run_id=run_id, version=version)


def _moved(lake: Lake, model: str, asked: _Asked, line_of: Callable[[Rollout, date], RolloutLine]) -> RolloutLine:
    """Append the line that moves the rollout that goes on; the same night or the same run again finds its line."""
    if not asked.reason.strip():
        raise ReasonMissing(
            f"the rollout of {model} was left as it is: no reason was given. Nothing was written. Say why; it is kept "
            "in the ledger."
        )
    _returned(lake, model, asked.by)
    seen = lake.rollouts(model).read()
    decided = [line for line in seen.lines if asked.night is not None and line.night == asked.night]
    before = decided[-1] if decided else _asked_before(seen, asked.run_id)
    if before is not None:
        return before
    if seen.running is None:
        raise NoRollout(
            f"{model} has no rollout that goes on. Nothing was written. `python -m cli rollout {model} status` shows "
            "the last one."
        )
    _check_seen(model, seen.running, asked)
    return _append(lake, line_of(seen.running, next_night(lake, model, seen.running)), seen=seen).lines[-1]


def _asked_before(rollouts: RolloutSnapshot, run_id: str | None) -> RolloutLine | None:
    """The line that was written on a run's behalf, None where none was."""
    moves = (line for line in rollouts.lines if line.kind in ("advanced", "held", "returned", *ENDS))
    return next((line for line in moves if run_id is not None and line.by.endswith(f"({run_id})")), None)


def _check_seen(model: str, running: Rollout, asked: _Asked) -> None:
    """The rollout is the one that is meant, in the step that is meant; raises RolloutMovedOn."""
    if asked.version in (None, running.version) and asked.step in (None, running.step):
        return
    meant = f"version {asked.version or running.version}"
    meant += "" if asked.step is None else f" in step {asked.step + 1}"
    raise RolloutMovedOn(
        f"{model}: the rollout of {meant} was meant, but version {running.version} is in step {running.step + 1} of "
        f"{len(running.steps)} now. Nothing was written. Look at it again (`python -m cli rollout {model} status`)."
    )


def _newest_scored(lake: Lake, model: str) -> Publication | None:
    entry = lake.model(model)
    return lake.publications.newest(predictions_table(lake.settings, entry, lake.dataset(entry.dataset)))


def _may_return(rollout: Rollout, night: Publication) -> bool:
    """Whether a night can be served by the champion from the rows that are stored: the challenger of a blue-green
    rollout served all of it, and the champion's rows lie beside.
    """
    roles = {assignment.role: assignment for assignment in scored_by(night.data_date, night.details)}
    if rollout.strategy != "blue_green" or roles.keys() != {CHAMPION, CHALLENGER}:
        return False
    challenger = roles[CHALLENGER]
    return challenger.artifact_digest == rollout.started.artifact_digest and challenger.served_share == 1.0


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
    """Start what waits, once nothing runs."""
    seen = lake.rollouts(model).read()
    waiting = seen.queued
    if waiting is None or seen.running is not None:
        return []
    try:
        return [_taken_up(lake, waiting, seen, by)]
    except LedgerConflict:
        return []  # another process does it at this moment


def _taken_up(lake: Lake, waiting: RolloutLine, seen: RolloutSnapshot, by: str) -> str:
    """Deliver the version that waits as the catalog says now, or let it go; returns what was done."""
    model, block = waiting.model, lake.model(waiting.model).stepwise
    ledger = lake.ledger(model)
    promotions = ledger.read()
    try:
        decision = stored_decision(lake, model, waiting.evidence_digest)
        # Who approved it, and that the gate passed it, was looked at when it was queued; that line is signed.
        check_incumbent(decision, promotions)
        check_files_of(lake, model, waiting.version, waiting.artifact_digest)
        first = max(effective_from(lake, model), waiting.trained_until)
        promotion = replace(promotion_of(waiting), effective_from=first, decided_at=datetime.now(UTC))
        if block is not None:
            line = _started(lake, decision, promotion, block, seen)
            return f"the rollout of version {line.version}, which waited, starts on {line.effective_from}"
    except (StaleDecision, DecisionNotFound, DecisionDamaged, ModelFilesDamaged, TooFewUnits) as error:
        reason = str(error).splitlines()[0]
        _let_go(lake, waiting, seen, by=by, reason=reason)
        return f"version {waiting.version}, which waited, was let go: {reason}"
    there = written(promotions, decision)
    if there is None:
        there = ledger.append(promotion, seen=promotions).promotions[-1]
    _let_go(lake, waiting, seen, by=by, reason="it is champion: the catalog now promotes at once")
    repair_alias(lake, model)
    return f"version {there.version}, which waited, is champion from {there.effective_from} on"

"""How versions take over: an append-only Delta table per model, `<model>/rollouts`, every line signed.

A line says what happened to a rollout and from which night on it counts. What a night's rollout is follows from the
lines that count by then, in their order, and from nothing else: so a night that was scored keeps its plan.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa

from config.settings import Settings
from lake.chain import SIGNATURE, ChainName
from lake.ledger import LedgerSnapshot, Promotion
from lake.signed_lines import Lines, SignedLines

# Of a version that waits for another's rollout to end: `queued`, and `dropped` where it is let go. `returned`: the
# newest night of a blue-green rollout goes back to the champion; the rollout's end follows.
Kind = Literal["queued", "dropped", "started", "advanced", "held", "returned", "finished", "rolled_back", "abandoned"]
_WAITING = ("queued", "dropped")
State = Literal["running", "finished", "rolled_back", "abandoned"]
ENDS: tuple[Kind, ...] = ("finished", "rolled_back", "abandoned")

_SCHEMA = pa.schema(
    [
        pa.field("sequence", pa.int64(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("night", pa.date32()),
        pa.field("trained_until", pa.date32(), nullable=False),
        pa.field("effective_from", pa.date32(), nullable=False),
        pa.field("decided_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("by", pa.string(), nullable=False),
        pa.field("artifact_digest", pa.string(), nullable=False),
        pa.field("evidence_digest", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("settings", pa.string(), nullable=False),
        pa.field(SIGNATURE, pa.string()),
    ]
)


@dataclass(frozen=True)
class RolloutLine:
    """One line of the ledger.

    Attributes:
        version, trained_until, artifact_digest: the challenger's, as in `Promotion`.
        step: the step that holds from `effective_from` on, 0 for the first.
        night: the scored night whose monitoring decided; None where a person or the gate did.
        effective_from: first data date it counts for.
        evidence_digest: digest of the gate decision's evidence.
        settings: of a line that starts a rollout, as JSON: the strategy's block of the catalog as it was then, with
            `salt`, `unit` and `steps`; empty in every other line.
    """

    model: str
    version: int
    kind: Kind
    trained_until: date
    effective_from: date
    decided_at: datetime
    by: str
    artifact_digest: str
    evidence_digest: str
    reason: str
    step: int = 0
    night: date | None = None
    settings: str = ""
    sequence: int = 0


@dataclass(frozen=True)
class Step:
    """What the challenger serves in one step: a share of the units, or groups of them.

    Attributes:
        share: units whose position is below it; ignored where groups are given.
        groups: values of the column `by`, whose units it serves.
    """

    share: float
    groups: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Rollout:
    """A rollout as it is in a night.

    Attributes:
        lines: its own, the one that started it first.
    """

    lines: tuple[RolloutLine, ...]

    @property
    def started(self) -> RolloutLine:
        """Its first line; its sequence number names the rollout."""
        return self.lines[0]

    @property
    def last(self) -> RolloutLine:
        """The line that holds."""
        return self.lines[-1]

    @property
    def version(self) -> int:
        """The challenger's number."""
        return self.started.version

    @property
    def state(self) -> State:
        """Whether it goes on, or how it ended."""
        return {"finished": "finished", "rolled_back": "rolled_back", "abandoned": "abandoned"}.get(
            self.last.kind, "running"
        )  # type: ignore[return-value]

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self.state == "running"

    @property
    def paused(self) -> bool:
        """Whether a person holds it: no monitor moves it forward, only back."""
        asked = [line for line in self.lines if line.night is None]
        return asked[-1].kind == "held"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The strategy's block as it was at the start, with `salt`, `unit` and `steps`."""
        settings: dict[str, Any] = json.loads(self.started.settings)
        return settings

    @property
    def strategy(self) -> str:
        """Its name in the catalog."""
        return str(self.settings["strategy"])

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, first to last."""
        return tuple(
            Step(step["share"], None if step.get("groups") is None else tuple(step["groups"]))
            for step in self.settings["steps"]
        )

    @property
    def step(self) -> int:
        """Number of the step that holds, 0 for the first."""
        return self.last.step

    @property
    def step_since(self) -> date:
        """First night of that step."""
        return min(line.effective_from for line in self.lines if line.step == self.step)


@dataclass(frozen=True)
class RolloutSnapshot:
    """The ledger of rollouts as one read found it; every night of a run is resolved from the same snapshot."""

    model: str
    delta_version: int
    lines: tuple[RolloutLine, ...]
    unverified: str | None = None

    def of(self, data_date: date | None = None) -> Rollout | None:
        """The newest rollout that had started by a night, as it was in that night; None where none had. Without a
        night: as it is now, whatever night that counts from.
        """
        lines: list[RolloutLine] = []
        for line in self.lines:
            if line.kind in _WAITING or (data_date is not None and line.effective_from > data_date):
                continue
            lines = [line] if line.kind == "started" else [*lines, line]
        return Rollout(tuple(lines)) if lines else None

    @property
    def all(self) -> tuple[Rollout, ...]:
        """Every rollout, the oldest first, as it is now."""
        groups: list[list[RolloutLine]] = []
        for line in self.lines:
            if line.kind == "started":
                groups.append([line])
            elif line.kind not in _WAITING:
                groups[-1].append(line)
        return tuple(Rollout(tuple(group)) for group in groups)

    @property
    def running(self) -> Rollout | None:
        """The rollout that goes on now."""
        newest = self.of()
        return newest if newest is not None and newest.running else None

    @property
    def queued(self) -> RolloutLine | None:
        """The newest version that waits for the running rollout's end, None where none waits."""
        newest = max((line for line in self.lines if line.kind == "queued"), key=lambda q: q.sequence, default=None)
        if newest is None:
            return None
        later = (line for line in self.lines if line.sequence > newest.sequence)
        left = any(line.kind in ("started", "dropped") and same(line, newest) for line in later)
        return None if left else newest


def same(line: RolloutLine, other: RolloutLine) -> bool:
    """Whether two lines are about one version on one evidence."""
    return (line.version, line.evidence_digest) == (other.version, other.evidence_digest)


class RolloutLedger:
    """Reads and appends the rollouts of one model."""

    def __init__(self, settings: Settings, model: str) -> None:
        self._model = model
        self._lines = SignedLines(settings, ChainName(model, "rollouts"), _SCHEMA)

    def read(self) -> RolloutSnapshot:
        """All lines up to now.

        Raises:
            LedgerUntrusted: a line is not ours; names it. Or lines are lacking that were seen (`LedgerCut`).
        """
        return self._snapshot(self._lines.read())

    def accept(self) -> tuple[int, int]:
        """As `Ledger.accept`."""
        return self._lines.accept()

    def append(self, line: RolloutLine, *, seen: RolloutSnapshot) -> RolloutSnapshot:
        """Add one line, provided that the ledger still is what the caller saw.

        Raises:
            LedgerConflict: another line was written since `seen` was read; nothing is written.
            LedgerUntrusted: a line that is there is not ours; nothing is written.
            MissingSecret: there is no key to sign with; nothing is written.
        """
        plain = {**line.__dict__, "decided_at": line.decided_at.astimezone(UTC)}
        lines = Lines(seen.delta_version, tuple(one.__dict__ for one in seen.lines), seen.unverified)
        return self._snapshot(self._lines.append(plain, seen=lines))

    def _snapshot(self, read: Lines) -> RolloutSnapshot:
        lines = tuple(RolloutLine(**line) for line in read.lines)
        return RolloutSnapshot(self._model, read.delta_version, lines, read.unverified)


def following(
    rollout: Rollout, kind: Kind, *, by: str, reason: str, effective_from: date, **changed: Any
) -> RolloutLine:
    """The line that comes after a rollout's last one."""
    return replace(
        rollout.last,
        kind=kind,
        by=by,
        reason=reason,
        effective_from=effective_from,
        decided_at=datetime.now(UTC),
        settings="",
        sequence=0,
        **{"night": None, **changed},
    )


def promotion_of(line: RolloutLine) -> Promotion:
    """The promotion that a finished rollout is."""
    return Promotion(
        model=line.model,
        version=line.version,
        trained_until=line.trained_until,
        effective_from=line.effective_from,
        decided_at=line.decided_at,
        by=line.by,
        artifact_digest=line.artifact_digest,
        evidence_digest=line.evidence_digest,
    )


def unsettled(ledger: LedgerSnapshot, rollouts: RolloutSnapshot) -> tuple[Promotion, ...]:
    """Promotions of finished rollouts that the ledger of promotions does not have yet: a process ended in between."""
    there = {promotion_key(p) for p in ledger.promotions}
    finished = [promotion_of(line) for line in rollouts.lines if line.kind == "finished"]
    return tuple(p for p in finished if promotion_key(p) not in there)


def promotion_key(promotion: Promotion) -> tuple[str, int, str, date]:
    """What a finished rollout's line has in common with its promotion."""
    return promotion.kind, promotion.version, promotion.evidence_digest, promotion.effective_from


def settled(ledger: LedgerSnapshot, rollouts: RolloutSnapshot) -> LedgerSnapshot:
    """The ledger of promotions as it is once those of finished rollouts are written."""
    after = max((p.sequence for p in ledger.promotions), default=0)
    waiting: Sequence[Promotion] = unsettled(ledger, rollouts)
    numbered = (replace(p, sequence=after + number) for number, p in enumerate(waiting, 1))
    return replace(ledger, promotions=(*ledger.promotions, *numbered)) if waiting else ledger

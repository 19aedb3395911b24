"""Who was champion when: an append-only Delta table per model, every line signed. MLflow's alias is its projection."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from config.errors import NightfleetError
from config.settings import Settings
from lake.chain import SIGNATURE, ChainName
from lake.delta import table_location
from lake.signed_lines import Lines, SignedLines, stored_lines


class NoChampion(NightfleetError):
    """No promotion has taken effect by that night."""


_SCHEMA = pa.schema(
    [
        pa.field("sequence", pa.int64(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("trained_until", pa.date32(), nullable=False),
        pa.field("effective_from", pa.date32(), nullable=False),
        pa.field("decided_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("by", pa.string(), nullable=False),
        pa.field("artifact_digest", pa.string(), nullable=False),
        pa.field("evidence_digest", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field(SIGNATURE, pa.string()),  # none in lines of before: see `lake.chain`
    ]
)


@dataclass(frozen=True)
class Promotion:
    """One line of the ledger.

    Attributes:
        version: MLflow's version number.
        trained_until: last data date (as-of) whose knowledge the model was trained, tested and judged on.
        effective_from: first data date it may score.
        artifact_digest: names the folder of verified model bytes, `<model>/<artifact_digest>` among the artifacts.
        evidence_digest: digest of the gate decision's evidence.
        reason: why a person rolled back; empty for a promotion, whose reasons stand in the decision.
    """

    model: str
    version: int
    trained_until: date
    effective_from: date
    decided_at: datetime
    by: str
    artifact_digest: str
    evidence_digest: str
    kind: Literal["promotion", "rollback"] = "promotion"
    sequence: int = 0
    reason: str = ""


@dataclass(frozen=True)
class LedgerSnapshot:
    """The ledger as one read found it; every night of a run is resolved from the same snapshot.

    Attributes:
        unverified: why nobody vouches for the lines, None where their signatures were verified. A process without the
            key may show them; it can neither score nor promote by them, both of which need the key.
    """

    model: str
    delta_version: int
    promotions: tuple[Promotion, ...]
    unverified: str | None = None

    def champion_of(self, data_date: date) -> Promotion:
        """The promotion in force on that night: of those effective by then, the one with the highest `(effective_from,
        sequence)`.

        Raises:
            NoChampion: none had taken effect, or its training data lie after that night.
        """
        eligible = [p for p in self.promotions if p.effective_from <= data_date and p.trained_until <= data_date]
        if not eligible:
            first = min((p.effective_from for p in self.promotions), default=None)
            known = f"its first champion takes effect on {first}" if first else "it never had one"
            raise NoChampion(
                f"{self.model} has no champion for data date {data_date}: {known}.\n"
                f"  Train and promote one for that date (`{self.model}_train` with partition key {data_date}), or "
                "score a later night."
            )
        return max(eligible, key=lambda p: (p.effective_from, p.sequence))

    @property
    def newest(self) -> Promotion | None:
        """The promotion that is in force from now on."""
        return max(self.promotions, key=lambda p: (p.effective_from, p.sequence), default=None)


class Ledger:
    """Reads and appends promotions of one model."""

    def __init__(self, settings: Settings, model: str) -> None:
        self._model = model
        self._lines = SignedLines(settings, ChainName(model), _SCHEMA, lambda: _all_lines(settings))

    def read(self) -> LedgerSnapshot:
        """All promotions up to now.

        Raises:
            LedgerUntrusted: a line is not ours; names it. Or lines are lacking that were seen (`LedgerCut`).
        """
        return self._snapshot(self._lines.read())

    def accept(self) -> tuple[int, int]:
        """Take the ledger for whole as it is now, after it was restored from a backup; lines that were seen before, and
        lines there are.

        Raises:
            LedgerUntrusted: a line is not ours.
        """
        return self._lines.accept()

    def append(self, promotion: Promotion, *, seen: LedgerSnapshot) -> LedgerSnapshot:
        """Add one promotion, provided that the ledger still is what the caller saw.

        Raises:
            LedgerConflict: another promotion was written since `seen` was read; nothing is written.
            LedgerUntrusted: a line that is there is not ours; nothing is written.
            MissingSecret: there is no key to sign with; nothing is written.
        """
        line = {**promotion.__dict__, "decided_at": promotion.decided_at.astimezone(UTC)}
        lines = Lines(seen.delta_version, tuple(p.__dict__ for p in seen.promotions), seen.unverified)
        return self._snapshot(self._lines.append(line, seen=lines))

    def _snapshot(self, read: Lines) -> LedgerSnapshot:
        promotions = tuple(Promotion(**line) for line in read.lines)
        return LedgerSnapshot(self._model, read.delta_version, promotions, read.unverified)


def _all_lines(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Of every ledger of promotions that the lake holds."""
    tables = {
        folder.parent.name: table_location(settings, f"{folder.parent.name}/promotions").open()
        for folder in sorted(Path(table_location(settings).uri).glob("*/promotions"))
    }
    return {model: stored_lines(table, _SCHEMA) for model, table in tables.items() if table is not None}

"""Who was champion when: an append-only Delta table per model, every line signed. MLflow's alias is its projection."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Field
from deltalake.exceptions import CommitFailedError
from deltalake.schema import PrimitiveType

from config.errors import NightfleetError, TransientError
from config.settings import MissingSecret, Settings
from lake.chain import (
    SIGNATURE,
    Head,
    LedgerUntrusted,
    check_head,
    forget_head,
    read_head,
    read_seal,
    seal_former,
    seal_path,
    sign_line,
    verify_lines,
)
from lake.delta import check_files, file_sizes, sync_data_files, table_location, write_data_file
from lake.signature import signing_key
from lake.vacuum import writing

log = logging.getLogger(__name__)


class NoChampion(NightfleetError):
    """No promotion has taken effect by that night."""


class LedgerConflict(TransientError):
    """Somebody else wrote to the ledger in between."""


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
        self._settings = settings
        self._location = table_location(settings, f"{model}/promotions")
        self._model = model

    def read(self) -> LedgerSnapshot:
        """All promotions up to now.

        Raises:
            LedgerUntrusted: a line is not ours; names it. Or lines are lacking that were seen (`LedgerCut`).
        """
        head = read_head(self._settings, self._model)
        table = self._location.open()
        lines = [] if table is None else _lines(table)
        try:
            self._verify(lines, head)
            unverified = None
        except MissingSecret as error:
            unverified = f"the signatures of the ledger of {self._model} were not verified. {error}"
            log.warning("%s", unverified)
        promotions = tuple(
            Promotion(**{name: value for name, value in line.items() if name != SIGNATURE}) for line in lines
        )
        return LedgerSnapshot(self._model, -1 if table is None else table.version(), promotions, unverified)

    def _verify(self, lines: list[dict[str, Any]], head: Head | None) -> None:
        signing_key(self._settings)
        seal = read_seal(self._settings)
        if seal is None:
            try:
                seal = seal_former(self._settings, _all_lines(self._settings))
            except OSError as error:
                if any(line[SIGNATURE] is None for line in lines):
                    raise LedgerUntrusted(
                        f"the ledger of {self._model} has lines from before lines were signed, which cannot be sealed "
                        f"in {seal_path(self._settings)}: {error}. Nothing was decided by them.\n"
                        "  Make that folder writable, then run `python -m cli doctor` once."
                    ) from error
                seal = {}
        verify_lines(self._settings, self._model, lines, seal)
        check_head(self._settings, self._model, lines, head)

    def accept(self) -> tuple[int, int]:
        """Take the ledger for whole as it is now, after it was restored from a backup; lines that were seen before, and
        lines there are.

        Raises:
            LedgerUntrusted: a line is not ours.
        """
        before = forget_head(self._settings, self._model)
        return before.lines if before else 0, len(self.read().promotions)

    def append(self, promotion: Promotion, *, seen: LedgerSnapshot) -> LedgerSnapshot:
        """Add one promotion, provided that the ledger still is what the caller saw.

        Raises:
            LedgerConflict: another promotion was written since `seen` was read; nothing is written.
            LedgerUntrusted: a line that is there is not ours; nothing is written.
            MissingSecret: there is no key to sign with; nothing is written.
        """
        signing_key(self._settings)
        head = read_head(self._settings, self._model)
        table = self._location.open()
        if table is None:
            table = self._location.create(
                _SCHEMA,
                configuration={"delta.appendOnly": "true", "delta.logRetentionDuration": "interval 3650 days"},
            )
        # Two that create the ledger at once leave an empty version more: where none was seen, its lines count, not its
        # versions.
        if table.file_uris() if seen.delta_version < 0 else table.version() != seen.delta_version:
            raise LedgerConflict(
                f"the ledger of {self._model} changed while this decision was made. Nothing was written. Decide again "
                "on what is there now."
            )
        sequence = max((p.sequence for p in seen.promotions), default=0) + 1
        row = {**promotion.__dict__, "sequence": sequence, "decided_at": promotion.decided_at.astimezone(UTC)}
        before = _lines(table)
        self._verify(before, head)
        row[SIGNATURE] = sign_line(self._settings, before, row)
        try:
            if SIGNATURE not in {field.name for field in table.schema().fields}:
                table.alter.add_columns(Field(SIGNATURE, PrimitiveType("string")))
            root = Path(self._location.uri)
            with writing(self._location):
                line = write_data_file(root, _SCHEMA, pa.Table.from_pylist([row], schema=_SCHEMA).to_batches(), {})
                sync_data_files(root, [line])
                version = table.version() + 1
                table.create_write_transaction(
                    [line], mode="append", schema=_SCHEMA, commit_properties=CommitProperties(max_commit_retries=0)
                )
        except CommitFailedError as error:
            raise LedgerConflict(
                f"the ledger of {self._model} changed while this decision was written. Nothing was written. Decide "
                "again."
            ) from error
        self._location.sync_commits([version - 1, version])  # the one before may have added the signature's column
        return self.read()


def _lines(table: DeltaTable) -> list[dict[str, Any]]:
    """Every line as it is stored, in order."""
    check_files(table.file_uris(), file_sizes(table))
    # Not `to_pyarrow_table`: the dataset scanner behind it now and then aborts the process as the interpreter ends.
    parts = [pq.read_table(uri, schema=_SCHEMA) for uri in table.file_uris()]
    lines: list[dict[str, Any]] = pa.concat_tables([_SCHEMA.empty_table(), *parts]).sort_by("sequence").to_pylist()
    return lines


def _all_lines(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Of every ledger that the lake holds."""
    tables = {
        folder.parent.name: table_location(settings, f"{folder.parent.name}/promotions").open()
        for folder in sorted(Path(table_location(settings).uri).glob("*/promotions"))
    }
    return {model: _lines(table) for model, table in tables.items() if table is not None}

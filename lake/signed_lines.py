"""An append-only Delta table of signed lines: what the ledgers of promotions and of rollouts are made of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Field
from deltalake.exceptions import CommitFailedError
from deltalake.schema import PrimitiveType

from config.errors import TransientError
from config.settings import MissingSecret, Settings
from lake.chain import (
    SIGNATURE,
    ChainName,
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


class LedgerConflict(TransientError):
    """Somebody else wrote to the ledger in between."""


@dataclass(frozen=True)
class Lines:
    """A ledger as one read found it.

    Attributes:
        delta_version: -1 where it was never written.
        lines: in order, without their signatures.
        unverified: why nobody vouches for the lines, None where their signatures were verified. A process without the
            key may show them; it can neither score nor promote by them, both of which need the key.
    """

    delta_version: int
    lines: tuple[dict[str, Any], ...]
    unverified: str | None


class SignedLines:
    """Reads and appends the lines of one ledger of a model.

    Args:
        schema: of a line; `sequence`, `kind`, `version` and `artifact_digest` are among its columns, the last is the
            signature.
        former: reads the lines of every ledger of the installation that may begin with unsigned ones; None for a ledger
            that always had its lines signed.
    """

    def __init__(
        self,
        settings: Settings,
        chain: ChainName,
        schema: pa.Schema,
        former: Callable[[], Mapping[str, list[dict[str, Any]]]] | None = None,
    ) -> None:
        self._settings, self._chain, self._schema, self._former = settings, chain, schema, former
        self._location = table_location(settings, chain.table)

    def read(self) -> Lines:
        """All lines up to now.

        Raises:
            LedgerUntrusted: a line is not ours; names it. Or lines are lacking that were seen (`LedgerCut`).
        """
        head = read_head(self._settings, self._chain)
        table = self._location.open()
        lines = [] if table is None else stored_lines(table, self._schema)
        try:
            self._verify(lines, head)
            unverified = None
        except MissingSecret as error:
            unverified = f"the signatures of {self._chain} were not verified. {error}"
            log.warning("%s", unverified)
        plain = ({name: value for name, value in line.items() if name != SIGNATURE} for line in lines)
        return Lines(-1 if table is None else table.version(), tuple(plain), unverified)

    def accept(self) -> tuple[int, int]:
        """Take the ledger for whole as it is now, after it was restored from a backup; lines that were seen before, and
        lines there are.

        Raises:
            LedgerUntrusted: a line is not ours.
        """
        before = forget_head(self._settings, self._chain)
        return before.lines if before else 0, len(self.read().lines)

    def append(self, line: Mapping[str, Any], *, seen: Lines) -> Lines:
        """Add one line, provided that the ledger still is what the caller saw; it is given the next sequence number.

        Raises:
            LedgerConflict: another line was written since `seen` was read; nothing is written.
            LedgerUntrusted: a line that is there is not ours; nothing is written.
            MissingSecret: there is no key to sign with; nothing is written.
        """
        signing_key(self._settings)
        head = read_head(self._settings, self._chain)
        table = self._location.open()
        if table is None:
            table = self._location.create(
                self._schema,
                configuration={"delta.appendOnly": "true", "delta.logRetentionDuration": "interval 3650 days"},
            )
        # Two that create the ledger at once leave an empty version more: where none was seen, its lines count, not its
        # versions.
        if table.file_uris() if seen.delta_version < 0 else table.version() != seen.delta_version:
            raise LedgerConflict(
                f"{self._chain} changed while this decision was made. Nothing was written. Decide again on what is "
                "there now."
            )
        row = {**line, "sequence": max((one["sequence"] for one in seen.lines), default=0) + 1}
        before = stored_lines(table, self._schema)
        self._verify(before, head)
        row[SIGNATURE] = sign_line(self._settings, before, row)
        try:
            if SIGNATURE not in {field.name for field in table.schema().fields}:
                table.alter.add_columns(Field(SIGNATURE, PrimitiveType("string")))
            root = Path(self._location.uri)
            with writing(self._location):
                batches = pa.Table.from_pylist([row], schema=self._schema).to_batches()
                file = write_data_file(root, self._schema, batches, {})
                sync_data_files(root, [file])
                version = table.version() + 1
                table.create_write_transaction(
                    [file],
                    mode="append",
                    schema=self._schema,
                    commit_properties=CommitProperties(max_commit_retries=0),
                )
        except CommitFailedError as error:
            raise LedgerConflict(
                f"{self._chain} changed while this decision was written. Nothing was written. Decide again."
            ) from error
        self._location.sync_commits([version - 1, version])  # the one before may have added the signature's column
        return self.read()

    def _verify(self, lines: list[dict[str, Any]], head: Head | None) -> None:
        signing_key(self._settings)
        seal = read_seal(self._settings)
        if seal is None:
            seal = self._sealed(lines) if self._former else {}
        verify_lines(self._settings, self._chain, lines, seal)
        check_head(self._settings, self._chain, lines, head)

    def _sealed(self, lines: list[dict[str, Any]]) -> dict[str, list[str]]:
        try:
            return seal_former(self._settings, self._former() if self._former else {})
        except OSError as error:
            if any(line[SIGNATURE] is None for line in lines):
                raise LedgerUntrusted(
                    f"{self._chain} has lines from before lines were signed, which cannot be sealed in "
                    f"{seal_path(self._settings)}: {error}. Nothing was decided by them.\n"
                    "  Make that folder writable, then run `python -m cli doctor` once."
                ) from error
            return {}


def stored_lines(table: DeltaTable, schema: pa.Schema) -> list[dict[str, Any]]:
    """Every line as it is stored, in order."""
    check_files(table.file_uris(), file_sizes(table))
    # Not `to_pyarrow_table`: the dataset scanner behind it now and then aborts the process as the interpreter ends.
    parts = [pq.read_table(uri, schema=schema) for uri in table.file_uris()]
    lines: list[dict[str, Any]] = pa.concat_tables([schema.empty_table(), *parts]).sort_by("sequence").to_pylist()
    return lines

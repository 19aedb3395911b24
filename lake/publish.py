"""The one way rows get into a Delta table."""

from __future__ import annotations

import errno
import itertools
import shutil
import uuid
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction

from config.calendar import Interval
from config.errors import NightfleetError, TransientError
from config.masking import shown_row
from lake.delta import sync_data_files, write_data_file
from lake.digest import RowsDigest, held_as_before
from lake.lineage import Lineage, Publication, Publications, commit_metadata
from lake.tables import LakeTable
from lake.vacuum import remove_orphans, writing

_ATTEMPTS = 20
# Opening a table reads every commit since its newest checkpoint.
_CHECKPOINT_EVERY = 20


class SchemaMismatch(NightfleetError):
    """Rows have other columns than the catalog declares."""


class RowsOutsideInterval(NightfleetError):
    """A row's data date lies outside the interval that is published."""


class RowsNotSorted(NightfleetError):
    """Streamed rows are not in strictly rising order of `(data_date, *key)`."""


class DuplicateKey(NightfleetError):
    """Two rows of one partition have the same key."""


class StalePublish(TransientError):
    """The partition is not what the publisher saw when it began: somebody else published in between."""


class WriterPanicked(NightfleetError):
    """The Delta writer broke down in a way that it does not foresee itself."""


class DiskFull(TransientError):
    """There is no room for the rows, or the disk refused them."""


@dataclass(frozen=True)
class Published:
    """Outcome of `publish`: every data date of the interval as it stands now, and which of them this call committed."""

    table: str
    publications: dict[date, Publication]
    committed: tuple[date, ...]

    @property
    def rows(self) -> int:
        """Rows of the whole interval."""
        return sum(p.rows for p in self.publications.values())


def publish(
    publications: Publications,
    table: LakeTable,
    rows: pa.Table | pa.RecordBatchReader,
    interval: Interval,
    *,
    replaces: Mapping[date, str | None],
    lineage: Lineage,
    scratch: Path,
    relabel: Container[date] = (),
) -> Published:
    """Make `rows` the only rows of `interval`, in one commit; commit nothing where they already are.

    Args:
        rows: columns as in `table.schema`, in any column order. A Table is sorted here; a reader must yield rows in
            strictly rising order of `(data_date, *key)` and is never held in memory whole.
        replaces: for each data date of `interval` the digest the caller saw there (`publications.digests`), None for
            an unpublished one. A date whose digest already equals that of `rows` is left alone whatever is said here.
        scratch: folder for the per-try staging file, on the lake's file system.
        relabel: data dates that are committed though their rows may be equal, because they were computed from other
            inputs than recorded.
    Raises:
        SchemaMismatch: a column is missing, unknown or of another type; nothing is written.
        RowsOutsideInterval: a `data_date` lies outside; nothing is written.
        DuplicateKey, RowsNotSorted: rows of one partition share a key, or a reader is out of order; nothing is written.
        StalePublish: a date holds another digest than `replaces` says; nothing is written.
        DiskFull: a disk has no room, or fails; the partitions are what they were.

    A date whose files are missing or damaged is committed again, where the rows have the digest that it was published
    with.
    """
    staging = scratch / f"publish-{uuid.uuid4().hex}"
    with _failures_named(table, staging):
        return _published(publications, table, rows, interval, replaces, lineage, staging, relabel)


def append(
    publications: Publications,
    table: LakeTable,
    rows: pa.Table,
    day: date,
    *,
    held: pa.Table,
    replaces: str | None,
    lineage: Lineage,
    scratch: Path,
) -> None:
    """Add rows to one partition in one commit, whose size does not depend on what is there: its files stay.

    Args:
        held: the rows of the partition, as the caller read them.
        replaces: digest of `held`, None for an unpublished partition.
    Raises:
        SchemaMismatch, RowsOutsideInterval, DuplicateKey: as `publish`; nothing is written.
        StalePublish: the partition holds another digest than `replaces`; nothing is written.
        DiskFull: a disk has no room, or fails; the partition is what it was.
    """
    staging, interval = scratch / f"append-{uuid.uuid4().hex}", Interval.of(day)
    with _failures_named(table, staging):
        staging.mkdir(parents=True)
        try:
            digests = _stage(table, pa.concat_tables([held, rows]), interval, staging / "whole.parquet")
            _stage(table, rows, interval, staging / "rows.parquet")
            delta = table.load_or_create()
            current = publications.current(table, interval, loaded=delta, as_of_version=delta.version()).get(day)
            if (current.digest if current else None) == replaces:
                with suppress(CommitFailedError):
                    added = _write_files(table, staging / "rows.parquet", [day])
                    metadata = commit_metadata(lineage, digests, datetime.now(UTC), len(added))
                    _commit(table, delta, added, None, metadata)
                    return
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    raise StalePublish(f"{table.name} for {day}: another writer came first. Nothing was written. Try again.")


@contextmanager
def _failures_named(table: LakeTable, staging: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, DeltaError) or error.errno not in {errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS}:
            raise
        raise _disk_full(table, staging, error) from error
    except DeltaError as error:
        if "No space left" not in str(error) and "os error" not in str(error):
            raise
        raise _disk_full(table, staging, error) from error
    except BaseException as error:
        # A panic of the Rust below deltalake passes every `except Exception`; its type cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise WriterPanicked(
            f"{table.name}: the Delta writer broke down ({error}). No partition was changed.\n"
            "  A value that it cannot hold may be the reason: compare the newest delivery with those before, then "
            "clear the task."
        ) from error


def _disk_full(table: LakeTable, staging: Path, error: Exception) -> DiskFull:
    return DiskFull(
        f"{table.name} could not be written to {table.location.uri} (staged in {staging.parent}): {error}. No "
        "partition was changed.\n  Make room on that disk, then clear the task."
    )


def _published(
    publications: Publications,
    table: LakeTable,
    rows: pa.Table | pa.RecordBatchReader,
    interval: Interval,
    replaces: Mapping[date, str | None],
    lineage: Lineage,
    staging: Path,
    relabel: Container[date],
) -> Published:
    staging.mkdir(parents=True)
    try:
        staged = staging / "rows.parquet"
        digests = _stage(table, rows, interval, staged)
        for _ in range(_ATTEMPTS):
            delta = table.load_or_create()
            current = publications.current(table, interval, loaded=delta, as_of_version=delta.version())
            changed = [
                day
                for day in interval
                if day not in current or current[day].digest != digests[day][0] or day in relabel
            ]
            for day in changed:
                held = current[day].digest if day in current else None
                if held != replaces.get(day):
                    raise StalePublish(
                        f"{table.name} for {day} holds {_short(held)}, but this run began when it held "
                        f"{_short(replaces.get(day))}: "
                        "another run published in between. Nothing was written. Clear the task to run it on what is "
                        "there now."
                    )
            changed = sorted({*changed, *table.damaged(delta, [day for day in interval if day not in changed])})
            if not changed:
                return Published(table.name, {day: current[day] for day in interval}, ())
            # One DeltaTable for check and write, no retries of its own: whatever was committed since it was loaded
            # makes the write fail.
            remove_orphans(table.location, [Path(table.location.uri, f"data_date={day}") for day in changed])
            with suppress(CommitFailedError), writing(table.location):
                added = _write_files(table, staged, changed)
                written = {day: digests[day] for day in changed}
                _commit(table, delta, added, changed, commit_metadata(lineage, written, datetime.now(UTC), len(added)))
                return Published(table.name, publications.current(table, interval), tuple(changed))
        raise StalePublish(
            f"{table.name} for {interval}: {_ATTEMPTS} commits in a row lost against other writers. Clear the task to "
            "try again."
        )
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _short(digest: str | None) -> str:
    return "nothing" if digest is None else f"digest {digest[:12]}…"


def _write_files(table: LakeTable, staged: Path, changed: list[date]) -> list[AddAction]:
    """The rows of those dates as data files, one a partition, that outlast a power cut: no commit names them yet."""
    root = Path(table.location.uri)
    wanted = pa.array(changed, pa.date32())
    schema = pa.schema([field for field in table.schema if field.name != "data_date"])
    added: list[AddAction] = []
    with pq.ParquetFile(staged) as file:
        batches = (
            batch.filter(pc.is_in(batch["data_date"], value_set=wanted))
            for batch in file.iter_batches(batch_size=131_072)
        )
        parts = (part for batch in batches if batch.num_rows for part in by_date(batch))
        for day, of_day in itertools.groupby(parts, key=lambda part: part[0]):
            values = {"data_date": day.isoformat()}
            added.append(write_data_file(root, schema, (part.select(schema.names) for _, part in of_day), values))
    sync_data_files(root, added)
    return added


def _commit(
    table: LakeTable, delta: DeltaTable, added: list[AddAction], replaced: list[date] | None, metadata: dict[str, str]
) -> None:
    """Commit those files in the place of what those dates hold; None: besides what is there."""
    version = delta.version() + 1  # no retries: this one, or none
    try:
        delta.create_write_transaction(
            [*added],
            mode="append" if replaced is None else "overwrite",
            schema=table.schema,
            partition_by=["data_date"],
            partition_filters=None
            if replaced is None
            else [("data_date", "in", [day.isoformat() for day in replaced])],
            commit_properties=CommitProperties(custom_metadata=metadata, max_commit_retries=0),
        )
    except CommitFailedError:
        for action in added:
            Path(table.location.uri, action.path).unlink(missing_ok=True)
        raise
    table.location.sync_commits([version])
    if version % _CHECKPOINT_EVERY == 0 and (committed := table.load(version)) is not None:
        committed.create_checkpoint()


def _stage(
    table: LakeTable, rows: pa.Table | pa.RecordBatchReader, interval: Interval, staged: Path
) -> dict[date, tuple[str, int]]:
    """Check the rows, write them to `staged`, and return digest and row count of every data date of the interval."""
    digests = {day: RowsDigest(table.schema, table.added) for day in interval}
    with pq.ParquetWriter(staged, table.schema, compression="zstd") as writer:
        previous: pa.RecordBatch | None = None
        for batch in _ordered(table, rows):
            if batch.num_rows == 0:
                continue
            previous = _check_order(table, previous, batch)
            held, begin = held_as_before(batch, table.added), 0
            for day, part in by_date(batch):
                if day not in digests:
                    raise RowsOutsideInterval(
                        f"{table.name}: {part.num_rows} rows have data_date {day}, outside {interval}. Nothing was "
                        "written."
                    )
                digests[day].update(part, held.slice(begin, part.num_rows) if held is not None else None)
                begin += part.num_rows
            writer.write_batch(batch)
    return {day: (digest.hexdigest(), digest.rows) for day, digest in digests.items()}


def _ordered(table: LakeTable, rows: pa.Table | pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    given, needed = rows.schema, table.schema
    missing = [f.name for f in needed if f.name not in given.names]
    unknown = [name for name in given.names if name not in needed.names]
    retyped = [
        f"{f.name} is {given.field(f.name).type}, needs {f.type}"
        for f in needed
        if f.name in given.names
        and given.field(f.name).type != f.type
        and not _widens(given.field(f.name).type, f.type)
    ]
    if missing or unknown or retyped:
        problems = [
            *(f"{name} is missing" for name in missing),
            *(f"{name} is not declared" for name in unknown),
            *retyped,
        ]
        raise SchemaMismatch(
            f"{table.name}: {'; '.join(problems)}. Nothing was written. Fix the catalog or what feeds the table."
        )
    if isinstance(rows, pa.Table):
        rows = rows.select(needed.names).sort_by([(name, "ascending") for name in ("data_date", *table.key)])
        batches: Iterator[pa.RecordBatch] = iter(rows.to_batches(max_chunksize=131_072))
    else:
        batches = (batch.select(needed.names) for batch in rows)
    for batch in batches:
        for field, column in zip(needed, batch.columns, strict=True):
            if not field.nullable and column.null_count:
                raise SchemaMismatch(
                    f"{table.name}: {column.null_count} rows have no {field.name}, which must not be null. Nothing was "
                    "written."
                )
        yield batch.cast(needed)


def _widens(given: pa.DataType, needed: pa.DataType) -> bool:
    """Other spellings of the same type that DuckDB and pandas hand out."""
    if pa.types.is_large_string(given) and pa.types.is_string(needed):
        return True
    return pa.types.is_timestamp(given) and pa.types.is_timestamp(needed) and given.tz is not None


def _check_order(table: LakeTable, previous: pa.RecordBatch | None, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Strictly rising `(data_date, *key)`, across batch borders; nulls sort last. Returns the last row."""
    whole = pa.Table.from_batches([previous, batch] if previous is not None else [batch]).combine_chunks()
    less = equal = None
    for name in ("data_date", *table.key):
        column = whole[name]
        left, right = column.slice(0, len(column) - 1), column.slice(1)
        left_null, right_null = pc.is_null(left), pc.is_null(right)
        same = pc.or_(pc.fill_null(pc.equal(left, right), False), pc.and_(left_null, right_null))
        smaller = pc.or_(pc.fill_null(pc.less(left, right), False), pc.and_(pc.invert(left_null), right_null))
        less = smaller if less is None else pc.or_(less, pc.and_(equal, smaller))
        equal = same if equal is None else pc.and_(equal, same)
    if pc.any(equal, min_count=0).as_py():
        index = pc.index(equal, True).as_py()
        values = {name: whole[name][index].as_py() for name in ("data_date", *table.key)}
        key = shown_row(values, table.personal)
        raise DuplicateKey(
            f"{table.name}: two rows share the key {key}. Nothing was written. Make the key unique where the rows are "
            "made."
        )
    if not pc.all(less, min_count=0).as_py():
        raise RowsNotSorted(
            f"{table.name}: streamed rows are not sorted by ({', '.join(('data_date', *table.key))}). Nothing was "
            "written."
        )
    return batch.slice(batch.num_rows - 1)


def by_date(batch: pa.RecordBatch) -> Iterator[tuple[date, pa.RecordBatch]]:
    """The sorted batch cut at each change of data_date."""
    runs = pc.run_end_encode(batch["data_date"])
    begin = 0
    for end, day in zip(runs.run_ends.to_pylist(), runs.values.to_pylist(), strict=True):
        yield day, batch.slice(begin, end - begin)
        begin = end

"""One table's source as it is now, typed and checked, as a DuckDB view."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from config.calendar import Interval
from config.catalog.data import Dataset, KnownAt, Table
from config.catalog.source import FileSource, HttpSource, SimulationSource, SourceColumn, SqlSource
from config.masking import cause, library_text
from features.sources import file, http, simulation, sql
from features.sources.columns import (
    Difference,
    Rows,
    check_types,
    is_refusal,
    match_names,
    mismatch,
    refusal,
    typed,
)
from features.sources.errors import (
    SourceMissing,
    SourceSqlReachesOutside,
    SourceUnavailable,
    SourceUnreadable,
    failures_named,
)
from features.sources.meter import Meter
from features.sources.values import literal, quoted
from lake.artifact import file_digest
from lake.duck import allow, confine, read_parquet, sql_path
from lake.lake import Lake
from lake.storage import link_or_copy

# A change to how sources are read makes every cached one unknown.
_READER = "3"
_FINGERPRINT_DIGITS = 32
# What stands in a staged file about the columns that the source had and the catalog has not, or the other way round.
_DIFFERENCES = "nf_differences"
# The night whose delivery a row came with, where the rows of several are staged together.
_DELIVERED = "nf__delivered"


@dataclass(frozen=True)
class SourceRead:
    """What `read_source` registered.

    Attributes:
        view: name of the DuckDB view: the table's columns, `known_at_utc`, `nf__natural_date` (the night the row became
            knowable; both null where the row does not say) and `nf__delivered` (the night whose delivery it came with;
            null for a source that is the same every night).
        dated: whether the source delivers night by night.
        fingerprint: digest of the source's bytes and of everything that shapes its rows; equal fingerprints mean equal
            rows. None where no bytes can be compared.
        differences: columns that a delivery has and the catalog has not, or the other way round, where the catalog says
            to warn; by night, None for a source that is the same every night.
    """

    view: str
    dated: bool
    fingerprint: str | None
    differences: Mapping[date | None, tuple[Difference, ...]]


def is_dated(table: Table) -> bool:
    """Whether the table's source delivers night by night, instead of being the same whole every night."""
    match table.source:
        case FileSource():
            return file.is_dated(table.source.uri)
        case SqlSource():
            return sql.is_dated(table.source)
        case HttpSource():
            return http.is_dated(table.source)
        case SimulationSource():
            return True


def read_source(
    lake: Lake,
    dataset: str,
    table: str,
    interval: Interval,
    connection: duckdb.DuckDBPyConnection,
    *,
    name: str,
    folder: Path,
    also: tuple[date, ...] = (),
) -> SourceRead:
    """Read a table's source, and register it as the view `name`.

    Args:
        interval: nights whose deliveries are read, where the source delivers night by night.
        folder: where rows are staged; must outlive the view.
        also: further nights whose deliveries are read.
    Raises:
        SourceMissing, SourceUnreadable, SourceUnavailable, SourceRefused: the source cannot be read.
        SourceSchemaMismatch: it has other columns or types than declared; every difference is listed.
    """
    entry = lake.dataset(dataset)
    personal = any(column.pii for column in entry.tables[table].columns.values())
    fingerprint = None
    staged: dict[date | None, Path]
    with failures_named(f"source of {dataset}/{table}", personal=personal):
        reading = _Reading(lake, entry, table, connection, folder)
        dated = is_dated(reading.table)
        if isinstance(reading.source, SimulationSource):
            staged = {None: reading.stage_together((*also, *interval))}
        elif dated:
            staged = {night: reading.stage(night) for night in (*also, *interval)}
        else:
            path, fingerprint = reading.stage_cached()
            staged = {None: path}
    view = f"CREATE OR REPLACE TEMP VIEW {quoted(name)} AS SELECT * FROM {read_parquet(staged.values())}"  # noqa: S608 (our own paths, quoted)
    connection.execute(view)
    differences = {night: told for night, path in staged.items() if (told := _differences(path))}
    return SourceRead(name, dated, fingerprint, differences)


def _differences(path: Path) -> tuple[Difference, ...]:
    stored = (pq.read_metadata(path).metadata or {}).get(_DIFFERENCES.encode(), b"[]")
    return tuple(Difference(str(column), bool(missing)) for column, missing in json.loads(stored))


def _cached(cache: Path, fingerprint: str) -> Path | None:
    return next(iter(sorted(cache.glob(f"{fingerprint[:_FINGERPRINT_DIGITS]}-*.parquet"))), None)


class _Reading:
    """One table being read."""

    def __init__(
        self, lake: Lake, dataset: Dataset, table: str, connection: duckdb.DuckDBPyConnection, folder: Path
    ) -> None:
        self.lake, self.dataset, self.name, self.connection, self.folder = lake, dataset, table, connection, folder
        self.table = dataset.tables[table]
        self.source = self.table.source
        self.home = lake.catalog.home(dataset.name)
        self.root = self.home.sources
        self.label = f"source of {dataset.name}/{table}"
        self.naive_zone = dataset.zone_of_naive_times
        together = isinstance(self.source, SimulationSource)
        self.own_night = {_DELIVERED: SourceColumn(type="date")} if together else {}
        self.own_columns = self.table.source_columns(self.naive_zone) | self.own_night
        self.select = self._select_text()

    def _meter(self, label: str) -> Meter:
        return Meter(label, self.source.limits_under(self.lake.settings.source_limits))

    def _personal(self, columns: Iterable[str]) -> frozenset[str]:
        """Those whose values no message shows: where the table has personal data, also what only its `select` reads."""
        declared = self.table.columns
        if not any(column.pii for column in declared.values()):
            return frozenset()
        return frozenset(name for name in columns if name not in declared or declared[name].pii)

    def _select_text(self) -> str | None:
        select = self.source.select
        if select is None or not select.endswith(".sql"):
            return select
        path = self.home.sql / select
        if not path.is_file():
            raise SourceMissing(
                f"{self.label} is shaped by {path}, which is not a file. Write it, or correct `select` in the catalog."
            )
        return path.read_text(encoding="utf-8")

    def _found(self, uri: str, night: date | None, label: str) -> file.FoundFiles:
        return file.find(uri, self.root, night, label, folder=self.folder, meter=self._meter(label))

    def stage_cached(self) -> tuple[Path, str | None]:
        """The whole source as one Parquet file, from the cache where its bytes are those read before."""
        if not isinstance(self.source, FileSource):
            return self.stage(None), None
        files = self._found(self.source.uri, None, self.label)
        shape = {
            "reader": _READER,
            "duckdb": duckdb.__version__,
            "bytes": files.digest(),
            "lookups": {
                name: self._found(lookup.uri, None, name).digest() for name, lookup in self.source.lookups.items()
            },
            "table": self.table.model_dump_json(by_alias=True, include={"source", "known_at", "columns"}),
            "select": self.select,
            "time_zone": self.dataset.time_zone,
        }
        fingerprint = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()
        cache = self.lake.settings.home / "cache" / "sources" / f"{self.dataset.name}.{self.name}"
        cache.mkdir(parents=True, exist_ok=True)
        linked = self.folder / f"{self.name}.source.parquet"
        while True:
            if (cached := _cached(cache, fingerprint)) is None:
                cached = self._fill(cache, fingerprint, files, shape["bytes"])
            # A place of this run's own: another run, that sees newer bytes, may drop the cached file at any time.
            with suppress(FileNotFoundError):
                link_or_copy(cached, linked)
                if cached.stem.partition("-")[2] == file_digest(linked):
                    return linked, fingerprint
                for damaged in (cached, linked):  # the source is whole: it is read anew
                    damaged.unlink(missing_ok=True)

    def _fill(self, cache: Path, fingerprint: str, files: file.FoundFiles, digest: object) -> Path:
        """Stage the source in the cache, whole or not at all, and drop what was cached of its former bytes.

        The name says which source it is, and the digest of the bytes that were written.
        """
        fresh = cache / f".{uuid.uuid4().hex}.parquet"
        try:
            self._stage(None, fresh, files)
            if files.digest() != digest:
                raise SourceUnavailable(
                    f"{self.label} changed while it was read. Nothing was written. Clear the task when the delivery is "
                    "complete."
                )
            cached = cache / f"{fingerprint[:_FINGERPRINT_DIGITS]}-{file_digest(fresh)}.parquet"
            os.replace(fresh, cached)
        finally:
            fresh.unlink(missing_ok=True)
        for old in cache.glob("[!.]*.parquet"):
            if old != cached:
                old.unlink(missing_ok=True)
        return cached

    def stage(self, night: date | None) -> Path:
        """One delivery as a Parquet file in this run's folder."""
        target = self.folder / f"{self.name}.{night.isoformat() if night else 'source'}.parquet"
        files = self._found(self.source.uri, night, self.label) if isinstance(self.source, FileSource) else None
        self._stage(night, target, files)
        return target

    def stage_together(self, nights: Sequence[date]) -> Path:
        """Several deliveries of a simulated table as one Parquet file; each row says its night."""
        target = self.folder / f"{self.name}.nights.parquet"
        self._stage(None, target, None, nights)
        return target

    def _stage(
        self, night: date | None, target: Path, files: file.FoundFiles | None, nights: Sequence[date] = ()
    ) -> None:
        with ExitStack() as stack:
            folder = stack.enter_context(self.lake.scratch("source"))
            own = folder / "own.parquet"
            differences = list(self._stage_own(night, files, folder, own, nights))
            views = {"source": (own, self.own_columns)}
            for name, lookup in self.source.lookups.items():
                label, path = f"lookup {name} of {self.label}", folder / f"lookup-{name}.parquet"
                columns = lookup.spelled(lookup.columns, self.naive_zone)
                differences += file.stage(
                    self.connection,
                    lookup,
                    self._found(lookup.uri, night, label),
                    columns,
                    folder / f"lookup-{name}",
                    path,
                    self._meter(label),
                    personal=self._personal(lookup.columns),
                )
                views[name] = (path, columns)
            # The catalog's own SQL gets a connection of its own, that reaches its views and nothing else.
            connection = stack.enter_context(self.lake.duckdb())
            for name, (path, columns) in views.items():
                listed = ", ".join(quoted(column) for column in columns)
                connection.execute(
                    f"CREATE TEMP VIEW {quoted(name)} AS SELECT {listed} FROM {read_parquet([path])}"  # noqa: S608 (our own path)
                )
            allow(connection, [*(path for path, _ in views.values()), target])
            confine(connection)
            self._shape(connection, night, target, differences)

    def _stage_own(
        self, night: date | None, files: file.FoundFiles | None, folder: Path, own: Path, nights: Sequence[date]
    ) -> tuple[Difference, ...]:
        """Write the source's own columns."""
        meter, personal = self._meter(self.label), self._personal(self.own_columns)
        match self.source:
            case FileSource():
                assert files is not None  # stage and stage_cached find the files of a file source
                return file.stage(
                    self.connection,
                    self.source,
                    files,
                    self.own_columns,
                    folder / "own",
                    own,
                    meter,
                    personal=personal,
                )
            case SqlSource():
                return sql.stage(
                    self.connection,
                    self.lake.settings,
                    self.source,
                    self.own_columns,
                    night,
                    self.dataset.time_zone,
                    own,
                    meter,
                    personal=personal,
                )
            case HttpSource():
                return http.stage(
                    self.connection,
                    self.lake.settings,
                    self.source,
                    self.own_columns,
                    night,
                    folder,
                    own,
                    meter,
                    personal=personal,
                )
            case SimulationSource():
                return simulation.stage(self.source, self.own_columns, nights, _DELIVERED, own, meter)

    def _shaped(self, connection: duckdb.DuckDBPyConnection) -> tuple[Rows, Mapping[str, SourceColumn]]:
        """What `select` makes of the source, or the source itself, and how its columns are read."""
        relation = f"({self.select.rstrip().rstrip(';')}\n)" if self.select else "source"
        columns = self.table.shaped_columns(self.naive_zone) | self.own_night
        described = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()  # noqa: S608 (the catalog's own SQL)
        types = {str(row[0]): str(row[1]) for row in described}
        label = f"select of the {self.label}" if self.select else self.label
        match_names(label, [str(row[0]) for row in described], columns)
        check_types(label, types, columns)
        return Rows(relation, types), columns

    def _shape(
        self,
        connection: duckdb.DuckDBPyConnection,
        night: date | None,
        target: Path,
        differences: Sequence[Difference],
    ) -> None:
        """Apply `select` and `known_at`, and date each row."""
        known = self.table.known_at
        instant = "NULL" if not isinstance(known, KnownAt) else known.sql or quoted(str(known.column))
        # The microsecond makes midnight part of the night that ends there, as `cutoff(T-1) < known_at <= cutoff(T)`
        # says.
        natural = f"CAST(timezone({literal(self.dataset.time_zone)}, known_at_utc - INTERVAL 1 MICROSECOND) AS DATE)"
        delivered = f"DATE {literal(night.isoformat())}" if night else "CAST(NULL AS DATE)"
        try:
            shaped, columns = self._shaped(connection)
            read = typed(shaped, columns)
            self._check_instant(connection, instant, read)
            dated = f"SELECT *, CAST({instant} AS TIMESTAMPTZ) AS known_at_utc FROM ({read})"  # noqa: S608 (the catalog's own SQL)
            dates = f"{natural} AS nf__natural_date" + ("" if self.own_night else f", {delivered} AS {_DELIVERED}")
            rows = f"SELECT *, {dates} FROM ({dated}) ORDER BY nf__natural_date"  # noqa: S608 (as above)
            told = literal(json.dumps([[difference.column, difference.missing] for difference in differences]))
            options = (
                f"FORMAT parquet, ROW_GROUP_SIZE 20480, USE_TMP_FILE false, KV_METADATA {{{_DIFFERENCES}: {told}}}"
            )
            connection.execute(f"COPY ({rows}) TO {sql_path(target)} ({options})")
        except duckdb.PermissionException as error:
            raise SourceSqlReachesOutside(
                f"select or known_at of the {self.label} reads what it is not given: {error}\n"
                f"  Nothing was written. It may read {', '.join(['source', *self.source.lookups])}. Declare a file "
                "that it needs among the `lookups` of the source."
            ) from error
        except (duckdb.IOException, duckdb.OutOfMemoryException):
            raise  # trouble of this machine, no fault of the SQL
        except duckdb.Error as error:
            if is_refusal(error):
                hidden = self._personal(columns)
                raise refusal(connection, f"select of the {self.label}", [shaped], columns, hidden) from None
            personal = bool(self._personal(self.table.columns))
            raise SourceUnreadable(
                f"select or known_at of the {self.label} fails: {library_text(error, personal=personal)}\n"
                "  Nothing was written. Correct the SQL, or the source's rows it stumbles on."
            ) from cause(error, personal=personal)

    def _check_instant(self, connection: duckdb.DuckDBPyConnection, instant: str, read: str) -> None:
        """Refuse a `known_at` whose time has no zone: taken for UTC, it would let rows of the future in."""
        described = connection.execute(f"DESCRIBE SELECT {instant} AS nf__instant FROM ({read})").fetchall()  # noqa: S608 (the catalog's own SQL)
        kind = str(described[0][1])
        if self.naive_zone is None and (kind.startswith("TIMESTAMP_") or kind in ("TIMESTAMP", "DATE")):
            zone = literal(self.dataset.time_zone)
            raise mismatch(
                self.label,
                [
                    f"known_at is a {kind} without a time zone: write `timezone({zone}, <expression>)`, or another "
                    "zone in which it holds"
                ],
            )

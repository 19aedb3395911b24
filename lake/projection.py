"""Delta is the truth, SQL a projection of it: rows of one Delta table copied to one SQL table, day by day, in one
transaction.

Each data date's row in the table `projections` names digest and version that SQL holds, so that a run which commits
nothing to Delta still repairs SQL, and a late run never puts older rows over newer ones.
"""

from __future__ import annotations

import io
import itertools
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import sqlalchemy as sa
from deltalake import DeltaTable

from config.calendar import Interval
from config.errors import NightfleetError
from lake.delta import TableDamaged
from lake.lake import Lake
from lake.lineage import as_utc, publications_table
from lake.storage import lock
from lake.tables import LakeTable

_BATCH_ROWS = 50_000
_STAGING = "projection_staging"
_log = logging.getLogger(__name__)

_metadata = sa.MetaData()
projections_table = sa.Table(
    "projections",
    _metadata,
    sa.Column("sql_table", sa.String, primary_key=True),
    sa.Column("table_name", sa.String, primary_key=True),
    sa.Column("data_date", sa.Date, primary_key=True),
    sa.Column("delta_id", sa.String, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("row_count", sa.BigInteger, nullable=False),
    sa.Column("projected_at", sa.DateTime(timezone=True), nullable=False),
)


class ProjectionMismatch(NightfleetError):
    """The SQL table that is there cannot take the rows of the Delta table."""


@dataclass(frozen=True)
class _Commit:
    """What one commit says of one data date."""

    version: int
    digest: str
    rows: int
    committed_at: datetime


@dataclass(frozen=True)
class _Recorded:
    delta_id: str
    version: int
    digest: str
    rows: int


def sql_columns(
    name: str, schema: pa.Schema, *, keep_replaced: bool = False, metadata: sa.MetaData | None = None
) -> sa.Table:
    """The SQL table `name` that rows of `schema` are projected to; for queries, too.

    It has the schema's columns, `source_table` (the Delta table's name), `delta_version` (of the publication a row
    came with) and, with `keep_replaced`, `superseded_at` (null: current). Timestamps are UTC; SQLite gives them back
    naive.
    """
    columns: list[sa.Column[Any]] = [
        sa.Column("source_table", sa.String, nullable=False),
        sa.Column("delta_version", sa.BigInteger, nullable=False),
    ]
    columns += [sa.Column(field.name, _sql_type(field.type), nullable=field.name != "data_date") for field in schema]
    if keep_replaced:
        columns.append(sa.Column("superseded_at", sa.DateTime(timezone=True)))
    return sa.Table(name, metadata if metadata is not None else sa.MetaData(), *columns)


def has_table(lake: Lake, name: str) -> bool:
    """Whether the projections' database has that table yet: a new installation has none."""
    return sa.inspect(lake.engine).has_table(name)


def read_projected(
    lake: Lake,
    table: sa.Table,
    source_tables: Collection[str],
    interval: Interval | None = None,
    *,
    where: Sequence[sa.ColumnElement[bool]] = (),
    order: Sequence[str] = (),
    without: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Rows of those Delta tables as SQL has them, by data date, source table and `order`; none where nothing was
    projected yet.

    Args:
        table: as `sql_columns` describes it.
        interval: of data dates, None: all.
        without: columns that are not read.
    """
    if not has_table(lake, table.name):
        return []
    c = table.c
    query = sa.select(*(column for column in c if column.name not in without))
    query = query.where(c.source_table.in_(list(source_tables)), *where)
    if interval is not None:
        query = query.where(c.data_date >= interval.start, c.data_date < interval.end)
    query = query.order_by(c.data_date, c.source_table, *(c[name] for name in order))
    with lake.engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def project(
    lake: Lake,
    table: LakeTable,
    sql_table: str,
    interval: Interval | None = None,
    *,
    keep_replaced: bool = False,
    identity: tuple[str, ...] = (),
    indexes: Sequence[tuple[str, ...]] = (),
    anew: bool = False,
) -> int:
    """Make SQL hold what Delta has published, in one transaction; do nothing where it already does.

    A data date is written when SQL has no record of it, another digest, or another number of rows, and left alone when
    SQL already holds a newer version. With `keep_replaced`, a date of which SQL has no row at all gets its replaced
    rows back, too, from the table's older versions; a version whose files are gone is named in the log.

    Args:
        sql_table: name in the projections' database; several Delta tables of one schema may share it.
        interval: data dates that are looked at; None: all, those that SQL alone still has included.
        keep_replaced: rows that are gone or changed stay, with `superseded_at` set to the replacing commit's time;
            otherwise they are deleted.
        identity: with `keep_replaced`, the columns that name a row; at most one row of an identity is current.
        indexes: columns of each index; created with the table, and anew where the table has others.
        anew: write every data date again, whatever SQL holds; rows of commits that Delta does not have stay.
    Returns:
        rows of the data dates that were written; 0 when there was nothing to do.
    Raises:
        ProjectionMismatch: a column of the SQL table has another type; nothing is written.
    """
    if keep_replaced and not identity:
        raise ValueError(f"project({table.name}, keep_replaced=True) needs identity, the columns that name a row")
    delta = table.load()
    if delta is None:
        return 0
    lake.publications.sync(table, delta)
    target = sql_columns(sql_table, table.schema, keep_replaced=keep_replaced)
    engine = lake.engine
    with engine.connect() as connection:
        # Without a lock first: the usual rerun finds nothing to do and should not wait for a writer.
        if not anew and _is_there(connection, target) and not _outdated(connection, target, table, delta, interval):
            return 0
    with engine.connect() as connection, connection.begin():
        # So that the check for newer rows and the write are one.
        lock(connection, f"projection:{sql_table}")
        _prepare(connection, target, identity if keep_replaced else (), indexes)
        commits = _commits(connection, table, delta, interval)
        days = _outdated(connection, target, table, delta, interval)
        if anew:
            # Not where SQL has newer rows meanwhile.
            recorded = _recorded(connection, target, table, interval)
            held = {
                day
                for day, of_day in commits.items()
                if day in recorded and recorded[day].version <= of_day[-1].version
            }
            days = sorted({*days, *held})
        if not days:
            return 0
        newest = {day: commits[day][-1] for day in days if day in commits}
        if keep_replaced:
            if anew:
                _take_out(connection, target, table, days)
            empty = set(newest) - set(_counted(connection, target, table, interval, current=False))
            history = {day: commits[day] if day in empty else [newest[day]] for day in newest}
            _replay(connection, lake, target, table, delta, identity, history, set(days) - set(newest))
        else:
            connection.execute(target.delete().where(target.c.source_table == table.name, target.c.data_date.in_(days)))
            _load(connection, lake, table, target, delta.version(), newest)
        record = projections_table
        connection.execute(
            record.delete().where(
                record.c.sql_table == sql_table, record.c.table_name == table.name, record.c.data_date.in_(days)
            )
        )
        facts: dict[str, Any] = {"sql_table": sql_table, "table_name": table.name}
        facts |= {"delta_id": str(delta.metadata().id), "projected_at": datetime.now(UTC)}
        rows = [
            facts | {"data_date": day, "version": commit.version, "digest": commit.digest, "row_count": commit.rows}
            for day, commit in newest.items()
        ]
        if rows:
            connection.execute(record.insert(), rows)
    return sum(commit.rows for commit in newest.values())


def outdated_dates(lake: Lake, table: LakeTable, sql_table: str, *, keep_replaced: bool = False) -> list[date]:
    """Data dates whose rows in SQL are not those that Delta has published; nothing is written."""
    delta = table.load()
    if delta is None:
        return []
    lake.publications.sync(table, delta)
    target = sql_columns(sql_table, table.schema, keep_replaced=keep_replaced)
    with lake.engine.connect() as connection:
        if not _is_there(connection, target):
            return sorted(_commits(connection, table, delta, None))
        return _outdated(connection, target, table, delta, None)


def _sql_type(kind: pa.DataType) -> sa.types.TypeEngine[Any]:
    if pa.types.is_string(kind):
        return sa.Text()
    if pa.types.is_int32(kind):
        return sa.Integer()
    if pa.types.is_int64(kind):
        return sa.BigInteger()
    if pa.types.is_float64(kind):
        return sa.Double()
    if pa.types.is_boolean(kind):
        return sa.Boolean()
    if pa.types.is_date32(kind):
        return sa.Date()
    if pa.types.is_timestamp(kind):
        return sa.DateTime(timezone=True)
    raise TypeError(f"no column type of the lake is {kind}")


def _is_there(connection: sa.Connection, target: sa.Table) -> bool:
    inspector = sa.inspect(connection)
    if not (inspector.has_table(target.name) and inspector.has_table(projections_table.name)):
        return False
    return {c["name"] for c in inspector.get_columns(target.name)} >= set(target.c.keys())


def _prepare(
    connection: sa.Connection, target: sa.Table, identity: tuple[str, ...], indexes: Sequence[tuple[str, ...]]
) -> None:
    _metadata.create_all(connection, checkfirst=True)
    inspector = sa.inspect(connection)
    if not inspector.has_table(target.name):
        for name, columns in _indexes(target, indexes).items():
            sa.Index(name, *(target.c[c] for c in columns))
        if identity:
            current = target.c.superseded_at.is_(None)
            unique = [target.c[c] for c in identity]
            sa.Index(f"ux_{target.name}_current", *unique, unique=True, sqlite_where=current, postgresql_where=current)
        target.create(connection)
        return
    there = {c["name"]: c["type"] for c in inspector.get_columns(target.name)}
    for column in target.columns:
        if column.name not in there:
            # A new output or feature of a model: rows from before it simply have none.
            added = sa.schema.CreateColumn(sa.Column(column.name, column.type)).compile(dialect=connection.dialect)
            connection.exec_driver_sql(
                f"ALTER TABLE {connection.dialect.identifier_preparer.format_table(target)} ADD COLUMN {added}"
            )
            continue
        kind = there[column.name]
        if kind._type_affinity is not column.type._type_affinity:
            raise ProjectionMismatch(
                f"SQL table {target.name}, column {column.name}: is {kind}, needs "
                f"{column.type.compile(connection.dialect)}. Nothing was written.\n"
                f"  Drop the SQL table {target.name}: it is a projection, and the next run writes it anew from the "
                "lake."
            )
    _index_anew(connection, target, indexes)


def _indexes(target: sa.Table, wanted: Sequence[tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Columns of each index by its name; the first one answers alone how many rows of a date there are."""
    counting = [name for name in ("source_table", "data_date", "superseded_at") if name in target.c]
    return {f"ix_{target.name}_source": tuple(counting)} | {
        f"ix_{target.name}_{number}": columns for number, columns in enumerate(wanted)
    }


def _index_anew(connection: sa.Connection, target: sa.Table, indexes: Sequence[tuple[str, ...]]) -> None:
    there = {i["name"]: tuple(i["column_names"]) for i in sa.inspect(connection).get_indexes(target.name)}
    for name, columns in _indexes(target, indexes).items():
        if there.get(name) == columns:
            continue
        index = sa.Index(name, *(target.c[c] for c in columns))
        if name in there:
            connection.execute(sa.schema.DropIndex(index))
        connection.execute(sa.schema.CreateIndex(index))


def _outdated(
    connection: sa.Connection, target: sa.Table, table: LakeTable, delta: DeltaTable, interval: Interval | None
) -> list[date]:
    """Data dates whose rows in SQL are not those that are published and not newer."""
    delta_id = str(delta.metadata().id)
    commits = _commits(connection, table, delta, interval)
    recorded = _recorded(connection, target, table, interval)
    counted = _counted(connection, target, table, interval)
    lost = _lost(connection, table, recorded)
    outdated = []
    for day in sorted({*commits, *recorded, *counted}):
        seen, wanted = recorded.get(day), commits[day][-1] if day in commits else None
        if day in lost:
            outdated.append(day)
            continue
        if wanted is None:
            # A partition of a table that was made anew and does not hold this day (yet): its old rows are nobody's.
            if (seen and seen.delta_id != delta_id) or (seen is None and counted.get(day)):
                outdated.append(day)
            continue
        new = seen is None or seen.delta_id != delta_id
        if new or (
            seen is not None
            and seen.version <= wanted.version
            and (seen.digest != wanted.digest or counted.get(day, 0) != wanted.rows)
        ):
            outdated.append(day)
    return outdated


def _recorded(
    connection: sa.Connection, target: sa.Table, table: LakeTable, interval: Interval | None
) -> dict[date, _Recorded]:
    p = projections_table.c
    query = sa.select(p.data_date, p.delta_id, p.version, p.digest, p.row_count).where(
        p.sql_table == target.name, p.table_name == table.name, *_within(p.data_date, interval)
    )
    return {
        row.data_date: _Recorded(row.delta_id, row.version, row.digest, row.row_count)
        for row in connection.execute(query)
    }


def _within(column: sa.ColumnElement[date], interval: Interval | None) -> list[sa.ColumnElement[bool]]:
    return [] if interval is None else [column >= interval.start, column < interval.end]


def _commits(
    connection: sa.Connection, table: LakeTable, delta: DeltaTable, interval: Interval | None
) -> dict[date, list[_Commit]]:
    """The publications of each data date up to that version of the table, the newest last."""
    c = publications_table.c
    query = (
        sa.select(c.data_date, c.version, c.digest, c.row_count, c.committed_at)
        .where(c.table_name == table.name, c.version <= delta.version(), *_within(c.data_date, interval))
        .order_by(c.data_date, c.version)
    )
    commits: dict[date, list[_Commit]] = {}
    for day, version, digest, rows, committed_at in connection.execute(query):
        commits.setdefault(day, []).append(_Commit(version, digest, rows, as_utc(committed_at)))
    return commits


def _counted(
    connection: sa.Connection, target: sa.Table, table: LakeTable, interval: Interval | None, *, current: bool = True
) -> dict[date, int]:
    """Rows of each data date that SQL has; `current`: without those that were replaced."""
    t = target.c
    query = sa.select(t.data_date, sa.func.count()).where(t.source_table == table.name, *_within(t.data_date, interval))
    if current and "superseded_at" in t:
        query = query.where(t.superseded_at.is_(None))
    return {day: int(count) for day, count in connection.execute(query.group_by(t.data_date))}


def _lost(connection: sa.Connection, table: LakeTable, recorded: Mapping[date, _Recorded]) -> set[date]:
    """Data dates that SQL holds from a commit that the table does not have any more: it was restored from a backup."""
    c = publications_table.c
    query = sa.select(c.data_date, c.version, c.digest).where(
        c.table_name == table.name, c.data_date.in_(list(recorded))
    )
    commits = {tuple(row) for row in connection.execute(query)}
    return {day for day, seen in recorded.items() if (day, seen.version, seen.digest) not in commits}


def _take_out(connection: sa.Connection, target: sa.Table, table: LakeTable, days: Sequence[date]) -> None:
    """Delete the rows that came with commits which Delta still has, and so can give again."""
    c, t = publications_table.c, target.c
    known = sa.exists(
        sa.select(sa.literal(1)).where(
            c.table_name == t.source_table, c.data_date == t.data_date, c.version == t.delta_version
        )
    )
    connection.execute(target.delete().where(t.source_table == table.name, t.data_date.in_(days), known))


def _replay(
    connection: sa.Connection,
    lake: Lake,
    target: sa.Table,
    table: LakeTable,
    delta: DeltaTable,
    identity: tuple[str, ...],
    history: Mapping[date, Sequence[_Commit]],
    gone: Collection[date],
) -> None:
    """Let the commits of each data date follow one another in SQL as they did in Delta; `gone` dates have none."""
    # Many dates are read at once: each at the last version before the one that replaced it.
    reads: dict[int, dict[date, _Commit]] = {delta.version(): {}}
    for day, of_day in history.items():
        for commit, following in itertools.zip_longest(of_day, of_day[1:]):
            version = delta.version() if following is None else following.version - 1
            reads.setdefault(version, {})[day] = commit
    for version in sorted(reads):
        commits, at = reads[version], {}
        if version == delta.version():
            at = dict.fromkeys(gone, datetime.now(UTC))
        else:
            commits = _readable(table, version, commits)
        at |= {day: commit.committed_at for day, commit in commits.items()}
        staging = sql_columns(_STAGING, table.schema)
        staging._prefixes = [*staging._prefixes, "TEMPORARY"]
        staging.create(connection)
        _load(connection, lake, table, staging, version, commits)
        _supersede(connection, target, staging, table, identity, at)
        staging.drop(connection)


def _readable(table: LakeTable, version: int, commits: Mapping[date, _Commit]) -> dict[date, _Commit]:
    """Those dates whose rows the table can still give at a former version; the others are named in the log."""
    try:
        former = table.load(version)
        damaged = {} if former is None else table.damaged(former, list(commits))
    except TableDamaged as error:
        damaged = dict.fromkeys(commits, str(error))
    for day, problem in damaged.items():
        _log.warning(
            "%s: rows of data date %s, committed at %s and replaced since, do not come back to SQL: %s",
            table.name,
            day,
            commits[day].committed_at,
            problem,
        )
    return {day: commit for day, commit in commits.items() if day not in damaged}


def _load(
    connection: sa.Connection,
    lake: Lake,
    table: LakeTable,
    into: sa.Table,
    version: int,
    commits: Mapping[date, _Commit],
) -> None:
    """Insert the rows that the table holds of those dates at that version."""
    if not any(commit.rows for commit in commits.values()):
        return
    days = list(commits)
    with lake.duckdb() as duck:
        table.register(duck, "source_rows", days, version)
        duck.execute("CREATE TEMP TABLE day_versions (data_date DATE, delta_version BIGINT)")
        duck.register(
            "versions",
            pa.table(
                {
                    "d": pa.array(days, pa.date32()),
                    "v": pa.array([commit.version for commit in commits.values()], pa.int64()),
                }
            ),
        )
        duck.execute("INSERT INTO day_versions SELECT d, v FROM versions")
        names = [c.name for c in into.columns if c.name not in {"source_table", "delta_version", "superseded_at"}]
        listed = ", ".join('r."' + name.replace('"', '""') + '"' for name in names)
        query = (
            f"SELECT CAST(? AS VARCHAR) AS source_table, v.delta_version, {listed} FROM source_rows r"  # noqa: S608
            " JOIN day_versions v USING (data_date)"
        )
        reader = duck.sql(query, params=[table.name]).to_arrow_reader(_BATCH_ROWS)
        columns = ["source_table", "delta_version", *names]
        if connection.dialect.name == "sqlite":
            _insert(connection, into, columns, reader)
        else:
            _copy(connection, into, columns, reader)


def _insert(
    connection: sa.Connection, into: sa.Table, columns: Sequence[str], batches: Iterable[pa.RecordBatch]
) -> None:
    quote = connection.dialect.identifier_preparer.quote
    names, marks = ", ".join(quote(c) for c in columns), ", ".join("?" * len(columns))
    statement = f"INSERT INTO {quote(into.name)} ({names}) VALUES ({marks})"  # noqa: S608
    cursor = connection.connection.cursor()
    try:
        for batch in batches:
            cursor.executemany(
                statement, list(zip(*(_for_sqlite(column).to_pylist() for column in batch.columns), strict=True))
            )
    finally:
        cursor.close()


def _for_sqlite(column: pa.Array) -> pa.Array:
    """Dates and instants as the text SQLAlchemy stores, NaN as NULL, booleans as 0 and 1."""
    kind = column.type
    if pa.types.is_date(kind):
        return pc.strftime(column, "%Y-%m-%d")
    if pa.types.is_timestamp(kind):
        return pc.strftime(column.cast(pa.timestamp("us", tz="UTC")), "%Y-%m-%d %H:%M:%S")
    if pa.types.is_boolean(kind):
        return column.cast(pa.int8())
    if pa.types.is_floating(kind):
        return pc.if_else(pc.fill_null(pc.is_nan(column), True), None, column)
    return column


def _copy(connection: sa.Connection, into: sa.Table, columns: Sequence[str], batches: Iterable[pa.RecordBatch]) -> None:
    prepare = connection.dialect.identifier_preparer
    listed = ", ".join(prepare.quote(c) for c in columns)
    cursor: Any = connection.connection.cursor()
    try:
        cursor.copy_expert(
            f"COPY {prepare.format_table(into)} ({listed}) FROM STDIN WITH (FORMAT csv)", _CsvStream(batches)
        )
    finally:
        cursor.close()


class _CsvStream(io.RawIOBase):
    """Batches as CSV, made as they are read: texts are quoted, so that an empty one is not a null."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._chunks = self._written(iter(batches))
        self._rest = memoryview(b"")

    @staticmethod
    def _written(batches: Iterator[pa.RecordBatch]) -> Iterator[memoryview]:
        for batch in batches:
            sink = io.BytesIO()
            pa_csv.write_csv(batch, sink, pa_csv.WriteOptions(include_header=False))
            yield sink.getbuffer()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, none at the end."""
        while not len(self._rest):
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._rest = chunk
        taken = self._rest[:size] if size >= 0 else self._rest
        self._rest = self._rest[len(taken) :]
        return bytes(taken)


def _supersede(
    connection: sa.Connection,
    target: sa.Table,
    staging: sa.Table,
    table: LakeTable,
    identity: tuple[str, ...],
    days: Mapping[date, datetime],
) -> None:
    """Mark what is replaced on those dates, each with its instant, and add what is new."""
    connection.execute(sa.schema.CreateIndex(sa.Index(f"ix_{_STAGING}", *(staging.c[c] for c in identity))))
    same_row = [
        target.c[field.name].is_not_distinct_from(staging.c[field.name])
        for field in table.schema
        if field.name not in identity
    ]
    same_name = [target.c[c] == staging.c[c] for c in identity]
    current = sa.and_(target.c.source_table == table.name, target.c.superseded_at.is_(None))
    for day, at in days.items():
        unchanged = sa.exists(sa.select(sa.literal(1)).select_from(staging).where(*same_name, *same_row))
        connection.execute(
            target.update().where(current, target.c.data_date == day, sa.not_(unchanged)).values(superseded_at=at)
        )
    there = target.alias("there")
    names = [c.name for c in staging.columns]
    still = sa.exists(
        sa.select(sa.literal(1))
        .select_from(there)
        .where(*(there.c[c] == staging.c[c] for c in identity), there.c.superseded_at.is_(None))
    )
    connection.execute(
        target.insert().from_select(names, sa.select(*(staging.c[n] for n in names)).where(sa.not_(still)))
    )

"""Feature SQL: one file per view, run over pinned versions of the valid tables, published night by night.

What a view's SQL sees
    `nights(data_date, cutoff_utc)`: the nights of the interval.
    Each table the view reads, under its name: every revision in partitions [start - lookback, end), and
    `superseded_on`, the first night that no longer sees the row: the one its next revision arrived in, the one its key
    was closed in (`deletes: close`), or the one it leaves the lookback. Night n sees the rows with
    `data_date <= n.data_date AND superseded_on > n.data_date`.

A file that joins that way, and takes its windows from event times, gives the same rows for 90 nights at once as for
90 single nights: late rows and corrections change only the nights that came after them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from config.calendar import ONE_DAY, Interval
from config.catalog.data import Dataset, FeatureView
from config.errors import NightfleetError
from config.masking import cause, library_text
from lake.duck import confine
from lake.events import logged
from lake.lake import Lake, StageResult, register_nights
from lake.lineage import Input, PartitionNotReady, Publication
from lake.publish import DuplicateKey, Published, publish
from lake.tables import ARROW_TYPES, CLOSED_COLUMN, DUCKDB_TYPES, LakeTable, feature_table, valid_table

_BATCH_ROWS = 131_072
_STANDS = f'WHERE NOT r."{CLOSED_COLUMN}"'
_INTEGERS = frozenset(
    {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"}
)
# What a SQL expression may have as its type where the catalog declares the key; a cast to the declared type loses
# nothing but digits of a DECIMAL.
_ACCEPTED = {
    "string": frozenset({"VARCHAR"}),
    "int32": _INTEGERS,
    "int64": _INTEGERS,
    "float64": _INTEGERS | {"FLOAT", "DOUBLE", "DECIMAL"},
    "boolean": frozenset({"BOOLEAN"}),
    "date": frozenset({"DATE"}),
    "timestamp": frozenset({"TIMESTAMP WITH TIME ZONE"}),
}


class FeatureSqlMissing(NightfleetError):
    """A feature view of the catalog has no SQL file."""


class FeatureSqlFailed(NightfleetError):
    """DuckDB refuses a view's SQL, or stops while it runs."""


class FeatureSqlReachesOutside(FeatureSqlFailed):
    """A view's SQL reads a file, or what else it is not given."""


class FeatureSqlMismatch(NightfleetError):
    """A view's SQL gives other columns, types, nights or entities than the catalog declares."""


class UnknownInput(NightfleetError):
    """A pinned version names a table that the view does not read."""


@dataclass(frozen=True)
class _Pin:
    """One valid table as this run reads it: a Delta version, and the publications it holds."""

    table: LakeTable
    version: int
    publications: Mapping[date, Publication]


@logged("transform")
def transform(lake: Lake, dataset: str, interval: Interval, *, run_id: str) -> StageResult:
    """Compute every feature view of the data set for each night of the interval, and publish it.

    Views go one at a time, streamed, in DuckDB's bounded memory. Every night gets a partition, possibly empty.

    Raises:
        PartitionNotReady: a night of a valid table within a view's lookback, or the night before `interval` of a view,
            is not published.
        FeatureSqlMissing, FeatureSqlFailed, FeatureSqlReachesOutside, FeatureSqlMismatch: a view's SQL file is absent,
            does not run, reads a file, or gives other rows than declared.
    """
    entry = lake.dataset(dataset)
    targets = {view: feature_table(lake.settings, entry, view) for view in entry.features}
    replaces = {view: _digests_at_start(lake, entry, target, interval) for view, target in targets.items()}
    pins = _pin(lake, entry, list(entry.features), interval)
    published: dict[str, Published] = {}
    with lake.scratch("transform") as scratch:
        for view, target in targets.items():
            declared = entry.features[view]
            inputs = {day: _inputs(entry, declared, pins, day) for day in interval}
            lineage = replace(lake.lineage(dataset, run_id, view=view), inputs=inputs)
            # A connection of its own: what another view reads is not this one's to read.
            try:
                with lake.duckdb() as connection:
                    reader = _compute(connection, lake, entry, view, interval, pins)
                    published[view] = publish(
                        lake.publications,
                        target,
                        reader,
                        interval,
                        replaces=replaces[view],
                        lineage=lineage,
                        scratch=scratch,
                    )
            except DuplicateKey as error:
                raise FeatureSqlMismatch(
                    f"{lake.catalog.view_sql(dataset, view)} gives an entity twice in one night. Group by "
                    f"({', '.join(declared.entities)}).\n  {error}"
                ) from error
    return StageResult(
        stage="transform",
        subject=dataset,
        interval=str(interval),
        rows=sum(p.rows for p in published.values()),
        committed=sum(len(p.committed) for p in published.values()),
        details={
            "rows": {view: p.rows for view, p in published.items()},
            "committed": {view: len(p.committed) for view, p in published.items()},
        },
    )


def compute_view(
    lake: Lake, dataset: str, view: str, interval: Interval, *, versions: Mapping[str, int] | None = None
) -> pa.Table:
    """The rows `transform` would publish for one view, and nothing is published.

    Args:
        versions: Delta version by valid table (`flights/valid/outcomes`), to compute from what the lake held then;
            newest where left out.
    Returns:
        Columns as `feature_table(...)`, sorted by `(data_date, *entities)`; in memory whole, so meant for some nights
        at a time.
    Raises:
        PartitionNotReady: a partition within the lookback was not published at that version.
        UnknownInput: `versions` names a table the view does not read.
    """
    entry = lake.dataset(dataset)
    pins = _pin(lake, entry, [view], interval, versions or {})
    with lake.duckdb() as connection, closing(_compute(connection, lake, entry, view, interval, pins)) as reader:
        return reader.read_all()


def inputs_of_view(lake: Lake, dataset: str, view: str, day: date) -> list[tuple[LakeTable, Interval]]:
    """What night `day` of the view may read: partitions [day - lookback, day] of each valid table, from the first data
    date on.
    """
    entry = lake.dataset(dataset)
    declared = entry.features[view]
    return [
        (valid_table(lake.settings, entry, table), _window(entry, declared, Interval.of(day)))
        for table in declared.reads
    ]


def _window(dataset: Dataset, view: FeatureView, interval: Interval) -> Interval:
    return Interval(max(interval.start - timedelta(days=_lookback_days(view)), dataset.first_data_date), interval.end)


def _lookback_days(view: FeatureView) -> int:
    return -(-view.lookback // ONE_DAY)


def _digests_at_start(lake: Lake, dataset: Dataset, target: LakeTable, interval: Interval) -> dict[date, str | None]:
    """What the view has published of the interval now; refuses an interval that would leave a gap before it."""
    first = dataset.first_data_date
    if interval.start < first:
        raise PartitionNotReady(
            f"{dataset.name} begins with data date {first}; there is no {interval.start}. Start the interval at "
            f"{first} or later."
        )
    night_before = Interval.of(interval.start - ONE_DAY)
    published = lake.publications.current(target, Interval(night_before.start, interval.end))
    if interval.start > first and night_before.start not in published:
        lake.publications.require(
            target,
            night_before,
            needed_by=f"Transforming {dataset.name} for data date {interval}",
            remedy=(
                f"Run `{dataset.name}_ingest`, or `{dataset.name}_history` for many nights, from the first missing"
                " night on; then clear this task."
            ),
        )
    return {day: published[day].digest if day in published else None for day in interval}


def _pin(
    lake: Lake, dataset: Dataset, views: list[str], interval: Interval, versions: Mapping[str, int] | None = None
) -> dict[str, _Pin]:
    """One version per table for all views, so that they agree among themselves whatever is published meanwhile."""
    windows: dict[str, Interval] = {}
    for view in views:
        window = _window(dataset, dataset.features[view], interval)
        for name in dataset.features[view].reads:
            windows[name] = min(windows.get(name, window), window)
    tables = {name: valid_table(lake.settings, dataset, name) for name in windows}
    unknown = sorted(set(versions or {}) - {table.name for table in tables.values()})
    if unknown:
        raise UnknownInput(
            f"a version is pinned for {unknown[0]!r}, which {', '.join(views)} does not read. It reads "
            f"{', '.join(t.name for t in tables.values())}."
        )
    pins = {}
    for name, table in tables.items():
        window = windows[name]
        delta = table.load((versions or {}).get(table.name))
        version = delta.version() if delta is not None else -1
        published = lake.publications.current(table, window, loaded=delta, as_of_version=version)
        missing = [day for day in window if day not in published]
        if missing:
            needed_by = (
                f"Transforming {', '.join(v for v in views if name in dataset.features[v].reads)} of {dataset.name} for"
                f" data date {interval}"
            )
            remedy = (
                f"Run `{dataset.name}_ingest`, or `{dataset.name}_history` for many nights, so that {window} is valid;"
                " then clear this task."
            )
            lake.publications.require(table, window, needed_by=needed_by, remedy=remedy)
            raise PartitionNotReady(
                f"{table.name} had no partition {missing[0]} at version {version}.\n"
                f"  {needed_by} needs it. Take a later version."
            )
        pins[name] = _Pin(table, version, published)
    return pins


def _inputs(dataset: Dataset, view: FeatureView, pins: Mapping[str, _Pin], day: date) -> list[Input]:
    return [
        pins[table].publications[night].as_input()
        for table in view.reads
        for night in _window(dataset, view, Interval.of(day))
    ]


def _compute(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    dataset: Dataset,
    view: str,
    interval: Interval,
    pins: Mapping[str, _Pin],
) -> pa.RecordBatchReader:
    """The view's rows as the feature table has them, sorted by `(data_date, *entities)`, read while they are
    consumed.
    """
    declared = dataset.features[view]
    target = feature_table(lake.settings, dataset, view)
    path = lake.catalog.view_sql(dataset.name, view)
    if not path.is_file():
        raise FeatureSqlMissing(
            f"feature view {view!r} of {dataset.name} has no SQL: {path} does not exist. Write it, or take the view "
            "out of the catalog."
        )
    # All order comes from the outer ORDER BY; without this DuckDB holds back batches to keep an order nobody asked for.
    connection.execute("SET preserve_insertion_order = false")
    register_nights(connection, interval, dataset.time_zone)
    for table in declared.reads:
        _register_revisions(
            connection,
            pins[table],
            table,
            dataset.tables[table].key,
            _window(dataset, declared, interval),
            _lookback_days(declared),
        )
    confine(connection)
    try:
        sql = path.read_text(encoding="utf-8").strip().rstrip(";")
        statements = connection.extract_statements(sql)
        if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
            raise FeatureSqlFailed(
                f"{path} holds {[s.type.name for s in statements] or 'nothing'}. It must be one SELECT."
            )
        relation = connection.sql(sql)
        _check_columns(path, view, declared, target, dict(zip(relation.columns, map(str, relation.types), strict=True)))
        order = ", ".join(f'"{name}"' for name in ("data_date", *declared.entities))
        columns = ", ".join(_output(field, declared) for field in target.schema)
        checked = relation.query(
            "computed",
            f"SELECT {columns} FROM computed LEFT JOIN nights ON nights.data_date = computed.data_date "  # noqa: S608
            f"ORDER BY {order}",
        )
        assert checked is not None  # a SELECT always gives a relation
        batches = checked.to_arrow_reader(_BATCH_ROWS)
    except duckdb.PermissionException as error:
        raise FeatureSqlReachesOutside(
            f"{path} reads what feature view {view!r} of {dataset.name} is not given: {error}\n"
            f"  It may read {', '.join(['nights', *declared.reads])}. Read a table instead, and name it in `reads` of "
            "the view; a file becomes a table by a source of its own."
        ) from error
    except (duckdb.Error, UnicodeDecodeError) as error:
        raise _failed(path, "does not run", error, target) from cause(error, personal=bool(target.personal))
    return pa.RecordBatchReader.from_batches(target.schema, _checked(path, batches, target, declared, interval))


def _register_revisions(
    connection: duckdb.DuckDBPyConnection,
    pin: _Pin,
    name: str,
    key: tuple[str, ...],
    window: Interval,
    lookback_days: int,
) -> None:
    """View `name`: all revisions of the window, with `superseded_on`."""
    pin.table.register(connection, f"{name}_rows", window, pin.version)
    keys = ", ".join(f'"{column}"' for column in key)
    # Only a key that has a later revision than its first can be superseded: mostly a handful, found from the files'
    # statistics.
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE "{name}_superseded" AS
        SELECT {keys}, revision, data_date, lead(data_date) OVER (PARTITION BY {keys} ORDER BY data_date,
          revision) AS superseded_on
        FROM "{name}_rows" SEMI JOIN (SELECT {keys} FROM "{name}_rows" WHERE revision > 0) AS revised USING ({keys})
        QUALIFY superseded_on IS NOT NULL
        """)  # noqa: S608 (names from the typed catalog)
    counted = connection.execute(f'SELECT count(*) FROM "{name}_superseded"').fetchone()  # noqa: S608 (a name from the typed catalog)
    leaves = f"r.data_date + {lookback_days + 1}"
    if counted and counted[0]:
        join = f'LEFT JOIN "{name}_superseded" AS s USING ({keys}, revision, data_date)'
        superseded_on = f"least(s.superseded_on, {leaves})"
    else:
        join, superseded_on = "", leaves
    # What says that a key is gone ends the revision before it, and is no row itself.
    columns, kept = ("r.*", "") if not pin.table.closes else (f'r.* EXCLUDE ("{CLOSED_COLUMN}")', _STANDS)
    connection.execute(
        f'CREATE OR REPLACE TEMP VIEW "{name}" AS SELECT {columns}, {superseded_on} AS superseded_on '  # noqa: S608 (names from the typed catalog)
        f'FROM "{name}_rows" AS r {join} {kept}'
    )


def _check_columns(path: Path, view: str, declared: FeatureView, target: LakeTable, given: Mapping[str, str]) -> None:
    kinds = {
        name: kind
        for kind, arrow in ARROW_TYPES.items()
        for name in target.schema.names
        if target.schema.field(name).type == arrow
    }
    needed = {name: kinds[name] for name in target.schema.names if name != "event_timestamp"}
    problems = [f"{name} is missing" for name in needed if name not in given]
    problems += [f"{name} is not declared" for name in given if name not in needed]
    problems += [
        f"{name} is {given[name]}, needs {DUCKDB_TYPES[kind]} for the declared {kind}"
        for name, kind in needed.items()
        if name in given and given[name].split("(")[0] not in _ACCEPTED[kind]
    ]
    if problems:
        raise FeatureSqlMismatch(
            f"{path} does not give the columns that feature view {view!r} declares: {'; '.join(problems)}. Nothing was "
            "written.\n"
            f"  It needs data_date, {', '.join(declared.entities)} and {', '.join(declared.columns)}. Fix the SQL or "
            "the catalog."
        )


def _output(field: pa.Field, declared: FeatureView) -> str:
    """The expression that makes one column of the feature table from the SQL's own."""
    if field.name == "event_timestamp":
        # A night outside the interval has no cutoff here; it is refused by its data_date, not by a null.
        return "coalesce(nights.cutoff_utc, TIMESTAMPTZ 'epoch') AS event_timestamp"
    kind = next(kind for kind, arrow in ARROW_TYPES.items() if arrow == field.type)
    expression = f'CAST(computed."{field.name}" AS {DUCKDB_TYPES[kind]})'
    if kind == "float64":
        problem = f"'{field.name} is not finite; guard the division with nullif'"
        expression = (
            f"CASE WHEN isfinite({expression}) OR {expression} IS NULL THEN {expression} ELSE error({problem}) END"
        )
    if kind in ("date", "timestamp"):  # Python, and so every reader of the lake, knows no others
        problem = f"'{field.name} is not within the years 1 to 9999'"
        inside = f"{expression} >= '0001-01-01'::DATE AND {expression} < '10000-01-01'::DATE"
        expression = f"CASE WHEN {inside} OR {expression} IS NULL THEN {expression} ELSE error({problem}) END"
    return f'{expression} AS "{field.name}"'


def _checked(
    path: Path, batches: pa.RecordBatchReader, target: LakeTable, declared: FeatureView, interval: Interval
) -> Iterator[pa.RecordBatch]:
    """The batches in the table's types; refuses nights outside the interval, null entities and nulls where none are
    declared.
    """
    try:
        for batch in batches:
            if batch.num_rows == 0:
                continue
            days = pc.min_max(batch["data_date"])
            for name in ("data_date", *declared.entities, *(n for n, c in declared.columns.items() if not c.nullable)):
                if batch[name].null_count:
                    raise FeatureSqlMismatch(
                        f"{path} gives {batch[name].null_count} rows without {name}, which must not be null. Nothing "
                        "was written. Leave them out."
                    )
            for day in (days["min"].as_py(), days["max"].as_py()):
                if day not in interval:
                    raise FeatureSqlMismatch(
                        f"{path} gives rows for data_date {day}, outside {interval}. Nothing was written. Join "
                        "`nights` and take its data_date."
                    )
            yield batch.cast(target.schema)
    except duckdb.Error as error:
        raise _failed(path, "fails while it runs", error, target) from cause(error, personal=bool(target.personal))


def _failed(path: Path, how: str, error: Exception, target: LakeTable) -> FeatureSqlFailed:
    said = library_text(error, personal=bool(target.personal))
    return FeatureSqlFailed(f"{path} {how}: {said}\n  Nothing was written. Correct the SQL, then clear the task.")

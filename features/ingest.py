"""Ingest: what each night could first know of the sources, published to raw.

A source row has a *natural* night, the one in which it became knowable, and a *landing* night, the partition it is
published in. They differ for a row that came late: it lands in the first night that was still open when it was seen.
Of the rows that one landing night has for a key, those of the newest natural night count; all earlier ones were
superseded before anybody saw them. They are published when their content differs from what is known of the key: as
revision 0 of an unknown key, else with the next revision.

A table with `deletes: close` takes every delivery for the whole of what there is: a key that was there and that the
delivery lacks is closed in that night, by a row that holds the key alone. It is a revision like any other; where the
key comes back, so is its row.

The nights of an interval are worked out together, each key's rows in the order of their landing nights, so that one
bulk run and many nightly runs over the same source give the same partitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import duckdb

from config.calendar import ONE_DAY, Interval
from config.catalog.data import Dataset, Table
from config.errors import NightfleetError
from config.masking import shown_row
from features.sources import (
    SourceMissing,
    SourceRead,
    SourceSchemaMismatch,
    SourceUnavailable,
    SourceUnreadable,
    is_dated,
    read_source,
)
from features.sources.columns import told
from features.sources.values import quoted, without_nan
from lake.delta import PartitionDamaged
from lake.events import logged
from lake.lake import Lake, StageResult, register_nights
from lake.lineage import PartitionNotReady, Publication
from lake.publish import Published, StalePublish, publish
from lake.tables import CLOSED_COLUMN, DUCKDB_TYPES, LakeTable, raw_table, row_number_column

_BATCH_ROWS = 131_072
_EXAMPLES = 3

__all__ = [
    "SourceChanged",
    "SourceMissing",
    "SourceSchemaMismatch",
    "SourceShrank",
    "SourceUnavailable",
    "SourceUnreadable",
    "ingest",
    "restate",
]


class SourceChanged(NightfleetError):
    """A source has other rows for a published night than it had then."""


class SourceShrank(NightfleetError):
    """A delivery lacks more of the open keys than a night may close."""


@dataclass(frozen=True)
class _Plan:
    """One table in one run, fixed at its start.

    Attributes:
        version: Delta version of raw that the run reads, -1 when there is none.
        published: every publication of raw at that version.
        open: nights of the interval that are not published; None when all are.
    """

    name: str
    raw: LakeTable
    version: int
    published: Mapping[date, Publication]
    open: Interval | None


@dataclass(frozen=True)
class _Computed:
    """A DuckDB table `view` of the rows to publish, and what was counted on the way."""

    view: str
    counts: dict[str, int]
    waiting: dict[str, str]


@logged("ingest")
def ingest(lake: Lake, dataset: str, interval: Interval, *, run_id: str) -> StageResult:
    """Publish every table's raw partitions of the interval; nights that are published already stay as they are.

    Where every night of every table is published, the run is a check: the partitions are worked out again and compared.

    Returns:
        `details` has for each table rows, late, corrections, closed (keys that a delivery lacked, with `deletes:
        close`; each is one of the rows), waiting (known after the interval), before_start (known before the data set
        begins), and undated (rows that do not say when they became known, and count as known when they were seen).
    Raises:
        PartitionNotReady: the night before the interval is not published.
        SourceMissing, SourceUnreadable, SourceSchemaMismatch, SourceUnavailable: a source cannot be read; nothing is
            written.
        SourceShrank: a night would close more than the table's `max_closed_share` of its open keys; nothing is written.
        SourceChanged: a check found a difference; nothing is written.
        StalePublish: another run published in between.
    """
    entry = lake.dataset(dataset)
    plans = [_plan(lake, entry, name, interval) for name in entry.tables]
    check = all(plan.open is None for plan in plans)
    details: dict[str, Any] = {}
    committed = 0
    with _session(lake, "ingest") as (connection, folder):
        due = {plan.name: interval if check else plan.open for plan in plans}
        # Every source is read before anything is published: one bad source, and nothing is written.
        reads = {
            plan.name: _read(lake, entry, plan, nights, connection, folder)
            for plan in plans
            if (nights := due[plan.name]) is not None
        }
        for plan in plans:
            nights = due[plan.name]
            if nights is None:
                details[plan.name] = _counts(plan, interval, {})
                continue
            computed = _compute(connection, entry, plan, nights, reads[plan.name])
            if check:
                committed += len(_confirm(lake, connection, entry, plan, nights, computed, run_id, reads[plan.name]))
                details[plan.name] = _counts(plan, interval, computed.counts)
                continue
            read = reads[plan.name]
            done = _publish(lake, connection, plan, nights, computed, run_id, read=read)
            committed += len(done.committed)
            details[plan.name] = (
                _counts(plan, interval, computed.counts)
                | {"rows": _rows(plan, interval, done)}
                | ({"differing_columns": told(read.differences)} if read.differences else {})
            )
    return StageResult(
        "ingest", dataset, str(interval), sum(table["rows"] for table in details.values()), committed, details
    )


@logged("restate")
def restate(lake: Lake, dataset: str, interval: Interval, *, run_id: str) -> StageResult:
    """Rewrite published raw partitions from the sources as they are now: a deliberate act, after a bug in a source.

    Published nights after the interval keep their rows, but for those that the rewritten nights make redundant;
    revisions are counted anew.

    Returns:
        `details` has for each table the counts of `ingest`, and `restated`: the nights whose partitions changed.
        Validate and transform again from the first of them; predictions that used them are stale until they are
        rescored.
    Raises:
        PartitionNotReady: a night of the interval is not published; ingest publishes it.
        SourceMissing, SourceUnreadable, SourceSchemaMismatch, SourceUnavailable: a source cannot be read; nothing is
            written.
        SourceShrank: as for `ingest`; nothing is written.
        StalePublish: another run published in between.
    """
    entry = lake.dataset(dataset)
    plans = [_plan(lake, entry, name, interval) for name in entry.tables]
    for plan in plans:
        if plan.open is not None:
            raise PartitionNotReady(
                f"{plan.raw.name} has no partition {plan.open.start}: nothing to restate. Run `{dataset}_ingest` for "
                "it."
            )
    details: dict[str, Any] = {}
    committed = 0
    with _session(lake, "restate") as (connection, folder):
        reads = {plan.name: _read(lake, entry, plan, interval, connection, folder) for plan in plans}
        for plan in plans:
            whole = Interval.closed(interval.start, max(plan.published))
            computed = _compute(connection, entry, plan, whole, reads[plan.name], fresh=interval)
            # No fingerprint: these partitions no longer follow from one source alone.
            read = replace(reads[plan.name], fingerprint=None)
            done = _publish(lake, connection, plan, whole, computed, run_id, read=read)
            committed += len(done.committed)
            restated = [day.isoformat() for day in done.committed]
            details[plan.name] = _counts(plan, interval, computed.counts) | {
                "rows": _rows(plan, interval, done),
                "restated": restated,
            }
    return StageResult(
        "restate", dataset, str(interval), sum(table["rows"] for table in details.values()), committed, details
    )


@contextmanager
def _session(lake: Lake, prefix: str) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
    with ExitStack() as stack:
        folder = stack.enter_context(lake.scratch(prefix))
        yield stack.enter_context(lake.duckdb()), folder


def _plan(lake: Lake, dataset: Dataset, name: str, interval: Interval) -> _Plan:
    raw = raw_table(lake.settings, dataset, name)
    loaded = raw.load()
    version = loaded.version() if loaded is not None else -1
    published = lake.publications.current(raw, loaded=loaded, as_of_version=version) if loaded is not None else {}
    first_open = max(published) + ONE_DAY if published else dataset.first_data_date
    if interval.start < dataset.first_data_date:
        raise PartitionNotReady(
            f"{raw.name} has no partition {interval.start}: {dataset.name} begins with data date "
            f"{dataset.first_data_date}. Ingest from there."
        )
    if interval.start > first_open:
        latest = f"latest is {first_open - ONE_DAY}" if published else "nothing is published"
        raise PartitionNotReady(
            f"{raw.name} has no partition {interval.start - ONE_DAY} ({latest}).\n"
            f"  Ingesting {interval.start} needs every night before it. "
            f"Run `{dataset.name}_ingest` or `{dataset.name}_history` from {first_open} on, then clear this task."
        )
    return _Plan(
        name, raw, version, published, Interval(first_open, interval.end) if interval.end > first_open else None
    )


def _read(
    lake: Lake, dataset: Dataset, plan: _Plan, nights: Interval, connection: duckdb.DuckDBPyConnection, folder: Path
) -> SourceRead:
    table = dataset.tables[plan.name]
    # Where every delivery is whole, what waits in one comes again with the next.
    also = _still_waiting(plan, nights) if is_dated(table) and table.deletes == "keep" else ()
    return read_source(
        lake, dataset.name, plan.name, nights, connection, name=f"source_of_{plan.name}", folder=folder, also=also
    )


def _still_waiting(plan: _Plan, nights: Interval) -> tuple[date, ...]:
    """Earlier nights whose deliveries held rows that become known in `nights` only."""
    waiting: dict[str, str] = {}
    for day, publication in plan.published.items():
        if day < nights.start:
            waiting |= {
                night: until
                for night, until in publication.details.get("waiting", {}).items()
                if date.fromisoformat(night) < nights.start
            }
    return tuple(
        sorted(
            date.fromisoformat(night) for night, until in waiting.items() if date.fromisoformat(until) >= nights.start
        )
    )


def _compute(
    connection: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    plan: _Plan,
    nights: Interval,
    read: SourceRead,
    *,
    fresh: Interval | None = None,
) -> _Computed:
    """Work out the raw rows of `nights`, into a DuckDB table.

    Args:
        fresh: nights whose rows come from the source; the later ones come from raw as it is published. None: all.
    """
    judged = nights if plan.open is not None else fresh
    fresh = fresh or nights
    table = dataset.tables[plan.name]
    columns, keys = list(table.columns), list(table.key)
    closes = table.deletes == "close"
    content = f"hash({_listed(columns)})"
    register_nights(connection, nights, dataset.time_zone)
    names = {
        "start": f"DATE '{fresh.start}'",
        "end": f"DATE '{fresh.end}'",
        "first": f"DATE '{dataset.first_data_date}'",
        "source": quoted(read.view),
        "computed": quoted(f"computed_{plan.name}"),
        "columns": _listed(columns),
        "a_columns": _listed(columns, "a"),
        "key": _listed(keys),
        "row_number": quoted(row_number_column(table.columns)),
        "a_key": _listed(keys, "a"),
        "same_key": " AND ".join(f"a.{quoted(k)} IS NOT DISTINCT FROM b.{quoted(k)}" for k in keys),
        # Compared between two arrivals of one key, as the sum over their rows, never stored: 64 bits suffice.
        "content": content,
        # What a row of raw says of its key: its content, null where it says that the key is closed.
        "stored": f'CASE WHEN NOT "{CLOSED_COLUMN}" THEN {content} END' if closes else content,
        "key_given": " AND ".join(f"{quoted(k)} IS NOT NULL" for k in keys),
        "closing": f', a.nf__content IS NULL AS "{CLOSED_COLUMN}"' if closes else "",
        # A row that does not say when it became known is known when it is seen.
        "landing": f"greatest(nf__natural_date, coalesce(nf__delivered, DATE '{fresh.start}'))",
    }

    def run(template: str) -> list[tuple[Any, ...]]:
        return connection.execute(template.format_map(names)).fetchall()

    before = {day: publication for day, publication in plan.published.items() if day < fresh.start}
    alone = (
        bool(before)
        and read.fingerprint is not None
        and all(p.details.get("source") == read.fingerprint for p in before.values())
    )
    candidates = _CANDIDATES
    if alone:
        candidates += " AND nf__natural_date >= {start}"
    if closes and read.dated:
        candidates += " AND (nf__natural_date IS NULL OR nf__natural_date <= nf__delivered)"
    run(candidates + _NEWEST)
    kept = [day for day in plan.published if fresh.end <= day < nights.end]
    if kept:
        _register(connection, plan, table, "kept", kept, plan.version)
        run(
            "INSERT INTO candidates SELECT {columns}, known_at_utc, data_date, data_date, data_date, {stored} FROM kept"
        )
    if alone and run(_SEEN_EARLIER)[0][0]:
        # Every night before was made from these very bytes, so none of their rows is late; but some of tonight's keys
        # have earlier rows.
        alone = False
    _register(connection, plan, table, "before", [] if alone else before, max(plan.version, 0))
    run(_KNOWN + ("" if closes else _OF_CANDIDATES) + _HIGHEST)
    if closes:
        run(_CLOSED_AT_START)
        if read.dated:
            run(_CLOSED_LATER)
    run(_LANDED)
    closed = run(_CLOSED) if closes else []
    if judged is not None:
        _require_whole(plan, table, [row for row in closed if row[0] in judged])
    run(_COMPUTED)
    return _Computed(
        f"computed_{plan.name}", *_count(run, read.dated, sum(row[1] for row in closed if row[0] in fresh))
    )


def _register(
    connection: duckdb.DuckDBPyConnection,
    plan: _Plan,
    table: Table,
    view: str,
    days: Iterable[date],
    version: int,
) -> None:
    """Rows of raw, as they would be read now."""
    plan.raw.register(connection, f"{view}_stored", days, version)
    columns = without_nan(plan.raw.schema, table)
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS SELECT {columns} FROM {view}_stored")  # noqa: S608 (quoted)


# A row's candidates for a key and landing night: those of the newest delivery and natural night.
_CANDIDATES = """
CREATE OR REPLACE TEMP TABLE candidates AS
SELECT {columns}, known_at_utc, nf__natural_date, nf__delivered, {landing} AS nf__landing, {content} AS nf__content
FROM {source}
WHERE {landing} >= {start} AND {landing} < {end} AND (nf__natural_date IS NULL OR nf__natural_date >= {first})
"""
_NEWEST = """
QUALIFY rank() OVER (
    PARTITION BY {key}, nf__landing ORDER BY nf__delivered DESC NULLS LAST, nf__natural_date DESC NULLS LAST
) = 1
"""
_SEEN_EARLIER = """
SELECT EXISTS (
    SELECT 1 FROM {source} AS a INNER JOIN candidates AS b ON {same_key} WHERE a.nf__natural_date < {start}
)
"""
# What the nights before knew of these keys: the rows of each key's highest revision.
_KNOWN = """
CREATE OR REPLACE TEMP TABLE known AS
SELECT {key}, revision, sum(nf__content) AS nf__content
FROM (
    SELECT {key}, revision, {stored} AS nf__content
    FROM before AS a
"""
_OF_CANDIDATES = "WHERE EXISTS (SELECT 1 FROM candidates AS b WHERE {same_key})"
_HIGHEST = """
    QUALIFY rank() OVER (PARTITION BY {key} ORDER BY revision DESC) = 1
)
GROUP BY ALL
"""
# Keys that a delivery lacks arrive in its night without content. Whether that closes them, `landed` says.
_CLOSED_AT_START = """
INSERT INTO candidates BY NAME
SELECT {a_key}, {start} AS nf__landing
FROM known AS a
WHERE nf__content IS NOT NULL AND {key_given} AND NOT EXISTS (
    SELECT 1 FROM {source} AS b WHERE {same_key} AND (b.nf__delivered IS NULL OR b.nf__delivered = {start})
)
"""
_CLOSED_LATER = """
INSERT INTO candidates BY NAME
SELECT DISTINCT {a_key}, a.nf__delivered + 1 AS nf__landing
FROM {source} AS a
WHERE a.nf__delivered + 1 < {end} AND {key_given} AND NOT EXISTS (
    SELECT 1 FROM {source} AS b WHERE {same_key} AND b.nf__delivered = a.nf__delivered + 1
)
"""
# The arrivals that change what is known of their key, and the revision each of them is.
_LANDED = """
CREATE OR REPLACE TEMP TABLE landed AS
WITH arrivals AS (
    SELECT {key}, nf__landing, sum(nf__content) AS nf__content FROM candidates GROUP BY ALL
),
compared AS (
    SELECT
        a.*,
        b.revision AS nf__known_revision,
        lag(a.nf__content, 1, b.nf__content) OVER w AS nf__before
    FROM arrivals AS a
    LEFT JOIN known AS b ON {same_key}
    WINDOW w AS (PARTITION BY {a_key} ORDER BY a.nf__landing)
)
SELECT {key}, nf__landing, CAST(coalesce(nf__known_revision + 1, 0) + row_number() OVER (PARTITION BY {key}
  ORDER BY nf__landing) - 1 AS INTEGER) AS revision, nf__content IS NULL AS nf__closes, nf__before IS NULL AS nf__opens
FROM compared
WHERE nf__before IS DISTINCT FROM nf__content
"""
# Per night that closes keys: how many, and how many were open before it.
_CLOSED = """
SELECT nf__landing, nf__closed, nf__known + nf__opened_before
FROM (
    SELECT
        nf__landing,
        count(*) FILTER (nf__closes) AS nf__closed,
        (SELECT count(nf__content) FROM known) AS nf__known,
        coalesce(sum(count(*) FILTER (nf__opens) - count(*) FILTER (nf__closes)) OVER (
            ORDER BY nf__landing ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ), 0) AS nf__opened_before
    FROM landed
    GROUP BY nf__landing
)
WHERE nf__closed > 0
ORDER BY nf__landing
"""
_COMPUTED = """
CREATE OR REPLACE TEMP TABLE {computed} AS
SELECT
    {a_columns},
    coalesce(a.known_at_utc, n.cutoff_utc) AS known_at_utc,
    b.revision,
    row_number() OVER (PARTITION BY {a_key}, a.nf__landing ORDER BY {a_columns}, a.known_at_utc) AS {row_number},
    a.nf__landing AS data_date,
    a.nf__natural_date{closing}
FROM candidates AS a
INNER JOIN landed AS b ON a.nf__landing = b.nf__landing AND {same_key}
INNER JOIN nights AS n ON n.data_date = a.nf__landing
"""
_COUNT_COMPUTED = """
SELECT count(*) FILTER (revision = 0 AND nf__natural_date < data_date), count(*) FILTER (revision > 0)
  FROM {computed} WHERE data_date < {end}
"""
_COUNT_SOURCE = """
SELECT count(*) FILTER (nf__natural_date >= {end}), count(*) FILTER (nf__natural_date < {first}),
  count(*) FILTER (nf__natural_date IS NULL) FROM {source}
"""
_WAITING = """
SELECT nf__delivered, max(nf__natural_date)
FROM {source} WHERE nf__natural_date >= {end} GROUP BY nf__delivered ORDER BY nf__delivered
"""


def _require_whole(plan: _Plan, table: Table, nights: Iterable[tuple[Any, ...]]) -> None:
    """Refuse a night, of (data date, keys it closes, keys open before it), that closes more of them than it may."""
    for night, closed, before in nights:
        share = closed / before
        if share > table.max_closed_share:
            raise SourceShrank(
                f"the source of {plan.raw.name} lacks {closed} of the {before} keys that were open before {night}: "
                f"share {share:.3f}, more than max_closed_share {table.max_closed_share:g}. Nothing was written.\n"
                "  A delivery that was cut short? Correct it, then clear this task. If these keys are gone, raise "
                f"`max_closed_share` of the table to {share:.3f} or more (1 lets a delivery close all) for this run."
            )


def _count(
    run: Callable[[str], list[tuple[Any, ...]]], dated: bool, closed: int
) -> tuple[dict[str, int], dict[str, str]]:
    late, revisions = run(_COUNT_COMPUTED)[0]
    waiting, before_start, undated = run(_COUNT_SOURCE)[0]
    until = {night.isoformat(): last.isoformat() for night, last in run(_WAITING)} if dated else {}
    return {
        "late": late,
        "corrections": revisions - closed,
        "closed": closed,
        "waiting": waiting,
        "before_start": before_start,
        "undated": undated,
    }, until


def _listed(columns: Sequence[str], relation: str | None = None) -> str:
    return ", ".join(f"{relation}.{quoted(column)}" if relation else quoted(column) for column in columns)


def _counts(plan: _Plan, interval: Interval, counts: Mapping[str, int]) -> dict[str, int]:
    none = {
        "rows": _rows(plan, interval, None),
        "late": 0,
        "corrections": 0,
        "closed": 0,
        "waiting": 0,
        "before_start": 0,
        "undated": 0,
    }
    return none | dict(counts)


def _rows(plan: _Plan, interval: Interval, done: Published | None) -> int:
    stands = {**plan.published, **(done.publications if done else {})}
    return sum(publication.rows for day, publication in stands.items() if day in interval)


def _publish(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    plan: _Plan,
    nights: Interval,
    computed: _Computed,
    run_id: str,
    *,
    read: SourceRead,
) -> Published:
    order = _listed(["data_date", *plan.raw.key])
    names = _listed(plan.raw.schema.names)
    reader = connection.sql(f"SELECT {names} FROM {quoted(computed.view)} ORDER BY {order}").to_arrow_reader(  # noqa: S608 (quoted)
        _BATCH_ROWS
    )
    stated: dict[str, Any] = {"source": read.fingerprint, "waiting": computed.waiting}
    if read.differences:
        stated["differences"] = told(read.differences)
    lineage = replace(lake.lineage(plan.raw.name.split("/")[0], run_id), details=stated)
    replaces = {day: plan.published[day].digest if day in plan.published else None for day in nights}
    with lake.scratch("publish") as scratch:
        return publish(lake.publications, plan.raw, reader, nights, replaces=replaces, lineage=lineage, scratch=scratch)


def _confirm(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    plan: _Plan,
    nights: Interval,
    computed: _Computed,
    run_id: str,
    read: SourceRead,
) -> tuple[date, ...]:
    """Compare with what is published; where its files are damaged write the same rows again, and say of which nights.

    Raises:
        SourceChanged: the rows differ; nothing is written.
        PartitionDamaged: they differ, and what was published cannot be read to show how; nothing is written.
    """
    loaded = plan.raw.load(plan.version)
    damaged = plan.raw.damaged(loaded, nights) if loaded is not None else {}
    if not damaged:
        _compare(connection, dataset, plan, nights, computed)
        return ()
    try:
        # Rows of another digest conflict with what is published.
        again = replace(plan, published={})
        sources = {plan.published[day].details.get("source") for day in damaged}
        fingerprint = sources.pop() if len(sources) == 1 else None
        read = replace(read, fingerprint=fingerprint)
        return _publish(lake, connection, again, nights, computed, run_id, read=read).committed
    except StalePublish as error:
        day, problem = min(damaged.items())
        raise PartitionDamaged(
            f"{plan.raw.name}, partition {day}: {problem}, and the source has other rows now than were published. "
            "Nothing was written.\n"
            f"  Restore the file from a backup, or take the source as it is: `python -m cli restate {dataset.name} "
            f"{nights.start} {nights.last}`."
        ) from error


def _compare(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, plan: _Plan, nights: Interval, computed: _Computed
) -> None:
    """Raise SourceChanged where the computed rows are not those published."""
    _register(connection, plan, dataset.tables[plan.name], "published", nights, plan.version)
    names = _listed(plan.raw.schema.names)
    kinds = {name: DUCKDB_TYPES[column.type] for name, column in dataset.tables[plan.name].columns.items()}
    fresh = f"SELECT {names} FROM {quoted(computed.view)}"  # noqa: S608 (quoted)
    stands = f"SELECT {names} FROM published"  # noqa: S608 (quoted)
    difference = (
        f"SELECT 'source' AS nf__side, * FROM ({fresh} EXCEPT ALL {stands})"  # noqa: S608
        f" UNION ALL SELECT 'published', * FROM ({stands} EXCEPT ALL {fresh})"
    )
    count = connection.execute(f"SELECT count(*) FROM ({difference})").fetchall()[0][0]  # noqa: S608
    if not count:
        return
    order = _listed(["data_date", *plan.raw.key])
    ordered = f"SELECT * FROM ({difference}) ORDER BY {order}, nf__side LIMIT {_EXAMPLES}"  # noqa: S608
    shown = connection.sql(ordered).to_arrow_table()
    examples = "\n".join(
        f"  - {row['data_date']}, in the {_side(shown_row(row, plan.raw.personal), list(kinds))}"
        for row in shown.to_pylist()
    )
    table = dataset.tables[plan.name]
    if is_dated(table):
        remedy = "A changed delivery of a published night is not read again"
    elif table.deletes == "close":
        remedy = "The next unpublished night lands new and changed rows as late rows and revisions and closes lost keys"
    else:
        remedy = (
            "The next unpublished night lands new and changed rows as late rows and revisions; rows that are gone stay "
            "(`deletes: keep`)"
        )
    raise SourceChanged(
        f"the source of {plan.raw.name} has other rows for {nights} than when they were published: {count} rows "
        f"differ. For example\n{examples}\n"
        f"  Nothing was written. {remedy}. To rewrite these nights on purpose: `python -m cli restate {dataset.name} "
        f"{nights.start} {nights.last}`."
    )


def _side(row: Mapping[str, Any], columns: list[str]) -> str:
    values = ", ".join(f"{name}={row[name]}" for name in (*columns, "revision"))
    if row.get(CLOSED_COLUMN):
        values += ", closed"
    return f"{'source alone' if row['nf__side'] == 'source' else 'lake alone'}: {values}"

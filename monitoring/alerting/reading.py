"""What pages read, from the indexed SQL projections, by period: never a Delta log, never a whole table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa

from config.calendar import Interval
from lake.lake import Lake
from lake.lineage import as_utc, publications_table
from lake.metrics import METRIC_SCHEMA, SQL_TABLE
from lake.projection import has_table, sql_columns

Row = Mapping[str, Any]
_metrics = sql_columns(SQL_TABLE, METRIC_SCHEMA)


@dataclass(frozen=True)
class Published:
    """The newest publication of one table's night, and how often it was published before.

    Attributes:
        first_at, newest_at: instants of the first and of the newest commit, UTC.
        times: commits of this night; more than one means that it was rewritten.
    """

    table: str
    data_date: date
    digest: str
    rows: int
    version: int
    run_id: str
    first_at: datetime
    newest_at: datetime
    times: int


def read_metrics_of(
    lake: Lake,
    subjects: Iterable[str],
    interval: Interval,
    *,
    by: str = "about_date",
    checks: Collection[str] | None = None,
    columns: Collection[str] | None = None,
    segments: bool = False,
) -> list[Row]:
    """Metrics about (or, `by="data_date"`, judged in) the nights of a period, sorted by subject, date, check, column,
    segment.

    A night that was judged twice (restated labels) counts as judged last. `segments`: rows of segments, too.
    """
    if not has_table(lake, SQL_TABLE):
        return []
    c = _metrics.c
    when = c[by]
    query = sa.select(_metrics).where(c.subject.in_(list(subjects)), when >= interval.start, when < interval.end)
    if checks is not None:
        query = query.where(c.check.in_(list(checks)))
    if columns is not None:
        query = query.where(c.column.in_(list(columns)))
    if not segments:
        query = query.where(c.segment == "")
    query = query.order_by(c.subject, c.about_date, c.check, c.column, c.segment, c.data_date)
    with lake.engine.connect() as connection:
        rows = connection.execute(query).mappings().all()
    newest: dict[tuple[Any, ...], Row] = {
        (r["subject"], r["about_date"], r["check"], r["column"], r["segment"]): dict(r) for r in rows
    }
    return list(newest.values())


def published_nights(
    lake: Lake, tables: Iterable[str], interval: Interval | None = None
) -> dict[str, dict[date, Published]]:
    """By table and night, from the index of publications as the last writer left it."""
    c = publications_table.c
    query = sa.select(c.table_name, c.data_date, c.version, c.digest, c.row_count, c.run_id, c.committed_at).where(
        c.table_name.in_(list(tables))
    )
    if interval is not None:
        query = query.where(c.data_date >= interval.start, c.data_date < interval.end)
    found: dict[str, dict[date, Published]] = {}
    if not has_table(lake, publications_table.name):
        return found
    with lake.engine.connect() as connection:
        for row in connection.execute(query.order_by(c.table_name, c.data_date, c.version)):
            at = as_utc(row.committed_at)
            nights = found.setdefault(row.table_name, {})
            before = nights.get(row.data_date)
            nights[row.data_date] = Published(
                row.table_name,
                row.data_date,
                row.digest,
                row.row_count,
                row.version,
                row.run_id,
                before.first_at if before else at,
                at,
                before.times + 1 if before else 1,
            )
    return found


def newest_nights(lake: Lake, tables: Iterable[str]) -> dict[str, date]:
    """The newest published night of each table; tables without one are left out."""
    if not has_table(lake, publications_table.name):
        return {}
    c = publications_table.c
    query = (
        sa.select(c.table_name, sa.func.max(c.data_date).label("newest"))
        .where(c.table_name.in_(list(tables)))
        .group_by(c.table_name)
    )
    with lake.engine.connect() as connection:
        return {row.table_name: row.newest for row in connection.execute(query)}

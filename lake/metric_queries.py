"""The one way to ask the SQL table `metrics`: by subject, period, check and role, never the whole of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import date
from typing import Any

import sqlalchemy as sa

from config.calendar import Interval
from lake.assignment import CHAMPION
from lake.lake import Lake
from lake.metrics import METRIC_SCHEMA, SQL_TABLE
from lake.projection import has_table, projections_table, sql_columns
from lake.publication_queries import AT_ONCE, any_pair

METRICS = sql_columns(SQL_TABLE, METRIC_SCHEMA)
Row = Mapping[str, Any]


def these(
    subjects: Iterable[str],
    *,
    about: Interval | None = None,
    judged: Interval | None = None,
    checks: Collection[str] | None = None,
    columns: Collection[str] | None = None,
    segments: bool = False,
    role: str | None = CHAMPION,
) -> list[sa.ColumnElement[bool]]:
    """Conditions on METRICS, all of which hold; what is None is not asked for.

    Args:
        about, judged: nights that a row is about, and that judged it.
        segments: rows of segments, too.
        role: rows about a version in that role, and those about no version; None: about whatever version.
    """
    c = METRICS.c
    where: list[sa.ColumnElement[bool]] = [c.subject.in_(list(subjects))]
    for column, interval in ((c.about_date, about), (c.data_date, judged)):
        if interval is not None:
            where += [column >= interval.start, column < interval.end]
    for column, values in ((c.check, checks), (c.column, columns)):
        if values is not None:
            where.append(column.in_(list(values)))
    if not segments:
        where.append(c.segment == "")
    if role is not None:
        where.append(sa.or_(c.role == role, c.role.is_(None)))
    return where


def fetch(lake: Lake, query: sa.Select[Any] | sa.CompoundSelect[Any]) -> list[Any]:
    """The rows of a query on METRICS; none before anything was measured."""
    if not has_table(lake, SQL_TABLE):
        return []
    with lake.engine.connect() as connection:
        return list(connection.execute(query).all())


def read_metrics_of(
    lake: Lake,
    subjects: Iterable[str],
    interval: Interval,
    *,
    by: str = "about_date",
    checks: Collection[str] | None = None,
    columns: Collection[str] | None = None,
    segments: bool = False,
    role: str | None = CHAMPION,
) -> list[Row]:
    """Metrics about (or, `by="data_date"`, judged in) the nights of a period, sorted by subject, date, check, column,
    segment, role.

    A night that was judged twice (restated labels) counts as judged last. `segments`: rows of segments, too. `role`:
    as in `these`.
    """
    period = {"about_date": "about", "data_date": "judged"}[by]
    where = these(subjects, checks=checks, columns=columns, segments=segments, role=role, **{period: interval})
    c = METRICS.c
    order = (c.subject, c.about_date, c.check, c.column, c.segment, c.role, c.data_date)
    newest: dict[tuple[Any, ...], Row] = {}
    for row in fetch(lake, sa.select(METRICS).where(*where).order_by(*order)):
        newest[row.subject, row.about_date, row.check, row.column, row.segment, row.role] = dict(row._mapping)
    return list(newest.values())


def read_newest_nights(
    lake: Lake,
    subjects: Collection[str],
    *,
    as_of: date | None = None,
    checks: Collection[str] | None = None,
    statuses: Collection[str] | None = None,
    segments: bool = False,
    role: str | None = CHAMPION,
) -> list[Row]:
    """Metrics of the newest projected night of each group of those subjects (drift, performance, quality, …), in order
    of the nights that they are about.

    Args:
        as_of: looks at no later data date.
    """
    if not (subjects and has_table(lake, SQL_TABLE) and has_table(lake, projections_table.name)):
        return []
    p, c = projections_table.c, METRICS.c
    # Groups of a subject lie side by side in the projections' primary key, which knows empty nights, too.
    names = dict.fromkeys(subjects)
    mine = sa.or_(*(sa.and_(p.table_name >= f"{n}/metrics/", p.table_name < f"{n}/metrics0") for n in names))
    newest = sa.select(p.table_name, sa.func.max(p.data_date)).where(p.sql_table == SQL_TABLE, mine)
    if as_of is not None:
        newest = newest.where(p.data_date <= as_of)
    where = these(names, checks=checks, segments=segments, role=role)
    if statuses is not None:
        where.append(c.status.in_(list(statuses)))
    query = sa.select(METRICS).where(*where)
    rows: list[Row] = []
    with lake.engine.connect() as connection:
        groups = [(name, night) for name, night in connection.execute(newest.group_by(p.table_name))]
        for start in range(0, len(groups), AT_ONCE):
            some = query.where(any_pair(c.source_table, c.data_date, groups[start : start + AT_ONCE]))
            rows += [dict(row) for row in connection.execute(some).mappings()]
    return sorted(rows, key=lambda row: row["about_date"])

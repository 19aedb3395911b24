"""What was published when, for many tables at once, from the index of publications as its writers left it: no Delta log
is opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa

from config.calendar import Interval
from lake.assignment import Plan, scored_by
from lake.lake import Lake
from lake.lineage import as_utc, closed_keys, publications_table
from lake.projection import has_table

AT_ONCE = 200  # parts of a statement: SQLite takes at most 500 of a union


@dataclass(frozen=True)
class PublishedNight:
    """The newest publication of one table's night, and how often it was published before.

    Attributes:
        first_at, newest_at: instants of the first and of the newest commit, UTC.
        times: commits of this night; more than one means that it was rewritten.
        details: of the newest commit, as JSON.
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
    details: str

    @property
    def closed(self) -> int:
        """Of a valid table: how many of the rows say that their key is gone (`deletes: close`)."""
        return closed_keys(json.loads(self.details), self.data_date)

    @property
    def scored_by(self) -> Plan:
        """Of predictions: the assignments that scored the night, by role; empty where it is not recorded."""
        return scored_by(self.data_date, json.loads(self.details))


def published_nights(
    lake: Lake, tables: Iterable[str], interval: Interval | None = None
) -> dict[str, dict[date, PublishedNight]]:
    """By table and night, in date order."""
    c = publications_table.c
    where: list[sa.ColumnElement[bool]] = [c.table_name.in_(list(tables))]
    if interval is not None:
        where += [c.data_date >= interval.start, c.data_date < interval.end]
    return _nights(lake, [sa.and_(*where)])


def newest_nights(lake: Lake, tables: Iterable[str]) -> dict[str, date]:
    """The newest published night of each table; tables without one are left out."""
    if not has_table(lake, publications_table.name):
        return {}
    c = publications_table.c
    newest: dict[str, date] = {}
    with lake.engine.connect() as connection:
        for some in _in_turn(sorted(set(tables))):
            # One look at the end of each table's part of the primary key.
            parts = [
                sa.select(
                    sa.literal(name).label("name"),
                    sa.select(sa.func.max(c.data_date)).where(c.table_name == name).scalar_subquery().label("newest"),
                )
                for name in some
            ]
            rows = connection.execute(sa.union_all(*parts))
            newest |= {row.name: row.newest for row in rows if row.newest is not None}
    return newest


def newest_publications(lake: Lake, tables: Iterable[str]) -> dict[str, PublishedNight]:
    """The newest published night of each table, whole; tables without one are left out."""
    pairs = list(newest_nights(lake, tables).items())
    where = [
        any_pair(publications_table.c.table_name, publications_table.c.data_date, some) for some in _in_turn(pairs)
    ]
    return {name: night for name, nights in _nights(lake, where).items() for night in nights.values()}


def any_pair(table_name: Any, data_date: Any, pairs: Sequence[tuple[str, date]]) -> sa.ColumnElement[bool]:
    """One of those tables' nights; spelled out, because SQLite looks up no pair of columns in a list by an index."""
    return sa.or_(*(sa.and_(table_name == name, data_date == night) for name, night in pairs))


def _in_turn(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE))


def _nights(lake: Lake, wheres: Iterable[sa.ColumnElement[bool]]) -> dict[str, dict[date, PublishedNight]]:
    nights: dict[str, dict[date, PublishedNight]] = {}
    if not has_table(lake, publications_table.name):
        return nights
    c = publications_table.c
    columns = (c.table_name, c.data_date, c.version, c.digest, c.row_count, c.run_id, c.committed_at, c.details)
    query = sa.select(*columns).order_by(c.table_name, c.data_date, c.version)
    with lake.engine.connect() as connection:
        for where in wheres:
            for row in connection.execute(query.where(where)):
                at = as_utc(row.committed_at)
                of_table = nights.setdefault(row.table_name, {})
                before = of_table.get(row.data_date)
                of_table[row.data_date] = PublishedNight(
                    row.table_name,
                    row.data_date,
                    row.digest,
                    row.row_count,
                    row.version,
                    row.run_id,
                    before.first_at if before else at,
                    at,
                    before.times + 1 if before else 1,
                    row.details,
                )
    return nights

"""Rows of a valid table as each night knew them: the newest revision that had arrived by then."""

# ruff: noqa: S608 (names come from the typed catalog, quoted)
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from config.calendar import Interval
from lake.lake import Lake
from lake.lineage import Input, Publication
from lake.tables import CLOSED_COLUMN, LakeTable

# Delta keeps the statistics of a timestamp cut to milliseconds.
_STATISTICS_MARGIN = timedelta(seconds=1)


@dataclass(frozen=True)
class KnownTable:
    """A valid table pinned at one Delta version, restricted to the partitions that can tell of some rows.

    Attributes:
        column: the rows are those whose `column` lies in a range; None: all rows.
        dates: published partitions from the earliest that may hold such a row, to the last night asked for. Every one
            between belongs to it, since it may hold a revision that moved the row elsewhere.
    """

    table: LakeTable
    version: int
    column: str | None
    dates: tuple[date, ...]
    published: Mapping[date, Publication]
    _files: pa.Table

    def register(self, connection: duckdb.DuckDBPyConnection, view: str, key: tuple[str, ...]) -> None:
        """DuckDB view of every revision in those partitions, with `superseded_on`: the night its next revision arrived
        in, or its key was closed in, else null.

        Night n knows the rows with `data_date <= n AND (superseded_on IS NULL OR superseded_on > n)`.
        """
        self.table.register(connection, f"{view}_revisions", self.dates, self.version)
        keys = ", ".join(f'"{name}"' for name in key)
        revisions = (
            f"SELECT *, lead(data_date) OVER (PARTITION BY {keys} ORDER BY data_date, revision) AS superseded_on "
            f'FROM "{view}_revisions"'
        )
        if self.table.closes:
            revisions = f'SELECT * EXCLUDE ("{CLOSED_COLUMN}") FROM ({revisions}) WHERE NOT "{CLOSED_COLUMN}"'
        connection.execute(f'CREATE OR REPLACE TEMP VIEW "{view}" AS {revisions}')

    def inputs(self) -> list[Input]:
        """Those partitions as lineage."""
        return [self.published[day].as_input() for day in self.dates]

    def inputs_of(self, night: date, low: Any, high: Any) -> list[Input]:
        """The partitions that tell what `night` knew of rows in `[low, high]`, its own among them: the same however
        many nights are read at once.
        """
        first = _first_overlap(self._files, self.column, low, high)
        return [
            p.as_input()
            for day, p in self.published.items()
            if day == night or (first is not None and first <= day <= night)
        ]


def known_table(
    lake: Lake,
    table: LakeTable,
    last: date,
    *,
    column: str | None,
    low: Any,
    high: Any,
    first: date | None = None,
    version: int | None = None,
) -> KnownTable:
    """The partitions that can tell what was known by `last` of rows whose `column` lies in `[low, high]` (low None:
    there are no such rows; column None: of all rows).

    Files are judged by their own statistics; nothing is read. Those from `first` on belong to it in any case.
    """
    delta = table.load(version)
    if delta is None:
        return KnownTable(table, 0, column, (), {}, pa.table({}))
    files = pa.table(delta.get_add_actions(flatten=True))
    overlap = _first_overlap(files, column, low, high) if low is not None else None
    first = min(first or last, overlap or last)
    published = lake.publications.current(table, Interval.closed(first, last), as_of_version=delta.version())
    return KnownTable(table, delta.version(), column, tuple(published), published, files)


def _first_overlap(files: pa.Table, column: str | None, low: Any, high: Any) -> date | None:
    if isinstance(low, datetime):
        low, high = low - _STATISTICS_MARGIN, high + _STATISTICS_MARGIN
    lowest, highest = f"min.{column}", f"max.{column}"
    if isinstance(low, date | int) and lowest in files.column_names and highest in files.column_names:
        kind = files[lowest].type
        ends_late = pc.greater_equal(files[highest], pa.scalar(low, kind))
        begins_early = pc.less_equal(files[lowest], pa.scalar(high, kind))
        files = files.filter(pc.fill_null(pc.and_(ends_late, begins_early), True))
    earliest: date | None = pc.min(files["partition.data_date"]).as_py()
    return earliest

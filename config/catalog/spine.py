"""Spines: what a model scores on a night. One class a kind, and all that is particular to the kind is said in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from pydantic import Field

from config.calendar import ONE_DAY
from config.catalog.base import Model
from config.catalog.data import TRAINING_COLUMNS, Column, Dataset, Table
from config.durations import Duration, format_duration


class Span(NamedTuple):
    """Which rows of a spine's table can tell what some nights score: those whose `column` lies in `[low, high]`.

    Without a column, all of them can.
    """

    column: str | None
    low: datetime
    high: datetime


class Misfit(NamedTuple):
    """A value of a model's file that does not fit the rest of the catalog, and what it would have to be."""

    key: str
    value: object
    expectation: str


class TableSpine(Model):
    """What is scored: the rows of `table` known at T with cutoff(T) < target_time <= cutoff(T+1)."""

    table: str
    entity: tuple[str, ...] = Field(min_length=1)
    target_time: str
    horizon: Duration = ONE_DAY

    @property
    def source(self) -> str:
        """Where the rows come from, in a word."""
        return self.table

    @property
    def step_column(self) -> None:
        """The entity column that holds the begin of a step: rows of a table are not steps."""
        return None

    @property
    def every(self) -> None:
        """The length of a step: rows of a table are not steps."""
        return None

    def span(self, first_cutoff: datetime, last_cutoff: datetime, end: datetime) -> Span:
        """The rows that nights with those cutoffs may score, `end` being the last target time of the last of them."""
        return Span(self.target_time, first_cutoff, end)

    def misfits(self, dataset: Dataset) -> Iterator[Misfit]:
        """What does not fit the data set. Each is asked for only when those before it do not hold."""
        if self.table not in dataset.tables:
            yield Misfit("spine.table", self.table, f"is not a table of {dataset.name} ({', '.join(dataset.tables)})")
        columns = dataset.tables[self.table].columns
        for name in (*self.entity, self.target_time):
            if name not in columns:
                yield Misfit("spine", name, f"is not a column of table {self.table}")
        if columns[self.target_time].type != "timestamp":
            yield Misfit("spine.target_time", self.target_time, "must be a timestamp column")

    def columns(self, tables: Mapping[str, Table]) -> dict[str, Column]:
        """Columns of a row, the entity first."""
        declared = tables[self.table].columns
        kept = (name for name in declared if name.lower() not in TRAINING_COLUMNS)
        return {name: declared[name] for name in dict.fromkeys((*self.entity, *kept))}

    def rows_sql(self, tables: Mapping[str, Table]) -> str:
        """SELECT of the rows that each night scores: `columns`, data_date, target_time_utc and event_timestamp.

        It reads `windows(data_date, cutoff_utc, end_utc)`, the target times of each night, and `known`, every revision
        of the table's rows with `superseded_on`.
        """
        carried = ", ".join(f'known."{name}"' for name in self.columns(tables) if name != "target_time_utc")
        target = f'known."{self.target_time}"'
        # A target time lies in the windows of as many nights as the horizon has days: the last one before it, found by
        # an ASOF join, and those before that.
        nights = -(-self.horizon // ONE_DAY)
        return f"""
            SELECT {carried}, windows.data_date, {target} AS target_time_utc, windows.cutoff_utc AS event_timestamp
            FROM known ASOF JOIN windows AS latest ON {target} > latest.cutoff_utc
            CROSS JOIN range({nights}) AS earlier(nights)
            JOIN windows ON windows.data_date = latest.data_date - CAST(earlier.nights AS INTEGER)
            WHERE {target} <= windows.end_utc AND known.data_date <= windows.data_date
            AND (known.superseded_on IS NULL OR known.superseded_on > windows.data_date)
        """  # noqa: S608 (names come from the typed catalog, quoted)

    def in_words(self, tables: Mapping[str, Table]) -> str:
        """What one prediction is about: `each row of schedule (…) whose … lies within 1 day after the night`."""
        described = tables[self.table].description.split(". ")[0].strip().rstrip(".")
        return (
            f"each row of {self.table} ({described}) whose {self.target_time} lies within"
            f" {format_duration(self.horizon)} after the night"
        )


class CalendarSpine(Model):
    """What is scored: every step of `every` in (cutoff(T), cutoff(T) + horizon local days]; entity is the step's begin,
    UTC. Steps of whole days are local days, of 23 or 25 hours where the clocks change; others are elapsed time.
    """

    every: Duration
    horizon: Duration = ONE_DAY
    entity: tuple[str] = Field(description="name of the one entity column, a timestamp")

    @property
    def table(self) -> None:
        """The table that the rows are read from: a calendar needs none."""
        return None

    @property
    def target_time(self) -> None:
        """The column of `table` that holds the target time."""
        return None

    @property
    def source(self) -> str:
        """Where the rows come from, in a word."""
        return "calendar"

    @property
    def step_column(self) -> str:
        """The entity column that holds the begin of a step."""
        return self.entity[0]

    def span(self, first_cutoff: datetime, last_cutoff: datetime, end: datetime) -> Span:
        """No row: a calendar reads none."""
        return Span(None, first_cutoff, end)

    def misfits(self, dataset: Dataset) -> Iterator[Misfit]:
        """What does not fit the data set: nothing, since none of it is read."""
        yield from ()

    def columns(self, tables: Mapping[str, Table]) -> dict[str, Column]:
        """Columns of a row, the entity first."""
        return {self.step_column: Column(type="timestamp", description="begin of the step", nullable=False)}

    def rows_sql(self, tables: Mapping[str, Table]) -> str:
        """SELECT of the rows that each night scores: `columns`, data_date, target_time_utc and event_timestamp.

        It reads `windows(data_date, cutoff_utc, end_utc, days_utc)`, the target times of each night and the begins of
        its days.
        """
        return f"""
            SELECT begins AS "{self.step_column}", data_date, begins AS target_time_utc, cutoff_utc AS event_timestamp
            FROM (SELECT *, unnest({_steps_sql(self.every)}) AS begins FROM windows)
        """  # noqa: S608 (names come from the typed catalog, quoted)

    def in_words(self, tables: Mapping[str, Table]) -> str:
        """What one prediction is about: `each hour of the 1 day after the night`."""
        step = format_duration(self.every).removeprefix("1 ")
        return f"each {step} of the {format_duration(self.horizon)} after the night"


class SeriesSpine(Model):
    """What is scored: every step of `every` in [cutoff(T), cutoff(T) + horizon local days) of each entity that `table`
    has at T, for example the next 30 days of every server. The last entity column is the step's begin, UTC; the others
    name the entity.

    With `active_within` an entity is scored while the newest step that T knows of it began within so long before
    cutoff(T): one that stopped is left out from then on, and comes back with its next row. Without it every entity that
    was ever there is scored until its rows are closed (`deletes: close`), and labels that never come are counted.
    """

    table: str
    entity: tuple[str, ...] = Field(min_length=2, description="columns of the entity, then the step's begin")
    every: Duration
    horizon: Duration = ONE_DAY
    active_within: Duration | None = None

    @property
    def target_time(self) -> None:
        """The column of `table` that holds the target time: none does, steps are made."""
        return None

    @property
    def source(self) -> str:
        """Where the rows come from, in a word."""
        return self.table

    @property
    def step_column(self) -> str:
        """The entity column that holds the begin of a step."""
        return self.entity[-1]

    def span(self, first_cutoff: datetime, last_cutoff: datetime, end: datetime) -> Span:
        """The rows that say which entities nights with those cutoffs score."""
        if self.active_within is None:
            return Span(None, first_cutoff, last_cutoff)
        return Span(self.step_column, first_cutoff - self.active_within, last_cutoff)

    def misfits(self, dataset: Dataset) -> Iterator[Misfit]:
        """What does not fit the data set. Each is asked for only when those before it do not hold."""
        if self.table not in dataset.tables:
            yield Misfit("spine.table", self.table, f"is not a table of {dataset.name} ({', '.join(dataset.tables)})")
        columns = dataset.tables[self.table].columns
        for name in self.entity[:-1]:
            if name not in columns:
                yield Misfit("spine.entity", name, f"is not a column of table {self.table}")
        if self.step_column in columns and columns[self.step_column].type != "timestamp":
            yield Misfit("spine.entity", self.step_column, "is the begin of a step, and must be a timestamp column")
        if self.active_within is not None and self.step_column not in columns:
            expectation = (
                f"needs the step {self.step_column!r} as a column of table {self.table}, to say when an entity was "
                "last seen; leave it out, and close what is gone (deletes: close)"
            )
            yield Misfit("spine.active_within", format_duration(self.active_within), expectation)

    def columns(self, tables: Mapping[str, Table]) -> dict[str, Column]:
        """Columns of a row: the entity."""
        declared = tables[self.table].columns
        step = Column(type="timestamp", description="begin of the step", nullable=False)
        return {name: declared[name] for name in self.entity[:-1]} | {self.step_column: step}

    def rows_sql(self, tables: Mapping[str, Table]) -> str:
        """SELECT of the rows that each night scores: `columns`, data_date, target_time_utc and event_timestamp.

        It reads `windows(data_date, cutoff_utc, end_utc, days_utc)`, the target times of each night and the begins of
        its days, and `known`, every revision of the table's rows with `superseded_on`.
        """
        keys = ", ".join(f'known."{name}"' for name in self.entity[:-1])
        there = " AND ".join(f'known."{name}" IS NOT NULL' for name in self.entity[:-1])
        if self.active_within is not None:
            step, reach = f'known."{self.step_column}"', self.active_within // timedelta(microseconds=1)
            there += f" AND {step} < windows.cutoff_utc AND {step} >= windows.cutoff_utc - to_microseconds({reach})"
        return f"""
            SELECT nf__there.*, nf__steps.begins AS "{self.step_column}", nf__steps.begins AS target_time_utc,
                nf__steps.cutoff_utc AS event_timestamp
            FROM (
                SELECT DISTINCT {keys}, windows.data_date
                FROM known JOIN windows ON known.data_date <= windows.data_date
                AND (known.superseded_on IS NULL OR known.superseded_on > windows.data_date)
                WHERE {there}
            ) AS nf__there
            JOIN (SELECT data_date, cutoff_utc, unnest({_steps_sql(self.every)}) AS begins FROM windows) AS nf__steps
            ON nf__steps.data_date = nf__there.data_date
        """  # noqa: S608 (names come from the typed catalog, quoted)

    def in_words(self, tables: Mapping[str, Table]) -> str:
        """What one prediction is about: `each hour of the 30 days after the night, of every server of usage (…)`."""
        step = format_duration(self.every).removeprefix("1 ")
        described = tables[self.table].description.split(". ")[0].strip().rstrip(".")
        seen = f" seen in the {format_duration(self.active_within)} before" if self.active_within else ""
        return (
            f"each {step} of the {format_duration(self.horizon)} after the night, of every "
            f"{' and '.join(self.entity[:-1])} of {self.table} ({described}){seen}"
        )


def _steps_sql(every: timedelta) -> str:
    """SQL of a list, the begins of all steps of a row of `windows`: of whole days local days, others elapsed time."""
    if every % ONE_DAY == timedelta():
        return f"list_filter(days_utc, lambda begin, place: (place - 1) % {every // ONE_DAY} = 0)"
    return f"range(cutoff_utc, end_utc, to_microseconds({every // timedelta(microseconds=1)}))"


AnySpine = TableSpine | CalendarSpine | SeriesSpine

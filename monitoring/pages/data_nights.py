"""Nights of a data set: which are published, and what is true of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from config.calendar import ONE_DAY, BadInterval, Interval, parse_data_date
from config.catalog.data import Dataset
from config.catalog.model import ModelEntry
from features.validate import SCORE
from lake.lake import Lake
from lake.lineage import publications_table
from lake.metric_queries import read_metrics_of
from lake.projection import has_table
from lake.publication_queries import PublishedNight, published_nights
from lake.tables import LakeTable, feature_table, quarantine_table, raw_table, valid_table
from monitoring.alerting.runs import FAILED, Run
from monitoring.pages.page import Context

State = Literal["missing", "quarantined", "late", "republished", "published"]
# The worst first: a night has one colour.
STATES: tuple[State, ...] = get_args(State)
DEFINITIONS: dict[State, str] = {
    "published": "the night's partition exists, and none of the states below applies. It may be empty.",
    "quarantined": "published, and at least one row broke a rule and was quarantined.",
    "late": (
        "first published after a later night, so it was filled in afterwards; or, for a live data set, after the "
        "earliest deadline of the models that read it. Nights published in bulk have no deadline."
    ),
    "republished": "published more than once: its rows were rewritten or recomputed.",
    "missing": (
        "not published, although a later night is, its source was read, its run failed or, for a live data set, its"
        " deadline has passed."
    ),
}


@dataclass(frozen=True)
class Part:
    """A table or a feature view of the data set, whose nights are published one by one.

    Attributes:
        key: in addresses; a table's name, or `features/<view>`.
        table: what holds its published rows; `quarantine`, `raw`: of a table of the catalog only.
    """

    key: str
    table: LakeTable
    quarantine: LakeTable | None = None
    raw: LakeTable | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all its tables in the lake."""
        return tuple(t.name for t in (self.table, self.quarantine, self.raw) if t is not None)


@dataclass(frozen=True)
class Night:
    """One night of one part, as it is published; `published` None where it is missing.

    Attributes:
        states: all that are true of it, the worst first.
        quarantined: rows set aside, None for a feature view.
        closed: keys that the night's delivery lacked and that it closed, None for a feature view.
        score: its quality score, in [0, 1].
    """

    data_date: date
    states: tuple[State, ...]
    published: PublishedNight | None
    quarantined: int | None
    closed: int | None
    score: float | None

    @property
    def rows(self) -> int | None:
        """Rows that came, valid or not; None for a missing night."""
        return None if self.published is None else self.published.rows - (self.closed or 0) + (self.quarantined or 0)

    @property
    def kept(self) -> int | None:
        """Rows that are published, without what only closes a key; None for a missing night."""
        return None if self.published is None else self.published.rows - (self.closed or 0)


def states_of(
    *, published: PublishedNight | None, quarantined: int, later_first_at: datetime | None, deadline: datetime | None
) -> tuple[State, ...]:
    """What is true of a night, the worst first; exactly `published` or `missing` where nothing else is.

    Args:
        later_first_at: the earliest first publication among the later nights, None where there is none.
        deadline: when it had to be published, None where it has no deadline.
    """
    if published is None:
        return ("missing",)
    late = (later_first_at is not None and later_first_at < published.first_at) or (
        deadline is not None and deadline < published.first_at
    )
    states = {"quarantined": quarantined > 0, "late": late, "republished": published.times > 1}
    return tuple(state for state in STATES if states.get(state)) or ("published",)


def parts_of(lake: Lake, entry: Dataset) -> tuple[Part, ...]:
    """Tables, then feature views, in the catalog's order."""
    settings = lake.settings
    tables = [
        Part(n, valid_table(settings, entry, n), quarantine_table(settings, entry, n), raw_table(settings, entry, n))
        for n in entry.tables
    ]
    return (*tables, *(Part(f"features/{view}", feature_table(settings, entry, view)) for view in entry.features))


def bounds_of(lake: Lake, parts: Sequence[Part]) -> dict[str, tuple[date, date]]:
    """First and newest published night of each table of the lake that has any."""
    if not has_table(lake, publications_table.name):
        return {}
    c = publications_table.c
    names = [name for part in parts for name in part.names]
    query = sa.select(c.table_name, sa.func.min(c.data_date).label("low"), sa.func.max(c.data_date).label("high"))
    with lake.engine.connect() as connection:
        return {
            row.table_name: (row.low, row.high)
            for row in connection.execute(query.where(c.table_name.in_(names)).group_by(c.table_name))
        }


def _deadline(entry: Dataset, models: Iterable[ModelEntry], day: date) -> datetime | None:
    """The earliest deadline of the models that read the data set, on the morning after; None in a replay, which has no
    clock.
    """
    times = [model.deadline for model in models]
    if entry.replay or not times:
        return None
    return datetime.combine(day + ONE_DAY, min(times), tzinfo=ZoneInfo(entry.time_zone))


def expected_nights(
    context: Context, entry: Dataset, first: date, newest: date, period: Interval, runs: Sequence[Run]
) -> Interval | None:
    """The nights of the period that ought to be there: from the first published one to the last that came, failed or is
    due.
    """
    last = max([newest, *(day for run in runs if run.state == FAILED and (day := _key(run)) is not None)])
    if not entry.replay:
        models = context.lake.catalog.readers_of(entry.name)
        today = context.now.astimezone(ZoneInfo(entry.time_zone)).date()
        due = next(
            (
                day
                for back in (1, 2)
                if (at := _deadline(entry, models, day := today - timedelta(days=back))) and at < context.now
            ),
            None,
        )
        last = max(last, due or last)
    start, end = max(first, period.start), min(last + ONE_DAY, period.end)
    return Interval(start, end) if start < end else None


def _key(run: Run) -> date | None:
    try:
        return parse_data_date(run.partition_key or "")
    except BadInterval:
        return None  # a key that a person gave is any text


def nights_of(
    lake: Lake,
    entry: Dataset,
    parts: Sequence[Part],
    bounds: Mapping[str, tuple[date, date]],
    period: Interval,
    expected: Interval | None,
) -> dict[str, dict[date, Night]]:
    """By part and night: those of the period that are published or missing."""
    # A later night decides whether one is late, also one of the next year.
    wide = Interval(period.start, period.end + timedelta(days=31))
    published = published_nights(
        lake, (name for part in parts for name in part.names if part.raw is None or name != part.raw.name), wide
    )
    scores = {
        (row["column"], row["about_date"]): row["value"]
        for row in read_metrics_of(lake, [entry.name], period, checks=[SCORE])
    }
    models = lake.catalog.readers_of(entry.name)
    by_part: dict[str, dict[date, Night]] = {}
    for part in parts:
        own = published.get(part.table.name, {})
        aside = published.get(part.quarantine.name, {}) if part.quarantine else {}
        in_bulk = _bulk(own)
        later: datetime | None = None
        nights: dict[date, Night] = {}
        # From its first night on, be it one whose rows came and were rejected.
        start = min((bounds[name][0] for name in part.names if name in bounds), default=None)
        wanted = {day for day in expected or () if start is not None and day >= start}
        for day in sorted({*own, *wanted}, reverse=True):
            one = own.get(day)
            if day in period:
                deadline = None if one is None or one.first_at in in_bulk else _deadline(entry, models, day)
                count = aside[day].rows if day in aside else 0
                states = states_of(published=one, quarantined=count, later_first_at=later, deadline=deadline)
                of_table = one if part.quarantine else None
                nights[day] = Night(
                    day,
                    states,
                    one,
                    count if of_table else None,
                    of_table.closed if of_table else None,
                    scores.get((part.key, day)),
                )
            if one is not None:
                later = one.first_at if later is None else min(later, one.first_at)
        by_part[part.key] = dict(sorted(nights.items()))
    return by_part


def _bulk(own: Mapping[date, PublishedNight]) -> set[datetime]:
    """Instants at which one commit published several nights for the first time."""
    seen: set[datetime] = set()
    return {one.first_at for one in own.values() if one.first_at in seen or seen.add(one.first_at)}  # type: ignore[func-returns-value]  # set.add is the point


def together(parts: Sequence[Part], nights: Mapping[str, Mapping[date, Night]]) -> list[dict[str, Any]]:
    """Each night over those parts: all their states, rows of tables together, the lowest score."""
    days = sorted({day for part in parts for day in nights[part.key]})
    rows = []
    for day in days:
        of_parts = [(part, nights[part.key][day]) for part in parts if day in nights[part.key]]
        states = {state for _, night in of_parts for state in night.states}
        # Feature rows are not counted with the rows they are computed from.
        counted = [night for part, night in of_parts if part.quarantine is not None or len(parts) == 1]
        scores = [night.score for _, night in of_parts if night.score is not None]
        told = [night.published for _, night in of_parts if night.published]
        rows.append(
            {
                "day": day,
                "states": tuple(s for s in STATES if s in states and (s != "published" or len(states) == 1)),
                "rows": sum(night.rows or 0 for night in counted),
                "valid": sum(night.kept or 0 for night in counted),
                "closed": sum(night.closed or 0 for night in counted),
                "quarantined": sum(night.quarantined or 0 for night in counted),
                "score": min(scores, default=None),
                "first_at": max((p.first_at for p in told), default=None),
                "newest_at": max((p.newest_at for p in told), default=None),
                "commits": max((p.times for p in told), default=None),
                "missing": [part.key for part, night in of_parts if night.published is None],
            }
        )
    return rows

"""Events that are told late: which evenings before them they make known, and when."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa

from features.sources.simulation.renewal import Bools, Ints

_MICROSECONDS = 1_000_000


def instant(day: int, hour: float) -> datetime:
    """An hour of a day, counted as by `date.toordinal`, UTC."""
    return datetime.combine(date.fromordinal(day), datetime.min.time(), UTC) + timedelta(hours=hour)


def instants(days: Ints | int, seconds: Ints) -> pa.Array:
    """Seconds after the midnights of days, UTC."""
    since_1970 = (np.asarray(days) - date(1970, 1, 1).toordinal()) * 86_400 + seconds
    return pa.array(since_1970 * _MICROSECONDS, pa.int64()).cast(pa.timestamp("us", tz="UTC"))


def repeated(value: date | datetime, count: int) -> pa.Array:
    """A column that is the same in every row."""
    kind = pa.timestamp("us", tz="UTC") if isinstance(value, datetime) else pa.date32()
    return pa.repeat(pa.scalar(value, kind), count)


def dates(days: Ints) -> pa.Array:
    """Days, counted as by `date.toordinal`, as dates."""
    return pa.array(np.asarray(days - date(1970, 1, 1).toordinal(), np.int32), pa.int32()).cast(pa.date32())


def evenings_before(
    night: int,
    happened: Callable[[int], Bools],
    told_after: Callable[[int], Ints],
    *,
    within: int,
    latest: int,
) -> tuple[Ints, Ints, Ints]:
    """Of the events that are told in a night: every evening whose next event, within some days, each of them is.

    Args:
        happened: whether something happened to each vehicle on a day.
        told_after: after how many days it is told, 0 to `latest`.
        within: days after an evening that count.
    Returns:
        For each row the evening, the place of the vehicle, and the day of the event.
    """
    rows: list[tuple[Ints, Ints, Ints]] = []
    for late in range(latest + 1):
        day = night - late
        told = happened(day) & (told_after(day) == late)
        for evening in range(day - 1, day - within - 1, -1):
            if evening < day - 1:  # an event in between is that evening's next one
                told &= ~happened(evening + 1)
            vehicles = np.flatnonzero(told)
            rows.append((np.full(len(vehicles), evening), vehicles, np.full(len(vehicles), day)))
    evenings, places, days = (np.concatenate(column) for column in zip(*rows, strict=True))
    order = np.lexsort((places, evenings))
    return evenings[order], places[order], days[order]

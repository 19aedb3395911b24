"""Data dates, their cutoffs, and half-open intervals of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from config.errors import NightfleetError

ONE_DAY = timedelta(days=1)


class BadInterval(NightfleetError):
    """An interval of data dates that is empty, reversed, or not made of dates."""


def cutoff(data_date: date, time_zone: str) -> datetime:
    """24:00 of `data_date` in `time_zone`, as a UTC instant: what that night's run may know."""
    midnight = datetime.combine(data_date + ONE_DAY, time.min, tzinfo=ZoneInfo(time_zone))
    return midnight.astimezone(UTC)


def data_date_of(instant: datetime, time_zone: str) -> date:
    """The night T with `cutoff(T-1) < instant <= cutoff(T)`; midnight itself belongs to the night that ends there."""
    if instant.tzinfo is None:
        raise ValueError(f"data_date_of needs an aware datetime, got {instant!r}")
    # Subtracted in UTC: where a clock change skips or repeats midnight, the local clock alone would name another night
    # than `cutoff`.
    return (instant.astimezone(UTC) - timedelta(microseconds=1)).astimezone(ZoneInfo(time_zone)).date()


def parse_data_date(text: str) -> date:
    """`YYYY-MM-DD` as a date.

    Raises:
        BadInterval: the text is anything else.
    """
    try:
        parsed = date.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise BadInterval(
            f"{text!r} is not a valid data date. Give it as YYYY-MM-DD, for example 2013-07-01."
        ) from error
    if parsed.isoformat() != text:
        raise BadInterval(
            f"{text!r} is not a valid data date. Give it as YYYY-MM-DD, for example {parsed.isoformat()}."
        )
    return parsed


@dataclass(frozen=True, order=True)
class Interval:
    """Data dates `[start, end)`: `end` is the first one outside."""

    start: date
    end: date

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise BadInterval(
                f"the interval [{self.start}, {self.end}) contains no data date. Give an end after its start."
            )

    @classmethod
    def of(cls, data_date: date) -> Interval:
        """The interval of one night."""
        return cls(data_date, data_date + ONE_DAY)

    @classmethod
    def closed(cls, first: date, last: date) -> Interval:
        """`first` to `last`, both included: how a person says it."""
        if last < first:
            raise BadInterval(f"the last data date {last} lies before the first, {first}. Swap them.")
        return cls(first, last + ONE_DAY)

    @property
    def last(self) -> date:
        """The last data date inside."""
        return self.end - ONE_DAY

    def __iter__(self) -> Iterator[date]:
        day = self.start
        while day < self.end:
            yield day
            day += ONE_DAY

    def __len__(self) -> int:
        return (self.end - self.start).days

    def __contains__(self, day: object) -> bool:
        return isinstance(day, date) and self.start <= day < self.end

    def __str__(self) -> str:
        return f"{self.start}" if len(self) == 1 else f"{self.start}..{self.last}"

    def widened(self, days_before: int) -> Interval:
        """The same end, begun `days_before` nights earlier."""
        return Interval(self.start - timedelta(days=days_before), self.end)

    def cutoffs(self, time_zone: str) -> dict[date, datetime]:
        """The cutoff of each night inside."""
        return {day: cutoff(day, time_zone) for day in self}


def requested_interval(partition_key: str | None, start: str | None = None, end: str | None = None) -> Interval:
    """The data dates a run is about: its partition key, else the dates of its form, both included.

    Raises:
        BadInterval: neither is given, only one date is, or one cannot be read.
    """
    if partition_key:
        return Interval.of(parse_data_date(partition_key))
    if start and end:
        return Interval.closed(parse_data_date(start), parse_data_date(end))
    raise BadInterval(
        "this run has no data date. Trigger it again with a partition key, YYYY-MM-DD (in the trigger dialog under the "
        "advanced options)"
        + (
            f"; of the form's interval only one end was given (start {start}, end {end}).",
            ", or with both dates of the form.",
        )[start is None and end is None]
    )

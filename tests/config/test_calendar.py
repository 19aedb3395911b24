"""Data dates and their cutoffs, also on the days the clocks change."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.calendar import BadInterval, Interval, cutoff, data_date_of, parse_data_date
from config.durations import format_duration, parse_duration

ZONES = ["UTC", "America/New_York", "Europe/Berlin", "Asia/Kolkata", "Pacific/Apia"]
DAYS = st.dates(date(2000, 1, 1), date(2030, 1, 1))


def test_a_cutoff_is_local_midnight_as_utc() -> None:
    assert cutoff(date(2013, 6, 30), "America/New_York") == datetime(2013, 7, 1, 4, tzinfo=UTC)
    assert cutoff(date(2013, 1, 31), "America/New_York") == datetime(2013, 2, 1, 5, tzinfo=UTC)


@pytest.mark.parametrize(("day", "hours"), [(date(2013, 3, 10), 23), (date(2013, 11, 3), 25), (date(2013, 3, 11), 24)])
def test_a_night_is_as_long_as_its_day(day: date, hours: int) -> None:
    length = cutoff(day, "America/New_York") - cutoff(day - timedelta(days=1), "America/New_York")
    assert length == timedelta(hours=hours)


@settings(deadline=None)
@given(DAYS, st.sampled_from(ZONES), st.integers(1, 86_400_000_000))
def test_an_instant_belongs_to_the_night_between_two_cutoffs(day: date, zone: str, microseconds: int) -> None:
    after = cutoff(day - timedelta(days=1), zone) + timedelta(microseconds=microseconds)
    night = data_date_of(after, zone)
    assert cutoff(night - timedelta(days=1), zone) < after <= cutoff(night, zone)


def test_midnight_itself_ends_a_night() -> None:
    assert data_date_of(datetime(2013, 7, 1, 4, tzinfo=UTC), "America/New_York") == date(2013, 6, 30)
    assert data_date_of(datetime(2013, 7, 1, 4, 0, 0, 1, tzinfo=UTC), "America/New_York") == date(2013, 7, 1)


def test_an_instant_without_a_zone_is_no_instant() -> None:
    with pytest.raises(ValueError, match="needs an aware datetime"):
        data_date_of(datetime(2013, 7, 1), "UTC")


@pytest.mark.parametrize("text", ["2013-7-1", "20130701", "yesterday", "", "2013-02-30", "2013-07-01T00:00", None])
def test_what_is_no_data_date(text: str) -> None:
    with pytest.raises(BadInterval, match=r"is not a valid data date. Give it as YYYY-MM-DD, for example 2013-07-01"):
        parse_data_date(text)


def test_a_data_date_is_parsed() -> None:
    assert parse_data_date("2013-07-01") == date(2013, 7, 1)


def test_intervals() -> None:
    week = Interval.closed(date(2013, 7, 1), date(2013, 7, 7))
    assert len(week) == len(list(week)) == 7
    assert week.last == date(2013, 7, 7)
    assert date(2013, 7, 7) in week
    assert week.end not in week
    assert "2013-07-01" not in week
    assert str(week) == "2013-07-01..2013-07-07"
    assert str(Interval.of(week.start)) == "2013-07-01"
    assert week.widened(2).start == date(2013, 6, 29)
    assert week.widened(2).end == week.end
    assert list(week.cutoffs("UTC").values())[-1] == datetime(2013, 7, 8, tzinfo=UTC)


def test_intervals_that_hold_nothing() -> None:
    with pytest.raises(
        BadInterval, match=r"\[2013-07-02, 2013-07-02\) contains no data date. Give an end after its start."
    ):
        Interval(date(2013, 7, 2), date(2013, 7, 2))
    with pytest.raises(
        BadInterval, match=r"the last data date 2013-07-01 lies before the first, 2013-07-02. Swap them."
    ):
        Interval.closed(date(2013, 7, 2), date(2013, 7, 1))


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("14 days", timedelta(14)),
        ("1 hour", timedelta(hours=1)),
        ("1 night", timedelta(1)),
        ("2 weeks", timedelta(14)),
        ("90 minutes", timedelta(minutes=90)),
        ("10 seconds", timedelta(seconds=10)),
    ],
)
def test_durations(text: str, length: timedelta) -> None:
    assert parse_duration(text) == length
    assert parse_duration(format_duration(length)) == length


@pytest.mark.parametrize("text", ["14", "days", "1.5 days", "-1 day", "1 month", 14])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="write a duration as '14 days'"):
        parse_duration(text)


def test_a_length_that_no_text_says() -> None:
    with pytest.raises(ValueError, match="not a whole number of seconds"):
        format_duration(timedelta(milliseconds=1))

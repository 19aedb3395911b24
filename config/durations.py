"""Lengths of time as a person writes them: `14 days`, `1 hour`, `1 night`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

_UNITS = {
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "night": timedelta(days=1),
    "week": timedelta(weeks=1),
}


def parse_duration(value: Any) -> timedelta:
    """`<number> <unit>` as a timedelta; units: second, minute, hour, day, night, week, each also in the plural."""
    if isinstance(value, timedelta):
        return value
    match = re.fullmatch(r"(\d+) (second|minute|hour|day|night|week)s?", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("write a duration as '14 days', '1 hour' or '1 night'")
    return int(match[1]) * _UNITS[match[2]]


def format_duration(value: timedelta) -> str:
    """The text that `parse_duration` reads as `value`."""
    for unit in ("day", "hour", "minute", "second"):
        count, rest = divmod(value, _UNITS[unit])
        if not rest:
            return f"{count} {unit}{'' if count == 1 else 's'}"
    raise ValueError(f"{value} is not a whole number of seconds")


Duration = Annotated[
    timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str, when_used="json")
]

"""Waiting, without holding a worker, until a live data set's source is expected to be complete."""

from __future__ import annotations

from datetime import UTC, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import BaseOperator

from config.calendar import ONE_DAY, parse_data_date


def ready_at(partition_key: str, time_zone: str, ready_after: time) -> datetime:
    """The instant from which the night `partition_key` may be read: `ready_after` of the next local day, in UTC."""
    day = parse_data_date(partition_key) + ONE_DAY
    return datetime.combine(day, ready_after, tzinfo=ZoneInfo(time_zone)).astimezone(UTC)


class WaitUntilReady(BaseOperator):  # type: ignore[misc]  # airflow ships no types for it
    """Defers until `ready_after` on the morning after the run's partition; passes at once when that is over."""

    def __init__(self, *, time_zone: str, ready_after: time, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.time_zone = time_zone
        self.ready_after = ready_after

    def execute(self, context: Any) -> None:
        """Defer, or return when the hour has passed."""
        key = context["dag_run"].partition_key
        if key is None:
            return  # the ingest task refuses a run without a key, with the reason
        moment = ready_at(key, self.time_zone, self.ready_after)
        if datetime.now(UTC) < moment:
            self.defer(trigger=DateTimeTrigger(moment=moment), method_name="resume")

    def resume(self, context: Any, event: Any = None) -> None:
        """The hour has come."""

"""One run a data date, at its cutoff: also where the clocks skip midnight, or show it twice.

Airflow's own cron moves a midnight that does not exist (Cairo, Beirut, Santiago) to an hour that belongs to the next
date: it leaves one data date out, and runs the next one twice, first before its cutoff. Here each run's instant, and
with it its partition, is what `config.calendar.cutoff` says.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from airflow.plugins_manager import AirflowPlugin
from airflow.timetables.trigger import CronPartitionTimetable
from pendulum import DateTime, instance

from config.calendar import ONE_DAY, cutoff, data_date_of, parse_data_date

KEY_FORMAT = "%Y-%m-%d"


class NightlyTimetable(CronPartitionTimetable):  # type: ignore[misc]  # airflow ships no types for it
    """Runs the data date T at cutoff(T); the partition date is the instant at which T begins.

    Args:
        timezone: the data set's IANA time zone.
    """

    def __init__(self, timezone: Any) -> None:
        super().__init__("0 0 * * *", timezone=timezone, run_offset=-1, key_format=KEY_FORMAT)
        self._zone = str(self._timezone.name)

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> NightlyTimetable:
        """See `Timetable.deserialize`."""
        return cls(data["timezone"])

    def localize_partition_datetime(self, dt: datetime) -> DateTime:
        """The instant at which the local clock first shows that time, or would show it."""
        local = datetime.combine(dt.date(), dt.time(), tzinfo=ZoneInfo(self._zone))
        return self._utc(local)

    def _get_next(self, current: DateTime) -> DateTime:
        """The first cutoff after an instant."""
        day = data_date_of(current, self._zone)
        ends = cutoff(day, self._zone)
        return self._utc(ends if ends > current else cutoff(day + ONE_DAY, self._zone))

    def _get_prev(self, current: DateTime) -> DateTime:
        """The last cutoff before an instant."""
        return self._utc(cutoff(data_date_of(current, self._zone) - ONE_DAY, self._zone))

    def _format_key(self, partition_date: DateTime) -> str:
        """The data date that begins at an instant."""
        # A microsecond inside the night: its first instant belongs to the one before.
        return data_date_of(partition_date + timedelta(microseconds=1), self._zone).strftime(self._key_format)

    def _decode_partition_date(self, partition_key: str) -> datetime:
        """The instant at which a data date begins."""
        super()._decode_partition_date(partition_key)  # refuses what is no key
        return self._utc(cutoff(parse_data_date(partition_key) - ONE_DAY, self._zone))

    @staticmethod
    def _utc(moment: datetime) -> DateTime:
        return instance(moment.astimezone(UTC))


class NightfleetTimetable(AirflowPlugin):  # type: ignore[misc]  # airflow ships no types for it
    """Registers the timetable, which the scheduler reads back by its name."""

    name = "nightfleet_timetable"
    timetables = [NightlyTimetable]  # noqa: RUF012 (Airflow wants a list)

"""One run a data date, at its cutoff, in every zone of tzdata over ten years: also where midnight is skipped or comes
twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pendulum
import pytest
from airflow.partition_mappers.temporal import StartOfDayMapper
from airflow.serialization.decoders import decode_timetable
from airflow.serialization.encoders import encode_timetable
from airflow.timetables import trigger
from airflow.timetables.base import DagRunInfo, TimeRestriction, Timetable
from airflow.timetables.trigger import CronPartitionTimetable
from mlops_timetable import NightlyTimetable
from mlops_wiring import nightly

from config.calendar import ONE_DAY, cutoff

FIRST, LAST = date(2016, 1, 1), date(2026, 12, 31)
_STEP = timedelta(days=7)  # no zone keeps an offset for less than that

# (zone, a date that has no midnight, or two)
CHANGES = [
    ("Africa/Cairo", date(2024, 4, 26)),
    ("Asia/Beirut", date(2024, 3, 31)),
    ("America/Santiago", date(2024, 9, 8)),
    ("America/Havana", date(2024, 3, 10)),
    ("America/Havana", date(2024, 11, 3)),
    ("America/Asuncion", date(2023, 10, 1)),
]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow logs two lines a run."""
    monkeypatch.setattr(trigger, "log", type("Silent", (), {"info": staticmethod(lambda *_, **__: None)}))


def offset(zone: ZoneInfo, day: date) -> timedelta | None:
    return datetime(day.year, day.month, day.day, 12, tzinfo=UTC).astimezone(zone).utcoffset()


def changes(name: str) -> Iterator[date]:
    """The days on which a zone's offset is another than the day before."""
    zone, day, before = ZoneInfo(name), FIRST, offset(ZoneInfo(name), FIRST)
    while day < LAST:
        after = offset(zone, day + _STEP)
        if after != before:
            first = next(day + n * ONE_DAY for n in range(1, 8) if offset(zone, day + n * ONE_DAY) != before)
            yield first
        day, before = day + _STEP, after


def runs(timetable: Timetable, begin: datetime, count: int) -> list[DagRunInfo]:
    """Runs as the scheduler asks for them, from an instant on."""
    within = TimeRestriction(earliest=pendulum.instance(begin), latest=None, catchup=True)
    made: list[DagRunInfo] = []
    for _ in range(count):
        run = timetable.next_dagrun_info_v2(last_dagrun_info=made[-1] if made else None, restriction=within)
        assert run is not None
        made.append(run)
    return made


def test_one_run_a_date_at_its_cutoff_in_every_zone() -> None:
    seen: set[tuple[tuple[date, ...], timedelta | None]] = set()
    tried = 0
    for name in sorted(available_timezones()):
        days = tuple(changes(name))
        if (days, offset(ZoneInfo(name), FIRST)) in seen:
            continue  # another name of the same clock
        seen.add((days, offset(ZoneInfo(name), FIRST)))
        timetable = NightlyTimetable(name)
        for day in days:
            nights = [day + n * ONE_DAY for n in range(-2, 3)]
            made = runs(timetable, cutoff(nights[0], name), len(nights))
            assert [(run.partition_key, run.run_after, run.partition_date) for run in made] == [
                (str(night), cutoff(night, name), cutoff(night - ONE_DAY, name)) for night in nights
            ], f"{name} around {day}"
            tried += 1
    assert tried > 500


@pytest.mark.parametrize(("zone", "day"), CHANGES)
def test_a_backfill_has_each_date_once(zone: str, day: date) -> None:
    timetable = NightlyTimetable(zone)
    nights = [day + n * ONE_DAY for n in range(-1, 3)]
    for first in nights:
        wanted = [night for night in nights if night >= first]
        asked = [pendulum.datetime(night.year, night.month, night.day) for night in (first, nights[-1])]
        made = list(timetable.iter_partition_dagrun_infos(earliest=asked[0], latest=asked[1]))
        assert [(run.partition_key, run.partition_date) for run in made] == [
            (str(night), cutoff(night - ONE_DAY, zone)) for night in wanted
        ]
        last = list(timetable.iter_partition_dagrun_infos(earliest=asked[0], latest=asked[0]))
        assert [run.partition_key for run in last] == [str(first)]


@pytest.mark.parametrize(("zone", "day"), CHANGES)
def test_a_key_is_its_own_date_on_both_ways(zone: str, day: date) -> None:
    timetable = NightlyTimetable(zone)
    # What follows an ingest is started with the ingest's key.
    mapper = StartOfDayMapper(timezone=zone, input_format="%Y-%m-%d", output_format="%Y-%m-%d")
    for night in (day - ONE_DAY, day, day + ONE_DAY):
        assert timetable.resolve_partition_date(str(night)) == cutoff(night - ONE_DAY, zone)
        assert mapper.to_downstream(str(night)) == str(night)


def test_airflows_own_cron_leaves_a_date_out() -> None:
    """Where this fails, the timetable of our own can go."""
    cron = CronPartitionTimetable("0 0 * * *", timezone="Africa/Cairo", run_offset=-1, key_format="%Y-%m-%d")
    keys = [run.partition_key for run in runs(cron, cutoff(date(2024, 4, 22), "Africa/Cairo"), 6)]
    assert "2024-04-25" not in keys
    assert keys.count("2024-04-26") == 2


def test_the_scheduler_reads_back_what_the_dag_file_wrote() -> None:
    again = decode_timetable(encode_timetable(nightly("America/Havana")))
    # Airflow loads the plugin's file once more, so that the class is another of the same name.
    assert type(again).__name__ == "NightlyTimetable"
    assert again.partitioned
    assert again.serialize() == nightly("America/Havana").serialize()
    assert [run.partition_key for run in runs(again, cutoff(date(2024, 3, 8), "America/Havana"), 3)] == [
        "2024-03-08",
        "2024-03-09",
        "2024-03-10",
    ]

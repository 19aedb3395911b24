from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from config.calendar import ONE_DAY, Interval, cutoff
from features.retrieval import retrieve, spine
from lake.lake import Lake
from lake.lineage import PartitionNotReady
from lake.tables import feature_table, valid_table
from tests import toy

NIGHTS = Interval.closed(date(2024, 1, 1), date(2024, 1, 12))
MODEL = "ride_minutes"

# A model of the same data set whose rows are the hours of tomorrow.
HOURLY = (
    toy.MODEL_YAML.replace(
        "spine: {table: bookings, entity: [event_date, ride], target_time: start_utc}",
        "spine: {every: 1 hour, entity: [hour_utc]}",
    )
    .replace(
        "label: {table: outcomes, column: minutes, matures_after: 1 day}",
        "label: {table: hours, column: rides, matures_after: 1 hour}",
    )
    .replace("features: [vehicle_daily]", "features: [hour_daily]")
    .replace("columns: [depot]", "columns: [hour_daily__mean]")
    .replace("baseline: median", "baseline: same_hour_last_week")
)
HOURS_YAML = (
    toy.DATASET_YAML.replace(
        "features:\n",
        """  hours:
    description: Rides by hour, known when the hour ended.
    source: {kind: file, uri: source/hours.csv}
    key: [hour_utc]
    known_at: {sql: "hour_utc + INTERVAL 1 HOUR"}
    columns:
      hour_utc: {type: timestamp, nullable: false, description: begin of the hour}
      rides: {type: float64, description: rides that started in it}
features:
""",
    )
    + """  hour_daily:
    description: Something that is known of an hour.
    entities: [hour_utc]
    reads: [hours]
    lookback: 7 days
    ttl: 1 day
    columns:
      mean: {type: float64, description: a mean}
"""
)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    found = toy.toy_lake(tmp_path)
    toy.publish_valid(found, NIGHTS)
    toy.publish_features(found, NIGHTS)
    return found


@pytest.fixture
def hourly(tmp_path: Path) -> Lake:
    return toy.toy_lake(tmp_path, dataset=HOURS_YAML, model=HOURLY)


def booking(
    ride: int, start: datetime, *, data_date: date, revision: int = 0, vehicle: str = "v1"
) -> dict[str, object]:
    known = cutoff(data_date, toy.TIME_ZONE)
    return {
        "event_date": date(2024, 1, 3),  # part of the key, whatever becomes of the start
        "ride": ride,
        "vehicle": vehicle,
        "depot": "north",
        "start_utc": start,
        "distance_km": 1.0,
        "known_at_utc": known,
        "revision": revision,
        "data_date": data_date,
    }


def publish_bookings(lake: Lake, rows: list[dict[str, object]], interval: Interval) -> None:
    table = valid_table(lake.settings, lake.dataset("rides"), "bookings")
    toy.publish_rows(lake, table, pa.Table.from_pylist(rows, schema=table.schema), interval)


def rides(rows: pa.Table) -> list[tuple[date, int, str]]:
    return list(zip(rows["data_date"].to_pylist(), rows["ride"].to_pylist(), rows["vehicle"].to_pylist(), strict=True))


# ---- spine -----------------------------------------------------------------------------------------------------


def test_a_night_scores_what_it_knows_of_the_day_ahead(lake: Lake) -> None:
    """Its own rows and those of earlier nights, the newest revision, target times in (cutoff, next cutoff]; the rest
    not.
    """
    one, two, three = (date(2024, 1, day) for day in (1, 2, 3))
    midnight = {day: cutoff(day, toy.TIME_ZONE) for day in (one, two, three)}
    hour = timedelta(hours=1)
    rows = [
        booking(1, midnight[two] + hour, data_date=one),  # known a night early
        booking(2, midnight[two] + hour, data_date=one, vehicle="old"),
        booking(2, midnight[two] + 2 * hour, data_date=two, revision=1, vehicle="new"),  # corrected before it is scored
        booking(3, midnight[two] + hour, data_date=one),
        booking(3, midnight[three] + hour, data_date=two, revision=1),  # moved to the day after
        booking(4, midnight[three], data_date=two),  # the last instant belongs to the night
        booking(5, midnight[two], data_date=two),  # too late: it starts at the cutoff
        booking(6, midnight[two] - hour, data_date=two),  # too late
        booking(1, midnight[two] - hour, data_date=three, revision=1),  # a late correction is not too late, only past
        booking(7, midnight[two] + hour, data_date=three),  # too late for night three, unknown to night two
    ]
    publish_bookings(lake, rows, Interval.closed(one, three))
    found = spine(lake, MODEL, Interval.closed(one, three))
    assert rides(found.table()) == [(two, 1, "v1"), (two, 2, "new"), (two, 4, "v1"), (three, 3, "v1")]
    assert found.too_late_by_night == {one: 0, two: 2, three: 1}
    assert found.too_late == 3
    assert found.table()["event_timestamp"].to_pylist() == [midnight[two]] * 3 + [midnight[three]]
    assert [i.data_date for i in found.inputs[two]] == [one, two]


def test_one_interval_gives_what_its_nights_give(lake: Lake) -> None:
    whole = spine(lake, MODEL, NIGHTS)
    nights = [spine(lake, MODEL, Interval.of(night)) for night in NIGHTS]
    assert whole.table().equals(pa.concat_tables([night.table() for night in nights]))
    assert whole.rows == 30 * len(NIGHTS)
    assert whole.inputs[NIGHTS.last] == nights[-1].inputs[NIGHTS.last]


def test_a_longer_horizon_scores_a_row_in_each_night_that_reaches_it(tmp_path: Path) -> None:
    lake = toy.toy_lake(
        tmp_path, model=toy.MODEL_YAML.replace("target_time: start_utc}", "target_time: start_utc, horizon: 2 days}")
    )
    one, two, three = (date(2024, 3, day) for day in (29, 30, 31))  # the night of 30 March has 23 hours
    end = cutoff(three, toy.TIME_ZONE)
    rows = [
        booking(1, end, data_date=one),
        booking(2, end - timedelta(hours=24), data_date=one),
        booking(3, end + timedelta(hours=1), data_date=two),
    ]
    publish_bookings(lake, rows, Interval.closed(one, three))
    found = spine(lake, MODEL, Interval.closed(one, three)).table()
    assert rides(found) == [(one, 1, "v1"), (one, 2, "v1"), (two, 1, "v1"), (two, 3, "v1"), (three, 3, "v1")]


def test_an_empty_night_has_no_rows(lake: Lake) -> None:
    night = Interval.of(NIGHTS.last)
    publish_bookings(lake, [], night)
    found = spine(lake, MODEL, night)
    assert found.rows == 0
    assert [i.data_date for i in found.inputs[night.start]] == [night.start]


@pytest.mark.parametrize(
    ("night", "hours"),
    [
        (date(2024, 3, 29), 24),
        (date(2024, 3, 30), 23),
        (date(2024, 3, 31), 24),
        (date(2024, 10, 26), 25),
        (date(2024, 10, 27), 24),
    ],
)
def test_a_calendar_has_the_hours_of_the_day(hourly: Lake, night: date, hours: int) -> None:
    rows = spine(hourly, MODEL, Interval.of(night)).table()
    begins = rows["hour_utc"].to_pylist()
    assert len(begins) == hours
    assert begins[0] == cutoff(night, toy.TIME_ZONE)
    assert begins[-1] + timedelta(hours=1) == cutoff(night + ONE_DAY, toy.TIME_ZONE)
    assert rows["target_time_utc"].to_pylist() == begins
    assert set(rows["data_date"].to_pylist()) == {night}


@pytest.mark.parametrize(
    ("every", "horizon", "ahead"),
    [("1 day", "1 day", [0]), ("1 day", "3 days", [0, 1, 2]), ("2 days", "4 days", [0, 2]), ("2 days", "1 day", [0])],
)
@pytest.mark.parametrize("night", [date(2024, 3, 29), date(2024, 3, 30), date(2024, 10, 25), date(2024, 10, 26)])
def test_steps_of_days_begin_with_the_local_day_whatever_the_clocks_do(
    tmp_path: Path, night: date, every: str, horizon: str, ahead: list[int]
) -> None:
    model = HOURLY.replace("every: 1 hour,", f"every: {every}, horizon: {horizon},")
    lake = toy.toy_lake(tmp_path, dataset=HOURS_YAML, model=model)
    begins = spine(lake, MODEL, Interval.of(night)).table()["hour_utc"].to_pylist()
    assert begins == [cutoff(night + timedelta(days=days), toy.TIME_ZONE) for days in ahead]


def test_a_spine_in_a_file_is_the_spine_in_memory(lake: Lake, tmp_path: Path) -> None:
    assert spine(lake, MODEL, NIGHTS, folder=tmp_path).table().equals(spine(lake, MODEL, NIGHTS).table())


# ---- features --------------------------------------------------------------------------------------------------


def test_each_row_gets_its_own_nights_features(lake: Lake, tmp_path: Path) -> None:
    found = retrieve(lake, MODEL, NIGHTS, folder=tmp_path)
    rows = found.reader().read_all()
    assert rows.schema == found.schema
    assert rows.num_rows == found.rows == 30 * len(NIGHTS)
    features = toy.vehicle_daily(lake, NIGHTS)
    expected = {(f["data_date"], f["vehicle"]): (f["rides_7d"], f["minutes_7d"]) for f in features.to_pylist()}
    got = [(row["vehicle_daily__rides_7d"], row["vehicle_daily__minutes_7d"]) for row in rows.to_pylist()]
    assert got == [expected[row["data_date"], row["vehicle"]] for row in rows.to_pylist()]
    order = [(row["data_date"], row["event_date"], row["ride"]) for row in rows.to_pylist()]
    assert order == sorted(order)


def test_an_absent_entity_is_served_by_an_older_night_until_its_ttl(lake: Lake, tmp_path: Path) -> None:
    nights = Interval.closed(date(2024, 1, 1), date(2024, 1, 5))
    rows = toy.vehicle_daily(lake, nights)
    seen_last = date(2024, 1, 1)
    v1 = [row["data_date"] > seen_last and row["vehicle"] == "v1" for row in rows.to_pylist()]
    toy.publish_features(lake, nights, rows=rows.filter(pa.array([not gone for gone in v1])))
    found = retrieve(lake, MODEL, nights, folder=tmp_path).reader().read_all().to_pylist()
    served = {row["data_date"]: row["vehicle_daily__rides_7d"] for row in found if row["vehicle"] == "v1"}
    value = served[seen_last]
    assert value is not None
    assert served == {night: value if night <= date(2024, 1, 4) else None for night in nights}  # 3 days


def test_inputs_are_the_partitions_a_ttl_reaches(lake: Lake, tmp_path: Path) -> None:
    night = date(2024, 1, 8)
    found = retrieve(lake, MODEL, Interval.of(night), folder=tmp_path)
    read = {(i.table, i.data_date.day) for i in found.inputs[night]}
    assert read == {("rides/valid/bookings", 8), *(("rides/features/vehicle_daily", day) for day in (5, 6, 7, 8))}
    table = feature_table(lake.settings, lake.dataset("rides"), "vehicle_daily")
    current = lake.publications.current(table, Interval.of(night))[night]
    assert current.as_input() in found.inputs[night]


def test_pins_read_what_was_there(lake: Lake, tmp_path: Path) -> None:
    before = retrieve(lake, MODEL, NIGHTS, folder=tmp_path)
    rows = before.reader().read_all()
    toy.publish_features(lake, NIGHTS, seed=2)
    publish_bookings(lake, [], NIGHTS)
    assert retrieve(lake, MODEL, NIGHTS, folder=tmp_path / "..").reader().read_all().num_rows == 0
    again = retrieve(lake, MODEL, NIGHTS, pins=before.pins, spine_version=before.spine_version, folder=tmp_path)
    assert again.reader().read_all().equals(rows)
    assert again.inputs == before.inputs


def test_a_night_without_features_is_refused(lake: Lake, tmp_path: Path) -> None:
    later = Interval.closed(date(2024, 1, 13), date(2024, 1, 14))
    toy.publish_valid(lake, later)
    with pytest.raises(PartitionNotReady) as refused:
        retrieve(lake, MODEL, Interval.of(later.last), folder=tmp_path)
    assert str(refused.value) == (
        "PartitionNotReady: rides/features/vehicle_daily has no partition 2024-01-14 (latest is 2024-01-12).\n"
        "  Scoring ride_minutes for data date 2024-01-14 needs it. Run `rides_ingest` for 2024-01-13 and 2024-01-14, "
        "then clear this task."
    )


def test_a_night_without_bookings_is_refused(lake: Lake) -> None:
    with pytest.raises(
        PartitionNotReady, match=r"rides/valid/bookings has no partition 2024-01-13 \(latest is 2024-01-12\)"
    ):
        spine(lake, MODEL, Interval.of(date(2024, 1, 13)))


def test_before_anything_is_published_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(
        PartitionNotReady,
        match=(
            r"nothing is published(.|\n)*`rides_ingest` for each of 2024-01-01 to 2024-01-05, or `rides_history` once"
        ),
    ):
        retrieve(toy.toy_lake(tmp_path), MODEL, Interval.of(date(2024, 1, 5)), folder=tmp_path)


def test_an_empty_feature_partition_is_ready(lake: Lake, tmp_path: Path) -> None:
    nights = Interval.closed(date(2024, 1, 13), date(2024, 1, 17))
    toy.publish_valid(lake, nights)
    toy.publish_features(lake, nights, rows=toy.vehicle_daily(lake, nights).slice(0, 0))
    rows = retrieve(lake, MODEL, Interval.of(nights.last), folder=tmp_path).reader().read_all()
    assert rows.num_rows == 30
    assert rows["vehicle_daily__rides_7d"].null_count == 30


def test_features_of_a_calendar(hourly: Lake, tmp_path: Path) -> None:
    night = date(2024, 1, 10)
    table = feature_table(hourly.settings, hourly.dataset("rides"), "hour_daily")
    begin = cutoff(night, toy.TIME_ZONE)
    rows = [
        {"hour_utc": begin + timedelta(hours=h), "mean": float(h), "event_timestamp": begin, "data_date": night}
        for h in range(23)
    ]
    toy.publish_rows(hourly, table, pa.Table.from_pylist(rows, schema=table.schema), Interval.of(night))
    found = retrieve(hourly, MODEL, Interval.of(night), folder=tmp_path).reader().read_all()
    assert found["hour_daily__mean"].to_pylist() == [*map(float, range(23)), None]
    assert found["hour_utc"].to_pylist()[0] == datetime(2024, 1, 10, 23, tzinfo=UTC)

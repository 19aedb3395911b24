"""Feature SQL: what a night sees, what is published, and every refusal."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from config.calendar import Interval, cutoff
from features.transform import (
    FeatureSqlFailed,
    FeatureSqlMismatch,
    FeatureSqlMissing,
    FeatureSqlReachesOutside,
    UnknownInput,
    compute_view,
    inputs_of_view,
    transform,
)
from lake.lineage import PartitionNotReady
from lake.tables import feature_table, valid_table
from tests.features.depot import CATALOG, FIRST, SQL, ZONE, arrive, day, depot, features


def test_each_night_sees_what_had_arrived_by_then(tmp_path: Path) -> None:
    lake = depot(tmp_path)
    arrive(lake, day(0), [(day(0), "ann", 10, 0), (day(0), "bob", 20, 0)])
    arrive(lake, day(1), [(day(1), "ann", 30, 0), (day(0), "ann", 14, 1)])  # a correction of the first trip
    arrive(lake, day(2), [(day(1), "bob", 40, 0), (day(2), "ann", None, 0)])  # a late row; a trip nobody measured
    arrive(lake, day(3), [])
    result = transform(lake, "depot", Interval(day(0), day(4)), run_id="r")
    assert (result.committed, result.rows) == (4, 8)
    assert features(lake, day(0)) == {"ann": (1, 10.0), "bob": (1, 20.0)}
    assert features(lake, day(1)) == {"ann": (2, 22.0), "bob": (1, 20.0)}
    assert features(lake, day(2)) == {"ann": (3, 22.0), "bob": (2, 30.0)}
    assert features(lake, day(3)) == {"ann": (2, 30.0), "bob": (1, 40.0)}


def test_a_value_nobody_has_is_null_and_not_zero(tmp_path: Path) -> None:
    lake = depot(tmp_path)
    arrive(lake, day(0), [(day(0), "ann", None, 0)])
    transform(lake, "depot", Interval.of(day(0)), run_id="r")
    assert features(lake, day(0)) == {"ann": (1, None)}


def test_event_timestamp_is_the_nights_cutoff_also_when_the_clocks_change(tmp_path: Path) -> None:
    lake = depot(tmp_path)
    nights = Interval(day(0), date(2024, 3, 12))
    for night in nights:
        arrive(lake, night, [(night, "ann", 1, 0)])
    transform(lake, "depot", nights, run_id="r")
    rows = feature_table(lake.settings, lake.dataset("depot"), "driver_daily").read().to_pylist()
    assert {r["data_date"]: r["event_timestamp"] for r in rows} == nights.cutoffs(ZONE)
    assert cutoff(date(2024, 3, 9), ZONE) == datetime(2024, 3, 10, 5, tzinfo=UTC)
    assert cutoff(date(2024, 3, 10), ZONE) == datetime(2024, 3, 11, 4, tzinfo=UTC)


def test_a_night_without_rows_is_a_published_empty_partition(tmp_path: Path) -> None:
    lake = depot(tmp_path)
    arrive(lake, day(0), [])
    result = transform(lake, "depot", Interval.of(day(0)), run_id="r")
    assert (result.committed, result.rows) == (1, 0)
    table = feature_table(lake.settings, lake.dataset("depot"), "driver_daily")
    assert lake.publications.current(table)[day(0)].rows == 0


def test_again_commits_nothing_and_a_changed_sql_only_what_differs(tmp_path: Path) -> None:
    lake = depot(tmp_path)
    arrive(lake, day(0), [])
    arrive(lake, day(1), [(day(1), "ann", 10, 0)])
    nights = Interval(day(0), day(2))
    transform(lake, "depot", nights, run_id="r")
    assert transform(lake, "depot", nights, run_id="s").committed == 0
    depot(tmp_path, SQL.replace("sum(d.trips) AS", "sum(d.trips) + 1 AS"))
    assert transform(lake, "depot", nights, run_id="t").committed == 1
    assert features(lake, day(1)) == {"ann": (2, 10.0)}


def test_inputs_are_the_partitions_of_the_lookback_at_their_versions(tmp_path: Path) -> None:
    lake = depot(tmp_path)
    for number in range(8):
        arrive(lake, day(number), [(day(number), "ann", number, 0)])
    transform(lake, "depot", Interval(day(0), day(8)), run_id="r")
    valid = valid_table(lake.settings, lake.dataset("depot"), "trips")
    published = lake.publications.current(feature_table(lake.settings, lake.dataset("depot"), "driver_daily"))
    known = lake.publications.current(valid)
    assert [i.data_date for i in published[day(2)].inputs] == [day(0), day(1), day(2)]
    assert list(published[day(7)].inputs) == [known[day(n)].as_input() for n in range(2, 8)]
    [(table, window)] = inputs_of_view(lake, "depot", "driver_daily", day(7))
    assert (table.name, window) == ("depot/valid/trips", Interval(day(2), day(8)))


def test_an_old_version_gives_what_was_known_then(tmp_path: Path) -> None:
    lake = depot(tmp_path)
    arrive(lake, day(0), [(day(0), "ann", 10, 0)])
    transform(lake, "depot", Interval.of(day(0)), run_id="r")
    before = feature_table(lake.settings, lake.dataset("depot"), "driver_daily")
    published = lake.publications.current(before)[day(0)]
    arrive(lake, day(0), [(day(0), "ann", 50, 0)])  # a restated partition
    versions = {i.table: i.version for i in published.inputs}
    then = compute_view(lake, "depot", "driver_daily", Interval.of(day(0)), versions=versions)
    now = compute_view(lake, "depot", "driver_daily", Interval.of(day(0)))
    assert then.schema == before.schema
    assert then == before.read([day(0)])
    assert then["minutes_mean_3d"].to_pylist() == [10.0]
    assert now["minutes_mean_3d"].to_pylist() == [50.0]
    with pytest.raises(UnknownInput, match=r"'trips'.*reads depot/valid/trips"):
        compute_view(lake, "depot", "driver_daily", Interval.of(day(0)), versions={"trips": 0})


def test_rows_that_left_the_lookback_are_not_seen_in_bulk_either(tmp_path: Path) -> None:
    # The SQL asks for 30 days, the catalog grants 5: bulk holds more partitions, yet must show each night no more than
    # its own.
    lake = depot(tmp_path, SQL.replace("n.data_date - 3", "n.data_date - 30"))
    nights = Interval(day(0), day(9))
    for night in nights:
        arrive(lake, night, [(night, "ann", 1, 0)])
    transform(lake, "depot", nights, run_id="r")
    assert [features(lake, night)["ann"][0] for night in nights] == [1, 2, 3, 4, 5, 6, 6, 6, 6]


def test_a_missing_input_partition_names_itself_and_the_remedy(tmp_path: Path) -> None:
    lake = depot(tmp_path)
    arrive(lake, day(0), [])
    with pytest.raises(PartitionNotReady) as caught:
        transform(lake, "depot", Interval(day(0), day(2)), run_id="r")
    text = str(caught.value)
    assert "depot/valid/trips has no partition 2024-03-05 (latest is 2024-03-04)" in text
    assert (
        "Transforming driver_daily of depot for data date 2024-03-04..2024-03-05 needs it. Run `depot_ingest`" in text
    )
    assert not lake.publications.current(feature_table(lake.settings, lake.dataset("depot"), "driver_daily"))


def test_a_gap_inside_the_lookback_is_refused(tmp_path: Path) -> None:
    lake = depot(tmp_path)
    arrive(lake, day(0), [])
    transform(lake, "depot", Interval.of(day(0)), run_id="r")
    for number in (2, 3):
        arrive(lake, day(number), [])
    with pytest.raises(PartitionNotReady, match="has no partition 2024-03-05"):
        compute_view(lake, "depot", "driver_daily", Interval.of(day(3)))


def test_the_night_before_must_have_features(tmp_path: Path) -> None:
    lake = depot(tmp_path)
    for number in range(3):
        arrive(lake, day(number), [])
    with pytest.raises(
        PartitionNotReady, match=r"depot/features/driver_daily has no partition 2024-03-05 \(nothing is published\)"
    ):
        transform(lake, "depot", Interval.of(day(2)), run_id="r")
    with pytest.raises(PartitionNotReady, match="depot begins with data date 2024-03-04; there is no 2024-03-03"):
        transform(lake, "depot", Interval(FIRST - timedelta(days=1), day(1)), run_id="r")


@pytest.mark.parametrize(
    ("sql", "error", "message"),
    [
        (SQL.replace("sum(d.trips) AS trips_3d, ", ""), FeatureSqlMismatch, "trips_3d is missing"),
        (SQL.replace("sum(d.trips) AS", "1 AS extra, sum(d.trips) AS"), FeatureSqlMismatch, "extra is not declared"),
        (
            SQL.replace("sum(d.trips) AS", "CAST(sum(d.trips) AS VARCHAR) AS"),
            FeatureSqlMismatch,
            "trips_3d is VARCHAR, needs BIGINT for the declared int64",
        ),
        (SQL.replace("sum(d.trips) AS", "sum(d.trips) / 2 AS"), FeatureSqlMismatch, "trips_3d is DOUBLE, needs BIGINT"),
        (
            SQL.replace("SELECT n.data_date, d.driver", "SELECT n.data_date + 1 AS data_date, d.driver"),
            FeatureSqlMismatch,
            "data_date 2024-03-06, outside",
        ),
        (
            SQL.replace("SELECT n.data_date, d.driver", "SELECT n.data_date, nullif(d.driver, 'ann') AS driver"),
            FeatureSqlMismatch,
            "rows without driver",
        ),
        (
            SQL.replace("d.driver;", "d.driver, d.event_date;"),
            FeatureSqlMismatch,
            r"an entity twice in one night. Group by \(driver\)",
        ),
        (
            SQL.replace("nullif(sum(d.measured), 0)", "(sum(d.measured) - sum(d.measured))"),
            FeatureSqlFailed,
            "minutes_mean_3d is not finite",
        ),
        (
            SQL.replace("SELECT n.data_date, d.driver", "SELECT DATE 'infinity' AS data_date, d.driver"),
            FeatureSqlFailed,
            "data_date is not within the years 1 to 9999",
        ),
        (
            SQL.replace("sum(d.trips) AS", "CAST(any_value(d.driver) AS BIGINT) AS"),
            FeatureSqlFailed,
            "(?s)Could not convert string 'ann' to INT64.*Correct the SQL",
        ),
        (SQL.replace("FROM trips", "FROM journeys"), FeatureSqlFailed, "journeys"),
        ("DROP TABLE nights", FeatureSqlFailed, "It must be one SELECT"),
        (SQL + SQL, FeatureSqlFailed, "It must be one SELECT"),
    ],
)
def test_sql_that_gives_something_else_than_declared_is_refused(
    tmp_path: Path, sql: str, error: type[Exception], message: str
) -> None:
    lake = depot(tmp_path, sql)
    arrive(lake, day(0), [(day(0), "ann", 10, 0)])
    arrive(lake, day(1), [(day(1), "ann", 20, 0)])
    with pytest.raises(error, match=message) as caught:
        transform(lake, "depot", Interval(day(0), day(2)), run_id="r")
    assert "driver_daily.sql" in str(caught.value), "the message must name the file that is to be fixed"
    assert not lake.publications.current(feature_table(lake.settings, lake.dataset("depot"), "driver_daily"))


def test_sql_in_another_encoding_names_its_file(tmp_path: Path) -> None:
    lake = depot(tmp_path)
    arrive(lake, day(0), [])
    (tmp_path / "sql" / "depot" / "driver_daily.sql").write_bytes(SQL.encode() + b"-- Z\xfcge")
    with pytest.raises(FeatureSqlFailed, match=r"(?s)driver_daily.sql does not run: 'utf-8' codec.*Correct the SQL"):
        transform(lake, "depot", Interval.of(day(0)), run_id="r")


def test_a_failure_over_personal_data_hides_what_duckdb_quotes(tmp_path: Path) -> None:
    catalog = CATALOG.replace("description: who drove", "description: who drove, pii: true")
    lake = depot(tmp_path, SQL.replace("sum(d.trips) AS", "CAST(any_value(d.driver) AS BIGINT) AS"), catalog)
    arrive(lake, day(0), [(day(0), "ann", 10, 0)])
    with pytest.raises(FeatureSqlFailed, match="ConversionException.*hidden") as caught:
        transform(lake, "depot", Interval.of(day(0)), run_id="r")
    assert "'ann'" not in str(caught.value)
    assert caught.value.__cause__ is None, "a traceback would print the name"


def test_a_view_without_sql_says_which_file_is_missing(tmp_path: Path) -> None:
    lake = depot(tmp_path)
    arrive(lake, day(0), [])
    (tmp_path / "sql" / "depot" / "driver_daily.sql").unlink()
    with pytest.raises(
        FeatureSqlMissing, match=r"feature view 'driver_daily' of depot has no SQL: .*driver_daily.sql does not exist"
    ):
        transform(lake, "depot", Interval.of(day(0)), run_id="r")


def test_sql_reads_its_tables_and_no_file_by_any_path(tmp_path: Path) -> None:
    lake = depot(tmp_path)
    arrive(lake, day(0), [(day(0), "ann", 10, 0)])
    transform(lake, "depot", Interval.of(day(0)), run_id="r")
    arrive(lake, day(1), [(day(1), "ann", 20, 0)])
    trips = valid_table(lake.settings, lake.dataset("depot"), "trips")
    tomorrow = trips.files([day(1)])[0]
    for reach in (f"read_parquet('{tomorrow}')", f"'{tomorrow}'", f"read_text('{tmp_path}/datasets/depot.yaml')"):
        changed = depot(tmp_path, f"SELECT s.* FROM ({SQL.strip().rstrip(';')}) AS s, {reach}")
        with pytest.raises(FeatureSqlReachesOutside, match=r"driver_daily.*depot[\s\S]*may read nights, trips"):
            transform(changed, "depot", Interval.of(day(0)), run_id="s")
    assert features(lake, day(0)) == {"ann": (1, 10.0)}

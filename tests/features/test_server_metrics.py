"""The server metrics: NAB's files as they are, incidents known when they are over, departures from the past alone."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from config.settings import ROOT
from lake.artifact import file_digest
from tests.features.replays import provenance

DATA = ROOT / "features" / "sources" / "data" / "nab"
VIEW = (ROOT / "features" / "sql" / "server_metrics" / "departures.sql").read_text(encoding="utf-8")
FIRST = date(2024, 3, 1)
COLUMNS = ("value_departure", "mean_departure", "range_departure", "change_departure")


def test_the_files_are_those_that_provenance_describes() -> None:
    listed = provenance(DATA)
    for name in ("LICENSE.txt", "incidents.csv", "measurements.csv.gz"):
        assert ((DATA / name).stat().st_size, file_digest(DATA / name)) == listed[name], name


def test_incidents_are_the_measurements_in_windows_and_known_when_these_end() -> None:
    select = (ROOT / "features" / "sql" / "server_metrics" / "incidents.source.sql").read_text(encoding="utf-8")
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for table, file in (("source", "measurements.csv.gz"), ("windows", "incidents.csv")):
            connection.execute(f"CREATE TABLE {table} AS FROM read_csv('{DATA / file}', all_varchar = true)")
        (counted,) = connection.sql("SELECT count(*), count(DISTINCT series) FROM source").fetchall()
        assert counted == (365_558, 58)
        ((rows, known),) = connection.sql(
            f"SELECT count(*), max(known_utc) FROM ({select}) WHERE series LIKE '%nyc_taxi'"
        ).fetchall()
        assert (rows, known.isoformat()) == (5 * 207, "2015-01-29T03:30:00+00:00")
        ((longest,),) = connection.sql(
            "SELECT max(CAST(ends AS TIMESTAMP) - CAST(begins AS TIMESTAMP)) FROM windows"
        ).fetchall()
        assert longest < timedelta(days=23), "labels mature after the longest window"


@pytest.fixture
def measured() -> duckdb.DuckDBPyConnection:
    """Three series, 96 measurements a day for ten days: `calm`, `jumps` with an incident on the ninth, `stops` after
    the fifth.
    """
    random, parts = np.random.default_rng(1), []
    for series, days in (("calm", 10), ("jumps", 10), ("stops", 5)):
        step = np.arange(1, 96 * days + 1, dtype=np.int32)
        value = np.round(random.uniform(0, 1, len(step)), 6)
        value += np.where((series == "jumps") & (step >= 800) & (step < 830), 5.0, 0.0)
        when = np.datetime64("2024-03-01T00:00", "us") + (step - 1) * np.timedelta64(15, "m")
        parts.append(pa.table({"series": [series] * len(step), "step": step, "measured_utc": when, "value": value}))
    rows = pa.concat_tables(parts)
    rows = rows.append_column("data_date", rows["measured_utc"].cast(pa.date32()))
    rows = rows.append_column("superseded_on", pa.array([date(9999, 1, 1)] * rows.num_rows))
    connection = duckdb.connect()
    connection.register("rows", rows)
    connection.execute("CREATE TABLE measurements AS FROM rows")
    return connection


def departures(connection: duckdb.DuckDBPyConnection, *days: int) -> list[tuple[Any, ...]]:
    nights = ", ".join(f"(DATE '{FIRST + timedelta(days=day)}')" for day in days)
    connection.execute(f"CREATE OR REPLACE TABLE nights AS FROM (VALUES {nights}) AS t (data_date)")
    return connection.sql(f"SELECT * FROM ({VIEW}) ORDER BY data_date, series, step").fetchall()


def test_a_departure_is_beyond_the_range_before_and_told_once(measured: duckdb.DuckDBPyConnection) -> None:
    rows = departures(measured, 8)
    jumps = {row[2]: dict(zip(COLUMNS, row[3:], strict=True)) for row in rows if row[1] == "jumps"}
    assert len(rows) == 2 * 96, "a series that stopped has no row, and no alarm"
    assert 4 < jumps[800]["value_departure"] < 7, "five ranges beyond"
    assert jumps[800]["mean_departure"] > 0
    assert jumps[799]["value_departure"] == 0
    later = [row["value_departure"] for step, row in jumps.items() if 800 < step < 830]
    assert later == [0] * 29, "the incident that was told is not told again"


def test_all_that_was_before_bounds_a_value_however_long_ago(measured: duckdb.DuckDBPyConnection) -> None:
    """As plain Python counts it, of every row before: the highest and the lowest lie days back, and the evening before
    told an incident that goes on.
    """
    measured.execute("UPDATE measurements SET value = 1.4 WHERE series = 'jumps' AND step = 100")
    measured.execute("UPDATE measurements SET value = -0.2 WHERE series = 'jumps' AND step = 150")
    measured.execute("UPDATE measurements SET value = 2.0 WHERE series = 'jumps' AND step = 765")
    measured.execute("UPDATE measurements SET value = 2.1 WHERE series = 'jumps' AND step = 780")
    values = [
        row[0] for row in measured.sql("SELECT value FROM measurements WHERE series = 'jumps' ORDER BY step").fetchall()
    ]
    shares = [0.0] * 20
    for place in range(20, 9 * 96):
        low, high = min(values[:place]), max(values[:place])
        shares.append(max(values[place] - high, low - values[place], 0.0) / (high - low))
    told = [
        0.0 if share <= max(shares[max(place - 50, 0) : place], default=0.0) else share
        for place, share in enumerate(shares)
    ]
    night = {row[2]: row[3] for row in departures(measured, 8) if row[1] == "jumps"}
    assert night == {place + 1: told[place] for place in range(8 * 96, 9 * 96)}
    assert [step for step, share in night.items() if share] == [800]


def test_bulk_equals_nightly_and_the_future_changes_nothing(measured: duckdb.DuckDBPyConnection) -> None:
    bulk = departures(measured, 4, 5, 6, 7, 8)
    nightly = [row for day in (4, 5, 6, 7, 8) for row in departures(measured, day)]
    assert bulk == nightly
    measured.execute(f"DELETE FROM measurements WHERE data_date > DATE '{FIRST + timedelta(days=6)}'")
    cut = departures(measured, 4, 5, 6)
    assert cut == [row for row in bulk if row[0] <= FIRST + timedelta(days=6)]


def test_a_series_has_no_departure_until_there_is_a_past(measured: duckdb.DuckDBPyConnection) -> None:
    first = [row for row in departures(measured, 0) if row[1] == "calm"]
    assert [row[3] is None for row in first] == [True] * 20 + [False] * 76
    assert all(row[6] is None for row in first), "nothing was measured the day before"
    begins = FIRST + timedelta(days=9)
    measured.execute(f"DELETE FROM measurements WHERE series = 'calm' AND data_date < DATE '{begins}'")
    assert [row[3] is None for row in departures(measured, 9) if row[1] == "calm"] == [True] * 20 + [False] * 76

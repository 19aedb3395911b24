"""A data set as small as it can be: one table of trips, one feature view, and rows that arrive when a test says so."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa

from config.calendar import ONE_DAY, Interval, cutoff
from config.catalog.load import load_catalog
from config.settings import Settings
from lake.lake import Lake
from lake.publish import publish
from lake.tables import feature_table, valid_table

ZONE = "America/New_York"
FIRST = date(2024, 3, 4)

CATALOG = """
dataset: depot
title: Trips of a depot
owner: tests
owner_url: mailto:tests@example.com
licence: CC0-1.0
time_zone: America/New_York
replay: {from: 2024-03-04, to: 2024-12-31, first_night: 2024-04-01}
tables:
  trips:
    description: One trip of a driver.
    source: {kind: file, uri: trips.csv}
    key: [event_date, driver]
    known_at: arrival
    columns:
      event_date: {type: date, description: day of the trip, nullable: false}
      driver: {type: string, description: who drove, nullable: false}
      minutes: {type: int64, unit: minute, description: how long it took}
features:
  driver_daily:
    description: A driver's last days.
    entities: [driver]
    reads: [trips]
    lookback: 5 days
    ttl: 7 days
    columns:
      trips_3d: {type: int64, description: trips of the last three days}
      minutes_mean_3d: {type: float64, unit: minute, description: their mean length}
"""

SQL = """
-- Days first, then nights.
WITH by_day AS (
    SELECT data_date, superseded_on, event_date, driver, count(*) AS trips, count(minutes) AS measured,
      sum(minutes) AS minutes
    FROM trips GROUP BY data_date, superseded_on, event_date, driver
)
SELECT n.data_date, d.driver, sum(d.trips) AS trips_3d, sum(d.minutes) / nullif(sum(d.measured), 0) AS minutes_mean_3d
FROM nights n
JOIN by_day d ON d.data_date <= n.data_date AND d.superseded_on > n.data_date
WHERE d.event_date > n.data_date - 3 AND d.event_date <= n.data_date
GROUP BY n.data_date, d.driver;
"""

Row = tuple[date, str, int | None, int]  # event date, driver, minutes, revision


def depot(tmp_path: Path, sql: str = SQL, catalog: str = CATALOG) -> Lake:
    """A lake of one table and one view."""
    (tmp_path / "datasets").mkdir(parents=True, exist_ok=True)
    (tmp_path / "datasets" / "depot.yaml").write_text(catalog)
    (tmp_path / "sql" / "depot").mkdir(parents=True, exist_ok=True)
    (tmp_path / "sql" / "depot" / "driver_daily.sql").write_text(textwrap.dedent(sql))
    settings = Settings(home=tmp_path / "var", catalogs=(tmp_path,), duckdb_memory_gb=0.5)
    return Lake(settings, load_catalog(settings))


def arrive(lake: Lake, night: date, rows: Sequence[Row]) -> None:
    """Publish one night of valid trips."""
    table = valid_table(lake.settings, lake.dataset("depot"), "trips")
    columns = list(zip(*rows, strict=True)) if rows else [()] * 4
    known = [cutoff(night, ZONE)] * len(rows)
    data: dict[str, Any] = dict(zip(("event_date", "driver", "minutes", "revision"), map(list, columns), strict=True))
    schema = pa.schema([table.schema.field(name) for name in (*data, "known_at_utc", "data_date")])
    batch = pa.table({**data, "known_at_utc": known, "data_date": [night] * len(rows)}, schema=schema)
    day = Interval.of(night)
    with lake.scratch("test") as scratch:
        replaces = lake.publications.digests(table, day)
        publish(
            lake.publications,
            table,
            batch,
            day,
            replaces=replaces,
            lineage=lake.lineage("depot", "test"),
            scratch=scratch,
        )


def day(number: int) -> date:
    """Night `number` of the depot."""
    return FIRST + number * ONE_DAY


def features(lake: Lake, night: date) -> dict[str, tuple[int | None, float | None]]:
    """What is published for one night, by driver."""
    table = feature_table(lake.settings, lake.dataset("depot"), "driver_daily")
    return {r["driver"]: (r["trips_3d"], r["minutes_mean_3d"]) for r in table.read([night]).to_pylist()}

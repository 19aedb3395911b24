"""Generated valid rows of the catalog's own data sets, at any size, with late rows and corrections.

Rows of a day are the same whatever interval holds them. Nothing here is random: everything follows from a hash.
"""

from __future__ import annotations

import duckdb

from config.calendar import ONE_DAY, Interval
from lake.lake import Lake
from lake.publish import publish
from lake.tables import DUCKDB_TYPES, valid_table

# Every flight, with the numbers (`h`) its fate hangs on.
_FLIGHTS = """
CREATE OR REPLACE TEMP VIEW planned AS
SELECT
    event_date,
    (['9E', 'AA', 'AS', 'B6', 'DL', 'EV', 'F9', 'FL', 'HA', 'MQ', 'OO', 'UA', 'US', 'VX', 'WN', 'YV'])[j % 16
      + 1] AS carrier,
    j + 1 AS flight,
    (['EWR', 'JFK', 'LGA'])[j % 3 + 1] AS origin,
    chr(CAST(65 + j // 3 % 26 AS INTEGER)) || chr(CAST(65 + j // 78 % 5 AS INTEGER)) || 'X' AS dest,
    CASE WHEN h % 300 > 0 THEN 'N' || lpad(CAST((j * 7 + dayofyear(event_date)) % greatest({per_day} // 3,
      1) AS VARCHAR), 5, '0') END AS tailnum,
    timezone('America/New_York', event_date + to_hours(5 + j % 18) + to_minutes(j * 7 % 60)) AS sched_dep_utc,
    CAST(5 + j % 18 AS INTEGER) AS sched_dep_hour,
    CAST(j * 7 % 60 AS INTEGER) AS sched_dep_minute,
    CAST(60 + j % 300 AS INTEGER) AS sched_minutes,
    h
FROM (
    SELECT CAST(days.day AS DATE) AS event_date, js.j, hash(CAST(days.day AS DATE), js.j) AS h
    FROM range(DATE '{first}', DATE '{last}' + 2, INTERVAL 1 DAY) AS days (day) CROSS JOIN range({per_day}) AS js (j)
) AS drawn
"""

_SCHEDULE = """
SELECT
    event_date, carrier, flight, origin, dest, tailnum, sched_dep_utc, sched_dep_hour, sched_dep_minute,
    sched_dep_utc + to_minutes(sched_minutes) AS sched_arr_utc,
    CAST((sched_dep_hour + sched_minutes // 60) % 24 AS INTEGER) AS sched_arr_hour,
    sched_minutes,
    sched_minutes * 7 AS distance_miles,
    CASE WHEN h // 7 % 6 > 0 THEN CAST(50 + h // 7 % 200 AS INTEGER) END AS seats,
    CASE WHEN h // 7 % 6 > 0 THEN CAST(1985 + h // 11 % 28 AS INTEGER) END AS plane_year,
    timezone('America/New_York', CAST(event_date AS TIMESTAMP)) AS known_at_utc,
    0 AS revision
FROM planned
"""

# One in a hundred rows comes one to three days late; one in ten is corrected, on the same day or up to six later, some
# of them twice.
_OUTCOMES = """
WITH fated AS (
    SELECT
        *,
        tailnum IS NULL OR h // 13 % 40 = 0 AS cancelled,
        h // 13 % 290 = 1 AS diverted,
        CAST(h // 17 % 60 AS INTEGER) - 10 AS dep_delay,
        CAST(h // 17 % 60 AS INTEGER) - 25 + CAST(h // 19 % 40 AS INTEGER) AS arr_delay,
        CASE WHEN h // 23 % 100 = 0 THEN 1 + h // 29 % 3 ELSE 0 END AS days_late
    FROM planned
),
revised AS (
    SELECT *, 0 AS revision, CAST(days_late AS BIGINT) AS days FROM fated
    UNION ALL
    SELECT * REPLACE (arr_delay + 37 AS arr_delay, false AS cancelled, false AS diverted), 1, CAST(days_late
      + h // 31 % 7 AS BIGINT)
    FROM fated WHERE h // 37 % 100 < 10
    UNION ALL
    SELECT * REPLACE (arr_delay - 11 AS arr_delay, true AS cancelled), 2, CAST(days_late + 1 + h // 31 % 7
      + h // 41 % 6 AS BIGINT)
    FROM fated WHERE h // 37 % 100 < 3
)
SELECT
    event_date, carrier, flight, origin, dest, tailnum, sched_dep_utc,
    sched_dep_utc + to_minutes(sched_minutes) AS sched_arr_utc,
    CASE WHEN NOT cancelled THEN sched_dep_utc + to_minutes(dep_delay) END AS dep_utc,
    CASE WHEN NOT cancelled THEN sched_dep_utc + to_minutes(sched_minutes + arr_delay) END AS arr_utc,
    CASE WHEN NOT cancelled THEN dep_delay END AS dep_delay,
    CASE WHEN NOT cancelled AND NOT diverted THEN arr_delay END AS arr_delay,
    CASE WHEN NOT cancelled AND NOT diverted THEN sched_minutes - 20 END AS air_time,
    cancelled,
    diverted,
    sched_dep_utc + to_minutes(CASE WHEN cancelled THEN 0 ELSE sched_minutes + arr_delay END)
      + to_days(CAST(days AS INTEGER)) AS known_at_utc,
    CAST(revision AS INTEGER) AS revision
FROM revised
"""

_WEATHER = """
SELECT
    time_hour, origin,
    (40 + h % 500 / 10) + CASE WHEN revision = 1 THEN 0.1 ELSE 0 END AS temp_fahrenheit,
    30 + h // 3 % 100 / 10 AS dew_point_fahrenheit,
    h // 5 % 1000 / 10 AS humidity_percent,
    CAST(h // 7 % 361 AS INTEGER) AS wind_direction_degrees,
    h // 11 % 30 * 1.15078 AS wind_mph,
    CASE WHEN h // 13 % 5 = 0 THEN 30 + h // 17 % 20 * 1.15078 END AS gust_mph,
    h // 19 % 10 / 100 AS precipitation_inches,
    CASE WHEN h // 23 % 10 > 0 THEN 1000 + h // 29 % 300 / 10 END AS pressure_millibars,
    h // 31 % 11 / 1 AS visibility_miles,
    time_hour + to_hours(CAST(CASE WHEN revision = 1 THEN 5 + h // 37 % 40 ELSE 0 END AS INTEGER)) AS known_at_utc,
    CAST(revision AS INTEGER) AS revision
FROM (
    SELECT time_hour, origin, revision, hash(time_hour, origin) AS h
    FROM range(TIMESTAMPTZ '{first} 05:00+00', TIMESTAMPTZ '{last} 06:00+00' + INTERVAL 1 DAY,
      INTERVAL 1 HOUR) AS hours (time_hour)
    CROSS JOIN (VALUES ('EWR'), ('JFK'), ('LGA')) AS origins (origin)
    CROSS JOIN (VALUES (0), (1)) AS revisions (revision)
) AS drawn
WHERE revision = 0 OR h % 20 = 0
"""

# One hour in ten is missing; one in eight is corrected up to ten days later.
_VOLUME = """
SELECT
    hour_utc,
    CAST(hour_utc AT TIME ZONE 'America/Chicago' AS DATE) AS event_date,
    CAST(hour(hour_utc AT TIME ZONE 'America/Chicago') AS INTEGER) AS local_hour,
    CAST(51 + h % 7000 - revision * 50 AS INTEGER) AS traffic_volume,
    CAST(NULL AS VARCHAR) AS holiday,
    250 + h // 3 % 6000 / 100 AS temp_kelvin,
    h // 5 % 20 / 100 AS rain_mm,
    h // 7 % 3 / 100 AS snow_mm,
    CAST(h // 11 % 101 AS INTEGER) AS clouds_percent,
    'Clouds' AS weather,
    'scattered clouds' AS weather_description,
    hour_utc + to_hours(CAST(1 + revision * (1
      + h // 13 % (CASE WHEN h // 23 % 2 = 0 THEN 12 ELSE 240 END)) AS INTEGER)) AS known_at_utc,
    CAST(revision AS INTEGER) AS revision
FROM (
    SELECT hour_utc, revision, hash(hour_utc) AS h
    FROM range(TIMESTAMPTZ '{first} 05:00+00', TIMESTAMPTZ '{last} 06:00+00' + INTERVAL 1 DAY,
      INTERVAL 1 HOUR) AS hours (hour_utc)
    CROSS JOIN (VALUES (0), (1)) AS revisions (revision)
) AS drawn
WHERE h // 17 % 10 > 0 AND (revision = 0 OR h // 19 % 8 = 0)
"""

_ROWS = {
    ("flights", "schedule"): _SCHEDULE,
    ("flights", "outcomes"): _OUTCOMES,
    ("flights", "weather"): _WEATHER,
    ("traffic", "volume"): _VOLUME,
}


def publish_generated(
    lake: Lake, dataset: str, nights: Interval, *, since: Interval | None = None, per_day: int = 60
) -> dict[str, int]:
    """Publish generated rows as the valid partitions of `nights`; returns rows by table.

    Args:
        since: the rows about these days and no others, so that a later call adds to what an earlier one made; `nights`
            by default.
        per_day: flights a day.
    """
    entry = lake.dataset(dataset)
    about = since or nights
    rows = {}
    for (owner, name), sql in _ROWS.items():
        if owner != dataset:
            continue
        table = valid_table(lake.settings, entry, name)
        with lake.duckdb() as connection, lake.scratch("generated") as scratch:
            # The first night also holds what would be rows about the days before: none here.
            bounds = {"first": about.start, "last": about.last, "per_day": per_day}
            if dataset == "flights":
                connection.execute(_FLIGHTS.format(**bounds))
            kinds = {column: DUCKDB_TYPES[c.type] for column, c in entry.tables[name].columns.items()}
            reader = _dated(
                connection, sql.format(**bounds), kinds, entry.time_zone, nights, table.key
            ).to_arrow_reader(131_072)
            published = publish(
                lake.publications,
                table,
                reader,
                nights,
                replaces=lake.publications.digests(table, nights),
                lineage=lake.lineage(dataset, "generated"),
                scratch=scratch,
            )
        rows[name] = published.rows
    return rows


def _dated(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    kinds: dict[str, str],
    time_zone: str,
    nights: Interval,
    key: tuple[str, ...],
) -> duckdb.DuckDBPyRelation:
    order = ", ".join(("data_date", *key))
    columns = ", ".join(f"CAST({column} AS {kind}) AS {column}" for column, kind in kinds.items())
    return connection.sql(f"""
        SELECT {columns}, known_at_utc, revision, data_date
        FROM (SELECT *, CAST(timezone('{time_zone}', known_at_utc - INTERVAL 1 MICROSECOND) AS DATE) AS data_date
          FROM ({sql}) AS made) AS dated
        WHERE data_date BETWEEN DATE '{nights.start}' AND DATE '{nights.end - ONE_DAY}'
        ORDER BY {order}
        """)

"""A tiny synthetic catalog, `rides`, for tests: two tables, one feature view, one model, and ways to fill them.

`bookings` of T+1 are known at midnight before it, `outcomes` when the ride ended; `minutes` is null for one ride in
twenty (a label that never comes). The time zone has clock changes, on 2024-03-31 and 2024-10-27.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from config.calendar import ONE_DAY, Interval, cutoff, data_date_of
from config.catalog.load import load_catalog
from config.settings import Settings
from lake.lake import Lake
from lake.lineage import Input
from lake.publish import Published, publish
from lake.tables import LakeTable, feature_table, raw_table, valid_table

TIME_ZONE = "Europe/Berlin"
FIRST = date(2024, 1, 1)
LAST = date(2024, 12, 31)
FIRST_NIGHT = date(2024, 3, 1)
DEPOTS = ("north", "east", "south")

DATASET_YAML = """
dataset: rides
title: Rides of a small fleet
owner: fleet
owner_url: mailto:fleet@example.com
licence: CC0-1.0
time_zone: Europe/Berlin
replay: {from: 2024-01-01, to: 2024-12-31, first_night: 2024-03-01}
tables:
  bookings:
    description: Rides booked for the next day. Partition T holds the rides of T+1.
    source: {kind: file, uri: source/bookings.csv}
    key: [event_date, ride]
    known_at: {sql: "timezone('Europe/Berlin', CAST(event_date AS TIMESTAMP))"}
    columns:
      event_date: {type: date, nullable: false, description: day of the ride}
      ride: {type: int64, nullable: false, description: number of the ride on its day}
      vehicle: {type: string, nullable: false, description: the vehicle}
      depot: {type: string, nullable: false, description: where it starts}
      start_utc: {type: timestamp, nullable: false, description: planned start}
      distance_km: {type: float64, unit: km, description: planned distance}
    checks:
      - {rule: unique, columns: [event_date, ride]}
      - {rule: in_set, column: depot, values: [north, east, south]}
      - {rule: between, column: distance_km, min: 0, max: 500}
      - {rule: row_count, weeks: 2}
  outcomes:
    description: What the rides took, known when they ended.
    source: {kind: file, uri: source/outcomes.csv}
    key: [event_date, ride]
    known_at: {column: end_utc}
    columns:
      event_date: {type: date, nullable: false, description: day of the ride}
      ride: {type: int64, nullable: false, description: number of the ride on its day}
      vehicle: {type: string, nullable: false, description: the vehicle}
      end_utc: {type: timestamp, nullable: false, description: actual end}
      minutes: {type: float64, unit: minutes, description: duration; null when it was not measured}
    checks:
      - {rule: unique, columns: [event_date, ride]}
      - {rule: between, column: minutes, min: 0, max: 600}
      - {rule: freshness, column: end_utc, max_age: 1 day}
features:
  vehicle_daily:
    description: What the vehicle did in the last seven days.
    entities: [vehicle]
    reads: [outcomes]
    lookback: 14 days
    ttl: 3 days
    columns:
      rides_7d: {type: int64, description: rides of the last seven days}
      minutes_7d: {type: float64, unit: minutes, description: mean duration of the last seven days}
"""

MODEL_YAML = """
model: ride_minutes
title: Duration of tomorrow's rides
owner: fleet
owner_url: mailto:fleet@example.com
deadline: "06:00"
dataset: rides
spine: {table: bookings, entity: [event_date, ride], target_time: start_utc}
label: {table: outcomes, column: minutes, matures_after: 1 day}
features: [vehicle_daily]
outputs:
  ride_minutes: {kind: regression, objective: median, interval: 0.8, gate: mae}
  long_probability: {kind: binary, above: 30, gate: brier}
trainer: {family: xgboost, params: {n_estimators: 20, max_depth: 3}, seed: 7, device: cpu}
split: {train: 21 days, validation: 5 days, test: 7 days, embargo: 1 day}
gate: {better_by: 0.0, min_days: 5, segments: {columns: [depot], min_rows: 20, worst: 1.5}, baseline: median}
retrain: {every: 28 days, cooldown: 7 days}
"""

# Rides of the seven days that end at the cutoff, as known at that night.
VIEW_SQL = """
SELECT
    n.data_date,
    o.vehicle,
    count(*) AS rides_7d,
    CAST(sum(CAST(o.minutes AS DECIMAL(18, 6))) AS DOUBLE) / nullif(count(o.minutes), 0) AS minutes_7d
FROM nights AS n
INNER JOIN outcomes AS o
    ON o.data_date <= n.data_date
    AND (o.superseded_on IS NULL OR o.superseded_on > n.data_date)
    AND o.end_utc > n.cutoff_utc - INTERVAL 168 HOUR
    AND o.end_utc <= n.cutoff_utc
GROUP BY n.data_date, o.vehicle
"""

RAW_COLUMNS: dict[str, tuple[str, ...]] = {
    "bookings": ("event_date", "ride", "vehicle", "depot", "start_utc", "distance_km"),
    "outcomes": ("event_date", "ride", "vehicle", "end_utc", "minutes"),
}


@dataclass(frozen=True)
class Rides:
    """Generated rides with event dates in `interval`: `bookings` and `outcomes` with the declared columns."""

    bookings: pa.Table
    outcomes: pa.Table


def generate(interval: Interval, *, seed: int = 1, per_day: int = 30, vehicles: int = 6) -> Rides:
    """Rides whose event date lies in `interval`; a date's rides are the same whatever interval holds it.

    `minutes` is about 2.5 per km, more for some vehicles, with noise: a model has something to learn.
    """
    days, rides, chosen, depots, starts, distances, ends, minutes = [], [], [], [], [], [], [], []
    for day in interval:
        random = np.random.default_rng([seed, day.toordinal()])
        number = random.integers(0, vehicles, per_day)
        distance = np.round(random.uniform(2, 30, per_day), 1)
        duration = np.round(3 + distance * (2 + 0.2 * number) + random.normal(0, 3, per_day).clip(-3, 12), 1)
        minute_of_day = random.integers(6 * 60, 23 * 60 + 50, per_day)
        midnight = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(TIME_ZONE)).timestamp()
        start = (midnight + minute_of_day * 60).astype("int64")
        days.append(np.full(per_day, day.toordinal() - date(1970, 1, 1).toordinal(), dtype="int32"))
        rides.append(np.arange(1, per_day + 1))
        chosen.append(number)
        depots.append(random.integers(0, len(DEPOTS), per_day))
        starts.append(start * 1_000_000)
        distances.append(distance)
        ends.append((start + np.round(duration * 60).astype("int64")) * 1_000_000)
        minutes.append(np.where(random.random(per_day) < 0.05, np.nan, duration))
    names = pa.array([f"v{n}" for n in range(vehicles)])
    event_date = pa.array(np.concatenate(days), pa.int32()).cast(pa.date32())
    ride = pa.array(np.concatenate(rides), pa.int64())
    vehicle = names.take(pa.array(np.concatenate(chosen)))
    bookings = pa.table(
        {
            "event_date": event_date,
            "ride": ride,
            "vehicle": vehicle,
            "depot": pa.array(DEPOTS).take(pa.array(np.concatenate(depots))),
            "start_utc": _utc(starts),
            "distance_km": pa.array(np.concatenate(distances)),
        }
    )
    taken = np.concatenate(minutes)
    outcomes = pa.table(
        {
            "event_date": event_date,
            "ride": ride,
            "vehicle": vehicle,
            "end_utc": _utc(ends),
            "minutes": pa.array(taken, mask=np.isnan(taken)),
        }
    )
    return Rides(bookings, outcomes)


def _utc(parts: list[Any]) -> pa.Array:
    return pa.array(np.concatenate(parts), pa.int64()).cast(pa.timestamp("us", tz="UTC"))


def write_csv(path: Path, rows: pa.Table) -> Path:
    """Write rows as the toy's sources spell them (nulls empty, instants with an offset)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spelled = pa.table({name: _spelled(rows[name]) for name in rows.column_names})
    pacsv.write_csv(spelled, path)
    return path


def _spelled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.strftime(column, "%Y-%m-%dT%H:%M:%SZ") if pa.types.is_timestamp(column.type) else column


def write_catalog(
    folder: Path, *, dataset: str = DATASET_YAML, model: str | None = MODEL_YAML, sql: Mapping[str, str] | None = None
) -> Settings:
    """Make `folder` a catalog folder, and return settings whose whole state lies there too. Sources lie in
    `folder/source`.
    """
    (folder / "datasets").mkdir(parents=True, exist_ok=True)
    (folder / "models").mkdir(parents=True, exist_ok=True)
    (folder / "datasets" / "rides.yaml").write_text(dataset, encoding="utf-8")
    if model is not None:
        (folder / "models" / "ride_minutes.yaml").write_text(model, encoding="utf-8")
    for name, text in ({"rides/vehicle_daily.sql": VIEW_SQL} | dict(sql or {})).items():
        (folder / "sql" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "sql" / name).write_text(text, encoding="utf-8")
    return Settings(home=folder / "var", catalogs=(folder,), duckdb_memory_gb=1.0)


def environment(settings: Settings) -> dict[str, str]:
    """The variables by which another process finds the same installation."""
    return {
        "NIGHTFLEET_HOME": str(settings.home),
        "NIGHTFLEET_CATALOGS": os.pathsep.join(str(path) for path in settings.catalogs),
    }


def toy_lake(folder: Path, *, source: Interval | None = None, seed: int = 1, per_day: int = 30, **catalog: Any) -> Lake:
    """A lake with the toy's catalog; with `source`, also the CSV files with rides whose event date lies there."""
    settings = write_catalog(folder, **catalog)
    if source is not None:
        rides = generate(source, seed=seed, per_day=per_day)
        write_csv(folder / "source" / "bookings.csv", rides.bookings)
        write_csv(folder / "source" / "outcomes.csv", rides.outcomes)
    return Lake(settings, load_catalog(settings))


def with_lake_columns(lake: Lake, table: str, rows: pa.Table, *, revision: int = 0) -> pa.Table:
    """Declared columns of `rides.<table>` with what ingest and validation add: known_at_utc, revision, data_date."""
    known = (
        [cutoff(day - ONE_DAY, TIME_ZONE) for day in rows["event_date"].to_pylist()]
        if table == "bookings"
        else rows["end_utc"].to_pylist()
    )
    dates = [data_date_of(instant, TIME_ZONE) for instant in known]
    return (
        rows.append_column("known_at_utc", pa.array(known, pa.timestamp("us", tz="UTC")))
        .append_column("revision", pa.array([revision] * rows.num_rows, pa.int32()))
        .append_column("data_date", pa.array(dates, pa.date32()))
    )


def publish_rows(
    lake: Lake,
    table: LakeTable,
    rows: pa.Table,
    interval: Interval,
    *,
    run_id: str = "test",
    inputs: Mapping[date, list[Input]] | None = None,
) -> Published:
    """Make the rows of `rows` inside `interval` (by data_date) its partitions, whatever was there."""
    dates = rows["data_date"]
    inside = pc.and_(
        pc.greater_equal(dates, pa.scalar(interval.start, pa.date32())),
        pc.less(dates, pa.scalar(interval.end, pa.date32())),
    )
    lineage = lake.lineage(table.name.partition("/")[0], run_id)
    if inputs is not None:
        lineage = type(lineage)(lineage.run_id, lineage.code_version, lineage.catalog_digest, inputs, lineage.details)
    with lake.scratch("test") as scratch:
        return publish(
            lake.publications,
            table,
            rows.filter(inside).select(table.schema.names).cast(table.schema),
            interval,
            replaces=lake.publications.digests(table, interval),
            lineage=lineage,
            scratch=scratch,
        )


def publish_valid(
    lake: Lake,
    interval: Interval,
    *,
    seed: int = 1,
    per_day: int = 30,
    tables: tuple[str, ...] = ("bookings", "outcomes"),
) -> None:
    """Generated rides as valid partitions of every night of `interval`."""
    rides = generate(Interval(interval.start, interval.end + ONE_DAY), seed=seed, per_day=per_day)
    dataset = lake.dataset("rides")
    for name in tables:
        rows = with_lake_columns(lake, name, getattr(rides, name))
        publish_rows(lake, valid_table(lake.settings, dataset, name), rows, interval)


def publish_raw(
    lake: Lake,
    interval: Interval,
    *,
    seed: int = 1,
    per_day: int = 30,
    tables: tuple[str, ...] = ("bookings", "outcomes"),
) -> None:
    """Generated rides as raw partitions of every night of `interval`."""
    rides = generate(Interval(interval.start, interval.end + ONE_DAY), seed=seed, per_day=per_day)
    dataset = lake.dataset("rides")
    for name in tables:
        rows = with_lake_columns(lake, name, getattr(rides, name))
        rows = rows.append_column("row_number", pa.array([1] * rows.num_rows, pa.int64()))
        publish_rows(lake, raw_table(lake.settings, dataset, name), rows, interval)


def vehicle_daily(lake: Lake, interval: Interval, *, seed: int = 1, vehicles: int = 6) -> pa.Table:
    """Feature rows of `vehicle_daily` for every night: made up, though steady for each vehicle; no SQL is run."""
    nights = list(interval)
    random = np.random.default_rng([seed, interval.start.toordinal()])
    count = len(nights) * vehicles
    number = np.tile(np.arange(vehicles), len(nights))
    return pa.table(
        {
            "vehicle": pa.array([f"v{n}" for n in range(vehicles)]).take(pa.array(number)),
            "rides_7d": pa.array(random.integers(20, 50, count), pa.int64()),
            "minutes_7d": pa.array(np.round(3 + 16 * (2 + 0.2 * number) + random.normal(0, 1, count), 3)),
            "event_timestamp": pa.array(
                [cutoff(day, TIME_ZONE) for day in nights for _ in range(vehicles)], pa.timestamp("us", tz="UTC")
            ),
            "data_date": pa.array([day for day in nights for _ in range(vehicles)], pa.date32()),
        }
    )


def publish_features(lake: Lake, interval: Interval, *, rows: pa.Table | None = None, seed: int = 1) -> Published:
    """Feature partitions of `vehicle_daily` for every night of `interval`: `rows`, or made-up ones."""
    table = feature_table(lake.settings, lake.dataset("rides"), "vehicle_daily")
    return publish_rows(lake, table, vehicle_daily(lake, interval, seed=seed) if rows is None else rows, interval)

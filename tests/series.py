"""A toy of series, `loads`: four loads a day of some servers, and a model that forecasts them for two days."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from config.calendar import ONE_DAY, Interval, cutoff, data_date_of
from config.catalog.load import load_catalog
from config.settings import Settings
from lake.lake import Lake
from lake.tables import valid_table
from tests import toy

ZONE = "Europe/Berlin"
FIRST = date(2024, 1, 1)
SERVERS = ("a", "b", "c")
MODEL = "server_load"
SIX_HOURS = timedelta(hours=6)

DATASET_YAML = """
dataset: servers
title: Load of a few servers
owner: fleet
owner_url: mailto:fleet@example.com
licence: CC0-1.0
time_zone: Europe/Berlin
replay: {from: 2024-01-01, to: 2024-12-31, first_night: 2024-03-01}
tables:
  loads:
    description: Mean load of each six hours of a server.
    source: {kind: file, uri: source/loads.csv}
    key: [server, step_utc]
    known_at: {sql: "step_utc + INTERVAL 6 HOUR"}
    columns:
      server: {type: string, nullable: false, description: the server}
      step_utc: {type: timestamp, nullable: false, description: begin of the six hours}
      load: {type: float64, unit: "%", description: mean load}
    checks:
      - {rule: unique, columns: [server, step_utc]}
      - {rule: between, column: load, min: 0, max: 100}
features:
  load_lags:
    description: For each step of the next two days the load seven days before.
    entities: [server, step_utc]
    reads: [loads]
    lookback: 9 days
    ttl: 1 day
    columns:
      load_7d_ago: {type: float64, unit: "%", description: load at that time seven days before}
      local_hour: {type: int32, unit: hour, calendar: true, description: hour of the day}
"""

MODEL_YAML = """
model: server_load
title: Load of the next two days
owner: fleet
owner_url: mailto:fleet@example.com
deadline: "06:00"
dataset: servers
spine: {table: loads, entity: [server, step_utc], every: 6 hours, horizon: 2 days, active_within: 3 days}
label: {table: loads, column: load, matures_after: 6 hours}
features: [load_lags]
outputs:
  load: {kind: forecast, interval: 0.8, gate: pinball, minimum: 0}
trainer:
  family: xgboost
  params: {n_estimators: 60, max_depth: 4, min_child_weight: 3, learning_rate: 0.2}
  seed: 7
  device: cpu
split: {train: 28 days, validation: 7 days, test: 10 days, embargo: 2 days}
gate: {min_days: 5, baseline: seasonal_naive, season: 7 days, segments: {columns: [server], min_rows: 20, worst: 1.5}}
retrain: {every: 28 days, cooldown: 7 days}
"""

VIEW_SQL = """
SELECT
    n.data_date,
    s.server,
    n.cutoff_utc + ahead.steps * INTERVAL 6 HOUR AS step_utc,
    l.load AS load_7d_ago,
    hour((n.cutoff_utc + ahead.steps * INTERVAL 6 HOUR) AT TIME ZONE 'Europe/Berlin') AS local_hour
FROM nights AS n
CROSS JOIN (VALUES ('a'), ('b'), ('c')) AS s (server)
CROSS JOIN range(8) AS ahead (steps)
LEFT JOIN loads AS l
    ON l.server = s.server
    AND l.step_utc = n.cutoff_utc + ahead.steps * INTERVAL 6 HOUR - INTERVAL 168 HOUR
    AND l.data_date <= n.data_date
    AND l.superseded_on > n.data_date
"""


def lake_of(folder: Path, *, dataset: str = DATASET_YAML, model: str = MODEL_YAML, **settings: Any) -> Lake:
    """A lake with the toy's catalog; its source lies in `folder/source`."""
    texts = {"datasets/servers.yaml": dataset, f"models/{MODEL}.yaml": model, "sql/servers/load_lags.sql": VIEW_SQL}
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    made = Settings(home=folder / "var", catalogs=(folder,), duckdb_memory_gb=1.0, **settings)
    return Lake(made, load_catalog(made))


def steps(days: Interval) -> list[datetime]:
    """Begins of the steps of local days, none of which changes its clocks."""
    return [cutoff(day - ONE_DAY, ZONE) + part * SIX_HOURS for day in days for part in range(4)]


def generate(days: Interval, servers: Sequence[str] = SERVERS) -> pa.Table:
    """Loads that follow hour and weekday, with noise that no season repeats."""
    random, begins = np.random.default_rng(3), steps(days)
    columns: dict[str, list[Any]] = {"server": [], "step_utc": [], "load": []}
    for number, server in enumerate(servers):
        part, day = np.arange(len(begins)) % 4, np.arange(len(begins)) // 4
        load = 20 + 10 * number + 5 * part - 3 * (day % 7 >= 5) + random.normal(0, 2, len(begins))
        columns["server"] += [server] * len(begins)
        columns["step_utc"] += begins
        columns["load"] += [round(float(value), 3) for value in load]
    return pa.table(columns, schema=pa.schema([("server", pa.string()), ("step_utc", _TIME), ("load", pa.float64())]))


_TIME = pa.timestamp("us", tz="UTC")


def publish_loads(lake: Lake, rows: Sequence[tuple[str, datetime, float | None, date, int]], nights: Interval) -> None:
    """Valid rows `(server, begin, load, data date, revision)` as the partitions of those nights."""
    table = valid_table(lake.settings, lake.dataset("servers"), "loads")
    names = ("server", "step_utc", "load", "data_date", "revision")
    filled = [{**dict(zip(names, row, strict=True)), "known_at_utc": row[1]} for row in rows]
    toy.publish_rows(lake, table, pa.Table.from_pylist(filled, schema=table.schema), nights)


def as_known(rows: pa.Table) -> list[tuple[str, datetime, float | None, date, int]]:
    """Generated rows with the night that learns of them."""
    return [
        (row["server"], row["step_utc"], row["load"], data_date_of(row["step_utc"] + SIX_HOURS, ZONE), 0)
        for row in rows.to_pylist()
    ]

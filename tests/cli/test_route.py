"""The fastest way as a person asks for it: from a night's map and predictions; what is said where one is missing."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from cli import __main__ as commands
from config.calendar import Interval
from config.catalog.load import load_catalog
from config.settings import Settings
from lake.lake import Lake
from lake.tables import valid_table
from serving.predictions import predictions_table
from tests import toy

NIGHT = date(2024, 10, 1)
# Through B it is nearer until the morning's peak.
ROADS = {"AB": 5.0, "BD": 5.0, "AC": 8.0, "CD": 8.0}


def asked(*arguments: str) -> str:
    done = CliRunner().invoke(commands.app, ["route", "dynamic_routing", *arguments])
    return done.output if done.exit_code == 0 else str(done.exception)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    settings = Settings(home=tmp_path, duckdb_memory_gb=1.0)
    for name, value in toy.environment(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(commands.console, "width", 160)
    lake = Lake(settings, load_catalog(settings))
    told = datetime(2024, 10, 1, 12, tzinfo=UTC)
    mapped = {"data_date": NIGHT, "event_date": NIGHT, "told_utc": told, "known_at_utc": told, "revision": 0}
    about = {"road_class": "street", "length_km": 1.0, "free_flow_minutes": 5.0}
    rows = [{**mapped, **about, "road": road, "from_junction": road[0], "to_junction": road[1]} for road in ROADS]
    table = valid_table(settings, lake.dataset("roads"), "roads")
    toy.publish_rows(lake, table, pa.Table.from_pylist(rows, schema=table.schema), Interval.of(NIGHT))
    return lake


def publish_predictions(lake: Lake) -> None:
    table = predictions_table(lake.settings, lake.model("dynamic_routing"))
    begins = [datetime(2024, 10, 2, tzinfo=UTC) + timedelta(hours=hour) for hour in range(24)]
    same: dict[str, Any] = {"data_date": NIGHT, "model": "dynamic_routing", "version": 1}
    rows = [
        {
            **same,
            "prediction_id": f"{served} {road} {begin}",
            "road": road,
            "hour_utc": begin,
            "target_time_utc": begin,
            "travel_minutes": (30.0 if road == "AB" and begin.hour == 8 else minutes) if served else 1.0,
            "served": served,
            "role": "challenger" if served else "champion",
        }
        for served in (True, False)
        for road, minutes in ROADS.items()
        for begin in begins
    ]
    toy.publish_rows(lake, table, pa.Table.from_pylist(rows, schema=table.schema), Interval.of(NIGHT))


def test_the_fastest_way_by_what_the_night_foretold(lake: Lake) -> None:
    assert "dynamic_routing has no predictions of 2024-10-01 for the 4 roads" in asked("A", "D", "--night", str(NIGHT))
    publish_predictions(lake)
    early, peak = (asked("A", "D", "--night", str(NIGHT), "--at", at).split() for at in ("03:00", "08:30"))
    assert early[-6:] == ["AB", "B", "03:05", "BD", "D", "03:10"]
    assert peak[-6:] == ["AC", "C", "08:38", "CD", "D", "08:46"]
    for arguments, words in (
        (("D", "A", "--night", str(NIGHT)), "no way leads from D to A"),
        (("A", "Z", "--night", str(NIGHT)), "'Z' is no junction of the map"),
        (("A", "D", "--night", str(NIGHT), "--at", "25:00"), "'25:00' is no time of the day"),
        (("A", "D", "--night", "2024-10-05"), "roads/roads has no map of 2024-10-05"),
        (("A", "D", "--night", str(NIGHT), "--map", "links"), "no table 'links' with the column from_junction"),
    ):
        assert words in asked(*arguments)

"""Simulated sources in the catalog: what is no world, table or episode is named, with file, key, value, expectation."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.catalog.base import BadCatalog
from config.catalog.load import load_catalog
from config.settings import Settings

SOURCE: dict[str, Any] = {"kind": "simulation", "world": "fleet", "table": "vehicles", "vehicles": 5}
BAD_SENSORS = {"kind": "bad_sensors", "sensor": "vibration", "offset": 0.2, "from": "2024-03-01", "to": "2024-03-31"}


def load(folder: Path, *, source: dict[str, Any], begins: date = date(2024, 1, 1), zone: str = "UTC") -> None:
    dataset = {
        "dataset": "cars",
        "title": "Cars",
        "owner": "tests",
        "owner_url": "mailto:tests@example.com",
        "licence": "CC0-1.0",
        "time_zone": zone,
        "start": begins,
        "tables": {
            "cars": {
                "description": "One car.",
                "source": source,
                "key": ["vehicle"],
                "known_at": "arrival",
                "columns": {"vehicle": {"type": "string", "nullable": False, "description": "which one"}},
            }
        },
    }
    (folder / "datasets").mkdir(parents=True)
    (folder / "datasets" / "cars.yaml").write_text(yaml.safe_dump(dataset), encoding="utf-8")
    load_catalog(Settings(home=folder / "var", catalogs=(folder,)))


def test_a_simulated_source_with_episodes_is_accepted(tmp_path: Path) -> None:
    load(tmp_path, source={**SOURCE, "episodes": [BAD_SENSORS]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"world": "moon"}, ["world = 'moon'", "is no simulated world (fleet"]),
        ({"table": "wheels"}, ["table 'wheels' is not of the world fleet (vehicles, vehicle_days"]),
        ({"vehicles": 0}, ["vehicles = 0", "greater than or equal to 1"]),
        ({"vehicles": 200_001}, ["vehicles = 200001", "less than or equal to 200000"]),
        ({"seed": -1}, ["seed = -1", "greater than or equal to 0"]),
        ({"cars": 5}, ["cars = 5: unknown key"]),
        ({"select": "SELECT 1"}, ["select says how a source is written", "leave it out"]),
        ({"users": 5}, ["users shapes nothing in the world fleet (vehicles, episodes do)"]),
        (
            {"world": "platform", "table": "user_days"},
            ["vehicles shapes nothing in the world platform (users, episodes do)"],
        ),
        (
            {"episodes": [{"kind": "outage", "from": "2024-03-01", "to": "2024-03-31"}]},
            ["episode 'outage' is not of the world fleet (bad_sensors"],
        ),
        ({"episodes": [{**BAD_SENSORS, "kind": "strike"}]}, ["'strike'", "bad_sensors", "policy_change"]),
        ({"episodes": [{**BAD_SENSORS, "sensor": "odometer_km"}]}, ["sensor = 'odometer_km'", "'engine_temp'"]),
        ({"episodes": [{**BAD_SENSORS, "to": "2024-02-01"}]}, ["needs from <= to", "2024-03-01 and 2024-02-01"]),
        ({"episodes": [{**BAD_SENSORS, "share": 0}]}, ["share = 0", "greater than 0"]),
    ],
)
def test_what_no_world_has_is_refused(tmp_path: Path, change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadCatalog) as caught:
        load(tmp_path, source={**SOURCE, **change})
    for word in ("cars.yaml", "tables.cars.source.simulation", *words):
        assert word in str(caught.value)


def test_a_data_set_that_begins_before_its_world_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCatalog) as caught:
        load(tmp_path, source=SOURCE, begins=date(2022, 12, 31))
    for word in ("cars.yaml", "table 'cars' is simulated from 2023-01-02 on", "is 2022-12-31"):
        assert word in str(caught.value)


def test_a_simulated_night_is_a_day_in_utc(tmp_path: Path) -> None:
    with pytest.raises(BadCatalog) as caught:
        load(tmp_path, source=SOURCE, zone="Europe/Berlin")
    for word in ("cars.yaml", "table 'cars' is simulated", "time_zone must be UTC, is Europe/Berlin"):
        assert word in str(caught.value)

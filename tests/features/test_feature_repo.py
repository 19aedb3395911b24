"""Definitions generated from the catalog, and the plain `feast` command on them."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest
import yaml
from feast.types import Float64, Int64, String, UnixTimestamp

from config.calendar import Interval
from config.settings import ROOT, Settings
from features import definitions
from features.definitions import ensure_applied, feast_objects, feast_type, feature_store, repo_config
from lake.lake import Lake
from tests import toy

FOLDER = ROOT / "features" / "feature_repo"
NIGHTS = Interval.closed(date(2024, 1, 1), date(2024, 1, 5))


def feast(lake: Lake, *arguments: str) -> str:
    """Run the command as a person does, in its folder; only where the state lies is said by the environment."""
    settings = lake.settings
    places = {
        "NIGHTFLEET_HOME": settings.home,
        "NIGHTFLEET_CATALOGS": str(settings.catalogs[0]),
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NIGHTFLEET_", "PYTHONPATH"))} | {
        k: str(v) for k, v in places.items()
    }
    command = [
        str(Path(sys.executable).parent / "feast"),
        "-f",
        str(settings.home / "feast" / "feature_store.yaml"),
        *arguments,
    ]
    done = subprocess.run(
        command, cwd=FOLDER, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_plain_feast_command_works(toy_lake: Lake) -> None:
    toy.publish_features(toy_lake, NIGHTS)
    ensure_applied(toy_lake)
    assert "rides__vehicle_daily" in feast(toy_lake, "apply")
    assert "rides__vehicle_daily" in feast(toy_lake, "feature-views", "list")
    feast(toy_lake, "materialize", "2024-01-04T00:00:00", "2024-01-06T00:00:00")
    store = feature_store(toy_lake)
    found = store.get_online_features(
        features=store.get_feature_service("ride_minutes"), entity_rows=[{"vehicle": "v1"}], full_feature_names=True
    ).to_dict()
    expected = {
        row["vehicle"]: row["rides_7d"]
        for row in toy.vehicle_daily(toy_lake, NIGHTS).to_pylist()
        if row["data_date"] == NIGHTS.last
    }
    assert found["vehicle_daily__rides_7d"] == [expected["v1"]]


def test_the_folder_serves_the_default_installation() -> None:
    """`feature_store.yaml` says in relative paths what the stages say of an installation in var/."""
    written = yaml.safe_load((FOLDER / "feature_store.yaml").read_text(encoding="utf-8"))
    made = repo_config(Settings(), stores="nightfleet_stores")
    assert (FOLDER / written["online_store"]["path"]).resolve() == Path(made["online_store"]["path"])
    assert (FOLDER / written["registry"]["path"].removeprefix("sqlite:///")).resolve() == Path(
        made["registry"]["path"].removeprefix("sqlite:///")
    )
    assert written["registry"]["registry_type"] == "sql"
    for part in ("offline_store", "online_store", "batch_engine"):
        assert written[part]["type"] == made[part]["type"]
    assert {written[key] == made[key] for key in ("project", "provider", "entity_key_serialization_version")} == {True}


def test_objects_say_what_the_catalog_says(toy_lake: Lake) -> None:
    found = {(type(o).__name__, o.name): o for o in feast_objects(toy_lake.settings, toy_lake.catalog)}
    assert set(found) == {
        ("Entity", "rides__vehicle"),
        ("FeatureView", "rides__vehicle_daily"),
        ("FeatureService", "ride_minutes"),
    }
    view = found["FeatureView", "rides__vehicle_daily"]
    assert view.ttl == timedelta(days=3)
    assert view.owner == "fleet"
    assert view.batch_source.path == str(toy_lake.settings.lake / "rides" / "features" / "vehicle_daily")
    assert {f.name: f.dtype for f in view.features} == {"rides_7d": Int64, "minutes_7d": Float64}
    assert [f.description for f in view.features] == [
        "rides of the last seven days",
        "mean duration of the last seven days",
    ]
    assert [p.name_to_use() for p in found["FeatureService", "ride_minutes"].feature_view_projections] == [
        "vehicle_daily"
    ]


def test_dates_are_text_and_instants_are_instants() -> None:
    assert (feast_type("date"), feast_type("timestamp")) == (String, UnixTimestamp)


def test_the_same_catalog_is_applied_once(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_applied(toy_lake)
    monkeypatch.setattr(definitions, "_apply", lambda _: pytest.fail("applied again, though nothing changed"))
    ensure_applied(toy_lake)


def test_a_changed_catalog_is_applied_and_what_is_gone_is_removed(tmp_path: Path) -> None:
    lake = toy.toy_lake(tmp_path)
    ensure_applied(lake)
    renamed = toy.DATASET_YAML.replace("vehicle_daily", "vehicle_week").replace("minutes_7d:", "minutes_mean:")
    changed = toy.toy_lake(tmp_path, dataset=renamed, model=toy.MODEL_YAML.replace("vehicle_daily", "vehicle_week"))
    assert ensure_applied(changed) != ensure_applied(lake)
    store = feature_store(changed)
    assert [v.name for v in store.list_feature_views()] == ["rides__vehicle_week"]
    assert {f.name for f in store.get_feature_view("rides__vehicle_week").features} == {"rides_7d", "minutes_mean"}
    assert [s.name for s in store.list_data_sources()] == ["rides/features/vehicle_week"]

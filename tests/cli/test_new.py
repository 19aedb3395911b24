"""`new`: a copy that doctor accepts and whose own tests run, and every refusal before anything is written."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from cli.doctor import examine
from cli.new import BadStart, new_dataset, new_model
from config.calendar import Interval
from config.catalog.base import BadCatalog
from config.catalog.load import load_catalog
from config.settings import Settings
from tests import toy


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The toy with the sources of its first nights."""
    whole = Interval(toy.FIRST, toy.FIRST + timedelta(days=10))
    return toy.toy_lake(tmp_path / "rides", source=whole, per_day=5).settings


def with_team(settings: Settings, team: Path) -> Settings:
    return settings.model_copy(update={"catalogs": (*settings.catalogs, team)})


def test_a_start_is_accepted_and_its_tests_run(settings: Settings, tmp_path: Path) -> None:
    team = tmp_path / "our-fleet"
    started = new_dataset(settings, "tours", like="rides", folder=team)
    assert not started.named
    assert [str(path.relative_to(team)) for path in started.files] == [
        "data/tours/bookings.csv",
        "data/tours/outcomes.csv",
        "datasets/tours.yaml",
        "sql/tours/vehicle_daily.sql",
        "tests/conftest.py",
        "tests/test_tours.py",
    ]
    text = (team / "datasets" / "tours.yaml").read_text()
    assert "# A night ends at midnight here.\ntime_zone: Europe/Berlin" in text
    assert "    # When a row became known" in text
    both = with_team(settings, team)
    started = new_model(both, "tour_minutes", like="ride_minutes", folder=team, dataset="tours")
    assert started.named
    catalog = load_catalog(both)
    assert catalog.model("tour_minutes").dataset == "tours"
    assert catalog.dataset("tours").tables["bookings"].source.uri == "data/tours/bookings.csv"  # type: ignore[union-attr]
    assert all(finding.present for finding in examine(both) if "catalog" in finding.needs)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | toy.environment(settings)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(team / "tests")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "2 passed" in done.stdout


@pytest.mark.parametrize(
    ("name", "like", "words"),
    [
        ("Our-Tours", "rides", "'Our-Tours' is no name"),
        ("x" * 61, "rides", "60 in all at most"),
        ("tours", "boats", "there is nothing called 'boats' to begin from. Known: rides."),
        ("ride_minutes", "rides", "the name 'ride_minutes' is taken"),
    ],
)
def test_a_bad_name_is_refused_before_anything_is_written(
    settings: Settings, tmp_path: Path, name: str, like: str, words: str
) -> None:
    with pytest.raises(BadStart, match=words):
        new_dataset(settings, name, like=like, folder=tmp_path / "team")
    assert not (tmp_path / "team").exists()


def test_nothing_is_overwritten(settings: Settings, tmp_path: Path) -> None:
    there = tmp_path / "team" / "sql" / "tours" / "vehicle_daily.sql"
    there.parent.mkdir(parents=True)
    there.write_text("SELECT 1")
    with pytest.raises(BadStart, match=r"vehicle_daily.sql is there already. Choose another name, or remove it"):
        new_dataset(settings, "tours", like="rides", folder=tmp_path / "team")
    assert there.read_text() == "SELECT 1"
    assert not (tmp_path / "team" / "datasets").exists()


def test_a_copy_that_does_not_fit_is_taken_back(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BadCatalog, match=r"dataset = 'boats': is not a data set(?s:.*)Nothing was written."):
        new_model(settings, "boat_minutes", like="ride_minutes", folder=tmp_path / "team", dataset="boats")
    assert [path for path in (tmp_path / "team").rglob("*") if path.is_file()] == []

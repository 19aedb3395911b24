"""The engines: NASA's bytes, dates that hold whole engines apart, labels that are known when they say, features of the
past alone.
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from config.calendar import ONE_DAY, Interval
from config.catalog.load import load_catalog
from config.settings import ROOT, Settings
from features.retrieval import spine
from features.training_set import build_training_set, split_windows
from features.transform import compute_view
from lake.artifact import file_digest
from lake.lake import Lake
from lake.tables import valid_table
from tests.features.replays import provenance, publish_history, replay_lake, source_rows
from training.registry.leakage import audit

DATA = ROOT / "features" / "sources" / "data" / "cmapss"
LAST = date(2008, 5, 10)
AS_OF = date(2008, 5, 7)
CAP = 125
SENSORS = (2, 3, 4, 7, 8, 9, 11, 12, 13, 14, 15, 17, 20, 21)
# Nights that a training as of AS_OF can judge, and those before them that features look back on.
SPLIT = {"train": "6 days", "validation": "3 days", "test": "3 days", "embargo": "1 day"}
FIRST = date(2007, 12, 20)


def nasa(fleet: str) -> dict[int, np.ndarray]:
    """NASA's own text: by engine an array (cycles, 26), in the order of the file."""
    with gzip.open(DATA / f"{fleet}_FD001.txt.gz", "rt") as text:
        rows = np.loadtxt(text)
    return {int(engine): rows[rows[:, 0] == engine] for engine in np.unique(rows[:, 0])}


def flown(fleet: str, engine: int, cycles: int) -> list[date]:
    """The days an engine flies, from the rule's words."""
    if fleet == "test":
        return [LAST - timedelta(days=cycles - 1 - n) for n in range(cycles)]
    first = {0: date(2006, 1, 2), 5: date(2007, 1, 3)}.get(engine % 10, date(2005, 1, 1))
    return [first + timedelta(days=n) for n in range(cycles)]


@pytest.fixture(scope="module")
def engines() -> Mapping[str, Mapping[int, np.ndarray]]:
    return {fleet: nasa(fleet) for fleet in ("train", "test")}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The last five months."""
    found = replay_lake(tmp_path_factory.mktemp("engines"), "engines", first=FIRST, split=SPLIT)
    publish_history(found, "engines")
    return found


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, pa.Table]:
    empty = replay_lake(tmp_path_factory.mktemp("sources"), "engines", first=FIRST)
    return {table: source_rows(empty, "engines", table) for table in ("cycles", "lives")}


def test_the_files_are_those_that_provenance_describes() -> None:
    listed = provenance(DATA)
    assert set(listed) == {"RUL_FD001.txt", "readme.txt", "test_FD001.txt.gz", "train_FD001.txt.gz"}
    for name, (size, digest) in listed.items():
        assert ((DATA / name).stat().st_size, file_digest(DATA / name)) == (size, digest), name


def test_what_is_read_follows_from_nasas_own_files(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("convert", DATA / "convert.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.convert(DATA, tmp_path)
    # Another zlib packs the same text into other bytes.
    assert gzip.decompress((tmp_path / "cycles.csv.gz").read_bytes()) == gzip.decompress(
        (DATA / "cycles.csv.gz").read_bytes()
    )
    assert (tmp_path / "test_lives.csv").read_bytes() == (DATA / "test_lives.csv").read_bytes()


def test_every_cycle_flies_on_its_day(
    sources: Mapping[str, pa.Table], engines: Mapping[str, Mapping[int, np.ndarray]]
) -> None:
    found = {(row["unit"], row["cycle"]): row for row in sources["cycles"].to_pylist()}
    assert {fleet: sum(len(rows) for rows in of.values()) for fleet, of in engines.items()} == {
        "train": 20_631,
        "test": 13_096,
    }
    assert (len(engines["train"]), len(engines["test"]), len(found)) == (100, 100, 33_727)
    for fleet, of in engines.items():
        for engine, rows in of.items():
            for day, values in zip(flown(fleet, engine, len(rows)), rows, strict=True):
                row = found[(f"{fleet}-{engine:03d}", int(values[1]))]
                assert row["flight_date"] == day
                assert [row[f"setting_{n}"] for n in (1, 2, 3)] == values[2:5].tolist()
                assert [row[f"sensor_{n}"] for n in range(1, 22)] == values[5:].tolist()


def test_labels_are_cycles_left_known_when_they_come_true(
    sources: Mapping[str, pa.Table], engines: Mapping[str, Mapping[int, np.ndarray]]
) -> None:
    beyond = np.loadtxt(DATA / "RUL_FD001.txt")
    found = {(row["unit"], row["flight_date"]): row for row in sources["lives"].to_pylist()}
    assert len(found) == 33_727
    for fleet, of in engines.items():
        for engine, rows in of.items():
            for done, day in enumerate(flown(fleet, engine, len(rows)), start=1):
                left = len(rows) - done + (int(beyond[engine - 1]) if fleet == "test" else 0)
                row = found[(f"{fleet}-{engine:03d}", day)]
                assert (row["cycles_left_capped"], row["failed"]) == (min(left, CAP), left <= CAP)
                known = day + timedelta(days=min(left, CAP))
                assert row["known_at_utc"] == datetime(known.year, known.month, known.day, 23, tzinfo=UTC)


def test_windows_by_time_hold_whole_waves(sources: Mapping[str, pa.Table]) -> None:
    """With the catalog's own split, the first training learns from one wave, is tuned on another and judged on a third,
    none of them flown after.
    """
    settings = Settings(catalogs=(ROOT / "config",))
    windows = split_windows(Lake(settings, load_catalog(settings)), "engine_rul", AS_OF)
    flights = sources["cycles"].select(["unit", "flight_date"]).to_pylist()
    units = {name: {row["unit"] for row in flights if row["flight_date"] in window} for name, window in windows.items()}
    train = {f"train-{n:03d}" for n in range(1, 101)}
    assert units["train"] == {unit for unit in train if unit[-1] not in "05"}
    assert units["validation"] == {unit for unit in train if unit[-1] == "0"}
    assert {unit for unit in units["test"] if unit.startswith("train")} == {unit for unit in train if unit[-1] == "5"}
    # The fleet that is scored has begun to fly by then, with labels that say "not within 125 cycles".
    assert not any(unit.startswith("test") for unit in units["train"] | units["validation"])
    # Whole engines: no wave's engine flies outside its window.
    for name, window in windows.items():
        assert all(row["flight_date"] in window for row in flights if row["unit"] in units[name] & train), name


def test_the_last_night_scores_the_hundred_engines_of_the_published_figures(
    lake: Lake, engines: Mapping[str, Mapping[int, np.ndarray]]
) -> None:
    rows = spine(lake, "engine_rul", Interval.of(LAST)).table().to_pylist()
    assert {(row["unit"], row["cycle"]) for row in rows} == {
        (f"test-{engine:03d}", len(of)) for engine, of in engines["test"].items()
    }
    assert lake.dataset("engines").replay is not None
    assert max(lake.publications.current(valid_table(lake.settings, lake.dataset("engines"), "cycles"))) == LAST


def test_features_are_means_of_eight_cycles(lake: Lake, engines: Mapping[str, Mapping[int, np.ndarray]]) -> None:
    found = {row["unit"]: row for row in compute_view(lake, "engines", "sensor_steps", Interval.of(LAST)).to_pylist()}
    assert len(found) == 100
    for engine, rows in engines["test"].items():
        row = found[f"test-{engine:03d}"]
        assert row["cycles_flown"] == len(rows)
        for step in range(6):
            # An engine younger than 48 cycles was before as it was in its first.
            cycles = [max(len(rows) - back, 1) for back in range(8 * step, 8 * step + 8)]
            for sensor in SENSORS:
                assert row[f"sensor_{sensor}_t{step}"] == pytest.approx(
                    np.mean([rows[cycle - 1, 4 + sensor] for cycle in cycles]), rel=1e-12
                )


def test_many_nights_give_what_each_gives_alone(lake: Lake) -> None:
    nights = Interval(LAST - 3 * ONE_DAY, LAST + ONE_DAY)
    together = compute_view(lake, "engines", "sensor_steps", nights)
    assert together.equals(
        pa.concat_tables([compute_view(lake, "engines", "sensor_steps", Interval.of(night)) for night in nights])
    )


def test_nothing_comes_from_the_future(lake: Lake, tmp_path: Path) -> None:
    built = build_training_set(lake, "engine_rul", AS_OF, tmp_path)
    assert built.unlabelled == dict.fromkeys(built.rows, 0)
    found = audit(
        lake, "engine_rul", as_of=AS_OF, files=[built.training_path, built.test_path], pins=built.pins, nights=1
    )
    assert found.cells > 1000
    assert found.findings == ()

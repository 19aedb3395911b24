"""The batteries: dates that hold whole cells apart, labels of the laboratory, features of the first 25 minutes
alone.
"""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from config.calendar import ONE_DAY, Interval
from config.catalog.load import load_catalog
from config.settings import ROOT, Settings
from features.ingest import ingest
from features.retrieval import spine
from features.training_set import build_training_set, split_windows
from features.transform import compute_view, transform
from features.validate import validate
from lake.artifact import file_digest
from lake.lake import Lake
from tests.features.replays import provenance, publish_history, replay_lake, source_rows
from training.registry.leakage import audit

DATA = ROOT / "features" / "sources" / "data" / "nasa_battery"
DISCHARGES = {"B0005": 168, "B0006": 168, "B0007": 168, "B0018": 132}
BEGUN = {"B0005": date(2009, 1, 29), "B0006": date(2008, 4, 2), "B0007": date(2008, 4, 2), "B0018": date(2008, 9, 18)}
LAST = date(2009, 7, 15)
AS_OF = date(2009, 7, 12)
SPLIT = {"train": "6 days", "validation": "3 days", "test": "3 days", "embargo": "1 day"}
FIRST = date(2009, 6, 25)

Discharges = Mapping[tuple[str, date], np.ndarray]


@pytest.fixture(scope="module")
def discharges() -> Discharges:
    """By cell and day (seconds, voltage, current, temperature), read by other means than the source's."""
    found: dict[tuple[str, date], np.ndarray] = {}
    for cell in DISCHARGES:
        with gzip.open(DATA / "curves" / f"{cell}.csv.gz", "rt", newline="") as text:
            rows = [
                (int(row["cycle"]), *(float(row[name]) for name in ("seconds", "voltage", "current", "temperature")))
                for row in csv.DictReader(text)
            ]
        table = np.array(rows)
        for cycle in np.unique(table[:, 0]):
            found[cell, BEGUN[cell] + timedelta(days=int(cycle) - 1)] = table[table[:, 0] == cycle, 1:]
    return found


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The last three weeks."""
    found = replay_lake(tmp_path_factory.mktemp("batteries"), "batteries", first=FIRST, split=SPLIT)
    publish_history(found, "batteries")
    return found


@pytest.fixture(scope="module")
def sources(lake: Lake) -> Mapping[str, pa.Table]:
    return {table: source_rows(lake, "batteries", table) for table in ("curves", "discharges", "capacities")}


def test_the_files_are_those_that_provenance_describes() -> None:
    listed = provenance(DATA)
    assert set(listed) == {"metadata.csv", "README_05_06_07_18.txt", *(f"curves/{cell}.csv.gz" for cell in DISCHARGES)}
    for name, (size, digest) in listed.items():
        assert ((DATA / name).stat().st_size, file_digest(DATA / name)) == (size, digest), name


def test_every_reading_of_every_discharge_is_there(sources: Mapping[str, pa.Table], discharges: Discharges) -> None:
    assert sources["curves"].num_rows == 3 * 50_285 + 34_866
    assert Counter(sources["discharges"]["cell"].to_pylist()) == DISCHARGES
    assert Counter(cell for cell, _ in discharges) == DISCHARGES
    for row in sources["discharges"].to_pylist():
        readings = discharges[row["cell"], row["test_date"]]
        assert row["readings"] == len(readings)
        noon = datetime.combine(row["test_date"], datetime.min.time(), UTC) + timedelta(hours=12)
        assert row["started_utc"] == noon
        assert abs(row["known_at_utc"] - noon - timedelta(seconds=float(readings[-1, 0]))) < timedelta(milliseconds=1)
    # A reading is known at its own second, never before.
    curves = sources["curves"]
    assert curves["known_at_utc"].equals(curves["measured_utc"])


def test_labels_are_the_laboratorys_capacities_a_day_later(sources: Mapping[str, pa.Table]) -> None:
    with (DATA / "metadata.csv").open(newline="") as text:
        rows = [row for row in csv.DictReader(text) if row["type"] == "discharge" and row["battery_id"] in DISCHARGES]
    found = {(row["cell"], row["test_date"]): row for row in sources["capacities"].to_pylist()}
    assert len(found) == len(rows) == sum(DISCHARGES.values())
    done: Counter[str] = Counter()
    for row in sorted(rows, key=lambda row: int(row["test_id"])):
        cell, capacity = row["battery_id"], float(row["Capacity"])
        day = BEGUN[cell] + timedelta(days=done[cell])
        done[cell] += 1
        label = found[cell, day]
        assert (label["capacity_ah"], label["state_of_health"]) == (capacity, capacity / 2.0)
        assert label["known_at_utc"] == datetime.combine(day + ONE_DAY, datetime.min.time(), UTC) + timedelta(hours=12)


def test_the_capacities_belong_to_these_curves(sources: Mapping[str, pa.Table], discharges: Discharges) -> None:
    """Two sources, one metadata and one curves: the charge until 2.7 V, summed up from the curve, is the capacity of
    that day.
    """
    for row in sources["capacities"].to_pylist():
        seconds, voltage, current, _ = discharges[row["cell"], row["test_date"]].T
        under_load = (current < -1.0) & (np.minimum.accumulate(voltage) > 2.7)
        drawn = -np.trapezoid(np.where(under_load, current, 0.0), seconds) / 3600
        assert drawn == pytest.approx(row["capacity_ah"], abs=0.05)


@pytest.mark.parametrize("as_of", Interval.closed(AS_OF, LAST))
def test_windows_by_time_hold_whole_cells_on_every_night_that_may_be_trained_as_of(as_of: date) -> None:
    """A cell belongs to the first split that it is in, so that one day too many of the next cell takes all of it."""
    settings = Settings(catalogs=(ROOT / "config",))
    windows = split_windows(Lake(settings, load_catalog(settings)), "battery_health", as_of)
    days: dict[str, Counter[str]] = {}
    for cell, count in DISCHARGES.items():
        discharged = Interval(BEGUN[cell], BEGUN[cell] + timedelta(days=count))
        days[cell] = Counter(split for split, window in windows.items() for day in discharged if day in window)
    assert windows["train"].start >= BEGUN["B0006"]
    assert days["B0006"].keys() == days["B0007"].keys() == {"train"}
    assert days["B0006"]["train"] >= 165
    assert days["B0018"].keys() <= {"validation", "test"}
    assert days["B0018"]["validation"] >= 129
    assert days["B0005"].keys() == {"test"}


def test_a_night_scores_the_cells_discharged_that_day(lake: Lake) -> None:
    rows = spine(lake, "battery_health", Interval.of(LAST)).table().to_pylist()
    assert [(row["cell"], row["test_date"], row["cycle"]) for row in rows] == [("B0005", LAST, 168)]


def test_features_are_what_the_curve_shows_in_its_first_25_minutes(lake: Lake, discharges: Discharges) -> None:
    nights = Interval(FIRST, LAST + ONE_DAY)
    rows = compute_view(lake, "batteries", "discharge_start", nights).to_pylist()
    assert len(rows) == len(nights)
    for row in rows:
        seconds, voltage, _, temperature = discharges[row["cell"], row["data_date"]].T
        loaded = {
            name: np.interp(75, seconds, values)
            for name, values in (("voltage", voltage), ("temperature", temperature))
        }
        assert row["first_fall"] == pytest.approx(voltage[0] - loaded["voltage"], abs=1e-9)
        for step in range(19):
            instant = 1500 - 75 * step
            assert row[f"voltage_fall_t{step}"] == pytest.approx(
                loaded["voltage"] - np.interp(instant, seconds, voltage), abs=1e-9
            )
            assert row[f"warming_t{step}"] == pytest.approx(
                np.interp(instant, seconds, temperature) - loaded["temperature"], abs=1e-9
            )


def test_nothing_after_the_first_25_minutes_reaches_a_feature(lake: Lake, tmp_path: Path) -> None:
    """Cut every discharge short after 1,530 s, with the capacity still in it: the features are the same."""
    night = Interval.of(LAST)
    cut = replay_lake(tmp_path, "batteries", first=LAST)
    source = tmp_path / "cut.csv"
    with gzip.open(DATA / "curves" / "B0005.csv.gz", "rt", newline="") as text, source.open("w", newline="") as short:
        reader = csv.DictReader(text)
        writer = csv.DictWriter(short, reader.fieldnames or ())
        writer.writeheader()
        writer.writerows(row for row in reader if float(row["seconds"]) < 1530)
    dataset = cut.dataset("batteries")
    tables = {
        name: table.model_copy(update={"source": table.source.model_copy(update={"uri": str(source)})})
        if name != "capacities"
        else table
        for name, table in dataset.tables.items()
    }
    cut = Lake(
        cut.settings, cut.catalog.model_copy(update={"datasets": (dataset.model_copy(update={"tables": tables}),)})
    )
    for stage in (ingest, validate, transform):
        stage(cut, "batteries", night, run_id="cut")
    whole = compute_view(lake, "batteries", "discharge_start", night)
    assert compute_view(cut, "batteries", "discharge_start", night).equals(whole)
    assert pc.sum(whole["voltage_fall_t0"]).as_py() > 0


def test_many_nights_give_what_each_gives_alone(lake: Lake) -> None:
    nights = Interval(LAST - 3 * ONE_DAY, LAST + ONE_DAY)
    together = compute_view(lake, "batteries", "discharge_start", nights)
    assert together.equals(
        pa.concat_tables([compute_view(lake, "batteries", "discharge_start", Interval.of(night)) for night in nights])
    )


def test_nothing_comes_from_the_future(lake: Lake, tmp_path: Path) -> None:
    built = build_training_set(lake, "battery_health", AS_OF, tmp_path)
    assert built.unlabelled == dict.fromkeys(built.rows, 0)
    found = audit(
        lake, "battery_health", as_of=AS_OF, files=[built.training_path, built.test_path], pins=built.pins, nights=1
    )
    assert found.cells > 20
    assert found.findings == ()

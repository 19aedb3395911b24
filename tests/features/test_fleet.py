"""The simulated fleet as a data set: labels that mature when they say, features of the past alone, a truth for every
row that is scored.
"""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from config.calendar import ONE_DAY, Interval
from config.catalog.model import Split
from config.catalog.source import SimulationSource
from features.labels import labels, newest_mature
from features.retrieval import spine
from features.sources.simulation.fleet import fuel, incidents, truth, wear
from features.sources.simulation.fleet.vehicles import Fleet
from features.training_set import build_training_set
from features.transform import compute_view
from lake.lake import Lake
from tests.features.replays import publish_history, replay_lake
from training.registry.leakage import audit

MODELS = ("brake_failure", "maintenance_predictor", "safety_risk", "tire_wear", "fraud_detector")
VEHICLES = 50
LAST = date(2024, 12, 28)
FIRST = LAST - timedelta(days=34)
SPLIT = {"train": "5 days", "validation": "3 days", "test": "3 days", "embargo": "1 day"}
DRAWN = Fleet(7, VEHICLES)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Some weeks of a smaller fleet."""
    shipped = replay_lake(tmp_path_factory.mktemp("fleet"), "fleet", first=FIRST)
    entry = shipped.dataset("fleet")
    assert entry.replay is not None
    tables = {}
    for name, table in entry.tables.items():
        assert isinstance(table.source, SimulationSource)
        tables[name] = table.model_copy(update={"source": table.source.model_copy(update={"vehicles": VEHICLES})})
    replay = entry.replay.model_copy(update={"last": LAST, "first_night": LAST})
    models = [m.model_copy(update={"split": Split(**SPLIT)}) for m in shipped.catalog.models_of("fleet")]
    # One of them takes every view of a vehicle, so that all are audited at once.
    views = tuple(name for name, view in entry.features.items() if view.entities == ("vehicle",))
    models = [m.model_copy(update={"features": views}) if m.name == "tire_wear" else m for m in models]
    datasets = (entry.model_copy(update={"tables": tables, "replay": replay}),)
    small = Lake(shipped.settings, shipped.catalog.model_copy(update={"datasets": datasets, "models": tuple(models)}))
    publish_history(small, "fleet")
    return small


def test_every_model_of_the_fleet_is_tested(lake: Lake) -> None:
    assert {model.name for model in lake.catalog.models_of("fleet")} == set(MODELS)


@pytest.mark.parametrize("model", ["tire_wear", "fraud_detector"])
def test_nothing_comes_from_the_future(lake: Lake, model: str, tmp_path: Path) -> None:
    built = build_training_set(lake, model, LAST, tmp_path)
    found = audit(lake, model, as_of=LAST, files=[built.training_path, built.test_path], pins=built.pins, nights=1)
    assert found.cells > 20
    assert found.findings == ()
    assert pq.read_metadata(built.training_path).num_rows > 0


@pytest.mark.parametrize(
    ("model", "happened", "within"),
    [
        ("brake_failure", lambda day: wear.failed(DRAWN, "pads", day), 14),
        ("maintenance_predictor", lambda day: wear.failed(DRAWN, "engine", day), 14),
        ("safety_risk", lambda day: incidents.happened(DRAWN, day), 7),
    ],
)
def test_a_mature_label_says_what_followed(lake: Lake, model: str, happened, within: int) -> None:
    newest = newest_mature(lake, model, LAST)
    nights = Interval(newest - 5 * ONE_DAY, newest + ONE_DAY)
    known = labels(lake, model, nights, as_of=LAST)
    assert known["label"].null_count == 0
    assert known.num_rows == len(nights) * VEHICLES
    for night in nights:
        followed = np.zeros(VEHICLES, bool)
        for ahead in range(1, within + 1):
            followed |= happened(night.toordinal() + ahead)
        mine = known.filter(pc.equal(known["data_date"], night)).sort_by("vehicle")["label"].to_numpy()
        assert np.array_equal(mine, followed.astype(float))
    # Before it is mature, an evening without a report is unknown, not innocent.
    young = labels(lake, model, Interval.of(LAST), as_of=LAST)
    assert young["label"].null_count == VEHICLES


def test_a_fill_is_judged_after_twenty_days_and_a_tread_where_it_was_measured(lake: Lake) -> None:
    night = newest_mature(lake, "fraud_detector", LAST)
    known = labels(lake, "fraud_detector", Interval.of(night), as_of=LAST)
    shown = fuel.fills(DRAWN, night.toordinal())
    assert known["label"].to_pylist() == (shown.way > 0).astype(float).tolist()
    nights = Interval(LAST - timedelta(days=12), LAST - timedelta(days=4))
    treads = labels(lake, "tire_wear", nights, as_of=LAST)
    measured = treads.num_rows - treads["label"].null_count
    assert 5 < measured < treads.num_rows / 8


@pytest.mark.parametrize("model", MODELS)
def test_every_row_that_is_scored_has_a_truth(lake: Lake, model: str) -> None:
    rows = spine(lake, model, Interval.of(LAST)).table()
    table = lake.model(model).label.table
    expected = truth.expected(DRAWN, table, LAST.toordinal())
    key = expected.column_names[0] if expected.column_names[0] != "expected" else expected.column_names[1]
    assert sorted(rows[key].to_pylist()) == sorted(expected[key].to_pylist())
    assert np.isfinite(expected["expected"].to_numpy()).all()
    assert table in truth.KNOWN_BY


def test_many_nights_give_what_each_gives_alone(lake: Lake) -> None:
    nights = Interval(LAST - ONE_DAY, LAST + ONE_DAY)
    for view in lake.dataset("fleet").features:
        alone = [compute_view(lake, "fleet", view, Interval.of(night)) for night in nights]
        assert compute_view(lake, "fleet", view, nights).equals(pa.concat_tables(alone)), view


def test_tread_is_projected_at_the_pace_that_was_measured(lake: Lake) -> None:
    """The feature is nearer to the truth where the set was measured than the law at the mean pace."""
    rows = compute_view(lake, "fleet", "tread_history", Interval.of(LAST))
    depth = wear.tyres(DRAWN, LAST.toordinal())[1]
    places = [int(name[1:]) for name in rows["vehicle"].to_pylist()]
    errors = {
        name: np.abs(rows[name].to_numpy() - depth[places]).mean()
        for name in ("tread_projected_mm", "tread_by_work_mm")
    }
    assert errors["tread_projected_mm"] < errors["tread_by_work_mm"] < 1.0


def test_what_drives_the_same_vehicle_is_told_by_driver(lake: Lake) -> None:
    rows = compute_view(lake, "fleet", "driver_style", Interval.of(LAST))
    style = DRAWN.style((LAST.toordinal() - date(2023, 1, 2).toordinal()) // 28)
    places = [int(name[1:]) for name in rows["vehicle"].to_pylist()]
    harsh = rows["driver_harsh_braking_100km"].to_numpy().astype(float)
    assert np.corrcoef(np.log(harsh + 0.1), style[places])[0, 1] > 0.9

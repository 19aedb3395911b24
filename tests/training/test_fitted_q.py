"""Fitted Q-iteration: it saves fuel on trips it has not seen, keeps to their time, and goes on where it was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lake.artifact import folder_digests
from serving.predictors import explainer_of, load_predictor
from serving.predictors.fitted_q import Policy
from serving.predictors.road_load import Trips
from serving.predictors.shapley import Sample
from tests.training.trips import OUTPUT, SEGMENTS, trip_job, trip_rows, trip_values, trips
from training.__main__ import run
from training.checkpoints import Checkpoints
from training.trainers import TrainingImpossible, fitted_q

ACTIONS = [f"fuel_action_{number}" for number in range(1, SEGMENTS + 1)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = trip_job(tmp_path_factory.mktemp("fitted_q") / "job")
    run(folder)
    return folder


def speeds(said: pa.Table) -> np.ndarray:
    """Planned, m/s."""
    return np.column_stack([np.asarray(said[name]) for name in ACTIONS]) / 3.6


def test_plans_close_most_of_the_way_to_the_optimum_and_are_in_time(trained: Path) -> None:
    predictor = load_predictor(trained)
    said = predictor.predict(trip_rows(150, seed=5))
    values = trip_values(150, seed=5)
    line = predictor.details["headwind"]  # type: ignore[attr-defined]  # of this family
    driven = Trips(values, line[0] + line[1] * values["headwind_mps"])
    plan = speeds(said)
    assert ((driven.metres[:, None] / plan).sum(axis=1) <= driven.budget * (1 + 1e-6)).all()
    assert (plan <= driven.limit * (1 + 1e-6)).all()
    assert driven.fuel(plan) == pytest.approx(np.asarray(said["fuel"]), rel=1e-5)
    constant, ours, best = driven.fuel(driven.constant_plan()), driven.fuel(plan), driven.optimum(200)
    assert (ours <= constant * (1 + 1e-6)).all(), "where nothing is gained, one speed is driven"
    assert (constant.sum() - ours.sum()) / (constant.sum() - best.sum()) > 0.8


def test_what_is_learned_and_what_is_tried_ahead_each_save_fuel(trained: Path) -> None:
    predictor, driven = load_predictor(trained), trips(300, seed=6)
    forests = predictor._forests  # type: ignore[attr-defined]  # of this family

    def litres(lookahead: int, *, learned: bool) -> float:
        policy = Policy(driven, lookahead=lookahead)
        policy.forests.update(forests if learned else {})
        return float(driven.fuel(policy.plan()).sum())

    assert litres(1, learned=True) < litres(1, learned=False)
    assert litres(2, learned=False) < litres(1, learned=False)


def test_the_headwind_that_a_forecast_means_is_learned(trained: Path) -> None:
    intercept, slope = json.loads((trained / "model" / "fitted_q.json").read_text())["headwind"]
    assert intercept == pytest.approx(1.0, abs=0.3)
    assert slope == pytest.approx(0.8, abs=0.08)


def test_a_row_alone_is_the_row_among_others(trained: Path) -> None:
    predictor, rows = load_predictor(trained), trip_rows(100, seed=2)
    whole = predictor.predict(rows)
    predictor.chunk_rows = 7
    assert predictor.predict(rows).equals(whole)
    assert all(predictor.predict(rows.slice(n, 1)).equals(whole.slice(n, 1)) for n in range(20))


def test_a_trip_that_cannot_be_in_time_is_flagged_and_planned_at_the_limits(trained: Path) -> None:
    rows = trip_rows(20)
    short = rows.set_column(rows.schema.get_field_index("v__budget_minutes"), "v__budget_minutes", pa.array([1.0] * 20))
    said = load_predictor(trained).predict(short)
    assert said["fuel_infeasible"].to_pylist() == [1] * 20
    assert speeds(said) == pytest.approx(trips(20).limit, rel=1e-6)
    assert np.asarray(said["fuel"]) == pytest.approx(np.asarray(said["fuel_baseline"]))
    assert sum(load_predictor(trained).predict(rows)["fuel_infeasible"].to_pylist()) == 0


def test_what_is_missing_or_infinite_is_taken_as_in_a_typical_trip(trained: Path) -> None:
    rows = trip_rows(3)
    nothing = pa.table({name: pa.nulls(2, rows.schema.field(name).type) for name in rows.column_names})
    for ugly in (
        nothing,
        rows.set_column(
            rows.schema.get_field_index("v__mass_tonnes"), "v__mass_tonnes", pa.array([np.inf, np.nan, 1e30])
        ),
    ):
        said = load_predictor(trained).predict(ugly)
        assert all(np.isfinite(np.asarray(column)).all() for column in said.columns)


def test_equal_seeds_give_equal_bytes_also_after_a_kill(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    job = trip_job(tmp_path / "job")
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    saved, save = [], fitted_q._save

    def save_once(forests: Any, segment: int, run: Any) -> None:
        save(forests, segment, run)
        saved.append(segment)
        if len(saved) == 2:
            raise Killed

    monkeypatch.setattr(fitted_q, "_save", save_once)
    with pytest.raises(Killed):
        run(job)
    run(job)
    assert saved == [3, 2, 1], "what was learned is not learned again"
    assert folder_digests(job / "model") == folder_digests(trained / "model")
    other = trip_job(tmp_path / "other", n_estimators=2)
    run(other)
    assert folder_digests(other / "model") != folder_digests(trained / "model")


def test_importances_and_contributions_are_of_what_plans_depend_on(trained: Path) -> None:
    shares = json.loads((trained / "importances.json").read_text())["fuel"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["v__other"] == 0
    assert shares["v__budget_minutes"] > 0.05
    predictor = load_predictor(trained)
    explainer = explainer_of("fitted_q", trained / "model")
    assert explainer is not None
    matrix, background = (predictor.contract.matrix(trip_rows(30, seed=seed)) for seed in (3, 4))
    values = explainer(trained / "model", predictor.contract, Sample(matrix, background)).values["fuel"]
    cost = [predictor.expected_cost(rows) for rows in (matrix, background)]  # type: ignore[attr-defined]
    assert values.sum(axis=1) == pytest.approx(cost[0] - cost[1])
    assert np.abs(values[:, list(predictor.contract.features).index("v__other")]).max() == 0


@pytest.mark.parametrize(
    ("output", "without", "words"),
    [
        (OUTPUT | {"decisions": 5}, None, r"needs the feature 'grade_percent_t4', which no view of the model has"),
        (OUTPUT, "v__mass_tonnes", r"needs the feature 'mass_tonnes'.* For 4 segments it needs segment_km, "),
    ],
)
def test_trips_that_lack_something_are_refused(
    output: dict[str, Any], without: str | None, words: str, tmp_path: Path
) -> None:
    rows = trip_rows()
    folder = trip_job(tmp_path / "job", rows=rows.drop_columns([without]) if without else rows, output=output)
    with pytest.raises(TrainingImpossible, match=words):
        run(folder)
    assert not (folder / "manifest.json").exists()

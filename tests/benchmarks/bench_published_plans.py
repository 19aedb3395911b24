"""Plans of speeds beside the best there are: whole history of the simulated trips, trained as a process.

Nobody publishes such data; dynamic programming on the same choices gives the fuel that no plan can beat. It is asked
for twice: with the headwind expected the night before, and with the one that came, which nobody knew.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.predictors import load_predictor
from serving.predictors.fitted_q import FittedQPredictor, Policy, policy_of
from serving.predictors.road_load import Trips
from tests.benchmarks.published_stages import history, later_nights, prepare, row, train
from training.registry.job import gate_folder

MODEL = "fuel_optimization"
AIM = 0.8
_EVERY = 3


def run(folder: Path) -> list[dict[str, Any]]:
    """Fuel of every third trip of the gate's test and later nights; rows with what, seconds, against, ratio, aim."""
    lake, rows = history(folder / "trips", "trips")
    (job_dir,), prepared = prepare(lake, MODEL)
    rows.append(prepared)
    rows.append(row(f"{MODEL}: trained", train(lake, MODEL, job_dir)))
    test = pq.read_table(gate_folder(job_dir) / "test_set.parquet")
    every = pa.concat_tables([test, later_nights(lake, MODEL, test)])
    return rows + beside_the_optimum(job_dir, every.take(np.arange(0, every.num_rows, _EVERY)))


def beside_the_optimum(job_dir: Path, judged: pa.Table) -> list[dict[str, Any]]:
    """What share of the gap between one speed and the optimum plans close, on trips whose headwind came."""
    predictor, rows = load_predictor(job_dir), []
    assert isinstance(predictor, FittedQPredictor)
    began = time.perf_counter()
    plan = planned(predictor, judged)
    seconds = time.perf_counter() - began
    matrix, contract = predictor.contract.matrix(judged), predictor.contract
    values, policy = policy_of(contract, matrix, predictor.details | {"lookahead": 1}, {})
    trips, came = policy.trips, Trips(values, judged["label"].to_numpy())
    constant, ahead = trips.constant_plan(), Policy(trips, lookahead=2).plan()
    for wind, driven in (("expected", trips), ("that came", came)):
        optimum = driven.optimum().sum()
        possible = driven.fuel(constant).sum() - optimum
        for name, speeds in (("nothing learned, one segment ahead", policy.plan()), ("nothing learned", ahead)):
            closed = (driven.fuel(constant).sum() - driven.fuel(speeds).sum()) / possible
            rows.append(row(f"{MODEL}: {name}, headwind {wind}: {closed:.3f} of the gap", 0.0))
        closed = float((driven.fuel(constant).sum() - driven.fuel(plan).sum()) / possible)
        what = (
            f"{MODEL}, {driven.count:,} trips, headwind {wind}: {driven.fuel(plan).sum() / driven.count:.4f} l a trip, "
            f"one speed {driven.fuel(constant).sum() / driven.count:.4f}, optimum {optimum / driven.count:.4f}"
        )
        rows.append(row(what, seconds, "share of the gap to the optimum that is closed", closed) | {"aim": f">= {AIM}"})
    return rows


def planned(predictor: FittedQPredictor, rows: pa.Table) -> Any:
    """Speeds in m/s, (trips, segments), as published."""
    published = predictor.predict(rows)
    names = [name for name in published.column_names if "_action_" in name]
    return np.column_stack([published[name].to_numpy() for name in names]) / 3.6

"""Roads: the graph network on Los-loop by T-GCN's protocol, and on the simulated city what its forecasts are worth to
who has to choose a way.

Los-loop: 207 sensors, a week in steps of five minutes, the first 80 % to learn from and the rest to be judged, 12 steps
in. The published figure of a horizon is the error of all steps up to it. The last tenth of what is learned from tunes.

Routing: fixed trips of every night after validation go the fastest way by what is foretold; what they then take, by the
truth of the simulator, less what the fastest way in hindsight takes, is the regret.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from config.calendar import ONE_DAY, Interval, cutoff
from config.catalog.simulation import WORLDS
from config.catalog.source import SimulationSource
from config.settings import ROOT
from features.retrieval import retrieve
from features.sources.simulation import roads
from lake.lake import Lake
from serving.predictors import load_predictor
from serving.routing import Network, by_hour, fastest_ways, travelled_minutes
from tests.benchmarks.published_stages import history, prepare, rmse, row, train
from tests.training.jobs import write_job
from training.registry.job import gate_folder

Floats = npt.NDArray[np.float64]

LOS_LOOP = ROOT / "features" / "sources" / "data" / "los_loop"
STEPS_IN, STEPS_OUT = 12, 12
LEARNED = 1612  # of 2,016 steps
TUNED = 1451  # from here on they tune
STEPS_A_DAY = 288
# T-GCN by steps ahead, RMSE; PROVENANCE.md says which of them were checked.
T_GCN = {3: 5.1264, 6: 6.06, 9: 6.71, 12: 7.27}
# A row is a sensor, a time and a step ahead: some of 3.5 million teach, and some of 0.4 million tune.
TAUGHT_ROWS, TUNING_ROWS = 400_000, 60_000
PARAMS = {
    "per_step": [32],
    "units": [48],
    "dense": [64],
    "max_levels": STEPS_OUT,
    "residual_of": "v__speed_t0",
    "learning_rate": 0.002,
    "batch_size": 512,
    "epochs": 8,
    "patience": 3,
}
QUERIES = 100  # trips a day
OUTPUTS = {"speed": {"kind": "regression", "objective": "mean", "gate": "rmse"}}


def run(folder: Path) -> list[dict[str, Any]]:
    """Every table; rows with what, seconds, against, ratio (ours to the published figure), aim."""
    return [*los_loop(folder / "los_loop"), *routing(folder / "roads")]


def routing(folder: Path) -> list[dict[str, Any]]:
    """The simulated city: the model's error beside the best possible, and what its times cost who goes by them."""
    lake, rows = history(folder, "roads")
    (job_dir,), prepared = prepare(lake, "dynamic_routing")
    seconds = train(lake, "dynamic_routing", job_dir)
    return [*rows, prepared, *routing_figures(lake, job_dir, seconds)]


def routing_figures(lake: Lake, job_dir: Path, seconds: float) -> list[dict[str, Any]]:
    """Of every night after validation: errors against what was measured, and regret of the ways that were chosen."""
    declared = lake.dataset("roads").tables["road_hours"].source
    assert isinstance(declared, SimulationSource)
    city = roads.City(declared.seed, declared.blocks)
    network = Network.of(roads.roads(city, WORLDS["roads"].begins.toordinal()))
    test = pq.read_table(gate_folder(job_dir) / "test_set.parquet", columns=["data_date"])
    replay = lake.dataset("roads").replay
    assert replay is not None
    nights = Interval(pc.min(test["data_date"]).as_py(), replay.last)  # the last one's day is not there to be judged
    with lake.scratch("nights") as scratch:
        # Of every hour, also of those that have no label.
        judged = retrieve(lake, "dynamic_routing", nights, folder=scratch).reader().read_all()
    judged = judged.append_column("predicted", load_predictor(job_dir).predict(judged)["travel_minutes"])
    errors: dict[str, list[Floats]] = {}
    regrets: dict[str, list[Floats]] = {}
    taken: list[Floats] = []
    for night in nights:
        rows = judged.filter(pc.equal(judged["data_date"], night))
        day = cutoff(night, "UTC"), cutoff(night + ONE_DAY, "UTC")
        ordinal = (night + ONE_DAY).toordinal()
        truth = roads.travel_minutes(city, ordinal)
        label = _measured(network, roads.road_hours(city, ordinal), day[0])
        said = {
            "graph network": by_hour(rows, "predicted", network.roads, day),
            "yesterday's times": _earlier(city, network, ordinal, day[0], 1),
            "last week's times": _earlier(city, network, ordinal, day[0], 7),
            "free flow": np.broadcast_to(city.free_minutes, truth.shape),
            "best possible": roads.best_forecast(city, ordinal, 25),
        }
        query = _queries(network, ordinal)
        best = travelled_minutes(truth, fastest_ways(network, truth, *query), query[2])
        taken.append(best)
        for name, minutes in said.items():
            distance = np.abs(minutes - label)
            errors.setdefault(name, []).append(distance[~np.isnan(distance)])
            ways = fastest_ways(network, minutes, *query)
            regrets.setdefault(name, []).append(travelled_minutes(truth, ways, query[2]) - best)
    hindsight = float(np.mean(taken))
    return [_worth(name, errors[name], regrets[name], hindsight, seconds) for name in errors]


def _worth(name: str, errors: list[Floats], regrets: list[Floats], hindsight: float, seconds: float) -> dict[str, Any]:
    by_night = np.array([each.mean() for each in regrets])
    spread = by_night.std(ddof=1) / np.sqrt(len(by_night))
    error = float(np.mean(np.concatenate(errors)))
    what = (
        f"dynamic_routing {name}: MAE {error:.4f} min of a road and hour; regret {60 * by_night.mean():.2f} ± "
        f"{60 * spread:.2f} s a trip of {hindsight:.2f} min ({by_night.mean() / hindsight:.2%}), "
        f"{len(by_night)} nights of {QUERIES} trips"
    )
    return row(what, seconds if name == "graph network" else 0.0)


def _earlier(city: roads.City, network: Network, ordinal: int, begin: datetime, days: int) -> Floats:
    """What was measured some days before, an empty road's time where nothing was."""
    minutes = _measured(network, roads.road_hours(city, ordinal - days), begin - days * ONE_DAY)
    return np.where(np.isnan(minutes), city.free_minutes, minutes)


def _measured(network: Network, rows: pa.Table, begin: datetime) -> Floats:
    return by_hour(rows, "travel_minutes", network.roads, (begin, begin + ONE_DAY), time_column="hour_utc")


def _queries(network: Network, ordinal: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """Trips of a day, the same each time: between two junctions of the grid, begun from 6 to 20 o'clock."""
    random, junctions = np.random.default_rng(ordinal), len(network.junctions) - 2  # without the pier's
    origins = random.integers(0, junctions, QUERIES)
    destinations = (origins + random.integers(1, junctions, QUERIES)) % junctions
    return origins, destinations, random.uniform(6 * 60.0, 20 * 60.0, QUERIES)


def los_loop(folder: Path) -> list[dict[str, Any]]:
    """The graph network, the same network without the graph, and persistence, by T-GCN's protocol."""
    speed = np.loadtxt(LOS_LOOP / "los_speed.csv.gz", delimiter=",", skiprows=1)
    channels = {"speed": speed, **_around(speed, np.loadtxt(LOS_LOOP / "los_adj.csv.gz", delimiter=","))}
    first = LEARNED + STEPS_IN - 1
    asked = _grid(np.arange(first, len(speed) - STEPS_OUT), speed.shape[1])
    judged = _rows(channels, asked, "test")
    truth, now = judged["label"].to_numpy(), judged["v__speed_t0"].to_numpy()
    rows = [_figures("persistence", asked, truth, now, 0.0)]
    for name, used in (("graph network", list(channels)), ("the same network without neighbours", ["speed"])):
        began = time.perf_counter()
        predictor = load_predictor(_trained(folder / name.replace(" ", "-"), {key: channels[key] for key in used}))
        predicted = predictor.predict(judged)["speed"].to_numpy()
        rows.append(_figures(name, asked, truth, predicted, time.perf_counter() - began))
    return rows


def _around(speed: Floats, weights: Floats) -> dict[str, Floats]:
    """Means over the neighbours of each sensor, and over theirs; NaN where it has none."""
    near = weights - np.diag(np.diag(weights))
    total = near.sum(axis=1, keepdims=True)
    share = np.divide(near, total, out=np.zeros_like(near), where=total > 0)
    alone = total[:, 0] == 0
    once = speed @ share.T
    twice = once @ share.T
    once[:, alone] = twice[:, alone] = np.nan
    return {"near": once, "further": twice}


def _grid(origins: npt.NDArray[np.int64], sensors: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Times, sensors and steps ahead of every row."""
    every = np.meshgrid(origins, np.arange(sensors), np.arange(1, STEPS_OUT + 1), indexing="ij")
    return tuple(axis.ravel() for axis in every)


def _rows(channels: dict[str, Floats], asked: Sequence[npt.NDArray[np.int64]], split: str) -> pa.Table:
    """A row for each time, sensor and step ahead of `asked`."""
    origins, sensors, ahead = asked
    clock = 2 * np.pi * ((origins + ahead) % STEPS_A_DAY) / STEPS_A_DAY
    columns = {
        f"v__{name}_t{back}": pa.array(values[origins - back, sensors], from_pandas=True)
        for name, values in channels.items()
        for back in range(STEPS_IN)
    }
    return pa.table(
        columns
        | {
            "data_date": pa.array((15_400 + origins // STEPS_A_DAY).astype(np.int32)).cast(pa.date32()),
            "v__sensor": pa.array(np.char.mod("%03d", sensors)),
            "v__ahead": pa.array(ahead),
            "v__sine": np.sin(clock),
            "v__cosine": np.cos(clock),
            "label": channels["speed"][origins + ahead, sensors],
            "baseline": pa.nulls(len(origins), pa.float64()),
            "split": pa.repeat(split, len(origins)),
        }
    )


def _trained(folder: Path, channels: dict[str, Floats]) -> Path:
    from training.__main__ import run as trained

    random, sensors = np.random.default_rng(7), channels["speed"].shape[1]
    splits = []
    for split, count, begin, end in (
        ("train", TAUGHT_ROWS, STEPS_IN - 1, TUNED - STEPS_OUT),
        ("validation", TUNING_ROWS, TUNED, LEARNED - STEPS_OUT),
    ):
        drawn = random.integers((begin, 0, 1), (end, sensors, STEPS_OUT + 1), (count, 3))
        drawn = drawn[np.lexsort(drawn.T[::-1])]
        splits.append(_rows(channels, list(drawn.T), split))
    kinds = {"v__sensor": "string", "v__ahead": "int64"}
    named = [name for name in splits[0].column_names if name.startswith("v__")]
    job_dir = write_job(
        folder,
        "lstm",
        rows=pa.concat_tables(splits),
        params=PARAMS,
        entry={"outputs": OUTPUTS, "trainer": {"family": "lstm", "device": "auto"}},
        feature_columns={name: kinds.get(name, "float64") for name in named},
        output_columns=["speed"],
    )
    trained(job_dir)
    return job_dir


def _figures(
    name: str, asked: Sequence[npt.NDArray[np.int64]], truth: Floats, predicted: Floats, seconds: float
) -> dict[str, Any]:
    _, _, ahead = asked
    said, ratio = [], None
    for steps, published in T_GCN.items():
        counted = ahead <= steps
        error = rmse(predicted[counted], truth[counted])
        ratio = error / published if ratio is None else ratio
        distance = float(np.abs(predicted[counted] - truth[counted]).mean())
        said.append(f"{5 * steps} min {error:.3f} / {distance:.3f}")
    what = f"los_loop {name}, RMSE / MAE in miles an hour: {', '.join(said)}"
    return row(what, seconds, f"T-GCN 15 min {T_GCN[3]} / 3.1802", ratio)

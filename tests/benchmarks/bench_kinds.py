"""Training and scoring of a family of each newer output kind, against the bare library doing the same fit and forecast.

Ours reads the rows from Parquet, checks and encodes them, judges validation, and writes digested files; the bare fit
gets a matrix that is ready. So the ratio is what all of that costs. Each pair runs back to back in this process, one
thread each. Of decisions there is no bare library: their seconds stand alone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from serving.predictors import Predictor, load_predictor
from tests.benchmarks.published_stages import row
from tests.training.jobs import ANOMALY, training_rows, write_job
from tests.training.test_recommender import histories
from tests.training.test_recommender import job as recommender_job
from tests.training.trips import trip_job, trip_rows
from training.__main__ import run as train

Floats = npt.NDArray[np.float64]
ROWS = 40_000
TRIPS = 2_000
_TREES, _ROUNDS = 100, 200
_FORECAST = {"load": {"kind": "forecast", "objective": "median", "interval": 0.8, "gate": "pinball"}}


def run(rows: int = ROWS, trips: int = TRIPS) -> list[dict[str, Any]]:
    """Rows with what, seconds, against, ratio, aim."""
    with tempfile.TemporaryDirectory(prefix="bench-kinds-") as folder, threadpool_limits(1):
        at = Path(folder)
        return [
            *_anomalies(at, rows),
            *_forecasts(at, rows),
            *_rankings(at, rows),
            *_decisions(at, trips),
        ]


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _pair(what: str, ours: Callable[[], Any], bare: Callable[[], Any], library: str) -> dict[str, Any]:
    reference = _seconds(bare)
    seconds = _seconds(ours)
    return row(what, seconds, f"{library} {reference:.2f} s", seconds / reference)


def _trained(job_dir: Path) -> tuple[Predictor, npt.NDArray[np.float32], npt.NDArray[np.float32], Floats]:
    """The predictor of a trained job, all its rows as a matrix, and of the training rows matrix and labels."""
    predictor = load_predictor(job_dir)
    table = _rows_of(job_dir)
    taught = table.filter(pc.equal(table["split"], "train"))
    label = taught["label"].to_numpy().astype(np.float64)
    return predictor, predictor.contract.matrix(table), predictor.contract.matrix(taught), label


def _rows_of(job_dir: Path) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(job_dir / "training_set.parquet")


def _anomalies(folder: Path, rows: int) -> list[dict[str, Any]]:
    from sklearn.ensemble import IsolationForest

    params = {"n_estimators": _TREES, "threads": 1}
    entry = {"outputs": ANOMALY, "trainer": {"family": "isolation_forest", "device": "cpu"}}
    job_dir = write_job(folder / "anomaly", "isolation_forest", rows=training_rows(rows), params=params, entry=entry)
    seconds = _seconds(lambda: train(job_dir))
    predictor, whole, taught, _ = _trained(job_dir)
    forest = IsolationForest(n_estimators=_TREES, random_state=7)
    bare = _seconds(lambda: forest.fit(np.nan_to_num(taught)))
    given, table = np.nan_to_num(whole), _rows_of(job_dir)
    return [
        row(f"anomaly: training of {rows:,} rows", seconds, f"scikit-learn's fit {bare:.2f} s", seconds / bare),
        _pair(
            f"anomaly: scoring of {rows:,} rows",
            lambda: predictor.predict(table),
            lambda: forest.score_samples(given),
            "scikit-learn",
        ),
    ]


def _forecasts(folder: Path, rows: int) -> list[dict[str, Any]]:
    import xgboost as xgb

    params = {"n_estimators": _ROUNDS, "max_depth": 6, "early_stopping_rounds": _ROUNDS, "threads": 1}
    entry = {"outputs": _FORECAST, "trainer": {"family": "xgboost", "device": "cpu"}}
    columns = ["load", "load_lower", "load_upper"]
    job_dir = write_job(
        folder / "forecast", "xgboost", rows=training_rows(rows), params=params, entry=entry, output_columns=columns
    )
    seconds = _seconds(lambda: train(job_dir))
    predictor, whole, taught, label = _trained(job_dir)
    kinds = ["c" if spec.categories is not None else "q" for spec in predictor.contract.features.values()]
    settings = {"objective": "reg:quantileerror", "tree_method": "hist", "max_depth": 6, "nthread": 1}
    boosters: list[Any] = []

    def fit() -> None:
        matrix = xgb.QuantileDMatrix(taught, label=label, feature_types=kinds, nthread=1)
        for levels in (0.5, [0.1, 0.9]):
            boosters.append(xgb.train({**settings, "quantile_alpha": levels}, matrix, _ROUNDS))

    bare, table = _seconds(fit), _rows_of(job_dir)
    return [
        row(f"forecast: training of {rows:,} rows", seconds, f"xgboost's fit {bare:.2f} s", seconds / bare),
        _pair(
            f"forecast: scoring of {rows:,} rows",
            lambda: predictor.predict(table),
            lambda: [booster.inplace_predict(whole, validate_features=False) for booster in boosters],
            "xgboost",
        ),
    ]


def _rankings(folder: Path, rows: int) -> list[dict[str, Any]]:
    from sklearn.linear_model import Ridge

    job_dir = recommender_job(folder / "ranking", rows=histories(rows))
    seconds = _seconds(lambda: train(job_dir))
    predictor, _, _, label = _trained(job_dir)
    table = _rows_of(job_dir)
    items, came = np.unique(label, return_inverse=True)

    def indicators(of: pa.Table) -> Floats:
        given = np.zeros((len(of), 2 * len(items)))
        for step, name in enumerate(name for name in of.column_names if name.startswith("v__seen_t")):
            known = np.asarray(of[name].is_valid())
            position = np.searchsorted(items, np.asarray(pc.fill_null(of[name], "0")).astype(float))
            position = np.minimum(position, len(items) - 1)
            given[known, position[known]] = 1.0
            if step == 0:
                given[known, len(items) + position[known]] = 1.0
        return given

    ridge = Ridge(alpha=10.0)
    taught = indicators(table.filter(pc.equal(table["split"], "train")))
    bare = _seconds(lambda: ridge.fit(taught, np.eye(len(items))[came]))
    whole = indicators(table)
    return [
        row(f"ranking: training of {rows:,} rows", seconds, f"scikit-learn's ridge {bare:.2f} s", seconds / bare),
        _pair(
            f"ranking: scoring of {rows:,} rows",
            lambda: predictor.predict(table),
            lambda: np.argsort(-ridge.predict(whole), axis=1)[:, :2],
            "ridge and argsort",
        ),
    ]


def _decisions(folder: Path, trips: int) -> list[dict[str, Any]]:
    table = trip_rows(trips)
    job_dir = trip_job(folder / "action", rows=table, n_estimators=10)
    seconds = _seconds(lambda: train(job_dir))
    predictor = load_predictor(job_dir)
    scored = _seconds(lambda: predictor.predict(table))
    return [
        row(f"action: training on {trips:,} trips of 4 decisions", seconds),
        row(f"action: planning of {trips:,} trips ({1e3 * scored / trips:.2f} ms each)", scored),
    ]

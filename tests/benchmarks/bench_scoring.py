"""Scoring: rows per second of a predictor, streaming from Parquet, against the bare library and against MLflow's
pyfunc.

Each pair is measured back to back in one child process of its own, the best of three runs each, after one to warm up.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
FEATURES = 20
TRAINING_ROWS = 20_000
BATCH_ROWS = 131_072
REPEATS = 3
AIM = 1.5
_OUTPUTS = {"value": {"kind": "regression", "objective": "median", "interval": None, "gate": "mae"}}
_PARAMS: dict[str, dict[str, Any]] = {
    "xgboost": {"n_estimators": 200, "max_depth": 6, "early_stopping_rounds": 200},
    "keras": {"hidden": [64, 32], "epochs": 3},
}


def run(rows: int) -> list[dict[str, Any]]:
    """Measure both families on `rows` rows of 20 features."""
    results: list[dict[str, Any]] = []
    for family in ("xgboost", "keras"):
        with tempfile.TemporaryDirectory(prefix="bench-scoring-") as folder:
            _prepare(Path(folder), family, rows)
            for against in ("library", "pyfunc"):
                results.append(_child(Path(folder), family, against))
    return results


def _prepare(folder: Path, family: str, rows: int) -> None:
    from training.__main__ import run as train

    random = np.random.default_rng(7)
    job_dir = folder / "job"
    job_dir.mkdir()
    table = _rows(random, TRAINING_ROWS)
    table = table.append_column(
        "split", pa.array(np.where(np.arange(TRAINING_ROWS) < 0.8 * TRAINING_ROWS, "train", "validation"))
    )
    pq.write_table(table, job_dir / "training_set.parquet")
    from lake.artifact import file_digest

    job = {
        "model": "bench",
        "as_of": "2024-01-01",
        "entry": {"outputs": _OUTPUTS, "trainer": {"family": family, "device": "cpu"}},
        "feature_columns": {name: "float64" for name in table.schema.names if name.startswith("v__")},
        "output_columns": ["value"],
        "training_set": {"path": "training_set.parquet", "digest": file_digest(job_dir / "training_set.parquet")},
        "params": _PARAMS[family],
        "seed": 7,
    }
    (job_dir / "job.json").write_text(json.dumps(job))
    train(job_dir)
    with pq.ParquetWriter(folder / "rows.parquet", _rows(random, 1).drop_columns(["label"]).schema) as writer:
        for start in range(0, rows, BATCH_ROWS):
            writer.write_table(_rows(random, min(BATCH_ROWS, rows - start)).drop_columns(["label"]))


def _rows(random: np.random.Generator, count: int) -> pa.Table:
    columns = {f"v__{i:02d}": random.normal(size=count) for i in range(FEATURES)}
    label = sum(columns[f"v__{i:02d}"] * (i % 5) for i in range(FEATURES)) + random.normal(size=count)
    return pa.table(
        {
            **{name: pa.array(values, mask=random.random(count) < 0.01) for name, values in columns.items()},
            "label": label,
        }
    )


def _child(folder: Path, family: str, against: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_scoring", str(folder), family, against]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    if found.returncode:
        raise RuntimeError(f"measuring {family} against {against} failed:\n{found.stderr[-2000:]}")
    return dict(json.loads(found.stdout.splitlines()[-1]))


def _best_pair(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[float, float]:
    """Best seconds of each, taken in turns so that a noisy minute falls on both."""
    first()
    second()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for kept, work in zip(seconds, (first, second), strict=True):
            started = time.perf_counter()
            work()
            kept.append(time.perf_counter() - started)
    return min(seconds[0]), min(seconds[1])


def _measure(folder: Path, family: str, against: str) -> dict[str, Any]:
    from serving.predictors import load_predictor

    predictor = load_predictor(folder / "job")
    path = folder / "rows.parquet"
    count = pq.ParquetFile(path).metadata.num_rows

    def streamed() -> None:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH_ROWS):
            predictor.predict(batch)

    streamed()
    peak_mb = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )  # before the other side fills memory with all rows
    other = _library(folder, family, predictor) if against == "library" else _pyfunc(folder, predictor)
    ours, theirs = _best_pair(streamed, other)
    names = {"library": f"{family} predict on an array in memory", "pyfunc": "MLflow pyfunc on a DataFrame in memory"}
    return {
        "what": f"{family}: {count:,} rows x {FEATURES} features, Parquet to predictions",
        "seconds": ours,
        "against": f"{names[against]}, {theirs:.3f} s",
        "ratio": ours / theirs,
        "peak_mb": peak_mb,
        "aim": f"<= {AIM}" if against == "library" else "",
    }


def _library(folder: Path, family: str, predictor: Any) -> Callable[[], Any]:
    """The fastest that the library itself offers, features already in the float32 array it wants."""
    table = pq.read_table(folder / "rows.parquet")
    matrix = predictor.contract.matrix(table)
    if family == "xgboost":
        import xgboost as xgb

        booster = xgb.Booster()
        booster.load_model(folder / "job" / "model" / "value.ubj")
        return lambda: booster.inplace_predict(matrix, missing=np.nan)
    import keras

    from serving.predictors.keras import NETWORK_FILE, Encoding

    network = keras.saving.load_model(folder / "job" / "model" / NETWORK_FILE, compile=False, safe_mode=True)
    encoded = Encoding(
        predictor.contract, json.loads((folder / "job" / "model" / "keras.json").read_text())["encoding"]
    ).encode(matrix)
    return lambda: network.predict(encoded, batch_size=65_536, verbose=0)


def _pyfunc(folder: Path, predictor: Any) -> Callable[[], Any]:
    """The same model as MLflow would load it for an analyst, schema enforcement included."""
    import logging

    import mlflow
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    saved = folder / "pyfunc"
    signature = ModelSignature(
        inputs=Schema([ColSpec("double", name, required=False) for name in predictor.feature_columns]),
        outputs=Schema([ColSpec("double", "value")]),
    )
    mlflow.pyfunc.save_model(
        saved,
        python_model=str(ROOT / "training" / "pyfunc_model.py"),
        artifacts={"version": str(folder / "job")},
        signature=signature,
        pip_requirements=[],
    )
    model = mlflow.pyfunc.load_model(str(saved))
    frame = pq.read_table(folder / "rows.parquet").to_pandas()
    return lambda: model.predict(frame)


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), sys.argv[2], sys.argv[3])))

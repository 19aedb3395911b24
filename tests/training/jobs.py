"""Small training jobs with something to learn, made without a lake."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from config.catalog.output import output_of
from serving.predictors import FAMILIES
from training.job_file import job_identity
from training.trainers import family_of

FEATURES = {
    "v__x": "float64",
    "v__place": "string",
    "v__weekday": "int64",
    "v__empty": "float64",
    "v__constant": "float64",
    "v__flag": "boolean",
}
STEPS = {f"v__trail_t{step}": "float64" for step in range(3)}  # a sequence that says nothing of the label
OF_SEQUENCES = {"lstm", "transformer"}  # families that need one
OUTPUTS: dict[str, Any] = {
    "minutes": {"kind": "regression", "objective": "median", "interval": 0.8, "gate": "mae"},
    "late_probability": {"kind": "binary", "above": 15.0, "gate": "brier"},
}
OUTPUT_COLUMNS = ["minutes", "minutes_lower", "minutes_upper", "late_probability"]
ANOMALY = {"odd": {"kind": "anomaly", "above": 15.0, "share": 0.05}}


def outputs_of(family: str) -> dict[str, Any]:
    """Those of the toy's outputs that a family can learn; an anomaly for one that learns neither."""
    learns = family_of(family).LEARNS
    learned = {name: kind for name, kind in (OUTPUTS | ANOMALY).items() if output_of(kind).task in learns}
    return {name: kind for name, kind in learned.items() if name in OUTPUTS} or learned


# Of every family that learns something of the toy; those that learn another task have rows of their own in their tests.
QUICK: dict[str, dict[str, Any]] = {family: dict(family_of(family).QUICK) for family in FAMILIES if outputs_of(family)}


def training_rows(count: int = 1500, seed: int = 1) -> pa.Table:
    """Rows whose label follows from a number, a category and the weekday; an all-null, a constant and a boolean column
    beside.
    """
    random = np.random.default_rng(seed)
    x, place, weekday = (
        random.normal(size=count),
        random.choice(["east", "north", "west"], count),
        random.integers(0, 7, count),
    )
    label = 10 * x + np.where(place == "east", 20, 0) + 3 * weekday + random.normal(size=count) * 5
    day = np.sort(random.integers(0, 40, count))
    trail, known = (
        np.random.default_rng(seed + 1000).normal(size=(len(STEPS), count)),
        np.random.default_rng(seed + 2000).integers(0, 4, count),
    )
    return pa.table(
        {
            **{name: pa.array(trail[step], mask=known <= step) for step, name in enumerate(STEPS)},
            "data_date": pa.array(19_700 + day, pa.int32()).cast(pa.date32()),
            "v__x": pa.array(x, mask=random.random(count) < 0.05),
            "v__place": pa.array(place, mask=random.random(count) < 0.02),
            "v__weekday": pa.array(weekday, pa.int64()),
            "v__empty": pa.nulls(count, pa.float64()),
            "v__constant": pa.array(np.ones(count)),
            "v__flag": pa.array(x > 0),
            "label": label,
            "baseline": pa.nulls(count, pa.float64()),
            "split": np.where(day < 30, "train", "validation"),
        }
    )


def write_job(
    folder: Path, family: str, *, rows: pa.Table | None = None, params: dict[str, Any] | None = None, **changes: Any
) -> Path:
    """A job folder as `prepare_job` makes it; `changes` replace keys of job.json."""
    folder.mkdir(parents=True)
    path = folder / "training_set.parquet"
    pq.write_table(training_rows() if rows is None else rows, path)
    job: dict[str, Any] = {
        "model": "toy",
        "as_of": "2024-02-10",
        "run_id": "test",
        "entry": {"outputs": outputs_of(family), "trainer": {"family": family, "device": "auto"}},
        "feature_columns": FEATURES | STEPS if family in OF_SEQUENCES else FEATURES,
        "output_columns": [c for name, kind in outputs_of(family).items() for c in output_of(kind).columns(name)],
        "training_set": {"path": path.name, "digest": hashlib.sha256(path.read_bytes()).hexdigest()},
        "params": QUICK[family] if params is None else params,
        "seed": 7,
    } | changes
    job["entry"] = {"training": {"checkpoint_minutes": 5.0}} | job["entry"]
    job.setdefault("identity", job_identity(job))
    (folder / "job.json").write_text(json.dumps(job))
    return folder


@functools.cache
def trained_job(family: str, folder: Path) -> Path:
    """A finished job, trained once a session below its temporary `folder`."""
    from training.__main__ import run

    job_dir = write_job(folder / f"trained-{family}", family)
    run(job_dir)
    return job_dir

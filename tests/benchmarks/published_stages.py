"""The stages of a night without Airflow, for the benches of published figures: a whole history in bulk, the jobs of a
model, and their training as processes.
"""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from config.calendar import ONE_DAY, Interval
from config.catalog.load import load_catalog
from config.settings import Settings
from features.ingest import ingest
from features.labels import labels
from features.retrieval import retrieve
from features.transform import transform
from features.validate import validate
from lake.lake import Lake
from training.registry.job import prepare_jobs
from training.registry.runner import run_job

Floats = npt.NDArray[np.float64]


def history(folder: Path, dataset: str, *, last: date | None = None) -> tuple[Lake, list[dict[str, Any]]]:
    """Every night of the replay in bulk, and how long each stage took.

    Args:
        last: where the replay is to end instead, for labels that come after it.
    """
    settings = Settings(home=folder, runner="process")
    catalog = load_catalog(settings)
    entry = catalog.dataset(dataset)
    replay = entry.replay
    assert replay is not None
    if last is not None:
        replay = replay.model_copy(update={"last": last})
        entry = entry.model_copy(update={"replay": replay})
        others = (one for one in catalog.datasets if one.name != dataset)
        catalog = catalog.model_copy(update={"datasets": (*others, entry)})
    lake = Lake(settings, catalog)
    nights = Interval.closed(replay.first, replay.last)
    rows = []
    for stage in (ingest, validate, transform):
        began = time.perf_counter()
        result = stage(lake, dataset, nights, run_id="published")
        rows.append(
            row(
                f"{dataset}: {result.stage} of {len(nights):,} nights, {result.rows:,} rows",
                time.perf_counter() - began,
            )
        )
    return lake, rows


def prepare(lake: Lake, model: str) -> tuple[list[Path], dict[str, Any]]:
    """A job for each candidate, as of the eve of the first night, and how long the training set took."""
    replay = lake.dataset(lake.model(model).dataset).replay
    assert replay is not None
    began = time.perf_counter()
    jobs = prepare_jobs(lake, model, as_of=replay.first_night - ONE_DAY, run_id="published")
    return jobs, row(f"{model}: training set", time.perf_counter() - began)


def train(lake: Lake, model: str, job_dir: Path) -> float:
    """Train the job in a process of its own; returns seconds."""
    began = time.perf_counter()
    run_job(lake, model, job_dir, say=lambda line: None)
    return time.perf_counter() - began


def later_nights(lake: Lake, model: str, test: pa.Table) -> pa.Table:
    """The nights after the gate's test whose labels came by the replay's last night, in the columns of `test`."""
    replay = lake.dataset(lake.model(model).dataset).replay
    assert replay is not None
    nights = Interval.closed(pc.max(test["data_date"]).as_py() + ONE_DAY, replay.last)
    with lake.scratch("nights") as scratch:
        rows = retrieve(lake, model, nights, folder=scratch).reader().read_all()
    known = labels(lake, model, nights, as_of=replay.last)
    rows = rows.append_column("label", known["label"]).append_column("split", pa.array(["test"] * rows.num_rows))
    rows = rows.append_column("baseline", pa.nulls(rows.num_rows, pa.float64()))
    return rows.filter(pc.is_valid(rows["label"])).select(test.schema.names).cast(test.schema)


def rmse(predicted: Floats, truth: Floats) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(np.mean((predicted - truth) ** 2)))


def row(what: str, seconds: float, against: str = "", ratio: float | None = None) -> dict[str, Any]:
    """A line of the bench's table; `ratio` is ours to the published figure."""
    return {"what": what, "seconds": seconds, "against": against, "ratio": ratio, "aim": ""}

"""Trainings in containers: what a container costs against a process, and a dozen of them in one pool."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from cli.airflow_api import AirflowApi
from cli.processes import Supervisor
from cli.run import running
from config.calendar import Interval
from config.catalog.load import load_catalog
from lake.lake import Lake
from tests import toy
from tests.training.jobs import training_rows, write_job

AS_OF = date(2024, 2, 29)
FAMILIES: dict[str, dict[str, Any]] = {
    "xgboost": {"n_estimators": 200, "max_depth": 4, "threads": 1},
    "random_forest": {"n_estimators": 50},
    "keras": {"hidden": [32], "epochs": 15, "threads": 1},
}


@dataclass(frozen=True)
class JobTime:
    """One training task: when it was queued, began and ended, in seconds since the first was queued."""

    model: str
    queued: float
    began: float
    ended: float
    slots: int
    state: str


def write_catalog(folder: Path, count: int, memory_gb: float) -> Lake:
    """The toy catalog with so many models of several families, its nights published."""
    made = toy.toy_lake(folder)
    (made.settings.catalogs[0] / "models" / "ride_minutes.yaml").unlink()
    for index in range(count):
        family = list(FAMILIES)[index % len(FAMILIES)]
        text = toy.MODEL_YAML.replace("model: ride_minutes", f"model: ride_minutes_{index + 1:02}")
        text = text.replace(
            "family: xgboost, params: {n_estimators: 20, max_depth: 3}, seed: 7",
            f"family: {family}, params: {FAMILIES[family]}, seed: {index}",
        )
        text = (
            text.replace("better_by: 0.0", "better_by: -0.9")
            + f"training: {{runner: docker, memory_gb: {memory_gb}, cpus: 1}}\n"
        )
        (made.settings.catalogs[0] / "models" / f"ride_minutes_{index + 1:02}.yaml").write_text(text)
    lake = Lake(made.settings, load_catalog(made.settings))
    nights = Interval.closed(date(2024, 1, 1), AS_OF)
    toy.publish_valid(lake, nights)
    toy.publish_features(lake, nights)
    return lake


@contextmanager
def environment(lake: Lake) -> Iterator[None]:
    """Airflow's components find the catalog by the environment."""
    import os

    names = {
        "NIGHTFLEET_HOME": lake.settings.home,
        "NIGHTFLEET_CATALOGS": str(lake.settings.catalogs[0]),
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: str(value) for name, value in names.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def train_all(lake: Lake) -> list[JobTime]:
    """Start every model's training at once, in the real Airflow, and wait for all."""
    with environment(lake), running(lake.settings, lake.catalog, Console(stderr=True)) as (_, supervisor, api):
        return train_together(supervisor, api, [model.name for model in lake.catalog.models])


def train_together(supervisor: Supervisor, api: AirflowApi, names: list[str]) -> list[JobTime]:
    """Start these models' trainings at once, in an Airflow that runs, and wait for all."""
    for name in names:
        api.trigger(f"{name}_train", "together", partition_key=str(AS_OF), conf={"reason": "all at once"})
    waiting = set(names)
    while waiting:
        supervisor.check()
        waiting -= {
            name
            for name in waiting
            if (run := api.run(f"{name}_train", "together")) and run["state"] in {"success", "failed"}
        }
        time.sleep(0.5)
    return _times(api, names)


def _times(api: AirflowApi, names: list[str]) -> list[JobTime]:
    tasks = {name: next(t for t in api.tasks(f"{name}_train", "together") if t["task_id"] == "train") for name in names}

    def at(value: str) -> float:
        return datetime.fromisoformat(value).timestamp()

    # Ready, and so in the queue of the pool, is a training when its job was prepared.
    ready = {
        name: at(next(t for t in api.tasks(f"{name}_train", "together") if t["task_id"] == "prepare")["end_date"])
        for name in names
    }
    first = min(ready.values())
    return [
        JobTime(
            name,
            ready[name] - first,
            at(task["start_date"]) - first,
            at(task["end_date"]) - first,
            int(task["pool_slots"]),
            task["state"],
        )
        for name, task in tasks.items()
    ]


def most_at_once(jobs: list[JobTime]) -> int:
    """Slots taken together at the busiest moment."""
    return max(sum(job.slots for job in jobs if job.began <= moment.began < job.ended) for moment in jobs)


def run_jobs(count: int = 12, memory_gb: float = 4.0) -> list[dict[str, Any]]:
    """Rows of the table: wait and run time of each of the trainings, then the whole."""
    with tempfile.TemporaryDirectory(prefix="nightfleet-bench-") as folder:
        lake = write_catalog(Path(folder), count, memory_gb)
        jobs = sorted(train_all(lake), key=lambda job: job.began)
        slots = lake.settings.training_pool_gb
    rows = [
        {
            "what": f"{job.model}: {job.state}",
            "seconds": job.ended - job.began,
            "against": f"waited {job.began - job.queued:.1f} s in the pool",
        }
        for job in jobs
    ]
    succeeded = sum(job.state == "success" for job in jobs)
    whole = max(job.ended for job in jobs)
    alone = sum(job.ended - job.began for job in jobs)
    text = (
        f"one after another {alone:.0f} s; {most_at_once(jobs)} of {slots} GB at once; {succeeded} of {len(jobs)}"
        " succeeded"
    )
    return [*rows, {"what": f"{count} trainings", "seconds": whole, "against": text, "ratio": whole / alone}]


def run_overhead(repeats: int = 5) -> list[dict[str, Any]]:
    """The same job in a container and as a process, taken in turns; medians."""
    import statistics

    from training.registry.process_runner import ProcessRunner
    from training.registry.runner import choose_runner, run_job

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="nightfleet-bench-") as name:
        folder = Path(name)
        made = toy.toy_lake(folder)
        entry = made.catalog.models[0]
        entry = entry.model_copy(
            update={"training": entry.training.model_copy(update={"runner": "docker", "memory_gb": 4.0})}
        )
        ours = Lake(made.settings, made.catalog.model_copy(update={"models": (entry,)}))
        jobs = {
            "small": (training_rows(1_500), FAMILIES["xgboost"]),
            "200,000 rows, 300 trees": (
                training_rows(200_000),
                {"n_estimators": 300, "early_stopping_rounds": 300, "threads": 2},
            ),
        }
        for what, (table, params) in jobs.items():
            seconds: dict[str, list[float]] = {"docker": [], "process": []}
            for _ in range(repeats):
                for where in seconds:
                    job_dir = write_job(folder / "jobs" / where, "xgboost", rows=table, params=params)
                    began = time.perf_counter()
                    # Looking for engine and image is part of what a container costs.
                    runner = (
                        choose_runner(ours, "ride_minutes", print, task={"task": "bench"})
                        if where == "docker"
                        else ProcessRunner()
                    )
                    run_job(ours, "ride_minutes", job_dir, runner=runner, say=lambda line: None)
                    seconds[where].append(time.perf_counter() - began)
                    shutil.rmtree(job_dir)
            contained, process = (statistics.median(seconds[where]) for where in ("docker", "process"))
            against = f"as a process {process:.2f} s: {contained - process:+.2f} s"
            rows.append(
                {
                    "what": f"training in a container, {what}",
                    "seconds": contained,
                    "against": against,
                    "ratio": contained / process,
                }
            )
    return rows

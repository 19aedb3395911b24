"""The night in Airflow against the same functions in a row in one process; DAG parsing; the parts of `run`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from cli.chain import Chain, Step, make_plan
from cli.run import running
from config.calendar import Interval
from config.catalog.load import load_catalog
from config.settings import ROOT, Settings, load_settings
from lake.lake import Lake

DATASET, MODEL = "flights", "arrival_delay"


def night_in_one_process(lake: Lake, interval: Interval) -> dict[str, float]:
    """Every stage of a night, called in a row; seconds of each."""
    from features.ingest import ingest
    from features.materialize import materialize
    from features.transform import transform
    from features.validate import validate
    from monitoring.drift import drift
    from monitoring.pages.reports import report
    from monitoring.performance import performance
    from monitoring.retraining_requests import decide_retraining
    from serving.projection import project_predictions
    from serving.score import score

    seconds = {}
    for stage in (ingest, validate, transform, materialize):
        began = time.perf_counter()
        stage(lake, DATASET, interval, run_id="bench")
        seconds[stage.__name__] = time.perf_counter() - began
    for watched in (score, project_predictions, drift, performance, report):
        began = time.perf_counter()
        watched(lake, MODEL, interval, run_id="bench")
        seconds[watched.__name__] = time.perf_counter() - began
    began = time.perf_counter()
    decide_retraining(lake, MODEL, interval.start, run_id="bench")
    seconds["decide"] = time.perf_counter() - began
    return seconds


def run(nights: int = 6) -> list[dict[str, Any]]:
    """Airflow's nights and the process' nights alternate on one installation, so that both meet the same tables.

    Returns:
        rows with what, seconds, against, ratio, peak_mb (None), aim.
    """
    rows: list[dict[str, Any]] = []
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="nightfleet-bench-") as folder:
        settings: Settings = load_settings(home=folder)
        lake = Lake(settings, load_catalog(settings))
        plan = make_plan(lake, nights * 2, None)
        began = time.perf_counter()
        steps: list[Step] = []
        with running(settings, lake.catalog, console) as (_, supervisor, api):
            started = time.perf_counter() - began
            chain = Chain(lake, api, supervisor, settings.home / "airflow" / "logs", lambda step: None)
            chain.history({DATASET: plan.history[DATASET]})
            chain.train({MODEL: plan.first_nights[DATASET] - timedelta(days=1)}, "the benchmark")
            bulk = time.perf_counter() - began - started
            first = plan.first_nights[DATASET]
            # One night each to warm up: the first task of a process pays for what later ones share.
            chain.night({DATASET: first})
            night_in_one_process(lake, Interval.of(first + timedelta(days=1)))
            inside: list[dict[str, float]] = []
            for i in range(1, nights + 1):
                chain.night({DATASET: first + timedelta(days=2 * i)})
                steps.append(chain.steps[-1])
                inside.append(night_in_one_process(lake, Interval.of(first + timedelta(days=2 * i + 1))))
    airflow_seconds = sorted(step.seconds or 0.0 for step in steps)[len(steps) // 2]
    process_seconds = sorted(sum(parts.values()) for parts in inside)[len(inside) // 2]
    tasks = len([task for run in steps[0].runs.values() for task in run.tasks.values() if task.state == "success"])

    def add(what: str, seconds: float, against: str = "", ratio: float | None = None, aim: str = "") -> None:
        rows.append({"what": what, "seconds": seconds, "against": against, "ratio": ratio, "peak_mb": None, "aim": aim})

    add(
        f"a night of {MODEL} in Airflow, {tasks} tasks",
        airflow_seconds,
        f"the stages in a row in one process ({process_seconds:.2f} s)",
        airflow_seconds / process_seconds,
        "<= 1.3",
    )
    add("seconds on top per task", (airflow_seconds - process_seconds) / tasks, aim="<= 0.4 s")
    for name in inside[0]:
        called = sorted(parts[name] for parts in inside)[len(inside) // 2]
        task_id = {"project_predictions": "publish"}.get(name, name)
        tasked = sorted(
            t.seconds or 0.0
            for step in steps
            for run in step.runs.values()
            for t in run.tasks.values()
            if t.task_id == task_id
        )
        if tasked:
            add(
                f"  {name} as a task",
                tasked[len(tasked) // 2],
                f"called ({called:.2f} s)",
                tasked[len(tasked) // 2] / called,
            )
    add("run, part 1: start", started)
    add(f"run, part 2: bulk history and training of {MODEL}", bulk)
    add("run, part 3: a night", airflow_seconds)
    add("parse all DAG files, fresh process", parse_seconds())
    return rows


def parse_seconds() -> float:
    """Seconds of parsing the DAG folder, without the import of Airflow itself."""
    code = (
        "import sys, time; sys.path[:0] = ['plugins']; import airflow.sdk; from airflow.dag_processing.dagbag import "
        "DagBag; "
        "began = time.perf_counter(); bag = DagBag('dags'); assert not bag.import_errors, bag.import_errors; "
        "print(time.perf_counter() - began)"
    )
    with tempfile.TemporaryDirectory() as home:
        environment = {
            "AIRFLOW_HOME": home,
            "PATH": str(Path(sys.executable).parent),
            "PYTHONPATH": str(ROOT),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        }
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
    return float(done.stdout.splitlines()[-1])

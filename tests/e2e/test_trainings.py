"""What kills a training in the real Airflow leaves no container behind after the next try, and costs no finished
work.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.processes import ComponentDied
from cli.run import running
from config.calendar import Interval
from config.catalog.load import load_catalog
from lake.lake import Lake
from tests import toy
from tests.benchmarks.bench_training import AS_OF, environment
from training.registry.containers import INSTALLATION_LABEL, installation_id

RUN = "under-test"
# Long enough to be met in the middle, saved every two seconds.
LONG = {"n_estimators": 4000, "early_stopping_rounds": 4000, "max_depth": 3, "threads": 1}


@pytest.fixture
def prepared(docker_engine: Any, tmp_path: Path) -> Lake:
    model = toy.MODEL_YAML.replace("better_by: 0.0", "better_by: -0.9").replace(
        "{n_estimators: 20, max_depth: 3}", str(LONG)
    )
    model += "training: {runner: docker, memory_gb: 2, checkpoint_minutes: 0.03}\n"
    made = toy.toy_lake(tmp_path, model=model)
    lake = Lake(made.settings, load_catalog(made.settings))
    nights = Interval.closed(date(2024, 1, 1), AS_OF)
    toy.publish_valid(lake, nights)
    toy.publish_features(lake, nights)
    return lake


def containers(client: Any, lake: Lake) -> list[str]:
    return [
        found["Id"]
        for found in client.containers(
            all=True, filters={"label": f"{INSTALLATION_LABEL}={installation_id(lake.settings)}"}
        )
    ]


def until(what: str, found: Callable[[], Any], supervisor: Any, seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        supervisor.check()
        time.sleep(0.2)
    return value


def saved(lake: Lake) -> bool:
    return bool(list(lake.settings.jobs.glob("*/*/checkpoints/*.*/checkpoint.json")))


def state_of(api: Any) -> str:
    return str((api.run("ride_minutes_train", RUN) or {}).get("state"))


def train_task(api: Any) -> dict[str, Any]:
    return next(
        (
            task
            for task in api.tasks("ride_minutes_train", RUN)
            if task["task_id"] == "train" and task["map_index"] == 0
        ),
        {},
    )


def log_of(lake: Lake) -> str:
    folder = lake.settings.home / "airflow" / "logs" / "dag_id=ride_minutes_train" / f"run_id={RUN}" / "task_id=train"
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.rglob("*.log")))


def test_a_killed_container_and_a_killed_task_are_tried_again_from_the_checkpoint(
    docker_engine: Any, prepared: Lake
) -> None:
    with (
        environment(prepared),
        running(prepared.settings, prepared.catalog, Console(stderr=True)) as (_, supervisor, api),
    ):
        api.trigger("ride_minutes_train", RUN, partition_key=str(AS_OF), conf={"reason": "a long one"})
        until("a checkpoint", lambda: saved(prepared) and containers(docker_engine, prepared), supervisor)
        docker_engine.kill(containers(docker_engine, prepared)[0], signal="SIGKILL")
        # Airflow tries again by itself; this try's container, too, is met in the middle, and its task is failed by a
        # person.
        until(
            "the second try",
            lambda: train_task(api).get("try_number") == 2 and containers(docker_engine, prepared),
            supervisor,
        )
        api.call("PATCH", f"/dags/ride_minutes_train/dagRuns/{RUN}/taskInstances/train/0", json={"new_state": "failed"})
        until("no container", lambda: not containers(docker_engine, prepared), supervisor)
        api.clear("ride_minutes_train", RUN)
        until("the end", lambda: state_of(api) in {"success", "failed"}, supervisor)
        assert state_of(api) == "success", log_of(prepared)
        assert train_task(api)["try_number"] >= 3
    assert "killed (exit code 137): from outside" in log_of(prepared)
    assert "from a checkpoint" in log_of(prepared)
    assert containers(docker_engine, prepared) == []


def test_a_killed_scheduler_leaves_no_container_once_started_again(docker_engine: Any, prepared: Lake) -> None:
    console = Console(record=True, stderr=True, width=200)

    def until_the_scheduler_dies() -> None:
        with running(prepared.settings, prepared.catalog, console) as (_, supervisor, api):
            api.trigger("ride_minutes_train", RUN, partition_key=str(AS_OF), conf={"reason": "a long one"})
            until("a checkpoint", lambda: saved(prepared) and containers(docker_engine, prepared), supervisor)
            scheduler = next(component for component in supervisor.components if component.name == "scheduler")
            os.killpg(scheduler.process.pid, signal.SIGKILL)
            until("the scheduler's end", lambda: False, supervisor)

    with environment(prepared):
        with pytest.raises(ComponentDied, match="scheduler"):
            until_the_scheduler_dies()
        assert containers(docker_engine, prepared) == []
        with running(prepared.settings, prepared.catalog, console) as (_, supervisor, api):
            until("the end", lambda: state_of(api) in {"success", "failed"}, supervisor)
            assert state_of(api) == "success", log_of(prepared)
    assert containers(docker_engine, prepared) == []

"""Trainings in containers, in the real Airflow: six queue for a pool of three; what kills one leaves no container
behind after the next try, and costs no finished work. The tests build on one another, in order; the last one ends the
Airflow.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.airflow_api import AirflowApi
from cli.processes import ComponentDied, Supervisor
from cli.run import running
from config.catalog.load import load_catalog
from lake.lake import Lake
from tests import toy
from tests.benchmarks.bench_training import AS_OF, environment, most_at_once, train_together, write_catalog
from tests.e2e.conftest import User, interrupt, wait_for
from training.registry.containers import INSTALLATION_LABEL, installation_id
from training.registry.decision import read_decisions

# Twice as many as the pool takes at once; a dozen are measured by `python -m tests.benchmarks --only containers`.
QUEUED = 6
LONG_DAG = "ride_minutes_train"
# Long enough to be met in the middle, saved every two seconds.
LONG = {"n_estimators": 4000, "early_stopping_rounds": 4000, "max_depth": 3, "threads": 1}


@dataclass(frozen=True)
class Fleet:
    """An Airflow that trains in containers, in a pool of 6 GB: six quick models of 2 GB and a long one."""

    lake: Lake
    supervisor: Supervisor
    api: AirflowApi
    client: Any
    airflow: ExitStack

    def containers(self) -> list[str]:
        label = f"{INSTALLATION_LABEL}={installation_id(self.lake.settings)}"
        return [listed["Id"] for listed in self.client.containers(all=True, filters={"label": label})]

    def until(self, what: str, holds: Callable[[], Any], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
            self.supervisor.check()
            time.sleep(0.2)

    def checkpoints(self) -> set[Path]:
        return set(self.lake.settings.jobs.glob("*/*/checkpoints/*.*/checkpoint.json"))

    def train_until_saved(self, run_id: str, **overrides: Any) -> None:
        """Start the long training, and wait until its container has saved a checkpoint."""
        before = self.checkpoints()
        conf = {"reason": "a long one", "overrides": overrides}
        self.api.trigger(LONG_DAG, run_id, partition_key=str(AS_OF), conf=conf)
        self.until("a checkpoint", lambda: self.checkpoints() - before and self.containers())

    def log_of(self, run_id: str) -> str:
        logs = self.lake.settings.home / "airflow" / "logs" / f"dag_id={LONG_DAG}" / f"run_id={run_id}"
        return "\n".join(path.read_text(errors="replace") for path in sorted((logs / "task_id=train").rglob("*.log")))


def state_of(api: AirflowApi, run_id: str) -> str:
    return str((api.run(LONG_DAG, run_id) or {}).get("state"))


@pytest.fixture(scope="module")
def fleet(docker_engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    lake = write_catalog(tmp_path_factory.mktemp("fleet"), QUEUED, memory_gb=2.0)
    model = toy.MODEL_YAML.replace("better_by: 0.0", "better_by: -0.9").replace(
        "{n_estimators: 20, max_depth: 3}", str(LONG)
    )
    model += "training: {runner: docker, memory_gb: 2, checkpoint_minutes: 0.03}\n"
    (lake.settings.catalogs[0] / "models" / "ride_minutes.yaml").write_text(model)
    settings = lake.settings.model_copy(update={"training_memory_gb": 6.0})
    lake = replace(lake, settings=settings, catalog=load_catalog(settings))
    with environment(lake), ExitStack() as airflow:
        _, supervisor, api = airflow.enter_context(running(settings, lake.catalog, Console(stderr=True)))
        yield Fleet(lake, supervisor, api, docker_engine, airflow)


def test_trainings_queue_for_one_pool_and_all_succeed(fleet: Fleet) -> None:
    names = [model.name for model in fleet.lake.catalog.models if model.name != "ride_minutes"]
    jobs = train_together(fleet.supervisor, fleet.api, names)
    assert [job.state for job in jobs] == ["success"] * QUEUED
    assert 2 * 2 <= most_at_once(jobs) <= 6, (
        f"of a pool of 6 slots, jobs of 2 slots took {most_at_once(jobs)} at once: {jobs}"
    )
    assert all(len(read_decisions(fleet.lake, name)) == 1 for name in names)
    assert fleet.containers() == []


def test_a_killed_container_and_a_killed_task_are_tried_again_from_the_checkpoint(fleet: Fleet) -> None:
    def train_task() -> dict[str, Any]:
        tasks = fleet.api.tasks(LONG_DAG, "killed")
        return next((task for task in tasks if task["task_id"] == "train" and task["map_index"] == 0), {})

    fleet.train_until_saved("killed")
    fleet.client.kill(fleet.containers()[0], signal="SIGKILL")
    # Airflow tries again by itself; this try's container, too, is met in the middle, and its task is failed by a
    # person.
    fleet.until("the second try", lambda: train_task().get("try_number") == 2 and fleet.containers())
    task = f"/dags/{LONG_DAG}/dagRuns/killed/taskInstances/train/0"
    fleet.api.call("PATCH", task, json={"new_state": "failed"})
    fleet.until("no container", lambda: not fleet.containers())
    fleet.api.clear(LONG_DAG, "killed")
    fleet.until("the end", lambda: state_of(fleet.api, "killed") in {"success", "failed"})
    assert state_of(fleet.api, "killed") == "success", fleet.log_of("killed")
    assert train_task()["try_number"] >= 3
    assert "killed (exit code 137): from outside" in fleet.log_of("killed")
    assert "from a checkpoint" in fleet.log_of("killed")
    assert fleet.containers() == []


def test_a_killed_scheduler_leaves_no_container_once_started_again(fleet: Fleet, tmp_path: Path) -> None:
    def until_the_scheduler_dies() -> None:
        with fleet.airflow:
            fleet.train_until_saved("orphaned", max_depth=2)
            scheduler = next(c for c in fleet.supervisor.components if c.name == "scheduler")
            os.killpg(scheduler.process.pid, signal.SIGKILL)
            fleet.until("the scheduler's end", lambda: False)

    with pytest.raises(ComponentDied, match="scheduler"):
        until_the_scheduler_dies()
    assert fleet.containers() == []
    user, log = User(fleet.lake.settings), tmp_path / "up.log"
    process = user.start("up", log=log)
    try:
        wait_for("Ctrl-C ends everything", log, process)
        secrets = fleet.lake.settings.home / "secrets"
        api = AirflowApi(_address(log), "admin", (secrets / "admin_password").read_text())
        deadline = time.monotonic() + 240
        while state_of(api, "orphaned") not in {"success", "failed"}:
            assert time.monotonic() < deadline, fleet.log_of("orphaned")
            time.sleep(0.2)
        assert state_of(api, "orphaned") == "success", fleet.log_of("orphaned")
    finally:
        assert interrupt(process, signal.SIGTERM) == 130
    assert user.processes() == []
    assert fleet.containers() == []


def _address(log: Path) -> str:
    """Where the log of `up` says that Airflow is."""
    return next(line.split()[1] for line in log.read_text().splitlines() if line.startswith("Airflow "))

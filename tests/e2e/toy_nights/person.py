"""Somebody in front of Airflow, who answers what the training of `tour_minutes` asks."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from cli.airflow_api import AirflowApi
from config.calendar import ONE_DAY
from tests import toy

MODEL, DAG = "tour_minutes", "tour_minutes_train"
AS_OF = toy.FIRST_NIGHT - ONE_DAY
FIRST = f"first__{AS_OF}"
_WAIT_SECONDS = 240


class Person:
    """Somebody in front of Airflow."""

    def __init__(self, url: str, password: str, name: str = "admin") -> None:
        self.api = AirflowApi(url, name, password)

    def instances(self, run_id: str) -> dict[str, dict[str, Any]]:
        return {instance["task_id"]: instance for instance in self.api.tasks(DAG, run_id)}

    def wait(self, run_id: str, task: str, state: str) -> dict[str, Any]:
        """Until the task is in that state; fails on another end."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            instance = self.instances(run_id)[task]
            if instance["state"] == state:
                return instance
            over = instance["state"] in {"success", "failed", "skipped", "upstream_failed"}
            assert not over, f"{task} of {run_id} is {instance['state']}, wanted is {state}"
            assert time.monotonic() < deadline, f"{task} of {run_id} is {instance['state']} after {_WAIT_SECONDS} s"
            time.sleep(0.2)  # between two questions

    def wait_run(self, run_id: str, state: str, dag_id: str = DAG) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        while (run := self.api.run(dag_id, run_id)) is None or run["state"] not in {"success", "failed"}:
            assert time.monotonic() < deadline, f"{run_id} is still {run}"
            time.sleep(0.2)
        assert run["state"] == state

    def form(self, run_id: str) -> dict[str, Any]:
        return dict(self.api.call("GET", f"/dags/{DAG}/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails").json())

    def answer(self, run_id: str, option: str, **params: str) -> None:
        body = {"chosen_options": [option], "params_input": params}
        self.api.call("PATCH", f"/dags/{DAG}/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails", json=body)

    def decide(self, run_id: str, option: str, task_state: str, **params: str) -> dict[str, Any]:
        """Answer whenever asked, until `approve` has ended so.

        Airflow tries a task again that is answered in the second in which it began to wait, before the scheduler took
        note of that: nobody reads the form so fast, so the scheduler's next heartbeats are waited for.
        """
        answered_try, deadline = 0, time.monotonic() + _WAIT_SECONDS
        while True:
            instance = self.instances(run_id)["approve"]
            if instance["state"] == "awaiting_input" and instance["try_number"] > answered_try:
                self._wait_heartbeat(datetime.now(UTC) + timedelta(seconds=1))
                self.answer(run_id, option, **params)
                answered_try = instance["try_number"]
            elif answered_try and instance["state"] in {"success", "failed"}:
                assert instance["state"] == task_state
                return instance
            assert time.monotonic() < deadline, f"approve of {run_id} is {instance['state']}"
            time.sleep(0.2)

    def _wait_heartbeat(self, after: datetime) -> None:
        """Until the scheduler has been through its loop once after that instant."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            scheduler = self.api.call("GET", "/monitor/health").json()["scheduler"]
            if datetime.fromisoformat(scheduler["latest_scheduler_heartbeat"]) > after:
                return
            assert time.monotonic() < deadline, f"no heartbeat of the scheduler after {after}: {scheduler}"
            time.sleep(0.2)

    def clear(self, run_id: str, task: str) -> None:
        """Clear one task and what follows from it, as the button in the UI does."""
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": [task],
            "only_failed": False,
            "include_downstream": True,
            "reset_dag_runs": True,
        }
        self.api.call("POST", f"/dags/{DAG}/clearTaskInstances", json=body)

    def train(self, run_id: str, depth: int) -> None:
        """Another challenger, asked for with a reason of its own."""
        conf = {"reason": "to be tried", "overrides": {"max_depth": depth}}
        assert self.api.trigger(DAG, run_id, partition_key=str(AS_OF), conf=conf)

"""Runs a prepared training job where catalog and profile say, on behalf of an Airflow task."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator
from mlops_links import MlflowRunLink


class TrainingOperator(BaseOperator):  # type: ignore[misc]  # airflow ships no types for it
    """`python -m training` on one job folder; returns the manifest's path.

    Where it runs, and what is allowed there, is the runner's: see `training.registry.runner`. What only Airflow can
    know comes from here: which task asks, at which try, and that it was killed.
    """

    template_fields: Sequence[str] = ("model_name", "job_dir", "force")
    operator_extra_links = (MlflowRunLink(),)

    def __init__(self, *, model_name: str, job_dir: Any, force: Any = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_name = model_name
        self.job_dir = job_dir
        self.force = force
        self._runner: Any = None

    def execute(self, context: Any) -> str:
        """Train where catalog and profile say; see `choose_runner` and `run_job` for what may be raised."""
        from lake.events import stage_events
        from lake.lake import open_lake
        from training.registry.runner import choose_runner, run_job

        lake, job_dir = open_lake(), Path(self.job_dir)
        say = functools.partial(self.log.info, "%s")
        # Only a first try is forced: a retry resumes from the checkpoint that the forced one left.
        force = str(self.force).lower() == "true" and context["ti"].try_number == 1
        with stage_events(lake, "train", self.model_name) as told:
            told["job"] = job_dir.name
            self._runner = choose_runner(lake, self.model_name, say, task=task_identity(context["ti"]))
            return str(run_job(lake, self.model_name, job_dir, runner=self._runner, say=say, force=force))

    def on_kill(self) -> None:
        """End the training when the task is killed; should even this not run, the next try does it."""
        if self._runner is not None:
            self._runner.cancel()


def task_identity(ti: Any) -> dict[str, str]:
    """Which task this is, and which try of it."""
    named = {"dag": ti.dag_id, "run": ti.run_id, "task": ti.task_id, "map_index": ti.map_index, "try": ti.try_number}
    return {name: str(value) for name, value in named.items()}

"""Runs a prepared training job where catalog and profile say, for an Airflow task; containers by DockerOperator."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from airflow.providers.docker.exceptions import DockerContainerFailedException
from airflow.providers.docker.operators.docker import DockerOperator
from mlops_links import MlflowRunLink


class TrainingOperator(DockerOperator):  # type: ignore[misc]  # airflow ships no types for it
    """`python -m training` on one job folder; returns the manifest's path.

    Where it runs, and what is allowed there, is the runner's: see `training.registry.runner`. What only Airflow can
    know comes from here: which task asks, at which try, and that it was killed. DockerOperator starts the container
    that the runner describes, and follows it.
    """

    template_fields: Sequence[str] = ("model_name", "job_dir", "force")
    operator_extra_links = (MlflowRunLink(),)

    def __init__(self, *, model_name: str, job_dir: Any, force: Any = False, **kwargs: Any) -> None:
        # `retrieve_output` would unpickle what a container wrote, `mount_tmp_dir` would mount a second folder.
        super().__init__(image="chosen when it runs", mount_tmp_dir=False, auto_remove="never", **kwargs)
        self.model_name = model_name
        self.job_dir = job_dir
        self.force = force
        self._runner: Any = None

    def execute(self, context: Any) -> str:
        """Train where catalog and profile say; see `choose_runner` and `run_job` for what may be raised."""
        from lake.events import stage_events
        from lake.lake import open_lake
        from training.registry.job import checked_job
        from training.registry.runner import choose_runner, run_job

        lake = open_lake()
        job_dir = checked_job(lake, self.model_name, self.job_dir)  # it came by XCom, which people may edit
        say = functools.partial(self.log.info, "%s")
        # Only a first try is forced: a retry resumes from the checkpoint that the forced one left.
        force = str(self.force).lower() == "true" and context["ti"].try_number == 1
        with stage_events(lake, "train", self.model_name) as told:
            told["job"] = job_dir.name
            task = task_identity(context["ti"])
            self._runner = choose_runner(lake, self.model_name, say, task=task, launch=self.launch)
            return str(run_job(lake, self.model_name, job_dir, runner=self._runner, say=say, force=force))

    def launch(self, container: Any, say: Any) -> list[str]:
        """Start a container and follow it; a `Launch` of `training.registry.docker_runner`.

        Args:
            say: not used, since DockerOperator logs each line as it comes.
        """
        from docker.errors import NotFound

        self.image, self.command, self.container_name = container.image, container.command, container.name
        self.user, self.labels, self.environment = container.user, container.labels, {}
        given = dict(container.host_config)
        self.mounts, self.network_mode = given.pop("mounts"), given.pop("network_mode")
        self.mem_limit, self.shm_size = given.pop("mem_limit"), given.pop("shm_size")
        self.device_requests = given.pop("device_requests")
        # DockerOperator has no argument for the rest; a client of the operator's own makes its host configuration
        # with it.
        self.cli.create_host_config = functools.partial(self.cli.create_host_config, **given)
        self.xcom_all, self.do_xcom_push = True, True  # all lines are the result
        lines: Sequence[Any] | None
        try:
            lines = self._run_image()
        except DockerContainerFailedException as error:  # the runner says why, from the container's state
            lines = error.logs
        except NotFound:
            lines = None  # somebody, or `on_kill`, took the container away while it ran
        return [str(line) for line in lines or ()]

    def on_kill(self) -> None:
        """End the training when the task is killed; should even this not run, the next try does it."""
        if self._runner is not None:
            self._runner.cancel()


def task_identity(ti: Any) -> dict[str, str]:
    """Which task this is, and which try of it."""
    named = {"dag": ti.dag_id, "run": ti.run_id, "task": ti.task_id, "map_index": ti.map_index, "try": ti.try_number}
    return {name: str(value) for name, value in named.items()}

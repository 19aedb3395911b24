"""Runs a prepared training job in a container (DockerOperator), or as a process where that is chosen."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from airflow.providers.docker.exceptions import DockerContainerFailedException
from airflow.providers.docker.operators.docker import DockerOperator
from mlops_links import MlflowRunLink

_STOP_SECONDS = 10
_WORKER_PORT = 2222
_REMOVED = 143  # what a container that was stopped from outside ends with


class TrainingOperator(DockerOperator):  # type: ignore[misc]  # airflow ships no types for it
    """`python -m training` on one job folder; returns the manifest's path.

    The container sees the job folder alone, has no network (several workers: a network of their own without a way out),
    no capability, no root, a read-only file system, capped memory and CPU. It carries labels of its task; whatever an
    earlier try of the same task left behind is removed before it starts.
    """

    template_fields: Sequence[str] = ("model_name", "job_dir", "force")
    operator_extra_links = (MlflowRunLink(),)

    def __init__(self, *, model_name: str, job_dir: Any, force: Any = False, **kwargs: Any) -> None:
        # `retrieve_output` would unpickle what a container wrote, `mount_tmp_dir` would mount a second folder: neither
        # is used.
        super().__init__(image="chosen when it runs", mount_tmp_dir=False, auto_remove="never", **kwargs)
        self.model_name = model_name
        self.job_dir = job_dir
        self.force = force

    def execute(self, context: Any) -> str:
        """Train where catalog and profile say; see `training.registry.runner` for what may be raised."""
        from lake.events import stage_events
        from lake.lake import open_lake

        lake = open_lake()
        with stage_events(lake, "train", self.model_name) as told:
            told["job"] = Path(self.job_dir).name
            return self._trained(lake, context)

    def _trained(self, lake: Any, context: Any) -> str:
        from training.registry.containers import engine, remove_containers
        from training.registry.runner import choose_runner, ready_manifest, run_job

        job_dir = Path(self.job_dir)
        # Only a first try is forced: a retry resumes from the checkpoint that the forced one left.
        force = str(self.force).lower() == "true" and context["ti"].try_number == 1
        say = functools.partial(self.log.info, "%s")
        chosen = choose_runner(lake, self.model_name, say)
        if chosen.image is None:
            return str(run_job(lake, self.model_name, job_dir, say=say, force=force))
        labels = _labels(lake.settings, context)
        own = {name: value for name, value in labels.items() if not name.endswith(".try")}
        client = engine()
        for container in remove_containers(client, own):
            say(f"removed the container {container}, which an earlier try of this task had left")
        ready = ready_manifest(lake, self.model_name, job_dir, force=force, say=say)
        if ready is not None:
            return str(ready)
        try:
            return str(self._train(lake, job_dir, chosen, labels, say))
        finally:
            remove_containers(client, own)

    def on_kill(self) -> None:
        """End and remove the container when the task is killed; should even this not run, the next try does it."""
        from docker.errors import NotFound

        if self.hook.client_created and self.container is not None:
            with suppress(NotFound):  # it has ended, and was removed, by itself
                self.cli.stop(self.container["Id"], timeout=_STOP_SECONDS)
                self.cli.remove_container(self.container["Id"], force=True)

    def _train(self, lake: Any, job_dir: Path, chosen: Any, labels: dict[str, str], say: Any) -> Path:
        from docker.errors import NotFound
        from docker.types import DeviceRequest, Mount

        from training.registry.containers import JOB_MOUNT, hand_over
        from training.registry.curves import CurveStream
        from training.registry.runner import LOG_FILE, checked_end, mlflow_run_of

        entry, limits = lake.model(self.model_name), chosen.limits
        chosen.note(job_dir)
        self.image, self.command, self.user, self.labels = chosen.image, [JOB_MOUNT], hand_over(job_dir), labels
        self.network_mode = "none"
        self.environment = {}
        self.mem_limit, self.shm_size = limits.memory_bytes, limits.shm_bytes
        self.device_requests = [DeviceRequest(count=limits.gpus, capabilities=[["gpu"]])] if limits.gpus else None
        # The job's description and training set are the same files for good: not even the trainer may write them.
        given = (job_dir / "job.json", job_dir / "training_set.parquet")
        self.mounts = [Mount(JOB_MOUNT, str(job_dir), "bind")]
        self.mounts += [Mount(f"{JOB_MOUNT}/{path.name}", str(path), "bind", read_only=True) for path in given]
        # DockerOperator has no argument for these; a client of the operator's own makes every host configuration with
        # them.
        self.cli.create_host_config = functools.partial(self.cli.create_host_config, **limits.host_config())
        overdue = threading.Event()
        timeout_seconds = entry.training.timeout_minutes * 60.0

        def end_overdue() -> None:
            overdue.set()
            if self.container is not None:
                self.cli.kill(self.container["Id"])

        timer = threading.Timer(timeout_seconds, end_overdue)
        timer.daemon = True
        say(
            f"container of {self.image}: {entry.training.memory_gb:g} GB, {entry.training.cpus:g} CPUs, {limits.gpus} "
            "GPUs, "
            f"at most {entry.training.timeout_minutes:g} minutes"
            + (f", {entry.training.workers} workers" if entry.training.workers > 1 else "")
        )
        code, lines, state = 0, [], {}
        with ExitStack() as stack:
            stack.enter_context(CurveStream(job_dir, lake.settings.tracking_uri, mlflow_run_of(job_dir), say))
            self._start_workers(entry.training.workers, labels)
            timer.start()
            stack.callback(timer.cancel)
            try:
                lines = self._run_image_with_lines()
            except DockerContainerFailedException as error:
                lines, code = [str(line) for line in error.logs or ()], 1
            except NotFound:
                code = _REMOVED  # somebody, or `on_kill`, took the container away while it ran
            if self.container is not None and code != _REMOVED:
                state = self.cli.inspect_container(self.container["Id"])["State"]
                code = int(state["ExitCode"])
        try:
            (job_dir / LOG_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:  # a full disk must not hide why the training ended
            say(f"{LOG_FILE} could not be kept: {error}")
        return checked_end(
            self.model_name,
            job_dir,
            code,
            overdue_after=timeout_seconds if overdue.is_set() else None,
            last_lines=lines,
            out_of_memory=bool(state.get("OOMKilled")),
        )

    def _run_image_with_lines(self) -> list[str]:
        """DockerOperator's run; all lines are its result."""
        self.xcom_all, self.do_xcom_push = True, True
        return [str(line) for line in self._run_image() or ()]

    def _start_workers(self, count: int, labels: dict[str, str]) -> None:
        """Start all data-parallel workers but the first, on a network of their own that leads nowhere else."""
        from training.registry.containers import JOB_MOUNT

        if count == 1:
            return
        # Containers of a network find each other by their names, which must be those of no other task.
        name = f"nightfleet-{hashlib.sha256(repr(sorted(labels.items())).encode()).hexdigest()[:16]}"
        self.cli.create_network(name, driver="bridge", internal=True, labels=labels)
        self.network_mode = name
        hosts = [f"{name}-{index}" for index in range(count)]
        self.container_name = hosts[0]
        arguments = ["--workers", ",".join(f"{host}:{_WORKER_PORT}" for host in hosts)]
        for index in range(1, count):
            container = self.cli.create_container(
                image=self.image,
                command=[JOB_MOUNT, *arguments, "--worker-index", str(index)],
                name=hosts[index],
                user=self.user,
                labels=labels,
                host_config=self.cli.create_host_config(
                    mounts=self.mounts,
                    mem_limit=self.mem_limit,
                    shm_size=self.shm_size,
                    device_requests=self.device_requests,
                    network_mode=name,
                ),
            )
            self.cli.start(container["Id"])
        self.command = [JOB_MOUNT, *arguments, "--worker-index", "0"]


def _labels(settings: Any, context: Any) -> dict[str, str]:
    from training.registry.containers import INSTALLATION_LABEL, LABEL, installation_id

    ti = context["ti"]
    named = {"dag": ti.dag_id, "run": ti.run_id, "task": ti.task_id, "map_index": ti.map_index, "try": ti.try_number}
    return {INSTALLATION_LABEL: installation_id(settings)} | {
        f"{LABEL}{name}": str(value) for name, value in named.items()
    }

"""Trains a job in a container of a Docker engine, or in several on a network of their own, one a data-parallel worker.

The container sees the job folder alone, has no network (several workers: one without a way out), no capability, no
root, a read-only file system, capped memory and CPU. It carries labels of who wants it.

What the container is made of is decided here. Starting it and following it is a function of its own, so that Airflow's
DockerOperator can do it where a task trains (`mlops_training_operator`); without Airflow `follow` does.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.settings import Settings
from serving.predictors.brought import FAMILY_FOLDER
from training.registry.attempt import LAST_LINES, LOG_FILE, Attempt, Ended, host_folder
from training.registry.containers import (
    INSTALLATION_LABEL,
    JOB_MOUNT,
    LABEL,
    Limits,
    hand_over,
    installation_id,
    remove_containers,
)

if TYPE_CHECKING:
    from docker import APIClient

# The one entry of a task's identity that differs between its tries.
TRY = "try"
WORKER_LABEL = f"{LABEL}worker"
_WORKER_PORT = 2222
_STOP_SECONDS = 10
_REMOVED = 143  # what a container that was stopped from outside ends with


@dataclass(frozen=True)
class Container:
    """The container that trains, as it is asked of the engine.

    Attributes:
        name: None: the engine's choice.
        host_config: arguments of Docker's host configuration: mounts, network, devices, caps and confinement.
    """

    image: str
    command: list[str]
    name: str | None
    user: str
    labels: dict[str, str]
    host_config: dict[str, Any]


# Starts a container, shows its lines as they come (by the function given, or in a log of its own), and returns all of
# them when it has ended, also when somebody took it away while it ran.
Launch = Callable[[Container, Callable[[str], None]], list[str]]


class DockerRunner:
    """A `Runner` on one Docker engine.

    Args:
        image: name and tag, as `find_image` found it.
        task: who wants the job trained, `try` among it; each entry becomes a label `nightfleet.<name>`. Containers
            that carry all of them but `try` are those of an earlier try.
        launch: who starts the container and follows it; None: this module's `follow`.
    Raises:
        ValueError: `task` names nothing but the try: every container of the installation would be an earlier one.
    """

    name = "docker"

    def __init__(
        self,
        client: APIClient,
        image: str,
        limits: Limits,
        settings: Settings,
        task: Mapping[str, str],
        launch: Launch | None = None,
    ) -> None:
        if not set(task) - {TRY}:
            raise ValueError("a container needs labels that tell its task from others")
        self.image = image
        self._client, self._limits = client, limits
        own = {INSTALLATION_LABEL: installation_id(settings)}
        self._labels = own | {f"{LABEL}{name}": value for name, value in task.items()}
        self._own = own | {f"{LABEL}{name}": value for name, value in task.items() if name != TRY}
        self._launch = launch or functools.partial(follow, client)

    def prepare(self, say: Callable[[str], None]) -> None:
        """Remove the containers of an earlier try of the same task.

        Raises:
            EngineBusy: one could not be removed; trying again is safe.
        """
        for container in remove_containers(self._client, self._own):
            say(f"removed the container {container}, which an earlier try of this task had left")

    def cancel(self) -> None:
        """End the containers, which `run` then removes; should even this not run, the next try's `prepare` does it."""
        self._end(functools.partial(self._client.stop, timeout=_STOP_SECONDS))

    def _end(self, how: Callable[[str], None]) -> None:
        from docker.errors import APIError, NotFound

        filters = {"label": [f"{name}={value}" for name, value in self._own.items()]}
        for container in self._client.containers(filters=filters):
            try:
                how(container["Id"])
            except NotFound:
                pass  # it has ended, and was removed, by itself
            except APIError as error:
                if error.status_code != HTTPStatus.CONFLICT:  # it is no longer running
                    raise

    def run(self, attempt: Attempt) -> Ended:
        """Train and wait; see `Runner.run`."""
        training = attempt.entry.training
        attempt.say(
            f"container of {self.image}: {training.memory_gb:g} GB, {training.cpus:g} CPUs, {self._limits.gpus} GPUs, "
            f"at most {attempt.timeout_seconds / 60:g} minutes"
            + (f", {training.workers} workers" if training.workers > 1 else "")
        )
        overdue = threading.Event()

        def end_overdue() -> None:
            overdue.set()
            self._end(self._client.kill)

        timer = threading.Timer(attempt.timeout_seconds, end_overdue)
        timer.daemon = True
        try:
            container = self._with_workers(attempt.job_dir, training.workers)
            timer.start()
            lines = self._launch(container, attempt.say)
            state = self._last_state(container)
        finally:
            timer.cancel()
            remove_containers(self._client, self._own)
        try:
            (host_folder(attempt.job_dir) / LOG_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:  # a full disk must not hide why the training ended
            attempt.say(f"{LOG_FILE} could not be kept: {error}")
        return Ended(
            int(state["ExitCode"]),
            list(deque(lines, LAST_LINES)),
            overdue=overdue.is_set(),
            out_of_memory=bool(state.get("OOMKilled")),
        )

    def _last_state(self, container: Container) -> Mapping[str, Any]:
        """How the engine says that a container ended."""
        from docker.errors import NotFound

        filters = {"label": [f"{name}={value}" for name, value in container.labels.items()]}
        for left in self._client.containers(all=True, filters=filters):
            with suppress(NotFound):
                state: Mapping[str, Any] = self._client.inspect_container(left["Id"])["State"]
                return state
        return {"ExitCode": _REMOVED}  # somebody, or `cancel`, took the container away while it ran

    def _with_workers(self, job_dir: Path, workers: int) -> Container:
        """The container that trains, and those of the other workers, started: they wait for it."""
        from docker.types import DeviceRequest, Mount

        limits = self._limits
        # The job's description and training set are the same files for good: not even the trainer may write them.
        given = [job_dir / "job.json", job_dir / "training_set.parquet"]
        given += [path for path in (job_dir / FAMILY_FOLDER,) if path.is_dir()]
        mounts = [Mount(JOB_MOUNT, str(job_dir), "bind")]
        mounts += [Mount(f"{JOB_MOUNT}/{path.name}", str(path), "bind", read_only=True) for path in given]
        host_config = {
            "mounts": mounts,
            "network_mode": "none",
            "device_requests": [DeviceRequest(count=limits.gpus, capabilities=[["gpu"]])] if limits.gpus else None,
            **limits.host_config(),
        }
        first = Container(
            self.image, [JOB_MOUNT], None, hand_over(job_dir), self._labels | {WORKER_LABEL: "0"}, host_config
        )
        if workers == 1:
            return first
        # Containers of a network find each other by their names, which must be those of no other task.
        network = f"nightfleet-{hashlib.sha256(repr(sorted(self._labels.items())).encode()).hexdigest()[:16]}"
        self._client.create_network(network, driver="bridge", internal=True, labels=self._labels)
        names = [f"{network}-{index}" for index in range(workers)]
        hosts = ",".join(f"{name}:{_WORKER_PORT}" for name in names)
        containers = [
            replace(
                first,
                command=[JOB_MOUNT, "--workers", hosts, "--worker-index", str(index)],
                name=name,
                labels=self._labels | {WORKER_LABEL: str(index)},
                host_config=host_config | {"network_mode": network},
            )
            for index, name in enumerate(names)
        ]
        for container in containers[1:]:
            self._client.start(create(self._client, container))
        return containers[0]


def create(client: APIClient, container: Container) -> str:
    """Create a container, not started yet; its id."""
    created = client.create_container(
        image=container.image,
        command=container.command,
        name=container.name,
        user=container.user,
        labels=container.labels,
        host_config=client.create_host_config(**container.host_config),
    )
    return str(created["Id"])


def follow(client: APIClient, container: Container, say: Callable[[str], None]) -> list[str]:
    """A `Launch` by the engine's own client."""
    from docker.errors import NotFound

    identity = create(client, container)
    # Attached before it starts: no line is missed, whatever the engine does with logs.
    output = client.attach(identity, stdout=True, stderr=True, stream=True)
    lines: list[str] = []
    with suppress(NotFound):
        client.start(identity)
        for line in text_lines(output):
            lines.append(line)
            say(line)
        client.wait(identity)
    return lines


def text_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines of a stream of bytes that may be cut anywhere, as they become whole; without their ends."""
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    for chunk in chunks:
        *whole, rest = (rest + decoder.decode(chunk)).split("\n")
        yield from (line.rstrip("\r") for line in whole)
    rest += decoder.decode(b"", final=True)
    if rest:
        yield rest

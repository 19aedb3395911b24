"""Trains a job in a container of a Docker engine, or in several on a network of their own, one a data-parallel worker.

The container sees the job folder alone, has no network (several workers: one without a way out), no capability, no
root, a read-only file system, capped memory and CPU. It carries labels of who wants it.
"""

from __future__ import annotations

import codecs
import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.settings import Settings
from training.registry.attempt import LAST_LINES, LOG_FILE, Attempt, Ended
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
_WORKER_PORT = 2222
_STOP_SECONDS = 10
_REMOVED = 143  # what a container that was stopped from outside ends with


class DockerRunner:
    """A `Runner` on one Docker engine.

    Args:
        image: name and tag, as `find_image` found it.
        task: who wants the job trained, `try` among it; each entry becomes a label `nightfleet.<name>`. Containers
            that carry all of them but `try` are those of an earlier try.
    Raises:
        ValueError: `task` names nothing but the try: every container of the installation would be an earlier one.
    """

    name = "docker"

    def __init__(
        self, client: APIClient, image: str, limits: Limits, settings: Settings, task: Mapping[str, str]
    ) -> None:
        if not set(task) - {TRY}:
            raise ValueError("a container needs labels that tell its task from others")
        self.image = image
        self._client, self._limits = client, limits
        own = {INSTALLATION_LABEL: installation_id(settings)}
        self._labels = own | {f"{LABEL}{name}": value for name, value in task.items()}
        self._own = own | {f"{LABEL}{name}": value for name, value in task.items() if name != TRY}
        self._container: str | None = None

    def prepare(self, say: Callable[[str], None]) -> None:
        """Remove the containers of an earlier try of the same task.

        Raises:
            EngineBusy: one could not be removed; trying again is safe.
        """
        for container in remove_containers(self._client, self._own):
            say(f"removed the container {container}, which an earlier try of this task had left")

    def cancel(self) -> None:
        """End and remove the container; should even this not run, the next try's `prepare` does it."""
        from docker.errors import NotFound

        if self._container is not None:
            with suppress(NotFound):  # it has ended, and was removed, by itself
                self._client.stop(self._container, timeout=_STOP_SECONDS)
                self._client.remove_container(self._container, force=True)

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
            if self._container is not None:
                self._client.kill(self._container)

        timer = threading.Timer(attempt.timeout_seconds, end_overdue)
        timer.daemon = True
        lines: list[str] = []
        try:
            self._create(attempt.job_dir, training.workers)
            timer.start()
            state = self._followed(lines, attempt.say)
        finally:
            timer.cancel()
            remove_containers(self._client, self._own)
        try:
            (attempt.job_dir / LOG_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:  # a full disk must not hide why the training ended
            attempt.say(f"{LOG_FILE} could not be kept: {error}")
        return Ended(
            int(state["ExitCode"]),
            list(deque(lines, LAST_LINES)),
            overdue=overdue.is_set(),
            out_of_memory=bool(state.get("OOMKilled")),
        )

    def _followed(self, lines: list[str], say: Callable[[str], None]) -> Mapping[str, Any]:
        """Start the created container, hand on its lines, and return its last state."""
        from docker.errors import NotFound

        assert self._container is not None  # `_create` came before
        # Attached before it starts: no line is missed, whatever the engine does with logs.
        output = self._client.attach(self._container, stdout=True, stderr=True, stream=True)
        try:
            self._client.start(self._container)
            for line in text_lines(output):
                lines.append(line)
                say(line)
            self._client.wait(self._container)
            state: Mapping[str, Any] = self._client.inspect_container(self._container)["State"]
        except NotFound:
            return {"ExitCode": _REMOVED}  # somebody, or `cancel`, took the container away while it ran
        return state

    def _create(self, job_dir: Path, workers: int) -> None:
        """Create the container that trains; start those of the other workers, which wait for it."""
        from docker.types import DeviceRequest, Mount

        user, limits = hand_over(job_dir), self._limits
        # The job's description and training set are the same files for good: not even the trainer may write them.
        given = (job_dir / "job.json", job_dir / "training_set.parquet")
        mounts = [Mount(JOB_MOUNT, str(job_dir), "bind")]
        mounts += [Mount(f"{JOB_MOUNT}/{path.name}", str(path), "bind", read_only=True) for path in given]
        arguments = [JOB_MOUNT]
        names: list[str | None] = [None]
        network = "none"
        if workers > 1:
            # Containers of a network find each other by their names, which must be those of no other task.
            network = f"nightfleet-{hashlib.sha256(repr(sorted(self._labels.items())).encode()).hexdigest()[:16]}"
            self._client.create_network(network, driver="bridge", internal=True, labels=self._labels)
            names = [f"{network}-{index}" for index in range(workers)]
            arguments += ["--workers", ",".join(f"{host}:{_WORKER_PORT}" for host in names)]
        host_config = self._client.create_host_config(
            mounts=mounts,
            network_mode=network,
            device_requests=[DeviceRequest(count=limits.gpus, capabilities=[["gpu"]])] if limits.gpus else None,
            **limits.host_config(),
        )
        for index in reversed(range(workers)):
            container = self._client.create_container(
                image=self.image,
                command=arguments if workers == 1 else [*arguments, "--worker-index", str(index)],
                name=names[index],
                user=user,
                labels=self._labels,
                host_config=host_config,
            )["Id"]
            if index:
                self._client.start(container)
            else:
                self._container = container


def text_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines of a stream of bytes that may be cut anywhere, as they become whole; without their ends."""
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    for chunk in chunks:
        *whole, rest = (rest + decoder.decode(chunk)).split("\n")
        yield from (line.rstrip("\r") for line in whole)
    rest += decoder.decode(b"", final=True)
    if rest:
        yield rest

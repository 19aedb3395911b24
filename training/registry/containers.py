"""What a training container may use, and the checks that come before `docker_runner` starts one."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.catalog.model import ModelEntry
from config.errors import NightfleetError, TransientError
from config.settings import Settings, image_code

if TYPE_CHECKING:
    from docker import APIClient

LABEL = "nightfleet."
IMAGE_CODE_LABEL = f"{LABEL}image_code"
INSTALLATION_LABEL = f"{LABEL}installation"
JOB_MOUNT = "/job"
IMAGE_USER = 10001
_SCRATCH_GB = 1.0
_ENGINE_TIMEOUT_SECONDS = 10


class EngineUnavailable(NightfleetError):
    """No Docker engine answers."""


class ImageMissing(NightfleetError):
    """The training image of this code is not there."""


class GpuUnavailable(NightfleetError):
    """GPUs are demanded that this machine, or its Docker engine, does not have."""


class NotEnoughMemory(NightfleetError):
    """A training asks for more memory than trainings may take together."""


class EngineBusy(TransientError):
    """The Docker engine refused for a reason that may pass."""


@dataclass(frozen=True)
class Limits:
    """What a container may take at most, as Docker's host configuration calls it."""

    memory_bytes: int
    nano_cpus: int
    shm_bytes: int
    scratch_bytes: int
    gpus: int

    def host_config(self) -> dict[str, Any]:
        """Caps and confinement, as arguments of Docker's host configuration."""
        return {
            "mem_limit": self.memory_bytes,
            "shm_size": self.shm_bytes,
            "nano_cpus": self.nano_cpus,
            "memswap_limit": self.memory_bytes,  # no swap on top: out of memory is an end, not a crawl
            "read_only": True,
            "tmpfs": {"/tmp": f"rw,nosuid,nodev,noexec,size={self.scratch_bytes}"},  # noqa: S108 (a tmpfs of the container's own)
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "pids_limit": 512,
        }


def engine(base_url: str | None = None) -> APIClient:
    """A client of the engine that answers.

    Raises:
        EngineUnavailable: none does.
    """
    import docker
    from docker.errors import DockerException

    # As the docker command: DOCKER_HOST, else the local socket.
    try:
        client = (
            docker.APIClient(base_url=base_url, version="auto", timeout=_ENGINE_TIMEOUT_SECONDS)
            if base_url
            else docker.from_env(version="auto", timeout=_ENGINE_TIMEOUT_SECONDS).api
        )
        client.ping()
    except (DockerException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise EngineUnavailable(
            f"no Docker engine answers ({reason}).\n"
            "  Start it (`sudo systemctl start docker`, or `sudo dockerd`), or train as a process: "
            "NIGHTFLEET_RUNNER=process."
        ) from error
    return client


def image_name(settings: Settings, *, gpus: bool) -> str:
    """Repository and tag of the image that trains as this checkout does."""
    return f"{settings.training_image}{'-gpu' if gpus else ''}:{image_code()}"


def find_image(client: APIClient, settings: Settings, *, gpus: bool) -> str:
    """The image's name, after looking that it is there and was built from this code.

    Raises:
        ImageMissing: it is not there, or its label names other code.
    """
    from docker.errors import ImageNotFound

    name = image_name(settings, gpus=gpus)
    build = "make images GPU=1" if gpus else "make images"
    try:
        labels = client.inspect_image(name)["Config"].get("Labels") or {}
    except ImageNotFound as error:
        repository = name.rsplit(":", 1)[0]
        others = sorted(
            tag.rsplit(":", 1)[1] for image in client.images(name=repository) for tag in image.get("RepoTags") or ()
        )
        there = (
            f"there is {repository} only of other code ({', '.join(others[:5])})"
            if others
            else f"there is no image {repository}"
        )
        raise ImageMissing(
            f"the training image {name} is missing: {there}.\n  Build it from this checkout: `{build}`."
        ) from error
    built_from = labels.get(IMAGE_CODE_LABEL)
    if built_from != image_code():
        raise ImageMissing(
            f"the image {name} was built from code {built_from}, this checkout's is {image_code()}.\n"
            f"  Build it again: `{build}`."
        )
    return name


def limits(client: APIClient, entry: ModelEntry, settings: Settings) -> Limits:
    """Caps of one container of that model.

    Raises:
        GpuUnavailable: a number of GPUs is demanded, and there are fewer, or the engine cannot hand them on.
    """
    wanted = entry.training
    runtime = "nvidia" in (client.info().get("Runtimes") or {})
    there = settings.training_pool_gpus if runtime else 0
    automatic = 0 if entry.trainer.device == "cpu" else there
    gpus = automatic if wanted.gpus == "auto" else wanted.gpus
    if gpus > there:
        why = "the Docker engine has no NVIDIA runtime" if not runtime else f"this machine has {there}"
        raise GpuUnavailable(
            f"training.gpus of {entry.name} is {gpus}, but {why}.\n"
            "  Set `gpus: auto` to use what there is, install the NVIDIA container toolkit, or send the task to a "
            "worker with GPUs."
        )
    gigabyte = 2**30
    memory = int(wanted.memory_gb * gigabyte)
    scratch = min(int(_SCRATCH_GB * gigabyte), memory // 2)  # it counts towards the memory cap
    return Limits(memory, int(wanted.cpus * 1e9), int(wanted.shm_gb * gigabyte), scratch, gpus)


def check_size(entry: ModelEntry, settings: Settings) -> None:
    """Refuse early what the training pools could never start.

    Raises:
        NotEnoughMemory, GpuUnavailable: the model asks for more than there is.
    """
    needed_gb = entry.training.memory_gb * entry.training.workers
    if needed_gb > settings.training_pool_gb:
        raise NotEnoughMemory(
            f"{entry.name} asks for {needed_gb:g} GB (training.memory_gb {entry.training.memory_gb:g} x "
            f"{entry.training.workers} workers), "
            f"trainings may take {settings.training_pool_gb} GB here.\n"
            "  Lower training.memory_gb, or raise NIGHTFLEET_TRAINING_MEMORY_GB and the slots of the Airflow pool "
            "`training`."
        )
    gpus = entry.training.gpus
    if isinstance(gpus, int) and gpus > settings.training_pool_gpus:
        raise GpuUnavailable(
            f"training.gpus of {entry.name} is {gpus}, this machine has {settings.training_pool_gpus}.\n"
            "  Set `gpus: auto` to use what there is, or NIGHTFLEET_TRAINING_GPUS where the workers' GPUs are not this "
            "machine's."
        )


def installation_id(settings: Settings) -> str:
    """Tells the containers of this installation from those of another on the same engine."""
    return hashlib.sha256(f"{platform.node()}:{settings.home}".encode()).hexdigest()[:16]


def remove_containers(client: APIClient, labels: Mapping[str, str]) -> list[str]:
    """Remove, running or not, every container with all these labels, and networks of theirs; returns the containers'
    short ids.
    """
    from docker.errors import APIError, NotFound

    filters = {"label": [f"{name}={value}" for name, value in labels.items()]}
    removed = []
    for container in client.containers(all=True, filters=filters):
        try:
            client.remove_container(container["Id"], force=True, v=True)
        except NotFound:
            continue  # it ended by itself in between
        except APIError as error:
            if error.status_code != 409:  # 409: its removal is under way
                raise EngineBusy(
                    f"the container {container['Id'][:12]} of an earlier try could not be removed: "
                    f"{error.explanation}. Try again."
                ) from error
        removed.append(container["Id"][:12])
    for network in client.networks(filters=filters):
        client.remove_network(network["Id"])
    return removed


def hand_over(job_dir: Path) -> str:
    """Make a job folder writable for the container's user; returns that user as `uid:gid`.

    Root's files are given to the image's own user: nothing runs as root. Anyone else's containers run as they do.
    """
    if os.geteuid() != 0:
        return f"{os.getuid()}:{os.getgid()}"
    for path in (job_dir, *job_dir.rglob("*")):
        os.chown(path, IMAGE_USER, IMAGE_USER, follow_symlinks=False)
    return f"{IMAGE_USER}:{IMAGE_USER}"

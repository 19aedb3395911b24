"""What a container may take, asked of an engine that says what it has."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from config.catalog.model import ModelEntry
from config.settings import Settings, load_settings
from lake.lake import Lake
from tests import toy
from training.registry.containers import (
    GpuUnavailable,
    NotEnoughMemory,
    check_size,
    image_name,
    installation_id,
    limits,
)


def entry(toy_lake: Lake, *, device: str = "auto", **training: Any) -> ModelEntry:
    found = toy_lake.catalog.models[0]
    updated = {
        "training": found.training.model_copy(update=training),
        "trainer": found.trainer.model_copy(update={"device": device}),
    }
    return found.model_copy(update=updated)


def machine(gpus: int) -> tuple[Any, Settings]:
    client = SimpleNamespace(info=lambda: {"Runtimes": {"runc": {}} | ({"nvidia": {}} if gpus else {})})
    return client, load_settings().model_copy(update={"training_gpus": gpus})


@pytest.mark.parametrize(
    ("there", "asked", "device", "given"),
    [
        (0, "auto", "auto", 0),
        (2, "auto", "auto", 2),
        (2, "auto", "gpu", 2),
        (2, "auto", "cpu", 0),
        (2, 1, "auto", 1),
        (2, 0, "auto", 0),
    ],
)
def test_gpus_are_handed_on_where_they_are(toy_lake: Lake, there: int, asked: Any, device: str, given: int) -> None:
    client, settings = machine(there)
    assert limits(client, entry(toy_lake, device=device, gpus=asked), settings).gpus == given


@pytest.mark.parametrize(
    ("there", "asked", "why"), [(0, 1, "the Docker engine has no NVIDIA runtime"), (2, 3, "this machine has 2")]
)
def test_a_number_that_cannot_be_had_is_refused(toy_lake: Lake, there: int, asked: int, why: str) -> None:
    client, settings = machine(there)
    with pytest.raises(GpuUnavailable, match=rf"training.gpus of ride_minutes is {asked}, but {why}"):
        limits(client, entry(toy_lake, gpus=asked), settings)
    with pytest.raises(GpuUnavailable, match=rf"is {asked}, this machine has {there}"):
        check_size(entry(toy_lake, gpus=asked), settings)


def test_what_the_pool_could_never_start_is_refused_early(toy_lake: Lake) -> None:
    settings = load_settings().model_copy(update={"training_memory_gb": 6.0})
    check_size(entry(toy_lake, memory_gb=3.0, workers=2), settings)
    with pytest.raises(
        NotEnoughMemory, match=r"asks for 8 GB \(training.memory_gb 4 x 2 workers\), trainings may take 6 GB here"
    ):
        check_size(entry(toy_lake, memory_gb=4.0, workers=2), settings)


def test_the_caps(toy_lake: Lake) -> None:
    client, settings = machine(0)
    caps = limits(client, entry(toy_lake, memory_gb=1.5, cpus=0.5, shm_gb=0.25), settings)
    assert (caps.memory_bytes, caps.nano_cpus, caps.shm_bytes) == (int(1.5 * 2**30), 500_000_000, 2**28)
    assert caps.scratch_bytes <= caps.memory_bytes / 2
    host = caps.host_config()
    assert host["memswap_limit"] == caps.memory_bytes
    assert host["read_only"]
    assert host["cap_drop"] == ["ALL"]


def test_two_installations_on_one_engine_are_told_apart(tmp_path: Path) -> None:
    ours, theirs = (toy.toy_lake(tmp_path / name).settings for name in ("ours", "theirs"))
    assert installation_id(ours) != installation_id(theirs)
    assert image_name(ours, gpus=True).startswith("nightfleet-training-gpu:")

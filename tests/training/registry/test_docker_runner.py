"""The runner on a real Docker engine with the real image: what a container may do, how it ends, what is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from config.calendar import Interval
from lake.lake import Lake
from tests import toy
from tests.training.jobs import write_job
from tests.training.own_family import MODEL_YAML, write_family
from training.registry.containers import (
    INSTALLATION_LABEL,
    GpuUnavailable,
    ImageMissing,
    find_image,
    installation_id,
    remove_containers,
)
from training.registry.docker_runner import DockerRunner, text_lines
from training.registry.job import prepare_job
from training.registry.runner import TrainingFailed, TrainingInterrupted, choose_runner, run_job

MODEL = "ride_minutes"
QUICK = {"n_estimators": 5, "max_depth": 2, "threads": 1}
ENDLESS = {"n_estimators": 100_000, "early_stopping_rounds": 100_000, "max_depth": 2, "threads": 1}


@pytest.fixture
def client(docker_engine: Any, tmp_path: Path) -> Any:
    return docker_engine


def lake_of(folder: Path, **training: Any) -> Lake:
    made = toy.toy_lake(folder)
    entry = made.catalog.models[0]
    entry = entry.model_copy(
        update={"training": entry.training.model_copy(update={"runner": "docker", "memory_gb": 2.0, **training})}
    )
    return Lake(made.settings, made.catalog.model_copy(update={"models": (entry,)}))


def task(attempt: int = 1) -> dict[str, str]:
    return {"dag": "ride_minutes_train", "run": "manual__1", "task": "train", "map_index": "0", "try": str(attempt)}


def own_containers(client: Any, lake: Lake, *, all_states: bool = True) -> list[Any]:
    return list(
        client.containers(all=all_states, filters={"label": f"{INSTALLATION_LABEL}={installation_id(lake.settings)}"})
    )


def run(lake: Lake, job_dir: Path, *, attempt: int = 1, force: bool = False) -> Path:
    runner = choose_runner(lake, MODEL, print, task=task(attempt))
    assert runner.name == "docker"
    return run_job(lake, MODEL, job_dir, runner=runner, say=print, force=force)


def when_running(client: Any, lake: Lake, act: Callable[[str], None], job_dir: Path) -> threading.Thread:
    """Call `act` with the container's id as soon as the trainer has written its first curve points."""

    def follow() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            running = own_containers(client, lake, all_states=False)
            points = job_dir / "curves.jsonl"
            if running and points.is_file() and points.stat().st_size:
                act(running[0]["Id"])
                return
            time.sleep(0.05)

    thread = threading.Thread(target=follow)
    thread.start()
    return thread


def test_it_trains_confined_and_leaves_nothing(client: Any, tmp_path: Path) -> None:
    lake = lake_of(tmp_path, cpus=1.5, shm_gb=0.25)
    job_dir = write_job(tmp_path / "jobs" / "job", "xgboost", params=ENDLESS | {"n_estimators": 3000})
    seen: list[Any] = []
    thread = when_running(client, lake, lambda found: seen.append(client.inspect_container(found)), job_dir)
    manifest = run(lake, job_dir)
    thread.join()
    assert json.loads(manifest.read_text())["device"] == "cpu"
    assert own_containers(client, lake) == []
    (inspected,) = seen
    host, labels = inspected["HostConfig"], inspected["Config"]["Labels"]
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"], host["ShmSize"]) == (
        2 * 2**30,
        2 * 2**30,
        1_500_000_000,
        2**28,
    )
    assert (host["ReadonlyRootfs"], host["Privileged"], host["CapDrop"], host["SecurityOpt"]) == (
        True,
        False,
        ["ALL"],
        ["no-new-privileges"],
    )
    assert host["NetworkMode"] == "none"
    assert inspected["Config"]["User"].split(":")[0] not in {"", "0", "root"}
    assert {m["Source"] for m in inspected["Mounts"] if m["Type"] == "bind"} == {
        str(job_dir),
        str(job_dir / "job.json"),
        str(job_dir / "training_set.parquet"),
    }
    assert [m["RW"] for m in inspected["Mounts"] if m["Destination"] == "/job"] == [True]
    assert not any(m["RW"] for m in inspected["Mounts"] if m["Destination"] != "/job" and m["Type"] == "bind")
    assert {name: labels[f"nightfleet.{name}"] for name in ("dag", "run", "task", "map_index", "try")} == {
        "dag": "ride_minutes_train", "run": "manual__1", "task": "train", "map_index": "0", "try": "1",
    }  # fmt: skip
    assert not [
        value
        for value in inspected["Config"]["Env"]
        if "SECRET" in value.upper() or "PASSWORD" in value.upper() or "MLFLOW" in value
    ]


def test_in_a_container_it_is_the_same_model(client: Any, tmp_path: Path) -> None:
    lake = lake_of(tmp_path)
    contained, process = (
        write_job(tmp_path / where / "job", "xgboost", params=QUICK) for where in ("docker", "process")
    )
    run(lake, contained)
    run_job(lake, "ride_minutes", process, say=lambda line: None)
    assert (
        json.loads((contained / "manifest.json").read_text())["artifacts"]
        == json.loads((process / "manifest.json").read_text())["artifacts"]
    )


def test_a_killed_container_is_an_interruption_and_the_retry_goes_on(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = lake_of(tmp_path)
    job_dir = write_job(tmp_path / "jobs" / "job", "xgboost", params=ENDLESS | {"n_estimators": 3000})
    thread = when_running(client, lake, lambda found: client.kill(found, signal="SIGKILL"), job_dir)
    with pytest.raises(TrainingInterrupted, match=r"killed \(exit code 137\): from outside"):
        run(lake, job_dir)
    thread.join()
    assert own_containers(client, lake) == []
    assert run(lake, job_dir, attempt=2).is_file()


def test_a_leftover_of_the_same_task_is_removed_and_no_other(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = lake_of(tmp_path)
    image = find_image(client, lake.settings, gpus=False)
    labels = {INSTALLATION_LABEL: installation_id(lake.settings)}
    labels |= {f"nightfleet.{name}": value for name, value in task().items()}
    made = {}
    for name, given in {"left over": labels, "another map index": labels | {"nightfleet.map_index": "1"}}.items():
        made[name] = client.create_container(image, entrypoint=["sleep", "600"], labels=given)["Id"]
        client.start(made[name])
    try:
        run(lake, write_job(tmp_path / "jobs" / "job", "xgboost", params=QUICK), attempt=2)
        assert [found["Id"] for found in own_containers(client, lake)] == [made["another map index"]]
    finally:
        remove_containers(client, {INSTALLATION_LABEL: installation_id(lake.settings)})


def test_cancelled_it_ends_and_removes_its_container(client: Any, tmp_path: Path) -> None:
    lake = lake_of(tmp_path)
    job_dir = write_job(tmp_path / "jobs" / "job", "xgboost", params=ENDLESS)
    runner = choose_runner(lake, MODEL, print, task=task())
    thread = when_running(client, lake, lambda found: runner.cancel(), job_dir)
    with pytest.raises(TrainingInterrupted, match="it was ended from outside"):
        run_job(lake, MODEL, job_dir, runner=runner, say=print)
    thread.join()
    assert own_containers(client, lake) == []


def test_out_of_time(client: Any, tmp_path: Path) -> None:
    lake = lake_of(tmp_path, timeout_minutes=0.12)
    with pytest.raises(
        TrainingFailed, match=r"it ran longer than 7.2 s and was killed; raise `training.timeout_minutes`"
    ):
        run(lake, write_job(tmp_path / "jobs" / "job", "xgboost", params=ENDLESS))
    assert own_containers(client, lake) == []


def test_out_of_memory(client: Any, tmp_path: Path) -> None:
    lake = lake_of(tmp_path, memory_gb=0.08)
    with pytest.raises(TrainingFailed, match=r"memory ran out \(exit code 137\); raise `training.memory_gb`"):
        run(lake, write_job(tmp_path / "jobs" / "job", "xgboost", params=ENDLESS))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_out_of_disk(client: Any, tmp_path: Path) -> None:
    lake = lake_of(tmp_path)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k,mode=777", "tmpfs", str(small)], check=True)
    try:
        job_dir = write_job(small / "job", "xgboost", params=ENDLESS | {"n_estimators": 4000, "max_depth": 8})
        with pytest.raises(TrainingFailed, match=r"its disk is full; free space where the job folder lies"):
            run(lake, job_dir)
        assert not (job_dir / "manifest.json").exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_changed_training_set_is_refused_in_the_container(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = lake_of(tmp_path)
    job_dir = write_job(tmp_path / "jobs" / "job", "xgboost", params=QUICK)
    (job_dir / "training_set.parquet").write_bytes((job_dir / "training_set.parquet").read_bytes() + b"x")
    with pytest.raises(
        TrainingFailed,
        match=r"(?s)it refused; its last line says why.*TrainingSetMismatch: .* its bytes were changed or cut",
    ):
        run(lake, job_dir)


def test_gpus_that_are_not_there(client: Any, tmp_path: Path) -> None:
    if "nvidia" in (client.info().get("Runtimes") or {}):
        pytest.skip("this machine's engine hands on GPUs")
    job_dir = write_job(tmp_path / "jobs" / "job", "xgboost", params=QUICK)
    with pytest.raises(
        GpuUnavailable, match=r"training.gpus of ride_minutes is 1, but the Docker engine has no NVIDIA runtime"
    ):
        run(lake_of(tmp_path / "a", gpus=1), job_dir)
    with pytest.raises(GpuUnavailable, match=r"training.gpus of ride_minutes is 2"):
        run(lake_of(tmp_path / "b", gpus=2, runner="auto"), job_dir)


def test_an_image_of_other_code(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = lake_of(tmp_path)
    job_dir = write_job(tmp_path / "jobs" / "job", "xgboost", params=QUICK)
    with monkeypatch.context() as other:
        other.setattr("training.registry.containers.image_code", lambda: "0123456789abcdef")
        with pytest.raises(
            ImageMissing,
            match=r"there is nightfleet-training only of other code .*\n  Build it from this checkout: `make images`",
        ):
            run(lake, job_dir)
    unknown = replace_settings(lake, training_image="nightfleet-nothing")
    with pytest.raises(ImageMissing, match=r"there is no image nightfleet-nothing"):
        run(unknown, job_dir)


def replace_settings(lake: Lake, **changes: Any) -> Lake:
    return replace(lake, settings=lake.settings.model_copy(update=changes))


def test_two_workers_in_containers_on_a_network_of_their_own(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = lake_of(tmp_path, workers=2)
    job_dir = write_job(
        tmp_path / "jobs" / "job", "keras", params={"hidden": [8], "epochs": 3, "patience": 3, "threads": 1}
    )
    before = {network["Id"] for network in client.networks()}
    run(lake, job_dir)
    assert {network["Id"] for network in client.networks()} == before
    assert own_containers(client, lake) == []
    alone = write_job(
        tmp_path / "alone" / "job", "keras", params={"hidden": [8], "epochs": 3, "patience": 3, "threads": 1}
    )
    run(lake_of(tmp_path / "one"), alone)
    ours, single = (json.loads((path / "manifest.json").read_text())["metrics"] for path in (job_dir, alone))
    assert ours["minutes/mae"] == pytest.approx(single["minutes/mae"], rel=1e-3)


def test_lines_of_a_stream_that_is_cut_anywhere() -> None:
    whole = "eins\r\nzwölf\n\nlast".encode()
    for size in range(1, len(whole)):
        chunks = [whole[start : start + size] for start in range(0, len(whole), size)]
        assert list(text_lines(chunks)) == ["eins", "zwölf", "", "last"]


def test_without_a_task_of_its_own_there_is_no_runner(toy_lake: Lake) -> None:
    # The labels of the installation alone would make every other task's container an earlier try.
    with pytest.raises(ValueError, match="labels that tell its task from others"):
        DockerRunner(None, "image", None, toy_lake.settings, {"try": "2"})  # type: ignore[arg-type]


def test_a_team_s_own_family_is_trained_in_a_container(client: Any, tmp_path: Path) -> None:
    write_family(tmp_path)
    made = toy.toy_lake(tmp_path, model=MODEL_YAML)
    nights = Interval.closed(date(2024, 1, 1), date(2024, 3, 1))
    toy.publish_valid(made, nights)
    toy.publish_features(made, nights)
    job_dir = prepare_job(made, MODEL, as_of=date(2024, 3, 1), run_id="r")
    manifest = json.loads(run(lake_of(tmp_path, cpus=1.0), job_dir).read_text())
    assert {"model/family/predictor.py", "model/family/trainer.py", "model/quantile.json"} < set(manifest["artifacts"])

"""What the operator adds to a runner: which task asks, at which try, that it was killed, and DockerOperator."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lake.lake import Lake
from tests.training.jobs import write_job
from training.job_file import JobChanged
from training.registry.attempt import Attempt, Ended, host_folder
from training.registry.job import ForeignJob
from training.registry.runner import TrainingInterrupted, run_job


class Recorded:
    """A runner that trains nothing: it notes what it is asked for, and may be cancelled from inside."""

    name, image = "docker", "nightfleet-training:0123"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.tasks: list[dict[str, str]] = []
        self.while_running: Any = lambda: None

    def prepare(self, say: Any) -> None:
        self.asked.append("prepare")

    def run(self, attempt: Attempt) -> Ended:
        self.asked.append("run")
        attempt.say("one line")
        self.while_running()
        return Ended(143, ["one line"])

    def cancel(self) -> None:
        self.asked.append("cancel")


@pytest.fixture
def runner(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    made = Recorded()

    def choose(_lake: Lake, _model: str, _say: Any, *, task: dict[str, str], launch: Any) -> Recorded:
        made.tasks.append(task)
        return made

    monkeypatch.setattr("lake.lake.open_lake", lambda *_arguments: toy_lake)
    monkeypatch.setattr("training.registry.runner.choose_runner", choose)
    return made


def ride_job(lake: Lake, family: str, **given: Any) -> Path:
    """A job where the model's jobs lie."""
    folder = lake.settings.jobs / "ride_minutes" / "2024-02-10-0123456789ab"
    return write_job(folder, family, model="ride_minutes", **given)


def operator_of(job_dir: Path, **given: Any) -> Any:
    from mlops_training_operator import TrainingOperator

    return TrainingOperator(task_id="train", model_name="ride_minutes", job_dir=str(job_dir), **given)


def context(attempt: int = 1) -> dict[str, Any]:
    names = {"dag_id": "ride_minutes_train", "run_id": "manual__1", "task_id": "train", "map_index": 0}
    return {"ti": SimpleNamespace(**names, try_number=attempt)}


def test_the_runner_learns_which_task_asks_and_at_which_try(runner: Recorded, toy_lake: Lake) -> None:
    job_dir = ride_job(toy_lake, "xgboost")
    with pytest.raises(TrainingInterrupted, match=r"(?s)ended from outside.*one line"):
        operator_of(job_dir).execute(context(attempt=2))
    assert runner.tasks == [
        {"dag": "ride_minutes_train", "run": "manual__1", "task": "train", "map_index": "0", "try": "2"}
    ]
    assert runner.asked == ["prepare", "run"]
    assert json.loads((host_folder(job_dir) / "where.json").read_text()) == {"runner": "docker", "image": runner.image}


@pytest.mark.parametrize("given", ["/etc", "outside", "link", "other_model", "edited", "gate", "relative"])
def test_a_folder_that_is_no_job_of_the_model_is_not_touched(
    runner: Recorded, toy_lake: Lake, tmp_path: Path, given: str
) -> None:
    job_dir = ride_job(toy_lake, "xgboost")
    outside = write_job(tmp_path / "outside", "xgboost", model="ride_minutes")
    (job_dir.parent / "link").symlink_to(outside)
    write_job(job_dir.parent / "other", "xgboost", model="another")
    edited = write_job(job_dir.parent / "edited", "xgboost", model="ride_minutes", identity="0" * 64)
    write_job(host_folder(job_dir), "xgboost", model="ride_minutes")
    paths = {
        "outside": outside, "link": job_dir.parent / "link", "other_model": job_dir.parent / "other", "edited": edited,
        "gate": host_folder(job_dir), "relative": Path("jobs"),
    }  # fmt: skip
    with pytest.raises((ForeignJob, JobChanged)):
        operator_of(paths.get(given, Path(given))).execute(context())
    assert runner.asked == []


def test_a_killed_task_cancels_what_runs(runner: Recorded, toy_lake: Lake) -> None:
    operator = operator_of(ride_job(toy_lake, "xgboost"))
    operator.on_kill()  # nothing was started yet
    runner.while_running = operator.on_kill
    with pytest.raises(TrainingInterrupted):
        operator.execute(context())
    assert runner.asked == ["prepare", "run", "cancel"]


@pytest.mark.parametrize(("attempt", "asked"), [(1, ["prepare", "run"]), (2, ["prepare"])])
def test_only_a_first_try_is_forced(runner: Recorded, toy_lake: Lake, attempt: int, asked: list[str]) -> None:
    job_dir = ride_job(toy_lake, "xgboost", params={"n_estimators": 2})
    manifest = run_job(toy_lake, "ride_minutes", job_dir, say=lambda line: None)
    operator = operator_of(job_dir, force="True")
    if attempt == 1:
        with pytest.raises(TrainingInterrupted):
            operator.execute(context(attempt))
    else:
        assert operator.execute(context(attempt)) == str(manifest)
    assert runner.asked == asked


def test_docker_operator_starts_the_container_that_the_runner_describes(
    docker_engine: Any,
    toy_lake: Lake,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    entry = toy_lake.catalog.models[0]
    training = entry.training.model_copy(update={"runner": "docker", "memory_gb": 2.0})
    entries = (entry.model_copy(update={"training": training}), *toy_lake.catalog.models[1:])
    lake = Lake(toy_lake.settings, toy_lake.catalog.model_copy(update={"models": entries}))
    monkeypatch.setattr("lake.lake.open_lake", lambda *_arguments: lake)
    job_dir = ride_job(lake, "xgboost", params={"n_estimators": 2, "max_depth": 2, "threads": 1})
    operator = operator_of(job_dir)
    ended: list[dict[str, Any]] = []
    run_image = operator._run_image

    def run_and_look() -> Any:
        try:
            return run_image()
        finally:
            ended.append(operator.cli.inspect_container(operator.container["Id"]))

    monkeypatch.setattr(operator, "_run_image", run_and_look)
    with caplog.at_level("INFO"):
        assert operator.execute(context()) == str(job_dir / "manifest.json")
    (state,) = ended
    host = state["HostConfig"]
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["CapDrop"]) == ("none", True, ["ALL"])
    assert (host["Memory"], host["PidsLimit"]) == (2 * 2**30, 512)
    assert state["Config"]["Labels"]["nightfleet.dag"] == "ride_minutes_train"
    assert "trained in" in (host_folder(job_dir) / "training.log").read_text()
    assert not docker_engine.containers(all=True, filters={"label": "nightfleet.run=manual__1"})

"""Running a job: lines as they come, time-outs, exit codes in words, no secret handed on, nothing left behind."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from lake.lake import Lake
from tests import toy
from tests.training.jobs import write_job
from training.job_file import read_job
from training.registry.attempt import host_folder
from training.registry.containers import EngineUnavailable
from training.registry.runner import (
    TrainingFailed,
    TrainingInterrupted,
    choose_runner,
    exit_sentence,
    ready_manifest,
    run_job,
)

TASK = {"task": "train"}
ENDLESS = {"n_estimators": 100_000, "early_stopping_rounds": 100_000, "max_depth": 2, "threads": 1}


def lake_with(folder: Path, runner: str) -> Lake:
    lake = toy.toy_lake(folder)
    return Lake(lake.settings.model_copy(update={"runner": runner}), lake.catalog)


def test_lines_come_and_the_manifest_is_there(toy_lake: Lake, tmp_path: Path) -> None:
    job_dir = write_job(tmp_path / "job", "xgboost")
    said: list[str] = []
    manifest = run_job(toy_lake, "ride_minutes", job_dir, say=said.append)
    assert manifest == job_dir / "manifest.json"
    assert json.loads(manifest.read_text())["identity"] == read_job(job_dir)["identity"]
    assert said[0].startswith("toy as of 2024-02-10: xgboost")
    assert (host_folder(job_dir) / "training.log").read_text().splitlines() == said


def test_a_finished_job_is_not_run_again_unless_it_was_changed(toy_lake: Lake, tmp_path: Path) -> None:
    job_dir = write_job(tmp_path / "job", "xgboost", params={"n_estimators": 2})
    run_job(toy_lake, "ride_minutes", job_dir)
    before = (job_dir / "manifest.json").stat().st_mtime_ns
    said: list[str] = []
    run_job(toy_lake, "ride_minutes", job_dir, say=said.append)
    assert said == ["ride_minutes: job is trained already"]
    assert (job_dir / "manifest.json").stat().st_mtime_ns == before
    model = next((job_dir / "model").glob("*.ubj"))
    model.write_bytes(b"cut")
    run_job(toy_lake, "ride_minutes", job_dir, say=said.append)
    assert (job_dir / "manifest.json").stat().st_mtime_ns != before
    assert model.read_bytes() != b"cut"


def test_a_refusal_is_shown_with_its_own_words(toy_lake: Lake, tmp_path: Path) -> None:
    job_dir = write_job(tmp_path / "job", "xgboost")
    (job_dir / "training_set.parquet").write_bytes(b"")
    with pytest.raises(TrainingFailed) as caught:
        run_job(toy_lake, "ride_minutes", job_dir, say=lambda line: None)
    assert "it refused; its last line says why" in str(caught.value)
    assert "TrainingSetMismatch: " in str(caught.value)
    assert "Clear this task to try again" in str(caught.value)


def test_out_of_time_it_is_killed_and_may_be_tried_again(toy_lake: Lake, tmp_path: Path) -> None:
    job_dir = write_job(tmp_path / "job", "xgboost", params=ENDLESS)
    with pytest.raises(
        TrainingFailed, match=r"it ran longer than 4 s and was killed; raise `training.timeout_minutes`"
    ):
        run_job(toy_lake, "ride_minutes", job_dir, say=lambda line: None, timeout_seconds=4)
    assert not (job_dir / "manifest.json").exists()


def test_killed_from_outside(toy_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job_dir = write_job(tmp_path / "job", "xgboost", params=ENDLESS)
    processes: list[Any] = []
    import subprocess

    started = subprocess.Popen

    def remembered(*arguments: Any, **named: Any) -> Any:
        processes.append(started(*arguments, **named))
        return processes[-1]

    monkeypatch.setattr("training.registry.process_runner.subprocess.Popen", remembered)

    def kill(line: str) -> None:
        if "round 50 of" in line:
            processes[0].send_signal(signal.SIGKILL)

    with pytest.raises(
        TrainingInterrupted, match=r"killed \(exit code 137\): from outside, or because the machine's memory ran out"
    ):
        run_job(toy_lake, "ride_minutes", job_dir, say=kill)
    assert not (job_dir / "manifest.json").exists()


def test_interrupted_it_leaves_no_process(toy_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job_dir = write_job(tmp_path / "job", "xgboost", params=ENDLESS)
    processes: list[Any] = []
    import subprocess

    started = subprocess.Popen

    def remembered(*arguments: Any, **named: Any) -> Any:
        processes.append(started(*arguments, **named))
        return processes[-1]

    monkeypatch.setattr("training.registry.process_runner.subprocess.Popen", remembered)

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(toy_lake, "ride_minutes", job_dir, say=interrupt)
    assert processes[0].poll() is not None


def test_the_trainer_gets_no_secret(toy_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTFLEET_SQL_URL", "postgresql://user:secret@host/db")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    seen: dict[str, Any] = {}

    def refuse(command: list[str], **named: Any) -> Any:
        seen.update(named, command=command)
        raise OSError("not started")

    monkeypatch.setattr("training.registry.process_runner.subprocess.Popen", refuse)
    with pytest.raises(OSError, match=r"not started"):
        run_job(toy_lake, "ride_minutes", write_job(tmp_path / "job", "xgboost"))
    assert "secret" not in json.dumps(seen["env"])
    assert not [name for name in seen["env"] if "MLFLOW" in name]
    assert seen["start_new_session"]


def test_an_equal_job_is_not_trained_again_unless_it_is_forced(toy_lake: Lake, tmp_path: Path) -> None:
    first, second = (
        write_job(tmp_path / name, "xgboost", params={"n_estimators": 2}, run_id=name) for name in ("first", "second")
    )
    run_job(toy_lake, "ride_minutes", first, say=lambda line: None)
    said: list[str] = []
    manifest = run_job(toy_lake, "ride_minutes", second, say=said.append)
    assert said == [
        "ride_minutes: equal to first (same data, trainer, seed and code), whose model is taken. `force` in the form "
        "trains again."
    ]
    assert manifest.read_bytes() == (first / "manifest.json").read_bytes()
    assert json.loads((second / "job.json").read_text())["run_id"] == "second"
    said.clear()
    run_job(toy_lake, "ride_minutes", second, say=said.append, force=True)
    assert said[0].startswith("toy as of")
    other = write_job(tmp_path / "other", "xgboost", params={"n_estimators": 2}, seed=8)
    assert ready_manifest(toy_lake, "ride_minutes", other, force=False, say=said.append) is None


def test_a_damaged_equal_job_is_not_taken(toy_lake: Lake, tmp_path: Path) -> None:
    first, second = (write_job(tmp_path / name, "xgboost", params={"n_estimators": 2}) for name in ("first", "second"))
    run_job(toy_lake, "ride_minutes", first, say=lambda line: None)
    next((first / "model").glob("*.ubj")).write_bytes(b"other")
    assert ready_manifest(toy_lake, "ride_minutes", second, force=False, say=lambda line: None) is None
    assert not (second / "model").exists()


def test_without_an_engine_docker_refuses_and_auto_says_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(
        EngineUnavailable, match=r"no Docker engine answers .*\n  Start it \(`sudo systemctl start docker`"
    ):
        choose_runner(lake_with(tmp_path / "docker", "docker"), "ride_minutes", print, task=TASK)
    said: list[str] = []
    assert choose_runner(lake_with(tmp_path / "auto", "auto"), "ride_minutes", said.append, task=TASK).name == "process"
    assert said[0].startswith(
        "runner auto: training as a process of this machine, because EngineUnavailable: no Docker engine answers"
    )
    said.clear()
    chosen = choose_runner(lake_with(tmp_path / "process", "process"), "ride_minutes", said.append, task=TASK)
    assert (chosen.name, chosen.image) == ("process", None)
    assert said == []


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "wrote no manifest"),
        (3, "it refused"),
        (137, "killed (exit code 137)"),
        (-9, "killed (exit code 137)"),
        (143, "ended from outside"),
        (-15, "ended from outside"),
        (-11, "SIGSEGV"),
        (139, "SIGSEGV"),
        (1, "exit code 1"),
        (4, "disk is full"),
        (5, "may pass by itself"),
    ],
)
def test_exit_codes_in_words(code: int, text: str) -> None:
    assert text in exit_sentence(code)

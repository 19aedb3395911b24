"""Running a job: lines as they come, time-outs, exit codes in words, no secret handed on, nothing left behind."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from lake.artifact import file_digest
from lake.lake import Lake
from tests import toy
from tests.training.jobs import write_job
from training.runner import RunnerUnavailable, TrainingFailed, exit_sentence, run_job

ENDLESS = {"n_estimators": 100_000, "early_stopping_rounds": 100_000, "max_depth": 2, "threads": 1}


def lake_with(folder: Path, runner: str) -> Lake:
    lake = toy.toy_lake(folder)
    return Lake(lake.settings.model_copy(update={"runner": runner}), lake.catalog)


def test_lines_come_and_the_manifest_is_there(toy_lake: Lake, tmp_path: Path) -> None:
    job_dir = write_job(tmp_path / "job", "xgboost")
    said: list[str] = []
    manifest = run_job(toy_lake, "ride_minutes", job_dir, say=said.append)
    assert manifest == job_dir / "manifest.json"
    assert json.loads(manifest.read_text())["job_digest"] == file_digest(job_dir / "job.json")
    assert said[0].startswith("toy as of 2024-02-10: xgboost")
    assert (job_dir / "training.log").read_text().splitlines() == said


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
    with pytest.raises(TrainingFailed, match=r"it ran longer than 4 s and was killed; raise `training.timeout_minutes`"):
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

    monkeypatch.setattr("training.runner.subprocess.Popen", remembered)

    def kill(line: str) -> None:
        if "round 50 of" in line:
            processes[0].send_signal(signal.SIGKILL)

    with pytest.raises(TrainingFailed, match=r"killed \(exit code 137\), most likely because memory ran out"):
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

    monkeypatch.setattr("training.runner.subprocess.Popen", remembered)

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

    monkeypatch.setattr("training.runner.subprocess.Popen", refuse)
    with pytest.raises(OSError, match=r"not started"):
        run_job(toy_lake, "ride_minutes", write_job(tmp_path / "job", "xgboost"))
    assert "secret" not in json.dumps(seen["env"])
    assert seen["env"]["MLFLOW_TRACKING_URI"] == toy_lake.settings.tracking_uri
    assert seen["start_new_session"]


def test_docker_is_refused_and_auto_says_what_it_does(tmp_path: Path) -> None:
    job_dir = write_job(tmp_path / "job", "xgboost", params={"n_estimators": 2})
    with pytest.raises(RunnerUnavailable, match=r"the runner docker is asked for \(NIGHTFLEET_RUNNER\), which is not available yet"):
        run_job(lake_with(tmp_path / "docker", "docker"), "ride_minutes", job_dir)
    said: list[str] = []
    run_job(lake_with(tmp_path / "auto", "auto"), "ride_minutes", job_dir, say=said.append)
    assert said[0] == "runner auto: there is no container runner yet, so the job runs as a process of this machine"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "wrote no manifest"),
        (3, "it refused"),
        (137, "memory ran out"),
        (-9, "memory ran out"),
        (143, "ended from outside"),
        (-15, "ended from outside"),
        (-11, "SIGSEGV"),
        (139, "SIGSEGV"),
        (1, "exit code 1"),
    ],
)
def test_exit_codes_in_words(code: int, text: str) -> None:
    assert text in exit_sentence(code)

"""`python -m training JOB_DIR`: what it refuses, and what it leaves when it is ended or MLflow is away."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from config.settings import ROOT
from lake.artifact import verify_files
from tests.training.jobs import FEATURES, OUTPUT_COLUMNS, write_job
from training.__main__ import DISK_FULL, REFUSED, TERMINATED, TrainingSetMismatch, main, run
from training.job_file import BadJob, JobChanged, job_identity, read_job
from training.trainers import TrainingImpossible


def manifest_of(job_dir: Path) -> dict[str, Any]:
    return dict(json.loads((job_dir / "manifest.json").read_text()))


def test_the_manifest_says_what_was_trained_from_what(trained_xgboost: Path) -> None:
    manifest = manifest_of(trained_xgboost)
    job = json.loads((trained_xgboost / "job.json").read_text())
    verify_files(trained_xgboost, manifest["artifacts"])
    assert set(manifest["artifacts"]) == {f"model/{p.name}" for p in (trained_xgboost / "model").iterdir()}
    assert manifest["training_set_digest"] == job["training_set"]["digest"]
    assert manifest["identity"] == read_job(trained_xgboost)["identity"]
    assert {name: spec["type"] for name, spec in manifest["feature_columns"].items()} == FEATURES
    assert manifest["feature_columns"]["v__place"]["categories"] == ["east", "north", "west"]
    assert manifest["output_columns"] == OUTPUT_COLUMNS
    assert manifest["rows"]["train"] + manifest["rows"]["validation"] == 1500
    assert manifest["device"] == "cpu"
    assert set(manifest["libraries"]) == {"xgboost", "numpy", "pyarrow", "python"}
    assert set(manifest["best_iteration"]) == {"minutes", "minutes_interval", "late_probability"}
    curves = json.loads((trained_xgboost / "curves.json").read_text())
    assert [step for step, _ in curves["validation/minutes/mae"]][:3] == [1, 2, 3]


def test_another_training_set_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job_dir = write_job(tmp_path / "job", "xgboost")
    data = job_dir / "training_set.parquet"
    whole = data.read_bytes()
    (job_dir / "manifest.json").write_text("{}")  # of an earlier try
    data.write_bytes(whole[:-1])
    with pytest.raises(TrainingSetMismatch, match=r"its bytes were changed or cut"):
        run(job_dir)
    assert not (job_dir / "manifest.json").exists()
    data.unlink()
    assert main([str(job_dir)]) == REFUSED
    assert capsys.readouterr().out.splitlines()[-1].startswith("TrainingSetMismatch: ")


def test_jobs_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(BadJob, match=r"does not exist. Give the folder that `prepare_job` made"):
        run(tmp_path)
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(BadJob, match=r"is not readable as JSON"):
        run(tmp_path)
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(BadJob, match=r"lacks model, entry"):
        run(tmp_path)
    with pytest.raises(BadJob, match=r"lacks the columns v__nothing"):
        run(write_job(tmp_path / "column", "xgboost", feature_columns={"v__nothing": "float64"}))
    with pytest.raises(TrainingImpossible, match=r"the feature 'v__when' has type timestamp"):
        run(write_job(tmp_path / "type", "xgboost", feature_columns={"v__when": "timestamp"}))


def test_a_job_that_was_edited_is_refused(tmp_path: Path) -> None:
    job_dir = write_job(tmp_path / "job", "xgboost")
    job = json.loads((job_dir / "job.json").read_text())
    (job_dir / "job.json").write_text(json.dumps(job | {"seed": 8}))
    with pytest.raises(JobChanged, match=r"it was edited. Prepare the job again"):
        run(job_dir)
    (job_dir / "job.json").write_text(json.dumps(job | {"run_id": "another", "mlflow": {"run_id": "r"}}))
    run(job_dir)


def test_leftovers_of_an_earlier_try_are_cleared(tmp_path: Path) -> None:
    job_dir = write_job(tmp_path / "job", "xgboost")
    for stale in ("model", "model.partial-0-1"):
        (job_dir / stale).mkdir()
        (job_dir / stale / "stale.bin").write_bytes(b"x")
    run(job_dir)
    assert not list(job_dir.rglob("stale.bin"))
    assert sorted(p.name for p in job_dir.iterdir()) == [
        "curves.json",
        "curves.jsonl",
        "importances.json",
        "job.json",
        "manifest.json",
        "model",
        "training_set.parquet",
    ]


def test_a_full_disk_is_said_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/job/model")

    monkeypatch.setattr("training.__main__.write_json", full)
    job_dir = write_job(tmp_path / "job", "xgboost", params={"n_estimators": 2})
    assert main([str(job_dir)]) == DISK_FULL
    assert "the disk is full (/job/model). Nothing was finished." in capsys.readouterr().out
    assert not (job_dir / "manifest.json").exists()


def test_it_sees_nothing_but_its_folder() -> None:
    """The trainer's imports bring in none of ours beyond what its image holds."""
    code = "import json, sys, training.__main__; print(json.dumps(sorted(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    watched = {"lake", "features", "serving", "monitoring", "mlflow", "tensorflow", "xgboost", "duckdb"}
    ours = [name for name in json.loads(found) if name.split(".")[0] in watched]
    assert ours == [
        "lake",
        "lake.artifact",
        "serving",
        "serving.metrics",
        "serving.metrics.ranking",
        "serving.predictors",
        "serving.predictors.brought",
        "serving.predictors.contract",
        "serving.predictors.shapley",
        "serving.predictors.sklearn_model",
    ]


def start(job_dir: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "training", str(job_dir), *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f"the trainer ended without saying {text!r}")


ENDLESS = {"n_estimators": 100_000, "early_stopping_rounds": 100_000, "max_depth": 2, "threads": 1}


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_ended_in_the_middle_it_leaves_no_manifest_and_can_be_run_again(sent: signal.Signals, tmp_path: Path) -> None:
    job_dir = write_job(tmp_path / "job", "xgboost", params=ENDLESS)
    process = start(job_dir)
    wait_for(process, "round 50 of")
    process.send_signal(sent)
    rest = process.communicate(timeout=20)[0]
    assert process.returncode == (TERMINATED if sent == signal.SIGTERM else -signal.SIGKILL)
    assert ("ended by SIGTERM" in rest) == (sent == signal.SIGTERM)
    assert not (job_dir / "manifest.json").exists()
    job = json.loads((job_dir / "job.json").read_text())
    shorter = job | {"params": {"n_estimators": 5}}
    (job_dir / "job.json").write_text(json.dumps(shorter | {"identity": job_identity(shorter)}))
    run(job_dir)
    verify_files(job_dir, manifest_of(job_dir)["artifacts"])
    assert not list(job_dir.glob("model.partial-*"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    job_dir = write_job(tmp_path / "job", "xgboost", params=ENDLESS)
    code = (
        "import subprocess, sys, os; p = subprocess.Popen([sys.executable, '-m', 'training', sys.argv[1], "
        "'--parent-pid', str(os.getpid())],"
        "stdout=subprocess.PIPE, text=True); print(p.pid, flush=True); [print(l, end='', flush=True) for l in p.stdout]"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(job_dir)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    trainer = int(parent.stdout.readline())
    wait_for(parent, "round 50 of")
    handle = os.pidfd_open(trainer)
    parent.kill()
    parent.wait()
    import select

    assert select.select([handle], [], [], 20)[0], "the trainer outlived its parent"
    assert not (job_dir / "manifest.json").exists()

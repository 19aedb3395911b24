"""Data-parallel training of networks: workers and devices that share each batch end where one ends; none waits for a
dead one.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.settings import ROOT
from serving.predictors import load_predictor
from tests.mlflow_server import free_port
from tests.training.jobs import QUICK, outputs_of, training_rows, write_job
from training.__main__ import TERMINATED, TRANSIENT, run

# The last batch of an epoch is smaller than the others and odd, early stopping ends the fit.
PARAMS: dict[str, dict[str, Any]] = {
    "keras": QUICK["keras"] | {"batch_size": 101, "epochs": 30, "patience": 4, "l2": 1e-4, "gradient_clip": 0.5},
    "lstm": QUICK["lstm"] | {"batch_size": 101, "epochs": 6},
}
# Sums in another order: float32 differences that grow from step to step (met: 2e-7 of a loss, 1e-5 minutes).
# Predictions are about 20 minutes.
LOSS_TOLERANCE, TOLERANCE = 1e-5, 1e-3
# Two devices of one process, as two GPUs would be.
TWO_DEVICES = """
import sys
import tensorflow as tf
from training.__main__ import main
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.exit(main(sys.argv[1:]))
"""
KILLED = Path(__file__).with_name("killed.py")


def parallel_job(folder: Path, family: str = "keras", **params: Any) -> Path:
    """A job that is checkpointed at the end of every epoch."""
    entry = {
        "outputs": outputs_of(family),
        "trainer": {"family": family, "device": "cpu"},
        "training": {"checkpoint_minutes": 0.0},
    }
    return write_job(folder, family, params=PARAMS[family] | params, entry=entry)


def addresses() -> str:
    return ",".join(f"127.0.0.1:{free_port()}" for _ in range(2))


def trained_by_two(
    job_dir: Path, *, hit: int | None = None, by: str = "SIGKILL", at_epoch: int = 0
) -> list[tuple[int, str]]:
    """Exit code and output of both workers of a job; a signal may hit one at the end of an epoch."""
    workers = addresses()
    processes = []
    for index in range(2):
        program = [str(KILLED), by, str(at_epoch)] if index == hit else ["-m", "training"]
        command = [sys.executable, *program, str(job_dir), "--workers", workers, "--worker-index", str(index)]
        processes.append(
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    try:
        said = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def best_losses(job_dir: Path) -> list[float]:
    return [value for _, value in json.loads((job_dir / "curves.json").read_text())["validation/network/loss"]]


def assert_equal_within_tolerance(job_dir: Path, single: Path) -> None:
    losses, alone = best_losses(job_dir), best_losses(single)
    assert len(losses) == len(alone), "early stopping ended the fits at different epochs"
    assert losses == pytest.approx(alone, rel=LOSS_TOLERANCE)
    rows = training_rows(500, seed=2)
    found, wanted = (load_predictor(folder).predict(rows) for folder in (job_dir, single))
    for column in found.column_names:
        np.testing.assert_allclose(np.asarray(found[column]), np.asarray(wanted[column]), atol=TOLERANCE)


def files_of(job_dir: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in [*(job_dir / "model").iterdir(), job_dir / "curves.json", job_dir / "importances.json"]
    }


def test_two_workers_end_where_one_ends_and_resume_after_one_was_killed(tmp_path: Path) -> None:
    single, both, killed = (parallel_job(tmp_path / name) for name in ("single", "both", "killed"))
    run(single)
    (code, said), (worker_code, worker_said) = trained_by_two(both)
    assert (code, worker_code) == (0, 0), said + worker_said
    assert_equal_within_tolerance(both, single)
    assert json.loads((both / "manifest.json").read_text())["details"]["replicas"] == 2
    assert "worker 1: keras network: best epoch" in worker_said
    left = {path.name for path in both.iterdir()} - {path.name for path in single.iterdir()}
    assert not left, "the second worker left something in the job's folder"

    (code, said), (worker_code, worker_said) = trained_by_two(killed, hit=1, at_epoch=5)
    assert worker_code == -signal.SIGKILL, worker_said
    assert code == TRANSIENT, said
    assert "WorkerLost: worker 0 lost another one" in said
    (code, said), (worker_code, worker_said) = trained_by_two(killed)
    assert (code, worker_code) == (0, 0), said + worker_said
    # The chief may or may not have saved the epoch in which the other one died.
    assert any(f"keras network: resuming at epoch {epoch} of 30" in said for epoch in (5, 6))
    assert any(f"worker 1: keras network: resuming at epoch {epoch} of 30" in worker_said for epoch in (5, 6))
    assert files_of(killed) == files_of(both)


def test_a_worker_ends_when_the_chief_is_ended(tmp_path: Path) -> None:
    job_dir = parallel_job(tmp_path / "job", "lstm", dropout=0.3)
    (code, _), (worker_code, worker_said) = trained_by_two(job_dir, hit=0, by="SIGTERM", at_epoch=3)
    assert code == TERMINATED, "TensorFlow's own handler only takes note of SIGTERM; ours must be back in its place"
    assert worker_code == TRANSIENT, worker_said
    assert "WorkerLost: worker 1 lost another one" in worker_said
    assert not (job_dir / "manifest.json").exists()


def test_a_chief_whose_worker_never_comes_gives_up(tmp_path: Path) -> None:
    impatient = (
        "import sys; from training.__main__ import main; from training.trainers import keras_fit;"
        " keras_fit._WAIT_FOR_WORKERS_SECONDS = 3; "
    )
    command = [
        sys.executable,
        "-c",
        f"{impatient} sys.exit(main(sys.argv[1:]))",
        str(parallel_job(tmp_path / "job")),
        "--workers",
        workers := addresses(),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"worker 0 of 2, waits for {workers.replace(',', ', ')}, at most 3 s" in done.stdout
    assert "Timeout (0:00:03)!" in done.stderr
    assert not (tmp_path / "job" / "manifest.json").exists()


def test_two_devices_end_where_one_ends(tmp_path: Path) -> None:
    single, both = parallel_job(tmp_path / "single"), parallel_job(tmp_path / "both")
    with subprocess.Popen(
        [sys.executable, "-c", TWO_DEVICES, str(both)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        run(single)
        said = process.communicate()[0]
    assert process.returncode == 0, said
    assert json.loads((both / "manifest.json").read_text())["details"]["replicas"] == 2
    assert_equal_within_tolerance(both, single)

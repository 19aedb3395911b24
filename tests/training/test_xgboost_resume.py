"""XGBoost goes on after a kill, and ends in the same bytes as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from config.settings import ROOT
from lake.artifact import folder_digests
from tests.training.jobs import OUTPUTS, write_job
from training.__main__ import run
from training.checkpoints import Checkpoints
from training.progress import Progress
from training.rows import read_rows
from training.trainers import Run, TrainingDiverged, validated_params
from training.trainers.xgboost import train

# Both samples are drawn anew each round, early stopping ends it before the last.
PARAMS = {
    "n_estimators": 200,
    "max_depth": 4,
    "learning_rate": 0.15,
    "subsample": 0.7,
    "colsample_bytree": 0.6,
    "early_stopping_rounds": 12,
    "threads": 1,
}
ENTRY = {"outputs": OUTPUTS, "trainer": {"family": "xgboost", "device": "cpu"}, "training": {"checkpoint_minutes": 0.0}}


class Killed(Exception):
    """The process would be gone here."""


class Dying(Progress):
    """Ends at one point of one curve."""

    def __init__(self, metric: str, step: int) -> None:
        super().__init__(say_line=lambda line: None)
        self.dies = (metric, step)

    def point(self, metric: str, step: int, value: float) -> None:
        super().point(metric, step, value)
        if (metric, step) == self.dies:
            raise Killed


class Every(Checkpoints):
    """Due after every so many questions, whatever the time."""

    def __init__(self, folder: Path, rounds: int) -> None:
        super().__init__(folder, "same", 0.0)
        self.rounds, self.asked = rounds, 0

    def due(self) -> bool:
        self.asked += 1
        return self.asked % self.rounds == 0


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("resume")
    job_dir = write_job(folder / "job", "xgboost", params=PARAMS, entry=ENTRY)
    params = validated_params("xgboost", PARAMS)
    contract, splits, _ = read_rows(
        json.loads((job_dir / "job.json").read_text()), "xgboost", params, job_dir / "training_set.parquet", folder
    )

    def fit(target: Path, checkpoints: Checkpoints, progress: Progress) -> dict[str, int]:
        target.mkdir()
        return train(
            contract,
            splits["train"],
            splits["validation"],
            target,
            params=params,
            run=Run(7, "cpu", progress, checkpoints, target),
        ).best_iteration

    undisturbed = Progress(say_line=lambda line: None)
    best = fit(folder / "undisturbed", Checkpoints(folder / "none", "same", 1e9), undisturbed)
    return fit, best, undisturbed.curves, folder_digests(folder / "undisturbed")


@pytest.mark.parametrize(
    ("booster", "metric", "relative_to_best"),
    [
        ("minutes", "mae", -3),
        ("minutes", "mae", 5),
        ("minutes_interval", "quantile", 0),
        ("late_probability", "logloss", 11),
        ("late_probability", "logloss", -20),
    ],
)
def test_wherever_it_is_killed_the_model_has_the_same_bytes(
    material: Any, tmp_path: Path, booster: str, metric: str, relative_to_best: int
) -> None:
    fit, best, curves, digests = material
    dies = best[booster] + relative_to_best
    assert 4 < dies < 200
    with pytest.raises(Killed):
        fit(tmp_path / "first", Every(tmp_path / "checkpoints", 4), Dying(f"validation/{booster}/{metric}", dies))
    lines: list[str] = []
    progress = Progress(say_line=lines.append)
    assert fit(tmp_path / "second", Every(tmp_path / "checkpoints", 4), progress) == best
    assert folder_digests(tmp_path / "second") == digests
    assert progress.curves == curves
    (resumed,) = [line for line in lines if "goes on after round" in line]
    assert resumed.startswith(f"xgboost {booster}: ")
    assert int(resumed.split("round ")[1].split(",")[0]) >= dies - 4, "more than the interval was lost"


def test_killed_from_outside_and_run_again(tmp_path: Path) -> None:
    """The command itself, with SIGKILL in its second booster; the first is not trained again."""
    params = PARAMS | {"early_stopping_rounds": 200, "n_estimators": 60}
    job_dir = write_job(tmp_path / "job", "xgboost", params=params, entry=ENTRY)
    shutil.copytree(job_dir, tmp_path / "undisturbed")
    run(tmp_path / "undisturbed")
    process = subprocess.Popen(
        [sys.executable, "-m", "training", str(job_dir)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "minutes_interval: round 50 of" in line:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL
    assert not (job_dir / "manifest.json").exists()
    again = subprocess.run(
        [sys.executable, "-m", "training", str(job_dir)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "minutes_interval: goes on after round" in again
    assert "minutes: round 50" not in again
    assert folder_digests(job_dir / "model") == folder_digests(tmp_path / "undisturbed" / "model")
    assert json.loads((job_dir / "curves.json").read_text()) == json.loads(
        (tmp_path / "undisturbed" / "curves.json").read_text()
    )
    assert not (job_dir / "checkpoints").exists()


def test_a_loss_that_is_no_number_says_where_and_keeps_the_last_good_checkpoint(
    material: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import xgboost

    whole = xgboost.callback.CallbackContainer.after_iteration

    def broken(self: Any, model: Any, epoch: int, *rest: Any) -> bool:
        ended = bool(whole(self, model, epoch, *rest))
        if epoch + 1 == 7:
            self.history["train"]["mae"][-1] = float("nan")
        return ended

    monkeypatch.setattr(xgboost.callback.CallbackContainer, "after_iteration", broken)
    with pytest.raises(
        TrainingDiverged, match=r"xgboost minutes: train mae is nan in round 7\. The checkpoint of round 6 is kept\."
    ):
        material[0](tmp_path / "first", Every(tmp_path / "checkpoints", 3), Progress(say_line=lambda line: None))
    kept = Checkpoints(tmp_path / "checkpoints", "same", 0.0).load("minutes")
    assert kept is not None
    assert kept.state == {"round": 6}

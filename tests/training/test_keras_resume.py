"""A network's fit that was killed ends in the bytes of the undisturbed one; a loss that is not a number leaves the last
good checkpoint.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.predictors.contract import Contract, FeatureSpec
from tests.training.jobs import OUTPUTS, QUICK, outputs_of, write_job
from training.__main__ import run
from training.checkpoints import Checkpoints
from training.progress import Progress
from training.trainers import Rows, Run, TrainingDiverged, TrialPruned, keras_fit
from training.trainers.keras import train

KILLED = Path(__file__).with_name("killed.py")
# Half of the inputs dropped, categories forgotten, a learning rate that falls: all of a fit's state decides what comes
# after.
PARAMS: dict[str, Any] = QUICK["keras"] | {
    "hidden": [16, 8],
    "dropout": 0.5,
    "epochs": 14,
    "patience": 6,
    "l2": 1e-4,
    "gradient_clip": 0.5,
    "embedding": 2,
    "forget": 0.1,
}


def resumable_job(folder: Path, **params: Any) -> Path:
    """A job that is checkpointed at the end of every epoch. Networks of both families are fitted by the same loop."""
    entry = {"outputs": outputs_of("keras"), "trainer": {"family": "keras"}, "training": {"checkpoint_minutes": 0.0}}
    return write_job(folder, "keras", params=PARAMS | params, entry=entry)


def files_of(job_dir: Path) -> dict[str, bytes]:
    """What a finished job leaves for its readers."""
    return {
        path.name: path.read_bytes()
        for path in [*(job_dir / "model").iterdir(), job_dir / "curves.json", job_dir / "importances.json"]
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job of the Keras family, which nothing interrupted."""
    job_dir = resumable_job(tmp_path_factory.mktemp("undisturbed") / "job")
    run(job_dir)
    return job_dir


def test_a_killed_fit_resumes_to_the_bytes_of_the_undisturbed(
    undisturbed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    killed = resumable_job(tmp_path / "killed")
    trainer = subprocess.run([sys.executable, KILLED, "SIGKILL", "7", killed], check=False)
    assert trainer.returncode == -signal.SIGKILL
    assert not (killed / "manifest.json").exists()
    capfd.readouterr()
    run(killed)
    assert f"keras network: resuming at epoch 7 of {PARAMS['epochs']}" in capfd.readouterr().out
    assert files_of(killed) == files_of(undisturbed)
    assert not (killed / "checkpoints").exists()


def test_a_fit_that_was_complete_is_not_repeated(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted = resumable_job(tmp_path / "interrupted")

    def interrupt(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(keras_fit, "output_details", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(interrupted)
    monkeypatch.setattr(keras_fit._Loop, "_epoch", lambda *arguments: pytest.fail("an epoch was run again"))
    run(interrupted)
    assert "keras network: finished before at epoch" in capsys.readouterr().out
    assert files_of(interrupted) == files_of(undisturbed)


def test_a_loss_that_is_no_number_says_where_and_keeps_the_last_good_checkpoint(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging = resumable_job(tmp_path / "diverging")
    take, taken = keras_fit._Split.take, [0]

    def poisoned(self: keras_fit._Split, rows: Any) -> Any:
        *inputs, wanted = take(self, rows)
        taken[0] += 1
        if taken[0] == 7:  # each epoch takes the training rows, then the validation rows: the fourth epoch
            wanted[2, 5] = np.nan
        return (*inputs, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(keras_fit._Split, "take", poisoned)
        with pytest.raises(
            TrainingDiverged,
            match=(
                r"at step 3 of 5 the train loss is nan in epoch 4 of 14\. Lower .* The checkpoint of epoch 3 is kept\."
            ),
        ):
            run(diverging)
    assert not (diverging / "manifest.json").exists()
    assert [max(json.loads(line)["step"] for line in (diverging / "curves.jsonl").read_text().splitlines())] == [3]
    run(diverging)  # the checkpoint is good: without the poison it leads where the undisturbed fit went
    assert files_of(diverging) == files_of(undisturbed)


def test_a_checkpoint_of_another_job_is_not_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job_dir = resumable_job(tmp_path / "job", epochs=2)
    Checkpoints(job_dir / "checkpoints", "another", 0.0).save("network", lambda folder: None, {"epoch": 3})
    run(job_dir)
    assert "resuming" not in capsys.readouterr().out


def small_fit(folder: Path, matrix: Any, progress: Progress) -> dict[str, bytes]:
    """The files of a network fitted to a matrix of three columns."""
    nights, label = np.zeros(len(matrix), dtype=np.int32), matrix[:, 0].astype(np.float64) * 5.0 + 12.0
    columns = ("minutes", "minutes_lower", "minutes_upper")
    features = {f"v__{name}": FeatureSpec("float64") for name in "abc"}
    contract = Contract("toy", "keras", features, {"minutes": OUTPUTS["minutes"]}, columns, "0", "2024-01-01", 7, {})
    fit, validation = Rows(matrix[:300], label[:300], nights[:300]), Rows(matrix[300:], label[300:], nights[300:])
    folder.mkdir()
    how = Run(7, "cpu", progress, Checkpoints(folder / "checkpoints", "toy", 1e9), folder)
    train(contract, fit, validation, folder, params={"hidden": [4], "epochs": 3, "batch_size": 64}, run=how)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_trial_is_pruned_at_once(tmp_path: Path) -> None:
    class Pruned(Progress):
        def point(self, metric: str, step: int, value: float) -> None:
            super().point(metric, step, value)
            if metric == "validation/network/loss" and step == 2:
                raise TrialPruned

    progress = Pruned(lambda line: None)
    with pytest.raises(TrialPruned):
        small_fit(tmp_path / "trial", np.random.default_rng(1).normal(size=(400, 3)).astype(np.float32), progress)
    assert [step for step, _ in progress.curves["validation/network/loss"]] == [1, 2]


def test_a_matrix_on_disk_gives_the_model_of_the_matrix_in_memory(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    matrix = random.normal(size=(400, 3)).astype(np.float32)
    matrix[::7, 1] = np.nan
    on_disk = np.memmap(tmp_path / "matrix", np.float32, "w+", shape=matrix.shape)
    on_disk[:] = matrix
    quiet = Progress(lambda line: None)
    assert small_fit(tmp_path / "memory", matrix, quiet) == small_fit(tmp_path / "disk", on_disk, quiet)


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 1000).map(lambda thousandths: thousandths / 1000), min_size=1, max_size=40),
    st.integers(1, 8),
)
def test_stopping_and_learning_rate_follow_the_callbacks_of_keras(losses: list[float], patience: int) -> None:
    import keras

    optimizer = keras.optimizers.SGD(0.5)
    model = SimpleNamespace(
        optimizer=optimizer, stop_training=False, get_weights=lambda: [], set_weights=lambda weights: None
    )
    stopping = keras.callbacks.EarlyStopping(monitor="val_loss", patience=patience)
    falling = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=max(1, patience // 3))
    for callback in (stopping, falling):
        callback.set_model(model)
        callback.on_train_begin()
    course = keras_fit.Course(0.5)
    for epoch, loss in enumerate(losses):
        for callback in (stopping, falling):
            callback.on_epoch_end(epoch, {"val_loss": loss})
        course.take(loss, patience)
        assert course.learning_rate == pytest.approx(float(optimizer.learning_rate))
        assert (course.waited >= patience) == model.stop_training
        assert course.best_epoch == stopping.best_epoch + 1 == int(np.argmin(losses[: epoch + 1])) + 1
        if model.stop_training:
            break


@given(st.integers(1, 500), st.integers(1, 90), st.integers(1, 3), st.integers(1, 3))
def test_every_row_is_learned_once_an_epoch_by_one_replica(rows: int, batch: int, workers: int, local: int) -> None:
    batch = min(batch, rows)
    order = np.random.default_rng(rows).permutation(rows)
    found: dict[int, list[int]] = {}
    weight: dict[int, float] = {}
    for worker in range(workers):
        steps = keras_fit._Steps(rows, batch, workers * local, local, worker)
        for first, mine, weights in steps.chunks(order):
            assert mine.shape[1] == steps.share * local
            for step, (taken, each) in enumerate(zip(mine, weights, strict=True), start=first):
                found.setdefault(step, []).extend(taken[taken >= 0].tolist())
                weight[step] = weight.get(step, 0.0) + float(each.sum())
    assert [row for step in sorted(found) for row in found[step]] == order.tolist(), (
        "the workers together must take the rows in the order of one"
    )
    assert sum(steps.sizes) == rows
    assert [len(found[step]) for step in sorted(found)] == steps.sizes.tolist()
    assert all(total == pytest.approx(1.0, abs=1e-5) for total in weight.values())

"""Transformer encoders: steps before a history are attended to by nobody, and the order of the others counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.predictors import load_predictor
from serving.predictors.contract import read_json
from serving.predictors.keras import DETAILS_FILE, read_network
from serving.predictors.lstm import SequenceEncoding
from tests.training.jobs import QUICK, outputs_of, trained_job, training_rows, write_job
from tests.training.test_lstm import OUTPUTS, WINDOW, machine_rows
from training.__main__ import run
from training.progress import Progress
from training.trainers import validated_params


@pytest.fixture
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, tuple[Any, ...]]:
    """A trained network, and what it sees of some rows with histories of 1 to 3 steps."""
    job_dir = trained_job("transformer", tmp_path_factory.getbasetemp())
    contract = load_predictor(job_dir).contract
    encoding = SequenceEncoding(contract, read_json(job_dir / "model" / DETAILS_FILE)["encoding"])
    return read_network(job_dir / "model"), encoding.inputs(contract.matrix(training_rows(200)))


def test_what_lies_before_a_history_changes_nothing(network: tuple[Any, tuple[Any, ...]]) -> None:
    model, (sequence, present, static) = network
    said = np.asarray(model([sequence, present, static], training=False))
    assert 0 < present.sum() < present.size
    filled = np.where(present[:, :, None], sequence, np.float32(9.0))
    assert np.asarray(model([filled, present, static], training=False)) == pytest.approx(said, abs=1e-5)
    unmasked = np.asarray(model([filled, np.ones_like(present), static], training=False))
    assert np.abs(unmasked - said).max() > 0.01, "nothing here depends on the mask"


def test_the_order_of_the_steps_counts(network: tuple[Any, tuple[Any, ...]]) -> None:
    model, (sequence, present, static) = network
    whole = present.all(axis=1)
    parts = [sequence[whole], present[whole], static[whole]]
    backwards = [parts[0][:, ::-1], *parts[1:]]
    difference = np.asarray(model(parts, training=False)) - np.asarray(model(backwards, training=False))
    assert np.abs(difference).max() > 0.01


def test_a_fit_that_was_stopped_resumes_to_the_bytes_of_the_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = dict(QUICK["transformer"]) | {"epochs": 3, "dropout": 0.3}
    entry = {"outputs": outputs_of("transformer"), "trainer": {"family": "transformer"}}
    entry["training"] = {"checkpoint_minutes": 0.0}
    undisturbed, stopped = (
        write_job(tmp_path / name, "transformer", params=params, entry=entry) for name in ("undisturbed", "stopped")
    )
    run(undisturbed)

    def point(self: Progress, metric: str, step: int, value: float) -> None:
        if metric == "validation/network/loss" and step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "point", point)
        with pytest.raises(KeyboardInterrupt):
            run(stopped)
    run(stopped)
    manifests = [read_json(job_dir / "manifest.json") for job_dir in (undisturbed, stopped)]
    assert manifests[0]["artifacts"] == manifests[1]["artifacts"]


def test_channels_that_attend_to_channels_stand_for_all_their_steps(tmp_path: Path) -> None:
    rows = machine_rows(300)
    entry = {"outputs": OUTPUTS, "trainer": {"family": "transformer"}}
    columns = {name: "float64" for name in rows.column_names if name.startswith("v__")}
    job_dir = write_job(
        tmp_path / "job",
        "transformer",
        rows=rows,
        params=QUICK["transformer"] | {"tokens": "channels", "epochs": 2},
        entry=entry,
        feature_columns=columns,
        output_columns=["minutes", "minutes_lower", "minutes_upper"],
    )
    run(job_dir)
    weights, places = read_network(job_dir / "model").get_layer("steps").get_weights()
    assert (weights.shape, places.shape) == ((WINDOW, 8), (2, 8)), "six steps become eight numbers of each channel"
    predictor = load_predictor(job_dir)
    whole = predictor.predict(rows).to_pylist()
    assert predictor.predict(rows.slice(7, 1)).to_pylist() == [whole[7]]


def test_its_file_says_how_it_was_made(tmp_path_factory: pytest.TempPathFactory) -> None:
    job_dir: Path = trained_job("transformer", tmp_path_factory.getbasetemp())
    details = read_json(job_dir / "manifest.json")["details"]
    assert (details["steps"], details["channels"]) == (3, 1)
    assert validated_params("transformer", {})["heads"] == 4

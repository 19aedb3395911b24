"""The recurrent family: it learns from the order of steps, takes constants from training rows alone, and refuses what
is no sequence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from serving.predictors import load_predictor
from serving.predictors.contract import Contract, FeatureSpec
from serving.predictors.keras import read_network
from tests.training.jobs import write_job
from training.__main__ import run
from training.trainers import TrainingImpossible
from training.trainers.keras_sequences import sequence_channels

WINDOW = 6
OUTPUTS = {"minutes": {"kind": "regression", "objective": "mean", "interval": 0.8, "gate": "rmse"}}
PARAMS = {"units": [12], "dense": [8], "epochs": 40, "learning_rate": 0.01, "patience": 8, "batch_size": 128}


def machine_rows(count: int = 1600, seed: int = 1) -> pa.Table:
    """Rows whose label is how a reading grew over the known steps and how old the machine is; the history is 2 to 6
    steps long.
    """
    random = np.random.default_rng(seed)
    slope, age, length = random.normal(size=count), random.random(count), random.integers(2, WINDOW + 1, count)
    newest_first = (
        50
        - slope[:, None] * np.arange(WINDOW)
        + random.normal(size=(count, 1))
        + random.normal(size=(count, WINDOW)) * 0.1
    )
    unknown = np.arange(WINDOW) >= length[:, None]
    noise = random.normal(size=(count, WINDOW))
    day = np.sort(random.integers(0, 40, count))
    return pa.table(
        {
            "data_date": pa.array(19_700 + day, pa.int32()).cast(pa.date32()),
            **{f"v__reading_t{k}": pa.array(newest_first[:, k], mask=unknown[:, k]) for k in range(WINDOW)},
            **{f"v__noise_t{k}": pa.array(noise[:, k], mask=unknown[:, k]) for k in range(WINDOW)},
            "v__age": age,
            "label": 20 * slope + 30 * age,
            "baseline": pa.nulls(count, pa.float64()),
            "split": np.where(day < 30, "train", "validation"),
        }
    )


def machine_job(folder: Path, rows: pa.Table | None = None, **params: Any) -> Path:
    rows = machine_rows() if rows is None else rows
    columns = {name: "float64" for name in rows.column_names if name.startswith("v__")}
    entry = {"outputs": OUTPUTS, "trainer": {"family": "lstm"}}
    output_columns = ["minutes", "minutes_lower", "minutes_upper"]
    return write_job(
        folder,
        "lstm",
        rows=rows,
        params=PARAMS | params,
        entry=entry,
        feature_columns=columns,
        output_columns=output_columns,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    job_dir = machine_job(tmp_path_factory.mktemp("machines") / "job")
    run(job_dir)
    return job_dir


def test_it_learns_what_the_order_of_the_steps_says(trained: Path) -> None:
    rows = machine_rows(800, seed=2)
    label = np.asarray(rows["label"])
    predictor = load_predictor(trained)

    def error(given: pa.Table) -> float:
        return float(np.sqrt(np.mean((np.asarray(predictor.predict(given)["minutes"]) - label) ** 2)))

    assert error(rows) < 0.3 * label.std()
    # The newest two steps are always known: their growth turned around is a falling reading.
    turned = rows.rename_columns(
        [
            {"v__reading_t0": "v__reading_t1", "v__reading_t1": "v__reading_t0"}.get(name, name)
            for name in rows.column_names
        ]
    )
    assert error(turned) > 2 * error(rows)
    predictions = predictor.predict(rows)
    inside = (label >= np.asarray(predictions["minutes_lower"])) & (label <= np.asarray(predictions["minutes_upper"]))
    assert 0.7 < inside.mean() < 0.9


def test_importances_tell_the_channel_that_matters(trained: Path) -> None:
    shares = json.loads((trained / "importances.json").read_text())["minutes"]
    reading, noise = (
        sum(share for name, share in shares.items() if name.startswith(f"v__{channel}_t"))
        for channel in ("reading", "noise")
    )
    assert reading > 10 * noise
    assert shares["v__age"] > noise
    assert len({round(shares[f"v__reading_t{k}"], 12) for k in range(WINDOW)}) == 1, (
        "the steps of a channel share what it says"
    )


def test_constants_come_from_training_rows_and_are_shared_by_the_steps(trained: Path, tmp_path: Path) -> None:
    rows = machine_rows()
    fit = rows.filter(pa.compute.equal(rows["split"], "train"))
    known = (
        np.concatenate([fit[f"v__reading_t{k}"].drop_null().to_numpy() for k in range(WINDOW)])
        .astype(np.float32)
        .astype(np.float64)
    )
    constants = json.loads((trained / "model" / "keras.json").read_text())["encoding"]
    assert constants["channels"]["v__reading"] == pytest.approx({"mean": known.mean(), "scale": known.std()})
    assert constants["steps"] == WINDOW
    assert constants["null_flags"] == [], "a history that is short is masked, not flagged"
    assert list(constants["static"]["means"]) == ["v__age"]

    held_out = pa.compute.equal(rows["split"], "validation")
    shifted = rows.set_column(
        rows.schema.get_field_index("v__reading_t0"),
        "v__reading_t0",
        pa.compute.if_else(held_out, pa.compute.add(rows["v__reading_t0"], 1e4), rows["v__reading_t0"]),
    )
    other = machine_job(tmp_path / "job", shifted, epochs=1)
    run(other)
    assert json.loads((other / "model" / "keras.json").read_text())["encoding"] == constants


def test_a_step_unknown_inside_the_history_is_flagged(tmp_path: Path) -> None:
    rows = machine_rows(300)
    name = "v__reading_t1"
    holed = rows.set_column(
        rows.schema.get_field_index(name), name, pa.array([None] * 20 + rows[name].to_pylist()[20:], pa.float64())
    )
    job_dir = machine_job(tmp_path / "job", holed, epochs=1)
    run(job_dir)
    assert json.loads((job_dir / "model" / "keras.json").read_text())["encoding"]["null_flags"] == ["v__reading"]


def test_a_sequence_alone_is_enough(tmp_path: Path) -> None:
    rows = machine_rows(400).drop_columns(["v__age"])
    job_dir = machine_job(tmp_path / "job", rows, epochs=2, units=[4, 4], dense=[])
    run(job_dir)
    assert load_predictor(job_dir).predict(rows).num_rows == 400


def test_layers_of_each_step_mix_its_channels_before_the_recurrence(tmp_path: Path) -> None:
    """A node without neighbours, whose channels of them are null, is predicted too, alone as among others."""
    random = np.random.default_rng(5)
    own, near = random.normal(size=(2, 400, WINDOW))
    rows = machine_rows(400).drop_columns([f"v__{name}_t{k}" for name in ("reading", "noise") for k in range(WINDOW)])
    alone = np.arange(400) < 60
    for step in range(WINDOW):
        rows = rows.append_column(f"v__own_t{step}", pa.array(own[:, step]))
        rows = rows.append_column(f"v__near_t{step}", pa.array(near[:, step], mask=alone))
    job_dir = machine_job(tmp_path / "job", rows, per_step=[9, 8], units=[4], dense=[], epochs=2)
    run(job_dir)
    network = read_network(job_dir / "model")
    mixed = [network.get_layer(name).get_weights()[0] for name in ("per_step_0", "per_step_1", "lstm_0")]
    assert [each.shape for each in mixed] == [(3, 9), (9, 8), (8, 16)], "two channels and a flag become nine and eight"
    predictor = load_predictor(job_dir)
    predicted = np.asarray(predictor.predict(rows)["minutes"])
    assert np.isfinite(predicted).all()
    assert predictor.predict(rows.slice(7, 1))["minutes"].to_pylist() == [predicted[7]]


def contract_of(**features: FeatureSpec) -> Contract:
    return Contract("toy", "lstm", features, {}, ("minutes",), "0", "2024-01-01", 7, {})


def test_what_is_no_sequence_is_refused() -> None:
    number = FeatureSpec("float64")
    with pytest.raises(
        TrainingImpossible, match=r"no feature is named as a step of a sequence .* or take another family"
    ):
        sequence_channels(contract_of(v__x=number, v__start=number, v__t0=number))
    with pytest.raises(
        TrainingImpossible,
        match=(
            r"the channel 'v__x' has no step v__x_t1, though a window of 3 steps begins at t0 and ends at t2 \(1 of 3"
        ),
    ):
        sequence_channels(contract_of(v__x_t0=number, v__x_t2=number))
    with pytest.raises(TrainingImpossible, match=r"the channel 'v__y' has no step v__y_t1, though a window of 2 steps"):
        sequence_channels(contract_of(v__x_t0=number, v__x_t1=number, v__y_t0=number))
    with pytest.raises(TrainingImpossible, match=r"the step 'v__x_t0' holds text, but a sequence takes numbers"):
        sequence_channels(contract_of(v__x_t0=FeatureSpec("string", ("a",))))
    ten = {f"v__x_t{k}": number for k in (3, 1, 10, 0, 2, 4, 5, 6, 9, 8, 7)}
    assert sequence_channels(contract_of(**ten, v__age=number)) == {"v__x": [f"v__x_t{k}" for k in range(11)]}

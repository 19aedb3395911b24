"""Texts as features: what a family makes of them, of nulls, of values never met, and of a value for every row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from serving.predictors import load_model_folder
from serving.predictors.contract import Contract, FeatureSpec, Predictor
from serving.predictors.keras import Encoding, input_features
from tests.training.jobs import outputs_of, training_rows, write_job
from training.__main__ import run
from training.checkpoints import Checkpoints
from training.progress import Progress
from training.rows import read_rows
from training.trainers import Rows, Run, TrainingImpossible
from training.trainers.keras import train

KINDS = ("a", "b", "c", "d")


def with_places(values: Any) -> pa.Table:
    rows = training_rows(400)
    return rows.set_column(rows.schema.get_field_index("v__place"), "v__place", pa.array(values))


def test_a_value_of_its_own_in_each_row_is_refused(tmp_path: Path) -> None:
    job_dir = write_job(tmp_path / "job", "xgboost", rows=with_places([f"ticket {n:03}" for n in range(400)]))
    with pytest.raises(
        TrainingImpossible,
        match=r"'v__place' has a value of its own in each of its \d+ training rows \('ticket 000', 'ticket 001', "
        r"...\): no value comes again.*derive a coarser feature",
    ):
        run(job_dir)


def read(folder: Path, rows: pa.Table) -> tuple[Contract, dict[str, Rows]]:
    """Contract and splits of rows whose one feature is the place."""
    pq.write_table(rows, folder / "rows.parquet")
    job = {
        "model": "toy",
        "feature_columns": {"v__place": "string"},
        "entry": {"outputs": outputs_of("xgboost"), "training": {}},
        "output_columns": [],
        "training_set": {"digest": "0"},
        "as_of": "2024-02-10",
        "seed": 7,
    }
    contract, splits, _ = read_rows(job, "xgboost", {}, folder / "rows.parquet", folder)
    return contract, splits


def test_a_value_that_comes_again_or_few_values_are_no_explosion(tmp_path: Path) -> None:
    twice, _ = read(tmp_path, with_places([f"ticket {max(n, 1):03}" for n in range(400)]))
    assert len(twice.features["v__place"].categories or ()) > 100
    few, _ = read(tmp_path, with_places([f"t{n}" if n < 90 else None for n in range(400)]))
    assert len(few.features["v__place"].categories or ()) == 90


def kinds_rows(seed: int, count: int, *, nulls: bool) -> Rows:
    """One category that the label follows from: 10 each step, and 50 where it is null."""
    random = np.random.default_rng(seed)
    kind = random.integers(0, len(KINDS), count).astype(np.float32)
    if nulls:
        kind[random.random(count) < 0.2] = np.nan
    label = np.where(np.isnan(kind), 50.0, 10.0 * np.nan_to_num(kind)) + random.normal(0, 0.5, count)
    return Rows(kind[:, None], label, np.zeros(count, dtype=np.int32))


def embedded(folder: Path, *, nulls: bool, forget: float) -> Predictor:
    """A network with a vector of two numbers for each kind."""
    outputs = {"minutes": {"kind": "regression", "objective": "mean", "interval": None, "gate": "rmse"}}
    params = {"hidden": [16], "embedding": 2, "epochs": 40, "learning_rate": 0.03, "forget": forget}
    contract = Contract(
        "toy", "keras", {"v__kind": FeatureSpec("string", KINDS)}, outputs, ("minutes",), "0", "2024-01-01", 7, params
    )
    folder.mkdir()
    how = Run(7, "cpu", Progress(lambda line: None), Checkpoints(folder / "checkpoints", "toy", 1e9), folder)
    train(contract, kinds_rows(1, 600, nulls=nulls), kinds_rows(2, 200, nulls=nulls), folder, params=params, run=how)
    contract.write(folder)
    return load_model_folder(folder)


def test_a_network_learns_a_vector_for_each_category_and_for_null(tmp_path: Path) -> None:
    predictor = embedded(tmp_path / "model", nulls=True, forget=0.0)
    asked = pa.table({"v__kind": [*KINDS, None, "never met"]})
    said = predictor.predict(asked)["minutes"].to_numpy()
    assert said == pytest.approx([0, 10, 20, 30, 50, 50], abs=3)
    assert said[4] == said[5], "a value never met counts as null"
    alone = [predictor.predict(asked.slice(n, 1))["minutes"][0].as_py() for n in range(asked.num_rows)]
    assert alone == pytest.approx(said, abs=1e-4)


def test_without_nulls_to_learn_from_an_unknown_category_is_a_middling_one(tmp_path: Path) -> None:
    predictor = embedded(tmp_path / "model", nulls=False, forget=0.05)
    said = predictor.predict(pa.table({"v__kind": pa.array([None, "never met"], pa.string())}))["minutes"].to_numpy()
    assert said[0] == said[1]
    assert 5 < said[0] < 25, "it was forgotten in 5 % of the rows, and then any of the four was as likely"


def test_each_input_of_a_network_belongs_to_its_feature() -> None:
    features = {"v__x": FeatureSpec("float64"), "v__kind": FeatureSpec("string", KINDS), "v__day": FeatureSpec("int64")}
    contract = Contract("toy", "keras", features, {}, ("minutes",), "0", "2024-01-01", 7, {})
    constants = {
        "means": {"v__x": 0.0, "v__day": 3.0}, "scales": {"v__x": 1.0, "v__day": 1.0}, "null_flags": ["v__x"],
        "one_hot": {"v__kind": len(KINDS)}, "levels": {"v__day": [1.0, 2.0]}, "residual_of": None,
        "residual_default": 0.0,
    }  # fmt: skip
    encoding = Encoding(contract, constants)
    encoded = encoding.encode(np.array([[0.0, 2.0, 1.0], [np.nan, np.nan, 7.0]], dtype=np.float32))
    named = np.array(input_features(constants))
    assert len(named) == encoding.width == encoded.shape[1]
    assert set(named[: encoding.numbers]) == {"v__x", "v__day"}
    assert [set(named[part]) for part in encoding.one_hot] == [{"v__kind"}, {"v__day"}]
    assert encoded[0, encoding.one_hot[0]].tolist() == [0, 0, 1, 0]
    assert not encoded[1, encoding.numbers :].any(), "a null and a value never met have no input of their own"


def test_the_vocabulary_is_that_of_training_rows_alone(tmp_path: Path) -> None:
    rows = training_rows(400)
    place = pc.if_else(pc.equal(rows["split"], "train"), rows["v__place"], "validation's own")
    rows = rows.set_column(rows.schema.get_field_index("v__place"), "v__place", place)
    contract, splits = read(tmp_path, rows)
    assert contract.features["v__place"].categories == ("east", "north", "west")
    assert np.isnan(splits["validation"].matrix).all()

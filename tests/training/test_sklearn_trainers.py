"""The scikit-learn families: what each is good for, what it refuses, and that a killed training goes on as if nothing
had been.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake.artifact import file_digest, folder_digests
from serving.predictors import load_model_folder, load_predictor
from serving.predictors.contract import BadModelFile
from serving.predictors.random_forest import TRUSTED
from serving.predictors.sklearn_model import read_model
from tests.training.jobs import QUICK, training_rows, write_job
from training.__main__ import run
from training.checkpoints import Checkpoints
from training.progress import Progress
from training.rows import read_rows
from training.trainers import Cluster, NoGpu, Run, TrainingImpossible, TrialPruned, validated_params
from training.trainers import isolation_forest as isolation_forest_trainer
from training.trainers import linear as linear_trainer
from training.trainers import logistic as logistic_trainer
from training.trainers import random_forest as random_forest_trainer
from training.trainers.linear import _quantile
from training.trainers.random_forest import _leaf_quantiles
from training.trainers.sklearn_rows import _unpadded, steps_of, write_model

TRAINERS: dict[str, Any] = {
    "random_forest": random_forest_trainer,
    "linear": linear_trainer,
    "logistic": logistic_trainer,
    "isolation_forest": isolation_forest_trainer,
}
MEAN = {"minutes": {"kind": "regression", "objective": "mean", "interval": 0.8, "gate": "rmse"}}
every_family = pytest.mark.parametrize("family", sorted(TRAINERS))


class Interrupted(Progress):
    """Ends a training after some points of its curves, as a search or a kill does."""

    def __init__(self, after: int) -> None:
        super().__init__(say_line=lambda _line: None)
        self._left = after

    def point(self, metric: str, step: int, value: float) -> None:
        super().point(metric, step, value)
        self._left -= 1
        if self._left < 0:
            raise TrialPruned


def trained_model(
    family: str,
    folder: Path,
    *,
    rows: pa.Table | None = None,
    params: dict[str, Any] | None = None,
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
    device: str = "auto",
    cluster: Cluster | None = None,
    **changes: Any,
) -> Path:
    """The model's folder, trained in this process without a flow around it."""
    job_dir = write_job(folder, family, rows=rows, **changes)
    job = json.loads((job_dir / "job.json").read_text())
    chosen = validated_params(family, QUICK[family] | (params or {}))
    scratch, model = job_dir / "scratch", job_dir / "model"
    scratch.mkdir()
    model.mkdir()
    contract, splits, _ = read_rows(job, family, chosen, job_dir / "training_set.parquet", scratch)
    checkpoints = checkpoints or Checkpoints(folder / "checkpoints", "0", 3600)
    silent = Progress(say_line=lambda _line: None)
    fit_run = Run(7, device, progress or silent, checkpoints, scratch, cluster)
    TRAINERS[family].train(contract, splits["train"], splits["validation"], model, params=chosen, run=fit_run)
    contract.write(model)
    return model


def strange_rows(seed: int = 1) -> pa.Table:
    """Rows of which one in twenty lies far out, and is late."""
    rows = training_rows(seed=seed)
    random = np.random.default_rng(seed)
    strange = random.random(len(rows)) < 0.05
    x = np.where(strange, random.choice([-12.0, 12.0], len(rows)), random.normal(size=len(rows)))
    late = np.where(strange, 30.0, 0.0) + random.normal(size=len(rows))
    return replaced(replaced(rows, "v__x", pa.array(x)), "label", pa.array(late))


def replaced(rows: pa.Table, name: str, column: Any) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), name, column)


def test_an_isolation_forest_finds_strange_rows_without_labels(tmp_path: Path) -> None:
    rows = strange_rows()
    model = trained_model("isolation_forest", tmp_path / "job", rows=rows)
    fresh = strange_rows(seed=2)
    late = np.asarray(fresh["label"]) > 15
    probability = np.asarray(load_model_folder(model).predict(fresh)["late_probability"])
    assert (probability[late][:, None] > probability[~late]).mean() > 0.97
    assert probability.mean() == pytest.approx(late.mean(), abs=0.02)
    is_train = np.asarray(rows["split"]) == "train"
    other = np.where(is_train, 99.0, np.asarray(rows["label"]))
    again = trained_model("isolation_forest", tmp_path / "again", rows=replaced(rows, "label", pa.array(other)))
    assert folder_digests(again, exclude=frozenset({"contract.json"})) == folder_digests(
        model, exclude=frozenset({"contract.json"})
    ), "it saw training labels"


def test_an_isolation_forest_needs_both_classes_in_validation_to_speak_of_probability(tmp_path: Path) -> None:
    outputs = {"late_probability": {"kind": "binary", "above": 1e6, "gate": "brier"}}
    with pytest.raises(
        TrainingImpossible,
        match=r"all \d+ validation rows lie at or below 1e\+06, so 'late_probability' .* Widen `split.validation`",
    ):
        trained_model(
            "isolation_forest", tmp_path / "job", entry={"outputs": outputs, "trainer": {"family": "isolation_forest"}}
        )


@every_family
def test_neither_gpu_nor_workers(family: str, tmp_path: Path) -> None:
    with pytest.raises(NoGpu, match=rf"trainer.device is gpu, but {family} is scikit-learn's, .* Set `device: auto`"):
        trained_model(family, tmp_path / "gpu", device="gpu")
    with pytest.raises(
        TrainingImpossible, match=rf"{family} trains in one process, the job has 2 workers. Set `training.workers: 1`"
    ):
        trained_model(family, tmp_path / "workers", cluster=Cluster(("a:1", "b:1"), 0))


@every_family
@pytest.mark.parametrize("points", [0, 1, 3])
def test_a_killed_training_goes_on_as_if_nothing_had_been(family: str, points: int, tmp_path: Path) -> None:
    undisturbed = Progress(say_line=lambda _line: None)
    whole = trained_model(family, tmp_path / "whole", params=SLOW.get(family), progress=undisturbed)
    checkpoints = Checkpoints(tmp_path / "checkpoints", "0", 0.0)
    with pytest.raises(TrialPruned):
        trained_model(
            family, tmp_path / "killed", params=SLOW.get(family), progress=Interrupted(points), checkpoints=checkpoints
        )
    lines: list[str] = []
    progress = Progress(say_line=lines.append)
    resumed = trained_model(
        family, tmp_path / "resumed", params=SLOW.get(family), progress=progress, checkpoints=checkpoints
    )
    assert any("goes on from" in line for line in lines) == (points > 0)
    assert folder_digests(resumed) == folder_digests(whole)
    for metric, drawn in progress.curves.items():
        assert undisturbed.curves[metric][-len(drawn) :] == drawn, "the curve does not go on where it was left"


# More points of a curve than the test interrupts it after.
SLOW = {"logistic": {"tol": 1e-9, "C": 100.0}}


@pytest.mark.parametrize("family", ["random_forest", "isolation_forest"])
def test_threads_decide_nothing(family: str, tmp_path: Path) -> None:
    alone = trained_model(family, tmp_path / "alone", params={"threads": 1})
    together = trained_model(family, tmp_path / "together", params={"threads": 3})
    exclude = frozenset({"contract.json"})  # which tells the parameters
    assert folder_digests(together, exclude=exclude) == folder_digests(alone, exclude=exclude)


def test_threads_share_the_rows_of_a_prediction_and_change_no_bit(tmp_path: Path) -> None:
    predictor = load_model_folder(trained_model("random_forest", tmp_path / "job", params={"threads": 3}))
    rows = training_rows(30_001)
    parts = [predictor.predict(rows.slice(start, 1000)) for start in range(0, 30_001, 1000)]
    assert predictor.predict(rows).equals(pa.concat_tables(parts).combine_chunks())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 300), st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_leaves_say_the_quantiles_of_their_rows(seed: int, count: int, levels: list[float]) -> None:
    from sklearn.tree import DecisionTreeRegressor

    random = np.random.default_rng(seed)
    matrix = random.normal(size=(count, 2)).astype(np.float32)
    matrix[random.random((count, 2)) < 0.1] = np.nan
    target = np.round(random.normal(size=count), 1)
    tree = DecisionTreeRegressor(max_leaf_nodes=6, random_state=0).fit(matrix, target).tree_
    leaves, quantiles = _leaf_quantiles(tree, matrix, target, np.argsort(target, kind="stable"), levels)
    reached = tree.apply(matrix)
    assert leaves.tolist() == sorted(set(reached.tolist()))
    for leaf in leaves:
        np.testing.assert_allclose(quantiles[leaf], np.quantile(target[reached == leaf], levels), atol=1e-12)


def skewed_rows() -> pa.Table:
    """Labels whose mean lies far above their median."""
    rows = training_rows()
    random = np.random.default_rng(3)
    return replaced(rows, "label", pa.array(np.exp(random.normal(0, 1.5, len(rows)))))


@pytest.mark.parametrize("family", ["random_forest", "linear"])
def test_a_median_is_no_mean(family: str, tmp_path: Path) -> None:
    rows = skewed_rows()
    label = np.asarray(rows["label"])
    said = {}
    for objective in ("median", "mean"):
        outputs = {"minutes": {"kind": "regression", "objective": objective, "interval": None, "gate": "mae"}}
        entry = {"outputs": outputs, "trainer": {"family": family}}
        model = trained_model(
            family,
            tmp_path / objective,
            rows=rows,
            entry=entry,
            output_columns=["minutes"],
            params=LARGE_LEAVES.get(family),
        )
        said[objective] = float(np.asarray(load_model_folder(model).predict(rows)["minutes"]).mean())
    assert said["median"] == pytest.approx(np.median(label), rel=0.25)
    assert said["mean"] == pytest.approx(label.mean(), rel=0.1)


LARGE_LEAVES = {"random_forest": {"min_samples_leaf": 100}}


@pytest.mark.parametrize("family", ["random_forest", "linear"])
def test_a_mean_has_an_interval_too(family: str, tmp_path: Path) -> None:
    columns = ["minutes", "minutes_lower", "minutes_upper"]
    model = trained_model(
        family, tmp_path / "job", entry={"outputs": MEAN, "trainer": {"family": family}}, output_columns=columns
    )
    rows = training_rows(3000, seed=2)
    predictions = load_model_folder(model).predict(rows)
    label, lower, upper = (
        np.asarray(column) for column in (rows["label"], predictions["minutes_lower"], predictions["minutes_upper"])
    )
    assert 0.73 < ((label >= lower) & (label <= upper)).mean() < 0.88


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_reweighted_ridge_reaches_the_quantile_of_the_linear_programme(level: float, tmp_path: Path) -> None:
    from sklearn.linear_model import QuantileRegressor

    random = np.random.default_rng(1)
    columns = random.normal(size=(400, 3))
    target = columns @ [1.0, -0.5, 0.0] + random.standard_t(2, 400) * np.exp(columns[:, 2])
    chosen = linear_trainer.Params(alpha=1e-6, tol=1e-7)
    fit_run = Run(7, "cpu", Progress(say_line=lambda _line: None), Checkpoints(tmp_path, "0", 3600), tmp_path)
    weights, _ = _quantile("minutes", level, np.zeros(4), (columns, target), (columns, target, 1.0), chosen, fit_run)
    exact = QuantileRegressor(quantile=level, alpha=0.0).fit(columns, target)

    def loss(predicted: Any) -> float:
        return float(np.mean(np.maximum(level * (target - predicted), (level - 1) * (target - predicted))))

    assert loss(columns @ weights[:-1] + weights[-1]) == pytest.approx(loss(exact.predict(columns)), rel=1e-3)


@pytest.mark.filterwarnings("error")
@every_family
def test_columns_that_never_were_as_they_are_now(family: str, tmp_path: Path) -> None:
    """Trained without a place and without a null; asked about places, nulls and absurd values."""
    rows = replaced(training_rows(), "v__place", pa.nulls(1500, pa.string()))
    rows = replaced(rows, "v__x", rows["v__x"].fill_null(0.0))
    predictor = load_model_folder(trained_model(family, tmp_path / "job", rows=rows))
    asked = training_rows(6)
    ugly = replaced(
        replaced(asked, "v__x", pa.array([None, 3e38, -3e38, np.nan, 1e-45, 0.0])),
        "v__empty",
        pa.array([1.0, None, 3e38, -1.0, 0.0, 5.0]),
    )
    for column in predictor.predict(ugly).columns:
        assert np.isfinite(np.asarray(column)).all()
        assert np.abs(np.asarray(column)).max() < 1000, "one absurd value is no absurd prediction"


@every_family
def test_more_categories_than_columns_for_them(family: str, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    rows = replaced(
        training_rows(), "v__place", pa.array([f"place {number}" for number in random.integers(0, 300, 1500)])
    )
    predictor = load_model_folder(trained_model(family, tmp_path / "job", rows=rows))
    assert len(predictor.contract.features["v__place"].categories or ()) > 100
    assert predictor.predict(rows).num_rows == 1500


@every_family
def test_four_rows_are_enough_to_train(family: str, tmp_path: Path) -> None:
    rows = training_rows(8)
    rows = replaced(rows, "label", pa.array([0.0, 30.0] * 4))
    rows = replaced(rows, "split", pa.array(["train"] * 4 + ["validation"] * 4))
    assert load_model_folder(trained_model(family, tmp_path / "job", rows=rows)).predict(rows).num_rows == 8


@every_family
def test_a_model_file_with_an_untrusted_type_is_refused_before_it_is_loaded(family: str, tmp_path: Path) -> None:
    import skops.io  # type: ignore[import-untyped]  # ships no types
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer

    job_dir = write_job(tmp_path / "job", family)
    run(job_dir)
    file = next((job_dir / "model").glob("*.skops"))
    honest = file.read_bytes()

    def hand_in(content: bytes) -> None:
        """As someone would who can write the file and its digest."""
        file.write_bytes(content)
        manifest = json.loads((job_dir / "manifest.json").read_text())
        manifest["artifacts"][f"model/{file.name}"] = file_digest(file)
        (job_dir / "manifest.json").write_text(json.dumps(manifest))

    hand_in(skops.io.dumps(Pipeline([("encode", FunctionTransformer(os.system)), ("model", FunctionTransformer())])))
    with pytest.raises(BadModelFile, match=r"holds the type posix.system, this family's models hold none but"):
        load_predictor(job_dir)
    hand_in(skops.io.dumps(Pipeline([("encode", FunctionTransformer()), ("model", FunctionTransformer())])))
    with pytest.raises(BadModelFile, match=r"holds a FunctionTransformer, this family serves a "):
        load_predictor(job_dir)
    hand_in(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(BadModelFile, match=r"is not a skops file"):
        load_predictor(job_dir)
    hand_in(honest)
    load_predictor(job_dir)


def test_equal_models_are_equal_bytes_in_another_process(tmp_path: Path) -> None:
    """Addresses, times and the order of sets differ there."""
    code = (
        "import sys; from pathlib import Path; from tests.training.test_sklearn_trainers import trained_model, "
        "TRAINERS\n"
        "for family in TRAINERS: trained_model(family, Path(sys.argv[1]) / family)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there")], check=True, env={**os.environ, "PYTHONHASHSEED": "1"}
    )
    for family in TRAINERS:
        here = trained_model(family, tmp_path / "here" / family)
        assert folder_digests(tmp_path / "there" / family / "model") == folder_digests(here)


def test_padding_of_records_is_not_written() -> None:
    kind = np.dtype({"names": ["a", "b"], "formats": ["u1", "<f8"], "offsets": [0, 8], "itemsize": 16})
    written = []
    for dirt in (0, 255):
        records = np.full(3 * kind.itemsize, dirt, dtype=np.uint8).view(kind)
        records["a"], records["b"] = 1, 2.5
        content = io.BytesIO()
        np.save(content, records)
        written.append(_unpadded(content.getvalue()))
    assert written[0] == written[1]
    assert np.load(io.BytesIO(written[0]))["b"].tolist() == [2.5, 2.5, 2.5]


def test_a_model_read_and_written_again_is_the_same_bytes(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.pipeline import Pipeline

    random = np.random.default_rng(1)
    forest = RandomForestRegressor(5, random_state=1).fit(random.normal(size=(50, 2)), random.normal(size=50))
    first, second = tmp_path / "first.skops", tmp_path / "second.skops"
    write_model(Pipeline([("encode", "passthrough"), ("model", forest)]), first)
    write_model(read_model(first, "RandomForestRegressor", TRUSTED), second)
    assert second.read_bytes() == first.read_bytes()


@given(st.integers(1, 10_000), st.integers(1, 20))
def test_steps_grow_to_the_total(total: int, steps: int) -> None:
    found = steps_of(total, steps)
    assert found[-1] == total
    assert found == sorted(set(found))
    assert len(found) <= steps

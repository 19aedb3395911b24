"""Explanations of real models of every family: contributions add up to the predictions, and the files say what the
numbers are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import mean_absolute_error, median_absolute_error

from config.calendar import Interval
from config.catalog.output import output_of
from lake.artifact import combined_digest
from lake.lake import Lake
from lake.storage import artifact_folder
from serving.predictors import explainer_of, load_predictor, read_manifest
from serving.predictors.shapley import SAMPLE_ROWS, Sample, Shapley, affordable_rows, owners
from serving.signed import load_signed
from tests import toy
from tests.training.jobs import OF_SEQUENCES, QUICK, outputs_of, training_rows, write_job
from training.__main__ import run
from training.registry import explanation as explaining
from training.registry.decision import Decision
from training.registry.explanation import Explanation, NothingToExplain, explain
from training.registry.gate import judge
from training.registry.job import gate_folder, prepare_job
from training.registry.register import Registered, store
from training.registry.runner import run_job
from training.registry.segments import segment_columns

AS_OF = date(2024, 3, 1)
PARAMS = QUICK | {"random_forest": {"n_estimators": 10, "max_depth": 6, "threads": 1}}
Version = tuple[Lake, Path, Registered]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Two months of rides; no test writes to its tables."""
    lake = toy.toy_lake(tmp_path_factory.mktemp("history"))
    nights = Interval.closed(date(2024, 1, 1), AS_OF)
    toy.publish_valid(lake, nights)
    toy.publish_features(lake, nights)
    return lake


@pytest.fixture(scope="module")
def xgboost(history: Lake) -> Version:
    """A stored version; MLflow has no part in it."""
    job_dir = prepare_job(history, "ride_minutes", as_of=AS_OF, run_id="explained", overrides={"threads": 1})
    run_job(history, "ride_minutes", job_dir, say=lambda line: None)
    digest = combined_digest(read_manifest(job_dir)["artifacts"])
    store(history, "ride_minutes", job_dir, digest)
    return (
        history,
        job_dir,
        Registered("ride_minutes", 1, digest, "run", AS_OF, artifact_folder(history.settings, "ride_minutes", digest)),
    )


@pytest.fixture(scope="module")
def subject_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What is explained, of a model trained on numbers, categories, missing and constant values."""

    @cache
    def made(family: str) -> Any:
        folder = tmp_path_factory.mktemp("jobs") / family
        write_job(folder, family, params=PARAMS[family])
        run(folder)
        predictor = load_predictor(folder)
        rows = training_rows(300, seed=9)
        matrix, background = predictor.contract.matrix(rows), predictor.contract.matrix(training_rows(200, seed=1))
        kinds = {name: output_of(document) for name, document in outputs_of(family).items()}
        groups = explaining._groups(list(predictor.feature_columns))
        label = rows["label"].to_numpy()
        return explaining._Subject(
            cast(Any, SimpleNamespace(outputs=kinds)),
            "minutes",
            predictor,
            folder / "model",
            matrix,
            label,
            None,
            background,
            groups,
        )

    return made


def explained_by_its_family(subject: Any) -> Shapley:
    explainer = explainer_of(subject.contract.family, subject.files)
    assert explainer is not None
    return explainer(subject.files, subject.contract, Sample(subject.matrix, subject.background))


def logit(probability: np.ndarray) -> np.ndarray:
    return np.log(probability / (1.0 - probability))


@pytest.mark.parametrize("family", sorted(QUICK))
def test_contributions_add_up_to_the_way_from_one_prediction_to_another(
    family: str, subject_of: Callable[[str], Any]
) -> None:
    subject = subject_of(family)
    found, again = explained_by_its_family(subject), explained_by_its_family(subject)
    scores = subject.predictor.scores(found.rows)
    features = list(subject.contract.features)
    for name, output in subject.entry.outputs.items():
        values, predicted = found.values[name], scores[:, subject.contract.raw_columns.index(name)]
        assert values.shape == (len(found.rows), len(features))
        assert (again.values[name] == values).all(), "equal input gave another explanation"
        way = values.sum(axis=1)
        if output.task == "anomaly" or (output.task == "event" and family in {"random_forest", "isolation_forest"}):
            # In another unit, which calibration turns into probabilities in the same order.
            assert (np.diff(predicted[np.argsort(way)]) >= -1e-9).all()
        elif family in {"keras", *OF_SEQUENCES}:  # expected gradients are drawn: near, not equal
            wanted = logit(predicted) if output.task == "event" else predicted
            assert np.abs(way - way.mean() - (wanted - wanted.mean())).mean() < 0.05 * np.ptp(wanted)
        else:
            wanted = logit(predicted) if output.task == "event" else predicted
            assert way - way.mean() == pytest.approx(wanted - wanted.mean(), rel=1e-3, abs=1e-3)
        mine = dict(zip(features, values.T, strict=True))
        assert np.abs(mine["v__empty"]).max() == pytest.approx(0, abs=1e-9)
        assert np.abs(mine["v__constant"]).max() == pytest.approx(0, abs=1e-9)
        if family not in {"isolation_forest", "ecod"}:  # which never see the label
            seen = dict(zip(features, found.rows.T, strict=True))
            assert followed(mine["v__place"], seen["v__place"] == 0) > 0.9, (
                "the label is 20 higher in the east, the first category"
            )
            assert followed(mine["v__weekday"], seen["v__weekday"]) > 0.9
            assert followed(mine["v__x"] + mine["v__flag"], seen["v__x"]) > 0.8


def followed(values: np.ndarray, cause: np.ndarray) -> float:
    """Correlation, of rows where the cause is known."""
    known = ~np.isnan(cause.astype(float))
    return float(np.corrcoef(values[known], cause[known])[0, 1])


def test_expected_gradients_of_a_sum_are_its_terms_and_a_mask_stays_the_row_s_own() -> None:
    import keras

    from serving.predictors.keras import expected_gradients

    random = np.random.default_rng(3)
    weights = random.normal(size=(3, 2)).astype(np.float32)
    sequence, mask, static = keras.Input((4, 2)), keras.Input((4,), dtype="bool"), keras.Input((3,))
    flat = keras.layers.Flatten()(sequence * keras.ops.cast(mask, "float32")[:, :, None])
    layer = keras.layers.Dense(2, use_bias=False)
    network = keras.Model([sequence, mask, static], layer(flat) + keras.ops.matmul(static, weights))

    def inputs(count: int) -> list[Any]:
        return [
            random.normal(size=(count, 4, 2)).astype(np.float32),
            random.random((count, 4)) < 0.5,
            random.normal(size=(count, 3)).astype(np.float32),
        ]

    rows, others = inputs(6), inputs(1)
    found = expected_gradients(network, rows, others, seed=1)
    kernel = layer.get_weights()[0].reshape(4, 2, 2)
    way = (rows[0] - others[0]) * rows[1][:, :, None]
    assert found[0] == pytest.approx(np.einsum("rsc,sco->orsc", way, kernel), abs=1e-5)
    assert found[2] == pytest.approx(np.einsum("rf,fo->orf", rows[2] - others[2], weights), abs=1e-5)
    assert not found[1].any()


def test_expected_gradients_agree_with_shap_s_on_a_dense_network(subject_of: Callable[[str], Any]) -> None:
    import keras

    from serving.predictors.keras import Encoding, decoded_contributions, expected_gradients, input_features

    subject = subject_of("keras")
    shap = explained_by_its_family(subject)
    sample = Sample(subject.matrix, subject.background).thinned(len(shap.rows))
    details = json.loads((subject.files / "keras.json").read_text())
    encoding = Encoding(subject.contract, details["encoding"])
    network = keras.saving.load_model(subject.files / "network.keras", compile=False)
    (found,) = expected_gradients(network, encoding.inputs(sample.matrix), encoding.inputs(sample.background), seed=1)
    by_feature = found @ owners(subject.contract, input_features(details["encoding"]))
    ours = decoded_contributions(subject.contract, details, details["encoding"], by_feature, encoding, sample)
    for name, values in shap.values.items():
        assert np.corrcoef(ours[name].ravel(), values.ravel())[0, 1] > 0.99
        assert np.abs(ours[name]).mean() == pytest.approx(np.abs(values).mean(), rel=0.05)


def test_a_forest_is_explained_on_as_many_rows_as_its_size_allows() -> None:
    def forest(leaves: int, depth: int) -> Any:
        return SimpleNamespace(estimators_=[SimpleNamespace(tree_=SimpleNamespace(n_leaves=leaves, max_depth=depth))])

    assert affordable_rows(forest(2_170, 6)) == SAMPLE_ROWS  # 50 small trees: 0.2 ms a row
    assert affordable_rows(forest(119_404, 12)) == 87  # 300 trees of depth 12: 42 ms a row
    assert affordable_rows(forest(119_404, 12), forest(119_404, 12)) == 43
    assert affordable_rows(forest(1_000_000, 25)) == 25  # 100 trees of full depth on 8,000 rows: 0.33 s a row


@pytest.fixture(scope="module")
def explained(xgboost: Version, tmp_path_factory: pytest.TempPathFactory) -> tuple[Explanation, Path, Decision]:
    lake, job_dir, registered = xgboost
    decision = judge(lake, "ride_minutes", job_dir, registered, run_id="test")
    folder = tmp_path_factory.mktemp("explained")
    return explain(lake, "ride_minutes", job_dir, registered, decision, folder=folder), folder, decision


def test_metrics_are_those_of_the_gate_and_of_scikit_learn(
    xgboost: Version, explained: tuple[Explanation, Path, Decision]
) -> None:
    _, job_dir, registered = xgboost
    explanation, _, decision = explained
    for name, output in decision.evidence["outputs"].items():
        assert explanation.metrics[f"{name}/{output['metric']}"] == pytest.approx(output["challenger"], rel=1e-5)
        assert explanation.metrics[f"{name}/baseline_{output['metric']}"] == pytest.approx(output["baseline"], rel=1e-5)
        assert explanation.metrics[f"{name}/lift"] == pytest.approx(
            1 - output["challenger"] / output["baseline"], rel=1e-4
        )
    rows = pq.read_table(gate_folder(job_dir) / "test_set.parquet")
    said = (
        load_signed(xgboost[0].settings, "ride_minutes", registered.artifact_digest)
        .predict(rows)["ride_minutes"]
        .to_numpy()
    )
    label = rows["label"].to_numpy()
    assert explanation.metrics["ride_minutes/mae"] == pytest.approx(mean_absolute_error(label, said), rel=1e-5)
    assert explanation.metrics["ride_minutes/median_absolute_error"] == pytest.approx(
        median_absolute_error(label, said), rel=1e-5
    )
    assert 0 < explanation.metrics["long_probability/ndcg"] <= 1
    assert (explanation.rows, len(explanation.nights)) == (decision.rows, decision.nights)


def test_every_plot_it_names_is_there_and_every_output_has_its_own(
    explained: tuple[Explanation, Path, Decision],
) -> None:
    explanation, folder, _ = explained
    assert {(plot.output, plot.kind) for plot in explanation.plots} == {
        *(("ride_minutes", kind) for kind in ("contributions", "residuals", "gain", "segments")),
        *(("long_probability", kind) for kind in ("contributions", "calibration", "confusion", "gain", "segments")),
        ("", "importances"),
        ("", "curves"),
    }
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["explanation.json", "segments.json", *(plot.file for plot in explanation.plots)]
    )
    assert all((folder / plot.file).read_bytes().startswith(b"\x89PNG") for plot in explanation.plots)
    assert json.loads((folder / "explanation.json").read_text()) == json.loads(json.dumps(explanation.to_json()))
    assert json.loads((folder / "segments.json").read_text())["columns"] == ["depot"]


def test_what_the_toy_rests_on_comes_first_in_the_label_s_unit(explained: tuple[Explanation, Path, Decision]) -> None:
    number, chance = explained[0].contributions
    assert next(iter(number.strengths)) == "vehicle_daily__minutes_7d"
    assert (number.unit, chance.unit) == ("minutes", "log-odds")
    assert number.method.startswith("Shapley values of the trees (Tree SHAP), on ")


def test_equal_input_gives_equal_bytes(
    xgboost: Version, explained: tuple[Explanation, Path, Decision], tmp_path: Path
) -> None:
    lake, job_dir, registered = xgboost
    explain(lake, "ride_minutes", job_dir, registered, explained[2], folder=tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        p.name: p.read_bytes() for p in explained[1].iterdir()
    }


def test_a_family_without_an_explainer_says_so(
    xgboost: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, job_dir, registered = xgboost
    monkeypatch.delattr("serving.predictors.xgboost.explain")
    explanation = explain(lake, "ride_minutes", job_dir, registered, folder=tmp_path)
    number, chance = explanation.contributions
    assert "The family xgboost has no Shapley explainer here" in number.method
    assert (number.unit, chance.unit) == ("growth of mae (minutes)", "growth of brier")
    assert next(iter(number.strengths)) == "vehicle_daily__minutes_7d"
    assert number.strengths["vehicle_daily__minutes_7d"] > 10 * number.strengths["vehicle_daily__rides_7d"]
    assert (tmp_path / "contributions_ride_minutes.png").exists()


def test_only_judged_nights_count(
    xgboost: Version, explained: tuple[Explanation, Path, Decision], tmp_path: Path
) -> None:
    lake, job_dir, registered = xgboost
    decision = explained[2]
    kept = decision.evidence["test"]["nights"][2:]
    fewer = replace(decision, evidence={**decision.evidence, "test": {**decision.evidence["test"], "nights": kept}})
    explanation = explain(lake, "ride_minutes", job_dir, registered, fewer, folder=tmp_path)
    assert [night.isoformat() for night in explanation.nights] == kept
    days = pq.read_table(gate_folder(job_dir) / "test_set.parquet")["data_date"]
    assert explanation.rows == pc.sum(pc.is_in(days, value_set=pa.array([date.fromisoformat(n) for n in kept]))).as_py()


def test_steps_of_one_feature_are_shown_as_one() -> None:
    found = explaining._groups(["s__x_t0", "s__x_t1", "s__x_t2", "s__y", "s__z_t0", "t0"])
    assert found == {"s__x (3 steps)": [0, 1, 2], "s__y": [3], "s__z_t0": [4], "t0": [5]}


def test_changed_test_rows_are_refused(xgboost: Version, tmp_path: Path) -> None:
    lake, job_dir, registered = xgboost
    copied = tmp_path / job_dir.name
    for source, target in ((job_dir, copied), (gate_folder(job_dir), gate_folder(copied))):
        target.mkdir()
        for file in source.glob("*.*"):
            if file.is_file():
                (target / file.name).write_bytes(file.read_bytes())
    path = gate_folder(copied) / "test_set.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.slice(1), path)
    with pytest.raises(NothingToExplain, match=r"its bytes were changed. Nothing was explained. Train again."):
        explain(lake, "ride_minutes", copied, registered, folder=tmp_path)
    path.unlink()
    with pytest.raises(NothingToExplain, match=r"test_set.parquet does not exist"):
        explain(lake, "ride_minutes", copied, registered, folder=tmp_path)


def test_segments_are_the_gate_s(xgboost: Version) -> None:
    assert segment_columns(xgboost[0].model("ride_minutes")) == ("depot",)

"""Every family: they learn, repeat themselves, survive ugly columns, and refuse what cannot be learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.kinds.binary import Output as BinaryOutput
from serving.predictors import FAMILIES, UnknownFamily, load_predictor, preloaded_libraries
from serving.predictors.calibration import adjusted_interval, calibrated, ordered_interval, sigmoid
from serving.predictors.keras import Encoding
from tests.training.jobs import OUTPUTS, QUICK, outputs_of, trained_job, training_rows, write_job
from training.__main__ import run
from training.trainers import (
    BadParameter,
    NoGpu,
    TrainingDiverged,
    TrainingImpossible,
    check_outputs,
    family_of,
    validated_params,
)
from training.trainers.calibration import fit_calibration, fit_interval, fit_widening

# Isolation forests learn what is strange, which these rows' label is not about: test_sklearn_trainers.py has rows for
# them.
EVENTS = {family for family in QUICK if "late_probability" in outputs_of(family)}
LEARNERS = sorted(EVENTS - {"isolation_forest"})
REGRESSORS = sorted(family for family in QUICK if "minutes" in outputs_of(family))
SEEDLESS = ("linear", "logistic", "ecod")
WEIGHTS = (".ubj", ".keras", ".skops", "ecod.json")


def manifest_of(job_dir: Path) -> dict[str, Any]:
    return dict(json.loads((job_dir / "manifest.json").read_text()))


def family_in(job_dir: Path) -> str:
    return str(manifest_of(job_dir)["family"])


@pytest.fixture
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_job(request.param, tmp_path_factory.getbasetemp())


learned = pytest.mark.parametrize("trained", LEARNERS, indirect=True)
regressed = pytest.mark.parametrize("trained", REGRESSORS, indirect=True)
every_family = pytest.mark.parametrize("trained", sorted(QUICK), indirect=True)


def test_a_family_is_a_file_here_and_a_file_there() -> None:
    trainers = {path.stem for path in Path("training/trainers").glob("*.py") if "\ndef train(" in path.read_text()}
    assert trainers == set(FAMILIES), (
        "a family trains in training/trainers/<family>.py and is served by serving/predictors/<family>.py"
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_declares_what_is_asked_about_it(name: str) -> None:
    family = family_of(name)
    assert validated_params(name, family.QUICK) != {}
    assert family.LEARNS
    assert family.ROUNDS is None or family.ROUNDS in family.Params.model_fields
    assert isinstance(preloaded_libraries(name), tuple)


class Oracle(BinaryOutput):
    task = "when"  # type: ignore[assignment]  # no family learns it
    kind: Literal["oracle"] = "oracle"  # type: ignore[assignment]


def test_an_output_that_a_family_cannot_learn_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    entry = {"outputs": OUTPUTS, "trainer": {"family": "logistic"}}
    job_dir = write_job(tmp_path / "job", "logistic", entry=entry)
    with pytest.raises(TrainingImpossible) as refused:
        run(job_dir)
    able = ", ".join(name for name in FAMILIES if "number" in family_of(name).LEARNS)
    assert str(refused.value) == (
        "TrainingImpossible: toy: the family logistic learns binary outputs, 'minutes' is regression. Name a family "
        f"that learns it ({able}) in `trainer.family`, or leave the output out."
    )
    assert not (job_dir / "manifest.json").exists()
    with pytest.raises(TrainingImpossible, match=r"'when' is oracle. Name a family that learns it \(there is none\)"):
        check_outputs("toy", "linear", {"when": Oracle(above=1)})


@learned
def test_beats_the_constant(trained: Path) -> None:
    metrics = manifest_of(trained)["metrics"]
    if family_in(trained) in REGRESSORS:
        assert metrics["minutes/mae"] < 0.6 * metrics["minutes/baseline_mae"]
    assert metrics["late_probability/brier"] < 0.7 * metrics["late_probability/baseline_brier"]
    assert metrics["late_probability/roc_auc"] > 0.85


@regressed
def test_interval_holds_the_share_it_promises_on_new_rows(trained: Path) -> None:
    rows = training_rows(3000, seed=2)
    predictions = load_predictor(trained).predict(rows)
    lower, center, upper, label = (
        np.asarray(c)
        for c in (predictions["minutes_lower"], predictions["minutes"], predictions["minutes_upper"], rows["label"])
    )
    assert ((lower <= center) & (center <= upper)).all(), "a bound crossed the median"
    assert 0.73 < ((label >= lower) & (label <= upper)).mean() < 0.88


@learned
def test_probability_is_calibrated_on_new_rows(trained: Path) -> None:
    rows = training_rows(3000, seed=3)
    probability = np.asarray(load_predictor(trained).predict(rows)["late_probability"])
    late = np.asarray(rows["label"]) > 15
    assert abs(probability.mean() - late.mean()) < 0.04
    for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.0)):
        inside = (probability >= low) & (probability <= high)
        assert abs(probability[inside].mean() - late[inside].mean()) < 0.1


@every_family
def test_same_seed_same_bytes(trained: Path, tmp_path: Path) -> None:
    first, family = trained, family_in(trained)
    again = write_job(tmp_path / "again", family)
    run(again)
    assert manifest_of(again)["artifacts"] == manifest_of(first)["artifacts"]
    other = write_job(tmp_path / "other", family, seed=8)
    run(other)
    weights = next(name for name in manifest_of(first)["artifacts"] if name.endswith(WEIGHTS))
    assert (manifest_of(other)["artifacts"][weights] == manifest_of(first)["artifacts"][weights]) == (
        family in SEEDLESS
    )


@every_family
def test_unseen_category_and_all_missing_row_are_predicted(trained: Path) -> None:
    rows = training_rows(3)
    unseen = rows.set_column(rows.schema.get_field_index("v__place"), "v__place", pa.array(["moon", None, "east"]))
    missing = pa.table({name: pa.nulls(2, unseen.schema.field(name).type) for name in unseen.schema.names})
    infinite = rows.set_column(rows.schema.get_field_index("v__x"), "v__x", pa.array([np.inf, -np.inf, np.nan]))
    predictor = load_predictor(trained)
    as_missing = unseen.set_column(
        rows.schema.get_field_index("v__place"), "v__place", pa.array([None, None, "east"], pa.string())
    )
    assert predictor.predict(unseen).equals(predictor.predict(as_missing)), "an unknown category must count as missing"
    for ugly in (missing, infinite):
        numbers = [column for column in predictor.predict(ugly).columns if pa.types.is_floating(column.type)]
        assert numbers
        assert all(np.isfinite(np.asarray(column)).all() for column in numbers)


@every_family
def test_importances_find_what_the_label_follows_from(trained: Path) -> None:
    importances = json.loads((trained / "importances.json").read_text())
    assert set(importances) == set(outputs_of(family_in(trained)))
    for shares in importances.values():
        assert sum(shares.values()) == pytest.approx(1)
        assert {"v__x", "v__place"} <= set(list(shares)[:3])
        assert shares["v__empty"] == shares["v__constant"] == 0


@pytest.mark.parametrize("family", REGRESSORS)
def test_mean_objective_alone(family: str, tmp_path: Path) -> None:
    outputs = {"minutes": {"kind": "regression", "objective": "mean", "interval": None, "gate": "rmse"}}
    job_dir = write_job(
        tmp_path / "job",
        family,
        entry={"outputs": outputs, "trainer": {"family": family, "device": "cpu"}},
        output_columns=["minutes"],
    )
    run(job_dir)
    metrics = manifest_of(job_dir)["metrics"]
    assert metrics["minutes/rmse"] < 0.7 * metrics["minutes/baseline_rmse"]
    assert "minutes/coverage" not in metrics


def test_levels_of_whole_numbers_get_inputs_of_their_own(trained_keras: Path) -> None:
    constants = json.loads((trained_keras / "model" / "keras.json").read_text())["encoding"]
    assert constants["levels"] == {"v__weekday": [0, 1, 2, 3, 4, 5, 6]}
    predictor = load_predictor(trained_keras)
    encoding = Encoding(predictor.contract, constants)
    matrix = np.zeros((5, 6), dtype=np.float32)
    matrix[:, list(predictor.contract.features).index("v__weekday")] = [0, 3, 6, 99, np.nan]
    one_hot = encoding.encode(matrix)[:, -7:]
    assert one_hot.argmax(axis=1).tolist()[:3] == [0, 3, 6]
    assert one_hot.sum(axis=1).tolist() == [1, 1, 1, 0, 0], "a number that training never met has no input of its own"


def test_a_network_may_correct_a_feature(tmp_path: Path) -> None:
    rows = training_rows()
    label = np.asarray(rows["v__x"].fill_null(0.0)) * 100 + 5
    rows = rows.set_column(rows.schema.get_field_index("label"), "label", pa.array(label))
    outputs = {"minutes": {"kind": "regression", "objective": "median", "interval": None, "gate": "mae"}}
    params = {"hidden": [4], "epochs": 3, "residual_of": "v__x"}
    entry = {"outputs": outputs, "trainer": {"family": "keras"}}
    job_dir = write_job(tmp_path / "job", "keras", rows=rows, params=params, entry=entry, output_columns=["minutes"])
    run(job_dir)
    assert manifest_of(job_dir)["params"]["residual_of"] == "v__x"
    wrong = write_job(tmp_path / "wrong", "keras", params={"residual_of": "v__nothing"})
    with pytest.raises(TrainingImpossible, match=r"residual_of names 'v__nothing', which is not a feature"):
        run(wrong)


def test_gpu_demanded_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.trainers.xgboost.gpu_count", lambda: 0)
    job_dir = write_job(
        tmp_path / "job", "xgboost", entry={"outputs": OUTPUTS, "trainer": {"family": "xgboost", "device": "gpu"}}
    )
    with pytest.raises(NoGpu, match=r"trainer.device is gpu, but .* Set `device: auto`"):
        run(job_dir)
    assert not (job_dir / "manifest.json").exists()


@pytest.mark.parametrize("family", LEARNERS)
def test_labels_of_one_class_are_refused(family: str, tmp_path: Path) -> None:
    outputs = outputs_of(family) | {"late_probability": {"kind": "binary", "above": 1e6, "gate": "brier"}}
    job_dir = write_job(tmp_path / "job", family, entry={"outputs": outputs, "trainer": {"family": family}})
    with pytest.raises(
        TrainingImpossible, match=r"training rows lie at or below 1e\+06, so 'late_probability' cannot be learned"
    ):
        run(job_dir)


@pytest.mark.parametrize("family", sorted(QUICK))
def test_no_rows_of_a_split_and_no_label_are_refused(family: str, tmp_path: Path) -> None:
    rows = training_rows()
    no_validation = rows.filter(pa.compute.equal(rows["split"], "train"))
    with pytest.raises(TrainingImpossible, match=r"has no validation rows"):
        run(write_job(tmp_path / "split", family, rows=no_validation))
    spoilt = rows.set_column(
        rows.schema.get_field_index("label"), "label", pa.array([None, *rows["label"].to_pylist()[1:]], pa.float64())
    )
    with pytest.raises(TrainingImpossible, match=r"labels that are null, NaN or infinite"):
        run(write_job(tmp_path / "label", family, rows=spoilt))


def test_a_loss_that_is_no_number_stops(tmp_path: Path) -> None:
    job_dir = write_job(tmp_path / "job", "keras", params={"hidden": [8], "epochs": 5, "learning_rate": 1e30})
    with pytest.raises(TrainingDiverged, match=r"loss is (nan|inf) in epoch \d of 5. Lower `learning_rate`"):
        run(job_dir)
    assert not (job_dir / "manifest.json").exists()


def test_unknown_and_bad_parameters() -> None:
    with pytest.raises(BadParameter, match=r"xgboost has no parameter 'depth'. Known: n_estimators, max_depth"):
        validated_params("xgboost", {"depth": 3})
    with pytest.raises(BadParameter, match=r"parameter max_depth is 'deep'"):
        validated_params("xgboost", {"max_depth": "deep"})
    with pytest.raises(BadParameter, match=r"parameter epochs is 0"):
        validated_params("keras", {"epochs": 0})
    with pytest.raises(UnknownFamily, match=r"no model family 'oracle'. Known: .*keras, .*xgboost"):
        validated_params("oracle", {})
    assert validated_params("keras", {"hidden": [8]})["hidden"] == [8]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-3, 3), st.floats(0.2, 4))
def test_platt_recovers_a_distortion(seed: int, shift: float, stretch: float) -> None:
    random = np.random.default_rng(seed)
    true_logits = random.normal(0, 2, 4000)
    truth = (random.random(4000) < sigmoid(true_logits)).astype(np.float64)
    distorted = true_logits * stretch + shift
    fitted = fit_calibration(distorted, truth, "platt")
    assert np.abs(calibrated(distorted, fitted) - sigmoid(true_logits)).mean() < 0.03
    rising = calibrated(np.linspace(-30, 30, 100), fitted)
    assert (np.diff(rising) >= 0).all()
    assert ((rising >= 0) & (rising <= 1)).all()


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_calibration_survives_json_and_one_class(method: Any) -> None:
    random = np.random.default_rng(1)
    logits = random.normal(size=500)
    truth = (random.random(500) < sigmoid(2 * logits)).astype(np.float64)
    fitted = json.loads(json.dumps(fit_calibration(logits, truth, method)))
    assert fitted["method"] == method
    values = calibrated(np.array([-1e9, 0.0, 1e9]), fitted)
    assert (np.diff(values) >= 0).all()
    assert np.isfinite(values).all()
    assert fit_calibration(logits, np.zeros(500), method) == {"method": "none"}


def test_scores_that_say_the_opposite_become_the_base_rate() -> None:
    random = np.random.default_rng(1)
    logits = random.normal(size=2000)
    truth = (random.random(2000) < sigmoid(-2 * logits)).astype(np.float64)
    values = calibrated(np.array([-2.0, 2.0]), fit_calibration(logits, truth, "platt"))
    assert values == pytest.approx(truth.mean(), abs=0.01)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.floats(0.05, 0.95))
def test_widened_bounds_hold_their_share_of_validation(seed: int, count: int, share: float) -> None:
    random = np.random.default_rng(seed)
    label, lower = random.normal(size=count), random.normal(-0.3, 0.1, count)
    upper = lower + random.random(count)
    widen_by = fit_widening(label, lower, upper, share)
    inside = (label >= lower - widen_by - 1e-9) & (label <= upper + widen_by + 1e-9)
    assert inside.mean() >= min(share, 1.0) - 1e-9


def uneven_rows(count: int, seed: int) -> tuple[np.ndarray, ...]:
    """Label, number predicted and bounds of rows whose label is the more uncertain the higher it is, which the bounds
    do not know.
    """
    random = np.random.default_rng(seed)
    center = random.uniform(0, 100, count)
    return center + random.normal(size=count) * (1 + center / 10), center, center - 4, center + 4


def held_by_quarter(adjustment: dict[str, Any], rows: tuple[np.ndarray, ...]) -> list[float]:
    label, center, lower, upper = rows
    lower, upper = adjusted_interval(center, lower, upper, adjustment)
    inside = (label >= lower) & (label <= upper)
    return [float(inside[(center >= low) & (center < low + 25)].mean()) for low in (0, 25, 50, 75)]


def test_an_interval_of_bands_holds_its_share_where_numbers_are_low_and_where_they_are_high() -> None:
    known, new = uneven_rows(4000, 1), uneven_rows(8000, 2)
    on_the_whole = fit_interval({"interval": 0.8}, *known)
    in_bands = json.loads(json.dumps(fit_interval({"interval": 0.8, "interval_bands": 4}, *known)))
    uneven = held_by_quarter(on_the_whole, new)
    assert uneven[0] > 0.95
    assert uneven[-1] < 0.7
    assert held_by_quarter(in_bands, new) == pytest.approx([0.8] * 4, abs=0.03)
    assert np.all(np.diff(in_bands["widen_by"]) > 0)


def test_without_bands_the_bounds_keep_the_bits_they_had() -> None:
    label, center, lower, upper = uneven_rows(200, 1)
    adjustment = fit_interval({"interval": 0.8}, label, center, lower, upper)
    assert adjustment == {"widen_by": fit_widening(label, lower, upper, 0.8)}
    known = ordered_interval(center, lower, upper, adjustment["widen_by"])
    assert np.array_equal(adjusted_interval(center, lower, upper, adjustment), known)


def test_equal_numbers_are_of_one_band_and_no_band_is_of_few_rows() -> None:
    label, center, lower, upper = uneven_rows(400, 1)
    center = np.where(center < 70, 50.0, center)
    adjustment = fit_interval({"interval": 0.8, "interval_bands": 8}, label, center, lower, upper)
    band = np.searchsorted(adjustment["band_edges"], center)
    assert len(set(band[center == 50.0])) == 1
    assert np.bincount(band).min() >= 50
    assert len(adjustment["widen_by"]) == len(adjustment["band_edges"]) + 1 == band.max() + 1
    level = np.full(400, 50.0)
    assert fit_interval({"interval": 0.8, "interval_bands": 8}, label, level, lower, upper)["band_edges"] == []


def test_more_bands_than_validation_rows_can_fill_are_refused() -> None:
    with pytest.raises(TrainingImpossible, match=r"interval_bands: 5 needs 250 validation rows, 50 a band, and there"):
        fit_interval({"interval": 0.8, "interval_bands": 5}, *uneven_rows(249, 1))


@pytest.mark.parametrize("family", ["linear", "xgboost", "random_forest", "keras"])
def test_a_row_alone_is_in_the_band_it_is_in_among_others(family: str, tmp_path: Path) -> None:
    outputs = {"minutes": OUTPUTS["minutes"] | {"interval_bands": 3}}
    entry = {"outputs": outputs, "trainer": {"family": family}}
    fewer = {"keras": {"epochs": 2}, "xgboost": {"n_estimators": 5}, "random_forest": {"n_estimators": 5}}
    params = QUICK[family] | fewer.get(family, {})
    columns = ["minutes", "minutes_lower", "minutes_upper"]
    job_dir = write_job(tmp_path / "job", family, params=params, entry=entry, output_columns=columns)
    run(job_dir)
    predictor, rows = load_predictor(job_dir), training_rows(60, seed=4)
    whole = predictor.predict(rows)
    assert [predictor.predict(rows.slice(row, 1)).to_pylist()[0] for row in (0, 17, 59)] == [
        whole.to_pylist()[row] for row in (0, 17, 59)
    ]
    written = [path.read_text() for path in (job_dir / "model").glob("*.json")]
    (details,) = [json.loads(text) for text in written if "band_edges" in text]
    assert len(details["outputs"]["minutes"]["interval"]["widen_by"]) == 3


@given(st.floats(-100, 100), st.floats(-100, 100), st.floats(-100, 100), st.floats(-50, 50))
def test_bounds_never_cross_the_centre(center: float, lower: float, upper: float, widen_by: float) -> None:
    low, high = ordered_interval(np.array([center]), np.array([lower]), np.array([upper]), widen_by)
    assert low[0] <= center <= high[0]


@every_family
def test_a_finished_job_is_not_touched_by_reading_it(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    load_predictor(copy)
    assert manifest_of(copy) == manifest_of(trained)

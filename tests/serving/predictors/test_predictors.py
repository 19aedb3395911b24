"""Loading refuses changed bytes before it parses them; predicting refuses wrong columns and keeps rows as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import serving.predictors
from config.catalog.output import output_of
from lake.artifact import ArtifactMismatch, combined_digest, file_digest
from lake.tables import ARROW_TYPES
from serving.predictors import BadManifest, UnknownFamily, load_predictor
from serving.predictors.contract import (
    BadFeatures,
    BadModelFile,
    Contract,
    FeatureSpec,
    Matrix,
    PredictionsNotFinite,
    Predictor,
    Scores,
)
from tests.training.jobs import QUICK, trained_job, training_rows


@pytest.fixture(params=sorted(QUICK))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_job(request.param, tmp_path_factory.getbasetemp())


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    target = tmp_path / "job"
    shutil.copytree(trained, target)
    return target


def columns_of(job_dir: Path) -> list[str]:
    job = json.loads((job_dir / "job.json").read_text())
    declared = [column for name, kind in job["entry"]["outputs"].items() for column in output_of(kind).columns(name)]
    assert job["output_columns"] == declared
    return declared


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_predictions_have_the_declared_columns_and_the_rows_order(trained: Path) -> None:
    predictor = load_predictor(trained)
    rows = training_rows(200)
    whole = predictor.predict(rows)
    assert whole.column_names == columns_of(trained) == list(predictor.output_columns)
    kinds = predictor.contract.kinds
    declared = [kind for name, output in kinds.items() for kind in output.columns(name).values()]
    assert [field.type for field in whole.schema] == [ARROW_TYPES[kind] for kind in declared]
    assert_alike(predictor.predict(rows.take(pa.array(range(199, -1, -1)))).take(pa.array(range(199, -1, -1))), whole)


def assert_alike(one: pa.Table, other: pa.Table) -> None:
    for name in other.column_names:
        if pa.types.is_floating(other[name].type):
            np.testing.assert_allclose(np.asarray(one[name]), np.asarray(other[name]), rtol=1e-5, atol=1e-5)
        else:
            assert one[name].to_pylist() == other[name].to_pylist()


def test_chunks_and_kinds_of_input_make_no_difference(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = load_predictor(trained)
    rows = training_rows(300)
    whole = predictor.predict(rows)
    pieces = pa.concat_tables([rows.slice(0, 7), rows.slice(7, 100), rows.slice(107)])
    monkeypatch.setattr(predictor, "chunk_rows", 64, raising=False)
    for other in (predictor.predict(pieces), predictor.predict(rows.combine_chunks().to_batches()[0])):
        assert_alike(other, whole)


def test_a_row_alone_is_predicted_as_among_others(trained: Path) -> None:
    predictor = load_predictor(trained)
    rows = training_rows(40)
    whole = predictor.predict(rows)
    alone = pa.concat_tables([predictor.predict(rows.slice(index, 1)) for index in range(40)])
    assert alone.combine_chunks().equals(whole.combine_chunks()), (
        "a row has other last bits in another batch: a night scored again would differ"
    )
    odd = pa.concat_tables([predictor.predict(rows.slice(start, 13)) for start in range(0, 40, 13)])
    assert odd.slice(0, 40).combine_chunks().equals(whole.combine_chunks())


def test_no_rows(trained: Path) -> None:
    predictor = load_predictor(trained)
    nothing = predictor.predict(training_rows(5).slice(0, 0))
    assert nothing.num_rows == 0
    assert nothing.column_names == columns_of(trained)
    with pytest.raises(BadFeatures):
        predictor.predict(pa.table({"v__x": pa.array([], pa.float64())}))


def test_a_missing_or_retyped_feature_is_named(trained: Path) -> None:
    predictor = load_predictor(trained)
    rows = training_rows(5)
    with pytest.raises(BadFeatures, match=r"needs the feature 'v__place', which the rows lack \(1 of \d are missing"):
        predictor.predict(rows.drop_columns(["v__place"]))
    retyped = rows.set_column(
        rows.schema.get_field_index("v__weekday"), "v__weekday", rows["v__weekday"].cast(pa.string())
    )
    with pytest.raises(BadFeatures, match=r"the feature 'v__weekday' is string, the model was trained on int64"):
        predictor.predict(retyped)


def test_dictionary_strings_count_as_strings(trained: Path) -> None:
    predictor = load_predictor(trained)
    rows = training_rows(50)
    encoded = rows.set_column(rows.schema.get_field_index("v__place"), "v__place", rows["v__place"].dictionary_encode())
    assert predictor.predict(encoded).equals(predictor.predict(rows))


def test_a_changed_byte_is_refused_before_anything_is_loaded(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.predictors, "load_model_folder", lambda folder: pytest.fail("the files were parsed"))
    for name in json.loads((copied / "manifest.json").read_text())["artifacts"]:
        path = copied / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ArtifactMismatch, match=r"its bytes were changed. Nothing was loaded"):
            load_predictor(copied)
        path.write_bytes(whole)


def test_a_missing_and_an_extra_file_are_refused(copied: Path) -> None:
    extra = copied / "model" / "extra.bin"
    extra.write_bytes(b"x")
    with pytest.raises(ArtifactMismatch, match=r"holds model/extra.bin, which the manifest does not list"):
        load_predictor(copied)
    extra.unlink()
    (copied / "model" / "contract.json").unlink()
    with pytest.raises(ArtifactMismatch, match=r"contract.json is missing, though the manifest lists it"):
        load_predictor(copied)


def test_swapping_the_manifest_too_does_not_help(copied: Path) -> None:
    """Stored models lie in a folder named by their digest: whoever changes file and manifest must change the name as
    well.
    """
    manifest = json.loads((copied / "manifest.json").read_text())
    stored = copied.with_name(combined_digest(manifest["artifacts"]))
    copied.rename(stored)
    load_predictor(stored)
    contract = stored / "model" / "contract.json"
    edit(contract, as_of="2030-01-01")
    edit(stored / "manifest.json", artifacts=manifest["artifacts"] | {"model/contract.json": file_digest(contract)})
    with pytest.raises(ArtifactMismatch, match=r"wanted is .*it was changed. Nothing was loaded"):
        load_predictor(stored)
    with pytest.raises(ArtifactMismatch, match=r"wanted is 000000000000"):
        load_predictor(stored, artifact_digest="0" * 64)


def test_manifests_that_are_none(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(BadManifest, match=r"does not exist, so no training has finished there"):
        load_predictor(tmp_path)
    for text in ("{", "{}", '{"artifacts": {}}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(BadManifest):
            load_predictor(tmp_path)
    edit(copied / "manifest.json", artifacts={"model/contract.json": "0", "../../secret": "0"})
    with pytest.raises(BadManifest, match=r"lies outside its folder"):
        load_predictor(copied)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [({"family": "forest"}, UnknownFamily, "no model family 'forest'"), ({"format": 9}, BadModelFile, "has format 9")],
)
def test_contracts_of_another_kind(copied: Path, change: dict[str, Any], error: type[Exception], text: str) -> None:
    contract = copied / "model" / "contract.json"
    edit(contract, **change)
    artifacts = json.loads((copied / "manifest.json").read_text())["artifacts"]
    edit(copied / "manifest.json", artifacts=artifacts | {"model/contract.json": file_digest(contract)})
    with pytest.raises(error, match=text):
        load_predictor(copied)


def test_predictions_that_are_no_numbers_are_refused() -> None:
    class Broken(Predictor):
        def scores(self, matrix: Matrix) -> Scores:
            return np.where(matrix > 1, np.nan, 0.0)

    outputs = {"minutes": {"kind": "regression"}}
    features = {"v__x": FeatureSpec("float64")}
    contract = Contract("toy", "xgboost", features, outputs, ("minutes",), "0", "2024-01-01", 7, {})
    assert Broken(contract).predict(pa.table({"v__x": [0.0, 1.0]})).num_rows == 2
    with pytest.raises(PredictionsNotFinite, match=r"predicted 1 of 2 values of 'minutes' as NaN or infinite"):
        Broken(contract).predict(pa.table({"v__x": [0.0, 2.0]}))


def test_a_feature_of_another_kind_is_refused() -> None:
    contract = Contract(
        "toy", "xgboost", {"v__t": FeatureSpec("timestamp")}, {}, ("minutes",), "0", "2024-01-01", 7, {}
    )
    with pytest.raises(BadFeatures, match=r"has type timestamp; a model takes string, int32, int64, float64, boolean"):
        contract.matrix(pa.table({"v__t": pa.array([0], pa.timestamp("us"))}))


def test_beyond_float32_counts_as_missing() -> None:
    contract = Contract("toy", "xgboost", {"v__x": FeatureSpec("float64")}, {}, ("minutes",), "0", "2024-01-01", 7, {})
    matrix = contract.matrix(pa.table({"v__x": [1e300, -1e300, np.inf, 2.5]}))
    assert np.isnan(matrix[:3, 0]).all()
    assert matrix[3, 0] == np.float32(2.5)


def test_the_largest_of_several_parts_is_shared_as_shapley_says() -> None:
    from itertools import permutations

    from serving.predictors.ecod import shares_of_largest

    parts = np.random.default_rng(1).uniform(0, 5, (20, 4))
    parts[0, 1] = parts[0, 2]
    wanted = np.zeros_like(parts)
    orders = list(permutations(range(4)))
    for order in orders:
        reached = np.maximum.accumulate(parts[:, order], axis=1)
        wanted[:, order] += np.diff(reached, prepend=0.0, axis=1) / len(orders)
    assert shares_of_largest(parts) == pytest.approx(wanted)

"""Anomalies: what is published of a row, which rows are flagged, what labels can judge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from lake.artifact import folder_digests
from serving.kinds.anomaly import Output
from serving.predictors import load_model_folder
from serving.predictors.anomaly import raw_anomaly, tail_share
from serving.predictors.contract import Contract, FeatureSpec, Matrix
from tests.training.jobs import training_rows, write_job
from training.__main__ import run
from training.trainers import Floats, Rows
from training.trainers.anomaly import fit_anomaly

SHARE = Output(share=0.1)
FEATURES = {name: FeatureSpec("float64") for name in ("v__x", "v__y", "v__empty")}
CONTRACT = Contract(
    model="toy",
    family="any",
    features=FEATURES,
    outputs={"odd": SHARE.model_dump(mode="json")},
    output_columns=tuple(SHARE.columns("odd")),
    training_set_digest="",
    as_of="2024-01-01",
    seed=1,
    params={},
)


def strangeness(matrix: Matrix) -> Floats:
    strange: Floats = np.abs(matrix[:, 0].astype(np.float64)) + np.abs(matrix[:, 1])
    return strange


def rows_of(count: int = 1000, seed: int = 1) -> Rows:
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(count, 3)).astype(np.float32)
    matrix[:, 2] = np.nan
    return Rows(matrix, np.zeros(count), (np.arange(count) // 50).astype(np.int32))


def contract_with(output: Output) -> Contract:
    return Contract(**{**CONTRACT.__dict__, "outputs": {"odd": output.model_dump(mode="json")}})


def test_a_stated_share_or_alarm_budget_of_validation_rows_is_flagged() -> None:
    rows = rows_of()
    strange = strangeness(rows.matrix)
    for output, flagged in ((SHARE, 100), (Output(alarms_per_night=3), 60), (Output(alarms_per_night=0.01), 0)):
        detail = fit_anomaly(contract_with(output), "odd", strange, rows, rows)
        assert (raw_anomaly(strangeness, rows.matrix, detail)[:, 1] > 0).sum() == flagged
    alike = fit_anomaly(CONTRACT, "odd", np.repeat([1.0, 2.0], 500), rows, rows)
    assert alike["threshold"] > 2, "a budget is kept, even where the strangest rows are alike"


def test_the_input_behind_a_flag_is_named_and_a_row_alone_is_as_among_others() -> None:
    rows = rows_of()
    detail = fit_anomaly(CONTRACT, "odd", strangeness(rows.matrix), rows, rows)
    assert detail["usual"][2] is None, "an input without any value is kept as such"
    matrix = np.array([[9, 0, np.nan], [0, -9, np.nan], [0.1, 0, np.nan], [99, 0, 5]], np.float32)
    raw = raw_anomaly(strangeness, matrix, detail)
    published = CONTRACT.published(raw)
    assert published.schema.names == list(SHARE.columns("odd"))
    assert published["odd_is_anomaly"].to_pylist() == [True, True, False, True]
    assert published["odd_type"].to_pylist() == ["v__x", "v__y", "none", "v__x"]
    assert published["odd_severity"].to_pylist() == ["critical", "critical", "low", "critical"]
    alone = np.concatenate([raw_anomaly(strangeness, matrix[i : i + 1], detail) for i in range(len(matrix))])
    assert alone.tobytes() == raw.tobytes()


def test_a_score_is_the_share_of_rows_that_are_less_strange_and_rises_beyond_them() -> None:
    rows = rows_of()
    strange = np.sort(strangeness(rows.matrix))
    scale = fit_anomaly(CONTRACT, "odd", strange, rows, rows)["scale"]
    assert tail_share(strange[[500, 899, 990]], scale) == pytest.approx([0.5, 0.9, 0.99], abs=0.005)
    beyond = tail_share(strange[-1] + np.array([0.0, 0.5, 1.0, 1e9]), scale)
    assert (np.diff(beyond) > 0).all()
    assert beyond[-1] == 1.0


@pytest.mark.parametrize(
    ("label", "night", "why"),
    [
        ([0, 0, 0], None, "none of 3 labelled rows was an anomaly"),
        ([1, 1], None, "all 2 labelled rows were anomalies"),
        ([1, 0, 0, 0], [0, 1, 2, 3], "anomalies came in 1 of 4 nights, 3 are needed"),
        ([1, 0, 1, 1], [0, 1, 2, 3], None),
        ([1, 0], None, None),
    ],
)
def test_labels_of_one_kind_or_of_too_few_nights_judge_nothing(
    label: list[int], night: list[int] | None, why: str | None
) -> None:
    assert SHARE.untold(np.array(label, float), None if night is None else np.array(night)) == why
    if why is not None and night is None:
        columns = {"odd": np.linspace(0, 1, len(label)), "odd_is_anomaly": np.zeros(len(label))}
        assert set(SHARE.evaluation("odd", np.array(label, float), columns)) == {"flagged", "rate"}
        measured = {one.check: one for one in SHARE.measurements("odd", np.array(label, float), columns)}
        assert measured["average_precision_loss"].reason == why
        assert measured["average_precision_loss"].status == "not_evaluated"
        assert measured["flagged"].value == 0.0


def test_a_flag_is_judged_beside_the_score() -> None:
    label = np.array([1.0, 0.0, 1.0, 0.0])
    columns = {"odd": np.array([0.9, 0.8, 0.7, 0.1]), "odd_is_anomaly": np.array([1.0, 1.0, 0.0, 0.0])}
    figures = SHARE.evaluation("odd", label, columns)
    assert (figures["precision"], figures["recall"], figures["flagged"]) == (0.5, 0.5, 0.5)
    assert figures["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert figures["average_precision_loss"] == pytest.approx(1 - figures["average_precision"])
    said = {
        one.check: one.reason for one in SHARE.measurements("odd", label, columns | {"odd_is_anomaly": np.zeros(4)})
    }
    assert said["precision"] == "no row was flagged"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "needs either `share`"),
        ({"share": 0.1, "alarms_per_night": 3}, "needs either `share`"),
        ({"share": 0.1, "severity": (0.9, 0.5, 0.99)}, "needs three rising shares"),
    ],
)
def test_a_budget_is_one_number_and_severities_rise(keys: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Output.model_validate(keys)


def test_what_is_no_score_or_no_severity_is_a_defect() -> None:
    rows = CONTRACT.published(np.array([[1.5, 0, -1, 0], [0.5, 0, -1, 0]]))
    rows = rows.set_column(3, "odd_severity", pa.array(["low", "mild"]))
    assert [defect.bad.to_pylist() for defect in SHARE.defects("odd", rows)] == [[True, False], [False, True]]


@pytest.mark.parametrize("family", ["isolation_forest", "ecod"])
def test_a_family_flags_the_share_of_validation_rows_and_never_sees_a_label(family: str, tmp_path: Path) -> None:
    rows = training_rows(600)
    entry = {"outputs": {"odd": {"kind": "anomaly", "above": 15, "share": 0.05}}, "trainer": {"family": family}}
    columns = list(SHARE.columns("odd"))
    folders = []
    for name, label in (("job", rows["label"]), ("again", pa.array(np.zeros(600)))):
        changed = rows.set_column(rows.schema.get_field_index("label"), "label", label)
        folders.append(write_job(tmp_path / name, family, rows=changed, entry=entry, output_columns=columns))
        run(folders[-1])
    first, second = (folder_digests(folder / "model", exclude=frozenset({"contract.json"})) for folder in folders)
    assert first == second
    metrics = [json.loads((folder / "manifest.json").read_text())["metrics"] for folder in folders]
    assert "odd/average_precision_loss" in metrics[0]
    assert set(metrics[1]) == {"odd/flagged", "odd/rate"}, "nothing is said of a window without an anomaly"
    model = load_model_folder(folders[0] / "model")
    validation = rows.filter(np.asarray(rows["split"]) == "validation")
    whole = model.predict(validation)
    assert 0 < np.asarray(whole["odd_is_anomaly"]).mean() <= 0.05
    alone = pa.concat_tables([model.predict(validation.slice(i, 1)) for i in range(0, len(validation), 7)])
    assert alone.equals(whole.take(pa.array(range(0, len(validation), 7))).combine_chunks()), "a row alone differs"

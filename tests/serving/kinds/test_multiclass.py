"""Classes: what is published of them, what is refused, and their truth from texts and from numbers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from serving.kinds.multiclass import Output
from serving.predictors.calibration import calibrated_classes, class_odds, softmax

TEXTS = Output(classes=("low", "High risk", "mid"))
NUMBERS = Output(classes=(30, 10, 20))
RAW = np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])


def published(output: Output, raw: np.ndarray = RAW) -> pa.Table:
    return pa.table({name: pa.array(values) for name, values in output.published("c", raw).items()})


def test_the_most_probable_class_is_published_with_the_probability_of_each() -> None:
    rows = published(TEXTS)
    assert rows.column_names == list(TEXTS.columns("c"))
    assert rows.column_names == ["c", "c_probability", "c_low", "c_high_risk", "c_mid"]
    assert rows["c"].to_pylist() == ["High risk", "low"], "of equal ones the first"
    assert rows["c_probability"].to_pylist() == [0.5, 0.4]
    assert published(NUMBERS)["c"].to_pylist() == [10, 30]
    assert published(NUMBERS)["c"].type == pa.int64()
    assert not any(defect.bad.to_pylist() == [True, True] for defect in TEXTS.defects("c", rows))


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("c_low", 1.2, "not probabilities"),
        ("c_probability", -0.1, "not probabilities"),
        ("c_low", 0.3, "do not add up to 1"),
        ("c", "other", "none of low, High risk, mid"),
    ],
)
def test_what_is_no_class_or_no_probability_is_a_defect(column: str, value: object, words: str) -> None:
    rows = published(TEXTS)
    changed = pa.array([value, rows[column][1].as_py()], rows[column].type)
    rows = rows.set_column(rows.column_names.index(column), column, changed)
    found = [defect for defect in TEXTS.defects("c", rows) if words in defect.what]
    assert any(defect.bad.to_pylist() == [True, False] for defect in found)


def test_truth_is_the_position_of_the_class() -> None:
    assert TEXTS.truth(np.array([2.0, 0.0])).tolist() == [2.0, 0.0]
    assert NUMBERS.truth(np.array([10.0, 20.0, 30.0])).tolist() == [1.0, 2.0, 0.0]
    assert NUMBERS.constant(np.array([10.0, 10.0, 30.0, 20.0]), "median") == [0.25, 0.5, 0.25]
    assert NUMBERS.baseline([0.25, 0.5, 0.25], 2, None).tolist() == [[0.25, 0.5, 0.25]] * 2


def test_a_class_without_a_row_teaches_nothing() -> None:
    assert NUMBERS.unlearnable(np.array([10.0, 30.0]), "training rows") == "none of 2 training rows is of class 20"
    assert NUMBERS.unlearnable(np.array([10.0, 30.0, 20.0]), "training rows") is None


def test_losses_accuracy_and_bias_by_hand() -> None:
    label = np.array([1.0, 2.0])
    assert TEXTS.row_losses(label, RAW) == pytest.approx([-np.log(0.5), -np.log(0.2)])
    measured = {one.check: one.value for one in TEXTS.measurements("c", label, dict(zip(COLUMNS, RAW.T, strict=True)))}
    assert measured["accuracy"] == 0.5
    assert measured["bias"] == pytest.approx(0.45 - 0.5)
    assert measured["macro_f1"] == pytest.approx((0 + 1 + 0) / 3, abs=1e-6)
    assert "macro_f1_loss" not in measured, "it says the same again where the gate does not judge by it"


def test_one_class_alone_is_told_from_no_other() -> None:
    measured = TEXTS.measurements("c", np.zeros(2), dict(zip(COLUMNS, RAW.T, strict=True)))
    (score,) = [one for one in measured if one.check == "macro_f1"]
    assert (score.value, score.status) == (None, "not_evaluated")
    assert score.reason == "all 2 rows came out as low, so no class is told from another"
    judged = Output.model_validate(TEXTS.model_dump() | {"gate": "macro_f1_loss"})
    both = {
        one.check: one for one in judged.measurements("c", np.array([1.0, 2.0]), dict(zip(COLUMNS, RAW.T, strict=True)))
    }
    assert both["macro_f1_loss"].value == pytest.approx(2 / 3, abs=1e-6)
    alone = {
        one.check: one.status for one in judged.measurements("c", np.zeros(2), dict(zip(COLUMNS, RAW.T, strict=True)))
    }
    assert alone["macro_f1_loss"] == "not_evaluated"


COLUMNS = TEXTS.judged_columns("c")


def test_calibrated_classes_add_up_to_one_even_where_all_are_impossible() -> None:
    odds = class_odds(softmax(np.array([[1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]])), 1e-9)
    line = {"method": "platt", "slope": 1.0, "intercept": 0.0}
    found = calibrated_classes(odds, [line] * 3)
    assert found.sum(axis=1) == pytest.approx([1.0, 1.0])
    assert found[1] == pytest.approx([1 / 3] * 3)
    never = {"method": "platt", "slope": 0.0, "intercept": -1e6}
    assert calibrated_classes(odds, [never] * 3)[0] == pytest.approx([1 / 3] * 3)

"""Rankings: what is published of them, what is refused, what a hit at each rank is worth."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from sklearn.metrics import ndcg_score

from serving.kinds.ranking import Output
from serving.metrics import row_metric
from serving.metrics.ranks import ranks

LIST = Output(k=3)
RAW = np.array([[7.0, 5.0, 9.0, 0.9, 0.5, 0.5], [5.0, 7.0, 8.0, 3.0, 2.0, -1.0]])
JUDGED = RAW[:, :3]


def published(raw: np.ndarray = RAW) -> pa.Table:
    return pa.table({name: pa.array(values) for name, values in LIST.published("item", raw).items()})


def judged_columns(judged: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(LIST.judged_columns("item"), judged.T, strict=True))


def test_items_are_published_best_first_with_the_score_of_each() -> None:
    rows = published()
    assert rows.column_names == list(LIST.columns("item"))
    assert rows.column_names == ["item", "item_2", "item_3", "item_score", "item_2_score", "item_3_score"]
    assert rows["item"].to_pylist() == [7, 5]
    assert rows["item"].type == pa.int64()
    assert rows["item_3_score"].to_pylist() == [0.5, -1.0]
    assert not any(any(defect.bad.to_pylist()) for defect in LIST.defects("item", rows))
    answer = LIST.answer("item", rows.slice(0, 1).to_pylist()[0], "area", "")
    assert (answer.value, answer.about) == ("7, 5, 9", "area, best first")
    assert LIST.drift_types("item") == {"item": "string", "item_score": "float64"}


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        (1, 7.0, "name an item twice"),
        (2, 5.0, "name an item twice"),
        (5, 0.6, "scores rise with the rank or are not finite"),
        (4, np.nan, "scores rise with the rank or are not finite"),
    ],
)
def test_a_list_that_is_none_is_a_defect(column: int, value: float, words: str) -> None:
    raw = RAW.copy()
    raw[0, column] = value
    (bad,) = [defect for defect in LIST.defects("item", published(raw)) if words in defect.what]
    assert bad.bad.to_pylist() == [True, False]


def test_the_value_of_a_hit_falls_with_its_rank_as_published() -> None:
    label = np.array([7.0, 5.0, 9.0, 4.0])
    lists = np.tile(JUDGED[0], (4, 1))
    assert ranks(label, lists).tolist() == [1, 2, 3, np.inf]
    assert row_metric("miss_rate").row_losses(label, lists).tolist() == [0, 0, 0, 1]
    assert row_metric("rank_loss").row_losses(label, lists) == pytest.approx([0, 1 - 2**-0.25, 1 - 2**-0.5, 1])
    assert row_metric("rank_loss").row_losses(np.array([5.0]), np.arange(1.0, 9.0)[None])[0] == 0.5, "half at rank 5"
    for place, wanted in enumerate(label[:3]):
        relevance = (lists[:1] == wanted).astype(float)
        known = ndcg_score(relevance, np.array([[3.0, 2.0, 1.0]]))
        assert 1 - row_metric("ndcg_loss").row_losses(label, lists)[place] == pytest.approx(known)
    for metric in LIST.measured:
        losses = row_metric(metric).row_losses(label, lists)
        assert row_metric(metric).value(label, lists) == pytest.approx(losses.mean())
        assert (np.diff(losses) >= 0).all()


def test_figures_and_checks_of_a_night() -> None:
    label = np.array([5.0, 5.0])
    figures = LIST.evaluation("item", label, judged_columns(JUDGED))
    assert figures["recall_at_1"] == 0.5
    assert figures["ndcg_at_k"] == pytest.approx((1 / np.log2(3) + 1) / 2)
    assert set(figures) == set(LIST.figure_words())
    checks = {one.check: one.value for one in LIST.measurements("item", label, judged_columns(JUDGED))}
    assert (checks["recall_at_k"], checks["recall_at_1"], checks["miss_rate"]) == (1.0, 0.5, 0.0)
    assert {LIST.gate, *LIST.headlines} <= set(checks)
    assert LIST.bias(label, JUDGED) is None


def test_the_baseline_lists_what_came_most_often() -> None:
    label = np.array([4.0, 9.0, 9.0, 2.0, 4.0, 9.0, 3.0])
    assert LIST.constant(label, "median") == [9.0, 4.0, 2.0], "of equally frequent items the lower number first"
    stored = LIST.stored_constant({"rates": {"item": LIST.rate(label)}}, "item", "median")
    assert stored == LIST.constant(label, None)
    assert LIST.stored_constant({}, "item", "median") is None
    beside = LIST.baseline(stored, 2, None)
    assert LIST.row_losses(np.array([9.0, 1.0]), beside).tolist() == [0, 1]
    (hits,), notes = LIST.drawings("item", label, np.tile(JUDGED[0], (7, 1)), LIST.baseline(stored, 7, None), None)
    assert (hits.arguments["longest"], notes) == (3, [])
    assert hits.arguments["baseline"].tolist() == [2, 1, 1, 3, 2, 1, np.inf]


def test_items_are_whole_numbers_and_more_than_one() -> None:
    assert LIST.label_problem("area", "int32") is None
    assert "needs the whole number of an item" in str(LIST.label_problem("area", "float64"))
    assert "`values`" in str(LIST.label_problem("area", "string"))
    assert LIST.unlearnable(np.array([4.0, 4.0]), "training rows") == "all 2 training rows came out as the item 4"
    assert LIST.unlearnable(np.array([4.0, 5.0]), "training rows") is None
    with pytest.raises(ValidationError):
        Output(k=0)

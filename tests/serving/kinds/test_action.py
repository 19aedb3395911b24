"""Decisions: what is published of them, what is refused, and what a decision cost beside the baseline's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from serving.kinds.action import Output
from serving.metrics import row_metric

PLAN = Output(decisions=2, outcomes=(-10.0, 0.0, 20.0), unit="l", decision_unit="km/h")
# Cost, the baseline's, infeasible, two speeds, costs if −10, 0 or 20 comes, and the baseline's.
RAW = np.array(
    [
        [1.8, 2.0, 0.0, 50.0, 60.0, 1.0, 2.0, 6.0, 2.0, 2.0, 4.0],
        [3.0, 3.0, 1.0, 90.0, 80.0, 2.0, 3.0, 4.0, 2.0, 3.0, 4.0],
    ]
)


def published(raw: np.ndarray = RAW) -> pa.Table:
    return pa.table({name: pa.array(values) for name, values in PLAN.published("fuel", raw).items()})


def columns(rows: pa.Table) -> dict[str, Any]:
    return {name: np.asarray(rows[name], dtype=np.float64) for name in PLAN.judged_columns("fuel")}


def test_decisions_are_published_with_what_they_cost_and_what_the_baseline_would() -> None:
    rows = published()
    assert rows.column_names == list(PLAN.columns("fuel")) == list(PLAN.raw_columns("fuel"))
    assert rows.column_names[:5] == ["fuel", "fuel_baseline", "fuel_infeasible", "fuel_action_1", "fuel_action_2"]
    assert rows.column_names[5:] == [
        *(f"fuel_if_{n}" for n in (1, 2, 3)),
        *(f"fuel_baseline_if_{n}" for n in (1, 2, 3)),
    ]
    assert rows["fuel_infeasible"].type == pa.int64()
    assert not any(any(defect.bad.to_pylist()) for defect in PLAN.defects("fuel", rows))
    units = PLAN.units("fuel", "m/s")
    assert (units["fuel"], units["fuel_baseline_if_3"], units["fuel_action_2"]) == ("l", "l", "km/h")
    assert "fuel_infeasible" not in units
    assert set(PLAN.drift_types("fuel")) == {"fuel", "fuel_baseline", "fuel_action_1"}


def test_a_page_shows_the_decisions_in_order_and_says_where_the_limits_cannot_be_kept() -> None:
    first, second = (PLAN.answer("fuel", row, "headwind", "m/s") for row in published().to_pylist())
    assert (first.value, first.about) == ("50, 60", "decisions in km/h, in order")
    assert first.beside == {"expected cost": 1.8, "expected cost of the baseline": 2.0}
    assert second.about.endswith("; the limits cannot be kept")


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [(0, 0.0, "cost not above zero"), (9, -1.0, "cost not above zero"), (7, np.nan, "cost"), (4, np.inf, "no finite")],
)
def test_what_is_no_decision_or_no_cost_is_a_defect(column: int, value: float, words: str) -> None:
    raw = RAW.copy()
    raw[0, column] = value
    (bad,) = [defect for defect in PLAN.defects("fuel", published(raw)) if any(defect.bad.to_pylist())]
    assert words in bad.what
    assert bad.bad.to_pylist() == [True, False]


def test_costs_lie_on_the_line_between_two_outcomes_and_end_with_the_last() -> None:
    label = np.array([-10.0, -5.0, 0.0, 10.0, 20.0, 99.0, -99.0])
    rows = published(np.tile(RAW[0], (7, 1)))
    judged = PLAN.judged("fuel", columns(rows))
    losses = PLAN.row_losses(label, judged)
    assert losses == pytest.approx([0.5, 1.5 / 2.0, 1.0, 4.0 / 3.0, 1.5, 1.5, 0.5])
    assert row_metric("relative_cost").value(PLAN.truth(label), judged) == pytest.approx(losses.mean())


def test_the_baseline_costs_itself_whatever_comes() -> None:
    label = np.array([-10.0, 3.0, 50.0])
    assert PLAN.stored_constant({}, "fuel", "median") == PLAN.constant(label, None)
    beside = PLAN.baseline(PLAN.constant(label, None), 3, None)
    assert PLAN.row_losses(label, beside).tolist() == [1, 1, 1]


def test_figures_and_checks_of_a_night() -> None:
    label = np.array([-10.0, 10.0])
    said = columns(published())
    figures = PLAN.evaluation("fuel", label, said)
    assert set(figures) == set(PLAN.figure_words())
    assert figures["relative_cost"] == pytest.approx((0.5 + 1.0) / 2)
    assert figures["saving"] == pytest.approx(1 - (1.0 + 3.5) / (2.0 + 3.5)), "of all litres, not of the mean row"
    assert (figures["infeasible"], figures["dearer"]) == (0.5, 0.0)
    checks = {one.check: one for one in PLAN.measurements("fuel", label, said)}
    assert {PLAN.gate, *PLAN.headlines} <= set(checks)
    assert checks["infeasible"].status == "warning"
    assert checks["infeasible"].reason == "no decisions keep to the limits of 1 of 2 rows"
    feasible = said | {"fuel_infeasible": np.zeros(2)}
    assert {one.status for one in PLAN.measurements("fuel", label, feasible)} == {"ok"}
    (saved,), notes = PLAN.drawings("fuel", label, PLAN.judged("fuel", said), np.ones((2, 6)), "m/s")
    assert (saved.arguments["saved"].tolist(), notes) == ([0.5, 0.0], [])
    assert PLAN.bias(label, PLAN.judged("fuel", said)) is None


@pytest.mark.parametrize("outcomes", [(1.0,), (1.0, 1.0), (2.0, 1.0)])
def test_outcomes_rise(outcomes: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        Output(decisions=1, outcomes=outcomes)

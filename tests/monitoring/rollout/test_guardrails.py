from __future__ import annotations

import math
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from monitoring.rollout import guardrails
from monitoring.rollout.guardrails import ShiftLimit

NUMBERS = pa.array(np.random.default_rng(0).normal(10.0, 3.0, 1_000))


def _shifted(by: float) -> pa.Array:
    return pa.array(NUMBERS.to_numpy() + by)


def test_an_output_that_is_not_finite_or_missing_stops() -> None:
    good = guardrails.finite_outputs("delay", NUMBERS, rows=1_000)
    assert (good.status, good.value, good.limit) == ("ok", 0.0, 0.0)
    bad = guardrails.finite_outputs("delay", pa.array([1.0, None, math.nan, math.inf]), rows=6)
    assert (bad.status, bad.value) == ("breached", 5.0)
    assert bad.explanation == "5 of 6 rows have no finite delay of the challenger."
    assert guardrails.finite_outputs("fault", pa.array(["a", None]), rows=2).value == 1.0
    assert guardrails.finite_outputs("fault", pa.array(["a", "b"]), rows=2).status == "ok"
    assert guardrails.finite_outputs("delay", pa.array([], pa.float64()), rows=0).status == "not_evaluated"


def test_outputs_far_outside_what_the_gate_saw_stop() -> None:
    def judged(values: list[float], lowest: float | None = 0.0) -> guardrails.Guardrail:
        return guardrails.within_gate_range("delay", pa.array(values), lowest=lowest, highest=100.0, unit="minutes")

    assert judged([-24.0, 124.0, math.nan]).status == "ok"
    bad = judged([-24.0, 300.0, -90.0, 50.0])
    assert (bad.status, bad.value, bad.limit) == ("breached", 0.5, guardrails.SHARE_OUTSIDE)
    assert bad.explanation == (
        "2 of 4 rows have a delay outside -25 to 125 minutes, the gate's range with 25 % slack; the farthest is 300. "
        "0.1 % are tolerated."
    )
    assert judged([50.0] * 999 + [300.0]).status == "ok"  # a share of 0.001 is tolerated
    assert judged([50.0], lowest=None).status == "not_evaluated"
    assert judged([math.nan]).status == "not_evaluated"


def test_the_shift_of_numbers_is_that_of_kolmogorov_and_smirnov() -> None:
    other = np.random.default_rng(1).normal(11.0, 3.0, 700)
    expected = stats.ks_2samp(NUMBERS.to_numpy(), other).statistic
    assert guardrails.shift(NUMBERS, pa.array(other)) == pytest.approx(expected)
    assert guardrails.shift(NUMBERS, NUMBERS) == 0.0
    assert guardrails.shift(NUMBERS, pa.array([1.0, None])) is None


def test_the_shift_of_classes_is_half_the_sum_of_differences_of_shares() -> None:
    first, second = pa.array(["a", "a", "b", "c"]), pa.array(["a", "b", "b", "d", None])
    assert guardrails.shift(first, second) == pytest.approx(0.5)
    assert guardrails.shift(first, first) == 0.0


def test_what_versions_lie_apart_is_usual() -> None:
    limit = guardrails.limit_from_predecessor([0.1, None, 0.12, 0.1, 0.1, 0.9, *[0.1] * 5, 0.2])
    assert limit is not None
    assert limit.value == pytest.approx(0.3)
    assert limit.basis == "1.5 times what 90 % of 11 nights kept between the champion and its predecessor"
    assert guardrails.limit_from_predecessor([0.1] * 4 + [None]) is None


def test_a_shift_stops_when_it_stays_or_when_it_is_huge() -> None:
    def judged(*shifts: float | None) -> guardrails.Guardrail:
        return guardrails.prediction_shift("delay", shifts, ShiftLimit(0.2, "measurement"))

    assert [judged(*[0.3] * nights).status for nights in (1, 2, 3)] == ["ok", "ok", "breached"]
    assert [judged(*[0.1] * nights).limit for nights in (1, 2, 7, 30)] == pytest.approx([0.4, 0.3, 8 / 35, 8 / 35])
    assert judged(0.41).explanation == (
        "delay of the challenger is 0.41 away from the champion's distribution; up to 0.4 is usual, by measurement."
    )
    storm = judged(*[0.1] * 5, 0.9, 0.9)
    assert (storm.status, storm.value) == ("ok", 0.1)
    assert "in the median of 7 nights; up to 0.229 is usual" in storm.explanation
    healed = judged(*[0.9] * 4, *[0.1] * 7)
    assert (healed.status, healed.value) == ("ok", 0.1)
    assert judged(0.1, None).status == "not_evaluated"
    assert judged(None, 0.41).status == "breached"
    assert judged().status == "not_evaluated"
    assert guardrails.prediction_shift("delay", [0.9], None).status == "not_evaluated"


def test_halves_are_of_nights_since_those_differ_by_more_than_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    values = pa.array((random.normal(0.0, 1.0, 20)[:, None] + random.normal(0.0, 1.0, (20, 50))).ravel())
    nights = pa.array([date(2024, 1, 1) + timedelta(days=k) for k in range(20) for _ in range(50)])
    by_night, by_row = (guardrails.limit_from_halves(values, of, seed=3, resamples=60) for of in (nights, None))
    assert by_night is not None
    assert by_row is not None
    assert by_night.value > 2.0 * by_row.value
    assert by_night.basis == "2 times what 99 % of the halves of the champion's own nights keep"
    assert by_night == guardrails.limit_from_halves(values, nights, seed=3, resamples=60)
    assert guardrails.limit_from_halves(pa.array([1.0, 2.0, 3.0]), seed=3) is None
    monkeypatch.setattr(guardrails, "HALVES_HEADROOM", 1.0)
    bare = guardrails.limit_from_halves(values, nights, seed=3, resamples=60)
    assert bare is not None
    assert by_night.value == pytest.approx(2.0 * bare.value)


def test_equal_versions_stay_within_the_halves() -> None:
    random = np.random.default_rng(4)
    breaches = 0
    for _ in range(40):
        champion, challenger = (pa.array(random.normal(0.0, 1.0, 200)) for _ in range(2))
        limit = guardrails.limit_from_halves(champion, seed=5, resamples=50)
        shifts = [guardrails.shift(champion, challenger)]
        breaches += guardrails.prediction_shift("delay", shifts, limit).status == "breached"
    assert breaches <= 1


def test_intervals_may_be_neither_much_wider_nor_much_narrower() -> None:
    def judged(width: float) -> guardrails.Guardrail:
        return guardrails.interval_width("delay", (NUMBERS, _shifted(10.0)), (NUMBERS, _shifted(width)))

    assert [judged(width).status for width in (10.0, 14.0, 16.0, 7.0, 6.0)] == [
        "ok",
        "ok",
        "breached",
        "ok",
        "breached",
    ]
    assert judged(20.0).value == pytest.approx(2.0)
    assert judged(0.0).value == math.inf
    assert judged(-1.0).explanation == "1,000 intervals of delay end below their beginning."
    none = pa.array([None, None], pa.float64())
    assert guardrails.interval_width("delay", (none, none), (none, none)).status == "not_evaluated"


def test_a_challenger_that_is_slow_or_large_stops() -> None:
    assert guardrails.milliseconds_a_row(4.0, 11.0, rows=1_000).status == "ok"
    slow = guardrails.milliseconds_a_row(4.0, 13.0, rows=1_000)
    assert (slow.status, slow.value, slow.limit) == ("breached", 13.0, 12.0)
    assert guardrails.milliseconds_a_row(0.01, 4.0, rows=30).status == "ok"  # both have but loaded a model
    assert guardrails.milliseconds_a_row(None, 4.0, rows=30).status == "not_evaluated"
    assert guardrails.memory(500.0, 900.0).status == "ok"
    assert guardrails.memory(500.0, 1_100.0).status == "breached"
    assert guardrails.memory(500.0, 900.0, available_mib=800.0).status == "breached"
    assert guardrails.memory(500.0, None).status == "not_evaluated"


def test_a_feature_that_is_not_there_stops() -> None:
    usual = {"distance": 0.1}
    assert guardrails.features_present({"distance": 0.25, "wind": 0.0}, usual).status == "ok"
    bad = guardrails.features_present({"distance": 0.5, "wind": None}, usual)
    assert (bad.status, bad.value) == ("breached", 2.0)
    assert bad.explanation == "wind is not there; distance is null in 50 % of the rows, at training in 10 %."
    assert guardrails.features_present({}, usual).status == "not_evaluated"


def test_the_rows_that_disagree_are_counted() -> None:
    values = NUMBERS.to_numpy().copy()
    values[:100] += 5.5
    values[100] = math.nan
    assert guardrails.disagreeing(NUMBERS, pa.array(values), beyond=5.0) == 0.101
    assert guardrails.disagreeing(NUMBERS, pa.array(values), beyond=6.0) == 0.001
    assert guardrails.disagreeing(NUMBERS, NUMBERS, beyond=None) is None
    with pytest.raises(ValueError, match="1 outputs of the challenger cannot be compared with 1000 rows"):
        guardrails.disagreeing(NUMBERS, pa.array([1.0]), beyond=5.0)
    first, second = pa.array(["a", "b", None, None]), pa.array(["a", "c", "c", None])
    assert guardrails.disagreeing(first, second, beyond=None) == 0.5
    empty = pa.array([], pa.float64())
    assert guardrails.disagreeing(empty, empty, beyond=1.0) is None


def test_versions_that_disagree_on_too_many_rows_stop() -> None:
    def judged(disagreeing: int, **given: Any) -> guardrails.Guardrail:
        values = NUMBERS.to_numpy().copy()
        values[:disagreeing] += 5.5
        return guardrails.disagreement("delay", NUMBERS, pa.array(values), beyond=5.0, unit="minutes", **given)

    assert judged(100).status == "ok"
    bad = judged(101)
    assert (bad.status, bad.value, bad.limit) == ("breached", 0.101, 0.1)
    assert bad.explanation == (
        "delay of champion and challenger differs by more than 5 minutes in 10.1 % of the rows; up to 10 % are "
        "tolerated."
    )
    assert [judged(140, earlier=[0.14] * n).status for n in (0, 1, 2)] == ["ok", "ok", "breached"]
    assert judged(900, earlier=[0.01] * 4).value == 0.01
    assert judged(140, usual=ShiftLimit(0.15, "")).status == "ok"
    assert judged(140, usual=ShiftLimit(0.01, "")).status == "breached"
    none = guardrails.disagreement("delay", NUMBERS, NUMBERS, beyond=None)
    assert (none.status, none.explanation) == (
        "not_evaluated",
        "The catalog names no `disagreement`, so delay was not compared row by row.",
    )
    first, second = pa.array(["a", "b"]), pa.array(["a", "c"])
    text = guardrails.disagreement("fault", first, second, beyond=None).explanation
    assert text.startswith("fault of champion and challenger differs in the class in 50 % of the rows")


# Of issues 426 and 780 of spinnaker/kayenta: its judge, Mann-Whitney's test at 98 %, passes all of them.
SPARSE = ([0.0] * 6, [0.0, 1.0, 2.0, 1.0, 0.0, 0.0])
VARIABILITY = (
    [1.0, 100.0, 4.0, 101.0, 5.0, 102.0, 6.0, 103.0, 7.0, 104.0, 8.0, 105.0, 9.0, 106.0, 17.0],
    [10.0, 10.1, 10.2, 10.3, 10.4, 10.5, 10.6, 17.0, 17.1, 17.2, 17.3, 17.4, 17.5, 17.6, 17.7],
)


@pytest.mark.parametrize(
    ("control", "experiment"), [SPARSE, VARIABILITY, VARIABILITY[::-1]], ids=["sparse", "variability", "reversed"]
)
def test_a_canary_that_a_test_of_ranks_passes_is_stopped(control: list[float], experiment: list[float]) -> None:
    assert stats.mannwhitneyu(control, experiment).pvalue > 0.02
    champion, challenger = pa.array(control), pa.array(experiment)
    assert guardrails.disagreement("errors", champion, challenger, beyond=0.5).status == "breached"
    # Where earlier nights count, too, the first of them suffices.
    assert guardrails.disagreement("errors", champion, challenger, beyond=0.5, earlier=[]).status == "breached"


def test_a_sparse_canary_is_also_a_shift() -> None:
    champion, challenger = (pa.array(values) for values in SPARSE)
    limit = guardrails.limit_from_halves(champion, seed=1)
    assert limit == ShiftLimit(0.0, "2 times what 99 % of the halves of the champion's own rows keep")
    shifts = [guardrails.shift(champion, challenger)]
    assert guardrails.prediction_shift("errors", shifts, limit).status == "breached"


def test_a_canary_whose_values_explode_leaves_the_gate_s_range() -> None:
    control, experiment = VARIABILITY[::-1]
    values = pa.array(experiment)
    judged = guardrails.within_gate_range("errors", values, lowest=min(control), highest=max(control))
    assert judged.status == "breached"


def test_a_canary_that_is_broken_at_first_and_heals_is_stopped_on_its_first_night() -> None:
    steady = np.full(48, 10.0) + np.random.default_rng(6).normal(0.0, 0.5, 48)
    healing = steady + np.concatenate([np.linspace(90.0, 0.0, 8), np.zeros(40)])
    assert stats.mannwhitneyu(steady, healing).pvalue > 0.02
    judged = guardrails.disagreement("errors", pa.array(steady), pa.array(healing), beyond=2.0)
    assert judged.status == "breached"

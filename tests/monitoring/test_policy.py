"""The retraining policy as a pure function: what asks, what never does, and a year of it."""

from __future__ import annotations

import dataclasses
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.catalog.policy import DriftPolicy, PerformancePolicy, Retrain
from monitoring.policy import DriftedColumn, DriftNight, History, OutputNight, RetrainDecision, decide

START = date(2024, 1, 1)
AS_OF = date(2024, 3, 1)


def retrain(
    *, every: int | None = 28, cooldown: int = 7, share: float = 0.3, worse_by: float = 0.1, nights: int = 3
) -> Retrain:
    return Retrain(
        every=None if every is None else timedelta(days=every),
        cooldown=timedelta(days=cooldown),
        drift=DriftPolicy(share=share),
        performance=PerformancePolicy(worse_by=worse_by, nights=nights),
    )


def outputs(*ratios: float | None, metric: str = "mae", version: int = 1, last: date = AS_OF) -> list[OutputNight]:
    """One mature night for each ratio, the last one `last`."""
    first = last - timedelta(days=len(ratios) - 1)
    judged = [(ratio, None, 0) if ratio is None else (ratio, 1.0, 100) for ratio in ratios]
    return [OutputNight(first + timedelta(days=i), "y", metric, version, *night) for i, night in enumerate(judged)]


def ask(
    history: History, policy: Retrain | None = None, *, last: date | None = AS_OF - timedelta(days=10), **values
) -> RetrainDecision:
    arguments = {
        "as_of": AS_OF,
        "last_training_as_of": last,
        "gate_ratios": {"y": 0.8},
        "champion_version": 1,
        "newest_night": AS_OF,
    } | values
    return decide(history, policy or retrain(), **arguments)


def test_a_quiet_night_says_why_with_numbers():
    found = ask(History([DriftNight(AS_OF, 0.12, 50)], outputs(0.7, 0.8, 0.75)))
    assert (found.requested, found.trigger) == (False, "none")
    assert found.reason == (
        "performance: y mae over the baseline's 0.750 in 3 nights, 0.800 at the gate, 0.880 allowed; "
        "drift: 12% of 50 columns beyond their limit lies below 30%; calendar: next training due 2024-03-19"
    )


def test_drift_asks_at_its_share():
    found = ask(History([DriftNight(AS_OF, 0.3, 50, "15 of 50 columns …")]))
    assert (found.requested, found.trigger) == (True, "drift")
    assert found.reason == "drift: 30% of 50 columns beyond their limit reaches 30%"
    assert found.evidence["drift"]["worst"] is None


def test_the_reason_names_the_worst_column_as_the_note_of_the_run_will():
    worst = DriftedColumn("carrier_daily__dep_delay_7d", "PSI", 0.4123, 0.2)
    found = ask(History([DriftNight(AS_OF, 0.3, 50, "15 of 50 columns …", worst)]))
    assert found.reason.startswith("drift of carrier_daily__dep_delay_7d (PSI 0.41): 30% of 50 columns")
    assert found.evidence["drift"]["worst"] == {
        "column": "carrier_daily__dep_delay_7d",
        "statistic": "PSI",
        "value": 0.4123,
        "limit": 0.2,
    }
    quiet = ask(History([DriftNight(AS_OF, 0.1, 50, "5 of 50 columns …", worst)]))
    assert "drift: 10% of 50 columns beyond their limit lies below 30%" in quiet.reason
    assert found.evidence["drift"]["share"] == 0.3
    assert found.evidence["performance"]["due"] is None


def test_performance_is_relative_to_the_gate_and_comes_first():
    history = History([DriftNight(AS_OF, 0.9, 50)], outputs(0.9, 0.9, 0.9))
    found = ask(history)
    assert (found.requested, found.trigger) == (True, "performance")
    assert "0.900 in 3 nights, 0.800 at the gate, 0.880 allowed; drift: 90%" in found.reason
    assert not ask(dataclasses.replace(history, drift=()), gate_ratios={"y": 0.9}).requested
    assert not ask(dataclasses.replace(history, drift=()), retrain(worse_by=0.2)).requested


@pytest.mark.parametrize(
    ("performance", "says"),
    [
        (outputs(2.0, 2.0), "2 of 3 mature nights of version 1"),
        (outputs(2.0, None, None), "y was judged in 1 of 3 nights"),
        (outputs(2.0, 2.0, 2.0, version=2), "0 of 3 mature nights of version 1"),
        (outputs(2.0, 2.0, 2.0, last=AS_OF + timedelta(days=2)), "1 of 3 mature nights of version 1"),
    ],
)
def test_too_little_evidence_of_performance_never_asks(performance, says):
    found = ask(History([], performance))
    assert not found.requested
    assert says in found.reason
    assert found.evidence["performance"]["due"] is None


def test_a_gate_without_ratio_never_asks():
    found = ask(History([], outputs(9.0, 9.0, 9.0)), gate_ratios={})
    assert not found.requested
    assert "the gate left no ratio for y" in found.reason


def test_squares_are_pooled_for_rmse():
    found = ask(History([], outputs(0.1, 0.1, 1.6, metric="rmse")))
    assert found.evidence["performance"]["outputs"]["y"]["ratio"] == pytest.approx((2.58 / 3) ** 0.5, abs=1e-6)


def test_calendar_asks_when_it_is_due():
    assert not ask(History(), last=AS_OF - timedelta(days=27)).requested
    found = ask(History(), last=AS_OF - timedelta(days=28))
    assert (found.trigger, found.reason) == (
        "calendar",
        "calendar: 28 days since the training as of 2024-02-02, one is due every 28",
    )
    assert ask(History(), last=None).trigger == "calendar"
    assert not ask(History(), retrain(every=None), last=None).requested


def test_only_the_newest_night_asks():
    found = ask(History([DriftNight(AS_OF, 1.0, 5)]), newest_night=AS_OF + timedelta(days=1))
    assert not found.requested
    assert found.reason.startswith(
        "2024-03-01 is not the newest scored night (2024-03-02 is), so it asks for nothing; drift: 100%"
    )


def test_while_a_rollout_goes_on_neither_drift_nor_errors_ask():
    worse, drifted = outputs(1.2, 1.2, 1.2), [DriftNight(AS_OF, 1.0, 50)]
    for history, trigger in ((History(drifted), "drift"), (History((), worse), "performance")):
        assert ask(history).trigger == trigger
        held = ask(history, challenger_version=4)
        assert (held.requested, held.trigger) == (False, "none")
        assert held.reason.startswith(
            f"the rollout of version 4 goes on, during which only a person or the calendar asks, or else: {trigger}: "
        )
        assert held.evidence["rollout"] == {"challenger_version": 4, "holds_back": True}
    quiet = ask(History([DriftNight(AS_OF, 0.1, 50)]), challenger_version=4)
    assert quiet.reason == ask(History([DriftNight(AS_OF, 0.1, 50)])).reason
    assert quiet.evidence["rollout"]["holds_back"] is False
    assert "rollout" not in ask(History(drifted)).evidence


def test_the_calendar_asks_while_a_rollout_goes_on():
    late = AS_OF - timedelta(days=40)
    asked = ask(History([DriftNight(AS_OF, 1.0, 50)]), last=late, challenger_version=4)
    assert (asked.requested, asked.trigger) == (True, "calendar")
    assert "drift" not in asked.reason


def test_the_cooldown_counts_from_the_last_training():
    history = History([DriftNight(AS_OF, 1.0, 5)])
    found = ask(history, last=AS_OF - timedelta(days=6))
    assert (found.requested, found.trigger) == (False, "none")
    assert found.reason.startswith(
        "the cooldown of 7 days since the training as of 2024-02-24 lasts until 2024-03-02, or else: drift: 100%"
    )
    assert found.evidence["cooldown"]["holds_back"] is True
    assert ask(history, last=AS_OF - timedelta(days=7)).requested


shares = st.one_of(st.none(), st.floats(0, 1))
nights = st.lists(st.one_of(st.none(), st.floats(0.01, 10)), max_size=20)


@st.composite
def situations(draw):
    history = History(
        [DriftNight(AS_OF, draw(shares), draw(st.integers(1, 90)))],
        outputs(*draw(nights), version=draw(st.integers(1, 2))),
    )
    policy = retrain(
        every=draw(st.one_of(st.none(), st.integers(1, 60))),
        cooldown=draw(st.integers(1, 30)),
        share=draw(st.floats(0.01, 1)),
        worse_by=draw(st.floats(0.01, 2)),
        nights=draw(st.integers(1, 15)),
    )
    last = draw(st.one_of(st.none(), st.integers(1, 90)))
    values = {
        "last": None if last is None else AS_OF - timedelta(days=last),
        "gate_ratios": draw(st.one_of(st.just({}), st.fixed_dictionaries({"y": st.floats(0.1, 2)}))),
        "newest_night": AS_OF + timedelta(days=draw(st.sampled_from([0, 0, 0, 1]))),
    }
    return history, policy, values


@settings(max_examples=300, deadline=None)
@given(situations())
def test_deterministic_and_every_request_has_a_trigger_that_was_evaluated(situation):
    history, policy, values = situation
    found = ask(history, policy, **values)
    assert found == ask(history, policy, **values)
    assert found.requested == (found.trigger != "none")
    assert found.reason
    if found.requested:
        assert found.evidence[found.trigger]["due"] is True
        assert values["newest_night"] == AS_OF
        if values["last"] is not None:
            assert AS_OF - values["last"] >= policy.cooldown, "a request within the cooldown"


@settings(max_examples=200, deadline=None)
@given(situations())
def test_what_was_not_evaluated_never_asks(situation):
    _, policy, values = situation
    blank = History([DriftNight(AS_OF, None, 0, "nothing was scored in this night")], outputs(None, None, None, None))
    assert ask(blank, policy, **values).trigger in {"none", "calendar"}
    assert not ask(blank, policy.model_copy(update={"every": None}), **values).requested


@settings(max_examples=300, deadline=None)
@given(situations(), st.floats(0, 1), st.floats(0, 1))
def test_more_drift_never_takes_a_request_back(situation, a, b):
    history, policy, values = situation
    low, high = (dataclasses.replace(history, drift=[DriftNight(AS_OF, share, 50)]) for share in sorted((a, b)))
    assert ask(low, policy, **values).requested <= ask(high, policy, **values).requested


@settings(max_examples=200, deadline=None)
@given(situations(), st.integers(1, 400))
def test_later_nights_are_not_looked_at(situation, days):
    history, policy, values = situation
    later = AS_OF + timedelta(days=days)
    extended = History(
        [*history.drift, DriftNight(later, 1.0, 9)],
        [*history.performance, OutputNight(later, "y", "mae", 1, 99.0, 1.0, 500)],
    )
    assert ask(extended, policy, **values) == ask(history, policy, **values)


def test_a_year_is_replayed_in_seconds_with_a_training_every_four_weeks():
    policy = retrain(nights=14)
    year = [START + timedelta(days=i) for i in range(366)]
    drifts = [DriftNight(day, 0.1, 50) for day in year]
    judged = [OutputNight(day, name, "mae", 1, 0.8, 1.0, 900) for day in year for name in ("y", "z")]
    last, trainings = START, []
    for day in year:
        known = History(drifts, judged)
        found = decide(
            known,
            policy,
            as_of=day,
            last_training_as_of=last,
            gate_ratios={"y": 0.8, "z": 0.8},
            champion_version=1,
            newest_night=day,
        )
        if found.requested:
            assert found.trigger == "calendar"
            trainings.append(day)
            last = day
    assert trainings == [START + timedelta(days=28 * i) for i in range(1, 14)]

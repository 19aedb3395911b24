"""Retraining requests as they are stored: one decision a night, persons beside it, reruns that change nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from config.calendar import ONE_DAY, Interval
from lake.lake import Lake
from lake.lineage import PartitionNotReady
from lake.rollouts import RolloutLine
from monitoring.drift import drift
from monitoring.performance import performance
from monitoring.retraining_requests import (
    NotRequested,
    ReasonMissing,
    check_requested,
    decide_retraining,
    last_training,
    newest_decided,
    read_requests,
    request_retraining,
    requests_table,
)
from tests import toy
from tests.monitoring import scenario
from tests.monitoring.scenario import AS_OF, NIGHT, SCORED
from tests.serving.scenario import MODEL

LAST = SCORED.last


def measured(lake: Lake, interval: Interval = SCORED) -> None:
    drift(lake, MODEL, interval, run_id="t")
    performance(lake, MODEL, interval, run_id="t")


def drifted(lake: Lake, night=LAST) -> None:
    """Score everything, with features of that night far from any known."""
    scenario.decide_gate(lake, as_of=AS_OF - timedelta(days=20))
    scenario.with_features(lake, night, minutes_7d=lambda old: old + 400, rides_7d=lambda old: old + 400)
    scenario.score_all(lake)
    measured(lake)


def without_cooldown(monkeypatch) -> None:
    monkeypatch.setattr("monitoring.retraining_requests.last_training", lambda *_, **__: AS_OF - timedelta(days=9))


def test_the_newest_night_asks_with_its_evidence(fresh: Lake, monkeypatch):
    without_cooldown(monkeypatch)
    drifted(fresh)
    result = decide_retraining(fresh, MODEL, LAST, run_id="t")
    assert result.committed == 1
    assert result.details["requested"] is True
    assert result.details["trigger"] == "drift"
    worst = result.details["evidence"]["drift"]["worst"]
    assert worst["statistic"] == "PSI"
    assert worst["value"] > worst["limit"] > 0
    text = f"drift of {worst['column']} (PSI {worst['value']:.2f}): 100% of 2 columns beyond their limit reaches 30%"
    assert result.details["reason"].startswith(text)
    assert result.details["evidence"]["drift"]["share"] == 1.0
    again = decide_retraining(fresh, MODEL, LAST, run_id="again")
    assert (again.committed, again.details) == (0, result.details)
    row = read_requests(fresh, MODEL).to_pylist()[-1]
    assert (row["actor"], row["requested"], row["data_date"]) == ("policy", True, LAST)
    publication = fresh.publications.current(requests_table(fresh, MODEL))[LAST]
    assert {item.table for item in publication.inputs} == {f"{MODEL}/metrics/drift", f"{MODEL}/metrics/performance"}
    assert newest_decided(fresh, MODEL) == LAST


def test_an_earlier_night_asks_for_nothing_and_keeps_its_decision(fresh: Lake, monkeypatch):
    without_cooldown(monkeypatch)
    drifted(fresh, NIGHT)
    result = decide_retraining(fresh, MODEL, NIGHT, run_id="t")
    assert result.details["requested"] is False
    assert result.details["reason"].startswith(f"{NIGHT} is not the newest scored night ({LAST} is)")
    scenario.decide_gate(fresh, ratio=0.1, as_of=AS_OF + ONE_DAY)
    assert decide_retraining(fresh, MODEL, NIGHT, run_id="again").committed == 0


def test_a_training_holds_the_next_nights_back_also_a_refused_one(fresh: Lake):
    drifted(fresh)
    assert last_training(fresh, MODEL, before=LAST) == AS_OF, "as of the promoted version"
    scenario.decide_gate(fresh, 2, as_of=LAST - timedelta(days=2), verdict="refuse")
    assert last_training(fresh, MODEL, before=LAST) == LAST - timedelta(days=2)
    assert last_training(fresh, MODEL, before=LAST - timedelta(days=2)) == AS_OF, (
        "a training of that night or later is none before it"
    )
    held = decide_retraining(fresh, MODEL, LAST, run_id="t").details
    assert held["requested"] is False
    assert held["reason"].startswith(
        f"the cooldown of 7 days since the training as of {LAST - timedelta(days=2)} lasts until"
    )
    assert held["evidence"]["cooldown"]["holds_back"] is True


def test_while_a_rollout_goes_on_drift_does_not_ask_and_a_person_may(fresh: Lake, monkeypatch):
    without_cooldown(monkeypatch)
    drifted(fresh)
    ledger = fresh.rollouts(MODEL)
    line = RolloutLine(
        MODEL, 7, "started", AS_OF, LAST, datetime(2024, 2, 1, tzinfo=UTC), "run", "a7", "e7", "better", settings="{}"
    )
    ledger.append(line, seen=ledger.read())
    held = decide_retraining(fresh, MODEL, LAST, run_id="t").details
    assert held["requested"] is False
    assert held["reason"].startswith(
        "the rollout of version 7 goes on, during which only a person or the calendar asks"
    )
    assert request_retraining(fresh, MODEL, LAST, by="ann", reason="new sensor", run_id="t")["trigger"] == "person"
    ledger.append(replace(line, kind="rolled_back", settings=""), seen=ledger.read())
    assert decide_retraining(fresh, MODEL, LAST, run_id="again").details["trigger"] == "drift"


def test_a_request_counts_as_training_while_it_runs(fresh: Lake, monkeypatch):
    without_cooldown(monkeypatch)
    drifted(fresh)
    decide_retraining(fresh, MODEL, LAST, run_id="t")
    monkeypatch.undo()
    assert last_training(fresh, MODEL, before=LAST + ONE_DAY) == LAST


def test_a_person_needs_a_reason_and_no_patience(night: Lake):
    for reason in ("", "   ", "x" * 401):
        with pytest.raises(ReasonMissing, match=r"asked for by ann with .* Say why in 1 to 400 characters"):
            request_retraining(night, MODEL, LAST, by="ann", reason=reason, run_id="t")
    measured(night)
    held = decide_retraining(night, MODEL, LAST, run_id="t").details
    assert held["requested"] is False
    evidence = request_retraining(night, MODEL, LAST, by="ann", reason=" new sensor ", run_id="t")
    assert (evidence["trigger"], evidence["by"], evidence["reason"]) == ("person", "ann", "new sensor")
    assert evidence["policy"] == held["evidence"]
    version = requests_table(night, MODEL).load().version()
    assert request_retraining(night, MODEL, LAST, by="ann", reason="new sensor", run_id="again") == evidence
    assert requests_table(night, MODEL).load().version() == version
    request_retraining(night, MODEL, LAST, by="bob", reason="me too", run_id="t")
    rows = [row for row in read_requests(night, MODEL).to_pylist() if row["data_date"] == LAST]
    assert [(row["actor"], row["by"], row["requested"]) for row in rows] == [
        ("person", "ann", True),
        ("person", "bob", True),
        ("policy", "policy", False),
    ]
    assert json.loads(rows[0]["evidence"]) == evidence
    assert decide_retraining(night, MODEL, LAST, run_id="again").committed == 0
    inputs = night.publications.current(requests_table(night, MODEL))[LAST].inputs
    assert {item.table for item in inputs} == {f"{MODEL}/metrics/drift", f"{MODEL}/metrics/performance"}, (
        "a person's request keeps the decision's inputs"
    )


def test_a_person_may_ask_before_anything_was_measured(promoted: Lake, tmp_path):
    lake = scenario.copy_of(promoted, tmp_path)
    assert newest_decided(lake, MODEL) is None
    assert request_retraining(lake, MODEL, AS_OF, by="make run", reason="first champion", run_id="t")["policy"] is None
    assert newest_decided(lake, MODEL) is None, "a person's request is no decision of the policy"


def test_nothing_is_decided_without_measurements(scored: Lake):
    with pytest.raises(
        PartitionNotReady,
        match=r"(?s)metrics/drift has no partition 2024-02-20.*The retraining decision of ride_minutes needs it",
    ):
        decide_retraining(scored, MODEL, LAST, run_id="t")


def test_performance_of_this_version_alone_is_held_against_its_gate(fresh: Lake, monkeypatch):
    from monitoring.retraining_requests import read_history

    monkeypatch.setattr("monitoring.retraining_requests.last_training", lambda *_, **__: AS_OF - timedelta(days=9))
    scenario.decide_gate(fresh)
    scenario.score_all(fresh)
    measured(fresh)
    versions = dict.fromkeys(SCORED, 1) | {NIGHT: 7}
    history = read_history(fresh, fresh.model(MODEL), LAST, versions)
    assert {n.version for n in history.performance if n.night == NIGHT} == {7}
    assert {n.output for n in history.performance} == {"ride_minutes", "long_probability"}
    assert max(n.night for n in history.performance) == LAST - timedelta(days=2)
    assert [n.night for n in history.drift] == [LAST]


def test_only_a_request_on_record_lets_an_event_train(toy_lake: Lake):
    with pytest.raises(NotRequested, match=f"as of {NIGHT}.*nothing is on record of that night"):
        check_requested(toy_lake, MODEL, NIGHT)
    refused = {"actor": "policy", "by": "policy", "requested": False, "trigger": "none", "reason": "all is well"}
    table = requests_table(toy_lake, MODEL)
    rows = pa.Table.from_pylist([{**refused, "evidence": "{}", "data_date": NIGHT}], schema=table.schema)
    toy.publish_rows(toy_lake, table, rows, Interval.of(NIGHT))
    with pytest.raises(NotRequested, match="the policy decided: all is well"):
        check_requested(toy_lake, MODEL, NIGHT)
    request_retraining(toy_lake, MODEL, NIGHT, by="ada", reason="because", run_id="r")
    check_requested(toy_lake, MODEL, NIGHT)
    with pytest.raises(NotRequested):
        check_requested(toy_lake, MODEL, NIGHT + ONE_DAY)

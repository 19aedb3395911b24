"""Retraining: every request with what it led to, what it gained, and forms by role."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.calendar import ONE_DAY, Interval
from lake.lake import Lake
from lake.ledger import Promotion
from lake.metrics import Metric, publish_metrics
from lake.promotions import project_promotions
from monitoring.alerting.actions import Action, record_action
from monitoring.alerting.lifecycle import STATES, State, state_of, waiting_for_approval
from monitoring.alerting.runs import Run, Waiting, record_run, record_waiting
from monitoring.pages import retraining
from monitoring.pages.page import BadAddress, NotFound, Page, Role
from monitoring.pages.render import render
from monitoring.pages.retraining import evidence_text
from monitoring.retraining_requests import request_retraining
from tests import toy
from tests.monitoring.pages.fleet import context
from tests.serving.scenario import MODEL
from training.registry.approval import Approval, PromotionRejected, answered
from training.registry.decision import Decision, Reason, store_decision
from training.registry.records import DecisionRecord

NIGHT = date(2024, 2, 26)
FIRST = NIGHT - timedelta(days=20)
HOSTILE = "<script>alert(1)</script> \"quotes\" 'x'\nline"


@pytest.fixture
def lake(tmp_path: Any) -> Iterator[Lake]:
    """The toy that asks for approval, with features up to the night."""
    made = toy.toy_lake(tmp_path, model=toy.MODEL_YAML + "approval: required\n")
    nights = Interval(NIGHT - 2 * ONE_DAY, NIGHT + ONE_DAY)
    toy.publish_valid(made, nights.widened(8))
    toy.publish_features(made, nights)
    yield made
    made.engine.dispose()


def decide(lake: Lake, version: int, verdict: str, as_of: date = NIGHT) -> Decision:
    check = {
        "name": "improvement",
        "passed": verdict == "promote",
        "output": "ride_minutes",
        "metric": "mae",
        "challenger": 8.0,
        "rival": 9.0,
    }
    evidence = {
        "model": MODEL,
        "version": version,
        "as_of": as_of.isoformat(),
        "verdict": verdict,
        "reasons": [{"code": "better" if verdict == "promote" else "not_better", "text": f"it says so {HOSTILE}"}],
        "checks": [check | {"improvement": 0.11, "bound": 0.05, "needed": 0.0, "rows": 400}],
        "rival": {"name": "baseline median", "version": None},
        "test": {"nights": ["2024-02-20"], "rows": 400},
        "subject": {"artifact_digest": f"a{version}"},
    }
    return store_decision(lake, evidence, run_id="gate", inputs=[])


def promote(lake: Lake, version: int, effective_from: date, digest: str = "", kind: str = "promotion") -> None:
    ledger = lake.ledger(MODEL)
    line = Promotion(
        MODEL,
        version,
        FIRST,
        effective_from,
        datetime(2024, 2, 27, 9, tzinfo=UTC),
        "anna",
        f"a{version}",
        digest or f"e{version}",
        kind,  # type: ignore[arg-type]  # a value that the test varies
    )
    project_promotions(lake, MODEL, seen=ledger.append(line, seen=ledger.read()))


def errors(lake: Lake, version: int, first: date, ratios: list[float]) -> None:
    for k, ratio in enumerate(ratios):
        day = first + timedelta(days=k)
        rows = []
        for name, gate in (("ride_minutes", "mae"), ("long_probability", "brier")):
            told: dict[str, Any] = {"status": "ok", "n": 100, "reference": f"version {version}, trained on some nights"}
            rows += [Metric(MODEL, day, day + 2 * ONE_DAY, gate, column=name, value=ratio * 10, **told)]
            rows += [Metric(MODEL, day, day + 2 * ONE_DAY, f"{gate}_baseline", column=name, value=10.0, **told)]
        publish_metrics(lake, MODEL, "performance", rows, Interval.of(day + 2 * ONE_DAY), run_id="t")


def shown(lake: Lake, role: Any = "viewer", **query: str) -> tuple[Page, str]:
    here = context(lake, role, datetime(2024, 2, 28, tzinfo=UTC))
    page = retraining.page(here, query=query)
    return page, render(page, here, path="/nightfleet/retraining")


def only_request(lake: Lake) -> dict[str, Any]:
    [row] = shown(lake)[0].table("requests").rows
    return dict(row)


# ---- how far it got ----------------------------------------------------------------------------------------------

DECIDED = DecisionRecord(MODEL, NIGHT, 1, 1, "promote", "baseline", 7, 400, (Reason("better", "b"),), (), "d")
RUN = Run(f"{MODEL}_train", "r", MODEL, "train", NIGHT.isoformat(), "running", None)
ANSWER = Approval(MODEL, 1, NIGHT, "approved", "anna", "yes", datetime(2024, 2, 27, tzinfo=UTC), "d", "r")
LINE = Promotion(MODEL, 1, NIGHT, NIGHT, datetime(2024, 2, 27, tzinfo=UTC), "anna", "a", "d")


@pytest.mark.parametrize(
    ("run", "verdict", "answer", "promoted", "asks", "state"),
    [
        (None, None, None, False, True, "asked"),
        ("running", None, None, False, True, "training"),
        ("failed", None, None, False, True, "failed"),
        ("failed", "refuse", None, False, True, "refused"),
        ("success", "not_evaluated", None, False, True, "not evaluated"),
        ("running", "promote", None, False, True, "waiting"),
        (None, "promote", None, False, True, "waiting"),
        ("running", "promote", None, False, False, "passed"),
        ("success", "promote", None, False, True, "passed"),
        ("failed", "promote", None, False, False, "failed"),
        ("running", "promote", "approved", False, True, "passed"),
        ("failed", "promote", "approved", False, True, "failed"),
        ("failed", "promote", "rejected", False, True, "rejected"),
        ("failed", "promote", "lapsed", False, True, "lapsed"),
        ("success", "promote", "approved", True, True, "promoted"),
        (None, None, None, True, False, "promoted"),
    ],
)
def test_how_far_a_request_got(
    run: str | None, verdict: str | None, answer: Any, promoted: bool, asks: bool, state: State
) -> None:
    found = state_of(
        replace(RUN, state=run) if run else None,
        replace(DECIDED, verdict=verdict) if verdict else None,
        replace(ANSWER, answer=answer) if answer else None,
        LINE if promoted else None,
        asks=asks,
    )
    assert found == state
    assert state in STATES


# ---- what it led to ----------------------------------------------------------------------------------------------


def test_a_request_that_is_only_asked(lake: Lake) -> None:
    request_retraining(lake, MODEL, NIGHT, by="anna", reason=HOSTILE, run_id="r")
    row = only_request(lake)
    assert (row["by"], row["why"], row["state"], row["numbers"]) == (
        "anna",
        HOSTILE,
        "asked",
        "the policy had not decided for that night",
    )


def test_refused_by_the_gate_and_why(lake: Lake) -> None:
    request_retraining(lake, MODEL, NIGHT, by="anna", reason="r", run_id="r")
    decide(lake, 1, "refuse")
    record_run(lake, replace(RUN, state="success"))
    row = only_request(lake)
    assert (row["state"], row["version"]) == ("refused", 1)
    assert row["gate"].startswith("refused, against baseline median: it says so <script>")
    assert row["run_url"] == f"/dags/{MODEL}_train/runs/r"


def test_rejected_by_whom_and_why(lake: Lake) -> None:
    request_retraining(lake, MODEL, NIGHT, by="anna", reason="r", run_id="r")
    decided = decide(lake, 1, "promote")
    at = datetime(2024, 2, 27, tzinfo=UTC)
    with pytest.raises(PromotionRejected):
        answered(
            lake,
            MODEL,
            decided.to_json(),
            shown=decided.evidence_digest,
            option="Reject",
            by="berta",
            reason="too bold",
            answered_at=at,
            run_id="r",
        )
    row = only_request(lake)
    assert (row["state"], row["word"]) == ("rejected", "rejected by berta: too bold")


def test_promoted_and_what_it_gained(lake: Lake) -> None:
    request_retraining(lake, MODEL, FIRST, by="anna", reason="r", run_id="r")
    decided = decide(lake, 2, "promote", as_of=FIRST)
    promote(lake, 1, FIRST - timedelta(days=10))
    promote(lake, 2, FIRST + ONE_DAY, decided.evidence_digest)
    row = only_request(lake)
    assert (row["state"], row["version"], row["effective_from"]) == ("promoted", 2, FIRST + ONE_DAY)
    assert row["gain"] == "not known yet: labels of its first night, 2024-02-07, mature on 2024-02-09"
    errors(lake, 1, FIRST - timedelta(days=9), [0.9, 0.92, 0.88, 0.9])
    errors(lake, 2, FIRST + ONE_DAY, [0.72, 0.7, 0.74, 0.72])
    gain = only_request(lake)["gain"]
    assert gain.startswith(
        "ride_minutes: 20 % less error: mae over the baseline's 72 % (69 to 75) in 4 nights, 400 rows; before 90 % "
        "(87 to 93) in 4 nights"
    )
    assert "long_probability: 20 % less error: brier" in gain


def test_nights_after_a_rollback_are_not_the_version_s(lake: Lake) -> None:
    promote(lake, 1, FIRST)
    promote(lake, 2, FIRST + 4 * ONE_DAY)
    promote(lake, 1, FIRST + 8 * ONE_DAY, kind="rollback")
    errors(lake, 1, FIRST, [0.9] * 4)
    errors(lake, 2, FIRST + 4 * ONE_DAY, [0.95] * 4)
    errors(lake, 1, FIRST + 8 * ONE_DAY, [0.8] * 4)
    lines = {(row["version"], row["kind"]): row["gain"] for row in shown(lake)[0].table("promotions").rows}
    assert "80 %" in lines[(1, "rollback")]
    assert "before 95 %" in lines[(1, "rollback")]
    assert "5.6 % more error" in lines[(2, "promotion")]
    assert lines[(1, "promotion")].endswith("no earlier version to compare with")


# ---- what waits, and forms by role -------------------------------------------------------------------------------


def ask(lake: Lake) -> None:
    """As `approve` does when it begins to wait."""
    now = datetime.now(UTC)
    record_waiting(lake, Waiting(MODEL, RUN.run_id, 0, RUN.dag_id, "promote?", now, now + ONE_DAY))


def test_what_waits_is_shown_with_its_evidence_until_it_is_over(lake: Lake) -> None:
    decided = decide(lake, 1, "promote")
    assert waiting_for_approval(lake, [MODEL]) == [], "the gate has spoken, nobody has asked yet"
    ask(lake)
    assert [d.evidence_digest for d in waiting_for_approval(lake, [MODEL])] == [decided.evidence_digest]
    page, html = shown(lake, "admin")
    assert f'value="{decided.evidence_digest}"' in html
    assert f"/embedded/{MODEL}/model_cards/1.html" in html
    assert [row["challenger"] for row in page.table(f"evidence_{MODEL}_1").rows] == [8.0]
    record_run(lake, replace(RUN, state="success"))
    assert waiting_for_approval(lake, [MODEL]) == [], "a run that is over asks nobody"


def test_a_refused_or_overtaken_version_does_not_wait(lake: Lake) -> None:
    ask(lake)
    decide(lake, 1, "promote", as_of=FIRST)
    decide(lake, 2, "refuse")
    assert waiting_for_approval(lake, [MODEL]) == []
    decide(lake, 3, "promote", as_of=NIGHT + ONE_DAY)
    promote(lake, 4, NIGHT)
    assert waiting_for_approval(lake, [MODEL]) == []


@pytest.mark.parametrize(
    ("role", "actions"), [("viewer", set()), ("operator", {"acknowledge", "request_retraining"}), ("admin", None)]
)
def test_each_role_sees_its_forms(lake: Lake, role: Role, actions: set[str] | None) -> None:
    decide(lake, 5, "promote")
    promote(lake, 1, FIRST)
    ask(lake)
    promote(lake, 2, FIRST + ONE_DAY)
    said = {"status": "warning", "reason": HOSTILE}
    publish_metrics(
        lake,
        MODEL,
        "drift",
        [Metric(MODEL, NIGHT, NIGHT, "volume", **said)],  # type: ignore[arg-type]  # a value that the test varies
        Interval.of(NIGHT),
        run_id="t",
    )
    _, html = shown(lake, role)
    everything = {"acknowledge", "request_retraining", "approve", "rollback"}
    assert {name for name in everything if f'action="/nightfleet/actions/{name}"' in html} == (
        everything if actions is None else actions
    )
    assert html.count('name="csrf_token" value="token"') == html.count('method="post"')
    assert "<script>alert" not in html
    assert f"{MODEL}/volume//" in html, "the fingerprint"


def test_the_record_shows_who_when_and_what_came_of_it(lake: Lake) -> None:
    at = datetime(2024, 2, 27, 8, 30, tzinfo=UTC)
    for k in range(25):
        record_action(
            lake,
            Action(
                at + timedelta(minutes=k),
                HOSTILE,
                "viewer",
                "approve",
                MODEL,
                reason="r",
                outcome="refused: NotAllowed",
            ),
        )
    page, html = shown(lake)
    assert len(page.table("actions").rows) == retraining.ACTIONS_SHOWN
    assert "Show more" in html
    assert "<script>alert" not in html
    assert len(shown(lake, actions="all")[0].table("actions").rows) == 25


# ---- the address -------------------------------------------------------------------------------------------------


def test_period_and_model_stand_in_the_address(lake: Lake) -> None:
    for back in (0, 5, 50):
        request_retraining(lake, MODEL, NIGHT - timedelta(days=back), by="anna", reason=f"{back}", run_id="r")
    found = shown(lake, model=MODEL, **{"from": "2024-02-01", "to": "2024-02-25"})[0].table("requests").rows
    assert [row["why"] for row in found] == ["5"]
    assert [row["why"] for row in shown(lake)[0].table("requests").rows] == ["0", "5", "50"], "the newest first"


@pytest.mark.parametrize("query", [{"from": "x"}, {"to": HOSTILE}, {"from": "2024-03-01", "to": "2024-02-01"}])
def test_an_address_that_cannot_be_read(lake: Lake, query: dict[str, str]) -> None:
    with pytest.raises(BadAddress):
        shown(lake, **query)


def test_a_model_that_is_not_there(lake: Lake) -> None:
    with pytest.raises(NotFound):
        shown(lake, model="<script>")


def test_an_empty_installation(toy_lake: Lake) -> None:
    page, html = shown(toy_lake, "admin")
    assert all(not table.rows for table in page.tables)
    assert "No retraining was requested." in html
    assert "No alarm is open." in html


# ---- evidence in words -------------------------------------------------------------------------------------------


def test_evidence_in_numbers() -> None:
    outputs = {"ride_minutes": {"metric": "mae", "ratio": 1.16, "at_gate": 0.83, "bound": 0.92}}
    policy = {
        "drift": {"share": 0.43, "threshold": 0.3},
        "performance": {"outputs": outputs},
        "calendar": {"due_on": "2024-03-05"},
    }
    words = (
        "43 % of columns drifted, limit 30 %; ride_minutes mae 116 % of the baseline's (83 % at the gate, 92 %"
        " allowed); calendar: due 2024-03-05"
    )
    assert evidence_text(policy) == words
    assert evidence_text({"trigger": "person", "policy": policy}) == words
    assert evidence_text({"trigger": "person", "policy": None}) == "the policy had not decided for that night"


_plain = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
_json = st.recursive(
    _plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(("trigger", "policy", "drift", "performance", "calendar"), _json))
)
def test_any_evidence_has_words(evidence: dict[str, Any]) -> None:
    assert isinstance(evidence_text(evidence), str)

"""What an approver is shown: the gate's evidence as it is stored, in Markdown that data cannot draw in."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.calendar import Interval
from lake.lake import Lake
from monitoring.pages.approval_form import approval_form
from monitoring.pages.gate_evidence import needed_improvement
from monitoring.pages.render import markdown_text
from monitoring.retraining_requests import request_retraining
from monitoring.wording import percent
from tests import toy
from tests.training.registry.versions import AS_OF, MODEL, load_oracle, make_version, write_set
from training.registry.approval import DecisionNotFound
from training.registry.decision import Decision
from training.registry.gate import judge
from training.registry.leakage import Audit

ASKED = datetime(2024, 2, 27, 7, tzinfo=UTC)


@pytest.fixture
def lake(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """The toy, whose catalog asks for approval; features are published up to the as-of night."""
    monkeypatch.setattr("serving.predictors.load_predictor", load_oracle)
    monkeypatch.setattr("training.registry.leakage.audit", lambda *_, **__: Audit((AS_OF,), 1, 1, 0, (), 0.0))
    lake = toy.toy_lake(tmp_path, model=toy.MODEL_YAML + "approval: required\napproval_timeout: 3 days\n")
    toy.publish_features(lake, Interval.closed(date(2024, 2, 20), AS_OF))
    return lake


def judged(lake: Lake, **misses: Any) -> Decision:
    job = write_set(lake, "job-1")
    return judge(lake, MODEL, job, make_version(lake, job, 1, **({"miss": 10.0} | misses)), run_id="run")


def test_the_form_shows_the_stored_evidence(lake: Lake) -> None:
    decision = judged(lake, miss=1.0, miss_south=3.0)
    form = approval_form(
        lake,
        MODEL,
        decision.to_json() | {"reasons": ["made up"], "verdict": "refuse"},
        model_card="/reports/ride_minutes/card.html",
        asked_at=ASKED,
    )
    assert form.subject == "Duration of tomorrow's rides: promote version 1, as of 2024-02-26?"
    assert form.evidence_digest == decision.evidence_digest
    assert "The gate's verdict: promote." in form.body
    assert "made up" not in form.body
    assert f"Evidence: `{decision.evidence_digest}`" in form.body
    assert "[/reports/ride_minutes/card.html](/reports/ride_minutes/card.html)" in form.body
    assert "rows of 7 nights" in form.body
    assert "Test nights: 2024-02-17 to 2024-02-23" in form.body
    assert "Champion: none yet. Judged against: the baseline" in form.body
    assert "no answer within 3 days" in form.body
    assert "| test nights | 7 | at least 5 | passed |" in form.body.splitlines()
    assert "Waiting since 2024-02-27 07:00 UTC, until 2024-03-01 07:00 UTC" in form.body
    assert "Asked for by: nobody on record: the training was started in Airflow" in form.body
    [check] = [check for check in decision.checks if check.name == "improvement" and check.output == "ride_minutes"]
    assert check.challenger is not None
    assert check.bound is not None
    row = next(line for line in form.body.splitlines() if line.startswith("| ride\\_minutes | mae |"))
    assert f"| {check.challenger:.4g} | {check.incumbent:.4g} |" in row
    assert f"| {percent(check.bound, signed=True)} |" in row
    assert row.endswith("| passed |")


def test_what_was_met_and_what_is_needed_is_said_in_words(lake: Lake) -> None:
    request_retraining(lake, MODEL, AS_OF, by="olga", reason="the depot moved", run_id="r")
    form = approval_form(lake, MODEL, judged(lake).to_json(), model_card=None, asked_at=ASKED)
    assert "Asked for by: olga: the depot moved" in form.body
    [leakage] = [line for line in form.body.splitlines() if line.startswith("| knowledge of the future")]
    assert leakage.startswith("| knowledge of the future | no leakage found: 1 night recomputed")
    assert leakage.endswith("| no differing cell | passed |")
    assert [needed_improvement(x) for x in (None, 0.0, 0.05, -0.2)] == [
        "–",
        "not worse",
        "5 % better",
        "at most 20 % worse",
    ]


def test_the_worst_segment_stands_first(lake: Lake) -> None:
    decision = judged(lake, miss=1.0, miss_south=3.0)
    body = approval_form(lake, MODEL, decision.to_json(), model_card=None, asked_at=ASKED).body
    shown = body[body.index("The worst ") :].splitlines()
    rows = [line for line in shown if line.startswith("| depot=") and "ride\\_minutes" in line]
    assert "south" in rows[0]
    assert len(rows) == 3
    assert "Model card: none" in body


def test_every_table_of_the_form_has_as_many_cells_as_its_heading(lake: Lake) -> None:
    decision = judged(lake)
    width = 0
    for line in approval_form(lake, MODEL, decision.to_json(), model_card=None, asked_at=ASKED).body.splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        cells = line.replace("\\|", "").count("|")
        width = width or cells
        assert cells == width, line


@given(st.text())
def test_text_from_data_cannot_draw_in_the_form(text: str) -> None:
    shown = markdown_text(text)
    assert "\n" not in shown
    plain = shown.replace("\\\\", "")
    for mark in "|`*[]<>_":
        assert plain.count(mark) == plain.count(f"\\{mark}")


def test_what_is_not_stored_cannot_be_asked_about(lake: Lake) -> None:
    decision = judged(lake)
    with pytest.raises(DecisionNotFound, match=r"no stored decision with evidence ffff.*Clear the gate's task"):
        approval_form(lake, MODEL, decision.to_json() | {"evidence_digest": "f" * 64}, model_card=None, asked_at=ASKED)

"""How an answer is kept, and that nothing is promoted without one."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.calendar import ONE_DAY, Interval
from lake.lake import Lake
from lake.publish import publish
from tests import toy
from tests.training.registry.versions import AS_OF, MODEL, load_oracle, make_version, write_set
from training.registry import approval as approval_module
from training.registry.approval import (
    APPROVE,
    NOBODY,
    REJECT,
    ApprovalLapsed,
    NotApproved,
    PromotionRejected,
    ReasonMissing,
    answered,
    answered_before,
    approval_of,
    approvals_table,
    lapsed,
    read_approvals,
)
from training.registry.decision import Decision
from training.registry.delivery import deliver_decided
from training.registry.gate import judge
from training.registry.leakage import Audit
from training.registry.promotion import StaleDecision, promote, rollback
from training.registry.register import Registered

NEXT = AS_OF + ONE_DAY
ANSWERED = datetime(2024, 2, 27, 9, 30, tzinfo=UTC)
RUN = "manual__2024-02-26"


@pytest.fixture(autouse=True)
def oracles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.predictors.load_predictor", load_oracle)
    monkeypatch.setattr("training.registry.leakage.audit", lambda *_, **__: Audit((AS_OF,), 1, 1, 0, (), 0.0))


@pytest.fixture
def lake(tmp_path: Any) -> Lake:
    """The toy, whose catalog asks for approval; features are published up to the as-of night."""
    lake = toy.toy_lake(tmp_path, model=toy.MODEL_YAML + "approval: required\napproval_timeout: 3 days\n")
    toy.publish_features(lake, Interval.closed(date(2024, 2, 20), AS_OF))
    return lake


def judged(lake: Lake, version: int = 1, **misses: Any) -> tuple[Decision, Registered]:
    job = write_set(lake, f"job-{version}")
    registered = make_version(lake, job, version, **({"miss": 10.0 / version} | misses))
    return judge(lake, MODEL, job, registered, run_id=RUN), registered


def answer(lake: Lake, decision: Decision, **words: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "shown": decision.evidence_digest,
        "option": APPROVE,
        "by": "ada",
        "reason": "looks right",
        "answered_at": ANSWERED,
        "run_id": RUN,
    } | words
    return answered(lake, MODEL, decision.to_json(), **given)


def lines(lake: Lake) -> list[int]:
    return [promotion.version for promotion in lake.ledger(MODEL).read().promotions]


# ---- the answer --------------------------------------------------------------------------------------------------


def test_an_approval_is_kept_with_who_when_why_and_what_was_shown(lake: Lake) -> None:
    decision, _ = judged(lake)
    document = answer(lake, decision, answered_at=ANSWERED.astimezone(timezone(timedelta(hours=5))))
    assert json.loads(json.dumps(document)) == document
    [kept] = read_approvals(lake, MODEL)
    assert kept == approval_of(lake, decision, run_id=RUN)
    assert (kept.answer, kept.by, kept.reason, kept.answered_at) == ("approved", "ada", "looks right", ANSWERED)
    assert (kept.version, kept.as_of, kept.evidence_digest, kept.run_id) == (1, AS_OF, decision.evidence_digest, RUN)
    publication = lake.publications.current(approvals_table(lake, MODEL))[AS_OF]
    assert [item.table for item in publication.inputs] == [f"{MODEL}/decisions"]


def test_the_same_answer_again_writes_nothing(lake: Lake) -> None:
    decision, _ = judged(lake)
    assert answer(lake, decision) == answer(lake, decision)
    assert len(read_approvals(lake, MODEL)) == 1
    table = approvals_table(lake, MODEL).load()
    assert table is not None
    assert table.version() == 1


@pytest.mark.parametrize("option", [APPROVE, REJECT])
@pytest.mark.parametrize("reason", ["", "  \n"])
def test_an_answer_without_a_reason_does_not_count(lake: Lake, option: str, reason: str) -> None:
    decision, registered = judged(lake)
    with pytest.raises(
        ReasonMissing,
        match=r"ada answered .* without a reason, which does not count. The champion stays.\n  Clear this task",
    ):
        answer(lake, decision, option=option, reason=reason)
    assert read_approvals(lake, MODEL) == []
    with pytest.raises(NotApproved, match="has none for version 1"):
        promote(lake, decision, registered, by=RUN)
    assert lines(lake) == []


def test_a_rejection_is_kept_and_says_who_and_why(lake: Lake) -> None:
    decision, registered = judged(lake)
    with pytest.raises(
        PromotionRejected, match=r"version 1 was rejected by ada: too few snow days. The champion stays."
    ):
        answer(lake, decision, option=REJECT, reason="too few snow days")
    [kept] = read_approvals(lake, MODEL)
    assert (kept.answer, kept.reason) == ("rejected", "too few snow days")
    with pytest.raises(NotApproved, match="the last word in run .* is rejected, by ada: too few snow days"):
        promote(lake, decision, registered, by=RUN)
    assert lines(lake) == []


def test_a_request_that_lapsed_is_kept_too(lake: Lake) -> None:
    decision, registered = judged(lake)
    with pytest.raises(
        ApprovalLapsed, match=r"nobody answered within 3 days. The champion stays. Clear this task to ask again."
    ):
        lapsed(lake, MODEL, decision.to_json(), shown=decision.evidence_digest, at=ANSWERED, run_id=RUN)
    [kept] = read_approvals(lake, MODEL)
    assert (kept.answer, kept.by, kept.reason) == ("lapsed", NOBODY, "")
    with pytest.raises(NotApproved, match="is lapsed, by nobody"):
        promote(lake, decision, registered, by=RUN)


def test_an_option_that_is_none_is_no_approval(lake: Lake) -> None:
    decision, _ = judged(lake)
    with pytest.raises(NotApproved, match="answered 'approve' on ride_minutes version 1; known are Approve and Reject"):
        answer(lake, decision, option="approve")
    assert read_approvals(lake, MODEL) == []


def test_asked_again_the_last_word_counts(lake: Lake) -> None:
    decision, registered = judged(lake)
    with pytest.raises(PromotionRejected):
        answer(lake, decision, option=REJECT)
    answer(lake, decision, by="grace", answered_at=ANSWERED + timedelta(hours=1))
    assert approval_of(lake, decision, run_id=RUN).by == "grace"
    with pytest.raises(PromotionRejected):
        answer(lake, decision, option=REJECT, answered_at=ANSWERED + timedelta(hours=2))
    with pytest.raises(NotApproved):
        promote(lake, decision, registered, by=RUN)


def test_a_task_that_is_tried_again_finds_the_answer_and_a_cleared_one_does_not(lake: Lake) -> None:
    decision, _ = judged(lake)
    document = decision.to_json()
    assert answered_before(lake, MODEL, document, run_id=RUN, asking=2) is None
    with pytest.raises(PromotionRejected):
        answer(lake, decision, option=REJECT, asking=2)
    with pytest.raises(PromotionRejected, match="rejected by ada: looks right"):
        answered_before(lake, MODEL, document, run_id=RUN, asking=2)
    assert answered_before(lake, MODEL, document, run_id=RUN, asking=5) is None
    assert answered_before(lake, MODEL, document, run_id="another", asking=2) is None
    given = answer(lake, decision, asking=5)
    assert answered_before(lake, MODEL, document, run_id=RUN, asking=5) == given
    with pytest.raises(ApprovalLapsed):
        lapsed(lake, MODEL, document, shown=decision.evidence_digest, at=ANSWERED, run_id=RUN, asking=8)
    with pytest.raises(ApprovalLapsed, match="within 3 days"):
        answered_before(lake, MODEL, document, run_id=RUN, asking=8)


def test_two_answers_at_once_are_both_kept(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    decision, _ = judged(lake)
    real = publish

    def late(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(approval_module, "publish", real)
        answer(lake, decision, by="grace", run_id="another run")
        return real(*args, **kwargs)

    monkeypatch.setattr(approval_module, "publish", late)
    answer(lake, decision)
    assert [(a.by, a.run_id) for a in read_approvals(lake, MODEL)] == [("grace", "another run"), ("ada", RUN)]


@given(
    st.lists(
        st.tuples(st.sampled_from(["approved", "rejected", "lapsed"]), st.sampled_from([RUN, "other"])), max_size=4
    )
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_only_a_last_word_of_yes_in_the_same_run_lets_through(words: list[tuple[str, str]]) -> None:
    """Whatever the history of answers: against a plain look at the last of this run."""
    decision = Decision.of(
        {
            "model": MODEL,
            "version": 1,
            "as_of": str(AS_OF),
            "verdict": "promote",
            "reasons": [],
            "checks": [],
            "rival": {"name": "baseline", "version": None},
            "test": {"nights": [], "rows": 0},
        }
    )
    kept = [
        approval_module.Approval(
            MODEL,
            1,
            AS_OF,
            word,  # type: ignore[arg-type]  # a value that the test varies
            "ada",
            "why",
            ANSWERED + timedelta(minutes=i),
            decision.evidence_digest,
            run,
        )
        for i, (word, run) in enumerate(words)
    ]
    last = next((word for word, run in reversed(words) if run == RUN), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(approval_module, "read_approvals", lambda *_: kept)
        patch.setattr(approval_module, "_is_signed", lambda *_: True)
        if last == "approved":
            assert approval_of(None, decision, run_id=RUN).answer == "approved"  # type: ignore[arg-type]
        else:
            with pytest.raises(NotApproved):
                approval_of(None, decision, run_id=RUN)  # type: ignore[arg-type]


# ---- and then ----------------------------------------------------------------------------------------------------


def test_an_approved_challenger_is_promoted_in_the_name_of_the_person(lake: Lake) -> None:
    decision, registered = judged(lake)
    answer(lake, decision)
    line = promote(lake, decision, registered, by=RUN)
    assert line is not None
    assert (line.version, line.by, line.evidence_digest) == (1, f"ada ({RUN})", decision.evidence_digest)
    assert promote(lake, decision, registered, by=RUN) == line
    assert lines(lake) == [1]


def test_the_approval_of_another_run_does_not_count(lake: Lake) -> None:
    decision, registered = judged(lake)
    answer(lake, decision, run_id="another run")
    with pytest.raises(
        NotApproved,
        match=r"asks for a person's approval .* has none for version 1. Nothing was promoted. Clear the task `approve`",
    ):
        promote(lake, decision, registered, by=RUN)
    document = json.loads(json.dumps(registered.to_json()))
    with pytest.raises(NotApproved):
        deliver_decided(lake, MODEL, document, decision.to_json(), by=RUN)
    assert lines(lake) == []


def test_the_approval_of_other_evidence_does_not_count(lake: Lake) -> None:
    """The gate judged again while the old form was still open."""
    decision, registered = judged(lake)
    with pytest.raises(
        NotApproved, match=r"approved ride_minutes version 1 on evidence ffffffffffff…, the decision now is on evidence"
    ):
        answer(lake, decision, shown="f" * 64)
    with pytest.raises(NotApproved, match="it was judged again meanwhile. Nothing was promoted"):
        promote(lake, decision, registered, by=RUN)
    assert lines(lake) == []


def test_a_late_answer_takes_effect_late(lake: Lake) -> None:
    decision, registered = judged(lake)
    toy.publish_features(lake, Interval.closed(NEXT, NEXT + 4 * ONE_DAY))
    answer(lake, decision)
    line = promote(lake, decision, registered, by=RUN)
    assert line is not None
    assert line.effective_from == NEXT + 5 * ONE_DAY
    assert line.trained_until == AS_OF


def test_an_approval_against_a_champion_that_no_longer_reigns_promotes_nothing(lake: Lake) -> None:
    first, first_registered = judged(lake, 1)
    answer(lake, first)
    promote(lake, first, first_registered, by=RUN)
    waiting, registered = judged(lake, 2)
    third, third_registered = judged(lake, 3)
    answer(lake, third)
    promote(lake, third, third_registered, by=RUN)
    answer(lake, waiting)
    with pytest.raises(
        StaleDecision, match=r"version 2 was judged against champion version 1, but version 3 is champion now"
    ):
        promote(lake, waiting, registered, by=RUN)
    assert lines(lake) == [1, 3]


def test_a_rollback_needs_no_approval(lake: Lake) -> None:
    for version in (1, 2):
        decision, registered = judged(lake, version)
        answer(lake, decision)
        promote(lake, decision, registered, by=RUN)
    assert rollback(lake, MODEL, by="ada", reason="odd").version == 1


def test_an_answer_that_this_installation_did_not_record_promotes_nothing(lake: Lake) -> None:
    decision, registered = judged(lake)
    table, night = approvals_table(lake, MODEL), Interval.of(AS_OF)
    given = {
        "number": 1,
        "version": 1,
        "answer": "approved",
        "by": "ada",
        "reason": "as ada would say",
        "answered_at": ANSWERED,
        "evidence_digest": decision.evidence_digest,
        "run_id": RUN,
        "asking": 0,
        "data_date": AS_OF,
    }
    toy.publish_rows(lake, table, pa.Table.from_pylist([given], schema=table.schema), night)
    with pytest.raises(
        NotApproved, match=r"run .* by ada, is not signed by this installation(?s:.*)Clear the task `approve`"
    ):
        promote(lake, decision, registered, by=RUN)
    # A signed answer under another name, or about another run, is none either.
    answer(lake, decision, asking=1, run_id="another")
    signed = table.read([AS_OF]).to_pylist()[-1]
    for edit in ({"by": "bob"}, {"run_id": RUN}):
        toy.publish_rows(
            lake,
            table,
            pa.Table.from_pylist([signed | {"number": 1, "run_id": RUN} | edit], schema=table.schema),
            night,
        )
        with pytest.raises(NotApproved, match="is not signed by this installation"):
            promote(lake, decision, registered, by=RUN)
    assert lines(lake) == []
    answer(lake, decision, asking=2)
    promote(lake, decision, registered, by=RUN)
    assert lines(lake) == [1]

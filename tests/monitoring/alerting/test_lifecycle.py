"""Promotions, decisions, requests and answers in SQL, on SQLite and on a real Postgres: as Delta has them, and repaired
by the watch where a run did not get that far; a read writes nothing.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from config.calendar import ONE_DAY, Interval
from lake.chain import LedgerCut
from lake.lake import Lake
from lake.ledger import Promotion
from lake.projection import projections_table
from lake.promotions import project_promotions, promotions_table, stored_promotions
from monitoring import retraining_requests as requests
from monitoring.alerting.lifecycle import project_records
from monitoring.retraining_requests import read_requests_of, request_retraining
from tests.serving.scenario import MODEL
from training.registry import decision
from training.registry.approval import PromotionRejected, answered, read_approvals
from training.registry.decision import read_decisions, store_decision
from training.registry.promotion import repair_alias
from training.registry.records import read_approvals_of, read_decisions_of, read_evidence

NIGHT = date(2024, 2, 26)
HOSTILE = "<script>alert(1)</script> 'quotes\"\n\\N, nul\0 and ünï " + "x" * 200
TABLES = ("promotions", "requests", "decisions", "approvals")


@pytest.fixture
def lake(sql_lake: Lake) -> Lake:
    return sql_lake


def promotion(version: int = 1, effective_from: date = NIGHT, **changes: Any) -> Promotion:
    told: dict[str, Any] = {
        "kind": "promotion",
        "decided_at": datetime(2024, 2, 26, 9, 30, 1, 5, tzinfo=UTC),
        "by": "manual__2024",
        "reason": "",
    } | changes
    return Promotion(
        MODEL,
        version,
        NIGHT - ONE_DAY,
        effective_from,
        artifact_digest=f"a{version}",
        evidence_digest=f"e{version}",
        **told,
    )


def decide(
    lake: Lake, version: int = 1, verdict: str = "promote", as_of: date = NIGHT, reason: str = HOSTILE
) -> decision.Decision:
    evidence = {
        "model": MODEL,
        "version": version,
        "as_of": as_of.isoformat(),
        "verdict": verdict,
        "reasons": [{"code": "better", "text": reason}],
        "checks": [
            {
                "name": "improvement",
                "passed": True,
                "output": "ride_minutes",
                "metric": "mae",
                "challenger": 0.8,
                "rival": 1.0,
                "bound": 0.1,
            }
        ],
        "rival": {"name": "baseline median", "version": None},
        "test": {"nights": ["2024-02-20"], "rows": 40},
        "subject": {"artifact_digest": f"a{version}"},
    }
    return store_decision(lake, evidence, run_id="gate", inputs=[])


def answer(lake: Lake, decided: decision.Decision, option: str = "Reject") -> None:
    words: dict[str, Any] = {
        "by": "anna",
        "reason": HOSTILE,
        "answered_at": datetime(2024, 2, 27, 9, 30, tzinfo=UTC),
        "run_id": "run",
    }
    with suppress(PromotionRejected):
        answered(lake, MODEL, decided.to_json(), shown=decided.evidence_digest, option=option, **words)


def everything(lake: Lake) -> None:
    lake.ledger(MODEL).append(promotion(), seen=lake.ledger(MODEL).read())
    repair_alias(lake, MODEL)
    request_retraining(lake, MODEL, NIGHT, by="anna", reason=HOSTILE, run_id="r")
    answer(lake, decide(lake))


def counts(lake: Lake) -> dict[str, int]:
    with lake.engine.connect() as connection:
        return {
            name: connection.execute(sa.select(sa.func.count()).select_from(sa.table(name))).scalar_one()
            for name in TABLES
        }


def forgotten(lake: Lake) -> None:
    """As on an installation from before the projections: no SQL table of theirs."""
    with lake.engine.begin() as connection:
        for name in TABLES:
            connection.execute(sa.schema.DropTable(sa.table(name), if_exists=True))  # type: ignore[arg-type]
        connection.execute(projections_table.delete().where(projections_table.c.sql_table.in_(TABLES)))


def test_sql_says_what_delta_says(lake: Lake) -> None:
    everything(lake)
    assert stored_promotions(lake, [MODEL]) == list(lake.ledger(MODEL).read().promotions)
    assert read_approvals_of(lake, [MODEL]) == read_approvals(lake, MODEL)
    (stored,), (known,) = read_decisions_of(lake, [MODEL]), read_decisions(lake, MODEL)
    assert (stored.version, stored.verdict, stored.reasons, stored.checks) == (
        known.version,
        known.verdict,
        known.reasons,
        known.checks,
    )
    assert read_evidence(lake, stored.evidence_digest) == known.evidence
    (asked,) = read_requests_of(lake, [MODEL])
    assert (asked.actor, asked.by, asked.requested, asked.reason) == (
        "person",
        "anna",
        True,
        HOSTILE.replace("\0", "\ufffd"),
    )
    assert asked.evidence["as_of"] == NIGHT.isoformat()


def test_each_write_is_followed_by_its_projection(lake: Lake) -> None:
    everything(lake)
    assert counts(lake) == dict.fromkeys(TABLES, 1), "before anybody read"


def read_all(lake: Lake) -> list[list[Any]]:
    return [
        list(stored_promotions(lake, [MODEL])),
        list(read_requests_of(lake, [MODEL])),
        list(read_decisions_of(lake, [MODEL])),
        list(read_approvals_of(lake, [MODEL])),
    ]


def test_the_watch_repairs_an_installation_that_has_none(lake: Lake) -> None:
    everything(lake)
    told = read_all(lake)
    forgotten(lake)
    assert read_all(lake) == [[], [], [], []], "a read repairs nothing"
    assert project_records(lake, [MODEL]) == 4
    assert read_all(lake) == told
    assert project_records(lake, [MODEL]) == 0, "again is free"


def test_a_run_that_commits_nothing_repairs_too(lake: Lake) -> None:
    everything(lake)
    forgotten(lake)
    everything_again(lake)
    assert counts(lake) == dict.fromkeys(TABLES, 1)


def everything_again(lake: Lake) -> None:
    repair_alias(lake, MODEL)
    request_retraining(lake, MODEL, NIGHT, by="anna", reason=HOSTILE, run_id="r")
    answer(lake, decide(lake))


def test_an_unprojected_night_is_repaired_by_the_run_of_another(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(requests, "project_requests", lambda *_: 0)
        request_retraining(lake, MODEL, NIGHT, by="anna", reason="first", run_id="r")
    request_retraining(lake, MODEL, NIGHT + ONE_DAY, by="anna", reason="second", run_id="r")
    with lake.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT reason FROM requests ORDER BY data_date")).scalars().all() == [
            "first",
            "second",
        ]


def test_the_watch_projects_what_a_killed_run_left(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    everything(lake)
    with monkeypatch.context() as killed:
        killed.setattr(requests, "project_requests", lambda *_: 0)
        request_retraining(lake, MODEL, NIGHT + ONE_DAY, by="berta", reason="later", run_id="r")
    project_records(lake, [MODEL])
    assert [r.by for r in read_requests_of(lake, [MODEL])] == ["anna", "berta"]


def test_a_read_opens_no_delta_table(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    everything(lake)
    monkeypatch.setattr("lake.delta.DeltaTable", lambda *_, **__: pytest.fail("a Delta table was opened"))
    assert [len(rows) for rows in read_all(lake)] == [1, 1, 1, 1]


def test_a_ledger_that_was_made_anew_replaces_its_lines(lake: Lake) -> None:
    ledger = lake.ledger(MODEL)
    ledger.append(promotion(2, NIGHT + ONE_DAY), seen=ledger.append(promotion(1), seen=ledger.read()))
    assert project_promotions(lake, MODEL) == 2
    assert project_promotions(lake, MODEL) == 0, "again is free"
    shutil.rmtree(lake.settings.lake / MODEL / "promotions")
    with pytest.raises(LedgerCut, match="0 lines, of the 2 that were seen"):
        project_promotions(lake, MODEL)
    assert len(stored_promotions(lake, [MODEL])) == 2, "no ledger: SQL is left alone"
    ledger.accept()
    ledger.append(promotion(3), seen=ledger.read())
    project_promotions(lake, MODEL)
    assert [p.version for p in stored_promotions(lake, [MODEL])] == [3]


def test_only_the_models_and_nights_asked_for(lake: Lake) -> None:
    for days in range(4):
        request_retraining(lake, MODEL, NIGHT + timedelta(days=days), by="anna", reason=f"day {days}", run_id="r")
    found = read_requests_of(lake, [MODEL], Interval(NIGHT + ONE_DAY, NIGHT + timedelta(days=3)))
    assert [r.reason for r in found] == ["day 1", "day 2"]
    assert read_requests_of(lake, [], None) == [] == read_requests_of(lake, ["another"])
    assert not stored_promotions(lake, [MODEL])
    assert not read_decisions_of(lake, [MODEL])
    assert not read_approvals_of(lake, [MODEL])
    assert read_evidence(lake, "nothing") is None


def test_the_policy_s_quiet_nights_can_be_left_out(lake: Lake) -> None:
    requests._store(
        lake,
        MODEL,
        {
            "actor": "policy",
            "by": "policy",
            "requested": False,
            "trigger": "none",
            "reason": "quiet",
            "evidence": "{}",
            "data_date": NIGHT,
        },
        run_id="r",
        inputs=[],
    )
    request_retraining(lake, MODEL, NIGHT, by="anna", reason="why not", run_id="r")
    assert [r.actor for r in read_requests_of(lake, [MODEL])] == ["person", "policy"]
    assert [r.actor for r in read_requests_of(lake, [MODEL], requested_only=True)] == ["person"]


def test_the_sql_table_has_the_ledger_s_columns() -> None:
    assert set(promotions_table.c.keys()) == set(Promotion.__dataclass_fields__)

"""Decisions: those that were stored under a former word are read, found again, and keep their digest."""

from __future__ import annotations

from typing import Any

from lake.lake import Lake
from training.registry.decision import Decision, read_decisions, store_decision


def evidence(word: str) -> dict[str, Any]:
    check = {"name": "improvement", "passed": True, "output": "y", "challenger": 1.0, word: 2.0}
    return {
        "model": "ride_minutes",
        "version": 1,
        "as_of": "2024-03-01",
        "verdict": "promote",
        "reasons": [],
        "checks": [check],
        word: {"name": "champion version 3", "version": 3},
        "test": {"nights": ["2024-02-28"], "rows": 30},
        "subject": {"artifact_digest": "a"},
    }


def test_evidence_under_the_former_word_says_the_same() -> None:
    former, now = Decision.of(evidence("rival")), Decision.of(evidence("incumbent"))
    assert (former.incumbent, former.incumbent_version, former.checks) == ("champion version 3", 3, now.checks)
    assert former.checks[0].incumbent == 2.0
    assert former.evidence_digest != now.evidence_digest, "the ledger cites the bytes that were stored"


def test_a_decision_stored_under_the_former_word_stands(toy_lake: Lake) -> None:
    stored = store_decision(toy_lake, evidence("rival"), run_id="before", inputs=[])
    again = store_decision(toy_lake, evidence("incumbent"), run_id="after", inputs=[])
    assert again.evidence_digest == stored.evidence_digest
    [only] = read_decisions(toy_lake, "ride_minutes")
    assert (only.incumbent_version, only.evidence_digest) == (3, stored.evidence_digest)

"""The rollouts' ledger in SQL: as Delta has it, whole after a loss, and told by `verify`."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
import sqlalchemy as sa

from lake.lake import Lake
from lake.rollouts import RolloutLine
from lake.stored_rollouts import project_rollouts, rollouts_table, stored_rollouts
from monitoring.audit.verification import verify_projections
from tests.serving.scenario import MODEL

STARTED = RolloutLine(
    model=MODEL,
    version=2,
    kind="started",
    trained_until=date(2024, 1, 20),
    effective_from=date(2024, 1, 22),
    decided_at=datetime(2024, 1, 21, tzinfo=UTC),
    by="gate",
    artifact_digest="b" * 64,
    evidence_digest="e" * 64,
    reason="it is better",
    settings='{"strategy": "canary", "steps": [{"share": 0.5}, {"share": 1.0}]}',
)


@pytest.fixture
def lake(toy_lake: Lake) -> Lake:
    """A rollout that was started and has advanced once."""
    ledger = toy_lake.rollouts(MODEL)
    seen = ledger.append(STARTED, seen=ledger.read())
    advanced = replace(STARTED, kind="advanced", step=1, night=date(2024, 1, 23), settings="")
    ledger.append(replace(advanced, effective_from=date(2024, 1, 24)), seen=seen)
    return toy_lake


def test_sql_says_what_the_ledger_says(lake: Lake) -> None:
    assert stored_rollouts(lake, [MODEL]) == {}
    assert project_rollouts(lake, MODEL) == 2
    assert project_rollouts(lake, MODEL) == 0, "again is free"
    stored = stored_rollouts(lake, [MODEL, "another"])
    assert {model: snapshot.lines for model, snapshot in stored.items()} == {MODEL: lake.rollouts(MODEL).read().lines}
    running = stored[MODEL].running
    assert running is not None
    assert (running.step, running.strategy) == (1, "canary")


def test_a_ledger_that_was_never_written_changes_nothing(toy_lake: Lake) -> None:
    assert project_rollouts(toy_lake, MODEL) == 0
    assert not sa.inspect(toy_lake.engine).has_table(rollouts_table.name)


def test_lost_lines_are_told_and_come_back(lake: Lake) -> None:
    project_rollouts(lake, MODEL)
    with lake.engine.begin() as connection:
        connection.execute(rollouts_table.delete().where(rollouts_table.c.kind == "advanced"))
    [damage] = [d for d in verify_projections(lake) if d.place == f"rollouts of {MODEL}"]
    assert damage.problem == "1 lines, the ledger has 2"
    assert project_rollouts(lake, MODEL) == 2
    assert [d for d in verify_projections(lake) if "rollouts" in d.place] == []


def test_the_table_has_the_columns_of_a_line() -> None:
    assert set(rollouts_table.c.keys()) == set(RolloutLine.__dataclass_fields__)

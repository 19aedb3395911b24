from __future__ import annotations

import io
import json
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from rich.console import Console

from cli.verify import repair, verify
from config.calendar import Interval
from lake.chain import ChainName, head_path
from lake.lake import Lake
from lake.metrics import Metric, publish_metrics
from lake.rollouts import RolloutLine
from tests import toy


def test_damage_is_said_and_counted_in_the_exit_code(toy_lake: Lake) -> None:
    metric = Metric("ride_minutes", toy.FIRST, toy.FIRST, "toy", "ok", value=1.0)
    publish_metrics(toy_lake, "ride_minutes", "toy", [metric], Interval.of(toy.FIRST), run_id="r")
    out = io.StringIO()
    console = Console(file=out, width=200)
    assert verify(toy_lake, console) == 0
    assert "nothing is damaged" in out.getvalue()
    with toy_lake.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM metrics"))
    assert verify(toy_lake, console) == 1
    assert "SQL: metrics of ride_minutes/metrics/toy\n  1 data dates are not as in the lake" in out.getvalue()
    assert repair(toy_lake, console) == 0
    assert "SQL: 1 metrics of ride_minutes, toy" in out.getvalue()


def test_a_restored_ledger_of_rollouts_is_damage_until_it_is_accepted(
    toy_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, day, at = "ride_minutes", toy.FIRST, datetime(2024, 3, 1, tzinfo=UTC)
    ledger = toy_lake.rollouts(model)
    line = RolloutLine(model, 2, "started", day, day, at, "run", "a" * 64, "e", "better", settings="{}")
    ledger.append(line, seen=ledger.read())
    head = head_path(toy_lake.settings, ChainName(model, "rollouts"))
    head.write_text(json.dumps({"lines": 2, "digest": "of lines that the backup lacks"}))
    out = io.StringIO()
    console = Console(file=out, width=400)
    assert verify(toy_lake, console) == 1
    assert "the rollouts of ride_minutes has 1 lines, of the 2 that were seen" in out.getvalue()
    assert "model: ride_minutes" not in out.getvalue()
    monkeypatch.setattr("monitoring.audit.verification.repair", lambda *_, **__: iter(()))
    out.truncate(0)
    assert repair(toy_lake, console, accept_ledgers=[model]) == 1, "the version's files are still missing"
    said = out.getvalue()
    assert "the promotions of ride_minutes count with their 0 lines; 0 were seen before" in said
    assert "the rollouts of ride_minutes count with their 1 lines; 2 were seen before" in said
    assert "are lacking" not in said
    assert "model: ride_minutes aaaaaaaaaaaa" in said

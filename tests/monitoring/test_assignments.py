"""Two versions score a night: each is monitored in its own role, and the champion as if it were alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from config.calendar import Interval
from lake.lake import Lake
from lake.metric_queries import read_metrics_of
from lake.metrics import read_metrics
from monitoring.alerting.rules import judge_alerts
from monitoring.drift import drift
from monitoring.matured import judged_nights
from monitoring.pages.reports import report
from monitoring.performance import performance
from monitoring.retraining_requests import decide_retraining
from serving.score import score
from tests.monitoring import scenario
from tests.monitoring.scenario import NIGHT, SCORED
from tests.serving.scenario import MODEL

NIGHTS = Interval.closed(SCORED.start, NIGHT)


def monitored(lake: Lake) -> dict[str, list[dict[str, Any]]]:
    drift(lake, MODEL, Interval.of(NIGHT), run_id="m")
    performance(lake, MODEL, Interval.of(NIGHT), run_id="m")
    return {group: read_metrics(lake, MODEL, group).to_pylist() for group in ("drift", "performance")}


@pytest.fixture
def alone(promoted: Lake, tmp_path: Path) -> Lake:
    lake = scenario.copy_of(promoted, tmp_path / "alone")
    scenario.decide_gate(lake)
    score(lake, MODEL, NIGHTS, run_id="s")
    return lake


@pytest.fixture
def both(promoted: Lake, tmp_path: Path) -> Lake:
    lake = scenario.copy_of(promoted, tmp_path / "both")
    scenario.decide_gate(lake)
    scenario.decide_gate(lake, 2, ratio=0.01)
    (tmp_path / "training").mkdir()
    score(lake, MODEL, NIGHTS, run_id="s", planned=scenario.with_challenger(lake, tmp_path / "training"))
    return lake


def test_each_role_is_measured_and_the_champion_as_if_it_were_alone(alone: Lake, both: Lake) -> None:
    expected, measured = monitored(alone), monitored(both)
    for group, rows in measured.items():
        assert {(row["role"], row["model_version"]) for row in rows} == {("champion", 1), ("challenger", 2)}
        assert [row for row in rows if row["role"] == "champion"] == expected[group]
        checks = [
            {(row["check"], row["column"], row["segment"]) for row in rows if row["role"] == role}
            for role in ("champion", "challenger")
        ]
        assert checks[0] == checks[1]
    volume = {row["role"]: row["n"] for row in measured["drift"] if row["check"] == "volume"}
    assert volume == {"champion": scenario.PER_DAY, "challenger": scenario.PER_DAY}
    ratios = {
        row["role"]: (row["value"], row["status"])
        for row in measured["performance"]
        if row["check"] == "error_ratio" and row["column"] == "ride_minutes"
    }
    assert ratios["champion"] != ratios["challenger"]
    assert ratios["challenger"][1] == "warning"  # its own gate promised more


def test_decisions_readers_and_reports_tell_the_roles_apart(both: Lake) -> None:
    monitored(both)
    decided = decide_retraining(both, MODEL, NIGHT, run_id="m").details
    assert decided["evidence"]["champion_version"] == 1
    judge_alerts(both, MODEL, NIGHT, run_id="m")
    [judged] = judged_nights(both, [MODEL], NIGHTS)[MODEL, "ride_minutes"]
    assert judged.version == 1
    of_night = Interval.of(NIGHT)
    for role in ("champion", "challenger"):
        rows = read_metrics_of(both, [MODEL], of_night, by="data_date", checks=["drift_share"], role=role)
        assert [row["role"] for row in rows] == [role]
    assert len(read_metrics_of(both, [MODEL], of_night, by="data_date", checks=["drift_share"], role=None)) == 2
    files = {Path(path).name for path in report(both, MODEL, of_night, run_id="m").details["files"]}
    assert files == {"drift.html", "performance.html", "drift-challenger.html", "performance-challenger.html"}
    again = report(both, MODEL, of_night, run_id="m")
    assert (again.rows, again.committed) == (4, 0)

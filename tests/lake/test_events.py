"""Events of the stages: one night can be followed through all of them, and a terminal stays readable."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import structlog

from config.calendar import Interval
from config.catalog.load import load_catalog
from features.ingest import ingest
from features.materialize import materialize
from features.transform import transform
from features.validate import DataRejected, validate
from lake.events import EVENTS_FILE, correlation_id, logged, stage_events, use_task_log
from lake.lake import Lake, StageResult
from tests import toy

NIGHT = Interval.of(date(2024, 1, 10))
BEFORE = Interval.closed(toy.FIRST, date(2024, 1, 9))


def events(lake: Lake) -> list[dict[str, Any]]:
    path = lake.settings.home / "logs" / EVENTS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.fixture(autouse=True)
def _outside_a_task() -> Any:
    structlog.contextvars.clear_contextvars()
    use_task_log(None)
    yield
    use_task_log(None)


def test_one_night_is_followed_by_its_correlation_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = toy.toy_lake(tmp_path, source=Interval.closed(toy.FIRST, date(2024, 1, 12)))
    for stage in (ingest, validate, transform, materialize):
        stage(lake, "rides", BEFORE, run_id="history")
    results = [
        stage(lake, "rides", NIGHT, run_id=f"replay__{stage.__name__}")
        for stage in (ingest, validate, transform, materialize)
    ]
    found = [event for event in events(lake) if event["correlation_id"] == "rides/2024-01-10"]
    assert [(event["event"], event["stage"]) for event in found] == [
        (f"stage {what}", stage)
        for stage in ("ingest", "validate", "transform", "materialize")
        for what in ("began", "ended")
    ]
    for event, result in zip(found[1::2], results, strict=True):
        assert (event["rows"], event["committed"]) == (result.rows, result.committed)
        assert event["seconds"] >= 0
    for event in found:
        assert (event["subject"], event["data_date"], event["run_id"]) == (
            "rides",
            "2024-01-10",
            f"replay__{event['stage']}",
        )
        assert event["timestamp"].endswith("Z")
    again = ingest(lake, "rides", NIGHT, run_id="again")
    assert (events(lake)[-1]["committed"], again.committed) == (0, 0), "a rerun says that it committed nothing"
    assert "stage began" not in "".join(capsys.readouterr()), "a command's output is for a person"


def test_a_failed_stage_says_so_and_why(tmp_path: Path) -> None:
    lake = toy.toy_lake(
        tmp_path,
        source=Interval.closed(toy.FIRST, date(2024, 1, 5)),
        dataset=toy.DATASET_YAML.replace("max: 500", "max: 1"),
    )
    night = Interval.of(toy.FIRST)
    ingest(lake, "rides", night, run_id="r")
    with pytest.raises(DataRejected):
        validate(lake, "rides", night, run_id="r")
    failed = events(lake)[-1]
    assert (failed["event"], failed["level"], failed["error"]) == ("stage failed", "error", "DataRejected")
    assert "rows break a rule" in failed["problem"]
    assert "\n" not in failed["problem"]


def test_model_and_data_set_share_the_night(toy_lake: Lake) -> None:
    catalog = load_catalog(toy_lake.settings)
    assert (
        correlation_id(catalog, "ride_minutes", "2024-03-01")
        == correlation_id(catalog, "rides", "2024-03-01")
        == "rides/2024-03-01"
    )
    assert correlation_id(catalog, "gone", "2024-03-01") == "gone/2024-03-01"


def test_lines_of_others_carry_the_night(toy_lake: Lake) -> None:
    seen: list[dict[str, Any]] = []

    @logged("score")
    def stage(lake: Lake, subject: str, interval: Interval, *, run_id: str) -> StageResult:
        seen.append(dict(structlog.contextvars.get_contextvars()))
        return StageResult("score", subject, str(interval), 3, 1, {})

    stage(toy_lake, "ride_minutes", interval=NIGHT, run_id="r")
    assert seen == [
        {
            "stage": "score",
            "subject": "ride_minutes",
            "data_date": "2024-01-10",
            "correlation_id": "rides/2024-01-10",
            "run_id": "r",
        }
    ]
    assert structlog.contextvars.get_contextvars() == {}, "what a stage bound ends with it"


def test_hostile_values_stay_one_line(toy_lake: Lake) -> None:
    with (
        pytest.raises(ValueError, match="x"),
        stage_events(toy_lake, "score", 'a"\n<script>', nights="2024-01-10", run_id="r\nid"),
    ):
        raise ValueError("x" * 10_000)
    assert [event["event"] for event in events(toy_lake)] == ["stage began", "stage failed"]
    assert len(events(toy_lake)[1]["problem"]) == 500


def test_in_a_task_events_go_to_its_log(toy_lake: Lake) -> None:
    with structlog.testing.capture_logs() as captured:
        use_task_log(structlog.get_logger("task"))
        with stage_events(toy_lake, "gate", "ride_minutes") as told:
            told["verdict"] = "promote"
    assert [(entry["event"], entry.get("verdict")) for entry in captured] == [
        ("stage began", None),
        ("stage ended", "promote"),
    ]
    assert events(toy_lake) == []

"""Run records: states in any order, errors of tasks, hostile texts, both databases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from config.calendar import Interval
from lake.lake import Lake
from monitoring.alerting.runs import Run, described, read_runs, record_failure, record_run
from tests import toy

START = datetime(2024, 3, 2, 6, tzinfo=UTC)
RUN = Run("ride_minutes_score", "r1", "ride_minutes", "score", "2024-03-01", "running", START)


@pytest.fixture(params=["sqlite", "postgres"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lake]:
    made = toy.toy_lake(tmp_path)
    if request.param == "postgres":
        made = Lake(made.settings.model_copy(update={"sql_url": request.getfixturevalue("postgres_url")}), made.catalog)
    yield made
    from monitoring.alerting.runs import _metadata

    _metadata.drop_all(made.engine)
    made.engine.dispose()


def ended(state: str, minutes: int = 1, **changes: Any) -> Run:
    return replace(RUN, state=state, ended_at=START + timedelta(minutes=minutes), **changes)


@pytest.mark.parametrize(
    ("dag_id", "conf", "says"),
    [
        ("flights_ingest", None, ("flights", "ingest")),
        ("engine_rul_monitor", None, ("engine_rul", "monitor")),
        ("a_history_history", {}, ("a_history", "history")),
        ("rollback", {"model": "engine_rul"}, ("engine_rul", "rollback")),
        ("watch", None, ("", "watch")),
        ("_score", None, None),
        ("somebody_elses", None, None),
    ],
)
def test_a_dag_s_name_says_what_its_runs_are_about(dag_id: str, conf: Any, says: Any) -> None:
    assert described(dag_id, conf) == says


def test_without_a_table_there_are_no_runs(lake: Lake) -> None:
    assert read_runs(lake) == []


def test_a_run_s_states_replace_each_other_and_a_late_one_does_not(lake: Lake) -> None:
    record_run(lake, RUN, at=START)
    done = ended("success", note="by hand")
    record_run(lake, done, at=START + timedelta(minutes=1))
    record_run(lake, RUN, at=START)  # kept back by a busy database, and written after the end
    assert read_runs(lake) == [done]
    record_run(
        lake.engine, replace(RUN, started_at=START + timedelta(hours=1)), at=START + timedelta(hours=1)
    )  # cleared
    assert read_runs(lake) == [replace(RUN, started_at=START + timedelta(hours=1), note="by hand")]


@pytest.mark.parametrize("task_first", [True, False])
def test_the_failed_task_and_its_words_are_kept_whichever_comes_first(lake: Lake, task_first: bool) -> None:
    at = START + timedelta(seconds=50)
    record_run(lake, RUN, at=START)
    if task_first:
        record_failure(lake, RUN, task="score", error="NoChampion: none", at=at)
        record_run(lake, ended("failed"), at=START + timedelta(minutes=1))
    else:
        record_run(lake, ended("failed", failed_task="score"), at=START + timedelta(minutes=1))
        record_failure(lake, RUN, task="score", error="NoChampion: none", at=at)
    record_failure(lake, RUN, task="later", error="a consequence", at=at + timedelta(seconds=1))
    assert read_runs(lake) == [ended("failed", failed_task="score", error="NoChampion: none")]


def test_the_task_that_failed_for_good_is_named_not_one_that_was_tried_again(lake: Lake) -> None:
    record_failure(lake, RUN, task="shaky", error="passed at the second try", at=START)
    record_failure(lake, RUN, task="score", error="first", at=START)
    record_failure(lake, RUN, task="score", error="for good", at=START)
    record_run(lake, ended("failed", failed_task="score"), at=START + timedelta(minutes=1))
    assert read_runs(lake) == [ended("failed", failed_task="score", error="for good")]


def test_a_failure_of_a_run_nobody_recorded_is_kept_until_the_scheduler_says_more(lake: Lake) -> None:
    record_failure(lake, RUN, task="score", error="boom", at=START)
    assert read_runs(lake)[0].error == "boom"
    record_run(lake, ended("failed"), at=START + timedelta(minutes=1))
    assert read_runs(lake) == [ended("failed", failed_task="score", error="boom")]


def test_an_error_goes_when_the_run_is_cleared_or_succeeds_after_all(lake: Lake) -> None:
    record_failure(lake, RUN, task="score", error="boom", at=START)
    record_run(lake, ended("success"), at=START + timedelta(minutes=1))
    assert read_runs(lake) == [ended("success")]
    record_failure(lake, RUN, task="score", error="again", at=START + timedelta(minutes=2))
    record_run(lake, RUN, at=START + timedelta(minutes=3))
    assert read_runs(lake)[0].error is None
    record_failure(lake, RUN, task="score", error="third", at=START + timedelta(minutes=5))
    record_run(lake, RUN, at=START + timedelta(minutes=4))  # started before that failure, written after it
    assert read_runs(lake)[0].error == "third"


def test_hostile_texts_are_stored_bounded(lake: Lake) -> None:
    record_failure(
        lake,
        replace(RUN, run_id="x'; DROP TABLE runs; --"),
        task="<script>",
        error="\0\ud800" + "é\n" * 9_000,
        at=START,
    )
    [run] = read_runs(lake)
    assert run.run_id == "x'; DROP TABLE runs; --"
    assert run.failed_task == "<script>"
    assert run.error is not None
    assert run.error.startswith("\ufffd?é\n")
    assert len(run.error) == 4_000


def test_runs_are_found_by_subject_kind_night_and_number(lake: Lake) -> None:
    for number, (subject, kind, key) in enumerate(
        [
            ("rides", "ingest", "2024-03-01"),
            ("ride_minutes", "score", "2024-03-01"),
            ("rides", "ingest", "2024-03-02"),
            ("", "watch", None),
        ]
    ):
        run = Run(f"{subject}_{kind}", f"r{number}", subject, kind, key, "success", START + timedelta(minutes=number))  # type: ignore[arg-type]
        record_run(lake, run, at=START + timedelta(minutes=number))

    def names(**wanted: Any) -> list[str]:
        return [run.run_id for run in read_runs(lake, **wanted)]

    assert names() == ["r0", "r1", "r2", "r3"]
    assert names(subjects=["rides"]) == ["r0", "r2"]
    assert names(kinds=["score", "watch"]) == ["r1", "r3"]
    assert names(keys=Interval.of(date(2024, 3, 1))) == ["r0", "r1"]
    assert names(newest_first_limit=2) == ["r3", "r2"]
    assert names(subjects=[]) == []

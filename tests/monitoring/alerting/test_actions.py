"""The audit table: appended, once an action, whatever it holds and however many come at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from config.calendar import Interval
from lake.lake import Lake
from lake.projection import projections_table
from lake.publish import publish
from monitoring.alerting.actions import Action, actions_table, project_actions, read_actions, record_action
from tests import toy

AT = datetime(2024, 3, 2, 23, 59, 59, 5, tzinfo=UTC)
ACTION = Action(
    AT,
    "ada",
    "operator",
    "silence",
    "ride_minutes",
    "drift_psi",
    "x",
    "depot=a/b",
    date(2024, 3, 9),
    "known",
    details={"n": 1},
)


@pytest.fixture
def lake(sql_lake: Lake) -> Lake:
    return sql_lake


def test_an_action_is_kept_with_everything_it_holds(lake: Lake) -> None:
    assert read_actions(lake) == []
    kept = record_action(lake, ACTION)
    assert kept == replace(ACTION, action_id=kept.action_id)
    assert len(kept.action_id) == 32
    assert read_actions(lake) == [kept]
    assert actions_table(lake).read()["data_date"].to_pylist() == [date(2024, 3, 2)]


def test_the_same_id_is_the_same_action(lake: Lake) -> None:
    first = record_action(lake, replace(ACTION, action_id="one"))
    assert record_action(lake, replace(ACTION, action_id="one", reason="another")) == first
    assert len(read_actions(lake)) == 1


def test_actions_that_come_at_once_are_all_kept(tmp_path: Path) -> None:
    lake = toy.toy_lake(tmp_path)
    record_action(lake, ACTION)

    def act(number: int) -> Action:
        return record_action(Lake(lake.settings, lake.catalog), replace(ACTION, action_id=f"n{number}"))

    with ThreadPoolExecutor(4) as pool:
        assert len({action.action_id for action in pool.map(act, range(4))}) == 4
    assert len(read_actions(lake)) == 5


def test_an_action_is_appended_and_what_was_recorded_before_is_not_written_again(lake: Lake) -> None:
    table = actions_table(lake)

    def files() -> dict[str, bytes]:
        return {uri: Path(uri).read_bytes() for uri in table.files()}

    sizes = []
    for number in range(6):
        before = files()
        record_action(lake, replace(ACTION, action_id=f"n{number}", outcome="refused: " + "x" * 2_000))
        after = files()
        assert before.items() <= after.items()
        assert len(after) == len(before) + 1
        sizes.append(sum(path.stat().st_size for path in Path(table.location.uri).rglob("*") if path.is_file()))
    assert sizes[-1] - sizes[-2] < 1.5 * (sizes[2] - sizes[1])
    assert [row["action_id"] for row in table.read().to_pylist()] == [f"n{number}" for number in range(6)]
    # What is published is what lies there: the same rows as one file are nothing new.
    lineage, day = lake.lineage("rides", "again"), AT.date()
    with lake.scratch("again") as scratch:
        again = publish(
            lake.publications, table, table.read(), Interval.of(day), replaces={}, lineage=lineage, scratch=scratch
        )
    assert (again.rows, again.committed) == (6, ())
    assert len(read_actions(lake)) == 6


def test_refused_attempts_are_kept_and_hostile_texts_do_no_harm(lake: Lake) -> None:
    hostile = replace(
        ACTION,
        by="=cmd()\0",
        subject="'; DROP TABLE actions; --",
        reason="\ud800<script>\n" + "x" * 9_000,
        outcome="refused: a viewer may not",
    )
    kept = record_action(lake, replace(hostile, details={"form": "y" * 9_000, "at": AT}))
    [read] = read_actions(lake, subject="'; DROP TABLE actions; --")
    assert read == kept
    assert (read.by, read.done, len(read.reason)) == ("=cmd()\ufffd", False, 4_000)
    assert read.reason.startswith("?<script>\n")


def test_they_are_found_by_subject_kind_and_time_the_latest_first(lake: Lake) -> None:
    for number in range(3):
        record_action(
            lake,
            replace(
                ACTION,
                action_id=f"n{number}",
                at_utc=AT + timedelta(hours=number),
                action=("silence", "acknowledge")[number % 2],
            ),
        )

    def names(**wanted: Any) -> list[str]:
        return [action.action_id for action in read_actions(lake, **wanted)]

    assert names() == ["n2", "n1", "n0"]
    assert names(actions=("silence",)) == ["n2", "n0"]
    assert names(since=AT + timedelta(hours=1)) == ["n2", "n1"]
    assert names(subject="other") == []
    assert names(limit=1) == ["n2"]


def test_sql_is_repaired_by_the_next_action(lake: Lake) -> None:
    record_action(lake, ACTION)
    with lake.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM actions"))
        connection.execute(projections_table.delete())
    record_action(lake, replace(ACTION, at_utc=AT + timedelta(hours=3)))
    assert len(read_actions(lake)) == 2
    assert project_actions(lake, Interval.of(AT.date())) == 0

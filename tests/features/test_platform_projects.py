"""Projects of the platform's users: a plan, and what the owner's projects that ended by the night say; no later."""

from __future__ import annotations

from typing import Any

import duckdb
import pytest

from config.settings import ROOT

VIEW = (ROOT / "features" / "sql" / "platform_projects" / "plan.sql").read_text()
NEVER = "9999-12-31"
# data_date, superseded_on, event_date, project, user, kind, role, team_size, planned_days, scope_points
PROJECTS = [
    ("2024-01-01", NEVER, "2024-01-01", "a-1", "a", "feature", "lead", 2, 10, 30),
    ("2024-01-02", "2024-01-04", "2024-01-02", "a-2", "a", "research", "lead", 1, 20, 20),
    ("2024-01-04", NEVER, "2024-01-02", "a-2", "a", "research", "lead", 1, 40, 20),
    ("2024-01-05", NEVER, "2024-01-05", "a-3", "a", "feature", "lead", 4, 5, 10),
    ("2024-01-05", NEVER, "2024-01-05", "b-1", "b", "migration", "analyst", 1, 8, 4),
    ("2024-01-07", NEVER, "2024-01-07", "a-4", "a", "feature", "lead", 1, 5, 5),
]
# data_date, superseded_on, event_date, project, user, succeeded, days_taken
OUTCOMES = [
    ("2024-01-04", NEVER, "2024-01-01", "a-1", "a", 1, 12),
    ("2024-01-05", NEVER, "2023-12-01", "a-0", "a", 0, 99),  # what was planned of it is not known
    ("2024-01-06", NEVER, "2024-01-02", "a-2", "a", 0, 50),
]


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    connection = duckdb.connect()
    connection.execute("CREATE TABLE nights (data_date DATE)")
    connection.executemany("INSERT INTO nights VALUES (?)", [[f"2024-01-0{day}"] for day in (1, 5, 7)])
    connection.execute(
        'CREATE TABLE projects (data_date DATE, superseded_on DATE, event_date DATE, project TEXT, "user" TEXT,'
        " kind TEXT, role TEXT, team_size INT, planned_days INT, scope_points INT)"
    )
    connection.executemany(f"INSERT INTO projects VALUES ({', '.join('?' * 10)})", PROJECTS)
    connection.execute(
        "CREATE TABLE project_outcomes (data_date DATE, superseded_on DATE, event_date DATE, project TEXT,"
        ' "user" TEXT, succeeded INT, days_taken INT)'
    )
    connection.executemany(f"INSERT INTO project_outcomes VALUES ({', '.join('?' * 7)})", OUTCOMES)
    return {row["project"]: row for row in connection.sql(VIEW).to_arrow_table().to_pylist()}


def test_a_night_has_the_projects_that_begin_on_it_alone(rows: dict[str, dict[str, Any]]) -> None:
    assert sorted(rows) == ["a-1", "a-3", "a-4", "b-1"]
    assert rows["a-3"]["scope_a_person_day"] == pytest.approx(10 / (4 * 5))


def test_an_owner_is_known_by_the_projects_that_have_ended_by_the_night(rows: dict[str, dict[str, Any]]) -> None:
    said = {
        name: (row["owner_ended"], row["owner_success_share"], row["owner_days_share"]) for name, row in rows.items()
    }
    assert said["a-1"] == said["b-1"] == (0, pytest.approx(0.55), None)
    # a-2 ends a night later; of a-0 nothing was planned that anybody knows.
    assert said["a-3"] == (2, pytest.approx(2.1 / 4), pytest.approx(12 / 10))
    # Of a-2 the plan counts that was corrected.
    assert said["a-4"] == (3, pytest.approx(2.1 / 5), pytest.approx((12 + 50) / (10 + 40)))

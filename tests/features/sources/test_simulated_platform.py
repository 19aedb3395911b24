"""The simulated platform: any night alone, the same for more users; episodes that change what they say; and truth that
is calibrated.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from config.catalog.load import load_catalog
from config.catalog.simulation import WORLDS, Simulated
from config.settings import ROOT, Settings
from features.sources import simulation
from features.sources.simulation.platform import Platform, accounts, cluster, engagement, projects, work

TABLES = WORLDS["platform"].tables
NIGHT = date(2024, 5, 7)
SMALL = 40
EPISODES: Mapping[str, Mapping[str, Any]] = {
    "ai_policy": {"kind": "ai_policy", "factor": 0.25},
    "more_capacity": {"kind": "more_capacity", "factor": 1.5},
    "new_activity": {"kind": "new_activity", "share": 0.5},
    "outage": {"kind": "outage"},
}


def simulated(table: str, *, users: int = SMALL, episodes: tuple[Mapping[str, Any], ...] = ()) -> Simulated:
    return Simulated.model_validate(
        {"world": "platform", "table": table, "seed": 7, "users": users, "episodes": episodes}
    )


def planted(kind: str, first: date, last: date) -> Mapping[str, Any]:
    return {**EPISODES[kind], "from": first, "to": last}


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    forget()


def forget() -> None:
    """Empty what the world remembers of nights that were asked for before, as in a new process."""
    for module in (accounts, work, cluster, projects):
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()


# ---- one night alone


def test_a_night_alone_is_that_night_out_of_many() -> None:
    nights = [NIGHT - timedelta(days=back) for back in range(20, -1, -1)]
    in_turn = {table: [simulation.night(simulated(table), day) for day in nights][-1] for table in TABLES}
    for table in TABLES:
        forget()
        assert simulation.night(simulated(table), NIGHT).equals(in_turn[table]), table


@pytest.mark.parametrize("table", [table for table in TABLES if table != "cluster_usage"])
def test_more_users_change_no_row_of_the_first_ones(table: str) -> None:
    few, many = (simulation.night(simulated(table, users=users), NIGHT) for users in (200, 400))
    assert few.num_rows > 0
    order = [(name, "ascending") for name in few.column_names]
    assert many.filter(pc.less(many["user"], "U000200")).sort_by(order).equals(few.sort_by(order))


# ---- labels


def test_an_evenings_engagement_counts_the_seven_days_after_it() -> None:
    told = simulation.night(simulated("engagement_levels", users=300), NIGHT)
    days = [
        simulation.night(simulated("user_days", users=300), NIGHT - timedelta(days=back)).select(["user", "active"])
        for back in range(7)
    ]
    counted = pa.concat_tables(days).group_by("user").aggregate([("active", "sum")])
    expected = dict(zip(counted["user"].to_pylist(), counted["active_sum"].to_pylist(), strict=True))
    assert set(told["event_date"].to_pylist()) == {NIGHT - timedelta(days=7)}
    for row in told.to_pylist():
        active = expected[row["user"]]
        level = "low" if active < 2 else "medium" if active < 5 else "high"
        assert (row["active_days"], row["engagement_level"]) == (active, level)
    assert set(told["engagement_level"].to_pylist()) == {"low", "medium", "high"}


def test_the_next_activity_is_told_of_every_evening_since_the_last() -> None:
    evening = NIGHT - timedelta(days=7)
    told: dict[str, tuple[date, str]] = {}
    for ahead in range(1, 8):
        rows = simulation.night(simulated("next_activities", users=200), evening + timedelta(days=ahead))
        for row in rows.filter(pc.equal(rows["event_date"], evening)).to_pylist():
            assert row["user"] not in told
            told[row["user"]] = (row["active_on"], row["activity"])
    expected: dict[str, tuple[date, str]] = {}
    there = set(simulation.night(simulated("user_days", users=200), evening)["user"].to_pylist())
    for ahead in range(7, 0, -1):
        day = evening + timedelta(days=ahead)
        for row in simulation.night(simulated("user_days", users=200), day).to_pylist():
            if row["active"] and row["user"] in there:
                expected[row["user"]] = (day, row["activity"])
    assert told == expected
    assert 0 < len(told) < len(there)


def test_who_is_not_active_has_no_activity_and_accounts_only_grow() -> None:
    before, rows = (
        simulation.night(simulated("user_days", users=300), day) for day in (NIGHT - timedelta(days=90), NIGHT)
    )
    idle = pc.equal(rows["active"], 0)
    assert rows.filter(idle)["activity"].null_count == pc.sum(idle).as_py() > 0
    assert pc.sum(rows.filter(idle)["actions"]).as_py() == 0
    assert rows.filter(pc.invert(idle))["activity"].null_count == 0
    assert set(before["user"].to_pylist()) < set(rows["user"].to_pylist())


# ---- truth


def calibrated(probability: np.ndarray, happened: np.ndarray) -> None:
    """Of each class the mean of what is said is the share that came, among the improbable and the probable ones."""
    for place in range(probability.shape[1]):
        said, came = probability[:, place], happened == place
        for part in np.array_split(np.argsort(said), 3):
            spread = np.sqrt((said[part] * (1 - said[part])).sum())
            assert abs(came[part].sum() - said[part].sum()) < 4 * max(spread, 1.0), place


def test_the_true_probability_of_a_level_is_that_of_its_weeks() -> None:
    drawn, day = Platform(3, 8000), NIGHT.toordinal()
    probability = engagement.level_probability(drawn, day)
    assert np.allclose(probability.sum(axis=1), 1.0)
    counted = sum(accounts.active(drawn, day + ahead).astype(int) for ahead in range(1, 8))
    there = drawn.joined(day)
    calibrated(probability[there], engagement.level_of(np.asarray(counted))[there])


def test_the_true_probability_of_an_activity_is_that_of_the_next_ones() -> None:
    drawn, day = Platform(3, 8000), NIGHT.toordinal()
    probability = work.next_probability(drawn, day)
    assert np.allclose(probability.sum(axis=1), 1.0)
    came = np.full(8000, -1)
    for ahead in range(7, 0, -1):
        busy = accounts.active(drawn, day + ahead)
        came[busy] = work.activity(drawn, day + ahead)[busy]
    calibrated(probability[(came >= 0) & drawn.joined(day)], came[(came >= 0) & drawn.joined(day)])


@pytest.mark.parametrize("ahead", [1, 30])
def test_true_quantiles_of_use_hold_their_share(ahead: int) -> None:
    drawn, deviations = Platform(3, 400), np.array([-1.2815515655446004, 0.0, 1.2815515655446004])
    days = range(NIGHT.toordinal(), NIGHT.toordinal() + 600, 15)
    said = np.stack([cluster.foretold(drawn, day, ahead, deviations) for day in days])
    came = np.stack([cluster.usage(drawn, day + ahead) for day in days])
    assert came.shape == (40, 18)
    below = (came[:, :, None] < said).mean(axis=(0, 1))
    assert below == pytest.approx([0.1, 0.5, 0.9], abs=0.07)


# ---- episodes


def changed(table: str, episode: Mapping[str, Any], day: date) -> set[str]:
    """Columns in which a night differs for the episode."""
    plain, other = (simulation.night(simulated(table, users=100, episodes=each), day) for each in ((), (episode,)))
    if plain.num_rows != other.num_rows:
        return {"rows"}
    return {name for name in plain.column_names if not plain[name].equals(other[name])}


@pytest.mark.parametrize(
    ("kind", "table", "columns"),
    [
        ("ai_policy", "user_days", {"ai_actions"}),
        ("more_capacity", "cluster_usage", {"usage"}),
        ("new_activity", "user_days", {"activity"}),
        ("new_activity", "next_activities", {"activity"}),
        ("outage", "user_days", {"active", "actions", "shared_actions", "ai_actions", "activity"}),
        ("outage", "next_activities", {"rows"}),
    ],
)
def test_an_episode_changes_what_it_says_while_it_lasts(kind: str, table: str, columns: set[str]) -> None:
    episode = planted(kind, NIGHT - timedelta(days=8), NIGHT)
    assert changed(table, episode, NIGHT) == columns
    for other in (NIGHT - timedelta(days=9), NIGHT + timedelta(days=9)):
        assert changed(table, episode, other) == set()
    untouched = "user_days" if kind == "more_capacity" else "cluster_usage"
    assert changed(untouched, episode, NIGHT) == set()


# ---- as a source


def test_the_whole_world_is_shipped() -> None:
    entry = load_catalog(Settings(catalogs=(ROOT / "config",))).dataset("platform")
    worlds = [table.source.model_dump(include={"seed", "users", "episodes"}) for table in entry.tables.values()]
    assert all(world == worlds[0] for world in worlds)
    assert set(TABLES) >= set(entry.tables)


# ---- projects


def test_a_project_ends_once_as_many_days_later_as_it_is_said_to_take() -> None:
    drawn, first = Platform(7, 150), NIGHT.toordinal()
    begun = {row["project"]: row for row in projects.projects(drawn, first).to_pylist()}
    assert begun
    ended = pa.concat_tables(
        projects.project_outcomes(drawn, first + ahead) for ahead in range(projects.LONGEST_DAYS + 1)
    )
    mine = ended.filter(pc.equal(ended["event_date"], NIGHT)).to_pylist()
    assert sorted(row["project"] for row in mine) == sorted(begun)
    for row in mine:
        assert (row["ended_utc"].date() - NIGHT).days == row["days_taken"]
        assert row["user"] == begun[row["project"]]["user"]


def test_the_true_probability_of_success_and_the_median_of_days_are_those_of_the_outcomes() -> None:
    drawn = Platform(3, 30_000)
    new = projects.begun(drawn, NIGHT.toordinal())
    told = projects.expected(drawn, NIGHT.toordinal())
    assert told["project"].to_pylist() == projects.projects(drawn, NIGHT.toordinal())["project"].to_pylist()
    success, days = told["success"].to_numpy(), told["days"].to_numpy()
    for part in np.array_split(np.argsort(success), 2):
        spread = np.sqrt((success[part] * (1.0 - success[part])).sum())
        assert abs(new.succeeded[part].sum() - success[part].sum()) < 4 * spread
    inside = (days > projects.SHORTEST_DAYS) & (days < projects.LONGEST_DAYS)
    assert abs((new.days_taken < days)[inside].mean() - 0.5) < 0.08
    assert np.corrcoef(success, np.log(days / new.planned_days))[0, 1] < -0.3, "what is too large is late and fails"

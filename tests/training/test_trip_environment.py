"""Trips as environments of Gymnasium: its own check passes, and an episode costs what road load says of its plan."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from config.settings import ROOT
from serving.predictors.road_load import SPEEDS, Trips
from tests.training.trips import SEGMENTS, trip_values
from training.trainers.trip_environment import OBSERVED, TRIP, TripsEnv


def given(count: int = 30) -> dict[str, Any]:
    """Trips that are planned with another headwind than the one that comes."""
    values = trip_values(count)
    return {"values": values, "expected": values["headwind_mps"], "came": values["headwind_mps"] + 2.0}


@pytest.fixture
def env() -> TripsEnv:
    return TripsEnv(30, **given())


def test_gymnasiums_own_check_finds_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(TRIP, **given()).unwrapped)


def test_an_episode_is_a_trip_and_costs_its_fuel_with_the_headwind_that_came() -> None:
    env = gymnasium.make(TRIP, **given())
    observed, info = env.reset(options={"trip": 4})
    random, over = np.random.default_rng(0), False
    plan: list[float] = []
    rewards: list[float] = []
    limits = trip_values(30)["limit_kmh"][4] / 3.6
    while not over:
        assert env.observation_space.contains(observed)
        action = random.choice(np.flatnonzero(info["in_time"]))
        plan.append(min(SPEEDS[action], limits[len(plan)]))
        observed, reward, over, truncated, info = env.step(action)
        rewards.append(float(reward))
        assert not truncated
    values = {name: column[4:5] for name, column in given()["values"].items()}
    driven = Trips(values, given()["came"][4:5])
    assert len(plan) == SEGMENTS
    assert -sum(rewards) == pytest.approx(driven.fuel(np.array([plan]))[0])
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.unwrapped.step(np.int64(0))


def test_equal_seeds_draw_equal_trips_and_others_others(env: TripsEnv) -> None:
    env.reset(seed=3)
    first = env.state.trip
    env.reset()
    assert not np.array_equal(env.state.trip, first)
    env.reset(seed=3)
    assert np.array_equal(env.state.trip, first)


def test_a_choice_that_would_come_too_late_is_driven_at_the_slowest_that_does_not(env: TripsEnv) -> None:
    _, info = env.reset(seed=1)
    for segment in range(SEGMENTS):
        assert not info["in_time"].all(), "some choices are too slow"
        slowest = info["in_time"].argmax(axis=1)
        asked = env.after(slowest)
        *_, over, _, info = env.step(np.zeros(30, np.int64))
        assert np.array_equal(env.state.speed, asked.speed)
        assert over.all() == (segment == SEGMENTS - 1)
    assert (env.state.left >= -1e-6).all()


def test_what_is_observed_knows_nothing_of_the_headwind_that_came() -> None:
    other = TripsEnv(30, **(given() | {"came": np.full(30, -9.0)}))
    ours = TripsEnv(30, **given())
    assert np.array_equal(ours.reset(seed=5)[0], other.reset(seed=5)[0])
    observed, costs, *_ = ours.step(np.full(30, 6))
    same, others, *_ = other.step(np.full(30, 6))
    assert np.array_equal(observed, same)
    assert not np.array_equal(costs, others)


def test_every_input_has_a_name_and_a_unit(env: TripsEnv) -> None:
    assert len({name for name, *_ in OBSERVED}) == env.reset(seed=0)[0].shape[1]
    assert {unit for _, unit, *_ in OBSERVED} == {"s/s", "m/s", "kg", "m", "m/m"}


def test_trips_are_driven_side_by_side_as_alone(env: TripsEnv) -> None:
    env.reset(seed=2)
    trips, actions = env.state.trip, np.arange(30) % len(SPEEDS)
    observed, rewards, *_ = env.step(actions)
    alone = gymnasium.make(TRIP, **given())
    for number in range(5):
        alone.reset(options={"trip": int(trips[number])})
        seen, reward, *_ = alone.step(actions[number])
        assert np.array_equal(seen, observed[number])
        assert reward == rewards[number]


def test_nothing_but_the_training_itself_loads_gymnasium() -> None:
    code = (
        "import sys, training.trainers as t, serving.predictors as p\n"
        "[t.family_of(name) for name in p.FAMILIES]\n"
        "import serving.predictors.fitted_q, training.trainers.fitted_q\n"
        "assert 'gymnasium' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)

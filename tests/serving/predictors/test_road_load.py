"""Road load: fuel by hand, plans that are in time, and the best plan among all there are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from serving.predictors.road_load import SPEEDS, State, Trips
from tests.training.trips import trip_values, trips


def level(**changes: float) -> dict[str, np.ndarray]:
    """One trip of three level segments of a kilometre at 90 km/h."""
    values = {name: column[:1, ...] for name, column in trip_values(1).items()}
    values |= {"grade_percent": np.zeros((1, 3)), "limit_kmh": np.full((1, 3), 90.0)}
    fixed = {"segment_km": 1.0, "mass_tonnes": 10.0, "headwind_mps": 0.0, "budget_minutes": 3.0}
    return values | {name: np.array([value]) for name, value in (fixed | changes).items()}


def test_fuel_is_that_of_the_road_load_equation() -> None:
    plan = np.full((1, 3), 20.0)
    rolling, air = 10_000 * 9.81 * 0.008, 0.5 * 1.2 * 5.0 * 20.0**2
    work, idle = (rolling + air) * 3000 + 0.5 * 10_000 * 20.0**2, 2.0 / 3600 * 150
    assert Trips(level()).fuel(plan)[0] == pytest.approx(work / (0.42 * 35.8e6) + idle)
    wind = 0.5 * 1.2 * 5.0 * (25.0**2 - 20.0**2) * 3000 / (0.42 * 35.8e6)
    blown = Trips(level(headwind_mps=5.0)).fuel(plan)[0]
    assert blown - Trips(level()).fuel(plan)[0] == pytest.approx(wind)
    assert Trips(level(), np.array([5.0])).fuel(plan)[0] == blown


def test_what_is_braked_saves_nothing() -> None:
    steep = level() | {"grade_percent": np.array([[0.0, -6.0, 0.0]])}
    at, one = np.array([0]), np.array([20.0])
    assert Trips(steep).litres(1, at, one, one)[0] == pytest.approx(2.0 / 3600 * 50), "the engine idles"


def test_the_constant_plan_is_in_time_below_every_limit_and_no_faster_than_it_need_be() -> None:
    driven = trips(200)
    plan = driven.constant_plan()
    seconds = (driven.metres[:, None] / plan).sum(axis=1)
    assert (seconds <= driven.budget + 1e-6).all()
    assert (plan <= driven.limit).all()
    slower = np.minimum(plan.max(axis=1, keepdims=True) - 0.3, plan)
    late = (driven.metres[:, None] / slower).sum(axis=1) > driven.budget
    assert late[plan.max(axis=1) > 6.0].all(), "a little slower, and it would be late"


def test_driving_on_costs_what_its_plan_does() -> None:
    driven = trips(100)
    expected = driven.cruise(0, driven.start())[0]
    assert expected == pytest.approx(driven.fuel(driven.constant_plan()), rel=5e-3)


def test_the_optimum_is_the_cheapest_of_all_plans_that_are_in_time() -> None:
    values = trip_values(3)
    values |= {name: values[name][:, :3] for name in ("grade_percent", "limit_kmh")}
    driven = Trips(values | {"budget_minutes": values["budget_minutes"] * 0.8})
    assert not driven.infeasible.any()
    best = np.full(3, np.inf)
    for chosen in product(SPEEDS, repeat=3):
        plan = np.minimum(np.tile(chosen, (3, 1)), driven.limit)
        in_time = (driven.metres[:, None] / plan).sum(axis=1) <= driven.budget + 1e-6
        best = np.where(in_time, np.minimum(best, driven.fuel(plan)), best)
    found = driven.optimum(2_000)
    assert (found >= best - 1e-9).all(), "no plan is cheaper than the cheapest"
    assert found == pytest.approx(best, rel=2e-3)


def test_choices_leave_the_time_that_the_rest_takes_at_the_limits() -> None:
    driven = trips(50)
    follows, litres, in_time = driven.choices(0, driven.start())
    assert np.array_equal(in_time, follows.left >= driven.least[follows.trip, 1] - 1e-6)
    assert in_time.reshape(50, -1).any(axis=1).all()
    assert np.isfinite(litres).all()
    last = State(np.arange(50), driven.least[:, -2] - 1e-9, np.full(50, 10.0))
    assert driven.choices(driven.segments - 1, last)[2].reshape(50, -1).any(axis=1).all(), "rounding strands nobody"


def test_a_trip_that_cannot_be_in_time_is_driven_at_the_limits_and_said_to_be_one() -> None:
    driven = Trips(level(budget_minutes=1.9))
    assert driven.infeasible.tolist() == [True]
    assert driven.constant_plan()[0].tolist() == driven.limit[0].tolist()
    assert Trips(level(budget_minutes=2.1)).infeasible.tolist() == [False]


def test_absurd_inputs_are_driven_as_the_nearest_that_are_not() -> None:
    absurd = level(mass_tonnes=-3.0, budget_minutes=0.0, headwind_mps=1e9)
    assert np.isfinite(Trips(absurd).fuel(Trips(absurd).constant_plan())).all()

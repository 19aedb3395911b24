"""Fitted Q-iteration: a speed for each segment of a trip, chosen by what it costs and what is learned to follow.

What follows a choice is fuel by `road_load` if the rest is driven at one speed, and what later choices gain on that,
which a forest of extremely randomised trees for each segment says of the state that the choice leads to: skops files.
Choices are made by the headwind to be expected of the forecast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.predictors.contract import Contract, Matrix, Predictor, Scores, read_json
from serving.predictors.road_load import SCALARS, SERIES, SPEEDS, Floats, Ints, State, Trips
from serving.predictors.shapley import Sample, Shapley
from serving.predictors.sklearn_model import PRELOADED, TREE, read_model

DETAILS_FILE = "fitted_q.json"
FOREST = "ExtraTreesRegressor"
PRELOAD = (PRELOADED,)
TRUSTED = (TREE,)
# Segments ahead that a forest sees one by one.
SEGMENTS_SEEN = 4
_EXPLAINED_ROWS = 100


class Policy:
    """Chooses speeds.

    Attributes:
        forests: by segment; of one that has none yet nothing is gained.
    """

    def __init__(self, trips: Trips, *, lookahead: int) -> None:
        self.trips = trips
        self.forests: dict[int, Any] = {}
        self._lookahead = lookahead
        self.scale = trips.cruise(0, trips.start())[0]

    def gain(self, segment: int, state: State) -> Floats:
        """Litres that later choices are learned to add to driving on at one speed, mostly below zero."""
        forest = self.forests.get(segment)
        if forest is None:
            return np.zeros(len(state.trip))
        seen = described(self.trips, segment, state)
        total = np.zeros(len(seen))
        for estimator in forest.estimators_:
            total += estimator.tree_.value[:, 0, 0].take(estimator.tree_.apply(seen))
        return np.asarray(total / len(forest.estimators_) * self.scale[state.trip])

    def choose(self, segment: int, state: State, lookahead: int | None = None) -> tuple[Ints, State, Floats]:
        """The best choice of each state, as a place in `SPEEDS`, the state that it leads to, and what is left to pay
        from before it.
        """
        follows, litres, in_time = self.trips.choices(segment, state)
        total = np.where(in_time, litres, np.inf)
        total[in_time] += self._to_come(
            segment + 1, _of(follows, in_time), (self._lookahead if lookahead is None else lookahead) - 1
        )
        chosen = total.reshape(-1, len(SPEEDS)).argmin(axis=1)
        best = chosen + np.arange(len(state.trip)) * len(SPEEDS)
        return chosen, _of(follows, best), total[best]

    def plan(self) -> Floats:
        """Speeds in m/s, (trips, segments)."""
        state = self.trips.start()
        plan = np.zeros((self.trips.count, self.trips.segments))
        for segment in range(self.trips.segments):
            _, state, _ = self.choose(segment, state)
            plan[:, segment] = state.speed
        # Where all that is learned chooses worse than one speed, that is driven.
        constant = self.trips.constant_plan()
        worse = self.trips.fuel(plan) >= self.trips.fuel(constant)
        plan[worse] = constant[worse]
        return plan

    def _to_come(self, segment: int, state: State, lookahead: int) -> Floats:
        if segment == self.trips.segments:
            return np.zeros(len(state.trip))
        if lookahead > 0:
            return self.choose(segment, state, lookahead)[2]
        return self.trips.cruise(segment, state)[0] + self.gain(segment, state)


def described(trips: Trips, segment: int, state: State) -> npt.NDArray[np.float32]:
    """What a forest sees of a state: float32, (states, inputs)."""
    at, cruise = state.trip, trips.cruise(segment, state)[1]
    last = trips.segments - 1
    # What a kilogram resists with at the speed to drive on at, as a slope: on one that falls more it must be braked.
    level = trips.rolling[at] + trips.drag[at] * cruise * np.abs(cruise) / (trips.kilograms[at] * 9.81)
    columns = [
        state.left / trips.least[at, segment],
        cruise,
        state.speed,
        state.speed - cruise,
        trips.kilograms[at],
        trips.headwind[at],
        trips.metres[at],
    ]
    for ahead in range(SEGMENTS_SEEN):
        there = 1.0 if segment + ahead <= last else 0.0
        slope, limit = (each[at, min(segment + ahead, last)] for each in (trips.slope, trips.limit))
        columns += [slope * there, (limit - cruise) * there, (level + slope) * there]
    climb, fall, braked = (np.zeros(len(at)) for _ in range(3))
    for later in range(segment, last + 1):
        slope = trips.slope[at, later]
        climb, fall = np.maximum(climb, slope), np.minimum(fall, slope)
        braked = braked + np.maximum(-(level + slope), 0.0)
    return np.stack([*columns, climb, fall, braked], axis=1).astype(np.float32)


def values_of(contract: Contract, matrix: Matrix, typical: Mapping[str, float], segments: int) -> dict[str, Floats]:
    """What `Trips` takes, from a matrix of features; a missing value is the typical one of training."""
    columns = columns_of(contract, segments)
    names = list(contract.features)

    def column(name: str) -> Floats:
        values = matrix[:, names.index(name)].astype(np.float64)
        return np.where(np.isnan(values), typical[name], values)

    return {
        what: column(of[0]) if what in SCALARS else np.stack([column(name) for name in of], axis=1)
        for what, of in columns.items()
    }


def columns_of(contract: Contract, segments: int) -> dict[str, list[str]]:
    """The features behind each input of `Trips`: those whose name, without its view's, is the input's.

    Raises:
        KeyError: one is missing; its argument is the name.
    """
    by_name = {name.split("__")[-1]: name for name in contract.features}
    return {what: [by_name[what]] for what in SCALARS} | {
        what: [by_name[f"{what}_t{segment}"] for segment in range(segments)] for what in SERIES
    }


def expected_headwind(forecast: Floats, line: Sequence[float]) -> Floats:
    """The headwind to expect of a forecast, by a line that was fitted to what came."""
    return np.asarray(line[0] + line[1] * forecast)


class FittedQPredictor(Predictor):
    """One plan for all outputs, which differ in the label values that its costs are given for."""

    chunk_rows = 2_048

    def __init__(self, contract: Contract, forests: Mapping[int, Any], details: dict[str, Any]) -> None:
        super().__init__(contract)
        self._forests, self.details = forests, details

    def scores(self, matrix: Matrix) -> Scores:
        """See `Predictor.scores`."""
        values, policy = self._policy(matrix, self.details["lookahead"])
        trips = policy.trips
        plan, constant = policy.plan(), trips.constant_plan()
        columns = []
        for output in self.contract.outputs.values():
            columns += [trips.fuel(plan), trips.fuel(constant), trips.infeasible.astype(np.float64), *(plan * 3.6).T]
            for speeds in (plan, constant):
                # What it costs if the headwind comes out as each of those values.
                columns += [Trips(values, np.full(trips.count, value)).fuel(speeds) for value in output["outcomes"]]
        return np.column_stack(columns)

    def expected_cost(self, matrix: Matrix) -> Floats:
        """Litres of the plan that looks one segment ahead, (rows,)."""
        policy = self._policy(matrix, 1)[1]
        return policy.trips.fuel(policy.plan())

    def _policy(self, matrix: Matrix, lookahead: int) -> tuple[dict[str, Floats], Policy]:
        return policy_of(self.contract, matrix, self.details | {"lookahead": lookahead}, self._forests)


def policy_of(
    contract: Contract, matrix: Matrix, details: Mapping[str, Any], forests: Mapping[int, Any]
) -> tuple[dict[str, Floats], Policy]:
    """The inputs of trips, and the policy that plans them by the headwind to be expected."""
    values = values_of(contract, matrix, details["typical"], details["segments"])
    policy = Policy(
        Trips(values, expected_headwind(values["headwind_mps"], details["headwind"])), lookahead=details["lookahead"]
    )
    policy.forests.update(forests)
    return values, policy


def load(folder: Path, contract: Contract) -> FittedQPredictor:
    """Load forests and details from a verified folder."""
    details = read_json(folder / DETAILS_FILE)
    forests = {
        segment: read_model(folder / forest_file(segment), FOREST, TRUSTED)["model"]
        for segment in range(1, details["segments"])
    }
    return FittedQPredictor(contract, forests, details)


def explain(folder: Path, contract: Contract, sample: Sample) -> Shapley:
    """Contributions of every input to the cost that the plan is expected to have, planned one segment ahead: each
    sampled row becomes a background row, one input after another in a drawn order, there and back.
    """
    predictor = load(folder, contract)
    chosen = sample.thinned(_EXPLAINED_ROWS).matrix
    background = sample.background[np.arange(len(chosen)) % len(sample.background)]
    random = np.random.default_rng(0)
    features = list(contract.features)
    inputs = columns_of(contract, predictor.details["segments"])
    order = random.permutation(len(inputs))
    values = np.zeros((len(chosen), len(features)))
    for way in (order, order[::-1]):
        rows = background.copy()
        cost = predictor.expected_cost(rows)
        for number in way:
            names = list(inputs.values())[number]
            places = [features.index(name) for name in names]
            rows[:, places] = chosen[:, places]
            moved = predictor.expected_cost(rows)
            # The steps of one input move together; the first bears what all do.
            values[:, places[0]] += (moved - cost) / 2.0
            cost = moved
    return Shapley(
        "Shapley values of the expected cost, by two orders of the inputs",
        chosen,
        dict.fromkeys(contract.outputs, values),
    )


def forest_file(segment: int) -> str:
    """The file of the forest of states before a segment."""
    return f"segment_{segment}.skops"


def _of(state: State, rows: npt.NDArray[Any]) -> State:
    return State(state.trip[rows], state.left[rows], state.speed[rows])

"""Fitted Q-iteration: from tried trips, what follows each choice of a speed, learned from the last segment backwards.

Ernst, Geurts and Wehenkel, "Tree-based batch mode reinforcement learning", JMLR 6, 2005, with one regression for each
segment, as an episode has an end (Murphy, JMLR 6, 2005). A choice leads to one state alone, so what is learned is a
function of the state it leads to: what the choices from there gain on driving on at one speed. The costs are those of
the headwind that came; what is known before it is all that choices are made by.
Trips are driven in an environment of Gymnasium, `trip_environment.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from pydantic import Field

from config.catalog.output import Task
from serving.predictors.contract import Contract, Matrix, write_json
from serving.predictors.fitted_q import (
    DETAILS_FILE,
    FOREST,
    TRUSTED,
    Policy,
    columns_of,
    expected_headwind,
    forest_file,
    policy_of,
    values_of,
)
from serving.predictors.road_load import SCALARS, SERIES, SPEEDS, Ints, State, Trips
from serving.predictors.sklearn_model import read_model
from training.trainers import FamilyParams, Fitted, Floats, Rows, Run, TrainingImpossible, normalised, truth_to_learn
from training.trainers.sklearn_rows import LIBRARIES, cpu_alone, write_model

if TYPE_CHECKING:
    from training.trainers.trip_environment import Observations, TripsEnv

_CHECKPOINT = "forests"
_IMPORTANCE_ROWS = 100
_CURVE_ROWS = 300


class Params(FamilyParams):
    """What a catalog or a form may set; those of a forest by scikit-learn's names."""

    n_estimators: int = Field(30, ge=1, le=1_000, description="trees of each segment's forest")
    min_samples_leaf: int = Field(3, ge=1)
    max_features: float = Field(1.0, gt=0, le=1, description="share of the inputs that a split chooses from")
    episodes: int = Field(2, ge=1, le=100, description="times that each trip is tried")
    branches: int = Field(
        3,
        ge=1,
        le=len(SPEEDS),
        description="choices whose outcome is learned from, of each state met; any that is in time",
    )
    exploration: float = Field(0.3, ge=0, le=1, description="share of choices at random, from the second episode on")
    lookahead: int = Field(2, ge=1, le=2, description="segments whose choices are tried out before one is made")
    trips: int = Field(20_000, ge=1, description="most training rows that are learned from, evenly chosen")


LEARNS: tuple[Task, ...] = ("decision",)
ROUNDS: str | None = None
QUICK: dict[str, Any] = {"n_estimators": 5, "episodes": 1, "branches": 2, "lookahead": 1}


def train(
    contract: Contract, fit: Rows, validation: Rows, folder: Path, *, params: Mapping[str, Any], run: Run
) -> Fitted:
    """Learn a forest for each segment but the first and write them into `folder`; all outputs share them.

    Args:
        contract: features, among them every input of `Trips`; others are not looked at.
        fit: trips to learn from; their labels are the headwind that came, in m/s.
        validation: trips for the curve and for importances.
        params: as `validated_params` gives them.
        run: seed, device, progress, checkpoints.
    Raises:
        NoGpu, TrainingImpossible: as their texts say; nothing usable is written.
    """
    chosen = Params(**params)
    used = cpu_alone("fitted_q", contract, run)
    segments = _segments(contract)
    for name in contract.outputs:
        truth_to_learn(contract, name, fit)
    rows = np.unique(np.linspace(0, len(fit.label) - 1, min(len(fit.label), chosen.trips)).astype(np.int64))
    matrix, label = np.asarray(fit.matrix[rows]), fit.label[rows]
    typical = _typical(contract, segments, matrix)
    values = values_of(contract, matrix, typical, segments)
    line = _line(values["headwind_mps"], label)
    details = {"segments": segments, "lookahead": chosen.lookahead, "headwind": line, "typical": typical}

    env = _environment(values, expected_headwind(values["headwind_mps"], line), label)
    policy = Policy(env.planned, lookahead=1)
    met = _met(env, policy, chosen, np.random.default_rng(run.seed))
    checked = _Checked(contract, validation, details)
    _learn(policy, env, met, checked, chosen, run)
    for segment, forest in policy.forests.items():
        _write_forest(forest, folder / forest_file(segment))
    write_json(folder / DETAILS_FILE, details)
    importances = normalised(checked.importances(policy.forests), contract)
    return Fitted(
        used,
        dict.fromkeys(contract.outputs, segments),
        dict.fromkeys(contract.outputs, importances),
        LIBRARIES,
        {"trips": len(rows), "states_a_segment": len(rows) * len(met[segments - 1])},
    )


def _environment(values: Mapping[str, Floats], expected: Floats, came: Floats) -> TripsEnv:
    """The trips, all driven side by side with the headwind that came."""
    import gymnasium

    from training.trainers.trip_environment import TRIP

    env = gymnasium.make_vec(
        TRIP,
        num_envs=len(came),
        vectorization_mode="vector_entry_point",
        values=values,
        expected=expected,
        came=came,
    )
    return cast("TripsEnv", env)


def _segments(contract: Contract) -> int:
    """How many speeds a plan has.

    Raises:
        TrainingImpossible: the outputs differ in it, or the features lack something of so many segments.
    """
    numbers = {int(output["decisions"]) for output in contract.outputs.values()}
    if len(numbers) > 1:
        raise TrainingImpossible(
            f"{contract.model}: its outputs have {' and '.join(map(str, sorted(numbers)))} decisions, one trip has one "
            "number of segments. Give them equal `decisions`."
        )
    (segments,) = numbers
    try:
        columns_of(contract, segments)
    except KeyError as missing:
        raise TrainingImpossible(
            f"{contract.model}: fitted_q needs the feature {missing.args[0]!r}, which no view of the model has. For "
            f"{segments} segments it needs {', '.join(SCALARS)}, and a column for each segment of "
            f"{', '.join(f'{name}_t0 … _t{segments - 1}' for name in SERIES)}."
        ) from missing
    return segments


def _typical(contract: Contract, segments: int, matrix: Matrix) -> dict[str, float]:
    """The median of each input; of one that is always missing the middle of what is driven with."""
    names, typical = list(contract.features), {}
    for what, columns in columns_of(contract, segments).items():
        low, high = {**SCALARS, **SERIES}[what]
        for column in columns:
            values = matrix[:, names.index(column)]
            known = values[~np.isnan(values)]
            typical[column] = float(np.median(known)) if len(known) else (low + high) / 2.0
    return typical


def _line(forecast: Floats, came: Floats) -> list[float]:
    """Intercept and slope of the headwind that came over the forecast, by least squares."""
    spread = forecast - forecast.mean()
    varied = float((spread * spread).sum())
    slope = float((spread * came).sum()) / varied if varied > 0.0 else 0.0
    return [float(came.mean()) - slope * float(forecast.mean()), slope]


def _met(env: TripsEnv, policy: Policy, chosen: Params, random: np.random.Generator) -> dict[int, list[State]]:
    """States before each segment but the first: where some choices lead to, of the states that episodes come through.

    Returns:
        By segment; of each trip one state in each item.
    """
    met: dict[int, list[State]] = {segment: [] for segment in range(1, policy.trips.segments)}
    for episode in range(chosen.episodes):
        _, info = env.reset(options={"segment": 0, "state": policy.trips.start()})
        for segment in range(policy.trips.segments - 1):
            met[segment + 1] += [env.after(_drawn(info["in_time"], random)) for _ in range(chosen.branches)]
            best, _, _ = policy.choose(segment, env.state)
            tried = random.random(policy.trips.count) < (chosen.exploration if episode else 0.0)
            other = _drawn(info["in_time"], random)
            *_, info = env.step(np.where(tried, other, best))
    return met


def _drawn(in_time: npt.NDArray[np.bool_], random: np.random.Generator) -> Ints:
    """One of the choices of each state that are in time."""
    order = np.where(in_time, random.random(in_time.size).reshape(in_time.shape), -1.0)
    return np.asarray(order.argmax(axis=1))


def _learn(
    policy: Policy, env: TripsEnv, met: Mapping[int, list[State]], checked: _Checked, chosen: Params, run: Run
) -> None:
    """Fill the policy's forests, from the last segment backwards; a killed training goes on at the segment it was at.

    Args:
        env: drives each choice with the headwind that came.
    """
    from sklearn.ensemble import ExtraTreesRegressor

    first = policy.trips.segments
    saved = run.checkpoints.load(_CHECKPOINT)
    if saved:
        first = int(saved.state["segment"])
        for segment in range(first, policy.trips.segments):
            policy.forests[segment] = read_model(saved.folder / forest_file(segment), FOREST, TRUSTED)["model"]
        run.progress.line(f"fitted Q: goes on before segment {first}")
    for segment in range(first - 1, 0, -1):
        transitions = [_transition(policy, env, segment, state) for state in met[segment]]
        observed, gained = (np.concatenate(of_each) for of_each in zip(*transitions, strict=True))
        forest = ExtraTreesRegressor(
            chosen.n_estimators,
            min_samples_leaf=chosen.min_samples_leaf,
            max_features=chosen.max_features,
            random_state=run.seed + segment,
        )
        policy.forests[segment] = forest.fit(observed, gained)
        cost = checked.relative_cost(policy.forests)
        for name in checked.contract.outputs:
            run.progress.point(f"validation/{name}/relative_cost", policy.trips.segments - segment, cost)
        run.progress.line(
            f"fitted Q: segment {segment} from {len(gained):,} states, validation relative_cost {cost:.5g}"
        )
        if run.checkpoints.due():
            _save(policy.forests, segment, run)


def _transition(policy: Policy, env: TripsEnv, segment: int, state: State) -> tuple[Observations, Floats]:
    """What is observed before a segment, and what the best choice there and all later ones gain on driving on at one
    speed, as a share of the trip's fuel.
    """
    observed, _ = env.reset(options={"segment": segment, "state": state})
    best, _, _ = policy.choose(segment, state)
    _, rewards, *_ = env.step(best)
    left = env.driven.cruise(segment + 1, env.state)[0] + policy.gain(segment + 1, env.state)
    gained = -rewards + left - env.driven.cruise(segment, state)[0]
    return observed, gained / policy.scale[state.trip]


def _save(forests: Mapping[int, Any], segment: int, run: Run) -> None:
    def write(folder: Path) -> None:
        for number, forest in forests.items():
            _write_forest(forest, folder / forest_file(number))

    run.checkpoints.save(_CHECKPOINT, write, {"segment": segment}, finished=segment == 1)


def _write_forest(forest: Any, path: Path) -> None:
    from sklearn.pipeline import Pipeline

    write_model(Pipeline([("encode", "passthrough"), ("model", forest)]), path)


class _Checked:
    """Validation trips that a policy is tried on."""

    def __init__(self, contract: Contract, validation: Rows, details: dict[str, Any]) -> None:
        self.contract, self._details = contract, details
        rows = np.unique(np.linspace(0, len(validation.label) - 1, _CURVE_ROWS).astype(np.int64))
        self._matrix, self._came = np.asarray(validation.matrix[rows]), validation.label[rows]

    def relative_cost(self, forests: Mapping[int, Any]) -> float:
        """Fuel over that at one speed, with the headwind that came: mean over the trips."""
        values, policy = self._policy(self._matrix, forests)
        driven = Trips(values, self._came)
        return float((driven.fuel(policy.plan()) / driven.fuel(policy.trips.constant_plan())).mean())

    def importances(self, forests: Mapping[int, Any]) -> dict[str, float]:
        """By how many km/h the speeds of a plan change, on average, where a feature is taken to be a typical one."""
        matrix = self._matrix[:_IMPORTANCE_ROWS]
        plan = self._policy(matrix, forests)[1].plan()
        columns = columns_of(self.contract, self._details["segments"])
        moved = {}
        for column in (column for of_input in columns.values() for column in of_input):
            changed = matrix.copy()
            changed[:, list(self.contract.features).index(column)] = np.nan
            moved[column] = float(np.abs(self._policy(changed, forests)[1].plan() - plan).mean()) * 3.6
        return moved

    def _policy(self, matrix: Matrix, forests: Mapping[int, Any]) -> tuple[dict[str, Floats], Policy]:
        return policy_of(self.contract, matrix, self._details | {"lookahead": 1}, forests)

"""Planned trips as environments of Gymnasium: one (`TripEnv`), or many that are driven side by side (`TripsEnv`).

An episode is a trip, a step is one of its segments, an action the place of a speed in `SPEEDS`. What is observed is
known before the trip, with the headwind to be expected; the reward is what the segment costs with the headwind that
came. A choice that would leave too little time for the rest is driven at the slowest speed that does not: so every
action may be taken, and every trip that can be in time is. An episode ends after the last segment, never before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from serving.predictors.fitted_q import SEGMENTS_SEEN, described
from serving.predictors.road_load import SCALARS, SERIES, SPEEDS, Floats, Ints, State, Trips

TRIP = "nightfleet/Trip-v0"
Observations = npt.NDArray[np.float32]
_FASTEST = float(SPEEDS[-1])
_STEEPEST = SERIES["grade_percent"][1] / 100.0
# What `described` gives of a state: unit, least and most of each. All are 0 at the end of a trip.
_SEEN_OF_EACH = (
    ("slope", "m/m", -_STEEPEST, _STEEPEST),
    ("limit over cruise", "m/s", -_FASTEST, _FASTEST),
    ("resistance as a slope", "m/m", -1.0, 2.0),
)
OBSERVED: tuple[tuple[str, str, float, float], ...] = (
    ("time left over that at the limits", "s/s", 0.0, 1e5),
    ("cruise: one speed for all that is left", "m/s", 0.0, _FASTEST),
    ("speed so far", "m/s", 0.0, _FASTEST),
    ("speed so far over cruise", "m/s", -_FASTEST, _FASTEST),
    ("mass", "kg", 0.0, SCALARS["mass_tonnes"][1] * 1000.0),
    ("headwind expected", "m/s", -100.0, 100.0),
    ("segment", "m", 0.0, SCALARS["segment_km"][1] * 1000.0),
    *(
        (f"{name}, {ahead} segments ahead", unit, low, high)
        for ahead in range(SEGMENTS_SEEN)
        for name, unit, low, high in _SEEN_OF_EACH
    ),
    ("steepest climb ahead", "m/m", 0.0, _STEEPEST),
    ("steepest fall ahead", "m/m", -_STEEPEST, 0.0),
    ("falls to be braked on, their sum", "m/m", 0.0, np.inf),
)


class TripsEnv(VectorEnv[Observations, Ints, npt.NDArray[Any]]):
    """Trips that are driven side by side, all of one number of segments.

    Args:
        num_envs: how many are driven at a time.
        values: the trips to choose from, as `road_load.Trips` takes them.
        expected: the headwind that each is planned with, m/s, (trips,).
        came: the one that it is driven with, m/s, (trips,).

    Attributes:
        planned: the trips as they are planned.
        driven: the same with the headwind that came.
        segment: the one to come, from 0.
        state: where each stands.
    """

    def __init__(self, num_envs: int, *, values: Mapping[str, Floats], expected: Floats, came: Floats) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}
        self.planned, self.driven = Trips(values, expected), Trips(values, came)
        low, high = (np.array([of[place] for of in OBSERVED]) for place in (2, 3))
        high[-1] = _STEEPEST * self.planned.segments
        self.single_observation_space = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))
        self.single_action_space = gymnasium.spaces.Discrete(len(SPEEDS))
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        self.segment = self.planned.segments
        self.state = State(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin trips that are drawn by the seed, or go on from where `options` say.

        Args:
            options: `segment` and `state`, a `road_load.State` of `num_envs`; left out: the start of drawn trips.
        """
        super().reset(seed=seed)
        if not options:
            start, drawn = self.planned.start(), self.np_random.integers(self.planned.count, size=self.num_envs)
            self.segment, self.state = 0, State(start.trip[drawn], start.left[drawn], start.speed[drawn])
        else:
            self.segment, self.state = options["segment"], options["state"]
        return self._observed(), self._allowed()

    def step(
        self, actions: Ints
    ) -> tuple[Observations, Floats, npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
        """Drive a segment.

        Returns:
            Observations, rewards (litres, below zero), whether the trips are over, never truncated, and `in_time`.

        Raises:
            ResetNeeded: they are over already.
        """
        if self.segment == self.planned.segments:
            raise gymnasium.error.ResetNeeded("the trips are over, or have not begun. Call `reset` before `step`.")
        follows = self.after(actions)
        litres = self.driven.litres(self.segment, follows.trip, self.state.speed, follows.speed)
        self.segment, self.state = self.segment + 1, follows
        over = np.full(self.num_envs, self.segment == self.planned.segments)
        return self._observed(), -litres, over, np.zeros(self.num_envs, np.bool_), self._allowed()

    def after(self, actions: Ints) -> State:
        """Where actions lead to, without taking them, (num_envs,)."""
        follows, _, in_time = self.planned.choices(self.segment, self.state)
        # Time left grows with speed: what is in time begins at one speed, and goes on.
        taken = np.maximum(actions, in_time.reshape(-1, len(SPEEDS)).argmax(axis=1))
        place = taken + np.arange(self.num_envs) * len(SPEEDS)
        return State(follows.trip[place], follows.left[place], follows.speed[place])

    def _observed(self) -> Observations:
        if self.segment == self.planned.segments:
            return np.zeros((self.num_envs, len(OBSERVED)), np.float32)
        return described(self.planned, self.segment, self.state)

    def _allowed(self) -> dict[str, Any]:
        """`in_time`: which actions are taken as they are, (num_envs, speeds); all, where there are none left."""
        if self.segment == self.planned.segments:
            return {"in_time": np.ones((self.num_envs, len(SPEEDS)), np.bool_)}
        return {"in_time": self.planned.choices(self.segment, self.state)[2].reshape(-1, len(SPEEDS))}


class TripEnv(gymnasium.Env[Observations, np.int64]):
    """One trip of those given, drawn anew by each `reset`. Args as of `TripsEnv`."""

    def __init__(self, *, values: Mapping[str, Floats], expected: Floats, came: Floats) -> None:
        self._one = TripsEnv(1, values=values, expected=expected, came=came)
        self.observation_space = self._one.single_observation_space
        self.action_space = self._one.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin a trip; `options` may say which: `{"trip": 3}`."""
        super().reset(seed=seed)
        start = self._one.planned.start()
        drawn = int(self.np_random.integers(self._one.planned.count))
        trip = [(options or {}).get("trip", drawn)]
        state = State(start.trip[trip], start.left[trip], start.speed[trip])
        observations, info = self._one.reset(options={"segment": 0, "state": state})
        return observations[0], {"in_time": info["in_time"][0]}

    def step(self, action: np.int64) -> tuple[Observations, float, bool, bool, dict[str, Any]]:
        """Drive a segment; see `TripsEnv.step`."""
        observations, rewards, over, _, info = self._one.step(np.array([action]))
        return observations[0], float(rewards[0]), bool(over[0]), False, {"in_time": info["in_time"][0]}


gymnasium.register(TRIP, entry_point=f"{__name__}:TripEnv", vector_entry_point=f"{__name__}:TripsEnv")

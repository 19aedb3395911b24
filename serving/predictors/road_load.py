"""Trips whose speed is chosen segment by segment, many at a time: what a choice costs in fuel and in minutes, what
driving on at one speed would cost, and the best plan there is.

The road load equation (Gillespie, Fundamentals of Vehicle Dynamics, 1992, chapter 4) gives the work of a segment:
rolling and grade, air against the headwind, and the change of the kinetic energy as it is entered. Fuel follows by a
Willans line (Guzzella and Sciarretta, Vehicle Propulsion Systems, 2013, chapter 3): an idling engine's, and work over
the engine's efficiency. Work below zero is braked away and saves nothing, so a plan saves by not having to brake, by
letting a climb take speed and a slope give it back, and by driving no faster than the minutes ask for.

Sums go segment by segment, each of exact operations: a trip gets the same bits whatever trips are beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

GRAVITY, AIR_DENSITY, DIESEL_J_A_LITRE = 9.81, 1.2, 35.8e6
# Speeds that may be chosen, in m/s; where the limit is lower, the limit.
SPEEDS: Floats = np.arange(30.0, 91.0, 5.0) / 3.6
# Speeds between which a constant one is sought.
_CRUISE: Floats = np.arange(20.0, 91.0) / 3.6
# Of one value a trip, and of one a segment; smallest and largest that are driven with.
SCALARS: Mapping[str, tuple[float, float]] = {
    "segment_km": (0.05, 50.0),
    "mass_tonnes": (0.5, 80.0),
    "drag_area_m2": (0.2, 12.0),
    "rolling_resistance": (0.002, 0.03),
    "engine_efficiency": (0.1, 0.6),
    "idle_litres_per_hour": (0.1, 10.0),
    "headwind_mps": (-30.0, 30.0),
    "budget_minutes": (1.0, 1440.0),
}
SERIES: Mapping[str, tuple[float, float]] = {"grade_percent": (-12.0, 12.0), "limit_kmh": (20.0, 130.0)}
# Seconds below which a trip still is in time: rounding.
_ON_TIME = 1e-6


@dataclass(frozen=True)
class State:
    """Where trips stand as they come to a segment, one value each: which trip, seconds left, m/s driven so far."""

    trip: Ints
    left: Floats
    speed: Floats


class Trips:
    """Trips with the headwind that they are planned or driven with.

    Args:
        values: by the names of `SCALARS` (trips,) and `SERIES` (trips, segments), in the units of their names.
        headwind: m/s, (trips,); None: that of `values`.
    """

    def __init__(self, values: Mapping[str, Floats], headwind: Floats | None = None) -> None:
        one, each = (
            {name: np.clip(values[name], *bounds) for name, bounds in names.items()} for names in (SCALARS, SERIES)
        )
        self.count, self.segments = each["grade_percent"].shape
        self.metres = one["segment_km"] * 1000.0
        self.kilograms = one["mass_tonnes"] * 1000.0
        self.drag = 0.5 * AIR_DENSITY * one["drag_area_m2"]
        self.rolling = one["rolling_resistance"]
        self.litres_a_joule = 1.0 / (one["engine_efficiency"] * DIESEL_J_A_LITRE)
        self.idle = one["idle_litres_per_hour"] / 3600.0
        self.budget = one["budget_minutes"] * 60.0
        self.headwind = one["headwind_mps"] if headwind is None else headwind
        self.slope = each["grade_percent"] / 100.0
        self.limit = np.minimum(each["limit_kmh"] / 3.6, SPEEDS[-1])
        self.least = self._least_seconds()

    @property
    def infeasible(self) -> npt.NDArray[np.bool_]:
        """Trips that cannot be in time, even at the limits, (trips,)."""
        return np.asarray(self.least[:, 0] > self.budget + _ON_TIME)

    def start(self) -> State:
        """Every trip, standing, with all its time; one that cannot be in time has what the limits take."""
        return State(np.arange(self.count), np.maximum(self.budget, self.least[:, 0]), np.zeros(self.count))

    def litres(self, segment: int, trip: Ints, entered: Floats, speed: Floats) -> Floats:
        """Fuel of a segment that is entered at a speed and driven at another, both m/s, a value for each of `trip`."""
        air = speed + self.headwind[trip]
        resisting = (
            self.kilograms[trip] * GRAVITY * (self.rolling[trip] + self.slope[trip, segment])
            + self.drag[trip] * air * np.abs(air)
        ) * self.metres[trip]
        work = resisting + 0.5 * self.kilograms[trip] * (speed * speed - entered * entered)
        return np.asarray(
            np.maximum(work, 0.0) * self.litres_a_joule[trip] + self.idle[trip] * self.metres[trip] / speed
        )

    def choices(self, segment: int, state: State) -> tuple[State, Floats, npt.NDArray[np.bool_]]:
        """Every speed that may be chosen for a segment, for each state one after another, (states * speeds,).

        Returns:
            The states that follow, the fuel each takes, and which leave enough time for the rest at the limits.
        """
        trip = np.repeat(state.trip, len(SPEEDS))
        speed = np.minimum(np.tile(SPEEDS, len(state.trip)), self.limit[trip, segment])
        left = np.repeat(state.left, len(SPEEDS)) - self.metres[trip] / speed
        taken = self.litres(segment, trip, np.repeat(state.speed, len(SPEEDS)), speed)
        # At the limit there always is: what rounding takes is no reason.
        in_time = (left >= self.least[trip, segment + 1] - _ON_TIME) | (speed == self.limit[trip, segment])
        return State(trip, left, speed), taken, in_time

    def cruise(self, segment: int, state: State) -> tuple[Floats, Floats]:
        """Driving on from a segment at the one speed, lower only where the limit is, that takes all the time left.

        Returns:
            The fuel, and the speed in m/s; 0 and the speed so far at the end of the trip.
        """
        if segment == self.segments:
            return np.zeros(len(state.trip)), state.speed
        seconds, litres = self._cruises
        seconds, tail = seconds[state.trip, segment], litres[state.trip, segment + 1]
        faster = np.minimum((seconds > state.left[:, None]).sum(axis=1), len(_CRUISE) - 1)
        slower = np.maximum(faster - 1, 0)
        rows = np.arange(len(state.trip))
        longest, shortest = seconds[rows, slower], seconds[rows, faster]
        between = np.where(longest > shortest, longest - shortest, 1.0)
        share = np.where(longest > shortest, np.clip((longest - state.left) / between, 0.0, 1.0), 1.0)
        speed = _CRUISE[slower] + share * (_CRUISE[faster] - _CRUISE[slower])
        rest = tail[rows, slower] + share * (tail[rows, faster] - tail[rows, slower])
        first = np.minimum(speed, self.limit[state.trip, segment])
        return self.litres(segment, state.trip, state.speed, first) + rest, speed

    def constant_plan(self) -> Floats:
        """Speeds of the baseline in m/s, (trips, segments): constant but for the limits, and in time."""
        speed = self.cruise(0, self.start())[1]
        return np.asarray(np.minimum(speed[:, None], self.limit))

    def fuel(self, plan: Floats) -> Floats:
        """Litres of a plan, speeds in m/s (trips, segments)."""
        trip, entered, total = np.arange(self.count), np.zeros(self.count), np.zeros(self.count)
        for segment in range(self.segments):
            total = total + self.litres(segment, trip, entered, plan[:, segment])
            entered = plan[:, segment]
        return total

    def optimum(self, cells: int = 300) -> Floats:
        """Litres of the best plan of `SPEEDS`, by dynamic programming over segments, speeds and slack.

        Args:
            cells: into which the seconds that the limits leave are cut; what a choice takes is rounded up to whole
                ones, so that every plan found is in time.
        """
        cell = np.maximum(np.maximum(self.budget - self.least[:, 0], 0.0) / cells, 1e-9)
        trip = np.arange(self.count)
        ahead = np.zeros((self.count, cells + 1, len(SPEEDS)))  # by slack left, and speed at which it is entered
        for segment in range(self.segments - 1, -1, -1):
            limit, before = self.limit[:, segment, None], self.limit[:, segment - 1, None]
            chosen = np.minimum(SPEEDS, limit)
            entered = np.minimum(SPEEDS, before) if segment else np.zeros((self.count, 1))
            slack = self.metres[:, None] * (1.0 / chosen - 1.0 / limit)
            taken = np.ceil(slack / cell[:, None] - 1e-9).astype(np.int64)
            best = np.full((self.count, cells + 1, entered.shape[1]), np.inf)
            for place in range(len(SPEEDS)):
                remaining = np.arange(cells + 1) - taken[:, place, None]
                follows = ahead[trip[:, None], np.maximum(remaining, 0), place]
                follows = np.where(remaining >= 0, follows, np.inf)
                for row, speed in enumerate(entered.T):
                    litres = self.litres(segment, trip, speed, chosen[:, place])
                    np.minimum(best[:, :, row], follows + litres[:, None], out=best[:, :, row])
            ahead = best
        return np.asarray(ahead[:, -1, 0])

    def _least_seconds(self) -> Floats:
        """What the limits take from each segment on, (trips, segments + 1)."""
        least = np.zeros((self.count, self.segments + 1))
        for segment in range(self.segments - 1, -1, -1):
            least[:, segment] = least[:, segment + 1] + self.metres / self.limit[:, segment]
        return least

    @cached_property
    def _cruises(self) -> tuple[Floats, Floats]:
        """Seconds and litres of each speed of `_CRUISE` from each segment on, which is entered at it, (trips, segments
        + 1, speeds).
        """
        seconds = np.zeros((self.count, self.segments + 1, len(_CRUISE)))
        litres = np.zeros_like(seconds)
        trip = np.repeat(np.arange(self.count), len(_CRUISE))
        speeds = np.tile(_CRUISE, self.count)
        for segment in range(self.segments - 1, -1, -1):
            speed = np.minimum(speeds, self.limit[trip, segment])
            entered = np.minimum(speeds, self.limit[trip, segment - 1]) if segment else np.zeros_like(speed)
            seconds[:, segment] = seconds[:, segment + 1] + (self.metres[trip] / speed).reshape(self.count, -1)
            taken = self.litres(segment, trip, entered, speed)
            litres[:, segment] = litres[:, segment + 1] + taken.reshape(self.count, -1)
        return seconds, litres

"""The vehicles, their types and drivers: what of the fleet does not change from day to day."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from config.catalog.simulation import WORLDS, BadSensors, ColderWinter, Episode, NewVehicleType, PolicyChange
from features.sources.simulation.draws import Floats, normals, uniforms
from features.sources.simulation.renewal import Bools

FIRST_DAY = WORLDS["fleet"].begins.toordinal()
# Rosters change every four weeks: a vehicle is then driven by one of the three who know it.
ROSTER_DAYS = 28
DRIVERS_A_VEHICLE = 3
DEPOTS = ("north", "east", "south", "west")
GRAVITY, AIR_DENSITY, DIESEL_MJ_A_LITRE = 9.81, 1.2, 35.8

Kind = TypeVar("Kind", BadSensors, ColderWinter, NewVehicleType, PolicyChange)


@dataclass(frozen=True)
class VehicleType:
    """What a vehicle of a type weighs, how it is driven, and what it resists with; SI units but for what is named."""

    name: str
    share: float
    empty_tonnes: float
    payload_tonnes: float
    km_a_day: float
    speed_kmh: float
    stops_a_km: float
    stop_speed_kmh: float
    drag_area: float
    rolling: float
    efficiency: float
    tank_litres: float
    engine_temp: float

    def braked_mj_a_km(self, gross_tonnes: Floats | float) -> Floats | float:
        """Kinetic energy that the brakes turn into heat: half of mass times speed squared, at each stop."""
        return 0.5 * gross_tonnes * (self.stop_speed_kmh / 3.6) ** 2 * self.stops_a_km / 1000.0

    def litres_a_km(self, gross_tonnes: Floats | float) -> Floats | float:
        """Fuel by the road load equation: rolling, air, and acceleration, which is what is braked again.

        Gillespie, Fundamentals of Vehicle Dynamics, 1992, chapter 4. What a grade takes uphill it gives back downhill
        or at the brakes: it is part of what is braked.
        """
        rolling = gross_tonnes * GRAVITY * self.rolling
        air = 0.5 * AIR_DENSITY * self.drag_area * (self.speed_kmh / 3.6) ** 2 / 1000.0
        return (rolling + air + self.braked_mj_a_km(gross_tonnes)) / (self.efficiency * DIESEL_MJ_A_LITRE)


TYPES = (
    VehicleType("van", 0.5, 2.1, 1.2, 110.0, 45.0, 1.2, 43.0, 1.6, 0.010, 0.28, 80.0, 86.0),
    VehicleType("truck", 0.35, 7.5, 6.0, 180.0, 62.0, 0.5, 52.0, 5.0, 0.008, 0.36, 300.0, 90.0),
    VehicleType("bus", 0.15, 11.0, 3.5, 150.0, 30.0, 1.4, 36.0, 5.5, 0.008, 0.32, 250.0, 88.0),
)
ELECTRIC = "electric_van"
ELECTRIC_BRAKED = 0.5


@dataclass(frozen=True)
class Fleet:
    """A fleet as it is drawn: equal ones are the same fleet. Arrays are of one value a vehicle.

    Days are proleptic ordinals, as `date.toordinal` counts them.
    """

    seed: int
    vehicles: int
    episodes: tuple[Episode, ...] = ()

    def planted(self, kind: type[Kind]) -> Iterator[Kind]:
        """The episodes of a kind."""
        for episode in self.episodes:
            if isinstance(episode, kind):
                yield episode

    def uniforms(self, stream: str, index: int = 0) -> Floats:
        """One number in (0, 1) a vehicle."""
        return uniforms(self.seed, stream, index, self.vehicles)

    def normals(self, stream: str, index: int = 0) -> Floats:
        """One standard normal number a vehicle."""
        return normals(self.seed, stream, index, self.vehicles)

    def normal_pool(self, stream: str, index: int) -> Floats:
        """Standard normal numbers of (drivers a vehicle, vehicles), for what is drawn beside each other."""
        return np.stack([self.normals(f"{stream} {driver}", index) for driver in range(DRIVERS_A_VEHICLE)])

    @cached_property
    def names(self) -> pa.Array:
        """What each vehicle is called."""
        return pa.array([f"V{number:06d}" for number in range(self.vehicles)])

    @cached_property
    def type_of(self) -> npt.NDArray[np.int64]:
        """Place of each vehicle's type in `TYPES`."""
        shares = np.cumsum([each.share for each in TYPES])
        return np.searchsorted(shares[:-1], self.uniforms("type"), side="right")

    def by_type(self, attribute: str) -> Floats:
        """An attribute of each vehicle's type."""
        return np.array([getattr(each, attribute) for each in TYPES], dtype=np.float64)[self.type_of]

    def by_type_and(self, method: str, values: Floats) -> Floats:
        """A method of each vehicle's type, of each vehicle's value."""
        return np.choose(self.type_of, [getattr(each, method)(values) for each in TYPES])

    @cached_property
    def depot(self) -> npt.NDArray[np.int64]:
        """Place of each vehicle's depot in `DEPOTS`."""
        return (self.uniforms("depot") * len(DEPOTS)).astype(np.int64)

    @cached_property
    def load_share(self) -> Floats:
        """Mean share of its payload that a vehicle carries."""
        return 0.25 + 0.5 * self.uniforms("load share")

    @cached_property
    def gross_tonnes(self) -> Floats:
        """Mean mass with load."""
        return self.by_type("empty_tonnes") + self.load_share * self.by_type("payload_tonnes")

    @cached_property
    def typical_gross_tonnes(self) -> Floats:
        """Mass of the vehicle's type at half load."""
        return self.by_type("empty_tonnes") + 0.5 * self.by_type("payload_tonnes")

    @cached_property
    def km_a_day(self) -> Floats:
        """Kilometres of a mean day."""
        return self.by_type("km_a_day") * np.exp(0.25 * self.normals("route length"))

    @cached_property
    def litres_a_km(self) -> Floats:
        """Fuel at the vehicle's mean load."""
        return self.by_type_and("litres_a_km", self.gross_tonnes)

    @cached_property
    def engine_temp(self) -> Floats:
        """Temperature at which a sound engine runs, in degrees Celsius: that of its type, and how well it is cooled."""
        return self.by_type("engine_temp") + 4.0 * self.normals("cooling")

    @cached_property
    def styles(self) -> Floats:
        """(drivers, vehicles): how each driver drives, 0 the mean, 1 a deviation rougher."""
        return self.normal_pool("style", 0)

    def driver(self, roster: int) -> npt.NDArray[np.int64]:
        """Which of its drivers has each vehicle in a roster of four weeks."""
        return (self.uniforms("roster", roster) * DRIVERS_A_VEHICLE).astype(np.int64)

    def style(self, roster: int) -> Floats:
        """How each vehicle is driven in a roster of four weeks."""
        return np.asarray(np.take_along_axis(self.styles, self.driver(roster)[None], axis=0)[0])

    def chosen(self, episode: BadSensors | NewVehicleType) -> Bools:
        """The vehicles that an episode concerns."""
        return self.uniforms(f"episode {episode.kind} {episode.first}") < episode.share

    def electric(self, day: int) -> Bools:
        """Vehicles that are electric vans on a day."""
        result = np.zeros(self.vehicles, bool)
        for episode in self.planted(NewVehicleType):
            if episode.first.toordinal() <= day <= episode.last.toordinal():
                result |= self.chosen(episode)
        return result

    def type_names(self, day: int) -> pa.Array:
        """What each vehicle's type is called on a day."""
        names = pa.array([*(each.name for each in TYPES), ELECTRIC])
        return names.take(pa.array(np.where(self.electric(day), len(TYPES), self.type_of)))


def master(fleet: Fleet, day: int) -> pa.Table:
    """The office's list of vehicles, whole every night."""
    return pa.table(
        {
            "vehicle": fleet.names,
            "vehicle_type": fleet.type_names(day),
            "depot": pa.array(DEPOTS).take(pa.array(fleet.depot)),
            "empty_tonnes": fleet.by_type("empty_tonnes"),
            "payload_tonnes": fleet.by_type("payload_tonnes"),
            "tank_litres": fleet.by_type("tank_litres"),
            "build_year": (2012 + 10 * fleet.uniforms("build year")).astype(np.int32),
        }
    )

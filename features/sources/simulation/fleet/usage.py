"""How the vehicles are used, day by day and added up: distance, weather, and the clocks by which parts wear.

What is added up is known in closed form: a vehicle's kilometres up to the evening of a day are its mean day times the
days so far, weekdays and seasons counted, plus a noise of that day alone, which stays small enough that no day runs
backwards. A clock of wear runs with the kilometres, at a pace that depends on who drives (a roster of four weeks), so
it is a sum over the rosters so far.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from config.catalog.simulation import ColderWinter, NewVehicleType
from features.sources.simulation.draws import Floats
from features.sources.simulation.fleet.vehicles import ELECTRIC_BRAKED, FIRST_DAY, ROSTER_DAYS, TYPES, Fleet

# Share of a mean day on Monday ... Sunday; the world begins on a Monday.
_WEEK = np.array([1.1, 1.15, 1.15, 1.1, 1.15, 0.8, 0.55])
_WEEK_SO_FAR = np.concatenate([[0.0], np.cumsum(_WEEK)])
_YEAR_DAYS, _SEASON, _DAY_NOISE = 365.25, 0.08, 0.25
BRAKES, ENGINE, TYRES = range(3)
# By how much a deviation of style quickens each clock, as a logarithm.
_STYLE = np.array([0.35, 0.15, 0.2])
_LIFE_DAYS = np.array([170.0, 180.0, 200.0])
NEW_TREAD_MM, WORN_TREAD_MM = 8.0, 6.0
# Arrhenius: a reaction of 60 kJ/mol, which doubles with about 13 K here, wears the engine's oil and seals.
_ACTIVATION_K = 60_000.0 / 8.314
_REFERENCE_K = 273.15 + 88.0


def roster_of(day: int) -> int:
    """The number of the roster that a day is in; the days before the world begins are in the first."""
    return max(0, (day - FIRST_DAY) // ROSTER_DAYS)


@lru_cache(maxsize=64)
def odometer_km(fleet: Fleet, day: int) -> Floats:
    """Kilometres of each vehicle up to the end of a day."""
    elapsed = day - FIRST_DAY + 1
    weeks, rest = divmod(elapsed, 7)
    turn = 2.0 * np.pi / _YEAR_DAYS
    mean_days = weeks * _WEEK.sum() + _WEEK_SO_FAR[rest] + _SEASON / turn * (1.0 - np.cos(turn * elapsed))
    begun = 5_000.0 + 150_000.0 * fleet.uniforms("odometer")
    return np.asarray(begun + fleet.km_a_day * (mean_days + _DAY_NOISE * fleet.uniforms("day's distance", day)))


def distance_km(fleet: Fleet, day: int) -> Floats:
    """Kilometres of each vehicle on a day."""
    return odometer_km(fleet, day) - odometer_km(fleet, day - 1)


def ambient_celsius(fleet: Fleet, day: int) -> float:
    """Mean temperature of the air on a day: a season, weather of the week and of the day."""
    season = 10.0 - 9.5 * np.cos(2.0 * np.pi * (day - FIRST_DAY - 20) / _YEAR_DAYS)
    week, share = divmod(day, 7)
    fronts = [float(fleet_weather(fleet.seed, number)) for number in (week, week + 1)]
    colder = sum(
        episode.celsius
        for episode in fleet.planted(ColderWinter)
        if episode.first.toordinal() <= day <= episode.last.toordinal()
    )
    return float(season + 4.0 * (fronts[0] + (fronts[1] - fronts[0]) * share / 7.0) - colder)


@lru_cache(maxsize=64)
def fleet_weather(seed: int, week: int) -> float:
    """Standard normal number of a week's weather."""
    return float(Fleet(seed, 1).normals("weather", week)[0])


@lru_cache(maxsize=4)
def paces(fleet: Fleet) -> Floats:
    """(clocks, vehicles): wear a kilometre of each vehicle under a driver of mean style, 1 being a nominal life.

    Brakes wear by the energy they turn into heat (Archard's law with the pad's pressure times sliding distance as the
    work of friction; Archard, Contact and rubbing of flat surfaces, J. Appl. Phys. 24, 1953). Tyres wear by load times
    distance, the same law. Engines age by kilometres times Arrhenius' factor of the temperature they run at.
    """
    by_km = 1.0 / (_LIFE_DAYS[:, None] * fleet.by_type("km_a_day"))
    load = fleet.gross_tonnes / fleet.typical_gross_tonnes
    braked = fleet.by_type_and("braked_mj_a_km", fleet.gross_tonnes) / fleet.by_type_and(
        "braked_mj_a_km", fleet.typical_gross_tonnes
    )
    heat = np.exp(_ACTIVATION_K * (1.0 / _REFERENCE_K - 1.0 / (273.15 + fleet.engine_temp)))
    return np.asarray(by_km * np.stack([braked, heat, load]))


@lru_cache(maxsize=4)
def pads_life_mj(fleet: Fleet) -> Floats:
    """Energy of a nominal life of each vehicle's brake pads."""
    braked = np.array([each.braked_mj_a_km(each.empty_tonnes + 0.5 * each.payload_tonnes) for each in TYPES])
    return np.asarray(braked[fleet.type_of] * fleet.by_type("km_a_day") * _LIFE_DAYS[BRAKES])


@lru_cache(maxsize=6)
def _until_roster(fleet: Fleet, roster: int) -> Floats:
    """(clocks, vehicles): the clocks as a roster begins."""
    if roster == 0:
        # Parts are of any age as the world begins.
        return np.stack([3.0 * fleet.uniforms(f"worn before {clock}") for clock in range(len(_STYLE))])
    return _within(fleet, roster - 1, FIRST_DAY + roster * ROSTER_DAYS - 1)


def _within(fleet: Fleet, roster: int, day: int) -> Floats:
    begun = odometer_km(fleet, FIRST_DAY + roster * ROSTER_DAYS - 1)
    quickened = np.exp(_STYLE[:, None] * fleet.style(roster))
    return _until_roster(fleet, roster) + paces(fleet) * quickened * (odometer_km(fleet, day) - begun)


@lru_cache(maxsize=64)
def clocks(fleet: Fleet, day: int) -> Floats:
    """(clocks, vehicles): wear of each vehicle's brakes, engine and tyres up to the end of a day.

    It counts every part so far; 1 is a nominal life of one.
    """
    worn = _within(fleet, roster_of(day), day)
    for episode in fleet.planted(NewVehicleType):
        # Pads of an electric van take half: what they took meanwhile is taken off again by half.
        first, last = episode.first.toordinal(), min(day, episode.last.toordinal())
        if last >= first:
            meanwhile = _within(fleet, roster_of(last), last) - _within(fleet, roster_of(first - 1), first - 1)
            worn[BRAKES] -= (1.0 - ELECTRIC_BRAKED) * np.where(fleet.chosen(episode), meanwhile[BRAKES], 0.0)
    return worn


def energy_braked_mj(fleet: Fleet, day: int) -> Floats:
    """What each vehicle's brakes turned into heat on a day."""
    return np.asarray((clocks(fleet, day)[BRAKES] - clocks(fleet, day - 1)[BRAKES]) * pads_life_mj(fleet))

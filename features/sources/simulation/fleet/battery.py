"""Starter batteries: how they age with heat and frost, what their voltage shows of it, and when they fail.

A lead-acid battery ages by corrosion of its grids and by sulphation (Ruetschi, "Aging mechanisms and service life of
lead-acid batteries", J. Power Sources 127, 2004). Corrosion is a reaction: it runs by Arrhenius' factor of the
temperature below the bonnet, twice as fast with each 10 K. Sulphation comes of charge that is missing: in the cold each
start takes more, and less is taken in again. Both go faster where a vehicle starts often. On the clock of the two a
battery's life is a renewal process, as other parts' are (`renewal.py`).

Of the ageing two voltages tell. At rest the open circuit has 12.7 V in a full, sound battery, and less in one that no
longer takes a full charge. As the engine is cranked, current times inner resistance is lost; the resistance grows with
age, and in the cold (Pavlov, Lead-Acid Batteries: Science and Technology, 2nd edition, 2017). SAE J537 calls a battery
dead that cannot hold 7.2 V.
"""

from __future__ import annotations

from datetime import date
from functools import lru_cache

import numpy as np
import pyarrow as pa

from features.sources.simulation.draws import Floats
from features.sources.simulation.fleet.usage import ambient_celsius
from features.sources.simulation.fleet.vehicles import FIRST_DAY, Fleet
from features.sources.simulation.renewal import Bools, Ints, Lives, Part, Weibull, drawn_lives
from features.sources.simulation.reports import dates, evenings_before, instant, repeated

WITHIN_DAYS, TOLD_WITHIN_DAYS = 14, 5
BATTERY = Part("battery", fails=Weibull(6.0, 1.0), planned=Weibull(4.0, 1.05))
# Days of a nominal life at the reference temperature, and by how much it is warmer below the bonnet than outside.
_LIFE_DAYS, _BONNET_K, _REFERENCE_K = 500.0, 15.0, 273.15 + 25.0
# Twice as fast with 10 K: 51 kJ/mol.
_ACTIVATION_K = 51_000.0 / 8.314
# Ageing of a day by missing charge: so much for each 10 degrees that it is colder than 10.
_SULPHATION, _WARM_CELSIUS = 0.9, 10.0
# Starts of a day, amperes and ohms of a sound battery at 25 degrees: van, truck, bus.
_STARTS = np.array([14.0, 7.0, 9.0])
_CRANKING_AMPERES = np.array([220.0, 380.0, 350.0])
_OHMS = np.array([0.0060, 0.0036, 0.0038])
_FULL_VOLTS, _SULPHATED_VOLTS, _AGED_OHMS, _COLD_OHMS_A_K = 12.70, 0.45, 0.9, 0.007
_CYCLES = 16


def ageing_days(fleet: Fleet, day: int) -> float:
    """Days at the reference temperature that age a battery as much as all days so far did."""
    weeks, rest = divmod(day - FIRST_DAY + 1, 7)
    return sum(_ageing(fleet, FIRST_DAY + 7 * week, 7) for week in range(weeks)) + _ageing(
        fleet, FIRST_DAY + 7 * weeks, rest
    )


@lru_cache(maxsize=4096)
def _ageing(fleet: Fleet, first: int, days: int) -> float:
    """The same of some days from a first one on."""
    celsius = np.array([ambient_celsius(fleet, each) for each in range(first, first + days)])
    corrosion = np.exp(_ACTIVATION_K * (1.0 / _REFERENCE_K - 1.0 / (273.15 + _BONNET_K + celsius)))
    return float((corrosion + _SULPHATION * np.maximum(0.0, _WARM_CELSIUS - celsius) / 10.0).sum())


@lru_cache(maxsize=4)
def pace(fleet: Fleet) -> Floats:
    """Nominal lives that each vehicle's battery ages by in a day at the reference temperature."""
    return np.asarray(_often(fleet) ** 0.3 * np.exp(0.2 * fleet.normals("battery place")) / _LIFE_DAYS)


def _often(fleet: Fleet) -> Floats:
    """How often each vehicle is started, beside others of its type."""
    return np.exp(0.3 * fleet.normals("starts"))


def clock(fleet: Fleet, day: int) -> Floats:
    """Ageing of each vehicle's batteries up to the evening of a day, all that it had; 1 is a nominal life of one."""
    return np.asarray(3.0 * fleet.uniforms("aged before") + pace(fleet) * ageing_days(fleet, day))


@lru_cache(maxsize=8)
def _drawn(fleet: Fleet, cycles: int) -> Lives:
    never = (np.full(fleet.vehicles, np.inf),) * 2
    return drawn_lives(BATTERY, fleet.seed, cycles, np.ones(fleet.vehicles), never)


def lives(fleet: Fleet, day: int) -> Lives:
    """The lives of each vehicle's batteries up to a day, and some more."""
    cycles = _CYCLES
    while (drawn := _drawn(fleet, cycles)).ends[-1].min() <= clock(fleet, day).max():
        cycles *= 2
    return drawn


def age(fleet: Fleet, day: int) -> Floats:
    """How aged the battery of each vehicle is in the evening of a day, 1 being a nominal life."""
    return lives(fleet, day).wear(clock(fleet, day))


def failure_probability(fleet: Fleet, day: int) -> Floats:
    """How probable it was in the evening of a day that the battery of each vehicle fails within the next days, by who
    knows how aged it is and how warm they will be.
    """
    later = day + WITHIN_DAYS
    return lives(fleet, later).failure_probability(clock(fleet, day), clock(fleet, later))


@lru_cache(maxsize=64)
def failed(fleet: Fleet, day: int) -> Bools:
    """Whether the battery of each vehicle failed on a day."""
    known = lives(fleet, day)
    before, after = (known.cycle(clock(fleet, each)) for each in (day - 1, day))
    cycle = np.maximum(after - 1, 0)
    return np.asarray((after > before) & np.take_along_axis(known.failed, cycle[None], axis=0)[0])


def told_after(fleet: Fleet, day: int) -> Ints:
    """After how many days the workshop tells of a failure on a day."""
    return (fleet.uniforms("told battery", day) * (TOLD_WITHIN_DAYS + 1)).astype(np.int64)


def battery_days(fleet: Fleet, day: int) -> pa.Table:
    """One row a vehicle: what its battery showed at the day's first start."""
    aged, kind = age(fleet, day), fleet.type_of
    celsius = ambient_celsius(fleet, day) + 2.0 * fleet.normals("start celsius", day)
    resting = _FULL_VOLTS - _SULPHATED_VOLTS * aged**3 + 0.04 * fleet.normals("resting volts", day)
    ohms = _OHMS[kind] * (1.0 + _AGED_OHMS * aged**4) * (1.0 + _COLD_OHMS_A_K * np.maximum(0.0, 25.0 - celsius))
    amperes = _CRANKING_AMPERES[kind] * np.exp(0.05 * fleet.normals("cranking amperes", day))
    starts = np.round(_STARTS[kind] * _often(fleet) * np.exp(0.2 * fleet.normals("starts of the day", day)))
    return pa.table(
        {
            "event_date": repeated(date.fromordinal(day), fleet.vehicles),
            "vehicle": fleet.names,
            "vehicle_type": fleet.type_names(day),
            "start_celsius": pa.array(np.round(celsius, 1)),
            "starts": pa.array(np.maximum(starts, 1.0).astype(np.int32)),
            "resting_volts": pa.array(np.round(resting, 2)),
            "cranking_volts": pa.array(np.round(resting - amperes * ohms, 2)),
            "sent_utc": repeated(instant(day, 22), fleet.vehicles),
            "due_utc": repeated(instant(day + 1, 6), fleet.vehicles),
        }
    )


def battery_reports(fleet: Fleet, night: int) -> pa.Table:
    """The evenings that battery failures reported in a night came after."""
    evenings, vehicles, days = evenings_before(
        night,
        lambda day: failed(fleet, day),
        lambda day: told_after(fleet, day),
        within=WITHIN_DAYS,
        latest=TOLD_WITHIN_DAYS,
    )
    return pa.table(
        {
            "event_date": dates(evenings),
            "vehicle": fleet.names.take(pa.array(vehicles)),
            "failed": pa.array(np.ones(len(vehicles), np.int32)),
            "failed_on": dates(days),
            "known_utc": repeated(instant(night, 18), len(vehicles)),
        }
    )

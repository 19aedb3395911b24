"""Accidents and near misses: chance alone, but more of it for some drivers, at night and on ice."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa

from features.sources.simulation.draws import Floats
from features.sources.simulation.fleet.telemetry import night_share
from features.sources.simulation.fleet.usage import ambient_celsius, distance_km, roster_of
from features.sources.simulation.fleet.vehicles import Fleet
from features.sources.simulation.renewal import Bools, Ints
from features.sources.simulation.reports import dates, evenings_before, instant, repeated

WITHIN_DAYS, TOLD_WITHIN_DAYS = 7, 3
_PER_KM, _STYLE, _NIGHT, _ICE = 2.2e-5, 1.0, 1.2, 0.08


def probability(fleet: Fleet, day: int) -> Floats:
    """How probable it is that each vehicle has an incident on a day.

    The rate goes with the distance, and is multiplied by factors of the driver, of the night and of frost, as the
    multiplicative crash models of traffic safety have it (Lord and Mannering, Transportation Research A 44, 2010).
    """
    ice = _ICE * max(0.0, 3.0 - ambient_celsius(fleet, day))
    factors = np.exp(_STYLE * fleet.style(roster_of(day)) + _NIGHT * night_share(fleet, day) + ice)
    return 1.0 - np.exp(-_PER_KM * distance_km(fleet, day) * factors)


@lru_cache(maxsize=64)
def happened(fleet: Fleet, day: int) -> Bools:
    """Whether each vehicle had an incident on a day."""
    return fleet.uniforms("incident", day) < probability(fleet, day)


def within_probability(fleet: Fleet, day: int) -> Floats:
    """How probable it was in the evening of a day that each vehicle has an incident within the next days, by who knows
    the driver, the distance and the weather of each.
    """
    without = np.ones(fleet.vehicles)
    for ahead in range(1, WITHIN_DAYS + 1):
        without *= 1.0 - probability(fleet, day + ahead)
    return 1.0 - without


def told_after(fleet: Fleet, day: int) -> Ints:
    """After how many days an incident of a day is told."""
    return (fleet.uniforms("told incident", day) * (TOLD_WITHIN_DAYS + 1)).astype(np.int64)


def incidents(fleet: Fleet, night: int) -> pa.Table:
    """Incidents that are told in a night."""
    days, vehicles, damages = [], [], []
    for late in range(TOLD_WITHIN_DAYS + 1):
        day = night - late
        told = np.flatnonzero(happened(fleet, day) & (told_after(fleet, day) == late))
        days.append(np.full(len(told), day))
        vehicles.append(told)
        damages.append(np.exp(6.0 + 1.2 * fleet.normals("damage", day))[told])
    return pa.table(
        {
            "event_date": dates(np.concatenate(days)),
            "vehicle": fleet.names.take(pa.array(np.concatenate(vehicles))),
            "damage_euros": pa.array(np.round(np.concatenate(damages), 0)),
            "reported_utc": repeated(instant(night, 18), len(np.concatenate(days))),
        }
    )


def incident_reports(fleet: Fleet, night: int) -> pa.Table:
    """The evenings that incidents told in a night came after."""
    evenings, vehicles, days = evenings_before(
        night,
        lambda day: happened(fleet, day),
        lambda day: told_after(fleet, day),
        within=WITHIN_DAYS,
        latest=TOLD_WITHIN_DAYS,
    )
    return pa.table(
        {
            "event_date": dates(evenings),
            "vehicle": fleet.names.take(pa.array(vehicles)),
            "had_incident": pa.array(np.ones(len(vehicles), np.int32)),
            "happened_on": dates(days),
            "known_utc": repeated(instant(night, 18), len(vehicles)),
        }
    )

"""What the board computers send in the evening: a day of each vehicle, as its sensors show it."""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow as pa

from config.catalog.simulation import BadSensors
from features.sources.simulation.draws import Floats
from features.sources.simulation.fleet.usage import (
    ambient_celsius,
    distance_km,
    energy_braked_mj,
    odometer_km,
    pads_life_mj,
    roster_of,
)
from features.sources.simulation.fleet.vehicles import DRIVERS_A_VEHICLE, Fleet
from features.sources.simulation.fleet.wear import MOTOR, PADS, tyres, wear
from features.sources.simulation.reports import instant, repeated

# A reading is missing on one day in a hundred; one vehicle in eight has no pad sensor at all.
_MISSING, _NO_PAD_SENSOR = 0.01, 0.125
_ELECTRIC_ENGINE_TEMP = 45.0


def fuel_litres(fleet: Fleet, day: int) -> Floats:
    """Fuel of each vehicle on a day: by road load, and more in the cold; an electric van takes none."""
    cold = 1.0 + 0.006 * max(0.0, 15.0 - ambient_celsius(fleet, day))
    noise = np.exp(0.04 * fleet.normals("fuel", day))
    return np.where(fleet.electric(day), 0.0, fleet.litres_a_km * distance_km(fleet, day) * cold * noise)


def counted(mean: Floats, normal: Floats) -> Floats:
    """A count of that mean: Poisson's, by its normal approximation."""
    return np.asarray(np.round(np.maximum(0.0, mean + np.sqrt(mean) * normal)), dtype=np.float64)


def vehicle_days(fleet: Fleet, day: int) -> pa.Table:
    """One row a vehicle: what it did on the day and what its sensors read, means over the day."""
    roster = roster_of(day)
    driver, style = fleet.driver(roster), fleet.style(roster)
    km, ambient, electric = distance_km(fleet, day), ambient_celsius(fleet, day), fleet.electric(day)
    pads, engine, work = wear(fleet, PADS.name, day), wear(fleet, MOTOR.name, day), tyres(fleet, day)[0]
    hours = km / fleet.by_type("speed_kmh")
    load = fleet.load_share * fleet.by_type("payload_tonnes") * np.exp(0.1 * fleet.normals("load", day))
    running = np.where(electric, _ELECTRIC_ENGINE_TEMP, fleet.engine_temp + 0.15 * (ambient - 10.0))
    board_error = np.exp(0.08 * fleet.normals("board computer"))
    # Wear shows in each sensor a little, and grows late: one reading alone says not much.
    readings = {
        "engine_temp": running + 7.0 * engine**2 + 2.5 * fleet.normals("engine_temp", day),
        "vibration": 0.22 + np.where(electric, -0.1, 0.0) + 0.16 * engine**2 + 0.06 * fleet.normals("vibration", day),
        "oil_pressure": 4.1 - 0.9 * engine + 0.25 * fleet.normals("oil_pressure", day),
        "brake_temp": 120.0 + 18.0 * style + 25.0 * pads + 0.5 * ambient + 15.0 * fleet.normals("brake_temp", day),
        "pad_mm": 12.0 - 8.0 * pads + 0.7 * fleet.normals("pad_mm", day),
    }
    for episode in fleet.planted(BadSensors):
        if episode.first.toordinal() <= day <= episode.last.toordinal():
            readings[episode.sensor] += np.where(fleet.chosen(episode), episode.offset, 0.0)
    missing = {name: fleet.uniforms(f"missing {name}", day) < _MISSING for name in readings}
    missing["pad_mm"] |= fleet.uniforms("no pad sensor") < _NO_PAD_SENSOR
    missing["oil_pressure"] |= electric
    digits = {"engine_temp": 1, "vibration": 3, "oil_pressure": 2, "brake_temp": 0, "pad_mm": 1}
    numbers = DRIVERS_A_VEHICLE * np.arange(fleet.vehicles) + driver
    return pa.table(
        {
            "event_date": repeated(date.fromordinal(day), fleet.vehicles),
            "vehicle": fleet.names,
            "vehicle_type": fleet.type_names(day),
            "driver": pa.array(np.char.mod("D%07d", numbers)),
            "empty_tonnes": pa.array(fleet.by_type("empty_tonnes")),
            "odometer_km": pa.array(np.round(odometer_km(fleet, day), 1)),
            "distance_km": pa.array(np.round(km, 1)),
            "hours_driven": pa.array(np.round(hours, 2)),
            "load_tonnes": pa.array(np.round(load, 2)),
            "ambient_temp": pa.array(np.round(ambient + 1.5 * fleet.normals("ambient", day), 1)),
            "harsh_braking": pa.array(
                counted(0.03 * km * np.exp(0.8 * style), fleet.normals("harsh", day)).astype(np.int32)
            ),
            "speeding_minutes": pa.array(
                counted(4.0 * hours * np.exp(0.6 * style), fleet.normals("speeding", day)).astype(np.int32)
            ),
            "night_km": pa.array(np.round(km * night_share(fleet, day), 1)),
            "fuel_litres": pa.array(np.round(fuel_litres(fleet, day), 1)),
            "brake_energy_mj": pa.array(np.round(energy_braked_mj(fleet, day), 2)),
            "pads_energy_mj": pa.array(np.round(pads * pads_life_mj(fleet) * board_error, 1)),
            "tyre_work": pa.array(np.round(work * board_error, 4)),
            **{name: pa.array(np.round(values, digits[name]), mask=missing[name]) for name, values in readings.items()},
            "sent_utc": repeated(instant(day, 22), fleet.vehicles),
            "due_utc": repeated(instant(day + 1, 6), fleet.vehicles),
        }
    )


def night_share(fleet: Fleet, day: int) -> Floats:
    """Share of a day's distance that is driven at night: some routes are."""
    routes = fleet.uniforms("night route") ** 3
    return np.asarray(routes * (0.5 + 0.5 * fleet.uniforms("night", day)))

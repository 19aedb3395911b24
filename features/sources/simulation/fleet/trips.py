"""Trips of the next day, planned in the evening: the road in segments, and the minutes that it may take.

The road's grade is a first-order autoregression, as measured road profiles nearly are at such lengths (Hellström,
Look-ahead control of heavy vehicles, 2010, chapter 4); its limits last for some segments. The forecast overstates the
headwind, and what comes differs from it. What a plan of speeds costs on such a trip is road load alone, so the best
one is known: `serving/predictors/road_load.py`.
"""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow as pa

from features.sources.simulation.draws import Floats
from features.sources.simulation.fleet.vehicles import DEPOTS, Fleet
from features.sources.simulation.reports import instant, instants, repeated

SEGMENTS = 12
_LIMITS_KMH = (50.0, 60.0, 80.0, 90.0)
_SAME_LIMIT, _SAME_GRADE, _GRADE_PERCENT, _STEEPEST_PERCENT = 0.7, 0.55, 2.0, 6.0
# Minutes beyond what the limits take, as a share of them: of a few trips less than nothing, by a mistake in the plan.
_SLACK_FROM, _SLACK_TO = 0.03, 0.40
_IMPOSSIBLE = 0.005
_FORECAST_MPS, _COMES, _ERROR_MPS = 4.0, 0.8, 1.5
# Of a warm engine under load, and what it takes idling: van, truck, bus.
_EFFICIENCY = np.array([0.34, 0.42, 0.40])
_IDLE_LITRES_PER_HOUR = np.array([0.8, 2.0, 2.0])


def trip_plans(fleet: Fleet, night: int) -> pa.Table:
    """A trip of each vehicle on the day after a night, known at 18:00 before it."""
    day = night + 1
    grades, limits = _grades(fleet, day), _limits(fleet, day)
    segment_km = np.round(1.0 + fleet.uniforms("trip segment", day), 2)
    at_limits = (segment_km / limits).sum(axis=0) * 60.0
    slack = _SLACK_FROM + (_SLACK_TO - _SLACK_FROM) * fleet.uniforms("trip slack", day)
    slack = np.where(fleet.uniforms("trip mistake", day) < _IMPOSSIBLE, -0.1, slack)
    load = fleet.by_type("payload_tonnes") * fleet.uniforms("trip load", day)
    columns = {
        "segment_km": segment_km,
        "mass_tonnes": np.round(fleet.by_type("empty_tonnes") + load, 2),
        "drag_area_m2": fleet.by_type("drag_area"),
        "rolling_resistance": fleet.by_type("rolling"),
        "engine_efficiency": _EFFICIENCY[fleet.type_of],
        "idle_litres_per_hour": _IDLE_LITRES_PER_HOUR[fleet.type_of],
        "headwind_mps": np.round(_forecast(fleet, day), 1),
        "budget_minutes": np.round(at_limits * (1.0 + slack), 2),
    }
    steps = {f"grade_percent_{number}": grades[number - 1] for number in range(1, SEGMENTS + 1)}
    steps |= {f"limit_kmh_{number}": limits[number - 1] for number in range(1, SEGMENTS + 1)}
    names = pa.array(["van", "truck", "bus"]).take(pa.array(fleet.type_of))
    return pa.table(
        {
            "event_date": repeated(date.fromordinal(day), fleet.vehicles),
            "vehicle": fleet.names,
            "vehicle_type": names,
            "depot": pa.array(DEPOTS).take(pa.array(fleet.depot)),
            **{name: pa.array(values) for name, values in (columns | steps).items()},
            "departs_utc": instants(day, _departure(fleet, day)),
            "planned_utc": repeated(instant(night, 18), fleet.vehicles),
        }
    )


def trip_reports(fleet: Fleet, night: int) -> pa.Table:
    """The headwind that the trips of a night's day had, known when the day's trips are over."""
    came = _COMES * _forecast(fleet, night) + _ERROR_MPS * fleet.normals("trip wind", night)
    return pa.table(
        {
            "event_date": repeated(date.fromordinal(night), fleet.vehicles),
            "vehicle": fleet.names,
            "headwind_mps": pa.array(np.round(came, 2)),
            "reported_utc": repeated(instant(night, 22), fleet.vehicles),
        }
    )


def _forecast(fleet: Fleet, day: int) -> Floats:
    """Headwind in m/s, of the weather and of the way that the road takes in it."""
    return _FORECAST_MPS * fleet.normals("trip forecast", day)


def _departure(fleet: Fleet, day: int) -> np.ndarray:
    """Seconds after midnight, between 5 and 20 o'clock."""
    return ((5.0 + 15.0 * fleet.uniforms("trip departure", day)) * 3600.0).astype(np.int64)


def _grades(fleet: Fleet, day: int) -> Floats:
    """Per cent, (segments, vehicles), some trips over hillier country than others."""
    hilly = 0.3 + 1.2 * fleet.uniforms("trip hills", day)
    grade, grades = fleet.normals("trip grade 0", day), []
    for number in range(1, SEGMENTS + 1):
        grade = _SAME_GRADE * grade + fleet.normals(f"trip grade {number}", day)
        grades.append(np.round(np.clip(_GRADE_PERCENT * hilly * grade, -_STEEPEST_PERCENT, _STEEPEST_PERCENT), 1))
    return np.stack(grades)


def _limits(fleet: Fleet, day: int) -> Floats:
    """Limits in km/h, (segments, vehicles)."""
    known = np.array(_LIMITS_KMH)
    limit, limits = known[(fleet.uniforms("trip limit 0", day) * len(known)).astype(np.int64)], []
    for number in range(1, SEGMENTS + 1):
        other = known[(fleet.uniforms(f"trip limit {number}", day) * len(known)).astype(np.int64)]
        limit = np.where(fleet.uniforms(f"trip limit stays {number}", day) < _SAME_LIMIT, limit, other)
        limits.append(limit)
    return np.stack(limits)

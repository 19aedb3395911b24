"""A fleet of vehicles: how it drives, wears, breaks, crashes and fills up, and what of that is told, and when.

Every table is a function of the fleet and a day alone: no night needs the nights before it.
"""

from collections.abc import Callable, Mapping

import pyarrow as pa

from features.sources.simulation.fleet import battery, fuel, incidents, telemetry, trips, vehicles, wear
from features.sources.simulation.fleet.vehicles import Fleet

__all__ = ["TABLES", "Fleet"]

TABLES: Mapping[str, Callable[[Fleet, int], pa.Table]] = {
    "vehicles": vehicles.master,
    "vehicle_days": telemetry.vehicle_days,
    "workshop_visits": wear.workshop_visits,
    "brake_reports": wear.brake_reports,
    "engine_reports": wear.engine_reports,
    "tread_measurements": wear.tread_measurements,
    "incidents": incidents.incidents,
    "incident_reports": incidents.incident_reports,
    "fuel_transactions": fuel.fuel_transactions,
    "fraud_findings": fuel.fraud_findings,
    "trip_plans": trips.trip_plans,
    "trip_reports": trips.trip_reports,
    "battery_days": battery.battery_days,
    "battery_reports": battery.battery_reports,
}

"""What the fleet's world knows and no night does: of every label its expectation, the best that any model could say.

Whoever knows wear, drivers, weather and routes to come says the true probability or depth, and is right in the mean: a
model that sees their traces alone can at best come near. Of fraud alone the expectation is by what the night sees
itself, so that a model may reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyarrow as pa

from features.sources.simulation.draws import Floats
from features.sources.simulation.fleet import battery, fuel, incidents, wear
from features.sources.simulation.fleet.vehicles import Fleet

# What the expectation of each table's label is by.
KNOWN_BY: Mapping[str, str] = {
    "brake_reports": "who knows how worn the pads are, and the routes of the next 14 days",
    "engine_reports": "who knows how worn the engine is, and the routes of the next 14 days",
    "battery_reports": "who knows how aged the battery is, and how warm the next 14 days are",
    "incident_reports": "who knows each driver's style, and routes and weather of the next 7 days",
    "tread_measurements": "who knows the tread itself, and not the gauge's error",
    "fraud_findings": "who sees what the night sees, and knows how fills are made",
}
_BY_VEHICLE: Mapping[str, Callable[[Fleet, int], Floats]] = {
    "brake_reports": lambda fleet, day: wear.failure_probability(fleet, wear.PADS.name, day, wear.BRAKES_WITHIN_DAYS),
    "engine_reports": lambda fleet, day: wear.failure_probability(fleet, wear.MOTOR.name, day, wear.ENGINE_WITHIN_DAYS),
    "battery_reports": battery.failure_probability,
    "incident_reports": incidents.within_probability,
    "tread_measurements": lambda fleet, day: wear.tyres(fleet, day)[1],
}


def expected(fleet: Fleet, table: str, day: int) -> pa.Table:
    """The expectation of the labels that a table tells of the evening of a day.

    Returns:
        `expected`, and `vehicle` or `transaction`: one row for each that is scored.
    Raises:
        KeyError: the table tells no label.
    """
    if table == "fraud_findings":
        shown = fuel.fills(fleet, day)
        names = fuel.transaction_names(fleet, shown.vehicles, shown.numbers)
        return pa.table({"transaction": names, "expected": fuel.fraud_probability(shown)})
    return pa.table({"vehicle": fleet.names, "expected": _BY_VEHICLE[table](fleet, day)})

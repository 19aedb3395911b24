"""Why one version's prediction of an entity was served, or was not: the plan of its night, and where its unit lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lake.assignment import CHALLENGER, Assignment, Plan, Units, champion_in
from serving.rollout.units import positions


@dataclass(frozen=True)
class Service:
    """What decided whom an entity was served by.

    Attributes:
        reason: as a sentence; it names columns, no values of personal ones.
        rollout: sequence number of the line that started the rollout, None in a night without a challenger; `step`: the
            number of its step, 1 for the first.
        share: of the units, served by the challenger.
        unit: the columns that name the entity's unit, with their values; None where they can no longer be read.
        position: of the unit, between 0 and 1; None where no share decided.
    """

    served: bool
    reason: str
    rollout: int | None = None
    step: int | None = None
    share: float | None = None
    unit: Mapping[str, Any] | None = None
    position: float | None = None


def service(plan: Plan, role: str, served: bool, row: Mapping[str, Any] | None) -> Service:
    """Why a role served an entity of a night with that plan, or did not.

    Args:
        served: whether it did, as it was published.
        row: the entity's row of the spine with its features, None where it can no longer be read.
    """
    challenger = next((a for a in plan if a.role == CHALLENGER), None)
    if challenger is None:
        return Service(served, "The champion served every entity of that night.")
    if challenger.units is None:
        return Service(served, f"The challenger, version {challenger.version}, served {challenger.served_share:.4g}.")
    units, share = challenger.units, challenger.served_share
    about = Service(served, "", units.rollout, units.step + 1, share)
    if champion_in(plan) is None:
        reason = f"There was no champion: version {challenger.version} scored that night and nothing of it was served."
        return _with(about, reason)
    step = f"in step {units.step + 1} of the rollout of version {challenger.version}"
    who = "so this version served it" if served else f"so the {_other(role)} served it"
    if units.groups is not None and units.by is not None:
        return _with(about, _grouped(units, units.by, row, f"{step}, {who}"))
    if share in (0.0, 1.0):
        what = "every entity" if share else "none"
        return _with(about, f"The challenger scored every entity and served {what} {step}, {who}.")
    return _by_share(about, units, challenger, row, f"{step}, {who}")


def _other(role: str) -> str:
    return "champion" if role == CHALLENGER else "challenger"


def _with(about: Service, reason: str, **changed: Any) -> Service:
    return Service(**{**about.__dict__, "reason": reason, **changed})


def _grouped(units: Units, by: str, row: Mapping[str, Any] | None, then: str) -> str:
    if row is None or by not in row:
        return f"The challenger served some groups of {by} {then}; that of this entity can no longer be read."
    value = "null, which belongs to the champion" if row[by] is None else str(row[by])
    return f"The challenger served the groups {', '.join(units.groups or ())} of {by} {then}: its {by} is {value}."


def _by_share(
    about: Service, units: Units, challenger: Assignment, row: Mapping[str, Any] | None, then: str
) -> Service:
    share, named = challenger.served_share, ", ".join(units.unit)
    if row is None or any(name not in row for name in units.unit):
        said = f"The challenger served the units ({named}) below {share:.4g} {then}; this one can no longer be read."
        return _with(about, said)
    unit = {name: row[name] for name in units.unit}
    position = float(positions(pa.Table.from_pylist([unit]), units.unit, units.salt)[0])
    side = "below" if position < share else "not below"
    reason = f"Its unit ({named}) lies at {position:.4f}, {side} the share of {share:.4g} {then}."
    return _with(about, reason, unit=unit, position=position)

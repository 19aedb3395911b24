"""Which versions of a model score a night, in which roles, and for what share of its entities what they say is served:
the plan, before the night; what its publication recorded, after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from config.calendar import Interval
from config.errors import NightfleetError
from lake.ledger import LedgerSnapshot

CHAMPION = "champion"
Plan = tuple["Assignment", ...]


class BadPlan(NightfleetError):
    """A night's assignments do not serve each entity exactly once."""


@dataclass(frozen=True)
class Assignment:
    """One version's part in a night.

    Attributes:
        version: MLflow's number.
        artifact_digest: names the folder of verified model bytes.
        served_share: share of the night's entities for which this version's prediction is the one that is used: 1 for
            all of them, 0 for a version that only runs along.
        sequence: the ledger's line that gave it the role.
    """

    role: str
    version: int
    artifact_digest: str
    served_share: float
    sequence: int


def plan_of(ledger: LedgerSnapshot, data_date: date) -> Plan:
    """The assignments of a night, by role: its champion, which serves every entity.

    Raises:
        NoChampion: none had taken effect by that night.
    """
    champion = ledger.champion_of(data_date)
    return (Assignment(CHAMPION, champion.version, champion.artifact_digest, 1.0, champion.sequence),)


def check_plan(model: str, data_date: date, plan: Plan) -> Plan:
    """The plan, sorted by role.

    Raises:
        BadPlan: two assignments share a role, or not exactly one of them serves all entities and the others none.
    """
    roles = sorted(assignment.role for assignment in plan)
    shares = sorted(assignment.served_share for assignment in plan)
    if len(set(roles)) != len(roles) or shares != [0.0] * (len(shares) - 1) + [1.0]:
        given = ", ".join(f"{a.role} version {a.version} with {a.served_share:g}" for a in plan) or "nobody"
        raise BadPlan(
            f"the plan of {model} for {data_date} gives {given}; it needs one assignment a role, one of them with a "
            "served share of 1 and the others with 0. Nothing was computed. Fix the plan."
        )
    return tuple(sorted(plan, key=lambda assignment: assignment.role))


def recorded(stretches: Iterable[tuple[Interval, Sequence[Assignment]]]) -> list[dict[str, Any]]:
    """Stretches of nights with their assignments as a commit keeps them; `scored_by` reads them."""
    return [
        {"first": nights.start.isoformat(), "last": nights.last.isoformat(), **assignment.__dict__}
        for nights, plan in stretches
        for assignment in plan
    ]


def scored_by(data_date: date, details: Mapping[str, Any]) -> Plan:
    """The assignments that a night's rows were published with, by role; empty where the publication does not say.

    Args:
        details: those of the night's publication of predictions. Before roles were recorded they named `champions`,
            each of which served every entity.
    """
    night = data_date.isoformat()
    champions = [{"role": CHAMPION, "served_share": 1.0, **item} for item in details.get("champions", ())]
    return tuple(
        Assignment(
            item["role"], int(item["version"]), item["artifact_digest"], item["served_share"], int(item["sequence"])
        )
        for item in details.get("assignments", champions)
        if item["first"] <= night <= item["last"]
    )


def champion_in(plan: Plan) -> Assignment | None:
    """The champion's assignment, None where the plan has none."""
    return next((assignment for assignment in plan if assignment.role == CHAMPION), None)

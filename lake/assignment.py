"""Which versions of a model score a night, in which roles, and for what share of its entities what they say is served:
the plan, before the night; what its publication recorded, after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any

from config.calendar import Interval
from config.errors import NightfleetError
from lake.ledger import LedgerSnapshot, NoChampion
from lake.rollouts import Rollout, RolloutSnapshot, promotion_key, promotion_of, settled

CHAMPION, CHALLENGER = "champion", "challenger"
_ROUNDING = 1e-9
Plan = tuple["Assignment", ...]


class BadPlan(NightfleetError):
    """A night's assignments do not serve each entity exactly once."""


@dataclass(frozen=True)
class Units:
    """Which rows a challenger serves: those whose unit has a position below the served share, or is of some groups.

    Attributes:
        rollout: sequence number of the line that started the rollout.
        step: number of its step.
        salt: of the positions (see `serving.rollout.units`).
        unit: columns that name a unit.
        by: column of the groups, None where a share is served.
        groups: its values whose rows are served; None: all rows below the served share.
    """

    rollout: int
    step: int
    salt: str
    unit: tuple[str, ...]
    by: str | None = None
    groups: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Assignment:
    """One version's part in a night.

    Attributes:
        version: MLflow's number.
        artifact_digest: names the folder of verified model bytes.
        served_share: share of the night's entities for which this version's prediction is the one that is used: 1 for
            all of them, 0 for a version that only runs along. Of groups it is what the plan aims at, not what came.
        sequence: the line that gave it the role, of the ledger of promotions or, for a challenger, of rollouts.
        units: of a challenger: which rows those are.
    """

    role: str
    version: int
    artifact_digest: str
    served_share: float
    sequence: int
    units: Units | None = None


def plan_of(ledger: LedgerSnapshot, rollouts: RolloutSnapshot, data_date: date) -> Plan:
    """The assignments of a night, by role: a function of the two ledgers and of nothing else.

    Without a rollout the champion serves every entity. In a rollout both versions score every entity, and the
    challenger serves what its step says. A rollout that has no champion beside it serves nothing.

    Raises:
        NoChampion: none had taken effect by that night, and no rollout runs.
    """
    rollout = rollouts.of(data_date)
    running = rollout if rollout is not None and rollout.running else None
    try:
        champion = settled(ledger, rollouts).champion_of(data_date)
    except NoChampion:
        if running is None:
            raise
        return (_challenger(running, 0.0),)
    if running is None or running.started.artifact_digest == champion.artifact_digest:
        return (Assignment(CHAMPION, champion.version, champion.artifact_digest, 1.0, champion.sequence),)
    share = running.steps[running.step].share
    return (
        _challenger(running, share),
        Assignment(CHAMPION, champion.version, champion.artifact_digest, 1.0 - share, champion.sequence),
    )


def _challenger(rollout: Rollout, share: float) -> Assignment:
    started, step = rollout.started, rollout.steps[rollout.step]
    settings = rollout.settings
    units = Units(
        started.sequence, rollout.step, settings["salt"], tuple(settings["unit"]), settings.get("by"), step.groups
    )
    return Assignment(CHALLENGER, started.version, started.artifact_digest, share, rollout.last.sequence, units)


def plan_as_published(
    ledger: LedgerSnapshot,
    rollouts: RolloutSnapshot,
    data_date: date,
    published: Plan,
    planned: Callable[[LedgerSnapshot, RolloutSnapshot, date], Plan] = plan_of,
) -> Plan:
    """The plan of a night that is published: the newest of those that the ledger of rollouts ever gave for it by which
    it was published. A line that is written while a night is scored changes nothing about that night.

    The present plan where none of them was.

    Raises:
        as `plan_of`.
    """
    lines = rollouts.lines
    # A line that counts for later nights alone gives no other plan; without any line there is the champion's.
    for count in [len(lines), *(n for n in reversed(range(len(lines))) if lines[n].effective_from <= data_date)]:
        finished = {promotion_key(promotion_of(line)) for line in lines[count:] if line.kind == "finished"}
        promotions = tuple(p for p in ledger.promotions if promotion_key(p) not in finished)
        try:
            plan = planned(replace(ledger, promotions=promotions), replace(rollouts, lines=lines[:count]), data_date)
        except NoChampion:
            continue
        if _parts(plan) == _parts(published):
            return plan
    return planned(ledger, rollouts, data_date)


def _parts(plan: Plan) -> set[tuple[Any, ...]]:
    """What decides about a night's rows."""
    return {(a.role, a.version, a.artifact_digest, a.served_share, a.units) for a in plan}


def check_plan(model: str, data_date: date, plan: Plan) -> Plan:
    """The plan, sorted by role.

    Raises:
        BadPlan: two assignments share a role, what they serve is not everything, or a part is served of nobody knows
            which units. Without a champion nothing is served.
    """
    roles = sorted(assignment.role for assignment in plan)
    shares = sorted(assignment.served_share for assignment in plan)
    needed = 1.0 if CHAMPION in roles else 0.0
    split = [a for a in plan if 0 < a.served_share < 1]
    parted = all(0 <= share <= 1 for share in shares) and (not split or any(a.units is not None for a in split))
    if not plan or len(set(roles)) != len(roles) or abs(sum(shares) - needed) > _ROUNDING or not parted:
        given = ", ".join(f"{a.role} version {a.version} with {a.served_share:g}" for a in plan) or "nobody"
        raise BadPlan(
            f"the plan of {model} for {data_date} gives {given}; it needs one assignment a role, with served shares "
            "that add up to 1, and the units of a share between 0 and 1. Nothing was computed. Fix the plan."
        )
    return tuple(sorted(plan, key=lambda assignment: assignment.role))


def recorded(stretches: Iterable[tuple[Interval, Sequence[Assignment]]]) -> list[dict[str, Any]]:
    """Stretches of nights with their assignments as a commit keeps them; `scored_by` reads them."""
    return [
        {"first": nights.start.isoformat(), "last": nights.last.isoformat(), **_plain(assignment)}
        for nights, plan in stretches
        for assignment in plan
    ]


def _plain(assignment: Assignment) -> dict[str, Any]:
    """Without units where there are none: as it was recorded before rollouts."""
    return {name: value for name, value in asdict(assignment).items() if name != "units" or value is not None}


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
            item["role"],
            int(item["version"]),
            item["artifact_digest"],
            item["served_share"],
            int(item["sequence"]),
            _units(item.get("units")),
        )
        for item in details.get("assignments", champions)
        if item["first"] <= night <= item["last"]
    )


def _units(item: Mapping[str, Any] | None) -> Units | None:
    if item is None:
        return None
    groups = item["groups"]
    return Units(**{**item, "unit": tuple(item["unit"]), "groups": None if groups is None else tuple(groups)})


def champion_in(plan: Plan) -> Assignment | None:
    """The champion's assignment, None where the plan has none."""
    return next((assignment for assignment in plan if assignment.role == CHAMPION), None)

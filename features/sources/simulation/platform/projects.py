"""Projects that the platform's users begin: what is planned of each, how long it takes, and whether it succeeds.

A plan says days, people and a scope. What a project takes departs from the plan as the errors of estimates do: by a
factor whose logarithm is normal, more for a scope that is large for its days and people (Boehm, Software Engineering
Economics, 1981), and for a large team, whose members must talk to each other (Brooks, The Mythical Man-Month, 1975).
Success is chance, but likelier where the scope is small, the owner works with others, and the owner is skilled, which
nothing shows but how the owner's earlier projects ended.

A project is drawn by its owner and its first day: a night looks back as many days as a project may take.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import lru_cache

import numpy as np
import pyarrow as pa

from features.sources.simulation.draws import Floats
from features.sources.simulation.platform.accounts import ROLES, Platform
from features.sources.simulation.renewal import Ints
from features.sources.simulation.reports import dates, instant, repeated

KINDS, _KIND_SHARES = ("feature", "migration", "research", "maintenance"), (0.45, 0.2, 0.15, 0.2)
LONGEST_DAYS, SHORTEST_DAYS = 90, 3
# How probable it is that a user begins a project on a day.
_BEGINS = 1.0 / 50.0
# By kind: success in log odds, and the logarithm of the days taken over those planned.
_KIND_SUCCESS, _KIND_LATE = np.array([0.2, -0.5, -0.9, 0.9]), np.array([0.0, 0.2, 0.15, -0.15])
_SKILL, _LATE_ERROR = 1.0, 0.25


@dataclass(frozen=True)
class Begun:
    """The projects that begin on a day, one value each.

    Attributes:
        users: place of the owner.
        scope: planned, in points; a person does about one a day.
        success: how probable it is that it succeeds, by who knows the owner's skill.
        days_expected: the median of the days that it takes, by the same.
    """

    users: Ints
    kind: Ints
    team: Ints
    planned_days: Ints
    scope: Ints
    success: Floats
    days_expected: Floats
    days_taken: Ints
    succeeded: Ints


@lru_cache(maxsize=128)
def begun(platform: Platform, day: int) -> Begun:
    """The projects that begin on a day, with what nobody knows yet."""
    users = np.flatnonzero((platform.uniforms("project begins", day) < _BEGINS) & platform.joined(day))

    def uniform(stream: str) -> Floats:
        return platform.uniforms(f"project {stream}", day)[users]

    def normal(stream: str) -> Floats:
        return platform.normals(f"project {stream}", day)[users]

    kind = np.searchsorted(np.cumsum(_KIND_SHARES)[:-1], uniform("kind"), side="right")
    team = 1 + (8.0 * uniform("team") ** 2).astype(np.int64)
    planned = np.clip(np.round(np.exp(2.9 + 0.5 * normal("days"))), 5, 45).astype(np.int64)
    scope = np.maximum(1, np.round(team * planned * np.exp(0.4 * normal("scope")))).astype(np.int64)
    pressure = np.log(scope / (team * planned))
    skill = platform.normals("project skill")[users]
    odds = 0.4 - 1.3 * pressure - 0.35 * np.log(team) + _KIND_SUCCESS[kind] + _SKILL * skill
    success = 1.0 / (1.0 + np.exp(-(odds + 2.0 * (platform.collaboration[users] - 0.45))))
    late = 0.1 + 0.5 * pressure + 0.1 * np.log(team) + _KIND_LATE[kind] - 0.15 * skill
    expected = np.clip(planned * np.exp(late), SHORTEST_DAYS, LONGEST_DAYS)
    taken = np.round(np.clip(planned * np.exp(late + _LATE_ERROR * normal("late")), SHORTEST_DAYS, LONGEST_DAYS))
    succeeded = uniform("success") < success
    return Begun(
        users, kind, team, planned, scope, success, expected, taken.astype(np.int64), succeeded.astype(np.int64)
    )


def project_names(platform: Platform, users: Ints, days: Ints) -> pa.Array:
    """What projects are called: by owner and first day, since nobody begins two on one."""
    owners = platform.names.take(pa.array(users)).to_numpy(zero_copy_only=False).astype(str)
    return pa.array(np.char.add(np.char.add(owners, "-"), np.char.mod("%d", days)))


def projects(platform: Platform, day: int) -> pa.Table:
    """The projects that begin on a day, as they are planned."""
    new = begun(platform, day)
    count = len(new.users)
    return pa.table(
        {
            "event_date": repeated(date.fromordinal(day), count),
            "project": project_names(platform, new.users, np.full(count, day)),
            "user": platform.names.take(pa.array(new.users)),
            "role": pa.array(ROLES).take(pa.array(platform.role[new.users])),
            "kind": pa.array(KINDS).take(pa.array(new.kind)),
            "team_size": pa.array(new.team.astype(np.int32)),
            "planned_days": pa.array(new.planned_days.astype(np.int32)),
            "scope_points": pa.array(new.scope.astype(np.int32)),
            "begun_utc": repeated(instant(day, 18), count),
            "review_utc": repeated(instant(day + 1, 6), count),
        }
    )


def project_outcomes(platform: Platform, night: int) -> pa.Table:
    """How the projects that end in a night ended."""
    users, days, taken, succeeded = [], [], [], []
    for ago in range(SHORTEST_DAYS, LONGEST_DAYS + 1):
        earlier = begun(platform, night - ago)
        ended = earlier.days_taken == ago
        users.append(earlier.users[ended])
        days.append(np.full(int(ended.sum()), night - ago))
        taken.append(earlier.days_taken[ended])
        succeeded.append(earlier.succeeded[ended])
    owners, first_days = np.concatenate(users), np.concatenate(days)
    return pa.table(
        {
            "event_date": dates(first_days),
            "project": project_names(platform, owners, first_days),
            "user": platform.names.take(pa.array(owners)),
            "succeeded": pa.array(np.concatenate(succeeded).astype(np.int32)),
            "days_taken": pa.array(np.concatenate(taken).astype(np.int32)),
            "ended_utc": repeated(instant(night, 20), len(owners)),
        }
    )


def expected(platform: Platform, day: int) -> pa.Table:
    """Of the projects that begin on a day: `project`, `success` (the probability) and `days` (the median), by who knows
    how skilled each owner is; no model can.
    """
    new = begun(platform, day)
    names = project_names(platform, new.users, np.full(len(new.users), day))
    return pa.table({"project": names, "success": new.success, "days": new.days_expected})

"""What each user does on a day, how engaged it is in the week after, and how well that can be known.

An evening's engagement is how many of the next seven days the user is active on: 0 or 1 low, 2 to 4 medium, 5 to 7
high. Days are independent given the moods, so the probability of each count is a sum over the moods to come, day by day
(Poisson's binomial distribution under a hidden Markov chain; Rabiner, Proc. IEEE 77, 1989, the forward recursion).
"""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from config.catalog.simulation import AiPolicy
from features.sources.simulation.draws import Floats
from features.sources.simulation.platform import work
from features.sources.simulation.platform.accounts import MOODS, ROLES, Platform, active, mood, moods_tomorrow
from features.sources.simulation.renewal import Ints
from features.sources.simulation.reports import instant, repeated

WITHIN_DAYS = 7
LEVELS = ("low", "medium", "high")
# The fewest active days of medium and of high.
_BOUNDS = (2, 5)
_ACTIONS = np.array([3.0, 6.0, 14.0, 30.0])


def level_of(active_days: Ints) -> Ints:
    """Place in `LEVELS` of so many active days."""
    return np.digitize(active_days, _BOUNDS)


def level_probability(platform: Platform, day: int) -> Floats:
    """(users, levels): how probable each level is in the evening of a day, by who knows each user's mood and habits."""
    counts = np.zeros((WITHIN_DAYS + 1, platform.users, len(MOODS)))
    counts[0, np.arange(platform.users), mood(platform, day)] = 1.0
    for ahead in range(1, WITHIN_DAYS + 1):
        chance = platform.active_probability(day + ahead)
        counts = np.stack([moods_tomorrow(platform, each) for each in counts])
        counts[1:] = counts[1:] * (1.0 - chance) + counts[:-1] * chance
        counts[0] *= 1.0 - chance
    total = counts.sum(axis=2)
    level = level_of(np.arange(WITHIN_DAYS + 1))
    return np.stack([total[level == place].sum(axis=0) for place in range(len(LEVELS))], axis=1)


def user_days(platform: Platform, day: int) -> pa.Table:
    """One row an account in the evening of a day: what the user did, if it was active."""
    there = np.flatnonzero(platform.joined(day))
    now, busy = mood(platform, day)[there], active(platform, day)[there]

    def normal(stream: str) -> Floats:
        return platform.normals(stream, day)[there]

    actions = np.where(busy, 1.0 + np.round(_ACTIONS[now] * np.exp(0.4 * normal("actions"))), 0.0)
    allowed = 1.0
    for episode in platform.planted(AiPolicy, day):
        allowed *= episode.factor
    shared = platform.collaboration[there] + 0.1 * normal("shared")
    asked = allowed * (platform.ai_affinity[there] + 0.1 * normal("asked"))
    projects = np.round(1.0 + 6.0 * platform.collaboration[there] + 0.7 * now + 0.5 * normal("projects"))
    return pa.table(
        {
            "event_date": repeated(date.fromordinal(day), len(there)),
            "user": platform.names.take(pa.array(there)),
            "role": pa.array(ROLES).take(pa.array(platform.role[there])),
            "active": pa.array(busy.astype(np.int32)),
            "actions": pa.array(actions.astype(np.int32)),
            "shared_actions": pa.array(np.round(actions * np.clip(shared, 0.0, 1.0)).astype(np.int32)),
            "ai_actions": pa.array(np.round(actions * np.clip(asked, 0.0, 1.0)).astype(np.int32)),
            "project_count": pa.array(np.maximum(projects, 0.0).astype(np.int32)),
            "activity": pc.if_else(pa.array(busy), work.names(platform, day).take(pa.array(there)), None),
            "sent_utc": repeated(instant(day, 22), len(there)),
            "due_utc": repeated(instant(day + 1, 6), len(there)),
        }
    )


def engagement_levels(platform: Platform, night: int) -> pa.Table:
    """How engaged each account of seven evenings ago has been since."""
    evening = night - WITHIN_DAYS
    there = np.flatnonzero(platform.joined(evening))
    days = sum(active(platform, evening + ahead).astype(np.int64) for ahead in range(1, WITHIN_DAYS + 1))
    counted = np.asarray(days)[there]
    return pa.table(
        {
            "event_date": repeated(date.fromordinal(evening), len(there)),
            "user": platform.names.take(pa.array(there)),
            "active_days": pa.array(counted.astype(np.int32)),
            "engagement_level": pa.array(LEVELS).take(pa.array(level_of(counted))),
            "known_utc": repeated(instant(night, 23), len(there)),
        }
    )

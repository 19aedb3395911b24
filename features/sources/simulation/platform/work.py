"""What the users work on: a Markov chain from day to day that each user begins anew with a piece of work.

A piece takes two weeks, whose first day differs by user. A day's activity is drawn from the day's before, so that a
night is at most fourteen steps from a beginning, and what comes next is known exactly to who knows the chain.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa

from config.catalog.simulation import NewActivity
from features.sources.simulation.draws import Floats
from features.sources.simulation.platform.accounts import MOODS, Platform, active, mood, moods_tomorrow
from features.sources.simulation.renewal import Ints
from features.sources.simulation.reports import dates, evenings_before, instant, repeated

ACTIVITIES = (
    "planning",
    "code_generation",
    "debugging",
    "testing",
    "code_review",
    "documentation",
    "deployment",
)
NEW_ACTIVITY = "pair_programming"
WITHIN_DAYS = 7
_PIECE_DAYS = 14
_STEPS = np.array(
    [
        [0.15, 0.60, 0.02, 0.02, 0.05, 0.15, 0.01],
        [0.02, 0.55, 0.22, 0.12, 0.05, 0.02, 0.02],
        [0.01, 0.28, 0.25, 0.38, 0.05, 0.01, 0.02],
        [0.01, 0.08, 0.22, 0.15, 0.38, 0.04, 0.12],
        [0.03, 0.25, 0.06, 0.05, 0.20, 0.06, 0.35],
        [0.10, 0.10, 0.02, 0.02, 0.30, 0.38, 0.08],
        [0.45, 0.05, 0.12, 0.03, 0.03, 0.25, 0.07],
    ]
)
# What users of each role do more often than others.
_TASTE = np.array(
    [
        [0.8, 1.8, 1.5, 1.0, 0.7, 0.6, 0.5],
        [1.8, 0.6, 0.5, 0.7, 2.5, 1.2, 0.8],
        [0.8, 0.6, 1.2, 1.2, 0.7, 0.7, 3.0],
        [1.4, 0.8, 0.6, 1.0, 0.7, 2.8, 0.3],
    ]
)
_BEGIN = np.array([0.62, 0.2, 0.04, 0.02, 0.02, 0.09, 0.01])


def _tasted(shares: Floats) -> Floats:
    """Shares of activities, (..., activities), by the taste of each role, (roles, ..., activities)."""
    weighed = np.stack([shares * taste for taste in _TASTE])
    return np.asarray(weighed / weighed.sum(axis=-1, keepdims=True))


_BEGIN_OF, _STEPS_OF = _tasted(_BEGIN), _tasted(_STEPS)


def _day_of_piece(platform: Platform, day: int) -> Ints:
    """How many days ago each user's piece of work began."""
    first = (platform.uniforms("piece") * _PIECE_DAYS).astype(np.int64)
    return (day - first) % _PIECE_DAYS


@lru_cache(maxsize=16)
def activity(platform: Platform, day: int) -> Ints:
    """Place in `ACTIVITIES` of what each user works on on a day, active or not."""
    begun, role = _day_of_piece(platform, day), platform.role
    result = np.zeros(platform.users, np.int64)
    for ago in range(_PIECE_DAYS - 1, -1, -1):
        shares = np.where((begun == ago)[:, None], _BEGIN_OF[role], _STEPS_OF[role, result])
        drawn = (platform.uniforms("activity", day - ago)[:, None] > np.cumsum(shares, axis=1)[:, :-1]).sum(axis=1)
        result = np.where(ago <= begun, drawn, result)
    return result


def names(platform: Platform, day: int) -> pa.Array:
    """What each user's activity on a day is called; in an episode some generate code in pairs."""
    place = activity(platform, day)
    for episode in platform.planted(NewActivity, day):
        paired = platform.uniforms(f"episode {episode.kind} {episode.first}") < episode.share
        place = np.where(paired & (place == ACTIVITIES.index("code_generation")), len(ACTIVITIES), place)
    return pa.array([*ACTIVITIES, NEW_ACTIVITY]).take(pa.array(place))


def next_probability(platform: Platform, day: int) -> Floats:
    """(users, activities): how probable each activity is on the user's next active day, if one of the next seven is, by
    who knows in the evening of a day what each works on and in which mood.
    """
    role = platform.role
    moods = np.eye(len(MOODS))[mood(platform, day)]
    works_on = np.eye(len(ACTIVITIES))[activity(platform, day)]
    result = np.zeros_like(works_on)
    for ahead in range(1, WITHIN_DAYS + 1):
        begins = _day_of_piece(platform, day + ahead) == 0
        stepped = np.empty_like(works_on)
        for place, steps in enumerate(_STEPS_OF):
            stepped[role == place] = works_on[role == place] @ steps
        works_on = np.where(begins[:, None], _BEGIN_OF[role], stepped)
        moods, chance = moods_tomorrow(platform, moods), platform.active_probability(day + ahead)
        result += (moods * chance).sum(axis=1, keepdims=True) * works_on
        moods = moods * (1.0 - chance)
    return np.asarray(result / result.sum(axis=1, keepdims=True))


def next_activities(platform: Platform, night: int) -> pa.Table:
    """What those who are active in a night do, told of each evening since they last were, of the seven before."""
    evenings, users, days = evenings_before(
        night,
        lambda day: active(platform, day),
        lambda day: np.zeros(platform.users, np.int64),
        within=WITHIN_DAYS,
        latest=0,
    )
    had = platform.joined_on[users] <= evenings
    return pa.table(
        {
            "event_date": dates(evenings[had]),
            "user": platform.names.take(pa.array(users[had])),
            "activity": names(platform, night).take(pa.array(users[had])),
            "active_on": dates(days[had]),
            "known_utc": repeated(instant(night, 22), int(had.sum())),
        }
    )

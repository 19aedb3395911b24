"""The accounts: who they are, how keen each is on a day, and whether it is active.

A user is in one of four moods for a spell of geometric length, then in one drawn afresh. Spells have no memory, so what
a mood says of the days to come is known exactly, and each spell is drawn by its number: a day needs no day before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
import pyarrow as pa

from config.catalog.simulation import WORLDS, AiPolicy, Episode, MoreCapacity, NewActivity, Outage
from features.sources.simulation.draws import Floats, normals, uniforms
from features.sources.simulation.renewal import Bools, Ints

FIRST_DAY = WORLDS["platform"].begins.toordinal()
ROLES, _ROLE_SHARES = ("developer", "lead", "operator", "analyst"), (0.45, 0.2, 0.15, 0.2)
MOODS = ("dormant", "casual", "regular", "intense")
# How probable a working day's activity is in each mood, and the share of the moods that users of each role get into.
_ACTIVE = np.array([0.03, 0.25, 0.6, 0.92])
_MOOD_SHARES = np.array([[0.2, 0.25, 0.3, 0.25], [0.1, 0.25, 0.4, 0.25], [0.2, 0.4, 0.3, 0.1], [0.35, 0.35, 0.2, 0.1]])
_SPELL_DAYS, _WEEKEND = 40.0, 5
# Those who were there when the world began; the others join evenly over so many days.
_FOUNDERS, _JOINING_DAYS = 0.6, 900
CLUSTERS = ("ap-1", "ap-2", "eu-1", "eu-2", "us-1", "us-2")

Kind = TypeVar("Kind", AiPolicy, MoreCapacity, NewActivity, Outage)


@dataclass(frozen=True)
class Platform:
    """A platform as it is drawn: equal ones are the same. Arrays are of one value a user, joined yet or not.

    Days are proleptic ordinals, as `date.toordinal` counts them.
    """

    seed: int
    users: int
    episodes: tuple[Episode, ...] = ()

    def planted(self, kind: type[Kind], day: int) -> Iterator[Kind]:
        """The episodes of a kind that a day lies in."""
        for episode in self.episodes:
            if isinstance(episode, kind) and episode.first.toordinal() <= day <= episode.last.toordinal():
                yield episode

    def uniforms(self, stream: str, index: int = 0) -> Floats:
        """One number in (0, 1) a user."""
        return uniforms(self.seed, stream, index, self.users)

    def normals(self, stream: str, index: int = 0) -> Floats:
        """One standard normal number a user."""
        return normals(self.seed, stream, index, self.users)

    @cached_property
    def names(self) -> pa.Array:
        """What each user is called."""
        return pa.array([f"U{number:06d}" for number in range(self.users)])

    @cached_property
    def role(self) -> Ints:
        """Place of each user's role in `ROLES`."""
        return np.searchsorted(np.cumsum(_ROLE_SHARES)[:-1], self.uniforms("role"), side="right")

    @cached_property
    def joined_on(self) -> Ints:
        """The day on which each user joins; founders on the first."""
        late = (self.uniforms("joining") - _FOUNDERS) / (1.0 - _FOUNDERS)
        return FIRST_DAY + np.maximum(0, np.ceil(late * _JOINING_DAYS)).astype(np.int64)

    @cached_property
    def cluster(self) -> Ints:
        """Place of each user's cluster in `CLUSTERS`."""
        return (self.uniforms("cluster") * len(CLUSTERS)).astype(np.int64)

    @cached_property
    def collaboration(self) -> Floats:
        """Share of each user's actions that concern others."""
        return np.clip(0.45 + 0.2 * self.normals("collaboration"), 0.02, 0.95)

    @cached_property
    def ai_affinity(self) -> Floats:
        """Share of each user's actions that ask an assistant."""
        return np.clip(0.4 + 0.22 * self.normals("ai affinity"), 0.0, 0.98)

    @cached_property
    def diligence(self) -> Floats:
        """By how much each user is more active than its mood says, in log odds."""
        own = 0.4 * self.normals("diligence")
        return np.asarray(own + 1.5 * (self.collaboration - 0.45) + 1.0 * (self.ai_affinity - 0.4))

    @cached_property
    def weekend(self) -> Floats:
        """By how much each user is more active at weekends, in log odds: few are, most much less."""
        return np.where(self.uniforms("hobby") < 0.15, 0.7, -2.2)

    def joined(self, day: int) -> Bools:
        """Who has an account on a day."""
        return self.joined_on <= day

    def active_probability(self, day: int) -> Floats:
        """(users, moods): how probable each user's activity on a day is, were it in that mood."""
        shift = self.diligence + np.where((day - FIRST_DAY) % 7 >= _WEEKEND, self.weekend, 0.0)
        probability = 1.0 / (1.0 + np.exp(-(np.log(_ACTIVE / (1.0 - _ACTIVE))[None] + shift[:, None])))
        return probability * 0.0 if any(self.planted(Outage, day)) else probability


@lru_cache(maxsize=16)
def mood(platform: Platform, day: int) -> Ints:
    """Place of each user's mood on a day in `MOODS`."""
    result = np.zeros(platform.users, np.int64)
    ends = np.full(platform.users, FIRST_DAY)
    shares = np.cumsum(_MOOD_SHARES, axis=1)[platform.role, :-1]
    spell = 0
    while (running := ends <= day).any():
        length = 1 + np.floor(np.log(platform.uniforms("spell", spell)) / np.log1p(-1.0 / _SPELL_DAYS))
        drawn = (platform.uniforms("mood", spell)[:, None] > shares).sum(axis=1)
        result = np.where(running, drawn, result)
        ends = np.where(running, ends + length.astype(np.int64), ends)
        spell += 1
    return result


@lru_cache(maxsize=64)
def active(platform: Platform, day: int) -> Bools:
    """Whether each user is active on a day; nobody is before joining."""
    probability = platform.active_probability(day)[np.arange(platform.users), mood(platform, day)]
    return (platform.uniforms("active", day) < probability) & platform.joined(day)


def moods_tomorrow(platform: Platform, moods: Floats) -> Floats:
    """(users, moods): the probability of each mood a day later, or a share of it where `moods` is one."""
    ended = moods.sum(axis=1, keepdims=True) / _SPELL_DAYS
    return np.asarray(moods * (1.0 - 1.0 / _SPELL_DAYS) + ended * _MOOD_SHARES[platform.role])

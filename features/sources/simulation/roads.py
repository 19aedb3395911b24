"""A city's roads: how long each takes in each hour, and what of that is measured.

A grid of junctions, joined both ways by roads of drawn lengths, with arterials round it and through its middle, and a
pier that leads nowhere. How much a road is loaded follows from its direction (into the centre in the morning, out of it
in the evening), from what people want that week (a smooth field over the network that fades over days), from roadworks
and accidents, which take capacity and send traffic to the roads nearby, and from rain. Its travel time is that of the
Bureau of Public Roads (Traffic Assignment Manual, 1964): free flow times 1 + 0.15 load⁴; what does not fit queues back
into the roads before it.

Every table is a function of the city and a day alone: fields are moving averages of draws that have an address, and
works are drawn by slots of days, so that no night needs the nights before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache, cached_property

import numpy as np
import pyarrow as pa

from features.sources.simulation.draws import Floats, normals, uniforms
from features.sources.simulation.renewal import Bools, Ints
from features.sources.simulation.reports import instant, instants, repeated

HOURS = 24
# What people want of a day: how long a draw is remembered, and how much of it is of that day alone.
_MEMORY_DAYS, _FADING, _LASTING, _OF_THE_DAY = 20, 0.82, 0.13, 0.04
_WORKS_SLOT, _WORKS_SHARE, _WORKS_CAPACITY, _DETOUR = 24, 0.10, 0.6, 1.12
_ACCIDENT_SHARE, _ACCIDENT_HOURS, _ACCIDENT_CAPACITY = 0.02, 2, 0.6
_OUTAGE_SLOT, _OUTAGE_SHARE = 28, 0.12
_MISSING, _MEASURED_ERROR = 0.01, 0.08
_MOST_LOAD = 1.9
_FORECAST_ERROR = 0.35


@dataclass(frozen=True)
class City:
    """A city as it is drawn: equal ones are the same city. Arrays are of one value a road where no shape is said.

    Days are proleptic ordinals, as `date.toordinal` counts them.

    Attributes:
        blocks: junctions on each side of the grid.
    """

    seed: int
    blocks: int

    @cached_property
    def ends(self) -> tuple[Ints, Ints]:
        """Junctions that each road leads from and to; the pier is the last road, between the last two junctions."""
        place = np.arange(self.blocks**2).reshape(self.blocks, self.blocks)
        pairs = [(place[:, :-1], place[:, 1:]), (place[:-1], place[1:])]
        begin = np.concatenate([each[0].ravel() for each in pairs])
        end = np.concatenate([each[1].ravel() for each in pairs])
        pier = [self.blocks**2]
        return np.concatenate([begin, end, pier]), np.concatenate([end, begin, [pier[0] + 1]])

    @property
    def count(self) -> int:
        """How many roads there are."""
        return len(self.ends[0])

    @property
    def names(self) -> pa.Array:
        """The name of each road."""
        return pa.array(np.char.mod("R%04d", np.arange(self.count)))

    @cached_property
    def arterial(self) -> Bools:
        """Roads of the ring and of the two axes."""
        lines = {0, self.blocks // 2, self.blocks - 1}
        begin, end = (np.divmod(each, self.blocks) for each in self.ends)
        along = [(begin[axis] == end[axis]) & np.isin(begin[axis], list(lines)) for axis in (0, 1)]
        return np.asarray(along[0] | along[1])

    @cached_property
    def length_km(self) -> Floats:
        """Lengths, the same in both directions."""
        half = self.count // 2
        drawn = np.round(0.6 + 0.9 * uniforms(self.seed, "road length", 0, half), 2)
        return np.concatenate([drawn, drawn, [0.4]])

    @cached_property
    def free_minutes(self) -> Floats:
        """Minutes of an empty road: 58 km/h on arterials, 34 to 42 on streets."""
        street = 34.0 + 8.0 * uniforms(self.seed, "road speed", 0, self.count)
        return np.asarray(60.0 * self.length_km / np.where(self.arterial, 58.0, street))

    @cached_property
    def touching(self) -> Bools:
        """Whether two roads follow each other at a junction, (roads, roads); a road and the way back do not."""
        begin, end = self.ends
        follows = (end[:, None] == begin[None]) & (begin[:, None] != end[None])
        return np.asarray(follows | follows.T)

    @cached_property
    def after(self) -> Floats:
        """Shares of the roads that follow each road, (roads, roads): where its vehicles want to go."""
        begin, end = self.ends
        follows = ((end[:, None] == begin[None]) & (begin[:, None] != end[None])).astype(float)
        return np.asarray(follows / np.maximum(follows.sum(axis=1, keepdims=True), 1.0))

    @cached_property
    def around(self) -> Floats:
        """What makes a draw for each road a smooth field of unit variance, (roads, roads)."""
        near = np.eye(self.count) + self.touching / np.maximum(self.touching.sum(axis=1, keepdims=True), 1)
        smooth = near @ near
        return np.asarray(smooth / np.sqrt(np.square(smooth).sum(axis=1, keepdims=True)))

    @cached_property
    def inward(self) -> Floats:
        """How much nearer to the centre a road leads, -1 to 1."""
        centre = (self.blocks - 1) / 2.0
        begin, end = (np.hypot(*(axis - centre for axis in np.divmod(each, self.blocks))) for each in self.ends)
        return np.asarray(np.clip(begin - end, -1.0, 1.0))

    @cached_property
    def usual_load(self) -> Floats:
        """The load of each road in the hour of most traffic of an ordinary day: more in the middle."""
        centre = (self.blocks - 1) / 2.0
        begin, end = (np.divmod(each, self.blocks) for each in self.ends)
        far = np.hypot(*((begin[axis] + end[axis]) / 2.0 - centre for axis in (0, 1)))
        drawn = 0.85 + 0.3 * uniforms(self.seed, "road load", 0, self.count)
        return np.asarray(drawn * np.where(self.arterial, 1.25, 1.1 - 0.25 * far / max(centre, 1.0)))


def travel_minutes(city: City, day: int, *, again: int = 0) -> Floats:
    """The mean time that each road takes in each hour of a day, (24, roads), minutes: the truth.

    Args:
        again: another course of the day, as possible as the true one (0) for who knows all until the evening before.
    """
    load = _load(city, day, again)
    excess = np.maximum(load - 1.0, 0.0)
    load = np.minimum(load + 0.4 * excess @ city.after.T, _MOST_LOAD)
    wet = 1.0 + 0.012 * np.minimum(rain_mm(city, day, again), 12.0)
    return np.asarray(city.free_minutes * wet * (1.0 + 0.15 * load**4))


def best_forecast(city: City, day: int, draws: int) -> Floats:
    """The median of what the day may be, for who knows all until the evening before, (24, roads): no forecast of a road
    and hour has a smaller mean absolute error but for the chance of so many draws.
    """
    return np.asarray(np.median([travel_minutes(city, day, again=1 + each) for each in range(draws)], axis=0))


def _load(city: City, day: int, again: int) -> Floats:
    """What wants to use each road over what it takes, (24, roads)."""
    weekday = (day - 1) % 7  # ordinal 1 is a Monday
    hour = np.arange(HOURS) + 0.5
    tides = ((8.0, 1.3), (17.3, 1.8), (13.5, 4.0))
    morning, evening, noon = (np.exp(-0.5 * ((hour - at) / wide) ** 2) for at, wide in tides)
    if weekday < 5:
        peaks = [morning[:, None] * (0.8 + 0.35 * city.inward), evening[:, None] * (0.85 - 0.3 * city.inward)]
        shape = np.maximum(np.maximum(*peaks), 0.6 * noon[:, None])
        shape = shape * (1.06 if weekday == 4 else 1.0)
    else:
        shape = np.broadcast_to((0.75 if weekday == 5 else 0.6) * noon[:, None], (HOURS, city.count))
    works, detour = _works(city, day, again)
    capacity = np.where(works, _WORKS_CAPACITY, 1.0) * np.where(_accidents(city, day, again), _ACCIDENT_CAPACITY, 1.0)
    wanted = (0.12 + shape) * city.usual_load * np.exp(_wish(city, day, again)) * detour
    return np.asarray(wanted / (capacity * (1.0 - 0.012 * min(rain_mm(city, day, again), 12.0))))


def _wish(city: City, day: int, again: int) -> Floats:
    """How much more of each road is wanted on a day than usual, as a logarithm."""
    lasting = _fading(city.seed, "demand", day, city.count, again)
    of_the_day = normals(city.seed, _course("demand of the day", again), day, city.count)
    return np.asarray(city.around @ (_LASTING * lasting + _OF_THE_DAY * of_the_day))


@cache
def _fading_past(seed: int, stream: str, day: int, count: int) -> Floats:
    past = [_FADING**back * normals(seed, stream, day - back, count) for back in range(1, _MEMORY_DAYS + 1)]
    return np.asarray(np.sum(past, axis=0))


def _fading(seed: int, stream: str, day: int, count: int, again: int) -> Floats:
    """A moving average of unit variance in which each day's draw fades."""
    total = _fading_past(seed, stream, day, count) + normals(seed, _course(stream, again), day, count)
    return np.asarray(total * np.sqrt(1.0 - _FADING**2))


def rain_mm(city: City, day: int, again: int = 0) -> float:
    """Rain of a day. Another course of it is what its forecast leaves open."""
    sky = _sky(city, day)
    if again:  # of two normal estimates, what the days before say and what the forecast does
        past, left = _fading_past(city.seed, "sky", day, 1)[0] * np.sqrt(1.0 - _FADING**2), 1.0 - _FADING**2
        error = _FORECAST_ERROR**2
        middle = (past * error + _told(city, day) * left) / (left + error)
        other = float(normals(city.seed, _course("sky", again), day, 1)[0])
        sky = middle + np.sqrt(left * error / (left + error)) * other
    return float(max(0.0, 7.0 * (sky - 0.5)))


def _sky(city: City, day: int) -> float:
    return float(_fading(city.seed, "sky", day, 1, 0)[0])


def _told(city: City, day: int) -> float:
    """What the evening before says of a day's sky."""
    return _sky(city, day) + _FORECAST_ERROR * float(normals(city.seed, "forecast error", day, 1)[0])


def _works(city: City, day: int, again: int) -> tuple[Bools, Floats]:
    """Roads with roadworks, and the factor on what is wanted of the others for it. Works that begin on the day are not
    known the evening before.
    """
    under_way = _spells(city, "works", day, _WORKS_SLOT, _WORKS_SHARE, 3, 18, before=day)
    begun = _spells(city, _course("works", again), day, _WORKS_SLOT, _WORKS_SHARE, 3, 18) & ~_spells(
        city, _course("works", again), day, _WORKS_SLOT, _WORKS_SHARE, 3, 18, before=day
    )
    works = under_way | begun
    return works, np.where(works, 1.0, _DETOUR ** (city.touching @ works))


def _spells(
    city: City, stream: str, day: int, slot: int, share: float, least: int, most: int, before: int | None = None
) -> Bools:
    """Whether a spell holds for each road on a day: at most one begins in each slot of days, and lasts a while.

    Args:
        before: count only those that began before this day.
    """
    there = np.zeros(city.count, bool)
    for number in (day // slot - 1, day // slot):
        chosen, begins, lasts = (uniforms(city.seed, f"{stream}: {what}", number, city.count) for what in _SPELL)
        first = number * slot + np.floor(begins * slot)
        last = first + least + np.floor(lasts * (most - least))
        started = first <= day if before is None else first < before
        there |= (chosen < share) & started & (day <= last)
    return there


_SPELL = ("whether", "when", "how long")


def _accidents(city: City, day: int, again: int) -> Bools:
    """Hours in which an accident narrows a road, (24, roads)."""
    stream = _course("accident", again)
    begins = np.floor(uniforms(city.seed, f"{stream}: hour", day, city.count) * HOURS)
    chosen = uniforms(city.seed, f"{stream}: whether", day, city.count) < _ACCIDENT_SHARE
    since = np.arange(HOURS)[:, None] - begins
    return np.asarray(chosen & (since >= 0) & (since < _ACCIDENT_HOURS))


def _course(stream: str, again: int) -> str:
    return f"{stream}, course {again}" if again else stream


# ---- tables


def roads(city: City, day: int) -> pa.Table:
    """The map of a day."""
    begin, end = (pa.array(np.char.mod("J%04d", each)) for each in city.ends)
    return pa.table(
        {
            "event_date": repeated(date.fromordinal(day), city.count),
            "road": city.names,
            "from_junction": begin,
            "to_junction": end,
            "road_class": pa.array(np.where(city.arterial, "arterial", "street")),
            "length_km": pa.array(city.length_km),
            "free_flow_minutes": pa.array(np.round(city.free_minutes, 4)),
            "told_utc": repeated(instant(day, 12), city.count),
        }
    )


def links(city: City, day: int) -> pa.Table:
    """The adjacency of a day's map: each road beside those that it follows, and that follow it."""
    road, neighbour = np.nonzero(city.touching)
    return pa.table(
        {
            "event_date": repeated(date.fromordinal(day), len(road)),
            "road": city.names.take(pa.array(road)),
            "neighbour": city.names.take(pa.array(neighbour)),
            "told_utc": repeated(instant(day, 12), len(road)),
        }
    )


def road_hours(city: City, day: int) -> pa.Table:
    """What was measured in each hour of a day. A sensor that is out sends nothing; one hour in a hundred is null."""
    truth = travel_minutes(city, day)
    error = normals(city.seed, "measured", day, HOURS * city.count).reshape(HOURS, city.count)
    measured = np.round(truth * np.exp(_MEASURED_ERROR * error), 3)
    missing = uniforms(city.seed, "missing", day, HOURS * city.count).reshape(HOURS, city.count) < _MISSING
    there = np.flatnonzero(~_spells(city, "outage", day, _OUTAGE_SLOT, _OUTAGE_SHARE, 1, 10))
    hour, road = (axis.ravel() for axis in np.meshgrid(np.arange(HOURS), there, indexing="ij"))
    return pa.table(
        {
            "hour_utc": instants(day, hour * 3600),
            "road": city.names.take(pa.array(road)),
            "travel_minutes": pa.array(measured[hour, road], mask=missing[hour, road]),
        }
    )


def rain_forecasts(city: City, day: int) -> pa.Table:
    """What the evening says of tomorrow's rain."""
    return pa.table(
        {
            "rainy_date": repeated(date.fromordinal(day + 1), 1),
            "rain_mm": pa.array([round(max(0.0, 7.0 * (_told(city, day + 1) - 0.5)), 1)]),
            "issued_utc": repeated(instant(day, 18), 1),
        }
    )


TABLES: Mapping[str, Callable[[City, int], pa.Table]] = {
    "roads": roads,
    "links": links,
    "road_hours": road_hours,
    "rain_forecasts": rain_forecasts,
}

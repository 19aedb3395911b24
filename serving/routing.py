"""Fastest ways through a network whose roads take another time in each hour, by what a model foretells of them.

Hours' means stand at the middle of their hours, and times between them are interpolated: who leaves later then arrives
later (Kaufman and Smith, "Fastest paths in time-dependent networks", 1993), so that earliest arrivals, found junction
by junction, are the fastest ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from config.calendar import ONE_DAY, cutoff
from config.errors import NightfleetError
from lake.lake import Lake
from lake.tables import valid_table
from serving.predictions import predictions_table

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MAP_COLUMNS = ("road", "from_junction", "to_junction")
_HOUR = 60.0
_NONE = -1


class UnknownJunction(NightfleetError):
    """A junction is not on the map."""


class Unreachable(NightfleetError):
    """No way leads from one junction to another."""


class NoTravelTimes(NightfleetError):
    """A night has no map, or no travel times of its roads."""


@dataclass(frozen=True)
class Network:
    """Roads, each one way, between junctions.

    Attributes:
        begins, ends: positions in `junctions`, one a road.
    """

    roads: tuple[str, ...]
    junctions: tuple[str, ...]
    begins: Ints
    ends: Ints

    @classmethod
    def of(cls, rows: pa.Table) -> Network:
        """The network of a map, rows with `MAP_COLUMNS`; roads in the order of their names."""
        begins, ends = rows["from_junction"].to_pylist(), rows["to_junction"].to_pylist()
        junctions = tuple(sorted({*begins, *ends}))
        place = {name: position for position, name in enumerate(junctions)}
        order = np.argsort(np.array(rows["road"].to_pylist(), dtype=object))
        names = rows["road"].take(pa.array(order)).to_pylist()
        located = (np.array([place[name] for name in each], np.int64)[order] for each in (begins, ends))
        return cls(tuple(names), junctions, *located)

    def places(self, names: Iterable[str]) -> Ints:
        """Positions of junctions.

        Raises:
            UnknownJunction: one is not on the map.
        """
        place = {name: position for position, name in enumerate(self.junctions)}
        wanted = list(names)
        for name in wanted:
            if name not in place:
                raise UnknownJunction(
                    f"{name!r} is no junction of the map, which has {len(place)} "
                    f"({', '.join(self.junctions[:3])}, ...). Name one of them."
                )
        return np.array([place[name] for name in wanted], np.int64)

    @cached_property
    def into(self) -> Ints:
        """Roads that end at each junction, (junctions, most of them); where there are fewer, the position after the
        last road.
        """
        roads = [np.flatnonzero(self.ends == place) for place in range(len(self.junctions))]
        table = np.full((len(roads), max(map(len, roads))), len(self.roads), np.int64)
        for place, ending in enumerate(roads):
            table[place, : len(ending)] = ending
        return table


def fastest_ways(network: Network, minutes: Floats, origins: Ints, destinations: Ints, departures: Floats) -> Ints:
    """The roads of the fastest way of each query, (queries, most roads), filled up with -1.

    Args:
        minutes: (hours, roads) mean time of each road in each hour; a road that has none in an hour, NaN, is not taken
            then. After the last hour its times hold on.
        origins, destinations: (queries,) positions of junctions.
        departures: (queries,) minutes since the first hour began.
    Raises:
        Unreachable: no way leads to a destination.
    """
    queries = np.arange(len(origins))
    arrival = np.full((len(queries), len(network.junctions)), np.inf)
    arrival[queries, origins] = departures
    for _ in network.junctions:
        reached = _reached(network, minutes, arrival)
        earlier = np.minimum(arrival, reached[:, network.into].min(axis=2))
        if (earlier == arrival).all():
            break
        arrival = earlier
    late = np.flatnonzero(np.isinf(arrival[queries, destinations]))
    if len(late):
        begin, end = (network.junctions[each[late[0]]] for each in (origins, destinations))
        raise Unreachable(
            f"no way leads from {begin} to {end}: the map, or what is foretold of its roads, has a gap between them"
            f"{f' ({len(late)} of {len(queries)} queries have none)' if len(queries) > 1 else ''}. Ask for another "
            "destination, or look whether a road between them left the map or lost its travel times."
        )
    reached = _reached(network, minutes, arrival)
    last = np.take_along_axis(network.into[None], reached[:, network.into].argmin(axis=2)[..., None], axis=2)[..., 0]
    ways, place = [], destinations.copy()
    while (place != origins).any():
        road = np.where(place != origins, last[queries, place], _NONE)
        ways.append(road)
        place = np.where(road == _NONE, place, network.begins[road])
    backwards = np.stack(ways, axis=1) if ways else np.empty((len(queries), 0), np.int64)
    # The first road first; what fills up goes to the end.
    way = backwards[:, ::-1]
    return np.take_along_axis(way, np.argsort(way == _NONE, axis=1, kind="stable"), axis=1)


def travelled_minutes(minutes: Floats, ways: Ints, departures: Floats) -> Floats:
    """How long each way takes, (queries,), by `minutes` as in `fastest_ways`."""
    clock = departures.astype(np.float64)
    for road in ways.T:
        taken = np.where(road == _NONE, 0.0, _minutes_at(minutes, clock, np.maximum(road, 0)))
        clock = clock + taken
    return np.asarray(clock - departures)


def _reached(network: Network, minutes: Floats, arrival: Floats) -> Floats:
    """When each road is left by who arrives where it begins, (queries, roads + 1); the last column never is."""
    starts = arrival[:, network.begins]
    taken = _minutes_at(minutes, np.where(np.isinf(starts), 0.0, starts), np.arange(len(network.roads)))
    return np.pad(starts + taken, ((0, 0), (0, 1)), constant_values=np.inf)


def _minutes_at(minutes: Floats, clock: Floats, roads: Ints) -> Floats:
    """The time of a road that is entered at a minute."""
    at = np.clip(clock / _HOUR - 0.5, 0.0, len(minutes) - 1.0)
    hour = np.minimum(at.astype(np.int64), max(len(minutes) - 2, 0))
    part = at - hour
    after = minutes[np.minimum(hour + 1, len(minutes) - 1), roads]
    taken = np.where(part > 0, minutes[hour, roads] * (1.0 - part) + after * part, minutes[hour, roads])
    return np.where(np.isnan(taken), np.inf, taken)


def network_of(lake: Lake, model: str, night: date, *, map_table: str) -> Network:
    """The network by the map that a night knew, a table of the model's data set with `MAP_COLUMNS`.

    Raises:
        NoTravelTimes: the data set has no such table, or the night no map.
    """
    dataset = lake.dataset(lake.model(model).dataset)
    declared = dataset.tables[map_table].columns if map_table in dataset.tables else {}
    if missing := [name for name in MAP_COLUMNS if name not in declared]:
        raise NoTravelTimes(
            f"{dataset.name} has no table {map_table!r} with the column {missing[0]}. Name the table that is the map: "
            f"each road (road) and where it begins and ends (from_junction, to_junction)."
        )
    rows = valid_table(lake.settings, dataset, map_table).read([night])
    if not rows.num_rows:
        raise NoTravelTimes(f"{dataset.name}/{map_table} has no map of {night}. Run `{dataset.name}_ingest` for it.")
    return Network.of(rows)


def foretold_minutes(lake: Lake, model: str, night: date, roads: Sequence[str]) -> Floats:
    """What the night's served predictions say of each hour of the next day, (hours, roads); NaN where they say nothing.

    Raises:
        NoTravelTimes: the night has no predictions of these roads.
    """
    entry = lake.model(model)
    dataset = lake.dataset(entry.dataset)
    rows = predictions_table(lake.settings, entry, dataset).read([night])
    rows = rows.filter(rows["served"])
    found = pc.is_in(rows[entry.entity[0]], pa.array(roads))
    if not pc.any(found).as_py():
        raise NoTravelTimes(
            f"{model} has no predictions of {night} for the {len(roads)} roads of its map. Run `{model}_score` for it."
        )
    day = cutoff(night, dataset.time_zone), cutoff(night + ONE_DAY, dataset.time_zone)
    return by_hour(rows, next(iter(entry.outputs)), roads, day, road_column=entry.entity[0])


def by_hour(
    rows: pa.Table,
    column: str,
    roads: Sequence[str],
    day: tuple[datetime, datetime],
    *,
    road_column: str = "road",
    time_column: str = "target_time_utc",
) -> Floats:
    """A column of rows as (hours, roads), NaN where there is no row; rows of other roads and times are left out.

    Args:
        day: when its first hour begins and its last one ends.
    """
    hours = round((day[1] - day[0]).total_seconds() / 3600)
    hour = (pc.cast(rows[time_column], pa.int64()).to_numpy() - round(day[0].timestamp()) * 1_000_000) // 3_600_000_000
    road = pc.index_in(rows[road_column], pa.array(roads)).to_numpy(zero_copy_only=False)
    kept = ~np.isnan(road.astype(np.float64)) & (hour >= 0) & (hour < hours)
    minutes = np.full((hours, len(roads)), np.nan)
    minutes[hour[kept], road[kept].astype(np.int64)] = rows[column].to_numpy(zero_copy_only=False)[kept]
    return minutes

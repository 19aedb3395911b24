"""The fastest way through a network, by a model's predictions, as a table."""

from __future__ import annotations

import re
from datetime import date

import numpy as np
from rich.table import Table

from config.errors import NightfleetError
from lake.lake import Lake
from serving.routing import fastest_ways, foretold_minutes, network_of, travelled_minutes


class BadTime(NightfleetError):
    """A time of the day cannot be read."""


def way_table(lake: Lake, model: str, night: date, ends: tuple[str, str], at: str, *, map_table: str) -> Table:
    """The roads in order, where each leads to, and when that is reached.

    Raises:
        BadTime: `at` is no HH:MM.
        UnknownJunction, Unreachable, NoTravelTimes: as their texts say.
    """
    read = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", at)
    if read is None:
        raise BadTime(f"{at!r} is no time of the day. Write HH:MM, for example 08:00.")
    leaves = np.array([60.0 * int(read[1]) + int(read[2])])
    network = network_of(lake, model, night, map_table=map_table)
    origin, destination = (network.places([name]) for name in ends)
    minutes = foretold_minutes(lake, model, night, network.roads)
    way = fastest_ways(network, minutes, origin, destination, leaves)
    table = Table(
        title=f"{ends[0]} to {ends[1]}, leaving at {at}", title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    for heading in ("road", "to", "reached"):
        table.add_column(heading, justify="right" if heading == "reached" else "left")
    for length in range(1, way.shape[1] + 1):
        reached = round(float(leaves[0] + travelled_minutes(minutes, way[:, :length], leaves)[0]))
        road = way[0, length - 1]
        table.add_row(
            network.roads[road], network.junctions[network.ends[road]], f"{reached // 60 % 24:02}:{reached % 60:02}"
        )
    return table

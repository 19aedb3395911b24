"""Fastest ways: those of a brute force over all of them, later for who leaves in the peak; what has no way is said."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from features.sources.simulation import roads
from serving.routing import Network, UnknownJunction, Unreachable, by_hour, fastest_ways, travelled_minutes

DAY = datetime(2025, 2, 3, tzinfo=UTC)


def network(*pairs: tuple[str, str]) -> Network:
    names = [f"{begin}{end}" for begin, end in pairs]
    begins, ends = zip(*pairs, strict=True)
    return Network.of(pa.table({"road": names, "from_junction": list(begins), "to_junction": list(ends)}))


def named(net: Network, ways: np.ndarray) -> list[str]:
    return [" ".join(net.roads[road] for road in way if road >= 0) for way in ways]


SQUARE = network(("A", "B"), ("B", "D"), ("A", "C"), ("C", "D"), ("D", "A"))


def asked(net: Network, *queries: tuple[str, str, float]):
    origins, destinations, departures = zip(*queries, strict=True)
    return net.places(origins), net.places(destinations), np.array(departures)


def test_the_way_depends_on_when_one_leaves() -> None:
    minutes = np.full((24, 5), 10.0)
    minutes[8, SQUARE.roads.index("AB")] = 30.0  # the peak
    minutes[:, SQUARE.roads.index("AC")] = 15.0
    query = asked(SQUARE, ("A", "D", 180.0), ("A", "D", 510.0), ("D", "B", 180.0), ("A", "A", 0.0))
    ways = fastest_ways(SQUARE, minutes, *query)
    assert named(SQUARE, ways) == ["AB BD", "AC CD", "DA AB", ""]
    assert travelled_minutes(minutes, ways, query[2]).tolist() == [20.0, 25.0, 20.0, 0.0]


def test_between_hours_times_are_interpolated_and_after_the_last_they_hold() -> None:
    minutes = np.arange(24.0)[:, None] + np.zeros(5)
    way = np.array([[0]])
    for departure, expected in ((0.0, 0.0), (90.0, 1.0), (105.0, 1.25), (1439.0, 23.0), (3000.0, 23.0)):
        assert travelled_minutes(minutes, way, np.array([departure])) == pytest.approx([expected])


def test_no_way_is_faster_than_the_one_found() -> None:
    city = roads.City(3, 3)
    rows = roads.roads(city, DAY.toordinal())
    net = Network.of(rows)
    minutes = 40.0 * roads.travel_minutes(city, DAY.toordinal())  # so long that hours change on the way
    corners = ("J0000", "J0008", "J0002", "J0006")
    queries = [(begin, end, 420.0) for begin, end in itertools.permutations(corners, 2)]
    query = asked(net, *queries)
    found = travelled_minutes(minutes, fastest_ways(net, minutes, *query), query[2])

    def least(place: int, end: int, clock: float, been: frozenset[int]) -> float:
        if place == end:
            return clock
        onward = (r for r in np.flatnonzero(net.begins == place) if int(net.ends[r]) not in been)
        reached = (
            (int(net.ends[r]), clock + float(travelled_minutes(minutes, np.array([[r]]), np.array([clock]))[0]))
            for r in onward
        )
        return min((least(at, end, then, been | {at}) for at, then in reached), default=np.inf)

    pairs = zip(query[0], query[1], strict=True)
    assert found == pytest.approx([least(int(a), int(b), 420.0, frozenset({int(a)})) - 420.0 for a, b in pairs])


def test_what_has_no_way_is_said_and_what_to_look_for() -> None:
    minutes = np.full((24, 5), 10.0)
    with pytest.raises(UnknownJunction, match=r"'Z' is no junction of the map, which has 4 \(A, B, C"):
        SQUARE.places(["A", "Z"])
    gap = network(("A", "B"), ("C", "D"))
    with pytest.raises(Unreachable, match="no way leads from A to D: the map"):
        fastest_ways(gap, minutes[:, :2], *asked(gap, ("A", "D", 0.0)))
    # A road of which nothing is foretold is not taken, and where all ways need it there is none.
    minutes[:, SQUARE.roads.index("AB")] = np.nan
    assert named(SQUARE, fastest_ways(SQUARE, minutes, *asked(SQUARE, ("A", "D", 0.0)))) == ["AC CD"]
    minutes[:, SQUARE.roads.index("CD")] = np.nan
    with pytest.raises(Unreachable, match=r"1 of 2 queries have none"):
        fastest_ways(SQUARE, minutes, *asked(SQUARE, ("A", "C", 0.0), ("A", "D", 0.0)))


def test_predictions_become_hours_and_roads_and_a_road_that_left_the_map_is_left_out() -> None:
    hour = timedelta(hours=1)
    rows = pa.table(
        {
            "road": ["AB", "gone", "CD", "AB"],
            "target_time_utc": pa.array([DAY, DAY, DAY + 23 * hour, DAY + 24 * hour], pa.timestamp("us", tz="UTC")),
            "minutes": [1.0, 2.0, 3.0, 4.0],
        }
    )
    minutes = by_hour(rows, "minutes", ["AB", "CD"], (DAY, DAY + 24 * hour))
    assert minutes.shape == (24, 2)
    assert (minutes[0, 0], minutes[23, 1]) == (1.0, 3.0)
    assert np.isnan(minutes).sum() == 46

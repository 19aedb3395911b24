"""The steps of roads and their neighbours: means over an adjacency table, without those that measured nothing."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from config.calendar import Interval
from config.catalog.load import load_catalog
from config.settings import Settings
from features.transform import compute_view
from lake.lake import Lake
from lake.tables import valid_table
from tests import toy

FIRST = date(2024, 10, 1)
NIGHT, NEXT = date(2024, 10, 2), date(2024, 10, 3)
HOUR = timedelta(hours=1)
LINKS = {"A": "B", "B": "AC", "C": "B"}
Steps = dict[tuple[date, str, int], dict[str, Any]]


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def publish(lake: Lake, name: str, rows: list[dict[str, Any]], nights: Interval) -> None:
    table = valid_table(lake.settings, lake.dataset("roads"), name)
    filled = [{"revision": 0, "known_at_utc": midnight(row["data_date"]), **row} for row in rows]
    toy.publish_rows(lake, table, pa.Table.from_pylist(filled, schema=table.schema), nights)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """Four roads: D touches none, C has no sensor, and B is off the map of the second night."""
    settings = Settings(home=tmp_path_factory.mktemp("roads"), duckdb_memory_gb=1.0)
    lake = Lake(settings, load_catalog(settings))
    nights = Interval.closed(FIRST, NEXT)
    maps = {FIRST: "ABCD", NIGHT: "ABCD", NEXT: "ACD"}
    told = {day: {"data_date": day, "event_date": day, "told_utc": midnight(day)} for day in nights}
    about = {"from_junction": "x", "to_junction": "y", "road_class": "street", "length_km": 1.0}
    publish(
        lake,
        "roads",
        [{**told[day], **about, "road": road, "free_flow_minutes": 2.0} for day in nights for road in maps[day]],
        nights,
    )
    touching = [
        {**told[day], "road": road, "neighbour": other}
        for day in nights
        for road in maps[day]
        for other in LINKS.get(road, "")
        if other in maps[day]
    ]
    publish(lake, "links", touching, nights)
    took = {("A", 0): 4.0, ("A", 1): 2.0, ("B", 0): 6.0, ("B", 1): None, ("D", 0): 8.0}
    measured = [
        {"data_date": NIGHT, "road": road, "hour_utc": midnight(NIGHT) + hour * HOUR, "travel_minutes": minutes}
        for (road, hour), minutes in took.items()
    ]
    publish(lake, "road_hours", measured, nights)
    rain = [{"data_date": NIGHT, "rainy_date": NEXT, "rain_mm": 3.0, "issued_utc": midnight(NIGHT)}]
    publish(lake, "rain_forecasts", rain, nights)
    rows = compute_view(lake, "roads", "road_steps", Interval.closed(NIGHT, NEXT)).to_pylist()
    assert all(row["hour_utc"] == midnight(row["data_date"]) + (24 + row["hour_of_day"]) * HOUR for row in rows)
    return {(row["data_date"], row["road"], row["hour_of_day"]): row for row in rows}


def of(row: dict[str, Any], *, back: int = 0, day: str = "") -> tuple[float | None, ...]:
    return tuple(row[f"{around}{day}delay_t{back}"] for around in ("", "near_", "further_"))


def test_every_hour_of_every_road_of_the_map_has_its_own_steps_and_those_around_it(steps: Steps) -> None:
    assert len(steps) == 24 * 4 + 24 * 3
    # The mean of B's neighbours is A's alone, since C has no sensor; so is that of the roads around A.
    assert of(steps[NIGHT, "A", 0]) == (2.0, 3.0, 2.0)
    assert of(steps[NIGHT, "B", 0]) == (3.0, 2.0, 3.0)
    assert of(steps[NIGHT, "A", 1]) == (1.0, None, 1.0)
    assert of(steps[NIGHT, "A", 0], day="day_") == (1.5, 3.0, 1.5)
    assert of(steps[NIGHT, "A", 0], back=1) == (None, None, None)
    said = {name: steps[NIGHT, "A", 0][name] for name in ("free_flow_minutes", "neighbours", "rain_mm", "weekday")}
    assert said == {"free_flow_minutes": 2.0, "neighbours": 1, "rain_mm": 3.0, "weekday": 4}
    assert steps[NEXT, "A", 0]["rain_mm"] is None


def test_a_road_that_touches_none_and_one_without_a_sensor(steps: Steps) -> None:
    assert of(steps[NIGHT, "D", 0]) == (4.0, None, None)
    assert steps[NIGHT, "D", 0]["neighbours"] == 0
    assert of(steps[NIGHT, "C", 0]) == (None, 3.0, 2.0)


def test_a_road_that_left_the_map_is_no_ones_neighbour_and_has_no_row(steps: Steps) -> None:
    assert (NEXT, "B", 0) not in steps
    assert of(steps[NEXT, "A", 0], back=1) == (2.0, None, None)
    assert steps[NEXT, "A", 0]["neighbours"] == 0

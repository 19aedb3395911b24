"""The simulated city: any night alone, traffic as people drive, works that send it elsewhere, and a truth that no
forecast beats.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from config.catalog.base import BadCatalog
from config.catalog.simulation import WORLDS, Simulated
from config.settings import ROOT
from features.sources import simulation
from features.sources.simulation import roads
from tests.config.test_simulation import load

NIGHT = date(2025, 1, 14)  # a Tuesday
DAY = NIGHT.toordinal()
CITY = roads.City(7, 4)


def night(table: str, seed: int = 7) -> pa.Table:
    return simulation.night(Simulated(world="roads", table=table, seed=seed, blocks=4), NIGHT)


def test_another_process_that_draws_the_night_alone_draws_the_same() -> None:
    code = (
        "import datetime\n"
        "from config.catalog.simulation import Simulated, WORLDS\n"
        "from features.sources import simulation\n"
        "for table in WORLDS['roads'].tables:\n"
        "    asked = Simulated(world='roads', table=table, seed=7, blocks=4)\n"
        f"    print(simulation.night(asked, datetime.date{NIGHT.timetuple()[:3]}).to_pylist())"
    )
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for back in range(5, 0, -1):
        roads.travel_minutes(CITY, DAY - back)
    assert other.stdout.splitlines() == [str(night(table).to_pylist()) for table in WORLDS["roads"].tables]
    assert not night("road_hours").equals(night("road_hours", seed=8))


def test_the_map_is_a_city_and_a_pier_that_leads_nowhere() -> None:
    drawn, touching = night("roads"), night("links")
    assert drawn.num_rows == 2 * 2 * 4 * 3 + 1
    assert set(touching["road"].to_pylist()) == set(drawn["road"].to_pylist()[:-1])
    ends = {row["road"]: (row["from_junction"], row["to_junction"]) for row in drawn.to_pylist()}
    pairs = [(ends[row["road"]], ends[row["neighbour"]]) for row in touching.to_pylist()]
    assert all((a[1] == b[0] or b[1] == a[0]) and a != b[::-1] for a, b in pairs)
    assert set(drawn["road_class"].to_pylist()) == {"arterial", "street"}


def test_mornings_are_slow_into_the_centre_and_evenings_out_of_it() -> None:
    tuesdays = [DAY + 7 * week for week in range(12)]
    times = np.mean([roads.travel_minutes(CITY, day) for day in tuesdays], axis=0) / CITY.free_minutes
    inward, outward = CITY.inward > 0.5, CITY.inward < -0.5
    assert times[8, inward].mean() > times[8, outward].mean() + 0.05
    assert times[17, outward].mean() > times[17, inward].mean() + 0.05
    assert times[3].mean() < 1.1
    sunday = roads.travel_minutes(CITY, DAY + 5) / CITY.free_minutes
    assert sunday[8].mean() < times[8].mean()


def test_works_slow_a_road_and_send_traffic_to_those_that_touch_it() -> None:
    days = [(day, *roads._works(CITY, day, 0)) for day in range(DAY, DAY + 60)]
    day, works, detour = next(each for each in days if 0 < each[1].sum() < 5)
    assert (detour[works] == 1.0).all()
    assert ((detour > 1.0) == (CITY.touching[works].any(axis=0) & ~works)).all()
    load = roads._load(CITY, day, 0)[8] / detour / CITY.usual_load
    assert load[works].mean() > 1.2 * load[~works].mean()


def test_a_sensor_that_is_out_sends_no_row() -> None:
    out = roads._spells(CITY, "outage", DAY, roads._OUTAGE_SLOT, roads._OUTAGE_SHARE, 1, 10)
    assert out.any()
    sent = set(night("road_hours")["road"].to_pylist())
    assert sent == {name for name, gone in zip(CITY.names.to_pylist(), out, strict=True) if not gone}
    assert night("road_hours")["travel_minutes"].null_count > 0


def test_no_forecast_from_the_evening_before_is_nearer_than_the_best_one() -> None:
    days = range(DAY, DAY + 12)
    truth = np.array([roads.travel_minutes(CITY, day) for day in days])
    best = np.array([roads.best_forecast(CITY, day, 15) for day in days])
    another = np.array([roads.travel_minutes(CITY, day, again=99) for day in days])
    week_before = np.array([roads.travel_minutes(CITY, day - 7) for day in days])
    errors = [float(np.abs(said - truth).mean()) for said in (best, another, week_before)]
    assert errors[0] < 0.8 * errors[1]
    assert errors[1] < errors[2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"world": "roads", "table": "links"}, "vehicles shapes nothing in the world roads .blocks do"),
        ({"vehicles": 200, "blocks": 7}, "blocks shapes nothing in the world fleet .vehicles, episodes do"),
    ],
)
def test_a_key_that_shapes_another_world_is_refused(change: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadCatalog, match=words):
        load(tmp_path, source={"kind": "simulation", "world": "fleet", "table": "vehicles", "vehicles": 5, **change})

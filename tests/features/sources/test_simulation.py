"""Simulated worlds: any night alone, the same in every process and for more vehicles; episodes that change what they
say; physics that add up; and truth that is calibrated.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from config.calendar import Interval
from config.catalog.base import BadCatalog
from config.catalog.load import load_catalog
from config.catalog.simulation import WORLDS, Simulated
from config.catalog.source import SimulationSource
from config.settings import ROOT, Settings
from features.ingest import ingest
from features.sources import SourceMissing, SourceSchemaMismatch, SourceTooLarge, read_source, simulation
from features.sources.simulation import draws, fleet
from features.sources.simulation.fleet import battery, fuel, incidents, truth, usage, wear
from features.sources.simulation.fleet.vehicles import Fleet
from features.sources.simulation.reports import evenings_before
from lake.lake import Lake
from lake.tables import raw_table
from tests.features.sources.reading import meters

TABLES = WORLDS["fleet"].tables
FIRST = date(2024, 1, 1)
NIGHT = date(2024, 12, 20)
SMALL = 40

EPISODES: Mapping[str, Mapping[str, Any]] = {
    "bad_sensors": {"kind": "bad_sensors", "sensor": "vibration", "offset": 0.2, "share": 0.3},
    "colder_winter": {"kind": "colder_winter", "celsius": 8.0},
    "new_vehicle_type": {"kind": "new_vehicle_type", "share": 0.3},
    "policy_change": {"kind": "policy_change", "later": 1.4},
}


def simulated(table: str, *, vehicles: int = SMALL, seed: int = 7, episodes: tuple[Mapping[str, Any], ...] = ()):
    return Simulated.model_validate(
        {"world": "fleet", "table": table, "seed": seed, "vehicles": vehicles, "episodes": episodes}
    )


def planted(kind: str, first: date, last: date) -> Mapping[str, Any]:
    return {**EPISODES[kind], "from": first, "to": last}


def forget() -> None:
    """Empty what the world remembers of nights that were asked for before, as in a new process."""
    for module in (battery, fuel, incidents, usage, wear):
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    forget()


# ---- one night alone


def test_the_catalog_and_the_package_name_the_same_worlds_and_tables() -> None:
    assert {name: set(tables) for name, tables in simulation._TABLES.items()} == {
        name: set(world.tables) for name, world in WORLDS.items()
    }


def test_a_night_alone_is_that_night_out_of_many() -> None:
    nights = [NIGHT - timedelta(days=back) for back in range(45, -1, -1)]
    in_turn = {table: [simulation.night(simulated(table), day) for day in nights][-1] for table in TABLES}
    for table in TABLES:
        forget()
        assert simulation.night(simulated(table), NIGHT).equals(in_turn[table]), table


@pytest.mark.parametrize("table", TABLES)
def test_more_vehicles_change_no_row_of_the_first_ones(table: str) -> None:
    few, many = (simulation.night(simulated(table, vehicles=n), NIGHT) for n in (1000, 2000))
    assert few.num_rows > 0
    key = "transaction" if "transaction" in few.column_names else "vehicle"
    first = pc.less(pc.utf8_slice_codeunits(many[key], 0, 7), f"V{1000:06d}")
    kept = many.filter(first)
    assert kept.sort_by([(n, "ascending") for n in few.column_names]).equals(
        few.sort_by([(n, "ascending") for n in few.column_names])
    )


def test_another_process_draws_the_same_bytes_and_another_seed_does_not() -> None:
    code = (
        "import hashlib, datetime\n"
        "from config.catalog.simulation import Simulated, WORLDS\n"
        "from features.sources import simulation\n"
        "whole = hashlib.sha256()\n"
        "for table in WORLDS['fleet'].tables:\n"
        f"    asked = Simulated(world='fleet', table=table, seed=7, vehicles={SMALL})\n"
        f"    whole.update(repr(simulation.night(asked, datetime.date{NIGHT.timetuple()[:3]}).to_pylist()).encode())\n"
        "print(whole.hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    here = {seed: hashlib.sha256() for seed in (7, 8)}
    for table in TABLES:
        for seed, whole in here.items():
            whole.update(repr(simulation.night(simulated(table, seed=seed), NIGHT).to_pylist()).encode())
    assert other.stdout.strip() == here[7].hexdigest() != here[8].hexdigest()


def test_draws_have_addresses() -> None:
    drawn = draws.uniforms(7, "a", 3, 1000)
    assert np.array_equal(drawn[:10], draws.uniforms(7, "a", 3, 10))
    others = (draws.uniforms(8, "a", 3, 10), draws.uniforms(7, "b", 3, 10), draws.uniforms(7, "a", 4, 10))
    assert all(not np.isclose(drawn[:10], other).any() for other in others)
    assert abs(drawn.mean() - 0.5) < 0.04
    normal = draws.normals(7, "a", 3, 4000)
    assert abs(normal.mean()) < 0.05
    assert abs(normal.std() - 1.0) < 0.05
    assert np.array_equal(normal[:10], draws.normals(7, "a", 3, 10))


# ---- physics


def test_what_a_vehicle_drives_and_wears_adds_up() -> None:
    drawn, first, last = Fleet(7, 60), FIRST.toordinal(), FIRST.toordinal() + 90
    driven = sum(usage.distance_km(drawn, day) for day in range(first, last + 1))
    assert np.allclose(driven, usage.odometer_km(drawn, last) - usage.odometer_km(drawn, first - 1))
    for day in range(first, last + 1):
        assert (usage.distance_km(drawn, day) > 0).all()
        worn = usage.clocks(drawn, day) - usage.clocks(drawn, day - 1)
        assert (worn > 0).all()
        # A part is worn further each day, unless it was replaced on it.
        for part, clock in ((wear.PADS.name, usage.BRAKES), (wear.MOTOR.name, usage.ENGINE)):
            more = wear.wear(drawn, part, day) - wear.wear(drawn, part, day - 1)
            ended = wear._ended(drawn, part, day)[0]
            assert np.allclose(more[~ended], worn[clock][~ended])
            assert (more[ended] < 0).all()


def test_a_part_that_wears_faster_is_changed_more_often() -> None:
    drawn = Fleet(7, 300)
    days = range(FIRST.toordinal(), FIRST.toordinal() + 200)
    changes = sum(wear._ended(drawn, wear.PADS.name, day)[0].astype(int) for day in days)
    pace = usage.paces(drawn)[usage.BRAKES] * drawn.km_a_day
    assert np.corrcoef(pace, changes)[0, 1] > 0.4


def test_every_failure_is_reported_once_within_five_days() -> None:
    drawn, nights = Fleet(7, 300), range(NIGHT.toordinal(), NIGHT.toordinal() + 40)
    visits = pa.concat_tables(wear.workshop_visits(drawn, night) for night in nights)
    told = {
        (row["visit_date"], row["vehicle"])
        for row in visits.filter(
            pc.and_(pc.equal(visits["part"], "pads"), pc.equal(visits["unplanned"], 1))
        ).to_pylist()
    }
    for day in range(nights.start, nights.stop - wear.TOLD_WITHIN_DAYS):
        for place in np.flatnonzero(wear.failed(drawn, wear.PADS.name, day)):
            assert (date.fromordinal(day), drawn.names[int(place)].as_py()) in told
    assert visits.num_rows == len({tuple(row.values())[:3] for row in visits.to_pylist()})


@pytest.mark.parametrize(
    ("report", "happened", "within", "latest"),
    [
        (wear.brake_reports, lambda d, day: wear.failed(d, "pads", day), 14, 5),
        (battery.battery_reports, battery.failed, 14, 5),
        (incidents.incident_reports, incidents.happened, 7, 3),
    ],
)
def test_reports_say_of_each_evening_whether_something_followed(report, happened, within, latest) -> None:
    drawn, evening = Fleet(7, 400), NIGHT.toordinal()
    nights = range(evening, evening + within + latest + 1)
    rows = pa.concat_tables(report(drawn, night) for night in nights)
    mine = rows.filter(pc.equal(rows["event_date"], NIGHT))
    followed = np.zeros(400, bool)
    for ahead in range(1, within + 1):
        followed |= happened(drawn, evening + ahead)
    assert sorted(mine["vehicle"].to_pylist()) == [f"V{place:06d}" for place in np.flatnonzero(followed)]
    assert followed.any()


def test_an_evening_is_told_by_the_next_event_alone() -> None:
    """Vehicle 0 has events on days 100 and 103, told on 101 and 103; vehicle 1 on day 103, told a day late."""
    events = {100: np.array([True, False]), 103: np.array([True, True])}
    late = {100: np.array([1, 0]), 103: np.array([0, 1])}

    def told(night: int) -> list[tuple[int, int, int]]:
        rows = evenings_before(
            night,
            lambda day: events.get(day, np.zeros(2, bool)),
            lambda day: late.get(day, np.zeros(2, int)),
            within=5,
            latest=1,
        )
        return list(zip(*(column.tolist() for column in rows), strict=True))

    assert told(101) == [(evening, 0, 100) for evening in range(95, 100)]
    assert told(103) == [(evening, 0, 103) for evening in range(100, 103)]
    assert told(104) == [(evening, 1, 103) for evening in range(98, 103)]
    assert told(100) == told(102) == []


def test_tread_is_measured_where_it_is_said_and_with_the_error_that_is_said() -> None:
    drawn, errors = Fleet(7, 400), []
    for night in range(NIGHT.toordinal(), NIGHT.toordinal() + 8):
        for row in wear.tread_measurements(drawn, night).to_pylist():
            depth = wear.tyres(drawn, row["event_date"].toordinal())[1][int(row["vehicle"][1:])]
            errors.append(row["tread_mm"] - depth)
            assert 2.0 <= depth <= 8.0
    assert len(errors) > 60
    assert abs(np.mean(errors)) < 0.08
    assert abs(np.std(errors) - 0.2) < 0.05


def test_a_battery_ages_with_heat_and_frost_and_shows_it_in_the_cold() -> None:
    drawn, days = Fleet(7, 1500), range(NIGHT.toordinal() - 365, NIGHT.toordinal())
    ageing = np.diff([battery.ageing_days(drawn, day) for day in range(days.start - 1, days.stop)])
    celsius = np.array([usage.ambient_celsius(drawn, day) for day in days])
    mild = ageing[(celsius > 8) & (celsius < 12)].mean()
    assert ageing[celsius > 18].mean() > 1.5 * mild
    assert ageing[celsius < 2].mean() > 1.2 * mild
    january, july = days[int(celsius.argmin())], days[int(celsius.argmax())]
    for day in (january, july):
        shown, aged = battery.battery_days(drawn, day), battery.age(drawn, day)
        vans = drawn.type_of == 0
        resting, cranking = (shown[name].to_numpy()[vans] for name in ("resting_volts", "cranking_volts"))
        assert (cranking < resting).all()
        lost = resting - cranking
        assert np.corrcoef(lost, aged[vans] ** 4)[0, 1] > 0.7
    cold, warm = (battery.battery_days(drawn, day)["cranking_volts"].to_numpy()[vans].mean() for day in (january, july))
    assert cold < warm - 0.1
    renewed = battery.age(drawn, july) < battery.age(drawn, july - 1)
    assert (renewed | (battery.age(drawn, july) > battery.age(drawn, july - 1))).all()
    assert (renewed >= battery.failed(drawn, july)).all(), "a battery that failed is a new one"


# ---- truth


def calibrated(probability: np.ndarray, happened: np.ndarray) -> None:
    """The mean of what is said is the share of what happens, among the improbable and the probable ones."""
    order = np.argsort(probability)
    for part in np.array_split(order, 2):
        expected, spread = probability[part].sum(), np.sqrt((probability[part] * (1 - probability[part])).sum())
        assert abs(happened[part].sum() - expected) < 4 * max(spread, 1.0)


@pytest.mark.parametrize("part", [wear.PADS.name, wear.MOTOR.name])
def test_the_true_probability_of_a_failure_is_that_of_its_failures(part: str) -> None:
    drawn, day = Fleet(3, 8000), NIGHT.toordinal()
    happened = np.zeros(8000, bool)
    for ahead in range(1, 15):
        happened |= wear.failed(drawn, part, day + ahead)
    calibrated(wear.failure_probability(drawn, part, day, 14), happened)


def test_the_true_probability_of_a_dead_battery_is_that_of_dead_batteries() -> None:
    drawn, day = Fleet(3, 8000), NIGHT.toordinal()
    happened = np.zeros(8000, bool)
    for ahead in range(1, battery.WITHIN_DAYS + 1):
        happened |= battery.failed(drawn, day + ahead)
    calibrated(truth.expected(drawn, "battery_reports", day)["expected"].to_numpy(), happened)


def test_the_true_probability_of_an_incident_is_that_of_its_incidents() -> None:
    drawn, day = Fleet(3, 8000), NIGHT.toordinal()
    happened = np.zeros(8000, bool)
    for ahead in range(1, incidents.WITHIN_DAYS + 1):
        happened |= incidents.happened(drawn, day + ahead)
    calibrated(incidents.within_probability(drawn, day), happened)


def test_the_true_probability_of_fraud_is_that_of_its_frauds() -> None:
    shown = fuel.fills(Fleet(3, 60_000), NIGHT.toordinal())
    probability, fraud = fuel.fraud_probability(shown), shown.way > 0
    calibrated(probability, fraud)
    # Everything that the bill shows is weighed: among the far, the dear, the full and the nightly it holds as well.
    night = (shown.seconds < 6 * 3600) | (shown.seconds >= 20 * 3600)
    for odd in (shown.positioned & (shown.away_km > 4.0), shown.price > 0.07, shown.more > 0.2, night):
        assert odd.sum() > 50
        calibrated(probability[odd], fraud[odd])


# ---- episodes


def changed(table: str, episode: Mapping[str, Any], day: date, *, vehicles: int = 100) -> set[str]:
    """Columns in which a night differs for the episode."""
    plain, other = (
        simulation.night(simulated(table, vehicles=vehicles, episodes=each), day) for each in ((), (episode,))
    )
    if plain.num_rows != other.num_rows:
        return {"rows"}
    return {name for name in plain.column_names if not plain[name].equals(other[name])}


@pytest.mark.parametrize("kind", EPISODES)
def test_an_episode_changes_nothing_before_it(kind: str) -> None:
    episode = planted(kind, NIGHT, NIGHT + timedelta(days=60))
    for table in TABLES:
        assert changed(table, episode, NIGHT - timedelta(days=1)) == set(), table


def test_a_bad_batch_of_sensors_shifts_their_reading_and_nothing_else() -> None:
    episode = planted("bad_sensors", NIGHT - timedelta(days=3), NIGHT)
    assert changed("vehicle_days", episode, NIGHT) == {"vibration"}
    assert all(changed(table, episode, NIGHT) == set() for table in TABLES if table != "vehicle_days")
    assert changed("vehicle_days", episode, NIGHT + timedelta(days=1)) == set()
    plain, bad = (
        simulation.night(simulated("vehicle_days", vehicles=400, episodes=each), NIGHT)["vibration"].to_numpy()
        for each in ((), (episode,))
    )
    shift = (bad - plain)[~np.isnan(plain)]
    assert set(np.round(shift, 3)) == {0.0, 0.2}
    assert abs((shift > 0.1).mean() - 0.3) < 0.08


def test_a_colder_winter_cools_the_air_and_what_it_cools() -> None:
    episode = planted("colder_winter", NIGHT - timedelta(days=30), NIGHT)
    assert changed("vehicle_days", episode, NIGHT) == {"ambient_temp", "engine_temp", "brake_temp", "fuel_litres"}
    for table in ("workshop_visits", "brake_reports", "engine_reports", "tread_measurements", "fuel_transactions"):
        assert changed(table, episode, NIGHT) == set(), table
    cold = Fleet(7, 3000, simulated("incidents", episodes=(episode,)).episodes)
    warm, day = Fleet(7, 3000), NIGHT.toordinal()
    assert usage.ambient_celsius(warm, day) - usage.ambient_celsius(cold, day) == pytest.approx(8.0)
    more, fewer = incidents.happened(cold, day), incidents.happened(warm, day)
    assert (more | ~fewer).all()  # who has an incident has it in the cold too
    assert more.sum() > fewer.sum()


def test_new_vehicles_are_electric_brake_half_and_touch_no_other() -> None:
    episode = planted("new_vehicle_type", NIGHT - timedelta(days=30), NIGHT + timedelta(days=30))
    plain, new = (
        simulation.night(simulated("vehicle_days", vehicles=200, episodes=each), NIGHT) for each in ((), (episode,))
    )
    electric = pc.equal(new["vehicle_type"], "electric_van")
    assert 0.2 < pc.mean(electric).as_py() < 0.4
    others = pc.invert(electric)
    assert new.filter(others).equals(plain.filter(others))
    braked = pc.divide(new["brake_energy_mj"], plain["brake_energy_mj"]).filter(electric).to_numpy()
    assert np.allclose(braked, 0.5, atol=0.02)
    assert pc.sum(new["fuel_litres"].filter(electric)).as_py() == 0.0
    assert new["oil_pressure"].filter(electric).null_count == pc.sum(electric).as_py()


def test_a_policy_lets_pads_live_longer_and_fail_more_often() -> None:
    first = NIGHT - timedelta(days=500)
    episode = planted("policy_change", first, NIGHT + timedelta(days=60))
    assert changed("vehicle_days", episode, NIGHT) == {"brake_temp", "pad_mm", "pads_energy_mj"}
    for table in ("engine_reports", "tread_measurements", "incidents", "fuel_transactions"):
        assert changed(table, episode, NIGHT) == set(), table
    later = Fleet(7, 1000, simulated("incidents", episodes=(episode,)).episodes)
    shares = []
    for drawn in (Fleet(7, 1000), later):
        ended, failed = np.zeros(1000), np.zeros(1000)
        for day in range(NIGHT.toordinal(), NIGHT.toordinal() + 30):
            ended += wear._ended(drawn, wear.PADS.name, day)[0]
            failed += wear._ended(drawn, wear.PADS.name, day)[1]
        shares.append(failed.sum() / ended.sum())
    assert shares[1] > shares[0] + 0.1


# ---- as a source


def simulated_lake(folder: Path, **source: Any) -> Lake:
    """A lake with the shipped `fleet` over some nights, with fewer vehicles."""
    catalog = load_catalog(Settings(catalogs=(ROOT / "config",)))
    entry = catalog.dataset("fleet")
    tables = {
        name: table.model_copy(update={"source": table.source.model_copy(update={"vehicles": SMALL, **source})})
        for name, table in entry.tables.items()
    }
    dataset = entry.model_copy(update={"tables": tables})
    settings = Settings(home=folder / "var", duckdb_memory_gb=0.5)
    return Lake(settings, catalog.model_copy(update={"datasets": (dataset,), "models": catalog.models_of("fleet")}))


def test_bulk_and_nightly_deliveries_are_the_same_partitions(tmp_path: Path) -> None:
    nights = Interval(FIRST, FIRST + timedelta(days=4))
    bulk, nightly = simulated_lake(tmp_path / "bulk"), simulated_lake(tmp_path / "nightly")
    ingest(bulk, "fleet", nights, run_id="bulk")
    for night in nights:
        ingest(nightly, "fleet", Interval.of(night), run_id="nightly")
    for table in bulk.dataset("fleet").tables:
        of_bulk, of_nightly = (
            lake.publications.digests(raw_table(lake.settings, lake.dataset("fleet"), table), nights)
            for lake in (bulk, nightly)
        )
        assert of_bulk == of_nightly, table
        assert len(of_bulk) == len(nights)


def test_a_delivery_says_its_night_and_knows_no_other(tmp_path: Path) -> None:
    lake = simulated_lake(tmp_path)
    nights = Interval(NIGHT, NIGHT + timedelta(days=3))
    for table in lake.dataset("fleet").tables:
        with lake.duckdb() as connection, lake.scratch("source") as folder:
            read = read_source(lake, "fleet", table, nights, connection, name="rows", folder=folder)
            rows = connection.sql("SELECT nf__natural_date, nf__delivered FROM rows").to_arrow_table()
        assert read.dated
        assert read.fingerprint is None
        assert rows["nf__delivered"].null_count == 0
        if pc.count(rows["nf__natural_date"]).as_py():
            assert rows["nf__natural_date"].equals(rows["nf__delivered"]), table


def test_memory_is_bounded_by_blocks_of_nights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "_BLOCK_ROWS", 2 * SMALL)
    nights = [NIGHT + timedelta(days=ahead) for ahead in range(5)]
    sizes = [block.num_rows for block in simulation._blocks(simulated("vehicle_days"), nights, "nf__delivered")]
    assert sizes == [2 * SMALL, 2 * SMALL, SMALL]


# ---- faults


def test_a_night_before_the_world_begins_is_missing() -> None:
    with pytest.raises(SourceMissing) as caught:
        simulation.night(simulated("vehicles"), date(2022, 12, 31))
    for word in ("fleet begins on 2023-01-02", "vehicles of 2022-12-31", "replay: from"):
        assert word in str(caught.value)


def test_columns_that_the_world_does_not_have_are_listed(tmp_path: Path) -> None:
    source = {"kind": "simulation", "world": "fleet", "table": "vehicles", "vehicles": 5}
    with pytest.raises(BadCatalog, match="time_zone must be UTC, is Europe/Berlin"):
        meters(tmp_path / "zone", source)
    lake = simulated_lake(tmp_path, table="vehicles")
    with (
        lake.duckdb() as connection,
        lake.scratch("source") as folder,
        pytest.raises(SourceSchemaMismatch) as caught,
    ):
        read_source(lake, "fleet", "vehicle_days", Interval.of(NIGHT), connection, name="rows", folder=folder)
    assert "'odometer_km' is missing" in str(caught.value)
    assert "'tank_litres' is not declared" in str(caught.value)


def test_a_source_that_is_too_large_stops(tmp_path: Path) -> None:
    limits = SimulationSource.model_validate(
        {"kind": "simulation", "world": "fleet", "table": "vehicle_days", "limits": {"max_rows": 100}}
    ).limits
    lake = simulated_lake(tmp_path, limits=limits)
    with lake.duckdb() as connection, lake.scratch("source") as folder, pytest.raises(SourceTooLarge, match="max_rows"):
        read_source(
            lake,
            "fleet",
            "vehicle_days",
            Interval(NIGHT, NIGHT + timedelta(days=4)),
            connection,
            name="rows",
            folder=folder,
        )


def test_the_whole_world_is_shipped() -> None:
    entry = load_catalog(Settings(catalogs=(ROOT / "config",))).dataset("fleet")
    worlds = [table.source.model_dump(include={"seed", "vehicles", "episodes"}) for table in entry.tables.values()]
    assert all(world == worlds[0] for world in worlds)
    assert set(fleet.TABLES) >= set(entry.tables)

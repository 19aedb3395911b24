"""What is damaged is found and named, what follows from Delta is rebuilt, and the rest says how it is made again."""

from __future__ import annotations

import sqlite3
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from deltalake import write_deltalake

from config.calendar import Interval
from features.materialize import materialize
from lake.lake import Lake
from lake.metrics import Metric, publish_metrics
from lake.tables import feature_table
from lake.verify import Damage
from monitoring.audit.verification import repair, verify
from tests import toy

NIGHTS = Interval(toy.FIRST, toy.FIRST + timedelta(days=6))
NIGHT = date(2024, 1, 3)
VIEW = "rides/features/vehicle_daily"


@pytest.fixture
def lake(toy_lake: Lake) -> Lake:
    """Features of six nights, online, and metrics in SQL."""
    toy.publish_features(toy_lake, NIGHTS)
    materialize(toy_lake, "rides", NIGHTS, run_id="r")
    metrics = [Metric("ride_minutes", night, night, "toy", "ok", value=1.0) for night in NIGHTS]
    publish_metrics(toy_lake, "ride_minutes", "toy", metrics, NIGHTS, run_id="r")
    return toy_lake


def _seen(lake: Lake) -> list[tuple[str, str]]:
    return [(damage.part, damage.place) for damage in verify(lake)]


def _file(lake: Lake) -> Path:
    (uri,) = feature_table(lake.settings, lake.dataset("rides"), "vehicle_daily").files([NIGHT])
    return Path(uri)


def test_a_whole_installation_has_no_damage(lake: Lake) -> None:
    assert _seen(lake) == []


@pytest.mark.parametrize("fault", ["a flipped bit", "a lost file", "a cut file"])
def test_a_damaged_partition_is_named_with_what_makes_it_again(lake: Lake, fault: str) -> None:
    path = _file(lake)
    whole = path.read_bytes()
    if fault == "a lost file":
        path.unlink()
    else:
        path.write_bytes(whole[:-9] if fault == "a cut file" else bytes([whole[0] ^ 1]) + whole[1:])
    (damage,) = verify(lake)
    assert (damage.part, damage.place) == ("lake", f"{VIEW} {NIGHT}")
    assert damage.remedy == f"Clear `transform` of `rides_ingest` for {NIGHT}."


def test_a_file_of_before_digests_in_names_is_compared_by_its_rows(lake: Lake) -> None:
    """Delta's own writer names files without a digest; a changed value of the same size was seen by nobody."""
    table = feature_table(lake.settings, lake.dataset("rides"), "vehicle_daily")
    rows = table.read([NIGHT])
    predicate = f"data_date = '{NIGHT}'"
    write_deltalake(table.location.uri, rows, mode="overwrite", predicate=predicate)
    assert _seen(lake) == []
    path = _file(lake)
    changed = pq.read_table(path, partitioning=None)
    changed = changed.set_column(
        changed.column_names.index("rides_7d"), "rides_7d", pa.array([7] * changed.num_rows, pa.int64())
    )
    write_deltalake(
        table.location.uri,
        changed.append_column("data_date", pa.array([NIGHT] * changed.num_rows, pa.date32())).cast(table.schema),
        mode="overwrite",
        predicate=predicate,
    )
    (damage,) = verify(lake)
    assert damage.place == f"{VIEW} {NIGHT}"
    assert "published were 6 of" in damage.problem


def test_projections_are_rebuilt(lake: Lake) -> None:
    with lake.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM metrics WHERE data_date < '2024-01-03'"))
    with sqlite3.connect(lake.settings.online_store) as online:
        online.execute("DELETE FROM nightfleet_rides__vehicle_daily WHERE rowid % 2 = 0")
    with sqlite3.connect(lake.settings.registry_url.removeprefix("sqlite:///")) as registry:
        registry.execute("DELETE FROM feature_services")
    assert _seen(lake) == [
        ("SQL", "metrics of ride_minutes/metrics/toy"),
        ("Feast", "feature service ride_minutes"),
        ("online store", "rides/vehicle_daily"),
    ]
    lines = list(repair(lake, run_id="repair"))
    assert "SQL: 6 metrics of ride_minutes, toy" in lines
    assert "online store: 6 entities of rides, as of 2024-01-06" in lines
    assert _seen(lake) == []


def test_values_changed_in_sql_are_written_again(lake: Lake) -> None:
    with lake.engine.begin() as connection:
        connection.execute(sa.text("UPDATE metrics SET value = 9 WHERE data_date = '2024-01-03'"))
    (damage,) = verify(lake)
    assert (damage.part, damage.place) == ("SQL", "metrics of ride_minutes/metrics/toy")
    assert damage.problem == "rows of 1 data dates are not those of the lake, the first is 2024-01-03"
    list(repair(lake, run_id="repair"))
    with lake.engine.connect() as connection:
        assert set(connection.execute(sa.text("SELECT value FROM metrics")).scalars()) == {1.0}
    assert _seen(lake) == []


def test_a_stored_version_without_signature_is_named(lake: Lake) -> None:
    folder = lake.settings.artifacts / "ride_minutes" / ("a" * 64)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (damage,) = verify(lake)
    assert isinstance(damage, Damage)
    assert (damage.part, damage.place) == ("model", f"ride_minutes {'a' * 12}…")
    assert "nobody vouches for it" in damage.problem

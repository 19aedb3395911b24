from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from feast.infra.online_stores.sqlite import SqliteOnlineStore
from feast.utils import _convert_arrow_to_proto

from config.calendar import ONE_DAY, Interval, cutoff
from features import materialize as materialize_module
from features.definitions import ensure_applied, feature_store, view_name
from features.materialize import materialize, rebuild_online
from features.online_store import online_table
from lake.lake import Lake
from lake.lineage import PartitionNotReady
from tests import toy

NIGHTS = Interval.closed(date(2024, 1, 1), date(2024, 1, 10))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    found = toy.toy_lake(tmp_path)
    toy.publish_features(found, NIGHTS)
    return found


def online(lake: Lake, *vehicles: str) -> list[int | None]:
    """Rides of the last seven days, as the online store serves them."""
    store = feature_store(lake)
    rows = [{"vehicle": vehicle} for vehicle in vehicles]
    answer = store.get_online_features(
        features=store.get_feature_service("ride_minutes"), entity_rows=rows, full_feature_names=True
    ).to_dict()
    return list(answer["vehicle_daily__rides_7d"])


def offline(lake: Lake, night: date) -> dict[str, int]:
    rows = toy.vehicle_daily(lake, NIGHTS).to_pylist()
    return {row["vehicle"]: row["rides_7d"] for row in rows if row["data_date"] == night}


def rows_without(lake: Lake, vehicle: str, nights: Interval, *, seed: int = 1) -> pa.Table:
    rows = toy.vehicle_daily(lake, NIGHTS, seed=seed)
    gone = pc.and_(
        pc.equal(rows["vehicle"], vehicle), pc.is_in(rows["data_date"], value_set=pa.array(list(nights), pa.date32()))
    )
    return rows.filter(pc.invert(gone))


def stored(lake: Lake) -> list[tuple[Any, ...]]:
    with sqlite3.connect(lake.settings.online_store) as connection:
        return connection.execute(
            "SELECT * FROM nightfleet_rides__vehicle_daily ORDER BY entity_key, feature_name"
        ).fetchall()


def test_the_online_store_serves_what_the_newest_night_knows(lake: Lake) -> None:
    done = materialize(lake, "rides", NIGHTS, run_id="r")
    assert online(lake, "v0", "v3", "unknown") == [
        offline(lake, NIGHTS.last)["v0"],
        offline(lake, NIGHTS.last)["v3"],
        None,
    ]
    assert done.rows == 6
    assert done.details["views"]["vehicle_daily"]["first"] == "2024-01-07", (
        "a TTL of three days: older nights cannot serve"
    )


def test_again_is_free(lake: Lake) -> None:
    night = Interval.of(date(2024, 1, 5))
    assert materialize(lake, "rides", night, run_id="r").committed == 4, "that night, and those its TTL reaches back to"
    before = stored(lake)
    again = materialize(lake, "rides", night, run_id="r2")
    assert (again.rows, again.committed) == (0, 0)
    assert stored(lake) == before


def test_an_older_window_never_overwrites_a_newer_value(lake: Lake) -> None:
    materialize(lake, "rides", Interval.of(date(2024, 1, 9)), run_id="r")
    before = stored(lake)
    assert materialize(lake, "rides", Interval.of(date(2024, 1, 8)), run_id="r").committed == 1
    assert stored(lake) == before
    assert online(lake, "v2") == [offline(lake, date(2024, 1, 9))["v2"]]


def test_nor_does_feasts_own_writer(lake: Lake) -> None:
    """The guard lies in the database, so it holds for the plain `feast` command too."""
    materialize(lake, "rides", Interval.of(date(2024, 1, 9)), run_id="r")
    before = stored(lake)
    store = feature_store(lake)
    view = store.get_feature_view(view_name("rides", "vehicle_daily"))
    older = toy.vehicle_daily(lake, Interval.of(date(2024, 1, 8)))
    data = _convert_arrow_to_proto(
        older.combine_chunks(), view, {c.name: c.dtype.to_value_type() for c in view.entity_columns}
    )
    SqliteOnlineStore.online_write_batch(store._get_provider().online_store, store.config, view, data, None)
    assert stored(lake) == before


def test_bytes_are_feasts_own(lake: Lake) -> None:
    night = Interval.of(date(2024, 1, 9))
    rows = toy.vehicle_daily(lake, night)
    rows = rows.set_column(
        rows.column_names.index("rides_7d"),
        "rides_7d",
        pc.if_else(pc.equal(rows["vehicle"], "v1"), None, rows["rides_7d"]),
    )
    toy.publish_features(lake, night, rows=rows)
    materialize(lake, "rides", night, run_id="r")
    ours = stored(lake)
    store = feature_store(lake)
    view = store.get_feature_view(view_name("rides", "vehicle_daily"))
    with sqlite3.connect(lake.settings.online_store) as connection:
        connection.execute(f'DELETE FROM "{online_table(store.config, view)}"')
    data = _convert_arrow_to_proto(
        rows.combine_chunks(), view, {c.name: c.dtype.to_value_type() for c in view.entity_columns}
    )
    SqliteOnlineStore.online_write_batch(store._get_provider().online_store, store.config, view, data, None)
    assert stored(lake) == ours


def test_a_correction_of_the_same_night_is_applied(lake: Lake) -> None:
    night = Interval.of(NIGHTS.last)
    materialize(lake, "rides", night, run_id="r")
    rows = toy.vehicle_daily(lake, NIGHTS)
    corrected = rows.set_column(rows.column_names.index("rides_7d"), "rides_7d", pc.add(rows["rides_7d"], 1000))
    toy.publish_features(lake, night, rows=corrected)
    assert materialize(lake, "rides", night, run_id="r").committed == 1
    assert online(lake, "v4") == [offline(lake, NIGHTS.last)["v4"] + 1000]


def test_what_a_replaced_night_no_longer_says_gives_way_to_an_older_night(lake: Lake) -> None:
    materialize(lake, "rides", NIGHTS, run_id="r")
    toy.publish_features(lake, NIGHTS, rows=rows_without(lake, "v2", Interval.of(NIGHTS.last)))
    materialize(lake, "rides", Interval.of(NIGHTS.last), run_id="r")
    assert online(lake, "v2", "v3") == [offline(lake, NIGHTS.last - ONE_DAY)["v2"], offline(lake, NIGHTS.last)["v3"]]


def test_a_replacement_that_was_cut_short_is_finished_by_the_next_run(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    materialize(lake, "rides", NIGHTS, run_id="r")
    toy.publish_features(lake, NIGHTS, rows=rows_without(lake, "v2", Interval.of(NIGHTS.last)))

    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("features.materialize._run", killed)
        with pytest.raises(KeyboardInterrupt):
            materialize(lake, "rides", Interval.of(NIGHTS.last), run_id="r")
    materialize(lake, "rides", Interval.of(NIGHTS.last), run_id="r")
    assert online(lake, "v2", "v3") == [offline(lake, NIGHTS.last - ONE_DAY)["v2"], offline(lake, NIGHTS.last)["v3"]]


def test_an_absent_entity_is_served_until_its_ttl(lake: Lake) -> None:
    seen_last = date(2024, 1, 4)
    toy.publish_features(lake, NIGHTS, rows=rows_without(lake, "v5", Interval.closed(seen_last + ONE_DAY, NIGHTS.last)))
    for night in Interval.closed(seen_last, date(2024, 1, 9)):
        materialize(lake, "rides", Interval.of(night), run_id="r")
        expected = offline(lake, seen_last)["v5"] if night <= seen_last + timedelta(days=3) else None
        assert online(lake, "v5") == [expected], night


def test_bulk_and_nightly_end_alike(lake: Lake, tmp_path: Path) -> None:
    for night in NIGHTS:
        materialize(lake, "rides", Interval.of(night), run_id="r")
    other = toy.toy_lake(tmp_path / "other")
    toy.publish_features(other, NIGHTS)
    materialize(other, "rides", NIGHTS, run_id="r")
    assert stored(other) == stored(lake)


def test_an_empty_night_writes_nothing_and_is_done(lake: Lake) -> None:
    night = Interval.of(NIGHTS.last + ONE_DAY)
    toy.publish_features(lake, night, rows=toy.vehicle_daily(lake, night).slice(0, 0))
    materialize(lake, "rides", NIGHTS, run_id="r")
    assert materialize(lake, "rides", night, run_id="r").rows == 0
    assert materialize(lake, "rides", night, run_id="r").committed == 0
    assert online(lake, "v0") == [offline(lake, NIGHTS.last)["v0"]]


def test_a_night_without_features_is_refused(lake: Lake) -> None:
    with pytest.raises(
        PartitionNotReady,
        match=r"rides/features/vehicle_daily has no partition 2024-01-11 (.|\n)*`rides_ingest` for 2024-01-11",
    ):
        materialize(lake, "rides", Interval.of(NIGHTS.last + ONE_DAY), run_id="r")


def test_two_at_once_end_as_one_after_the_other(lake: Lake, tmp_path: Path) -> None:
    ensure_applied(lake)
    nights = list(NIGHTS)
    with ThreadPoolExecutor(2) as pool:
        list(
            pool.map(
                lambda night: materialize(Lake(lake.settings, lake.catalog), "rides", Interval.of(night), run_id="r"),
                [*nights, *reversed(nights)],
            )
        )
    assert online(lake, *(f"v{n}" for n in range(6))) == [offline(lake, NIGHTS.last)[f"v{n}"] for n in range(6)]


def test_a_removed_online_store_is_made_anew(lake: Lake) -> None:
    materialize(lake, "rides", NIGHTS, run_id="r")
    for path in lake.settings.online_store.parent.glob("online.db*"):
        path.unlink()
    materialize(lake, "rides", NIGHTS, run_id="r")
    assert online(lake, "v1") == [offline(lake, NIGHTS.last)["v1"]]


@pytest.mark.parametrize("loss", ["the store", "its rows", "its tables", "the registry's rows"])
def test_the_next_night_brings_back_what_was_lost(lake: Lake, loss: str) -> None:
    """Entities that the night itself does not hold included: the TTL still reaches them."""
    toy.publish_features(lake, NIGHTS, rows=rows_without(lake, "v2", Interval.of(NIGHTS.last)))
    materialize(lake, "rides", NIGHTS, run_id="r")
    before = stored(lake)
    with sqlite3.connect(lake.settings.online_store) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables if loss == "its tables" else ():
            connection.execute(f'DROP TABLE "{table}"')
        if loss == "its rows":
            connection.execute("DELETE FROM nightfleet_rides__vehicle_daily WHERE rowid % 3 = 0")
    if loss == "the store":
        for path in lake.settings.online_store.parent.glob("online.db*"):
            path.unlink()
    if loss == "the registry's rows":
        with sqlite3.connect(lake.settings.registry_url.removeprefix("sqlite:///")) as connection:
            for kind in ("feature_views", "feature_services", "entities"):
                connection.execute(f"DELETE FROM {kind}")
    again = Lake(lake.settings, lake.catalog)
    materialize(again, "rides", Interval.of(NIGHTS.last), run_id="next")
    assert stored(again) == before
    assert online(again, "v2", "v3") == [offline(lake, NIGHTS.last - ONE_DAY)["v2"], offline(lake, NIGHTS.last)["v3"]]
    assert materialize(again, "rides", Interval.of(NIGHTS.last), run_id="next").committed == 0


def test_it_is_rebuilt_while_it_serves(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.publish_features(lake, NIGHTS, rows=rows_without(lake, "v2", Interval.of(NIGHTS.last)))
    materialize(lake, "rides", NIGHTS, run_id="r")
    before = stored(lake)
    foreign, table = before[0][0][:-1] + b"9", "nightfleet_rides__vehicle_daily"
    with sqlite3.connect(lake.settings.online_store) as connection:
        connection.execute(f"UPDATE {table} SET value = x'' WHERE entity_key = ?", (before[0][0],))
        connection.execute(f"UPDATE {table} SET event_ts = event_ts + 86400 WHERE entity_key = ?", (before[2][0],))
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        listed = ", ".join("?" if name == "entity_key" else name for name in columns)
        connection.execute(
            f"INSERT INTO {table} SELECT {listed} FROM {table} WHERE entity_key = ?", (foreign, before[0][0])
        )
    served: list[list[int | None]] = []
    real = materialize_module.materialize

    def looked_at(*given: Any, **named: Any) -> Any:
        served.append(online(lake, "v1", "v2", "v3", "v4"))
        return real(*given, **named)

    monkeypatch.setattr(materialize_module, "materialize", looked_at)
    rebuild_online(lake, "rides", run_id="repair")
    assert None not in served[0][1:]
    assert stored(lake) == before
    assert materialize(lake, "rides", Interval.of(NIGHTS.last), run_id="next").committed == 0


def test_times_are_the_nights_cutoffs(lake: Lake) -> None:
    materialize(lake, "rides", NIGHTS, run_id="r")
    store = feature_store(lake)
    view = store.get_feature_view(view_name("rides", "vehicle_daily"))
    answer = store.get_online_features(features=[f"{view.name}:rides_7d"], entity_rows=[{"vehicle": "v0"}]).proto
    assert answer.results[-1].event_timestamps[0].ToDatetime() == cutoff(NIGHTS.last, toy.TIME_ZONE).replace(
        tzinfo=None
    )

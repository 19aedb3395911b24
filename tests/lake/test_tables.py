"""Delta tables as DuckDB and Arrow read them."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from config.calendar import Interval
from lake.delta import table_location
from lake.lake import Lake
from lake.tables import LakeTable, TableUnreadable, feature_table, named_table, quarantine_table, raw_table, valid_table
from tests.lake.conftest import FIRST, Items, item_rows

THREE = Interval(FIRST, FIRST + timedelta(days=3))


def _read(items: Items, *args: Any) -> list[dict[str, Any]]:
    with items.lake.duckdb() as connection:
        items.table.register(connection, "t", *args)
        rows: list[dict[str, Any]] = (
            connection.sql("SELECT * FROM t ORDER BY data_date, item").to_arrow_table().to_pylist()
        )
        return rows


def test_a_table_that_was_never_written_is_an_empty_view_with_its_columns(items: Items) -> None:
    assert _read(items) == []
    assert items.table.read().schema.equals(items.table.schema)
    assert items.table.load() is None


def test_only_the_partitions_asked_for_are_read(items: Items) -> None:
    items.publish(item_rows(THREE), THREE)
    wanted = FIRST + timedelta(days=1)
    assert {row["data_date"] for row in _read(items, [wanted])} == {wanted}
    assert _read(items, [FIRST + timedelta(days=40)]) == []
    assert items.table.read([wanted]).num_rows == 4


def test_a_pinned_version_stays_what_it_was(items: Items) -> None:
    items.publish(item_rows(THREE), THREE)
    before = _read(items)
    items.publish(item_rows(THREE, seed=2), THREE)
    assert _read(items, None, 1) == before
    assert _read(items) != before


def test_types_come_back_as_declared(items: Items) -> None:
    items.publish(item_rows(THREE), THREE)
    assert items.table.read().equals(item_rows(THREE).cast(items.table.schema))


def test_deletion_vectors_are_refused_because_deleted_rows_would_come_back(
    items: Items, monkeypatch: pytest.MonkeyPatch
) -> None:
    items.publish(item_rows(THREE), THREE)
    monkeypatch.setattr(DeltaTable, "protocol", lambda self: SimpleNamespace(reader_features=["deletionVectors"]))
    with pytest.raises(TableUnreadable, match="things/raw/items uses deletion vectors"):
        items.table.read()


def test_the_log_is_kept_for_years(items: Items) -> None:
    assert items.table.load_or_create().metadata().configuration["delta.logRetentionDuration"] == "interval 3650 days"


def test_a_quote_in_a_path_is_no_end_of_text(items: Items) -> None:
    table = LakeTable("it's", table_location(items.lake.settings, "it's"), items.table.schema, ("item",))
    quoted = Items(items.lake, table)
    quoted.publish(item_rows(THREE), THREE)
    assert table.read().num_rows == 12


def test_the_tables_of_a_data_set(toy_lake: Lake) -> None:
    settings, rides = toy_lake.settings, toy_lake.dataset("rides")
    raw, valid, aside = (make(settings, rides, "bookings") for make in (raw_table, valid_table, quarantine_table))
    assert raw.name == "rides/raw/bookings"
    assert all(raw.schema.field(name).nullable for name in rides.tables["bookings"].columns), (
        "raw takes what the source gives; validation judges it"
    )
    assert not valid.schema.field("ride").nullable
    assert valid.schema.names[-3:] == ["known_at_utc", "revision", "data_date"]
    assert valid.key == ("event_date", "ride", "revision")
    assert set(aside.schema.names) - set(raw.schema.names) == {"broken_rules"}
    assert aside.key == raw.key == (*valid.key, "row_number")
    view = feature_table(settings, rides, "vehicle_daily")
    assert view.schema.names == ["vehicle", "rides_7d", "minutes_7d", "event_timestamp", "data_date"]
    assert view.key == ("vehicle",)


def test_a_type_the_catalog_does_not_know_is_no_column(items: Items) -> None:
    table = LakeTable("odd", items.table.location, pa.schema([("x", pa.float32())]), ("x",))
    with (
        items.lake.duckdb() as connection,
        pytest.raises(TypeError, match="no column type of the catalog is stored as float"),
    ):
        table.register(connection, "t")
    assert named_table(items.lake.settings, "a/b", {"x": "int32"}, ("x",)).schema.names == ["x", "data_date"]

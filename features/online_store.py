"""Feast's SQLite online store, with two things fixed: an older value never replaces a newer one, and writing goes by
columns.
"""

# ruff: noqa: S608 (table names are Feast's own, quoted)
from __future__ import annotations

import sqlite3
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from feast.entity import Entity
from feast.feature_view import FeatureView
from feast.infra.online_stores.helpers import compute_table_id, extract_text_and_num
from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType


class NewestWinsSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):  # type: ignore[misc]  # Feast ships no types
    """Configuration: `path` of the SQLite file."""

    type: Literal[  # type: ignore[assignment]  # Feast narrows it to its own names
        "features.online_store.NewestWinsSqliteOnlineStore", "nightfleet_stores.NewestWinsSqliteOnlineStore"
    ] = "features.online_store.NewestWinsSqliteOnlineStore"


class NewestWinsSqliteOnlineStore(SqliteOnlineStore):  # type: ignore[misc]  # Feast ships no types
    """SQLite online store in which the newest event time wins, however windows are materialized; equal times are
    corrections.
    """

    def __init__(self) -> None:
        super().__init__()
        self.entities_written: dict[str, int] = {}

    def _get_conn(self, config: RepoConfig) -> sqlite3.Connection:
        opened = self._conn is None
        connection: sqlite3.Connection = super()._get_conn(config)
        if opened:
            connection.execute("PRAGMA busy_timeout = 30000")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Make the tables, each with the trigger that guards it: it holds for whoever writes."""
        super().update(config, tables_to_delete, tables_to_keep, entities_to_delete, entities_to_keep, partial)
        connection = self._get_conn(config)
        for view in tables_to_keep:
            table = online_table(config, view)
            connection.execute(
                f'CREATE TRIGGER IF NOT EXISTS "{table}_newest_wins" BEFORE UPDATE ON "{table}" '
                "WHEN new.event_ts < old.event_ts BEGIN SELECT RAISE(IGNORE); END"
            )
        connection.commit()

    def write_columns(self, config: RepoConfig, view: FeatureView, rows: pa.Table) -> int:
        """Write rows of join keys, features and the source's time: the same bytes as `online_write_batch`, encoded by
        columns.

        Returns:
            Entities written.
        """
        assert view.batch_source is not None  # the offline store read it
        rows = rows.combine_chunks()
        keys = entity_keys(
            rows, {column.name: column.dtype.to_value_type() for column in view.entity_columns}
        ).to_pylist()
        times = _encode(rows[view.batch_source.timestamp_field], stored_time)
        statement = (
            f'INSERT INTO "{online_table(config, view)}" (entity_key, feature_name, value, value_text, event_ts, '
            "created_ts) VALUES (?, ?, ?, ?, ?, NULL) "
            "ON CONFLICT (entity_key, feature_name) DO UPDATE SET "
            "value = excluded.value, value_text = excluded.value_text, event_ts = excluded.event_ts, created_ts = "
            "excluded.created_ts"
        )
        connection = self._get_conn(config)
        with connection:
            for feature in view.features:
                values = _protos(rows[feature.name], feature.dtype.to_value_type())
                names = [feature.name] * rows.num_rows
                connection.executemany(
                    statement, zip(keys, names, [v[0] for v in values], [v[1] for v in values], times, strict=True)
                )
        self.entities_written[view.name] = self.entities_written.get(view.name, 0) + rows.num_rows
        return int(rows.num_rows)


def online_table(config: RepoConfig, view: FeatureView) -> str:
    """Name of a view's table in the online store."""
    return str(compute_table_id(config.project, view, config.registry.enable_online_feature_view_versioning))


def stored_time(moment: datetime) -> int:
    """An instant as the tables hold it in `event_ts`."""
    # As Feast's own SQLite adapter stores it: the UTC reading, taken for local time, which its reader undoes.
    return int(moment.astimezone(UTC).replace(tzinfo=None).timestamp())


def _encode(column: pa.ChunkedArray, encode: Any) -> list[Any]:
    """`encode` of each value, called once per distinct one; None where it is null."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    coded = whole.dictionary_encode()
    encoded = [encode(value) for value in coded.dictionary.to_pylist()]
    return [None if index is None else encoded[index] for index in coded.indices.to_pylist()]


_NULL: tuple[bytes, str | None] = (b"", None)


def _protos(column: pa.ChunkedArray, kind: ValueType) -> list[tuple[bytes, str | None]]:
    """Serialized proto and text of each value."""
    coded = column.combine_chunks().dictionary_encode()
    protos = python_values_to_proto_values(coded.dictionary.to_pylist(), kind) if len(coded.dictionary) else []
    encoded = [(proto.SerializeToString(), extract_text_and_num(proto, False)[0]) for proto in protos]
    return [_NULL if index is None else encoded[index] for index in coded.indices.to_pylist()]


def entity_keys(rows: pa.Table, kinds: dict[str, ValueType]) -> pa.Array:
    """Feast's serialized entity key (version 3) of each row, as binary: number of keys, their names, then their values
    in the same order.
    """
    names = sorted(kinds)
    prefix = struct.pack("<I", len(names))
    for name in names:
        prefix += struct.pack("<II", ValueType.STRING.value, len(name.encode())) + name.encode()
    parts: list[Any] = [pa.scalar(prefix, pa.binary())]
    for name in names:
        coded = rows[name].combine_chunks().dictionary_encode()
        protos = (
            python_values_to_proto_values(coded.dictionary.to_pylist(), kinds[name]) if len(coded.dictionary) else []
        )
        pieces = pa.array([_key_piece(proto) for proto in protos], pa.binary())
        parts.append(pieces.take(coded.indices))
    return (
        pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.binary())) if rows.num_rows else pa.array([], pa.binary())
    )


def _key_piece(value: Value) -> bytes:
    match value.WhichOneof("val"):
        case "string_val":
            data, kind = value.string_val.encode(), ValueType.STRING
        case "int32_val":
            data, kind = struct.pack("<i", value.int32_val), ValueType.INT32
        case "int64_val":
            data, kind = struct.pack("<q", value.int64_val), ValueType.INT64
        case "unix_timestamp_val":
            data, kind = struct.pack("<q", value.unix_timestamp_val), ValueType.UNIX_TIMESTAMP
        case other:
            raise ValueError(
                f"a join key of type {other} has no place in Feast's entity key; use a string, an integer, a date or a "
                "timestamp"
            )
    return struct.pack("<II", kind.value, len(data)) + data

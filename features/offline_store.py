"""Feast's offline store on Delta tables: point-in-time joins by DuckDB's ASOF JOIN.

Every entity row comes back, in its place. A feature row serves an entity row when its keys are equal (null equals
nothing) and its time is not after the entity's; of those the newest, even where its values are null; and nothing when
that one is older than the view's TTL (exactly as old still serves; a TTL of zero is none).
"""

# ruff: noqa: S608 (names are quoted, values are instants of ours; an entity query is the caller's own)
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import duckdb
import pandas as pd
import pyarrow as pa
from deltalake import DeltaTable
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from pydantic import Field

from config.errors import NightfleetError
from lake.delta import TableLocation, check_files, file_sizes
from lake.duck import connect, read_parquet
from lake.leftovers import try_folder

BATCH_ROWS = 65_536
_ROW = '"__entity_row"'
_PARTITION = "data_date"


class BadEntityFrame(NightfleetError):
    """The entity rows lack a join key, or have no column of times."""


class SourceUnreadable(NightfleetError):
    """A feature view's source is not a Delta table that can be read here."""


class DuckDBDeltaOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]  # Feast ships no types
    """Configuration of the offline store.

    Attributes:
        pins: Delta version to read, by name of the source; what is not named is read at its newest version.
        memory_gb: DuckDB's memory limit; what is more spills into `scratch`.
    """

    type: Literal["features.offline_store.DuckDBDeltaOfflineStore", "nightfleet_stores.DuckDBDeltaOfflineStore"] = (
        "features.offline_store.DuckDBDeltaOfflineStore"
    )
    pins: dict[str, int] = Field(default_factory=dict)
    memory_gb: float = 4.0
    threads: int = 2
    scratch: str = ""


@dataclass
class DuckDBRetrievalJob(RetrievalJob):  # type: ignore[misc]  # Feast ships no types
    """A retrieval that runs when its rows are asked for."""

    config: DuckDBDeltaOfflineStoreConfig
    query: Callable[[duckdb.DuckDBPyConnection], str]
    names_are_full: bool = False
    about: RetrievalMetadata | None = None
    views_on_demand: list[OnDemandFeatureView] = field(default_factory=list)

    @property
    def full_feature_names(self) -> bool:
        """Whether columns read `<view>__<feature>`."""
        return self.names_are_full

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """None: on-demand views are not served here."""
        return self.views_on_demand

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """Features and keys that were asked for."""
        return self.about

    @contextlib.contextmanager
    def to_reader(self, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatchReader]:
        """The rows as a stream; memory stays within the store's limit whatever their number."""
        with _connect(self.config) as connection:
            yield connection.sql(self.query(connection)).to_arrow_reader(batch_rows)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        with _connect(self.config) as connection:
            return connection.sql(self.query(connection)).to_arrow_table()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas()
        return frame

    def to_sql(self) -> str:
        """The query; it reads views that exist on the job's own connection only."""
        with _connect(self.config) as connection:
            return self.query(connection)


@contextlib.contextmanager
def _connect(config: DuckDBDeltaOfflineStoreConfig) -> Iterator[duckdb.DuckDBPyConnection]:
    with (
        try_folder(Path(config.scratch), "feast") if config.scratch else TemporaryDirectory(prefix="feast-") as spill,
        connect(memory_gb=config.memory_gb, threads=config.threads, spill=str(spill)) as connection,
    ):
        yield connection


class DuckDBDeltaOfflineStore(OfflineStore):  # type: ignore[misc]  # Feast ships no types
    """Point-in-time retrieval from Delta tables by DuckDB; see the module for its rules."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """Join features to entity rows as they stood at each row's time.

        Args:
            entity_df: rows as pandas, or DuckDB SQL (for example `SELECT * FROM read_parquet('spine.parquet')`), which
                keeps memory bounded. It holds the join keys and a time, `event_timestamp` or its only timestamp column;
                a time without zone is UTC. Its order is kept where the SQL has one.
        Raises:
            BadEntityFrame: a join key is missing, or no time is found.
            NotImplementedError: retrieval by a range of times, without entity rows.
        """
        if entity_df is None:
            raise NotImplementedError(
                "retrieval without entity rows is not offered: a range of times has no point in time to join at"
            )
        store = _own_config(config)
        wanted = _features_by_view(feature_refs)
        joins = [
            _Join(view, _join_keys(view, registry, project), wanted[view.projection.name_to_use()])
            for view in feature_views
        ]

        def query(connection: duckdb.DuckDBPyConnection) -> str:
            return _point_in_time(connection, entity_df, joins, store.pins, full_names=full_feature_names)

        keys = sorted({entity for join in joins for entity in join.keys.values()})
        return DuckDBRetrievalJob(store, query, full_feature_names, RetrievalMetadata(features=feature_refs, keys=keys))

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The newest row of each entity with a time in `[start_date, end_date]`: what materialization writes."""
        return _pull(
            config,
            data_source,
            join_key_columns,
            feature_name_columns,
            timestamp_field,
            created_timestamp_column,
            start_date,
            end_date,
            latest=True,
        )

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every row with a time in `[start_date, end_date]`."""
        return _pull(
            config,
            data_source,
            join_key_columns,
            feature_name_columns,
            timestamp_field,
            created_timestamp_column,
            start_date,
            end_date,
            latest=False,
        )

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Refused: a partition of the lake is published whole, with its lineage, or not at all."""
        raise NotImplementedError(
            f"{feature_view.name} is written by the night's transform alone, which publishes whole partitions. Correct "
            "its source and clear that night instead."
        )


def _own_config(config: RepoConfig) -> DuckDBDeltaOfflineStoreConfig:
    store = config.offline_store
    assert isinstance(store, DuckDBDeltaOfflineStoreConfig)
    return store


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _instant(moment: datetime) -> str:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return f"TIMESTAMPTZ '{aware.astimezone(UTC).strftime('%Y-%m-%d %H:%M:%S.%f')}+00'"


def _features_by_view(feature_refs: Sequence[str]) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    for reference in feature_refs:
        view, feature = reference.split(":", 1)
        features = wanted.setdefault(view.split("@", 1)[0], [])
        if feature not in features:
            features.append(feature)
    return wanted


def _join_keys(view: FeatureView, registry: Any, project: str) -> dict[str, str]:
    """Column of the feature table to column of the entity rows, over all of the view's entities."""
    renamed = view.projection.join_key_map or {}
    keys = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
    if not keys and view.entities != ["__dummy"]:
        keys = [registry.get_entity(name, project).join_key for name in view.entities]
    return {key: renamed.get(key, key) for key in keys}


@dataclass(frozen=True)
class _Join:
    """One feature view of a retrieval. `keys`: column of the feature table to column of the entity rows."""

    view: FeatureView
    keys: Mapping[str, str]
    features: Sequence[str]

    def on(self, alias: str, kinds: Mapping[str, str], feature_kinds: Mapping[str, str], time: str) -> str:
        """The condition of the ASOF JOIN with the feature rows `alias`."""
        name = self.view.projection.name_to_use()
        conditions = []
        for key, entity in self.keys.items():
            if entity not in kinds:
                raise BadEntityFrame(
                    f"the entity rows lack {entity!r}, a join key of {name}; they have {', '.join(kinds)}. Add the "
                    "column."
                )
            kind = feature_kinds[key]
            value = f"e.{_quote(entity)}" if kinds[entity] == kind else f"CAST(e.{_quote(entity)} AS {kind})"
            conditions.append(f"{value} = {alias}.{_quote(key)}")
        return " AND ".join([*conditions, f"{time} >= {alias}.{_quote(self.timestamp)}"])

    def values(self, alias: str, time: str, *, full_names: bool) -> list[str]:
        """The features, null where the row they come from is older than the TTL."""
        prefix = f"{self.view.projection.name_to_use()}__" if full_names else ""
        fresh = (
            f"epoch_us({time}) - epoch_us({alias}.{_quote(self.timestamp)}) <= {self.ttl // timedelta(microseconds=1)}"
        )
        columns = []
        for feature in self.features:
            value = f"{alias}.{_quote(feature)}"
            columns.append(
                f"{f'CASE WHEN {fresh} THEN {value} END' if self.ttl else value} AS {_quote(prefix + feature)}"
            )
        return columns

    @property
    def timestamp(self) -> str:
        """Name of the source's time column."""
        return str(_source(self.view).timestamp_field)

    @property
    def ttl(self) -> timedelta:
        """How long a row serves; zero: for ever."""
        return self.view.ttl or timedelta(0)


def _point_in_time(
    connection: duckdb.DuckDBPyConnection,
    entity_df: pd.DataFrame | str,
    joins: Sequence[_Join],
    pins: Mapping[str, int],
    *,
    full_names: bool,
) -> str:
    """Register what a retrieval reads on `connection`, and return its SQL."""
    if isinstance(entity_df, str):
        connection.execute(f"CREATE OR REPLACE TEMP VIEW entity_frame AS {entity_df}")
    else:
        connection.register("entity_frame", pa.Table.from_pandas(entity_df, preserve_index=False))
    kinds = _column_kinds(connection, "entity_frame")
    time_column = _time_column(kinds)
    time = f"CAST(e.{_quote(time_column)} AS TIMESTAMPTZ)"
    first, last = connection.execute(f"SELECT min({time}), max({time}) FROM entity_frame AS e").fetchone() or (
        None,
        None,
    )
    selected = [f"e.{_quote(name)}" for name in kinds]
    tables = [
        f"(SELECT *, row_number() OVER () AS {_ROW} FROM entity_frame) AS e"
    ]  # numbered in the order of its source
    for number, join in enumerate(joins):
        alias = f"feature_rows_{number}"
        oldest = first - join.ttl if first is not None and join.ttl else None
        source = _source(join.view)
        register_source(
            connection, alias, source, [*join.keys, *join.features], oldest, last, version=pins.get(source.name)
        )
        feature_kinds = _column_kinds(connection, alias)
        tables.append(f"ASOF LEFT JOIN {alias} ON {join.on(alias, kinds, feature_kinds, time)}")
        selected += join.values(alias, time, full_names=full_names)
    return f"SELECT {', '.join(selected)} FROM {' '.join(tables)} ORDER BY e.{_ROW}"


def _column_kinds(connection: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    return {str(row[0]): str(row[1]) for row in connection.execute(f"DESCRIBE {relation}").fetchall()}


def _time_column(kinds: Mapping[str, str]) -> str:
    if "event_timestamp" in kinds:
        return "event_timestamp"
    times = [name for name, kind in kinds.items() if kind.startswith("TIMESTAMP")]
    if len(times) != 1:
        there = f"timestamps in {', '.join(times)}" if times else "no timestamp"
        raise BadEntityFrame(
            f"the entity rows have no event_timestamp and {there}. Name the time of each row event_timestamp."
        )
    return times[0]


def _source(view: FeatureView) -> DataSource:
    source = view.batch_source
    if source is None:
        raise SourceUnreadable(f"{view.name} has no batch source to read. Give it a FileSource on a Delta table.")
    return source


def register_source(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    source: DataSource,
    columns: Sequence[str],
    first: datetime | None,
    last: datetime | None,
    *,
    version: int | None = None,
) -> None:
    """Make the rows of a Delta source with a time in `[first, last]` (None: unbounded) readable as DuckDB view `name`.

    Files of partitions (`data_date`) that cannot hold such a time are not opened. The view has `columns` and the
    source's time.

    Raises:
        SourceUnreadable: the source is not a Delta table, is not there, or uses what is not applied here.
    """
    if not isinstance(source, FileSource) or source.field_mapping:
        raise SourceUnreadable(
            f"{source.name} is a {type(source).__name__} with field mapping {source.field_mapping}; only Delta tables "
            "whose columns are not renamed can be read."
        )
    table = TableLocation(source.path).open(version)
    if table is None:
        raise SourceUnreadable(
            f"{source.name}: there is no Delta table at {source.path}. Run the data set's history or ingest DAG first."
        )
    if "deletionVectors" in (table.protocol().reader_features or []):
        raise SourceUnreadable(
            f"{source.name} uses deletion vectors, which are not applied here: deleted rows would come back. Rewrite "
            "it without them."
        )
    kinds = {f.name: f.type for f in pa.schema(table.schema().to_arrow())}
    wanted = list(dict.fromkeys([*columns, source.timestamp_field]))
    selected = ", ".join(
        f"CAST({_quote(column)} AS {_duckdb_kind(kinds[column])}) AS {_quote(column)}" for column in wanted
    )
    files = _files(table, first, last)
    check_files(files, file_sizes(table))
    if not files:
        empty = ", ".join(f"CAST(NULL AS {_duckdb_kind(kinds[column])}) AS {_quote(column)}" for column in wanted)
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {_quote(name)} AS SELECT {empty} WHERE false")
        return
    time = _quote(source.timestamp_field)
    bounds = [f"{time} >= {_instant(first)}"] if first is not None else []
    bounds += [f"{time} <= {_instant(last)}"] if last is not None else []
    where = f"WHERE {' AND '.join(bounds)}" if bounds else ""
    read = read_parquet(files, partitioned=True)
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {_quote(name)} AS SELECT {selected} FROM {read} {where}")


def _files(table: DeltaTable, first: datetime | None, last: datetime | None) -> list[str]:
    uris = sorted(table.file_uris())
    if _PARTITION not in table.metadata().partition_columns:
        return uris
    # The event time of partition D is 24:00 of D in the data set's time zone: from D 10:00 to D+1 12:00 UTC, wherever
    # that is.
    lowest = first.astimezone(UTC).date() - timedelta(days=1) if first is not None else date.min
    highest = last.astimezone(UTC).date() if last is not None else date.max
    return [uri for uri in uris if lowest <= date.fromisoformat(uri.rsplit("/", 2)[-2].partition("=")[2]) <= highest]


def _duckdb_kind(kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind):
        return "TIMESTAMPTZ" if kind.tz else "TIMESTAMP"
    kinds = {
        pa.string(): "VARCHAR",
        pa.large_string(): "VARCHAR",
        pa.bool_(): "BOOLEAN",
        pa.int32(): "INTEGER",
        pa.int64(): "BIGINT",
        pa.float32(): "FLOAT",
        pa.float64(): "DOUBLE",
        pa.date32(): "DATE",
    }
    if kind not in kinds:
        raise SourceUnreadable(f"a column of type {kind} cannot be retrieved; the catalog's types can.")
    return kinds[kind]


def _pull(
    config: RepoConfig,
    source: DataSource,
    keys: Sequence[str],
    features: Sequence[str],
    timestamp: str,
    created: str | None,
    first: datetime | None,
    last: datetime | None,
    *,
    latest: bool,
) -> RetrievalJob:
    columns = [name for name in (*keys, *features, *([created] if created else [])) if name != DUMMY_ENTITY_ID]
    store = _own_config(config)

    def query(connection: duckdb.DuckDBPyConnection) -> str:
        register_source(connection, "pulled", source, columns, first, last, version=store.pins.get(source.name))
        # Feast has no dates: online they are their ISO text.
        kinds = _column_kinds(connection, "pulled")
        dates = {name for name, kind in kinds.items() if kind == "DATE"}
        selected = ", ".join(
            f"CAST({_quote(n)} AS VARCHAR) AS {_quote(n)}" if n in dates else _quote(n)
            for n in dict.fromkeys([*columns, timestamp])
        )
        named = [_quote(name) for name in keys if name != DUMMY_ENTITY_ID]
        newest = ", ".join(f"{_quote(name)} DESC" for name in (timestamp, *([created] if created else [])))
        partition = f"PARTITION BY {', '.join(named)} " if named else ""
        qualify = f"QUALIFY row_number() OVER ({partition}ORDER BY {newest}) = 1" if latest else ""
        dummy = f", '' AS {_quote(DUMMY_ENTITY_ID)}" if DUMMY_ENTITY_ID in keys else ""
        return f"SELECT {selected}{dummy} FROM pulled {qualify} ORDER BY {', '.join([*named, _quote(timestamp)])}"

    return DuckDBRetrievalJob(store, query)

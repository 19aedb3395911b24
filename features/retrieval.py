"""What a night scores, and the features as that night knew them: the same for training and for scoring."""

# ruff: noqa: S608 (names come from the typed catalog, quoted; values are bound or dates)
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from config.calendar import ONE_DAY, Interval, cutoff
from config.catalog.data import Dataset
from config.catalog.model import ModelEntry
from features.known import KnownTable, known_table
from lake.duck import read_parquet
from lake.lake import Lake
from lake.lineage import Input, PartitionNotReady, Publication
from lake.tables import ARROW_TYPES, DUCKDB_TYPES, LakeTable, feature_table, valid_table

BATCH_ROWS = 65_536
_TIMESTAMP = ARROW_TYPES["timestamp"]


@dataclass(frozen=True)
class Spine:
    """The rows that the nights of an interval score, sorted by `(data_date, *entity)`.

    Columns: the entity, every other column of the spine's table, data_date, target_time_utc, event_timestamp (the
        cutoff).

    Attributes:
        source: a Parquet file, or the rows themselves where no folder was given.
        too_late: rows that came too late to be scored, by night: first seen in it, with a target time not after its
            cutoff.
        inputs: partitions each night's rows come from.
        version: Delta version of the spine's table, None for a calendar.
    """

    source: Path | pa.Table
    schema: pa.Schema
    rows: int
    too_late_by_night: dict[date, int]
    inputs: dict[date, list[Input]]
    version: int | None

    @property
    def too_late(self) -> int:
        """Rows of the whole interval that came too late."""
        return sum(self.too_late_by_night.values())

    @property
    def path(self) -> Path:
        """The Parquet file."""
        if isinstance(self.source, pa.Table):
            raise ValueError("this spine is in memory; give `spine` a folder to get it as a file")
        return self.source

    def table(self) -> pa.Table:
        """The rows in memory."""
        return self.source if isinstance(self.source, pa.Table) else pq.read_table(self.source, schema=self.schema)


@dataclass(frozen=True)
class Retrieval:
    """Spine and features of an interval, read on demand.

    Attributes:
        schema: the spine's columns, then `<view>__<column>` of every feature.
        inputs: by night: its spine's partitions, its own partition of each view, and the older ones a TTL reaches.
        pins: Delta version of each view.
        spine_version: Delta version of the spine's table, None for a calendar.
    """

    schema: pa.Schema
    rows: int
    inputs: dict[date, list[Input]]
    too_late_by_night: dict[date, int]
    pins: dict[str, int]
    spine_version: int | None
    _entities: Path = field(repr=False)
    _lake: Lake = field(repr=False)
    _model: str = field(repr=False)

    @property
    def too_late(self) -> int:
        """Rows of the whole interval that came too late to be scored."""
        return sum(self.too_late_by_night.values())

    def reader(self, batch_rows: int = BATCH_ROWS) -> pa.RecordBatchReader:
        """The rows, sorted by `(data_date, *entity)`, joined while they are read; may be called again."""
        return read_features(self._lake, self._model, self._entities, self.schema, self.pins, batch_rows)


def spine(
    lake: Lake, model: str, interval: Interval, *, folder: Path | None = None, version: int | None = None
) -> Spine:
    """The rows each night of the interval scores.

    From a table: the rows night T knows (newest revision that had arrived) with cutoff(T) < target time <= cutoff(T +
    horizon). From a calendar: every step that begins in [cutoff(T), cutoff(T + horizon)); on the days the clocks change
    a day has 23 or 25 hours. From a table of series: these steps of every series that T knows.

    Args:
        folder: where to write `spine.parquet`; without one the rows are held in memory.
        version: Delta version of the spine's table; the newest where left out.
    Raises:
        PartitionNotReady: the spine's table has no partition of one of the nights.
    """
    entry, dataset = lake.model(model), lake.dataset(lake.model(model).dataset)
    with lake.duckdb() as connection:
        _register_windows(connection, entry, dataset, interval)
        known, too_late = None, dict.fromkeys(interval, 0)
        if entry.spine.table is not None:
            table = valid_table(lake.settings, dataset, entry.spine.table)
            known = _known_rows(lake, entry, table, dataset, interval, version)
            known.register(connection, "known", dataset.tables[entry.spine.table].key)
            too_late |= _too_late(connection, entry)
        sql = entry.spine.rows_sql(dataset.tables)
        schema = spine_schema(entry, dataset)
        columns = ", ".join(f'CAST("{f.name}" AS {_duckdb_type(f.type)}) AS "{f.name}"' for f in schema)
        order = ", ".join(f'"{name}"' for name in ("data_date", *entry.entity))
        reader = connection.sql(f"SELECT {columns} FROM ({sql}) ORDER BY {order}").to_arrow_reader(BATCH_ROWS)
        source: Path | pa.Table
        if folder is None:
            source = reader.read_all().cast(schema)
            rows = source.num_rows
        else:
            source = folder / "spine.parquet"
            rows = write_parquet(source, schema, reader)
    inputs: dict[date, list[Input]] = {day: [] for day in interval}
    if known:
        for day in interval:
            instant = cutoff(day, dataset.time_zone)
            _, low, high = entry.spine.span(instant, instant, horizon_end(entry, dataset, day))
            inputs[day] = known.inputs_of(day, low, high)
    return Spine(source, schema, rows, too_late, inputs, known.version if known else None)


def retrieve(
    lake: Lake,
    model: str,
    interval: Interval,
    *,
    pins: Mapping[str, int] | None = None,
    spine_version: int | None = None,
    folder: Path,
) -> Retrieval:
    """Spine and features of every night of the interval, by Feast's point-in-time join over pinned partitions.

    Args:
        pins: Delta version by feature view; the newest of this moment, read once, where left out.
        spine_version: Delta version of the spine's table, likewise.
        folder: holds the spine while the rows are read.
    Raises:
        PartitionNotReady: a night has no published partition of the spine's table or of one of the views.
    """
    inputs, versions = view_inputs(lake, model, interval, pins=pins)
    rows = spine(lake, model, interval, folder=folder, version=spine_version)
    return Retrieval(
        schema=pa.schema([*rows.schema, *feature_fields(lake, model)]),
        rows=rows.rows,
        inputs={day: [*rows.inputs[day], *inputs[day]] for day in interval},
        too_late_by_night=rows.too_late_by_night,
        pins=versions,
        spine_version=rows.version,
        _entities=rows.path,
        _lake=lake,
        _model=model,
    )


def view_inputs(
    lake: Lake, model: str, interval: Interval, *, pins: Mapping[str, int] | None = None, needed_by: str = "Scoring"
) -> tuple[dict[date, list[Input]], dict[str, int]]:
    """Partitions of the model's views that each night reads, and the Delta version each view is pinned at.

    Raises:
        PartitionNotReady: a night has no published partition of a view: a TTL covers an absent entity, never a missing
            night.
    """
    inputs: dict[date, list[Input]] = {day: [] for day in interval}
    versions: dict[str, int] = {}
    for view in lake.catalog.views(lake.model(model)):
        dataset, ttl = view.dataset, view.declared.ttl
        table = feature_table(lake.settings, dataset, view.view)
        delta = table.load((pins or {}).get(view.name))
        versions[view.name] = delta.version() if delta is not None else 0
        reach = max(-(-ttl // ONE_DAY) if ttl else (interval.start - dataset.first_data_date).days, 0)
        published = lake.publications.current(table, interval.widened(reach), as_of_version=versions[view.name])
        require_partitions(lake, table, dataset, interval, published, f"{needed_by} {model}")
        instants = {day: cutoff(day, dataset.time_zone) for day in published}
        for day in interval:
            oldest = instants[day] - ttl if ttl else datetime.min.replace(tzinfo=UTC)
            inputs[day] += [
                p.as_input() for night, p in published.items() if night <= day and instants[night] >= oldest
            ]
    return inputs, versions


def read_features(
    lake: Lake, model: str, entities: Path, schema: pa.Schema, pins: Mapping[str, int], batch_rows: int = BATCH_ROWS
) -> pa.RecordBatchReader:
    """Join the model's features to the rows of a Parquet file, in the file's order; they are joined while they are
    read.
    """
    from features.definitions import feature_store
    from features.offline_store import DuckDBRetrievalJob

    tables = lake.feature_tables(lake.model(model))
    store = feature_store(lake, {tables[view].name: version for view, version in pins.items()})
    job = store.get_historical_features(
        entity_df=f"SELECT * FROM {read_parquet([entities])}",
        features=store.get_feature_service(model, allow_cache=True),
        full_feature_names=True,
    )
    assert isinstance(job, DuckDBRetrievalJob)

    def batches() -> Iterator[pa.RecordBatch]:
        with job.to_reader(batch_rows) as reader:
            for batch in reader:
                yield batch.select(schema.names).cast(schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def feature_fields(lake: Lake, model: str) -> list[pa.Field]:
    """`<view>__<column>` of every feature; any may be null, since an entity may be new."""
    return [
        pa.field(name, ARROW_TYPES[column.type])
        for name, column in lake.catalog.feature_columns(lake.model(model)).items()
    ]


def spine_schema(entry: ModelEntry, dataset: Dataset) -> pa.Schema:
    """Columns of a model's spine."""
    fields = [
        pa.field(name, ARROW_TYPES[column.type], nullable=column.nullable)
        for name, column in entry.spine.columns(dataset.tables).items()
        if name != "target_time_utc"
    ]
    fields += [
        pa.field("data_date", pa.date32(), nullable=False),
        pa.field("target_time_utc", _TIMESTAMP, nullable=False),
    ]
    return pa.schema([*fields, pa.field("event_timestamp", _TIMESTAMP, nullable=False)])


def horizon_end(entry: ModelEntry, dataset: Dataset, data_date: date) -> datetime:
    """The last target time that night `data_date` scores: whole days of the horizon are local days."""
    whole, rest = divmod(entry.spine.horizon, ONE_DAY)
    return cutoff(data_date + timedelta(days=whole), dataset.time_zone) + rest


def _register_windows(
    connection: duckdb.DuckDBPyConnection, entry: ModelEntry, dataset: Dataset, interval: Interval
) -> None:
    """Table `windows(data_date, cutoff_utc, end_utc, days_utc)`: the target times each night scores, and when the local
    days among them begin.
    """
    days = -(-entry.spine.horizon // ONE_DAY)
    begins = [[cutoff(day + timedelta(days=ahead), dataset.time_zone) for ahead in range(days)] for day in interval]
    windows = pa.table(
        {
            "data_date": pa.array(list(interval), pa.date32()),
            "cutoff_utc": pa.array([cutoff(day, dataset.time_zone) for day in interval], _TIMESTAMP),
            "end_utc": pa.array([horizon_end(entry, dataset, day) for day in interval], _TIMESTAMP),
            "days_utc": pa.array(begins, pa.list_(_TIMESTAMP)),
        }
    )
    connection.register("windows", windows)


def spine_table(lake: Lake, entry: ModelEntry) -> LakeTable | None:
    """The valid table that the model's spine is read from; None for a spine that reads none."""
    table = entry.spine.table
    return None if table is None else valid_table(lake.settings, lake.dataset(entry.dataset), table)


def _known_rows(
    lake: Lake, entry: ModelEntry, table: LakeTable, dataset: Dataset, interval: Interval, version: int | None
) -> KnownTable:
    first, last = (cutoff(day, dataset.time_zone) for day in (interval.start, interval.last))
    column, low, high = entry.spine.span(first, last, horizon_end(entry, dataset, interval.last))
    known = known_table(
        lake, table, interval.last, column=column, low=low, high=high, first=interval.start, version=version
    )
    require_partitions(lake, table, dataset, interval, known.published, f"Scoring {entry.name}")
    return known


def _too_late(connection: duckdb.DuckDBPyConnection, entry: ModelEntry) -> dict[date, int]:
    """By night: rows first seen in it whose target time was past; none where the spine makes the target times."""
    target_time = entry.spine.target_time
    if target_time is None:
        return {}
    counted = connection.execute(
        "SELECT data_date, count(*) FROM known JOIN windows USING (data_date) "
        f'WHERE known.revision = 0 AND known."{target_time}" <= cutoff_utc GROUP BY ALL'
    ).fetchall()
    return dict(counted)


def require_partitions(
    lake: Lake,
    table: LakeTable,
    dataset: Dataset,
    interval: Interval,
    published: Mapping[date, Publication],
    needed_by: str,
) -> None:
    """Check that every night of the interval is among those that are `published`.

    Raises:
        PartitionNotReady: one is not; the message names the runs that publish it.
    """
    missing = [day for day in interval if day not in published]
    if not missing:
        return
    newest = lake.publications.newest(table)
    latest = f"latest is {newest.data_date}" if newest else "nothing is published"
    begin = min(missing[0], newest.data_date + ONE_DAY) if newest else dataset.first_data_date
    raise PartitionNotReady(
        f"{table.name} has no partition {missing[0]} ({latest}).\n"
        f"  {needed_by} for data date {missing[0]} needs it. Run {_runs(dataset.name, begin, missing[-1])}, then clear "
        "this task."
    )


def _runs(dataset: str, first: date, last: date) -> str:
    """The runs that publish those nights, in words."""
    if first >= last:
        return f"`{dataset}_ingest` for {last}"
    if last - first == ONE_DAY:
        return f"`{dataset}_ingest` for {first} and {last}"
    return f"`{dataset}_ingest` for each of {first} to {last}, or `{dataset}_history` once"


class RowGroupWriter:
    """A Parquet file of row groups of `BATCH_ROWS`, whatever batches come in: equal rows give equal bytes."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema = schema
        self._pending: list[pa.RecordBatch] = []
        self._waiting = 0
        self.rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows; columns the schema does not name are left out."""
        self._pending.append(batch.select(self._schema.names).cast(self._schema))
        self._waiting += batch.num_rows
        self.rows += batch.num_rows
        while self._waiting >= BATCH_ROWS:
            whole = pa.Table.from_batches(self._pending, self._schema).combine_chunks()
            self._writer.write_table(whole.slice(0, BATCH_ROWS), row_group_size=BATCH_ROWS)
            self._pending, self._waiting = whole.slice(BATCH_ROWS).to_batches(), self._waiting - BATCH_ROWS

    def close(self) -> None:
        """Write what is left, and the footer."""
        if self._waiting:
            self._writer.write_table(
                pa.Table.from_batches(self._pending, self._schema).combine_chunks(), row_group_size=BATCH_ROWS
            )
        self._writer.close()


def write_parquet(path: Path, schema: pa.Schema, batches: pa.RecordBatchReader) -> int:
    """Write rows as they come; returns their number."""
    with closing(RowGroupWriter(path, schema)) as writer:
        for batch in batches:
            writer.write(batch)
    return writer.rows


def _duckdb_type(kind: pa.DataType) -> str:
    return next(DUCKDB_TYPES[name] for name, arrow in ARROW_TYPES.items() if arrow == kind)

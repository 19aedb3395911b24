"""Where each Delta table lies, what columns it has, and how DuckDB reads it at a pinned version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from config.catalog.data import OWN_PREFIX, Column, Dataset
from config.errors import NightfleetError
from config.settings import Settings
from lake.delta import TableLocation, check_files, file_problem, file_sizes, table_location
from lake.duck import allow, confine, connect, read_parquet

ARROW_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
DUCKDB_TYPES: dict[str, str] = {
    "string": "VARCHAR",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float64": "DOUBLE",
    "boolean": "BOOLEAN",
    "date": "DATE",
    "timestamp": "TIMESTAMPTZ",
}
DATA_DATE = pa.field("data_date", pa.date32(), nullable=False)
# True in a row that says that its key is gone, of a table with `deletes: close`: such a row holds no values.
CLOSED_COLUMN = f"{OWN_PREFIX}closed"
_RETENTION = {
    "delta.logRetentionDuration": "interval 3650 days",
    "delta.deletedFileRetentionDuration": "interval 3650 days",
}


class TableUnreadable(NightfleetError):
    """A Delta table uses a feature that the readers here do not honour."""


@dataclass(frozen=True)
class LakeTable:
    """One Delta table, partitioned by `data_date`.

    Attributes:
        name: its path below the lake, for example `flights/valid/outcomes`; the name in errors and lineage.
        schema: all columns, `data_date` among them.
        key: columns that name a row within a partition; rows are sorted by `(data_date, *key)`.
        added: nullable columns that the table got after its first rows were written, each with a SQL expression of what
            a row of before holds in it, over the row's other columns. Such a row reads as if it had been written with
            that value, and has the digest that it was published with: while every row of a partition holds that value,
            the column is no part of the digest.
        personal: columns whose values no message shows.
        may_close: its files may hold rows that say that their key is gone, whatever the catalog says of it now.
    """

    name: str
    location: TableLocation
    schema: pa.Schema
    key: tuple[str, ...]
    added: Mapping[str, str] = field(default_factory=dict)
    personal: frozenset[str] = frozenset()
    may_close: bool = False

    def load(self, version: int | None = None) -> DeltaTable | None:
        """The Delta table as of `version` (None: newest), or None when nothing was ever committed."""
        table = self.location.open(version)
        if table is None:
            return None
        features = table.protocol().reader_features or []
        if "deletionVectors" in features:
            raise TableUnreadable(
                f"{self.name} uses deletion vectors, which are not applied here: deleted rows would come back. Rewrite "
                "it without them."
            )
        return table

    def load_or_create(self) -> DeltaTable:
        """The newest table, created empty where there is none."""
        table = self.load()
        if table is not None:
            return table
        return self.location.create(self.schema, partition_by=["data_date"], configuration=_RETENTION)

    def files(self, dates: Iterable[date] | None = None, version: int | None = None) -> list[str]:
        """Parquet files of those partitions (None: all) at a version, sorted."""
        table = self.load(version)
        return [] if table is None else _files_of(table, dates)

    def damaged(self, table: DeltaTable, dates: Iterable[date]) -> dict[date, str]:
        """What is wrong with the files of those partitions, by data date; none where they hold what was published."""
        sizes = file_sizes(table)
        problems = {}
        for uri in _files_of(table, dates):
            folder, name = uri.rsplit("/", 2)[-2:]
            problem = file_problem(uri, sizes.get(name))
            if problem:
                problems[date.fromisoformat(folder.removeprefix("data_date="))] = f"{uri} {problem}"
        return problems

    def register(
        self,
        connection: duckdb.DuckDBPyConnection,
        view: str,
        dates: Iterable[date] | None = None,
        version: int | None = None,
    ) -> None:
        """Make the rows of those partitions readable in DuckDB as `view`; an empty view where there are none.

        Raises:
            PartitionDamaged: a file of theirs is missing, or holds other bytes than were published.
        """
        table = self.load(version)
        files = [] if table is None else _files_of(table, dates)
        if table is not None:
            check_files(files, file_sizes(table))
        columns = ", ".join(f'CAST({self._value(f.name)} AS {_duckdb_type(f.type)}) AS "{f.name}"' for f in self.schema)
        if files:
            allow(connection, files)
            source = read_parquet(files, partitioned=True)
            added = {name: _duckdb_type(self.schema.field(name).type) for name in self.added}
            # Closings of a time when the catalog said `deletes: close`, which it no longer does, are no rows.
            leaves_closings_out = self.may_close and not self.closes
            if leaves_closings_out:
                added[CLOSED_COLUMN] = "BOOLEAN"
            if added:
                # Where none of the files has them, the columns come from here.
                nulls = ", ".join(f'CAST(NULL AS {kind}) AS "{name}"' for name, kind in added.items())
                source = f"(SELECT * FROM {source} UNION ALL BY NAME SELECT {nulls} WHERE false)"  # noqa: S608 (as below)
            if leaves_closings_out:
                source += f' WHERE "{CLOSED_COLUMN}" IS NOT TRUE'
            connection.execute(f'CREATE OR REPLACE TEMP VIEW "{view}" AS SELECT {columns} FROM {source}')  # noqa: S608 (paths of our own lake, quoted)
        else:
            empty = ", ".join(f'CAST(NULL AS {_duckdb_type(f.type)}) AS "{f.name}"' for f in self.schema)
            connection.execute(f'CREATE OR REPLACE TEMP VIEW "{view}" AS SELECT {empty} WHERE false')

    @property
    def closes(self) -> bool:
        """Whether its rows say, in a column, that their key is gone."""
        return CLOSED_COLUMN in self.schema.names

    def _value(self, column: str) -> str:
        return f'coalesce("{column}", {self.added[column]})' if column in self.added else f'"{column}"'

    def read(self, dates: Iterable[date] | None = None, version: int | None = None) -> pa.Table:
        """The rows of those partitions, sorted by `(data_date, *key)`; for small tables and tests."""
        with connect() as connection:
            self.register(connection, "t", dates, version)
            confine(connection)
            order = ", ".join(f'"{c}"' for c in ("data_date", *self.key))
            return connection.sql(f"SELECT * FROM t ORDER BY {order}").to_arrow_table().cast(self.schema)  # noqa: S608 (column names from the typed catalog)


def _files_of(table: DeltaTable, dates: Iterable[date] | None) -> list[str]:
    uris = sorted(table.file_uris())
    if dates is None:
        return uris
    wanted = {f"data_date={day.isoformat()}" for day in dates}
    return [uri for uri in uris if uri.rsplit("/", 2)[-2] in wanted]


def _duckdb_type(kind: pa.DataType) -> str:
    for name, arrow in ARROW_TYPES.items():
        if arrow == kind:
            return DUCKDB_TYPES[name]
    raise TypeError(f"no column type of the catalog is stored as {kind}")


def arrow_schema(columns: Mapping[str, Column] | Mapping[str, str]) -> pa.Schema:
    """Declared columns (or name to type) as an Arrow schema."""
    fields = []
    for name, column in columns.items():
        kind = column if isinstance(column, str) else column.type
        nullable = True if isinstance(column, str) else column.nullable
        fields.append(pa.field(name, ARROW_TYPES[kind], nullable=nullable))
    return pa.schema(fields)


def _row_fields(dataset: Dataset, table: str) -> list[pa.Field]:
    declared = arrow_schema(dict(dataset.tables[table].columns))
    return [
        *declared,
        pa.field("known_at_utc", ARROW_TYPES["timestamp"], nullable=False),
        pa.field("revision", pa.int32(), nullable=False),
    ]


def row_number_column(declared: Iterable[str]) -> str:
    """Name of raw's own column that keeps rows of one key apart, beside the declared ones."""
    return f"{OWN_PREFIX}row_number" if "row_number" in set(declared) else "row_number"


def raw_table(settings: Settings, dataset: Dataset, table: str) -> LakeTable:
    """`<dataset>/raw/<table>`: declared columns (all nullable), known_at_utc, revision (0 first), data_date; with
    `deletes: close` also `nf__closed`.
    """
    fields = [
        f.with_nullable(True) if f.name in dataset.tables[table].columns else f for f in _row_fields(dataset, table)
    ]
    # The key may be null or repeated in raw: it is validation that sets such rows aside; the number keeps them apart.
    number = row_number_column(dataset.tables[table].columns)
    fields.append(pa.field(number, pa.int64(), nullable=False))
    key = (*dataset.tables[table].key, "revision", number)
    added = _closing(dataset, table, fields)
    made = _table(settings, f"{dataset.name}/raw/{table}", fields, key, added, _personal(dataset, [table]))
    return replace(made, may_close=True)


def valid_table(settings: Settings, dataset: Dataset, table: str) -> LakeTable:
    """`<dataset>/valid/<table>`: declared columns, known_at_utc, revision, data_date; with `deletes: close` also
    `nf__closed`.
    """
    key = (*dataset.tables[table].key, "revision")
    fields = _row_fields(dataset, table)
    added = _closing(dataset, table, fields)
    made = _table(settings, f"{dataset.name}/valid/{table}", fields, key, added, _personal(dataset, [table]))
    return replace(made, may_close=True)


def _closing(dataset: Dataset, table: str, fields: list[pa.Field]) -> dict[str, str]:
    """Append the column of closings where the table has one; returns what rows of before hold in it."""
    if dataset.tables[table].deletes == "keep":
        return {}
    fields.append(pa.field(CLOSED_COLUMN, pa.bool_()))
    return {CLOSED_COLUMN: "false"}


def quarantine_table(settings: Settings, dataset: Dataset, table: str) -> LakeTable:
    """`<dataset>/quarantine/<table>`: raw's columns and `broken_rules`, names joined by `; `."""
    raw = raw_table(settings, dataset, table)
    fields = [f for f in raw.schema if f.name not in ("data_date", CLOSED_COLUMN)]
    return _table(
        settings,
        f"{dataset.name}/quarantine/{table}",
        [*fields, pa.field("broken_rules", pa.string(), nullable=False)],
        raw.key,
        personal=raw.personal,
    )


def feature_table(settings: Settings, dataset: Dataset, view: str) -> LakeTable:
    """`<dataset>/features/<view>`: entity columns, declared features, event_timestamp = cutoff(data_date),
    data_date.
    """
    declared = dataset.features[view]
    kinds: dict[str, pa.DataType] = {}
    for table in declared.reads:
        kinds |= {name: ARROW_TYPES[c.type] for name, c in dataset.tables[table].columns.items() if name not in kinds}
    fields = [pa.field(name, kinds[name], nullable=False) for name in declared.entities]
    fields += list(arrow_schema(dict(declared.columns)))
    fields.append(pa.field("event_timestamp", ARROW_TYPES["timestamp"], nullable=False))
    personal = _personal(dataset, declared.reads) | {name for name, column in declared.columns.items() if column.pii}
    return _table(settings, f"{dataset.name}/features/{view}", fields, declared.entities, personal=personal)


def _personal(dataset: Dataset, tables: Iterable[str]) -> frozenset[str]:
    return frozenset(name for table in tables for name, column in dataset.tables[table].columns.items() if column.pii)


def _table(
    settings: Settings,
    name: str,
    fields: list[pa.Field],
    key: tuple[str, ...],
    added: Mapping[str, str] | None = None,
    personal: frozenset[str] = frozenset(),
) -> LakeTable:
    schema = pa.schema([*fields, DATA_DATE])
    return LakeTable(name, table_location(settings, name), schema, key, added or {}, personal)


def named_table(
    settings: Settings,
    name: str,
    columns: dict[str, str],
    key: tuple[str, ...],
    added: Mapping[str, str] | None = None,
) -> LakeTable:
    """Any other table of the lake (predictions, metrics, decisions…): `data_date` is added to `columns`.

    Args:
        added: those of the columns that the table got later, as in `LakeTable`.
    """
    return _table(settings, name, list(arrow_schema(columns)), key, added)

"""What came true, as known by a night, and when that may be relied on.

A data date t is mature at the first T where all its target times + `matures_after` lie at or before cutoff(T). Before
that its labels are biased, since those that come early differ from those that come late; some never come.
"""

# ruff: noqa: S608 (names come from the typed catalog, quoted)
from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa

from config.calendar import ONE_DAY, Interval, cutoff
from config.catalog.base import BadCatalog
from config.catalog.data import Dataset
from config.catalog.model import ModelEntry
from config.catalog.output import SCALE
from config.errors import NightfleetError
from features.known import KnownTable, known_table
from features.retrieval import horizon_end, spine
from lake.duck import read_parquet
from lake.lake import Lake
from lake.lineage import Input
from lake.tables import ARROW_TYPES, valid_table

# A seasonal naive looks back for so many more seasons where the newest that may be known holds no label.
_LATER_SEASONS = 3


class UnknownClass(NightfleetError):
    """A label is none of the values that the catalog lists for it."""


@dataclass(frozen=True)
class LabelQuery:
    """SQL over rows with `entity…, data_date`, and the partitions it reads."""

    sql: str
    inputs: list[Input]


def is_mature(lake: Lake, model: str, data_date: date, *, as_of: date) -> bool:
    """Whether the labels of data date `data_date` may be judged by what was known on `as_of`."""
    entry, dataset = _entries(lake, model)
    return horizon_end(entry, dataset, data_date) + entry.label.matures_after <= cutoff(as_of, dataset.time_zone)


def newest_mature(lake: Lake, model: str, as_of: date) -> date:
    """The newest data date that is mature on `as_of`."""
    entry, _ = _entries(lake, model)
    day = as_of - (entry.spine.horizon + entry.label.matures_after) // ONE_DAY * ONE_DAY + 2 * ONE_DAY
    while not is_mature(lake, model, day, as_of=as_of):
        day -= ONE_DAY
    return day


def labels(lake: Lake, model: str, interval: Interval, *, as_of: date) -> pa.Table:
    """The label of every row the nights of `interval` score, by its newest revision that had arrived on `as_of`.

    Returns:
        The entity columns, data_date, and label, null where none had come: float64, a text as its position among the
        classes of the catalog; sorted by `(data_date, *entity)`.
    """
    return _over_spine(lake, model, interval, as_of=as_of, name="label")


def baseline(lake: Lake, model: str, interval: Interval) -> pa.Table:
    """What a row-wise baseline says for every row the nights of `interval` score, by what each night itself knew.

    Returns:
        The entity columns, data_date, and baseline (float64): of a seasonal naive the label of the step that began at
        the same local time a season earlier, or the fewest seasons for which the night knew it; null where there was
        none, and for baselines that are one number for all.
    """
    return _over_spine(lake, model, interval, as_of=None, name="baseline")


def _over_spine(lake: Lake, model: str, interval: Interval, *, as_of: date | None, name: str) -> pa.Table:
    entry, dataset = _entries(lake, model)
    schema = pa.schema(
        [
            *((key, _entity_type(entry, dataset, key)) for key in entry.entity),
            ("data_date", pa.date32()),
            (name, pa.float64()),
        ]
    )
    with lake.duckdb() as connection, lake.scratch("labels") as folder:
        rows = spine(lake, model, interval, folder=folder)
        register_rows(connection, "spine_rows", rows.path)
        if as_of is not None:
            query = label_query(lake, model, connection, "spine_rows", as_of=as_of)
        else:
            query = baseline_query(lake, model, connection, "spine_rows", last=interval.last)
        keys = ", ".join(f'"{key}"' for key in entry.entity)
        return (
            connection.sql(f"SELECT {keys}, data_date, {name} FROM ({query.sql}) ORDER BY data_date, {keys}")
            .to_arrow_table()
            .cast(schema)
        )


def register_rows(connection: duckdb.DuckDBPyConnection, view: str, path: Path) -> None:
    """Make the rows of a Parquet file readable as `view`."""
    connection.execute(f'CREATE OR REPLACE TEMP VIEW "{view}" AS SELECT * FROM {read_parquet([path])}')


def label_query(
    lake: Lake, model: str, connection: duckdb.DuckDBPyConnection, rows: str, *, as_of: date, version: int | None = None
) -> LabelQuery:
    """The rows of relation `rows` with column `label`: the newest revision of partitions up to `as_of`.

    Registers what it reads on `connection`.
    """
    entry, _ = _entries(lake, model)
    known = _register_labels(lake, entry, connection, rows, last=as_of, version=version)
    label = "l.label"
    if entry.label.absent is not None:
        # A row that says null is not absent: it says that nobody knows.
        mature = f"l.data_date IS NULL AND r.data_date <= DATE '{newest_mature(lake, model, as_of)}'"
        label = f"CASE WHEN {mature} THEN CAST({entry.label.absent!r} AS DOUBLE) ELSE l.label END AS label"
    sql = (
        f'SELECT r.*, {label} FROM "{rows}" AS r LEFT JOIN known_labels AS l ON {_same_entity(entry)} AND'
        " l.superseded_on IS NULL"
    )
    return LabelQuery(sql, known.inputs())


def baseline_query(
    lake: Lake, model: str, connection: duckdb.DuckDBPyConnection, rows: str, *, last: date, version: int | None = None
) -> LabelQuery:
    """The rows of relation `rows` with column `baseline`, from revisions that each row's own night knew; where a gate
    is scaled also `SCALE`, how far apart two seasons of the row's series lay on average: over the seasons that the
    baseline may look back to, at the local times of the night's steps; null for a series that has none.

    Registers what it reads on `connection`; `last` is the newest night among the rows.

    Raises:
        BadCatalog: the catalog names a row-wise baseline for rows that are not steps of a calendar.
    """
    entry, dataset = _entries(lake, model)
    season, step = entry.gate.naive_season, entry.spine.step_column
    if season is None:
        return LabelQuery(f'SELECT r.*, CAST(NULL AS DOUBLE) AS baseline FROM "{rows}" AS r', [])
    if step is None:
        raise BadCatalog(
            f"{model}: gate.baseline = {entry.gate.baseline!r} needs a spine of steps (every: 1 hour). Name median or "
            "mean instead."
        )
    seasons = -(-entry.spine.horizon // season) + (_LATER_SEASONS if entry.gate.season else 0)
    known = _register_labels(lake, entry, connection, rows, last=last, version=version, before=season * seasons)
    zone, keys = dataset.time_zone, ", ".join(f'"{name}"' for name in (*entry.entity, "data_date"))
    # The same hour on the clock: across a change of clocks that is not 168 hours ago.
    days = f"INTERVAL ({season // ONE_DAY} * nf__back.nf__seasons) DAY"
    earlier = f"timezone('{zone}', timezone('{zone}', \"{step}\") - {days})"
    series = [name for name in (*entry.entity, "data_date") if name != step]
    others = "".join(f' AND nf__labels."{name}" = nf__asked."{name}"' for name in series if name != "data_date")
    apart = ", ".join(f'newer."{name}"' for name in series)
    scaled = f"""
        LEFT JOIN (
            SELECT {apart},
                avg(abs(newer.label - older.label) ORDER BY newer."{step}", newer.nf__seasons) AS {SCALE}
            FROM nf__known AS newer JOIN nf__known AS older USING ({keys})
            WHERE older.nf__seasons = newer.nf__seasons + 1
            GROUP BY ALL
        ) AS nf__apart USING ({", ".join(f'"{name}"' for name in series)})
    """
    sql = f"""
        WITH nf__asked AS (
            SELECT {keys}, nf__back.nf__seasons, {earlier} AS nf__earlier_utc
            FROM (SELECT DISTINCT {keys} FROM "{rows}") CROSS JOIN range(1, {seasons + 1}) AS nf__back (nf__seasons)
        ),
        nf__known AS (
            SELECT {", ".join(f'nf__asked."{name}"' for name in (*entry.entity, "data_date"))},
                nf__asked.nf__seasons, nf__labels.label
            FROM nf__asked JOIN known_labels AS nf__labels
                ON nf__labels."{step}" = nf__asked.nf__earlier_utc{others}
                AND nf__labels.data_date <= nf__asked.data_date
                AND (nf__labels.superseded_on IS NULL OR nf__labels.superseded_on > nf__asked.data_date)
            WHERE nf__labels.label IS NOT NULL
        ),
        nf__said AS (SELECT {keys}, arg_min(label, nf__seasons) AS baseline FROM nf__known GROUP BY ALL)
        SELECT r.*, nf__said.baseline{f", nf__apart.{SCALE}" if entry.scaled else ""}
        FROM "{rows}" AS r LEFT JOIN nf__said USING ({keys}){scaled if entry.scaled else ""}
    """
    return LabelQuery(sql, known.inputs())


def _register_labels(
    lake: Lake,
    entry: ModelEntry,
    connection: duckdb.DuckDBPyConnection,
    rows: str,
    *,
    last: date,
    version: int | None,
    before: timedelta | None = None,
) -> KnownTable:
    """DuckDB view `known_labels`: entity, label as double, data_date, superseded_on; of the entities of `rows`, and so
    long `before` them.
    """
    dataset = lake.dataset(entry.dataset)
    table = valid_table(lake.settings, dataset, entry.label.table)
    span, low, high = _span(connection, entry, rows)
    if before is not None and low is not None:
        low -= before + ONE_DAY
    known = known_table(lake, table, last, column=span, low=low, high=high, version=version)
    known.register(connection, "label_rows", dataset.tables[entry.label.table].key)
    _check_values(connection, entry)
    columns = ", ".join(f'"{name}"' for name in entry.entity)
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW known_labels AS SELECT {columns}, {label_as_number(entry)} AS "
        "label, data_date, superseded_on "
        "FROM label_rows"
    )
    return known


def label_as_number(entry: ModelEntry) -> str:
    """SQL of the label as a double: itself, the number that the catalog says for a text, or its position among the
    values that it may take.
    """
    column = f'"{entry.label.column}"'
    if entry.label.values:
        said = " ".join(f"WHEN {_literal(text)} THEN {number!r}" for text, number in entry.label.values.items())
        return f"CAST(CASE {column} {said} END AS DOUBLE)"
    if not any(isinstance(value, str) for value in entry.label_values):
        return f"CAST({column} AS DOUBLE)"
    cases = " ".join(f"WHEN {_literal(value)} THEN {number}" for number, value in enumerate(entry.label_values))
    return f"CAST(CASE {column} {cases} END AS DOUBLE)"


def _check_values(connection: duckdb.DuckDBPyConnection, entry: ModelEntry) -> None:
    """Refuse a label that is none of the values that the catalog lists; a null is a label that has not come."""
    values = tuple(entry.label.values) or entry.label_values
    if not values:
        return
    column, table = f'"{entry.label.column}"', entry.label.table
    listed = ", ".join(_literal(value) for value in values)
    unknown = connection.execute(
        f"SELECT {column}, count(*) FROM label_rows WHERE {column} NOT IN ({listed}) GROUP BY ALL ORDER BY ALL LIMIT 1"
    ).fetchone()
    if unknown is not None:
        where = "`values` of the label" if entry.label.values else "`classes` of the outputs"
        raise UnknownClass(
            f"{unknown[1]} rows of {table} hold the label {entry.label.column} = {unknown[0]!r}, which is none of "
            f"{', '.join(map(str, values))}.\n"
            f"  Add it to {where} of {entry.name} and train again, or let a check of {table} put such "
            f"rows into quarantine (rule in_set on {entry.label.column})."
        )


def _literal(value: str | int) -> str:
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def _span(connection: duckdb.DuckDBPyConnection, entry: ModelEntry, rows: str) -> tuple[str, date | None, date | None]:
    """The entity column that tells best which files matter, and its range: a date or timestamp, since labels come in
    the order of time.
    """
    kinds = {str(row[0]): str(row[1]) for row in connection.execute(f'DESCRIBE "{rows}"').fetchall()}
    name = next((key for key in entry.entity if kinds[key].startswith(("DATE", "TIMESTAMP"))), entry.entity[0])
    low, high = connection.execute(f'SELECT min("{name}"), max("{name}") FROM "{rows}"').fetchone() or (None, None)
    return name, low, high


def _same_entity(entry: ModelEntry) -> str:
    return " AND ".join(f'r."{key}" = l."{key}"' for key in entry.entity)


def _entity_type(entry: ModelEntry, dataset: Dataset, key: str) -> pa.DataType:
    return ARROW_TYPES[dataset.tables[entry.label.table].columns[key].type]


def _entries(lake: Lake, model: str) -> tuple[ModelEntry, Dataset]:
    entry = lake.model(model)
    return entry, lake.dataset(entry.dataset)

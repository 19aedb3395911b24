"""How many units there are, and how many rows each group has, before a rollout starts."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from config.calendar import Interval
from features.retrieval import retrieve
from lake.lake import Lake
from serving.predictions import predictions_table


def units_and_groups(lake: Lake, model: str, unit: Sequence[str], by: str | None) -> tuple[int, dict[str, int]]:
    """Number of distinct units of the newest scored night, and rows by group where groups take turns.

    Rows whose group is null belong to none; without a scored night there are no units.
    """
    entry = lake.model(model)
    newest = lake.publications.newest(predictions_table(lake.settings, entry, lake.dataset(entry.dataset)))
    if newest is None:
        return 0, {}
    listed = ", ".join('"' + name.replace('"', '""') + '"' for name in unit)
    with lake.scratch("population") as folder, lake.duckdb() as connection:
        retrieval = retrieve(lake, model, Interval.of(newest.data_date), folder=folder)
        columns = list(dict.fromkeys([*unit, *([by] if by else [])]))
        batches = (batch.select(columns) for batch in retrieval.reader())
        schema = pa.schema([retrieval.schema.field(name) for name in columns])
        connection.register("retrieved", pa.RecordBatchReader.from_batches(schema, batches))
        connection.execute("CREATE TEMP TABLE population AS SELECT * FROM retrieved")
        query = f"SELECT count(*) FROM (SELECT DISTINCT {listed} FROM population)"  # noqa: S608 (declared columns)
        units = connection.execute(query).fetchall()[0][0]
        sizes: dict[str, int] = {}
        if by:
            group = '"' + by.replace('"', '""') + '"'
            query = f"SELECT CAST({group} AS VARCHAR), count(*) FROM population WHERE {group} IS NOT NULL GROUP BY 1"  # noqa: S608 (a declared column)
            sizes = dict(connection.execute(query).fetchall())
    return int(units), sizes

"""Predictions from the lake to SQL, where people and programs look them up."""

from __future__ import annotations

from datetime import date, datetime

import sqlalchemy as sa

from config.calendar import Interval
from lake.events import logged
from lake.lake import Lake, StageResult
from lake.projection import project, projections_table, sql_columns
from serving.predictions import predictions_table

RECENT_NIGHTS = 28
SQL_PREFIX = "predictions_"


def sql_name(model: str) -> str:
    """The SQL table of a model's predictions."""
    return f"{SQL_PREFIX}{model}"


@logged("publish")
def project_predictions(lake: Lake, model: str, interval: Interval, *, run_id: str) -> StageResult:
    """Make SQL table `predictions_<model>` hold what the lake has published for the interval, in one transaction.

    Nights that are there already are left alone. The `RECENT_NIGHTS` before the interval are looked at too, so that a
    projection that failed is repaired by the next run. Replaced rows stay, with `superseded_at`. `run_id` is named in
    errors; the rows' own run is in the lake.

    Raises:
        PartitionNotReady: a night of the interval is not scored.
    """
    entry = lake.model(model)
    table = predictions_table(lake.settings, entry, lake.dataset(entry.dataset))
    published = lake.publications.require(
        table,
        interval,
        needed_by=f"Publishing {model} in run {run_id}",
        remedy=f"Run the scoring of {model} for that night first, then clear this task.",
    )
    looked_at = interval.widened(RECENT_NIGHTS)
    before = _projected(lake, table.name, looked_at)
    rows_written = project(
        lake,
        table,
        sql_name(model),
        looked_at,
        keep_replaced=True,
        identity=("prediction_id",),
        indexes=(("prediction_id",), ("data_date",)),
    )
    after = _projected(lake, table.name, looked_at)
    written = [day for day, record in after.items() if before.get(day) != record]
    details = {
        "sql_table": sql_name(model),
        "rows_written": rows_written,
        "repaired_nights": [str(day) for day in written if day not in interval],
        "superseded_rows": _superseded(lake, model, interval),
    }
    return StageResult("publish", model, str(interval), sum(p.rows for p in published.values()), len(written), details)


def _projected(lake: Lake, table_name: str, interval: Interval) -> dict[date, tuple[int, str, datetime]]:
    """Delta version, digest and instant of each night that SQL holds."""
    if not sa.inspect(lake.engine).has_table(projections_table.name):
        return {}
    c = projections_table.c
    query = sa.select(c.data_date, c.version, c.digest, c.projected_at).where(
        c.table_name == table_name, c.data_date >= interval.start, c.data_date < interval.end
    )
    with lake.engine.connect() as connection:
        return {
            row.data_date: (row.version, row.digest, row.projected_at)
            for row in connection.execute(query.order_by(c.data_date))
        }


def _superseded(lake: Lake, model: str, interval: Interval) -> int:
    entry = lake.model(model)
    target = sql_columns(
        sql_name(model), predictions_table(lake.settings, entry, lake.dataset(entry.dataset)).schema, keep_replaced=True
    )
    query = sa.select(sa.func.count()).where(
        target.c.superseded_at.is_not(None), target.c.data_date >= interval.start, target.c.data_date < interval.end
    )
    with lake.engine.connect() as connection:
        return int(connection.execute(query).scalar_one())

"""Predictions from the lake to SQL, where people and programs look them up."""

from __future__ import annotations

from datetime import date, datetime

import sqlalchemy as sa

from config.calendar import Interval
from lake.events import logged
from lake.lake import Lake, StageResult
from lake.projection import project, projections_table, sql_columns
from serving.predictions import predictions_table

SQL_PREFIX = "predictions_"


def sql_name(model: str) -> str:
    """The SQL table of a model's predictions."""
    return f"{SQL_PREFIX}{model}"


@logged("publish")
def project_predictions(lake: Lake, model: str, interval: Interval, *, run_id: str) -> StageResult:
    """Make SQL table `predictions_<model>` hold what the lake has published for the interval, in one transaction.

    Nights that are there already are left alone. All others are looked at too, so that a projection that failed, or a
    database that lost rows, is repaired by the next run. Replaced rows stay, with `superseded_at`. `run_id` is named in
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
    before = _projected(lake, table.name)
    rows_written = bring_predictions(lake, model)
    after = _projected(lake, table.name)
    written = [day for day, record in after.items() if before.get(day) != record]
    details = {
        "sql_table": sql_name(model),
        "rows_written": rows_written,
        "repaired_nights": [str(day) for day in written if day not in interval],
        "superseded_rows": _superseded(lake, model, interval),
    }
    return StageResult("publish", model, str(interval), sum(p.rows for p in published.values()), len(written), details)


def bring_predictions(lake: Lake, model: str, *, anew: bool = False) -> int:
    """Make SQL hold the model's predictions of every published night, replaced ones included; rows written.

    Args:
        anew: write every night again, whatever SQL holds.
    """
    entry = lake.model(model)
    return project(
        lake,
        predictions_table(lake.settings, entry, lake.dataset(entry.dataset)),
        sql_name(model),
        keep_replaced=True,
        identity=("prediction_id",),
        indexes=(("prediction_id",), ("data_date",)),
        anew=anew,
    )


def _projected(lake: Lake, table_name: str) -> dict[date, tuple[int, str, datetime]]:
    """Delta version, digest and instant of each night that SQL holds."""
    if not sa.inspect(lake.engine).has_table(projections_table.name):
        return {}
    c = projections_table.c
    query = sa.select(c.data_date, c.version, c.digest, c.projected_at).where(c.table_name == table_name)
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

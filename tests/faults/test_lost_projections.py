"""What is lost of the SQL database comes back with the next night, all of its history."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
import sqlalchemy as sa

from config.calendar import Interval
from lake.lake import Lake
from lake.metrics import SQL_TABLE, Metric, publish_metrics
from tests import toy

NIGHTS = Interval(toy.FIRST, toy.FIRST + timedelta(days=60))
# The nights are one commit; the last one is the run that finds the loss.
BEFORE, LAST = Interval(NIGHTS.start, NIGHTS.last), Interval.of(NIGHTS.last)


def _publish(lake: Lake, interval: Interval) -> None:
    metrics = [Metric("ride_minutes", night, night, "toy", "ok", value=1.0) for night in interval]
    publish_metrics(lake, "ride_minutes", "toy", metrics, interval, run_id="r")


def _nights(lake: Lake) -> list[date]:
    table = sa.Table(SQL_TABLE, sa.MetaData(), autoload_with=lake.engine)
    with lake.engine.connect() as connection:
        return list(connection.execute(sa.select(table.c.data_date).order_by(table.c.data_date)).scalars())


@pytest.mark.parametrize("loss", ["the database", "the table", "some rows"])
def test_metrics_of_every_night_come_back(toy_lake: Lake, loss: str) -> None:
    _publish(toy_lake, BEFORE)
    with toy_lake.engine.begin() as connection:
        if loss == "some rows":
            connection.execute(sa.text(f"DELETE FROM {SQL_TABLE} WHERE data_date < '2024-01-20'"))
        if loss == "the table":
            connection.execute(sa.text(f"DROP TABLE {SQL_TABLE}"))
    toy_lake.engine.dispose()
    if loss == "the database":
        for path in toy_lake.settings.home.glob("nightfleet.db*"):
            path.unlink()
    lake = Lake(toy_lake.settings, toy_lake.catalog)
    _publish(lake, LAST)
    assert _nights(lake) == list(NIGHTS)

from __future__ import annotations

import io

import sqlalchemy as sa
from rich.console import Console

from cli.verify import repair, verify
from config.calendar import Interval
from lake.lake import Lake
from lake.metrics import Metric, publish_metrics
from tests import toy


def test_damage_is_said_and_counted_in_the_exit_code(toy_lake: Lake) -> None:
    metric = Metric("ride_minutes", toy.FIRST, toy.FIRST, "toy", "ok", value=1.0)
    publish_metrics(toy_lake, "ride_minutes", "toy", [metric], Interval.of(toy.FIRST), run_id="r")
    out = io.StringIO()
    console = Console(file=out, width=200)
    assert verify(toy_lake, console) == 0
    assert "nothing is damaged" in out.getvalue()
    with toy_lake.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM metrics"))
    assert verify(toy_lake, console) == 1
    assert "SQL: metrics of ride_minutes/metrics/toy\n  1 data dates are not as in the lake" in out.getvalue()
    assert repair(toy_lake, console) == 0
    assert "SQL: 1 metrics of ride_minutes, toy" in out.getvalue()

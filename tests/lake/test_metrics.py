"""The metrics table: what may be written, how it reads, and its SQL projection."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from config.calendar import Interval
from config.catalog.base import BadCatalog
from lake.lake import Lake
from lake.metrics import METRIC_SCHEMA, BadMetric, Metric, metric_rows, metrics_table, publish_metrics, read_metrics

NIGHT = Interval.of(date(2024, 3, 1))
TWO = Interval(date(2024, 3, 1), date(2024, 3, 3))


def metric(check: str = "psi", *, day: date = NIGHT.start, **more: Any) -> Metric:
    return Metric("rides", day, day, check, **({"status": "ok"} | more))


@pytest.fixture(params=["sqlite", "postgres"])
def lake(request: pytest.FixtureRequest, rides: Callable[[str], Lake]) -> Lake:
    return rides(request.getfixturevalue("empty_postgres") if request.param == "postgres" else "")


def _sql(lake: Lake, where: str = "true") -> list[tuple[Any, ...]]:
    with lake.engine.connect() as connection:
        return [
            tuple(row)
            for row in connection.execute(
                sa.text(f'SELECT "check", value, status FROM metrics WHERE {where} ORDER BY "check"')
            )
        ]


def test_metrics_are_in_delta_and_in_sql(lake: Lake) -> None:
    rows = [metric("b", value=0.5, n=3), metric("a", status="warning", value=1.5, threshold=1.0)]
    published = publish_metrics(lake, "rides", "drift", rows, NIGHT, run_id="r")
    assert published.committed == (NIGHT.start,)
    assert [m["check"] for m in read_metrics(lake, "rides", "drift").to_pylist()] == ["a", "b"]
    assert _sql(lake) == [("a", 1.5, "warning"), ("b", 0.5, "ok")]


def test_again_commits_nothing_and_repairs_sql(lake: Lake) -> None:
    publish_metrics(lake, "rides", "drift", [metric()], NIGHT, run_id="r")
    with lake.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM metrics"))
    assert publish_metrics(lake, "rides", "drift", [metric()], NIGHT, run_id="r2").committed == ()
    assert len(_sql(lake)) == 1


def test_groups_of_a_subject_do_not_touch_each_other(lake: Lake) -> None:
    publish_metrics(lake, "rides", "drift", [metric("d")], NIGHT, run_id="r")
    publish_metrics(lake, "rides", "quality", [metric("q")], NIGHT, run_id="r")
    publish_metrics(lake, "rides", "drift", [], NIGHT, run_id="r")
    assert _sql(lake) == [("q", None, "ok")]
    assert read_metrics(lake, "rides", "drift").num_rows == 0


def test_the_indexes_serve_a_night_and_an_alarm(lake: Lake) -> None:
    publish_metrics(lake, "rides", "drift", [metric()], NIGHT, run_id="r")
    indexes = {tuple(index["column_names"]) for index in sa.inspect(lake.engine).get_indexes("metrics")}
    alarm = ("subject", "check", "column", "segment", "about_date", "status", "data_date", "role", "model_version")
    assert {("subject", "data_date"), alarm} <= indexes


def test_a_night_without_metrics_is_published_empty(toy_lake: Lake) -> None:
    published = publish_metrics(toy_lake, "rides", "drift", [metric()], TWO, run_id="r")
    assert [p.rows for p in published.publications.values()] == [1, 0]


def test_reading_an_interval_and_nothing(toy_lake: Lake) -> None:
    assert read_metrics(toy_lake, "rides", "drift").schema.equals(METRIC_SCHEMA)
    publish_metrics(toy_lake, "rides", "drift", [metric(day=day) for day in TWO], TWO, run_id="r")
    assert read_metrics(toy_lake, "rides", "drift", Interval.of(TWO.last))["data_date"].to_pylist() == [TWO.last]


def test_a_table_may_leave_out_what_it_does_not_have_and_nan_is_null(toy_lake: Lake) -> None:
    rows = pa.table(
        {
            "subject": ["rides"],
            "about_date": [NIGHT.start - timedelta(days=2)],
            "data_date": [NIGHT.start],
            "check": ["mae"],
            "status": ["ok"],
            "value": [float("nan")],
        }
    )
    publish_metrics(toy_lake, "rides", "performance", rows, NIGHT, run_id="r")
    (found,) = read_metrics(toy_lake, "rides", "performance").to_pylist()
    assert found["column"] == found["segment"] == ""
    assert found["value"] is None
    assert found["about_date"] == date(2024, 2, 28)


def test_the_key_has_the_night_it_is_about_role_and_version(toy_lake: Lake) -> None:
    key = ("subject", "check", "column", "segment", "about_date", "role", "model_version")
    assert metrics_table(toy_lake.settings, "rides", "x").key == key
    rows = [Metric("rides", day, NIGHT.start, "mae", "ok", value=1.0) for day in TWO]
    assert publish_metrics(toy_lake, "rides", "performance", rows, NIGHT, run_id="r").rows == 2


def test_two_versions_measure_the_same_night(lake: Lake) -> None:
    rows = [
        metric("mae", value=float(version), role=role, model_version=version)
        for role, version in (("champion", 1), ("challenger", 2))
    ]
    assert publish_metrics(lake, "rides", "performance", rows, NIGHT, run_id="r").rows == 2
    with lake.engine.connect() as connection:
        found = connection.execute(sa.text("SELECT role, model_version, value FROM metrics ORDER BY value")).all()
    assert [tuple(row) for row in found] == [("champion", 1, 1.0), ("challenger", 2, 2.0)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [metric(status="fine")],
            "rides/metrics/drift: status is 'fine', needs one of ok, warning, failing, not_evaluated. Nothing was "
            "written.",
        ),
        (
            [Metric("other", NIGHT.start, NIGHT.start, "psi", "ok")],
            "rides/metrics/drift: subject is 'other', needs one of rides. Nothing was written.",
        ),
        (
            [metric(status="not_evaluated")],
            "check 'psi' is failing or not evaluated without a reason. Nothing was written. Say why in `reason`.",
        ),
        (
            [metric(status="failing", reason="")],
            "check 'psi' is failing or not evaluated without a reason. Nothing was written. Say why in `reason`.",
        ),
    ],
)
def test_what_a_metric_may_not_be(toy_lake: Lake, rows: list[Metric], message: str) -> None:
    with pytest.raises(BadMetric) as caught:
        publish_metrics(toy_lake, "rides", "drift", rows, NIGHT, run_id="r")
    assert message in str(caught.value)
    assert metrics_table(toy_lake.settings, "rides", "drift").load() is None


def test_a_subject_must_be_in_the_catalog(toy_lake: Lake) -> None:
    with pytest.raises(BadCatalog, match="neither a data set nor a model 'nobody'"):
        publish_metrics(toy_lake, "nobody", "drift", [], NIGHT, run_id="r")


def test_metric_rows_have_the_schema() -> None:
    assert metric_rows([metric(value=1.0)]).schema.equals(METRIC_SCHEMA)
    assert metric_rows([]).num_rows == 0

"""A page never writes: each renders on a lake whose database refuses every write, and leaves every file as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from config.calendar import Interval
from lake.lake import Lake
from lake.tables import LakeTable
from monitoring.alerting.prometheus import scrape
from monitoring.drift import drift
from monitoring.pages import data, drift_report, model, retraining, tonight, trace
from monitoring.pages.page import Context, Page
from monitoring.pages.render import render
from monitoring.performance import performance
from monitoring.retraining_requests import decide_retraining
from serving.predictions import predictions_table
from serving.projection import project_predictions
from tests.monitoring.pages.fleet import DATASET, context
from tests.monitoring.scenario import NIGHT, SCORED
from tests.serving.scenario import MODEL


def pages_of(context: Context) -> dict[str, Page]:
    some = trace.page(context, query={}).table("examples").rows
    return {
        "tonight": tonight.page(context, query={}),
        "model": model.page(context, query={}, model=MODEL),
        "drift report": drift_report.page(context, query={}, model=MODEL, night=NIGHT.isoformat()),
        "retraining": retraining.page(context, query={}),
        "data": data.page(context, query={}, dataset=DATASET),
        "trace": trace.page(context, query={"id": some[0]["id"]}),
    }


def state(home: Path) -> Mapping[str, tuple[int, int]]:
    """Size and time of every file, but for SQLite's own bookkeeping of who reads."""
    files = (path for path in home.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal")))
    return {str(path.relative_to(home)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def monitored(night: Lake) -> Lake:
    """Scored, projected, monitored, decided."""
    project_predictions(night, MODEL, SCORED, run_id="score")
    for stage in (drift, performance):
        stage(night, MODEL, Interval.of(NIGHT), run_id="monitor")
    decide_retraining(night, MODEL, NIGHT, run_id="monitor")
    return night


def test_every_page_renders_on_a_database_that_refuses_writes(monitored: Lake) -> None:
    with monitored.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    before = state(monitored.settings.home)
    reading = context(replace(monitored, read_only=True))
    for name, page in pages_of(reading).items():
        assert render(page, reading, path=f"/nightfleet/{name}").endswith("</html>"), name
    scrape(reading.lake, None)
    assert state(monitored.settings.home) == before


def test_a_page_repairs_nothing(monitored: Lake) -> None:
    with monitored.engine.begin() as connection:
        for table in ("publications_synced", "decisions", "requests", "promotions", "projections"):
            connection.execute(sa.text(f"DROP TABLE {table}"))
    reading = context(replace(monitored, read_only=True))
    pages_of(reading)
    assert not sa.inspect(monitored.engine).has_table("promotions")


def test_a_new_installation_has_its_first_page(tmp_path: Path, night: Lake) -> None:
    lake = Lake(night.settings.model_copy(update={"home": tmp_path / "new"}), night.catalog, read_only=True)
    page = tonight.page(context(lake), query={})
    assert "No night is scored yet" in render(page, context(lake))
    assert lake.publications.newest(night_table(lake)) is None


def night_table(lake: Lake) -> LakeTable:
    return predictions_table(lake.settings, lake.model(MODEL), lake.dataset(DATASET))


def test_a_read_only_lake_refuses_to_be_written(sql_lake: Lake) -> None:
    assert sql_lake.publications is not None  # makes its tables
    reading = replace(sql_lake, read_only=True)
    with pytest.raises(DBAPIError, match="readonly|read-only"), reading.engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE written (a INTEGER)"))
    with pytest.raises(DBAPIError, match="readonly|read-only"), reading.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM publications"))
    reading.engine.dispose()

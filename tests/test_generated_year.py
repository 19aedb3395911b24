"""The generated year is what its users rely on: the same each time, read by the product's own readers, as large as
promised.
"""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from config.calendar import Interval
from lake.lake import Lake
from monitoring.alerting.actions import read_actions
from monitoring.alerting.alarms import open_alarms
from monitoring.alerting.deliveries import running_deliveries
from monitoring.alerting.runs import read_runs
from monitoring.pages import drift_report, retraining, tonight
from monitoring.pages import model as model_page
from monitoring.pages.page import Context, Page, Viewer
from monitoring.retraining_requests import read_requests
from serving.predictions import predictions_table
from tests import generated_year
from training.registry.decision import read_decisions

NIGHTS = 50


@pytest.fixture(scope="module")
def season(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return generated_year.fill(tmp_path_factory.mktemp("one") / "var", nights=NIGHTS)


def _rows(home: Path, table: str, columns: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(home / "nightfleet.db") as connection:
        return sorted(connection.execute(f"SELECT {columns} FROM {table}").fetchall(), key=repr)


def test_the_same_seed_gives_the_same_rows_and_another_gives_others(season: Lake, tmp_path: Path) -> None:
    columns = 'subject, about_date, "check", "column", segment, value, status'
    again = generated_year.fill(tmp_path / "again", nights=NIGHTS)
    other = generated_year.fill(tmp_path / "other", nights=NIGHTS, seed=8)
    first = _rows(season.settings.home, "metrics", columns)
    assert _rows(again.settings.home, "metrics", columns) == first
    assert _rows(other.settings.home, "metrics", columns) != first


def test_it_is_sixteen_models_of_thirty_features_in_four_data_sets(season: Lake) -> None:
    assert (len(season.catalog.datasets), len(season.catalog.models)) == (4, 16)
    assert {len(season.catalog.feature_columns(model)) for model in season.catalog.models} == {30}
    judged = _rows(season.settings.home, "metrics", 'DISTINCT subject, about_date, "check", "column"')
    assert sum(row[0] == "parcel_delay" and row[2] == "drift_psi" for row in judged) == 30 * NIGHTS


def test_what_is_planted_is_found_by_the_products_own_readers(season: Lake) -> None:
    newest = {
        model.name: season.publications.newest(predictions_table(season.settings, model, season.dataset(model.dataset)))
        for model in season.catalog.models
    }
    behind = [
        name for name, publication in newest.items() if publication and publication.data_date < generated_year.LAST
    ]
    assert behind == ["turbine_duration"]
    alarms = open_alarms(season, [model.name for model in season.catalog.models])
    assert ("parcel_demand", "drift_share") in {(alarm.subject, alarm.check) for alarm in alarms}
    assert {(alarm.subject, alarm.check) for alarm in alarms if alarm.acknowledged} == {("parcel_demand", "drift_psi")}
    assert {(alarm.subject, alarm.check) for alarm in alarms if alarm.silenced_until} == {("parcel_delay", "null_rate")}
    [failed] = [run for run in read_runs(season) if run.state == "failed"]
    assert (failed.subject, failed.kind) == ("turbine_duration", "score")
    assert any(not action.done for action in read_actions(season))
    assert [decision.verdict for decision in read_decisions(season, "store_duration")][-1] == "refuse"
    assert (
        sum(read_requests(season, "parcel_delay")["actor"].to_pylist().count(actor) for actor in ("policy", "person"))
        == NIGHTS + 1
    )
    last_week = Interval(generated_year.LAST - timedelta(days=6), generated_year.LAST + timedelta(days=1))
    assert (
        len(season.publications.current(predictions_table(season.settings, season.model("bus_wear")), last_week)) == 7
    )


def test_a_rollout_goes_on_and_is_shown(season: Lake) -> None:
    models = [model.name for model in season.catalog.models]
    [(name, delivery)] = running_deliveries(season, models).items()
    assert (name, delivery.rollout.step, delivery.nights, len(delivery.harms)) == ("store_demand", 2, 9, 2)
    context = Context(season, Viewer("ann", "admin"), generated_year.NOW, tuple(models), ("stores",))
    page = model_page.page(context, query={}, model=name)
    assert [chart.name for chart in page.charts] == ["history", "delivery"]
    assert [line["what"] for line in page.table("rollout_lines").rows] == ["next step", "next step", "started"]


def test_a_night_has_one_verdict_and_its_alarms_one_count_on_every_page(season: Lake) -> None:
    models, datasets = ([part.name for part in parts] for parts in (season.catalog.models, season.catalog.datasets))
    context = Context(season, Viewer("ann", "viewer"), generated_year.NOW, tuple(models), tuple(datasets))
    rows = {season.model(name).title: name for name in models}
    seen = set()
    for row in tonight.page(context, query={}).tables[0].rows:
        name = rows[row["model"]]
        page = model_page.page(context, query={}, model=name)
        night = drift_report.page(context, query={}, model=name, night=str(row["night"])).values
        alarms = _of_model(retraining.page(context, query={"model": name}), name)
        assert page.values["standing"]["status"] == row["status"], name
        if row["night"] == generated_year.LAST:
            assert night["standing"].status == row["status"], name
            assert night["waits"] == ""
        else:  # the night that is expected is another one, and the page says so
            assert (night["standing"].status, row["status"]) == ("healthy", "failing")
            assert night["waits"].startswith(f"Tonight, where {generated_year.LAST} is expected, the model is failing:")
        said = row["alarms"]
        assert page.values["standing"]["said"].startswith(f"alarms: {said}" if said != "none" else ""), name
        states = [alarm["state"].split()[0] for alarm in alarms]
        counted = [(states.count(state), state) for state in ("open", "acknowledged", "silenced")]
        assert said == (", ".join(f"{count} {state}" for count, state in counted if count) or "none"), name
        shares = [alarm for alarm in alarms if alarm["check"] == "drift_share"]
        assert all(f"drift since {alarm['since']:%m-%d}" in row["cause"] for alarm in shares), name
        seen |= {row["status"]} | ({"a share"} if shares else set())
    assert seen == {"failing", "late", "degraded", "healthy", "a share"}


def _of_model(page: Page, model: str) -> list[dict[str, Any]]:
    return [dict(row) for row in page.table("alarms").rows if row["subject"] == model]

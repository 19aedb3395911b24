from __future__ import annotations

import multiprocessing
import os
import signal
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import lake.projection
from config.calendar import Interval
from config.catalog.load import load_catalog
from config.settings import Settings
from lake.lake import Lake
from lake.lineage import PartitionNotReady
from serving.predictions import predictions_table
from serving.projection import bring_predictions, project_predictions, sql_name
from serving.score import rescore, score
from tests import toy
from tests.serving.scenario import (
    FIRST_CHAMPION,
    MODEL,
    promote,
    publish_inputs,
    restate_features,
    scored_nights,
    use_linear,
)

LATER = date(2024, 1, 23)


@pytest.fixture
def scored(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """Four nights, scored, not yet in SQL."""
    use_linear(monkeypatch)
    publish_inputs(toy_lake)
    promote(toy_lake, 1)
    score(toy_lake, MODEL, scored_nights(), run_id="r1")
    return toy_lake


@pytest.fixture(params=["sqlite", "postgres"])
def projected(request: pytest.FixtureRequest, toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """The same, in SQL, on both databases."""
    found = toy_lake
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
        found = Lake(toy_lake.settings.model_copy(update={"sql_url": url}), toy_lake.catalog)
        everything = sa.MetaData()
        everything.reflect(found.engine)
        everything.drop_all(found.engine)
    use_linear(monkeypatch)
    publish_inputs(found)
    promote(found, 1)
    score(found, MODEL, scored_nights(), run_id="r1")
    project_predictions(found, MODEL, scored_nights(), run_id="r1")
    return found


def sql_rows(found: Lake) -> list[dict[str, Any]]:
    table = sa.Table(sql_name(MODEL), sa.MetaData(), autoload_with=found.engine)
    with found.engine.connect() as connection:
        return [
            dict(row)
            for row in connection.execute(
                sa.select(table).order_by(table.c.data_date, table.c.prediction_id)
            ).mappings()
        ]


def current_rows(found: Lake) -> list[dict[str, Any]]:
    return [row for row in sql_rows(found) if row["superseded_at"] is None]


def lake_rows(found: Lake) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = predictions_table(found.settings, found.model(MODEL)).read().to_pylist()
    return sorted(rows, key=lambda row: (row["data_date"], row["prediction_id"]))


def assert_sql_equals_the_lake(found: Lake) -> None:
    for in_sql, in_lake in zip(current_rows(found), lake_rows(found), strict=True):
        for name, value in in_lake.items():
            seen = in_sql[name]
            assert seen == (
                value.replace(tzinfo=seen.tzinfo) if name == "target_time_utc" and seen.tzinfo is None else value
            ), name


def test_sql_holds_the_rows_of_the_lake_to_the_last_bit(projected: Lake) -> None:
    assert len(sql_rows(projected)) == 120
    assert_sql_equals_the_lake(projected)


def test_a_prediction_is_found_by_an_index(projected: Lake) -> None:
    indexes = sa.inspect(projected.engine).get_indexes(sql_name(MODEL))
    assert ["prediction_id"] in [index["column_names"] for index in indexes]


def test_again_writes_nothing(projected: Lake) -> None:
    before = sql_rows(projected)
    again = project_predictions(projected, MODEL, scored_nights(), run_id="r2")
    assert (again.rows, again.committed, again.details["rows_written"]) == (120, 0, 0)
    assert sql_rows(projected) == before


def test_replaced_predictions_stay_with_the_instant_of_their_replacement(projected: Lake) -> None:
    before = {row["prediction_id"] for row in current_rows(projected) if row["data_date"] == LATER}
    restate_features(projected, LATER)
    rescore(projected, MODEL, scored_nights(), run_id="person")
    result = project_predictions(projected, MODEL, scored_nights(), run_id="person")
    assert result.details["superseded_rows"] == 30
    replaced = [row for row in sql_rows(projected) if row["superseded_at"] is not None]
    assert {row["prediction_id"] for row in replaced} == before
    assert {row["data_date"] for row in replaced} == {LATER}
    assert_sql_equals_the_lake(projected)


def test_rows_deleted_in_sql_come_back_with_the_next_night(projected: Lake) -> None:
    table = sa.Table(sql_name(MODEL), sa.MetaData(), autoload_with=projected.engine)
    with projected.engine.begin() as connection:
        connection.execute(table.delete().where(table.c.data_date == FIRST_CHAMPION))
    assert len(current_rows(projected)) == 90
    result = project_predictions(projected, MODEL, Interval.of(LATER), run_id="r2")
    assert result.details["repaired_nights"] == [str(FIRST_CHAMPION)]
    assert_sql_equals_the_lake(projected)


def test_a_night_whose_projection_failed_is_repaired_by_the_next_run(scored: Lake) -> None:
    nights = list(scored_nights())
    result = project_predictions(scored, MODEL, Interval.of(nights[-1]), run_id="r2")
    assert result.rows == 30
    assert result.committed == 4
    assert result.details["repaired_nights"] == [str(day) for day in nights[:-1]]
    assert len(current_rows(scored)) == 120


def test_a_night_that_is_not_scored_is_an_error(scored: Lake) -> None:
    night = date(2024, 1, 25)
    with pytest.raises(
        PartitionNotReady,
        match=(
            rf"{MODEL}/predictions has no partition 2024-01-25 \(latest is 2024-01-24\).\n.*in run r9 .*Run the scoring"
        ),
    ):
        project_predictions(scored, MODEL, Interval.of(night), run_id="r9")


def _die_while_rows_are_written(settings: Settings) -> None:
    load = lake.projection._load

    def load_and_die(*args: Any, **kwargs: Any) -> None:
        load(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    lake.projection._load = load_and_die
    project_predictions(Lake(settings, load_catalog(settings)), MODEL, scored_nights(), run_id="killed")


def test_killed_in_the_middle_nothing_is_seen_and_a_retry_is_whole(scored: Lake) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die_while_rows_are_written, args=(scored.settings,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not sa.inspect(scored.engine).has_table(sql_name(MODEL)) or not sql_rows(scored)
    project_predictions(scored, MODEL, scored_nights(), run_id="retry")
    assert_sql_equals_the_lake(scored)


def test_an_empty_night_is_projected_as_such(scored: Lake) -> None:
    table = predictions_table(scored.settings, scored.model(MODEL))
    toy.publish_rows(scored, table, table.schema.empty_table(), Interval.of(LATER))
    result = project_predictions(scored, MODEL, Interval.of(LATER), run_id="r2")
    assert result.rows == 0
    assert {row["data_date"] for row in current_rows(scored)} == {*scored_nights()} - {LATER}


def test_a_lost_database_comes_back_with_all_nights_and_their_replaced_rows(projected: Lake) -> None:
    """Delta keeps what was replaced: SQL that is made anew says of each row from when to when it was current."""
    restate_features(projected, LATER)
    rescore(projected, MODEL, scored_nights(), run_id="person")
    project_predictions(projected, MODEL, scored_nights(), run_id="person")
    before = sql_rows(projected)
    assert sum(row["superseded_at"] is not None for row in before) == 30
    everything = sa.MetaData()
    everything.reflect(projected.engine)
    everything.drop_all(projected.engine)
    opened = Lake(projected.settings, projected.catalog)
    project_predictions(opened, MODEL, Interval.of(scored_nights().last), run_id="next")
    assert sql_rows(opened) == before
    assert bring_predictions(opened, MODEL, anew=True) == 120
    assert sql_rows(opened) == before


def test_replaced_rows_whose_files_are_gone_are_named(projected: Lake, caplog: pytest.LogCaptureFixture) -> None:
    table = predictions_table(projected.settings, projected.model(MODEL))
    (former,) = table.files([LATER])
    restate_features(projected, LATER)
    rescore(projected, MODEL, scored_nights(), run_id="person")
    Path(former).unlink()
    with projected.engine.begin() as connection:
        connection.execute(sa.text(f"DELETE FROM {sql_name(MODEL)}"))
    bring_predictions(projected, MODEL)
    assert_sql_equals_the_lake(projected)
    assert f"{table.name}: rows of data date {LATER}, committed at" in caplog.text

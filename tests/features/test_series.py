"""Forecasts: which steps of which series a night scores, and what a seasonal naive says of them."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from config.calendar import ONE_DAY, Interval, cutoff
from config.catalog.base import BadCatalog
from config.catalog.load import load_catalog
from features.labels import baseline, baseline_query, register_rows
from features.retrieval import spine
from lake.lake import Lake
from lake.tables import CLOSED_COLUMN, valid_table
from serving.predictions import entity_types
from tests import series, toy

NIGHT = date(2024, 1, 20)
NIGHTS = Interval.closed(date(2024, 1, 2), NIGHT)


def local(day: date) -> datetime:
    return cutoff(day - ONE_DAY, series.ZONE)


def scored(lake: Lake, night: date) -> dict[str, list[datetime]]:
    rows = spine(lake, series.MODEL, Interval.of(night)).table()
    steps: dict[str, list[datetime]] = {}
    for row in rows.to_pylist():
        assert row["target_time_utc"] == row["step_utc"] >= row["event_timestamp"] == cutoff(night, series.ZONE)
        steps.setdefault(row["server"], []).append(row["step_utc"])
    return steps


def test_every_step_of_the_horizon_of_every_series_that_the_night_knows(tmp_path: Path) -> None:
    lake = series.lake_of(tmp_path)
    early, late = NIGHT - ONE_DAY, NIGHT
    rows = [
        ("a", local(early), 1.0, early, 0),
        ("b", local(NIGHT), 1.0, late, 0),
        ("b", local(NIGHT), 2.0, NIGHT + ONE_DAY, 1),  # corrected: still there
        ("gone", local(NIGHT) - timedelta(days=3), 1.0, early, 0),  # its newest step is four days old at the cutoff
        ("unborn", local(NIGHT), 1.0, NIGHT + ONE_DAY, 0),  # came a night later
    ]
    series.publish_loads(lake, rows, Interval(early, NIGHT + 2 * ONE_DAY))
    ahead = [cutoff(NIGHT, series.ZONE) + step * series.SIX_HOURS for step in range(8)]
    assert scored(lake, NIGHT) == {"a": ahead, "b": ahead}
    assert set(scored(lake, NIGHT + ONE_DAY)) == {"a", "b", "unborn"}
    assert set(scored(lake, early)) == {"a", "gone"}
    bulk = spine(lake, series.MODEL, Interval(early, NIGHT + 2 * ONE_DAY))
    assert [row["server"] for row in bulk.table().to_pylist() if row["data_date"] == NIGHT] == ["a"] * 8 + ["b"] * 8
    assert [item.data_date for item in bulk.inputs[NIGHT]] == [early, NIGHT]
    assert bulk.too_late == 0
    assert entity_types(lake.model(series.MODEL), lake.dataset("servers")) == {
        "server": "string",
        "step_utc": "timestamp",
    }


def test_without_a_limit_a_series_that_stopped_is_scored_on(tmp_path: Path) -> None:
    lake = series.lake_of(tmp_path, model=series.MODEL_YAML.replace(", active_within: 3 days", ""))
    series.publish_loads(lake, [("a", local(NIGHTS.start), 1.0, NIGHTS.start, 0)], NIGHTS)
    assert set(scored(lake, NIGHT)) == {"a"}
    assert [item.data_date for item in spine(lake, series.MODEL, Interval.of(NIGHT)).inputs[NIGHT]] == list(NIGHTS)


def test_thirty_days_are_local_days_whatever_the_clocks_do(tmp_path: Path) -> None:
    night = date(2024, 3, 20)  # summer time begins on the 31st
    model = series.MODEL_YAML.replace("every: 6 hours, horizon: 2 days", "every: 1 day, horizon: 30 days")
    lake = series.lake_of(tmp_path, model=model.replace("embargo: 2 days", "embargo: 30 days"))
    series.publish_loads(lake, [("a", local(night), 1.0, night, 0)], Interval.of(night))
    assert scored(lake, night) == {"a": [local(night + timedelta(days=1 + day)) for day in range(30)]}


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("entity: [server, step_utc]", "entity: [rack, step_utc]", "rack': is not a column of table loads"),
        ("entity: [server, step_utc]", "entity: [step_utc, server]", "must be a timestamp column"),
        ("entity: [server, step_utc]", "entity: [server, day_utc]", "when an entity was last seen"),
        ("embargo: 2 days", "embargo: 0 days", "labels of training lie in the test's nights"),
        ("season: 7 days", "season: 36 hours", "not a whole number of days"),
        ("baseline: seasonal_naive, season: 7 days", "baseline: seasonal_naive", "needs it"),
        ("baseline: seasonal_naive, season: 7 days", "season: 7 days", "belongs to the baseline seasonal_naive"),
        ("every: 6 hours", "every: 5 hours", "is not a whole number of steps"),
        ("gate: pinball,", "gate: pinball, objective: mean,", "objective: median"),
    ],
)
def test_a_spine_of_series_that_cannot_be_is_refused_with_its_key(
    old: str, new: str, text: str, tmp_path: Path
) -> None:
    assert old in series.MODEL_YAML
    with pytest.raises(BadCatalog, match=text):
        series.lake_of(tmp_path, model=series.MODEL_YAML.replace(old, new))


def test_a_series_whose_rows_are_closed_is_gone_from_that_night_on(tmp_path: Path) -> None:
    dataset = series.DATASET_YAML.replace(
        "    key: [server, step_utc]", "    deletes: close\n    key: [server, step_utc]"
    )
    lake = series.lake_of(tmp_path, dataset=dataset)
    table = valid_table(lake.settings, lake.dataset("servers"), "loads")
    night, closed = NIGHT, NIGHT + ONE_DAY
    rows = [
        {"server": server, "step_utc": local(night), "load": 1.0, "known_at_utc": local(night), "revision": revision,
         "data_date": day, CLOSED_COLUMN: day == closed}
        for server, day, revision in (("a", night, 0), ("b", night, 0), ("b", closed, 1))
    ]  # fmt: skip
    toy.publish_rows(lake, table, pa.Table.from_pylist(rows, schema=table.schema), Interval.closed(night, closed))
    assert [set(scored(lake, day)) for day in (night, closed)] == [{"a", "b"}, {"a"}]


# ---- seasonal naive --------------------------------------------------------------------------------------------


def said(lake: Lake, night: date) -> dict[datetime, float | None]:
    return {row["step_utc"]: row["baseline"] for row in baseline(lake, series.MODEL, Interval.of(night)).to_pylist()}


def test_a_seasonal_naive_says_the_newest_season_that_the_night_knew(tmp_path: Path) -> None:
    """The season before the step; further back where that came too late, holds no value, or lies in the horizon."""
    model = series.MODEL_YAML.replace("season: 7 days", "season: 1 day")
    lake = series.lake_of(tmp_path, model=model)
    cut = cutoff(NIGHT, series.ZONE)
    six, day = series.SIX_HOURS, ONE_DAY
    rows = [
        ("a", cut - day, 1.0, NIGHT, 0),
        ("a", cut - day, 9.0, NIGHT + day, 1),  # corrected a night later
        ("a", cut - 3 * day, 8.0, NIGHT - 2 * day, 0),  # an older season
        ("a", cut - day + six, 9.0, NIGHT + day, 0),  # came a night later
        ("a", cut - 2 * day + six, 2.0, NIGHT, 0),
        ("a", cut - day + 2 * six, None, NIGHT, 0),  # not measured
        ("a", cut - 2 * day + 2 * six, 3.0, NIGHT - day, 0),
        ("a", cut - 6 * day + 3 * six, 4.0, NIGHT - 5 * day, 0),  # five seasons are looked at, this is the sixth
    ]
    series.publish_loads(lake, rows, Interval.closed(NIGHT - 5 * day, NIGHT + day))
    expected = [1.0, 2.0, 3.0, None, 1.0, 2.0, 3.0, None]
    assert list(said(lake, NIGHT).values()) == expected
    in_bulk = baseline(lake, series.MODEL, Interval.closed(NIGHT, NIGHT + day)).to_pylist()
    assert [row["baseline"] for row in in_bulk if row["data_date"] == NIGHT] == expected


def test_a_season_is_counted_on_the_local_clock(tmp_path: Path) -> None:
    night = date(2024, 3, 31)  # 1 April's steps are of summer time, those a week before of winter time
    model = series.MODEL_YAML.replace("every: 6 hours", "every: 1 day")
    lake = series.lake_of(tmp_path, model=model)
    rows = [("a", local(date(2024, 3, 25) + timedelta(days=day)), float(day), night, 0) for day in range(7)]
    series.publish_loads(lake, rows, Interval.of(night))
    assert list(said(lake, night).values()) == [0.0, 1.0]


def test_the_scale_of_a_series_is_how_far_its_seasons_lay_apart_as_the_night_knew_them(tmp_path: Path) -> None:
    model = series.MODEL_YAML.replace("season: 7 days", "season: 1 day").replace("gate: pinball", "gate: mase")
    lake = series.lake_of(tmp_path, model=model)
    cut, day = cutoff(NIGHT, series.ZONE), ONE_DAY
    rows = [
        ("a", cut - day, 1.0, NIGHT, 0),
        ("a", cut - 2 * day, 3.0, NIGHT - day, 0),
        ("a", cut - 2 * day, 99.0, NIGHT + day, 1),  # corrected a night later
        ("a", cut - 4 * day, 7.0, NIGHT - 3 * day, 0),  # a season without its neighbour
        ("a", cut - day + series.SIX_HOURS, 10.0, NIGHT, 0),
        ("a", cut - 2 * day + series.SIX_HOURS, 16.0, NIGHT - day, 0),
        ("b", cut - day, 5.0, NIGHT, 0),  # one season alone
        ("c", cut - day, 5.0, NIGHT, 0),
        ("c", cut - 2 * day, 5.0, NIGHT - day, 0),  # it never changed
    ]
    series.publish_loads(lake, rows, Interval.closed(NIGHT - 5 * day, NIGHT + day))

    def scales(nights: Interval) -> dict[str, set[float | None]]:
        with lake.duckdb() as connection:
            register_rows(connection, "asked", spine(lake, series.MODEL, nights, folder=tmp_path).path)
            query = baseline_query(lake, series.MODEL, connection, "asked", last=nights.last)
            asked = f"SELECT server, nf__scale FROM ({query.sql}) WHERE data_date = DATE '{NIGHT}'"
            scaled = connection.sql(asked).fetchall()
        return {server: {scale for name, scale in scaled if name == server} for server in ("a", "b", "c")}

    # Both days of the horizon look back at 3 - 1; the first alone at 16 - 10.
    assert scales(Interval.of(NIGHT)) == {"a": {(2 + 6 + 2 + 6) / 4}, "b": {None}, "c": {0.0}}
    assert scales(Interval.closed(NIGHT, NIGHT + day)) == scales(Interval.of(NIGHT)), "in bulk as by night"


def test_without_a_season_errors_cannot_be_scaled(tmp_path: Path) -> None:
    model = series.MODEL_YAML.replace("gate: pinball", "gate: mase").replace(
        "baseline: seasonal_naive, season: 7 days", "baseline: median"
    )
    with pytest.raises(BadCatalog, match=r"outputs.load.gate.*'mase'.*say which season"):
        series.lake_of(tmp_path, model=model)


def test_the_catalogs_digest_is_that_of_before_seasons(tmp_path: Path) -> None:
    lake = series.lake_of(tmp_path, model=series.MODEL_YAML.replace(" baseline: seasonal_naive, season: 7 days,", ""))
    stored = load_catalog(lake.settings).model(series.MODEL).model_dump_json(by_alias=True)
    assert "season" not in stored


@pytest.mark.parametrize(
    "entity", ["begins", "cutoff_utc_", "end_utc", "days_utc", "seasons", "earlier_utc", "back", "asked", "l"]
)
def test_an_entity_called_as_a_word_of_our_sql_is_one_like_any_other(tmp_path: Path, entity: str) -> None:
    def named(text: str) -> str:
        return text.replace("server,", f"{entity},").replace("      server:", f"      {entity}:")

    model = named(series.MODEL_YAML).replace("columns: [server]", f"columns: [{entity}]")
    lake = series.lake_of(tmp_path, dataset=named(series.DATASET_YAML), model=model)
    table = valid_table(lake.settings, lake.dataset("servers"), "loads")
    nights = Interval.closed(NIGHT - 9 * ONE_DAY, NIGHT)
    names = (entity, "step_utc", "load", "data_date", "revision")
    came = series.as_known(series.generate(nights, ("a",)))
    known = [dict(zip(names, row, strict=True)) | {"known_at_utc": row[1]} for row in came if row[3] <= NIGHT]
    toy.publish_rows(lake, table, pa.Table.from_pylist(known, schema=table.schema), nights)
    said = baseline(lake, series.MODEL, Interval.of(NIGHT)).to_pylist()
    loads = {row[1]: row[2] for row in came}
    assert len(said) == 8
    assert [row["baseline"] for row in said] == [loads[row["step_utc"] - timedelta(days=7)] for row in said]
    assert {row[entity] for row in said} == {"a"}

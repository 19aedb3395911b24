"""What goes wrong with forecasts of series: a horizon that history cannot fill, a series that stops, demand below
zero.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from config.calendar import ONE_DAY, Interval, cutoff
from features.ingest import ingest
from features.labels import labels
from features.retrieval import spine
from features.training_set import NotEnoughHistory, build_training_set
from features.validate import validate
from lake.tables import quarantine_table, valid_table
from tests import series, toy

MODEL = series.MODEL
NIGHT = date(2024, 2, 5)
NIGHTS = Interval.closed(date(2024, 2, 1), NIGHT)


def test_a_horizon_longer_than_history_is_refused_with_what_it_needs(tmp_path: Path) -> None:
    model = series.MODEL_YAML.replace("horizon: 2 days", "horizon: 60 days").replace("embargo: 2", "embargo: 59")
    lake = series.lake_of(tmp_path, model=model)
    with pytest.raises(NotEnoughHistory, match=r"a horizon of 60 days.*servers begins with 2024-01-01") as refused:
        build_training_set(lake, MODEL, date(2024, 2, 29), tmp_path)
    assert "Train as of 2024-" in str(refused.value)
    assert "shorten split or horizon" in str(refused.value)


def test_a_series_that_stops_is_scored_while_it_counts_as_active_and_its_missing_labels_are_missing(
    tmp_path: Path,
) -> None:
    lake = series.lake_of(tmp_path)
    rows = [
        row
        for row in series.as_known(series.generate(NIGHTS))
        if row[0] != "c" or row[1] < cutoff(NIGHTS.start, series.ZONE)
    ]
    series.publish_loads(lake, rows, Interval(NIGHTS.start, NIGHT + 5 * ONE_DAY))
    alive = {night: set(spine(lake, MODEL, Interval.of(night)).table()["server"].to_pylist()) for night in NIGHTS}
    last = NIGHTS.start + 2 * ONE_DAY  # the day after, its newest step began more than three days before the cutoff
    assert alive == {night: {"a", "b", "c"} if night <= last else {"a", "b"} for night in NIGHTS}
    known = labels(lake, MODEL, Interval.of(NIGHTS.start + ONE_DAY), as_of=NIGHT)
    by_server = dict.fromkeys("abc", 0)
    for row in known.to_pylist():
        by_server[row["server"]] += row["label"] is None
    assert by_server == {"a": 0, "b": 0, "c": 8}


def test_a_series_that_comes_back_is_scored_from_that_night_on(tmp_path: Path) -> None:
    lake = series.lake_of(tmp_path)
    begin = cutoff(NIGHTS.start - ONE_DAY, series.ZONE)
    series.publish_loads(lake, [("a", begin, 1.0, NIGHTS.start, 0)], Interval.of(NIGHTS.start))
    back = Interval.closed(NIGHTS.start + ONE_DAY, NIGHT)
    series.publish_loads(lake, [("a", cutoff(NIGHT - ONE_DAY, series.ZONE), 1.0, NIGHT, 0)], back)
    scored = {night: spine(lake, MODEL, Interval.of(night)).rows for night in NIGHTS}
    assert scored == {night: 0 if night == NIGHT - ONE_DAY else 8 for night in NIGHTS}


def test_demand_below_zero_is_set_aside_and_is_no_label(tmp_path: Path) -> None:
    lake = series.lake_of(tmp_path)
    nights = Interval.closed(series.FIRST, series.FIRST + 4 * ONE_DAY)
    rows = series.generate(nights)
    broken = rows.to_pylist()
    broken[5]["load"] = -3.0  # server a, the second step of the second day
    toy.write_csv(tmp_path / "source" / "loads.csv", rows.from_pylist(broken, schema=rows.schema))
    for stage in (ingest, validate):
        stage(lake, "servers", nights, run_id=stage.__name__)
    dataset = lake.dataset("servers")
    assert quarantine_table(lake.settings, dataset, "loads").read(nights)["load"].to_pylist() == [-3.0]
    assert min(valid_table(lake.settings, dataset, "loads").read(nights)["load"].to_pylist()) > 0
    series_rows = labels(lake, MODEL, Interval.of(nights.start), as_of=nights.last).to_pylist()
    assert [(row["server"], row["step_utc"]) for row in series_rows if row["label"] is None] == [
        ("a", broken[5]["step_utc"])
    ]

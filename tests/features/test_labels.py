from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from config.calendar import ONE_DAY, Interval, cutoff
from config.catalog.base import BadCatalog
from features.labels import baseline, is_mature, labels, newest_mature
from lake.lake import Lake
from lake.tables import valid_table
from tests import toy
from tests.features.test_retrieval import HOURLY, HOURS_YAML

NIGHTS = Interval.closed(date(2024, 1, 1), date(2024, 1, 10))
MODEL = "ride_minutes"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    found = toy.toy_lake(tmp_path)
    toy.publish_valid(found, NIGHTS)
    return found


def by_ride(rows: pa.Table, night: date) -> dict[int, float | None]:
    return {row["ride"]: row["label"] for row in rows.to_pylist() if row["data_date"] == night}


def outcome(lake: Lake, data_date: date, **values: Any) -> None:
    """Add one row to a night's outcomes, whatever it holds already."""
    table = valid_table(lake.settings, lake.dataset("rides"), "outcomes")
    row = {
        "vehicle": "v1",
        "known_at_utc": cutoff(data_date, toy.TIME_ZONE),
        "end_utc": cutoff(data_date, toy.TIME_ZONE),
        "data_date": data_date,
    } | values
    rows = pa.concat_tables([table.read([data_date]), pa.Table.from_pylist([row], schema=table.schema)])
    toy.publish_rows(lake, table, rows, Interval.of(data_date))


def test_labels_of_a_night_are_the_outcomes_of_its_rides(lake: Lake) -> None:
    night = date(2024, 1, 5)
    found = labels(lake, MODEL, Interval.of(night), as_of=NIGHTS.last)
    outcomes = {row["ride"]: row["minutes"] for row in toy.generate(Interval.of(night + ONE_DAY)).outcomes.to_pylist()}
    assert by_ride(found, night) == outcomes
    assert found["label"].null_count == sum(value is None for value in outcomes.values()) > 0  # some never come
    assert found.column_names == ["event_date", "ride", "data_date", "label"]


def test_no_label_is_known_before_it_came(lake: Lake) -> None:
    """As of T a label counts only if T's partition, or an earlier one, brought it: whatever lies in the lake by now."""
    night = date(2024, 1, 5)
    outcomes = valid_table(lake.settings, lake.dataset("rides"), "outcomes").read().to_pylist()
    arrived = {(row["event_date"], row["ride"]): row["data_date"] for row in outcomes if row["minutes"] is not None}
    for as_of in NIGHTS:
        for row in labels(lake, MODEL, Interval.of(night), as_of=as_of).to_pylist():
            known = arrived.get((row["event_date"], row["ride"]), date.max) <= as_of
            assert (row["label"] is not None) == known, f"{row} as of {as_of}"


def test_a_correction_counts_from_the_night_it_came(lake: Lake) -> None:
    night = date(2024, 1, 3)
    ride, first = next(
        (r, m)
        for r, m in by_ride(labels(lake, MODEL, Interval.of(night), as_of=date(2024, 1, 6)), night).items()
        if m is not None
    )
    outcome(lake, date(2024, 1, 7), event_date=night + ONE_DAY, ride=ride, minutes=599.0, revision=1)
    assert by_ride(labels(lake, MODEL, Interval.of(night), as_of=date(2024, 1, 6)), night)[ride] == first
    assert by_ride(labels(lake, MODEL, Interval.of(night), as_of=date(2024, 1, 7)), night)[ride] == 599.0


def test_maturity_is_counted_from_the_last_target_time(lake: Lake) -> None:
    night = date(2024, 1, 5)
    assert not is_mature(lake, MODEL, night, as_of=night + ONE_DAY)
    assert is_mature(lake, MODEL, night, as_of=night + 2 * ONE_DAY)
    assert newest_mature(lake, MODEL, night + 2 * ONE_DAY) == night


@pytest.mark.parametrize(
    "as_of",
    [*Interval.closed(date(2024, 3, 29), date(2024, 4, 1)), *Interval.closed(date(2024, 10, 26), date(2024, 10, 28))],
)
def test_the_newest_mature_date_is_the_last_that_is(lake: Lake, as_of: date) -> None:
    """Also on the days the clocks change, when a day's length is not that of `matures_after`."""
    newest = newest_mature(lake, MODEL, as_of)
    assert is_mature(lake, MODEL, newest, as_of=as_of)
    assert not is_mature(lake, MODEL, newest + ONE_DAY, as_of=as_of)


# ---- a row-wise baseline ---------------------------------------------------------------------------------------


def hour(begin: datetime, value: float, data_date: date, revision: int = 0) -> dict[str, Any]:
    return {"hour_utc": begin, "rides": value, "known_at_utc": begin, "revision": revision, "data_date": data_date}


def publish_hours(lake: Lake, rows: list[dict[str, Any]], interval: Interval) -> None:
    table = valid_table(lake.settings, lake.dataset("rides"), "hours")
    toy.publish_rows(lake, table, pa.Table.from_pylist(rows, schema=table.schema), interval)


@pytest.fixture
def hourly(tmp_path: Path) -> Lake:
    return toy.toy_lake(tmp_path, dataset=HOURS_YAML, model=HOURLY)


def test_the_same_hour_last_week_is_the_same_hour_on_the_clock(hourly: Lake) -> None:
    night = date(2024, 3, 31)  # its rows are of 1 April, summer time; a week before it was winter time
    begin = cutoff(date(2024, 3, 24), toy.TIME_ZONE)
    publish_hours(
        hourly,
        [hour(begin + timedelta(hours=h), float(h), date(2024, 3, 25)) for h in range(24)],
        Interval.closed(date(2024, 3, 25), night),
    )
    found = baseline(hourly, MODEL, Interval.of(night))
    assert found["baseline"].to_pylist() == [float(h) for h in range(24)]


def test_the_baseline_never_sees_what_its_night_did_not_know(hourly: Lake) -> None:
    night, target = date(2024, 1, 14), date(2024, 1, 8)
    begin = cutoff(target - ONE_DAY, toy.TIME_ZONE)
    rows = [
        hour(begin, 1.0, target),
        hour(begin, 2.0, night, 1),
        hour(begin, 3.0, night + ONE_DAY, 2),
        hour(begin + timedelta(hours=1), 4.0, night + ONE_DAY),
    ]
    publish_hours(hourly, rows, Interval.closed(target, night + ONE_DAY))
    found = baseline(hourly, MODEL, Interval.of(night))["baseline"].to_pylist()
    assert found[:2] == [2.0, None]
    assert baseline(hourly, MODEL, Interval.closed(night, night + ONE_DAY))["baseline"].to_pylist()[:2] == [2.0, None]


def test_a_baseline_of_one_number_is_not_row_wise(lake: Lake) -> None:
    found = baseline(lake, MODEL, Interval.of(date(2024, 1, 5)))
    assert found["baseline"].null_count == found.num_rows == 30


def test_the_same_hour_last_week_needs_a_calendar(tmp_path: Path) -> None:
    lake = toy.toy_lake(tmp_path, model=toy.MODEL_YAML.replace("baseline: median", "baseline: same_hour_last_week"))
    toy.publish_valid(lake, NIGHTS)
    with pytest.raises(BadCatalog, match="needs a spine of steps"):
        baseline(lake, MODEL, Interval.of(date(2024, 1, 5)))

"""The taxi passengers: New York's clock, the hour it repeats, and lags at the same time of the local day."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from config.calendar import ONE_DAY, Interval, cutoff
from config.settings import ROOT
from features.labels import baseline
from features.retrieval import spine
from features.transform import compute_view
from lake.artifact import file_digest
from lake.lake import Lake
from tests.features.replays import provenance, publish_history, replay_lake, source_rows

DATA = ROOT / "features" / "sources" / "data" / "nab_taxi"
CHANGED = date(2014, 11, 2)  # 25 hours long
FIRST, LAST = CHANGED - 8 * ONE_DAY, CHANGED
ZONE = "America/New_York"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    made = replay_lake(tmp_path_factory.mktemp("taxi"), "taxi", first=FIRST)
    publish_history(made, "taxi", last=LAST)
    return made


@pytest.fixture(scope="module")
def source(lake: Lake) -> Mapping[datetime, Mapping[str, Any]]:
    rows = source_rows(lake, "taxi", "rides").to_pylist()
    return {row["half_hour_utc"].astimezone(UTC): row for row in rows}


def test_the_files_are_those_that_provenance_describes() -> None:
    for name, (size, digest) in provenance(DATA).items():
        assert ((DATA / name).stat().st_size, file_digest(DATA / name)) == (size, digest), name


def test_the_hour_that_the_clocks_repeat_has_no_count_of_its_own(
    source: Mapping[datetime, Mapping[str, Any]],
) -> None:
    assert len(source) == 10_320
    assert [at for at, row in source.items() if row["passengers"] is None] == [
        datetime(2014, 11, 2, 5, 0, tzinfo=UTC),
        datetime(2014, 11, 2, 5, 30, tzinfo=UTC),
    ]
    assert source[datetime(2014, 11, 2, 5, 0, tzinfo=UTC)]["passengers_reported"] == 39_197
    assert datetime(2014, 11, 2, 6, 0, tzinfo=UTC) not in source  # the second pass
    assert source[datetime(2014, 11, 2, 7, 0, tzinfo=UTC)]["passengers"] == 13_259  # 02:00, winter time
    assert source[datetime(2014, 7, 1, 4, 0, tzinfo=UTC)]["passengers"] == 10_844  # midnight, summer time


def test_lags_are_at_the_same_time_on_the_clock(lake: Lake, source: Mapping[datetime, Mapping[str, Any]]) -> None:
    """For each of the 50 half hours of the day of 25 hours, and for the day after it."""
    night = CHANGED - ONE_DAY
    rows = {
        row["half_hour_utc"].astimezone(UTC): row
        for row in compute_view(lake, "taxi", "ride_lags", Interval.closed(night, CHANGED)).to_pylist()
    }
    begin = cutoff(night, ZONE)
    assert len([at for at in rows if at < cutoff(CHANGED, ZONE)]) == 50
    for halves in range(50):
        shown = (begin + halves * timedelta(minutes=30), begin + (halves - 2) * timedelta(minutes=30))
        same = shown[0] if halves < 4 else shown[1]  # on the clock of the day before
        assert rows[shown[0]]["passengers_1d_ago"] == source[same - ONE_DAY]["passengers"]
    first_pass, second_pass = (datetime(2014, 11, 2, hour, tzinfo=UTC) for hour in (5, 6))
    assert rows[first_pass]["passengers_1d_ago"] == rows[second_pass]["passengers_1d_ago"] == 24_946
    assert rows[datetime(2014, 11, 3, 6, 0, tzinfo=UTC)]["passengers_1d_ago"] is None  # 01:00: never counted alone
    assert rows[datetime(2014, 11, 3, 7, 0, tzinfo=UTC)]["passengers_1d_ago"] == 13_259


def test_a_night_scores_each_half_hour_of_its_tomorrow_beside_last_week(lake: Lake) -> None:
    night = CHANGED - ONE_DAY
    assert spine(lake, "demand_forecast", Interval.of(night)).rows == 50
    said = baseline(lake, "demand_forecast", Interval.of(night))
    by_time = dict(zip(said["half_hour_utc"].to_pylist(), said["baseline"].to_pylist(), strict=True))
    week_ago = datetime(2014, 10, 26, 6, 0, tzinfo=UTC)  # 02:00, summer time
    rows = {row["half_hour_utc"]: row["passengers"] for row in source_rows(lake, "taxi", "rides").to_pylist()}
    assert by_time[datetime(2014, 11, 2, 7, 0, tzinfo=UTC)] == rows[week_ago]

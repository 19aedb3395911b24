"""Projects and when they closed: known at the closing and never before, and what the past took is known alike."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from config.calendar import Interval
from features.transform import compute_view
from lake.lake import Lake
from tests.features.replays import publish_history, replay_lake, source_rows

# Fiscal 2008 and the months around it.
FIRST, LAST = date(2001, 12, 24), date(2002, 1, 10)
SPLIT = {"train": "4 days", "validation": "2 days", "test": "2 days", "embargo": "1 day"}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    made = replay_lake(tmp_path_factory.mktemp("closings"), "project_closings", first=FIRST, split=SPLIT)
    publish_history(made, "project_closings", last=LAST)
    return made


@pytest.fixture(scope="module")
def sources(lake: Lake) -> Mapping[str, pa.Table]:
    return {table: source_rows(lake, "project_closings", table) for table in ("openings", "closings")}


def test_a_closing_is_known_in_the_fiscal_year_of_the_closing_and_not_before_the_approval(
    sources: Mapping[str, pa.Table],
) -> None:
    closings = sources["closings"]
    assert closings.num_rows == 7_935
    nights = pc.days_between(closings["approved_on"], pc.cast(closings["closed_utc"], pa.date32())).to_numpy()
    years = closings["years"].to_numpy()
    assert (nights >= 0).all()
    assert (abs(nights - 12 * years) < 12).all(), "which of the twelve nights of the year is a hash's"
    assert (years.min(), years.max()) == (0, 19)


def test_what_projects_like_it_took_is_of_those_that_have_closed(lake: Lake, sources: Mapping[str, pa.Table]) -> None:
    rows = compute_view(lake, "project_closings", "opening", Interval.of(LAST)).to_pylist()
    closings = sources["closings"]
    closed_on = pc.cast(closings["closed_utc"], pa.date32())
    known = closings.filter(pc.and_(pc.greater_equal(closed_on, FIRST), pc.less_equal(closed_on, LAST)))
    assert len(rows) == pc.sum(pc.equal(sources["openings"]["approved_on"], LAST)).as_py() > 10
    seen = 0
    for row in rows:
        for column, feature in (("country", "country_years_10y"), ("instrument", "instrument_years_3y")):
            alike = known.filter(pc.equal(known[column], row[column]))["years"]
            assert row[feature] == (pytest.approx(pc.mean(alike).as_py()) if len(alike) else None)
            seen += len(alike)
    assert seen > 0

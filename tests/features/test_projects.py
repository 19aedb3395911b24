"""The projects: fiscal years as twelve nights, ratings years after the approval, shares of what a night knows."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from collections.abc import Mapping
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from config.calendar import Interval
from config.settings import ROOT
from features.transform import compute_view
from lake.artifact import file_digest
from lake.lake import Lake
from tests.features.replays import provenance, publish_history, replay_lake, source_rows

DATA = ROOT / "features" / "sources" / "data" / "worldbank_ieg"
BEGIN = date(2001, 1, 1)  # of the fiscal year 1978
FIRST, LAST = date(2001, 6, 1), date(2001, 6, 20)
GOOD = {"Moderately Satisfactory", "Satisfactory", "Highly Satisfactory"}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Three weeks, in which the approvals of 1990 and 1991 are dealt out."""
    made = replay_lake(tmp_path_factory.mktemp("projects"), "projects", first=FIRST)
    publish_history(made, "projects", last=LAST)
    return made


@pytest.fixture(scope="module")
def sources(lake: Lake) -> Mapping[str, pa.Table]:
    return {table: source_rows(lake, "projects", table) for table in ("approvals", "ratings")}


def test_the_files_are_those_that_provenance_describes() -> None:
    for name, (size, digest) in provenance(DATA).items():
        assert ((DATA / name).stat().st_size, file_digest(DATA / name)) == (size, digest), name


def test_a_fiscal_year_is_twelve_nights(sources: Mapping[str, pa.Table]) -> None:
    with gzip.open(DATA / "project_ratings.csv.gz", "rt", newline="", encoding="utf-8-sig") as text:
        years = {
            row["Project ID"]: (int(row["Approval FY"]), int(row["Evaluation FY"])) for row in csv.DictReader(text)
        }
    assert {p for p, (approved, _) in years.items() if approved >= 1978} == set(
        sources["approvals"]["project"].to_pylist()
    )
    for row in sources["ratings"].select(["project", "approved_on", "evaluated_utc"]).to_pylist()[::50]:
        approved, evaluated = years[row["project"]]
        assert (row["approved_on"] - BEGIN).days // 12 == approved - 1978
        assert (row["evaluated_utc"].date() - BEGIN).days // 12 == evaluated - 1978
        assert row["evaluated_utc"].date() > row["approved_on"], "nobody is rated before the approval"


def test_not_rated_is_not_known(sources: Mapping[str, pa.Table]) -> None:
    ratings = sources["ratings"]
    assert "Not Rated" not in ratings["outcome"].to_pylist()
    assert 0 < ratings["outcome"].null_count <= 151


def test_the_shares_are_of_ratings_that_the_night_knows(lake: Lake, sources: Mapping[str, pa.Table]) -> None:
    rows = compute_view(lake, "projects", "project", Interval.of(LAST)).to_pylist()
    approved = sources["approvals"].filter(pc.equal(sources["approvals"]["approved_on"], LAST))
    assert {row["project"] for row in rows} == set(approved["project"].to_pylist())
    known = [
        row
        for row in sources["ratings"].to_pylist()
        if FIRST <= row["evaluated_utc"].date() <= LAST and row["outcome"] is not None
    ]
    assert len(known) > 100
    begun = Counter(
        row["country"] for row in sources["approvals"].to_pylist() if FIRST <= row["approved_on"] <= LAST
    )  # three years, 36 nights, hold all of these
    for row in rows:
        of_country = [rating["outcome"] in GOOD for rating in known if rating["country"] == row["country"]]
        assert row["country_rated_10y"] == len(of_country)
        share = (sum(of_country) + 1.5) / (len(of_country) + 2) if of_country else None
        assert row["country_good_share_10y"] == pytest.approx(share)
        assert row["country_begun_3y"] == begun[row["country"]]

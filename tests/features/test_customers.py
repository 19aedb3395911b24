"""The customers: a static table dealt to nights by a hash, labels a month later, unbilled customers kept."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from config.calendar import Interval
from config.settings import ROOT
from features.training_set import build_training_set
from features.transform import compute_view
from lake.artifact import file_digest
from lake.lake import Lake
from tests.features.replays import provenance, publish_history, replay_lake, source_rows

DATA = ROOT / "features" / "sources" / "data" / "telco_churn"
FIRST, LAST = date(2019, 8, 1), date(2019, 9, 14)
SPLIT = {"train": "6 days", "validation": "3 days", "test": "3 days", "embargo": "1 day"}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Six weeks, of which two have labels."""
    made = replay_lake(tmp_path_factory.mktemp("customers"), "customers", first=FIRST, split=SPLIT)
    publish_history(made, "customers", last=LAST)
    return made


@pytest.fixture(scope="module")
def sources(lake: Lake) -> Mapping[str, pa.Table]:
    return {table: source_rows(lake, "customers", table) for table in ("profiles", "departures")}


def test_the_files_are_those_that_provenance_describes() -> None:
    for name, (size, digest) in provenance(DATA).items():
        assert ((DATA / name).stat().st_size, file_digest(DATA / name)) == (size, digest), name


def test_every_customer_is_looked_at_once_on_a_night_of_the_replay(lake: Lake, sources: Mapping[str, pa.Table]) -> None:
    profiles, replay = sources["profiles"], lake.dataset("customers").replay
    assert replay is not None
    assert (profiles.num_rows, len(pc.unique(profiles["customer"]))) == (7_043, 7_043)
    reviewed = pc.value_counts(profiles["review_date"])
    assert (pc.min(reviewed.field(0)).as_py(), pc.max(reviewed.field(0)).as_py()) == (date(2019, 1, 1), replay.last)
    assert (len(reviewed), pc.min(reviewed.field(1)).as_py()) == (270, 14)


def test_the_order_of_arrival_says_nothing_of_the_customer(sources: Mapping[str, pa.Table]) -> None:
    joined = sources["profiles"].join(sources["departures"].select(["customer", "churn"]), "customer")
    day = pc.cast(pc.cast(joined["review_date"], pa.date32()), pa.int32()).to_numpy()
    for other in (joined["tenure_months"].to_numpy(), pc.equal(joined["churn"], "Yes").to_numpy(zero_copy_only=False)):
        assert abs(np.corrcoef(day, other)[0, 1]) < 0.03


def test_customers_of_less_than_a_month_are_kept_without_a_bill(sources: Mapping[str, pa.Table]) -> None:
    unbilled = sources["profiles"].filter(pc.is_null(sources["profiles"]["total_charges"]))
    assert unbilled.num_rows == 11
    assert set(unbilled["tenure_months"].to_pylist()) == {0}


def test_who_left_is_known_thirty_days_after_the_review_and_not_before(sources: Mapping[str, pa.Table]) -> None:
    departures = sources["departures"]
    assert pc.sum(pc.equal(departures["churn"], "Yes")).as_py() == 1_869
    late = pc.subtract(pc.cast(departures["known_utc"], pa.date32()), departures["review_date"])
    assert {span.days for span in pc.cast(pc.unique(late), pa.duration("s")).to_pylist()} == {30}


def test_a_night_has_the_features_of_its_own_customers_alone(lake: Lake) -> None:
    night = date(2019, 8, 20)
    rows = compute_view(lake, "customers", "profile", Interval.of(night))
    mine = source_rows(lake, "customers", "profiles")
    mine = mine.filter(pc.equal(mine["review_date"], night)).sort_by("customer")
    rows = rows.sort_by("customer")
    for name in ("customer", "contract", "payment_method", "total_charges"):
        assert rows[name].to_pylist() == mine[name].to_pylist()


def test_a_training_set_ends_where_labels_are_a_month_old(lake: Lake, tmp_path: Path) -> None:
    made = build_training_set(lake, "user_behavior", LAST, tmp_path)
    assert made.windows["test"].last == LAST - timedelta(days=31)
    assert made.unlabelled == {"train": 0, "validation": 0, "test": 0}
    assert set(pq.read_table(made.training_path)["label"].to_pylist()) == {0.0, 1.0}

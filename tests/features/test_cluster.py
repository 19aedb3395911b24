"""The cluster: hourly means of samples, instances that stop, and a straight line through what is known."""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Mapping
from csv import DictReader
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from config.calendar import ONE_DAY, Interval
from config.settings import ROOT
from features.retrieval import spine
from features.transform import compute_view
from lake.artifact import file_digest
from lake.lake import Lake
from tests.features.replays import provenance, publish_history, replay_lake

DATA = ROOT / "features" / "sources" / "data" / "nab_cpu"
STOPPED = date(2014, 4, 16)  # three instances send their last samples on that day
FIRST, LAST = date(2014, 4, 12), date(2014, 4, 19)
TWO, FIVE = {"ec2_825cc2", "rds_e47b3b"}, {"ec2_825cc2", "rds_e47b3b", "ec2_77c1ca", "ec2_ac20cd", "ec2_c6585a"}


@pytest.fixture(scope="module")
def samples() -> Mapping[tuple[str, datetime], list[float]]:
    """By instance and hour, read by other means than the source's."""
    hours: dict[tuple[str, datetime], list[float]] = defaultdict(list)
    with gzip.open(DATA / "cpu.csv.gz", "rt", newline="") as text:
        for row in DictReader(text):
            at = datetime.fromisoformat(row["timestamp"]).replace(minute=0, second=0, tzinfo=UTC)
            hours[row["instance"], at].append(float(row["value"]))
    return hours


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    made = replay_lake(tmp_path_factory.mktemp("cluster"), "cluster", first=FIRST)
    publish_history(made, "cluster", last=LAST)
    return made


def test_the_files_are_those_that_provenance_describes() -> None:
    for name, (size, digest) in provenance(DATA).items():
        if (DATA / name).exists():  # the others are NAB's own, of which the table says where they come from
            assert ((DATA / name).stat().st_size, file_digest(DATA / name)) == (size, digest), name


def test_a_stopped_instance_is_scored_for_two_more_nights(lake: Lake) -> None:
    for night, instances in (
        (STOPPED, FIVE),
        (STOPPED + ONE_DAY, FIVE),
        (STOPPED + 2 * ONE_DAY, TWO),
    ):
        rows = spine(lake, "resource_usage", Interval.of(night)).table()
        assert set(rows["instance"].to_pylist()) == instances
        assert rows.num_rows == 24 * len(instances)


def test_what_a_night_knows_of_an_instance(lake: Lake, samples: Mapping[tuple[str, datetime], list[float]]) -> None:
    night = date(2014, 4, 15)
    cut = datetime(2014, 4, 16, tzinfo=UTC)
    rows = compute_view(lake, "cluster", "usage_level", Interval.of(night)).to_pylist()
    assert {row["instance"] for row in rows} == FIVE
    for instance in FIVE:
        mine = sorted((row["hour_utc"].astimezone(UTC), row) for row in rows if row["instance"] == instance)
        assert [at for at, _ in mine] == [cut + timedelta(hours=hour) for hour in range(24)]
        means = [np.mean(samples[instance, cut - timedelta(hours=ago)]) for ago in range(72, 0, -1)]
        line = np.polyfit(np.arange(-72, 0), means, 1)
        for hour, (_, row) in enumerate(mine):
            assert row["last_percent"] == pytest.approx(means[-1], abs=1e-6)
            assert row["mean_24h"] == pytest.approx(np.mean(means[-24:]), abs=1e-5)
            assert row["mean_72h"] == pytest.approx(np.mean(means), abs=1e-5)
            assert row["linear_trend"] == pytest.approx(np.polyval(line, hour), abs=1e-4)

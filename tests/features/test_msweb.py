"""The web visits: the donors' bytes, users that come in their order, a last visit that nobody knows before."""

from __future__ import annotations

import gzip
import importlib.util
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from config.calendar import Interval
from config.settings import ROOT
from features.labels import labels
from features.retrieval import retrieve
from lake.artifact import file_digest
from tests.features.replays import provenance, publish_history, replay_lake, source_rows

DATA = ROOT / "features" / "sources" / "data" / "msweb"
FIRST, FIRST_TEST, LAST = date(1998, 1, 1), date(1998, 3, 2), date(1998, 3, 12)


def donors(file: str) -> dict[int, list[int]]:
    """The areas of each user, in the order of the donors' own text."""
    users: dict[int, list[int]] = {}
    with gzip.open(DATA / file, "rt", encoding="latin-1") as lines:
        for line in lines:
            cells = line.split(",")
            if cells[0] == "C":
                newest = users.setdefault(int(cells[2]), [])
            elif cells[0] == "V":
                newest.append(int(cells[1]))
    return users


@pytest.fixture(scope="module")
def users() -> dict[str, list[int]]:
    files = {"train": "anonymous-msweb.data.gz", "test": "anonymous-msweb.test.gz"}
    return {f"{part}-{user}": areas for part, file in files.items() for user, areas in donors(file).items()}


def test_the_files_are_those_that_provenance_describes() -> None:
    listed = provenance(DATA)
    assert set(listed) == {"anonymous-msweb.data.gz", "anonymous-msweb.test.gz", "anonymous-msweb.info"}
    for name, (size, digest) in listed.items():
        assert ((DATA / name).stat().st_size, file_digest(DATA / name)) == (size, digest), name


def test_what_is_read_follows_from_the_donors_own_files(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("convert", DATA / "convert.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.convert(DATA, tmp_path)
    unpacked = [gzip.decompress((folder / "visits.csv.gz").read_bytes()) for folder in (tmp_path, DATA)]
    assert unpacked[0] == unpacked[1]
    assert (tmp_path / "areas.csv").read_bytes() == (DATA / "areas.csv").read_bytes()


def test_users_come_in_their_order_the_official_test_users_last(users: dict[str, list[int]], tmp_path: Path) -> None:
    lake = replay_lake(tmp_path, "msweb", first=FIRST)
    visitors = source_rows(lake, "msweb", "visitors").sort_by([("seen_utc", "ascending"), ("user", "ascending")])
    # By day, and on a day by number: the order of the files.
    assert visitors["user"].to_pylist() == list(users)
    days = Counter(instant.date() for instant in visitors["seen_utc"].to_pylist())
    assert set(days) == {FIRST + timedelta(days=n) for n in range(70)}
    assert [days[FIRST], days[FIRST_TEST - timedelta(days=1)], days[FIRST_TEST]] == [546, 497, 500]
    last = source_rows(lake, "msweb", "next_visits")
    assert dict(zip(last["user"].to_pylist(), last["area"].to_pylist(), strict=True)) == {
        user: areas[-1] for user, areas in users.items()
    }
    activities = dict(zip(last["area"].to_pylist(), last["activity"].to_pylist(), strict=True))
    assert (activities[1034], activities[1004], activities[1000]) == ("internet explorer", "search", "other")
    assert set(activities.values()) == set(lake.model("next_activity").label_values)
    assert source_rows(lake, "msweb", "visits").num_rows == sum(map(len, users.values())) - len(users)


def test_a_night_knows_what_its_users_have_seen_and_not_the_next_visit(
    users: dict[str, list[int]], tmp_path: Path
) -> None:
    lake = replay_lake(tmp_path, "msweb", first=FIRST_TEST + timedelta(days=8))
    publish_history(lake, "msweb")
    night = Interval.of(FIRST_TEST + timedelta(days=8))
    with lake.scratch("night") as folder:
        rows = retrieve(lake, "recommendation", night, folder=folder).reader().read_all().sort_by("user")
    assert rows["user"].to_pylist() == sorted(list(users)[-1000:-500])
    for row in rows.to_pylist():
        seen = [str(area) for area in users[row["user"]][-2::-1]]
        steps = [row[f"history__recent_t{step}"] for step in range(20)]
        assert steps == [*seen[:20], *[None] * (20 - len(seen))]
        assert row["target_time_utc"] == datetime(1998, 3, 11, 8, tzinfo=UTC)
    assert labels(lake, "recommendation", night, as_of=night.start)["label"].null_count == 500
    known = labels(lake, "recommendation", night, as_of=night.end)
    assert isinstance(known, pa.Table)
    assert sorted(known["label"].to_pylist()) == sorted(float(users[user][-1]) for user in rows["user"].to_pylist())

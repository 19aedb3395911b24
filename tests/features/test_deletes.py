"""`deletes: close`: a delivery is the whole of what there is, and a key that it lacks is gone from that night on."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from config.calendar import ONE_DAY, Interval
from config.catalog.base import BadCatalog
from config.catalog.load import load_catalog
from config.settings import Settings
from features.ingest import SourceChanged, SourceShrank, ingest, restate
from features.known import known_table
from features.transform import transform
from features.validate import validate
from lake.lake import Lake
from lake.metrics import metrics_table
from lake.tables import feature_table, quarantine_table, raw_table, valid_table

FIRST = date(2024, 3, 1)
NIGHTS = Interval(FIRST, date(2024, 3, 6))
DAILY = {"kind": "file", "uri": "in/{data_date}.csv"}
WHOLE = {"kind": "file", "uri": "in.csv"}
VIEW = (
    "SELECT nights.data_date, t.id, t.x FROM nights JOIN t ON t.data_date <= nights.data_date"
    " AND t.superseded_on > nights.data_date"
)
Snapshot = Mapping[int, int]


def lake_of(folder: Path, source: Mapping[str, Any] = DAILY, **table: Any) -> Lake:
    """Table `d/t` (id, and x, never null nor above 99), and view `v` of its rows as they are."""
    declared = {
        "description": "t", "source": dict(source), "key": ["id"], "known_at": "arrival", "deletes": "close",
        "columns": {
            "id": {"type": "int64", "description": "key", "nullable": False},
            "x": {"type": "int64", "description": "value", "nullable": False},
            "on": {"type": "date", "description": "a day", "nullable": False},
        },
        "checks": [{"rule": "between", "column": "x", "min": 0, "max": 99}],
        "quality": {"stop_share": 1.0},
    }  # fmt: skip
    view = {
        "description": "v", "entities": ["id"], "reads": ["t"], "lookback": "30 days", "ttl": "1 day",
        "columns": {"x": {"type": "int64", "description": "value"}},
    }  # fmt: skip
    document = {
        "dataset": "d", "title": "d", "owner": "o", "owner_url": "mailto:o@example.com", "licence": "CC0-1.0",
        "time_zone": "Europe/Berlin", "start": FIRST, "tables": {"t": declared | table}, "features": {"v": view},
    }  # fmt: skip
    for name in ("datasets", "sql/d", "in"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "datasets" / "d.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    (folder / "sql" / "d" / "v.sql").write_text(VIEW)
    installed = Settings(home=folder / "var", catalogs=(folder,), duckdb_memory_gb=0.5)
    return Lake(installed, load_catalog(installed))


def deliver(path: Path, snapshot: Snapshot) -> None:
    path.write_text("id,x,on\n" + "".join(f"{key},{value},2024-02-01\n" for key, value in snapshot.items()))


def deliver_daily(folder: Path, snapshots: Sequence[Snapshot]) -> None:
    for night, snapshot in zip(NIGHTS, snapshots, strict=False):
        deliver(folder / "in" / f"{night}.csv", snapshot)


def run(lake: Lake, interval: Interval) -> dict[str, int]:
    """What ingest counted of table `t`, without zeros; all stages have run then."""
    counted = ingest(lake, "d", interval, run_id="r").details["t"]
    validate(lake, "d", interval, run_id="r")
    transform(lake, "d", interval, run_id="r")
    return {name: count for name, count in counted.items() if count and name != "undated"}


def night(number: int) -> Interval:
    return Interval.of(FIRST + number * ONE_DAY)


def features(lake: Lake, number: int) -> Snapshot:
    rows = feature_table(lake.settings, lake.dataset("d"), "v").read(list(night(number))).to_pylist()
    return {row["id"]: row["x"] for row in rows}


def known(lake: Lake) -> list[tuple[int, int, date | None]]:
    """(id, x, superseded_on) of every revision, as labels and spines read a valid table."""
    table = known_table(
        lake, valid_table(lake.settings, lake.dataset("d"), "t"), NIGHTS.last, column=None, low=0, high=0
    )
    with lake.duckdb() as connection:
        table.register(connection, "known", ("id",))
        return connection.execute("SELECT id, x, superseded_on FROM known ORDER BY id, data_date").fetchall()


def digests(lake: Lake) -> list[dict[date, str | None]]:
    entry = lake.dataset("d")
    tables = [make(lake.settings, entry, "t") for make in (raw_table, valid_table, quarantine_table)]
    tables.append(feature_table(lake.settings, entry, "v"))
    return [lake.publications.digests(table, NIGHTS) for table in tables]


SNAPSHOTS = st.lists(
    st.dictionaries(st.integers(1, 5), st.sampled_from([1, 2]), max_size=5),
    min_size=len(NIGHTS),
    max_size=len(NIGHTS),
)


def open_keys(lake: Lake) -> list[dict[int, int]]:
    """By night, what raw says there is: each key's highest revision by then, unless it closes the key."""
    rows = raw_table(lake.settings, lake.dataset("d"), "t").read().to_pylist()
    stands: dict[int, int] = {}
    by_night = []
    for day in NIGHTS:
        for row in rows:
            if row["data_date"] == day:
                stands |= {row["id"]: row["x"]}
                if row["nf__closed"]:
                    del stands[row["id"]]
        by_night.append(dict(stands))
    return by_night


@settings(max_examples=4, deadline=None)
@given(snapshots=SNAPSHOTS, cut=st.integers(1, 4))
def test_raw_holds_each_nights_snapshot_and_bulk_equals_nightly(
    tmp_path_factory: pytest.TempPathFactory, snapshots: list[dict[int, int]], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("deletes")
    bulk, parts = (lake_of(folder / name, max_closed_share=1.0) for name in ("bulk", "parts"))
    for name in ("bulk", "parts"):
        deliver_daily(folder / name, snapshots)
    closed = ingest(bulk, "d", NIGHTS, run_id="bulk").details["t"]["closed"]
    nights = [Interval.of(day) for day in NIGHTS]
    in_parts = [*nights[:cut], Interval(nights[cut].start, NIGHTS.end)]
    assert sum(ingest(parts, "d", part, run_id="r").details["t"]["closed"] for part in in_parts) == closed
    assert digests(bulk) == digests(parts)
    assert open_keys(bulk) == snapshots
    assert closed == sum(len(set(was) - set(now)) for was, now in itertools.pairwise(snapshots))
    assert ingest(parts, "d", NIGHTS, run_id="again").committed == 0
    assert restate(bulk, "d", NIGHTS, run_id="restate").committed == 0
    shutil.rmtree(folder)


def test_all_stages_in_bulk_equal_the_nights(tmp_path: Path) -> None:
    bulk, nightly = (lake_of(tmp_path / name) for name in ("bulk", "nightly"))
    for name in ("bulk", "nightly"):
        deliver_daily(tmp_path / name, [{1: 5, 2: 6}, {1: 5}, {1: 7, 3: 500}])
    nights = [night(number) for number in range(3)]
    run(bulk, Interval(nights[0].start, nights[-1].end))
    for one in nights:
        run(nightly, one)
    assert digests(bulk) == digests(nightly)
    assert [features(bulk, number) for number in range(3)] == [{1: 5, 2: 6}, {1: 5}, {1: 7}]


def test_a_key_that_is_gone_ends_and_one_that_comes_back_begins_again(tmp_path: Path) -> None:
    lake = lake_of(tmp_path)
    deliver_daily(tmp_path, [{1: 5, 2: 6, 3: 7}, {1: 5, 3: 7}, {1: 5, 3: 7}, {1: 5, 2: 6, 3: 7}])
    counted = [run(lake, night(number)) for number in range(4)]
    assert counted == [{"rows": 3}, {"rows": 1, "closed": 1}, {}, {"rows": 1, "corrections": 1}]
    assert [sorted(features(lake, number)) for number in range(4)] == [[1, 2, 3], [1, 3], [1, 3], [1, 2, 3]]
    assert known(lake) == [(1, 5, None), (2, 6, date(2024, 3, 2)), (2, 6, None), (3, 7, None)]


def test_a_whole_source_closes_in_the_next_night_as_source_changed_says(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, WHOLE)
    deliver(tmp_path / "in.csv", {1: 5, 2: 6, 3: 7})
    run(lake, night(0))
    deliver(tmp_path / "in.csv", {1: 5, 3: 8})
    with pytest.raises(SourceChanged, match="lands new and changed rows .* and closes lost keys"):
        ingest(lake, "d", night(0), run_id="again")
    assert run(lake, night(1)) == {"rows": 2, "corrections": 1, "closed": 1}
    assert features(lake, 1) == {1: 5, 3: 8}
    assert run(lake, night(2)) == {}


def test_without_close_the_row_stays_and_source_changed_says_so(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, WHOLE, deletes="keep")
    deliver(tmp_path / "in.csv", {1: 5, 2: 6})
    run(lake, night(0))
    deliver(tmp_path / "in.csv", {1: 5})
    with pytest.raises(SourceChanged, match=re.escape("rows that are gone stay (`deletes: keep`)")):
        ingest(lake, "d", night(0), run_id="again")
    assert run(lake, night(1)) == {}
    assert features(lake, 1) == {1: 5, 2: 6}


def test_a_key_whose_last_revision_was_set_aside_ends_too(tmp_path: Path) -> None:
    lake = lake_of(tmp_path)
    deliver_daily(tmp_path, [{1: 5, 2: 6}, {1: 5, 2: 500}, {1: 5}])
    for number in range(3):
        run(lake, night(number))
    assert [features(lake, number) for number in range(3)] == [{1: 5, 2: 6}, {1: 5, 2: 6}, {1: 5}]


@pytest.mark.parametrize("source", [DAILY, WHOLE])
def test_an_emptied_delivery_is_refused_until_it_is_declared(tmp_path: Path, source: dict[str, Any]) -> None:
    lake = lake_of(tmp_path, source)

    def given(number: int, snapshot: Snapshot) -> None:
        deliver(tmp_path / source["uri"].format(data_date=FIRST + number * ONE_DAY), snapshot)

    given(0, {1: 5, 2: 6, 3: 7})
    run(lake, night(0))
    given(1, {})
    with pytest.raises(SourceShrank, match=r"lacks 3 of the 3 keys that were open before 2024-03-02: share 1\.000"):
        ingest(lake, "d", night(1), run_id="r")
    raw = raw_table(lake.settings, lake.dataset("d"), "t")
    assert list(lake.publications.current(raw)) == [FIRST], "nothing is written"
    declared = lake_of(tmp_path, source, max_closed_share=1.0)
    assert run(declared, night(1)) == {"rows": 3, "closed": 3}
    assert features(declared, 1) == {}
    # A restatement is held to the same, a check of what is published is not.
    assert ingest(lake, "d", night(1), run_id="check").committed == 0
    with pytest.raises(SourceShrank):
        restate(lake, "d", night(1), run_id="r")


def test_the_choice_may_change_on_a_lake_that_is_there(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, deletes="keep")
    deliver_daily(tmp_path, [{1: 5, 2: 6, 3: 7}, {1: 5, 2: 6}, {1: 5, 2: 6}, {1: 5}, {1: 5, 2: 6}])
    for number in (0, 1):
        run(lake, night(number))
    before = [published[FIRST] for published in digests(lake)]
    closing = lake_of(tmp_path)
    assert run(closing, night(2)) == {"rows": 1, "closed": 1}, "what the last delivery lacks, whenever it went"
    assert run(closing, night(3)) == {"rows": 1, "closed": 1}
    assert features(closing, 3) == {1: 5}
    again = lake_of(tmp_path, deletes="keep")
    run(again, night(4))
    assert features(again, 4) == {1: 5, 2: 6, 3: 7}, "where nothing closes, what was closed is open"
    assert [published[FIRST] for published in digests(again)] == before
    assert ingest(again, "d", night(0), run_id="check").committed == 0


def test_the_row_count_leaves_closings_out(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, checks=[{"rule": "row_count", "weeks": 1}])
    ten = dict.fromkeys(range(10), 1)
    nights = Interval(FIRST, FIRST + 15 * ONE_DAY)
    for number, day in enumerate(nights):
        # One key comes and another goes in the second week's first night, and again in the third's.
        deliver(tmp_path / "in" / f"{day}.csv", {key + number // 7: 1 for key in ten})
    for part in (Interval(FIRST, FIRST + 8 * ONE_DAY), Interval(FIRST + 8 * ONE_DAY, nights.end)):
        ingest(lake, "d", part, run_id="r")
        validate(lake, "d", part, run_id="r")
    valid = lake.publications.current(valid_table(lake.settings, lake.dataset("d"), "t"))
    assert [(p.rows, p.closed) for p in valid.values() if p.rows] == [(10, 0), (2, 1), (2, 1)]
    judged = metrics_table(lake.settings, "d", "quality").read([nights.last]).to_pylist()
    assert [row["value"] for row in judged if row["check"].startswith("row_count")] == [1.0]


def test_a_query_for_a_part_cannot_close(tmp_path: Path) -> None:
    query = "SELECT id, x FROM t WHERE changed > :start_utc"
    with pytest.raises(BadCatalog, match="needs a source whose every delivery is whole"):
        lake_of(tmp_path, {"kind": "sql", "url_secret": "s", "query": query})
    lake_of(tmp_path, {"kind": "sql", "url_secret": "s", "query": "SELECT id, x FROM t WHERE made <= :end_utc"})


def test_a_data_set_that_says_nothing_of_deletes_keeps_its_digest(tmp_path: Path) -> None:
    unsaid, said = lake_of(tmp_path, deletes="keep"), lake_of(tmp_path, deletes="keep", max_closed_share=0.1)
    assert unsaid.catalog.digest("d") == said.catalog.digest("d")
    document = unsaid.dataset("d").model_dump_json(by_alias=True)
    assert "deletes" not in document
    assert "max_closed_share" not in document
    assert lake_of(tmp_path).catalog.digest("d") != unsaid.catalog.digest("d")

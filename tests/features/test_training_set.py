from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.calendar import ONE_DAY, Interval
from features.labels import is_mature
from features.retrieval import retrieve
from features.training_set import NotEnoughHistory, _split, build_training_set, split_windows
from lake.artifact import file_digest
from lake.lake import Lake
from lake.tables import valid_table
from tests import toy

NIGHTS = Interval.closed(date(2024, 1, 1), date(2024, 2, 10))
MODEL = "ride_minutes"
AS_OF = NIGHTS.last


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    found = toy.toy_lake(tmp_path_factory.mktemp("lake"))
    toy.publish_valid(found, NIGHTS)
    toy.publish_features(found, NIGHTS)
    return found


def test_windows_go_backwards_from_the_newest_mature_date(lake: Lake) -> None:
    windows = split_windows(lake, MODEL, AS_OF)
    train, validation, test = (windows[name] for name in ("train", "validation", "test"))
    assert test.last == date(2024, 2, 8)
    assert is_mature(lake, MODEL, test.last, as_of=AS_OF)
    assert (len(train), len(validation), len(test)) == (21, 5, 7)
    assert validation.end + ONE_DAY == test.start
    assert train.end + ONE_DAY == validation.start


def test_the_test_set_is_apart(lake: Lake, tmp_path: Path) -> None:
    built = build_training_set(lake, MODEL, AS_OF, tmp_path)
    training, test = pq.read_table(built.training_path), pq.read_table(built.test_path)
    assert set(training["split"].to_pylist()) == {"train", "validation"}
    assert set(test["split"].to_pylist()) == {"test"}
    assert pc.min(test["data_date"]).as_py() > pc.max(training["data_date"]).as_py()
    for table in (training, test):
        for name in set(table["split"].to_pylist()):
            days = table.filter(pc.equal(table["split"], name))["data_date"].to_pylist()
            assert set(days) == set(built.windows[name])
            assert len(days) == built.rows[name]
        order = list(zip(*(table[name].to_pylist() for name in ("data_date", "event_date", "ride")), strict=True))
        assert order == sorted(order)
    assert training.column_names == [
        *(
            "event_date",
            "ride",
            "vehicle",
            "depot",
            "start_utc",
            "distance_km",
            "data_date",
            "target_time_utc",
            "split",
            "label",
            "baseline",
        ),
        *("vehicle_daily__rides_7d", "vehicle_daily__minutes_7d"),
    ]


def test_rows_without_a_label_are_kept_apart_and_counted(lake: Lake, tmp_path: Path) -> None:
    built = build_training_set(lake, MODEL, AS_OF, tmp_path)
    table, apart = pq.read_table(built.training_path), pq.read_table(built.unlabelled_path)
    assert table["label"].null_count == 0
    assert all(built.unlabelled.values())
    assert {name: built.rows[name] + built.unlabelled[name] for name in built.rows} == {
        name: 30 * len(window) for name, window in built.windows.items()
    }
    counted = {pair["values"]: pair["counts"] for pair in pc.value_counts(apart["split"]).to_pylist()}
    assert counted == {name: built.unlabelled[name] for name in ("train", "validation")}, (
        "nobody sees a row of the test"
    )
    features = ["vehicle_daily__rides_7d", "vehicle_daily__minutes_7d"]
    assert apart.column_names == ["data_date", "split", *features]
    assert apart["data_date"].to_pylist() == sorted(apart["data_date"].to_pylist())
    # With the labelled ones they are what the night scored, features and all.
    night = built.windows["train"].start
    scored = retrieve(lake, MODEL, Interval.of(night), folder=tmp_path).reader().read_all()
    both = pa.concat_tables([part.select([*features, "data_date"]) for part in (table, apart)])
    written = both.filter(pc.equal(both["data_date"], pa.scalar(night))).drop_columns("data_date")
    order = [(name, "ascending") for name in features]
    assert written.sort_by(order).equals(scored.select(features).sort_by(order))


def test_the_same_lake_gives_the_same_bytes(lake: Lake, tmp_path: Path) -> None:
    digests = []
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        built = build_training_set(lake, MODEL, AS_OF, tmp_path / name)
        assert built.training_digest == file_digest(built.training_path)
        assert built.test_digest == file_digest(built.test_path)
        assert built.unlabelled_digest == file_digest(built.unlabelled_path)
        digests.append((built.training_digest, built.test_digest, built.unlabelled_digest))
    assert digests[0] == digests[1]


def test_what_came_after_as_of_changes_nothing(tmp_path: Path) -> None:
    """Nothing from the future: the same night's training set, built before and after more nights came."""
    lake = toy.toy_lake(tmp_path)
    digests = []
    until = Interval.closed(NIGHTS.start, AS_OF)
    later = Interval.closed(AS_OF + ONE_DAY, AS_OF + timedelta(days=5))
    for nights in (until, later):
        toy.publish_valid(lake, nights)
        toy.publish_features(lake, nights)
        digests.append(build_training_set(lake, MODEL, AS_OF, tmp_path).training_digest)
    assert digests[0] == digests[1]


def test_inputs_name_every_partition_once(lake: Lake, tmp_path: Path) -> None:
    built = build_training_set(lake, MODEL, AS_OF, tmp_path)
    named = [(i.table, i.data_date) for i in built.inputs]
    assert len(named) == len(set(named))
    whole = Interval(built.windows["train"].start, built.windows["test"].end)
    for table, days in (
        ("rides/valid/bookings", whole),
        ("rides/features/vehicle_daily", whole.widened(3)),
        ("rides/valid/outcomes", Interval(whole.start + ONE_DAY, AS_OF + ONE_DAY)),
    ):
        assert {day for name, day in named if name == table} == set(days), table
    assert set(built.pins) == {"vehicle_daily"}
    document = built.to_json()
    assert document["windows"]["test"] == {"start": "2024-02-02", "end": "2024-02-09"}
    assert document["inputs"][0]["data_date"] == str(built.inputs[0].data_date)


def test_too_little_history_says_how_much_and_from_when(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(NotEnoughHistory) as refused:
        build_training_set(lake, MODEL, date(2024, 2, 1), tmp_path)
    assert "needs the 35 data dates 2023-12-27..2024-01-30" in str(refused.value)
    assert "Train as of 2024-02-06 or later" in str(refused.value)
    build_training_set(lake, MODEL, date(2024, 2, 6), tmp_path)  # as it says


def test_missing_nights_say_which_and_what_to_run(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(NotEnoughHistory) as refused:
        build_training_set(lake, MODEL, AS_OF + timedelta(days=4), tmp_path)
    assert "rides/features/vehicle_daily lacks 2024-02-11 to 2024-02-12 (2 nights)" in str(refused.value)
    assert "Run `rides_history` for 2024-02-11 to 2024-02-12" in str(refused.value)
    with pytest.raises(
        NotEnoughHistory, match="rides/valid/outcomes lacks 2024-02-11"
    ):  # features would suffice, labels do not
        build_training_set(lake, MODEL, AS_OF + ONE_DAY, tmp_path)


# ---- groups held out whole ---------------------------------------------------------------------------------------

GROUPED = toy.MODEL_YAML.replace("embargo: 1 day}", "embargo: 1 day, groups: vehicle}")
# First rides of the second and the third fleet: their evenings before lie in the embargoes.
SECOND, THIRD = date(2024, 1, 27), date(2024, 2, 2)


def renewed_fleets(folder: Path, *, kept: tuple[str, ...]) -> Lake:
    """A lake whose vehicles are all replaced between two splits, but for `kept`."""
    found = toy.toy_lake(folder, model=GROUPED)
    rides = toy.generate(Interval(NIGHTS.start, NIGHTS.end + ONE_DAY))
    for name in ("bookings", "outcomes"):
        rows = getattr(rides, name)
        vehicles = [
            vehicle if vehicle in kept else f"{vehicle}-{1 + (day >= SECOND) + (day >= THIRD)}"
            for vehicle, day in zip(rows["vehicle"].to_pylist(), rows["event_date"].to_pylist(), strict=True)
        ]
        rows = rows.set_column(rows.column_names.index("vehicle"), "vehicle", pa.array(vehicles))
        toy.publish_rows(
            found,
            valid_table(found.settings, found.dataset("rides"), name),
            toy.with_lake_columns(found, name, rows),
            NIGHTS,
        )
    toy.publish_features(found, NIGHTS)
    return found


def test_a_group_of_an_earlier_split_is_left_out_and_counted(tmp_path: Path) -> None:
    built = build_training_set(renewed_fleets(tmp_path / "lake", kept=("v0",)), MODEL, AS_OF, tmp_path)
    rows = pa.concat_tables([pq.read_table(built.training_path), pq.read_table(built.test_path)])
    vehicles = {split: set(rows.filter(pc.equal(rows["split"], split))["vehicle"].to_pylist()) for split in built.rows}
    renewed = {number: {f"v{n}-{number}" for n in range(1, 6)} for number in (1, 2, 3)}
    assert vehicles == {"train": {"v0"} | renewed[1], "validation": renewed[2], "test": renewed[3]}
    # What is left out is counted, what is counted is left out: 30 rides a day.
    assert built.in_earlier_split["train"] == 0
    assert built.in_earlier_split["validation"] > 5
    assert built.in_earlier_split["test"] > 5
    for name, window in built.windows.items():
        assert built.rows[name] + built.unlabelled[name] + built.in_earlier_split[name] == 30 * len(window)
    assert built.to_json()["in_earlier_split"] == built.in_earlier_split


def test_groups_that_never_change_leave_nothing_to_judge_by(tmp_path: Path) -> None:
    found = toy.toy_lake(tmp_path / "lake", model=GROUPED)
    toy.publish_valid(found, NIGHTS)
    toy.publish_features(found, NIGHTS)
    with pytest.raises(
        NotEnoughHistory,
        match=(
            "split validation .* has no labelled row, of 0 in all; 150 more are of a vehicle that an earlier split has"
        ),
    ):
        build_training_set(found, MODEL, AS_OF, tmp_path)


DAYS = [date(2024, 1, 1) + timedelta(days=n) for n in range(12)]
WINDOWS = {
    "train": Interval(DAYS[0], DAYS[4]),
    "validation": Interval(DAYS[5], DAYS[7]),
    "test": Interval(DAYS[8], DAYS[12 - 1]),
}


@given(rows=st.lists(st.tuples(st.sampled_from(DAYS), st.sampled_from(["a", "b", "c", None])), max_size=25))
def test_no_group_is_in_two_splits_and_every_row_is_accounted_for(rows: list[tuple[date, str | None]]) -> None:
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE spine_rows (data_date DATE, unit VARCHAR)")
        connection.executemany("INSERT INTO spine_rows VALUES (?, ?)", [*rows, (DAYS[0], "d")])
        left_out = _split(connection, WINDOWS, "unit")
        kept = connection.execute("SELECT split, unit, count(*) FROM split_rows GROUP BY ALL").fetchall()
        _split(connection, WINDOWS, None)
        dated = dict(connection.execute("SELECT split, count(*) FROM split_rows GROUP BY ALL").fetchall())
    units = [unit for _, unit, _ in kept]
    assert len(units) == len(set(units))
    assert {name: sum(n for split, _, n in kept if split == name) + left_out[name] for name in dated} == dated
    # It is the first split with the unit that has it.
    for split, unit, _ in kept:
        seen = {name for day, other in rows if other == unit for name, window in WINDOWS.items() if day in window}
        assert unit == "d" or split == next(name for name in WINDOWS if name in seen)

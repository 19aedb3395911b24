"""Ingest: what lands in which night, as which revision, and what stops it."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import features.ingest
from config.calendar import ONE_DAY, Interval, cutoff, data_date_of
from config.settings import Settings
from features.ingest import SourceChanged, SourceMissing, SourceSchemaMismatch, ingest, restate
from features.sources import SourceRead, read_source
from lake.lake import Lake, StageResult, open_lake
from lake.lineage import PartitionNotReady
from lake.publish import StalePublish
from lake.tables import LakeTable, raw_table
from tests import toy
from tests.features.sources.reading import meters

ZONE = "Europe/Berlin"
FIRST = date(2024, 3, 1)
COLUMNS = {
    "meter": {"type": "int64", "description": "which one"},
    "at_utc": {"type": "timestamp", "description": "when"},
    "litres": {"type": "int64", "description": "how much"},
}
DATED = {"kind": "file", "uri": "in/{data_date}.csv"}
WHOLE = {"kind": "file", "uri": "in.csv"}
Row = tuple[int, datetime, int]


def lake_of(folder: Path, source: dict[str, Any], known_at: Any = None) -> Lake:
    """`meters/readings`, keyed by meter alone, so that a meter's second reading is a revision of its first."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {name: column | {"nullable": name != "meter"} for name, column in COLUMNS.items()}
    lake = meters(
        folder,
        source,
        columns=columns | {"at_utc": COLUMNS["at_utc"] | {"nullable": False}},
        known_at=known_at or "arrival",
        key=["meter"],
    )
    return lake


def at(day: int, hour: float = 12) -> datetime:
    """An hour of March, Berlin time."""
    return (datetime(2024, 3, 1, tzinfo=ZoneInfo(ZONE)) + timedelta(days=day - 1, hours=hour)).astimezone(UTC)


def deliver(folder: Path, name: str, rows: Sequence[Row]) -> None:
    lines = [f"{meter},{when.isoformat()},{litres}" for meter, when, litres in rows]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["meter,at_utc,litres", *lines]) + "\n", encoding="utf-8")


def run(lake: Lake, first: int, last: int | None = None) -> StageResult:
    """Ingest nights of March."""
    return ingest(
        lake, "meters", Interval.closed(date(2024, 3, first), date(2024, 3, last or first)), run_id=f"{first}-{last}"
    )


def landed(lake: Lake) -> list[tuple[int, int, int | None, int]]:
    """(night, meter, litres, revision) of every row of raw."""
    rows = raw_table(lake.settings, lake.dataset("meters"), "readings").read().to_pylist()
    return [(row["data_date"].day, row["meter"], row["litres"], row["revision"]) for row in rows]


def counts(result: StageResult, table: str = "readings") -> dict[str, int]:
    return {name: count for name, count in result.details[table].items() if count}


BY_COLUMN = {"column": "at_utc"}


@pytest.fixture
def whole(tmp_path: Path) -> Lake:
    """One file, read whole every night."""
    return lake_of(tmp_path, WHOLE, BY_COLUMN)


@pytest.fixture
def dated(tmp_path: Path) -> Lake:
    """One file a night."""
    return lake_of(tmp_path, DATED, BY_COLUMN)


# ---- what lands where --------------------------------------------------------------------------------------------


def test_a_row_lands_in_the_night_it_became_knowable_and_not_before(tmp_path: Path, whole: Lake) -> None:
    deliver(tmp_path, "in.csv", [(1, at(1), 10), (2, at(2, 24), 20), (3, at(3, 0.001), 30), (9, at(0), 90)])
    first = run(whole, 1)
    assert landed(whole) == [(1, 1, 10, 0)]
    assert counts(first) == {"rows": 1, "waiting": 2, "before_start": 1}
    run(whole, 2, 3)
    assert landed(whole) == [(1, 1, 10, 0), (2, 2, 20, 0), (3, 3, 30, 0)], (
        "a row known at midnight belongs to the night that ends there"
    )


def test_a_night_without_rows_is_a_published_empty_partition(tmp_path: Path, whole: Lake) -> None:
    deliver(tmp_path, "in.csv", [(1, at(3), 10)])
    result = run(whole, 1, 2)
    assert (result.rows, result.committed) == (0, 2)
    raw = raw_table(whole.settings, whole.dataset("meters"), "readings")
    assert [p.rows for p in whole.publications.current(raw).values()] == [0, 0]


def test_again_commits_nothing(tmp_path: Path, whole: Lake) -> None:
    deliver(tmp_path, "in.csv", [(1, at(1), 10), (2, at(2), 20)])
    run(whole, 1, 3)
    version = raw_table(whole.settings, whole.dataset("meters"), "readings").load().version()  # type: ignore[union-attr]
    for first, last in ((1, 3), (2, 2), (3, 3)):
        result = run(whole, first, last)
        assert result.committed == 0
    assert raw_table(whole.settings, whole.dataset("meters"), "readings").load().version() == version  # type: ignore[union-attr]


def test_yesterdays_file_again_adds_nothing(tmp_path: Path, dated: Lake) -> None:
    deliver(tmp_path, "in/2024-03-01.csv", [(1, at(1), 10), (2, at(1), 20)])
    deliver(tmp_path, "in/2024-03-02.csv", [(1, at(1), 10), (2, at(1), 20)])
    run(dated, 1)
    assert counts(run(dated, 2)) == {}
    assert landed(dated) == [(1, 1, 10, 0), (1, 2, 20, 0)]


def test_a_late_row_lands_in_the_night_it_arrived(tmp_path: Path, whole: Lake) -> None:
    deliver(tmp_path, "in.csv", [(1, at(1), 10)])
    run(whole, 1, 2)
    deliver(tmp_path, "in.csv", [(1, at(1), 10), (2, at(1), 20), (3, at(3), 30)])
    assert counts(run(whole, 3)) == {"rows": 2, "late": 1}
    assert landed(whole) == [(1, 1, 10, 0), (3, 2, 20, 0), (3, 3, 30, 0)]
    raw = raw_table(whole.settings, whole.dataset("meters"), "readings").read().to_pylist()
    assert raw[1]["known_at_utc"] == at(1), "a late row keeps the time at which it was knowable"


def test_a_correction_lands_with_the_next_revision(tmp_path: Path, whole: Lake) -> None:
    for night, litres in ((1, 10), (2, 11), (3, 11), (4, 10)):
        deliver(tmp_path, "in.csv", [(1, at(1), litres), (2, at(1), 20)])
        run(whole, night)
    assert landed(whole) == [(1, 1, 10, 0), (1, 2, 20, 0), (2, 1, 11, 1), (4, 1, 10, 2)], (
        "a correction that is taken back is a revision too"
    )


def test_a_late_row_and_a_correction_of_nights_that_a_bulk_run_skips_over(tmp_path: Path, whole: Lake) -> None:
    deliver(tmp_path, "in.csv", [(1, at(1), 10)])
    run(whole, 1, 2)
    deliver(tmp_path, "in.csv", [(1, at(1), 11), (2, at(2), 20), (3, at(4), 30)])
    assert counts(run(whole, 1, 5)) == {"rows": 4, "late": 1, "corrections": 1}
    assert landed(whole) == [(1, 1, 10, 0), (3, 1, 11, 1), (3, 2, 20, 0), (4, 3, 30, 0)], (
        "the first open night of the run lands what the published ones miss"
    )


def test_a_row_of_the_future_waits_for_its_night(tmp_path: Path, dated: Lake) -> None:
    deliver(tmp_path, "in/2024-03-01.csv", [(1, at(1), 10), (2, at(3), 20)])
    for night in (2, 3, 4):
        deliver(tmp_path, f"in/2024-03-0{night}.csv", [])
    assert counts(run(dated, 1)) == {"rows": 1, "waiting": 1}
    run(dated, 2)
    assert landed(dated) == [(1, 1, 10, 0)]
    run(dated, 3)
    assert landed(dated) == [(1, 1, 10, 0), (3, 2, 20, 0)], "a delivery's rows of the future must not be forgotten"
    assert counts(run(dated, 4)) == {}


def test_of_a_delivery_that_is_read_again_for_its_waiting_rows_the_others_do_not_count(
    tmp_path: Path, dated: Lake
) -> None:
    deliver(tmp_path, "in/2024-03-01.csv", [(1, at(1), 10), (2, at(3), 20)])
    deliver(tmp_path, "in/2024-03-02.csv", [(1, at(1), 11)])
    deliver(tmp_path, "in/2024-03-03.csv", [(1, at(1), 10)])
    for night in (1, 2, 3):
        run(dated, night)
    assert landed(dated) == [(1, 1, 10, 0), (2, 1, 11, 1), (3, 1, 10, 2), (3, 2, 20, 0)]


def test_two_rows_of_one_key_are_kept_apart(tmp_path: Path, whole: Lake) -> None:
    deliver(tmp_path, "in.csv", [(1, at(1), 30), (1, at(1), 10), (1, at(1), 10), (2, at(1), 5)])
    run(whole, 1)
    raw = raw_table(whole.settings, whole.dataset("meters"), "readings").read().to_pylist()
    assert [(row["meter"], row["litres"], row["revision"], row["row_number"]) for row in raw] == [
        (1, 10, 0, 1),
        (1, 10, 0, 2),
        (1, 30, 0, 3),
        (2, 5, 0, 1),
    ]
    deliver(tmp_path, "in.csv", [(1, at(1), 30), (2, at(1), 5)])
    run(whole, 2)
    assert landed(whole)[4:] == [(2, 1, 30, 1)], "the source that no longer repeats the key corrects it"


def test_arrival_is_the_night_that_first_saw_the_row(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, WHOLE)
    deliver(tmp_path, "in.csv", [(1, at(9), 10)])
    run(lake, 1)
    deliver(tmp_path, "in.csv", [(1, at(9), 10), (2, at(0), 20)])
    run(lake, 2, 3)
    assert landed(lake) == [(1, 1, 10, 0), (2, 2, 20, 0)]
    raw = raw_table(lake.settings, lake.dataset("meters"), "readings").read().to_pylist()
    assert [row["known_at_utc"] for row in raw] == [cutoff(date(2024, 3, 1), ZONE), cutoff(date(2024, 3, 2), ZONE)]


def test_a_row_without_a_time_counts_as_known_when_seen(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, WHOLE, {"sql": "CASE WHEN litres > 0 THEN at_utc END"})
    deliver(tmp_path, "in.csv", [(1, at(1), 0), (2, at(2), 5)])
    assert counts(run(lake, 1)) == {"rows": 1, "waiting": 1, "undated": 1}
    run(lake, 2)
    assert landed(lake) == [(1, 1, 0, 0), (2, 2, 5, 0)], (
        "it is set aside or used by validation, never lost and never landed twice"
    )


# ---- what stops it ------------------------------------------------------------------------------------------------


def test_a_changed_source_under_a_published_night_writes_nothing(tmp_path: Path, whole: Lake) -> None:
    deliver(tmp_path, "in.csv", [(meter, at(1), 10) for meter in range(5)])
    run(whole, 1, 2)
    deliver(tmp_path, "in.csv", [(meter, at(1), 10 + meter) for meter in range(6)])
    before = landed(whole)
    with pytest.raises(SourceChanged) as caught:
        run(whole, 1)
    message = str(caught.value)
    for part in ("meters/raw/readings", "for 2024-03-01", "9 rows differ", "meter=1", "litres=10", "litres=11"):
        assert part in message, message
    for part in (
        "Nothing was written",
        "The next unpublished night lands new and changed rows",
        "restate meters 2024-03-01 2024-03-01",
    ):
        assert part in message, message
    assert message.count("  - ") == 3
    assert landed(whole) == before
    run(whole, 3)
    assert [row for row in landed(whole) if row[0] == 3] == [
        (3, 1, 11, 1),
        (3, 2, 12, 1),
        (3, 3, 13, 1),
        (3, 4, 14, 1),
        (3, 5, 15, 0),
    ]
    assert run(whole, 3).committed == 0, "the night that landed the difference follows from the source as it is"


def test_an_older_night_is_checked_against_what_came_before_it_alone(tmp_path: Path, dated: Lake) -> None:
    for night, litres in ((1, 10), (2, 11), (3, 10)):
        deliver(tmp_path, f"in/2024-03-0{night}.csv", [(1, at(night), litres)])
    run(dated, 1, 3)
    for night in (1, 2, 3):
        assert run(dated, night).committed == 0
    deliver(tmp_path, "in/2024-03-02.csv", [(1, at(2), 12)])
    with pytest.raises(SourceChanged, match="A changed delivery of a published night is not read again"):
        run(dated, 2)


def test_nights_come_in_order_from_the_first(tmp_path: Path, whole: Lake) -> None:
    deliver(tmp_path, "in.csv", [(1, at(1), 10)])
    with pytest.raises(PartitionNotReady, match=r"no partition 2024-03-01 \(nothing is published\)") as caught:
        run(whole, 2)
    assert "from 2024-03-01 on" in str(caught.value)
    with pytest.raises(PartitionNotReady, match="begins with data date 2024-03-01"):
        ingest(whole, "meters", Interval.of(date(2024, 2, 29)), run_id="x")
    run(whole, 1)
    with pytest.raises(PartitionNotReady, match=r"no partition 2024-03-03 \(latest is 2024-03-01\)"):
        run(whole, 4)


def test_one_bad_table_keeps_all_of_them_unwritten(tmp_path: Path) -> None:
    interval = Interval.closed(toy.FIRST, toy.FIRST + ONE_DAY)
    lake = toy.toy_lake(tmp_path, source=interval)
    outcomes = tmp_path / "source" / "outcomes.csv"
    text = outcomes.read_text()
    outcomes.write_text(text.replace("minutes", "seconds", 1))
    with pytest.raises(SourceSchemaMismatch, match=r"(?s)'seconds' is not declared.*'minutes' is missing"):
        ingest(lake, "rides", interval, run_id="x")
    outcomes.unlink()
    with pytest.raises(SourceMissing, match=r"outcomes.csv"):
        ingest(lake, "rides", interval, run_id="x")
    for table in ("bookings", "outcomes"):
        assert not lake.publications.current(raw_table(lake.settings, lake.dataset("rides"), table))
    outcomes.write_text(text)
    assert ingest(lake, "rides", interval, run_id="x").committed == 4


def test_a_run_killed_between_two_tables_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the source changed meanwhile: what is published stays, what is missing is landed."""
    interval = Interval.closed(toy.FIRST, toy.FIRST + ONE_DAY)
    lake = toy.toy_lake(tmp_path, source=interval, per_day=5)
    with monkeypatch.context() as patched:
        publish = features.ingest.publish  # type: ignore[attr-defined]
        calls = itertools.count()

        def dying(*args: Any, **kwargs: Any) -> Any:
            if next(calls):
                raise KeyboardInterrupt
            return publish(*args, **kwargs)

        patched.setattr(features.ingest, "publish", dying)
        with pytest.raises(KeyboardInterrupt):
            ingest(lake, "rides", interval, run_id="killed")
    bookings = raw_table(lake.settings, lake.dataset("rides"), "bookings")
    before = lake.publications.digests(bookings, interval)
    assert None not in before.values()
    rides = toy.generate(interval, per_day=6)
    toy.write_csv(tmp_path / "source" / "bookings.csv", rides.bookings)
    result = ingest(lake, "rides", interval, run_id="retry")
    assert (result.committed, result.details["outcomes"]["rows"]) == (2, 10)
    assert lake.publications.digests(bookings, interval) == before


def test_two_runs_at_once_end_in_one_of_them(tmp_path: Path, whole: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(tmp_path, "in.csv", [(1, at(1), 10)])
    compute = features.ingest._compute
    other = [10, 11]

    def overtaken(*args: Any, **kwargs: Any) -> Any:
        computed = compute(*args, **kwargs)
        if other:
            litres = other.pop(0)
            kept, other[:] = list(other), []
            deliver(tmp_path, "in.csv", [(1, at(1), litres)])
            run(whole, 1)
            other[:] = kept
        return computed

    monkeypatch.setattr(features.ingest, "_compute", overtaken)
    assert run(whole, 1).committed == 0, "another run published the same rows: there is nothing left to commit"
    shutil.rmtree(whole.settings.lake)
    deliver(tmp_path, "in.csv", [(1, at(1), 10)])
    with pytest.raises(StalePublish):
        run(whole, 1)
    assert landed(whole) == [(1, 1, 11, 0)]


# ---- restate -------------------------------------------------------------------------------------------------------


def test_restate_rewrites_on_purpose_and_drops_what_it_makes_redundant(tmp_path: Path, whole: Lake) -> None:
    deliver(tmp_path, "in.csv", [(1, at(1), 10), (2, at(2), 20), (3, at(3), 30)])
    run(whole, 1, 2)
    deliver(tmp_path, "in.csv", [(1, at(1), 11), (2, at(2), 20), (3, at(3), 30), (4, at(2), 40)])
    run(whole, 3, 4)
    assert landed(whole) == [(1, 1, 10, 0), (2, 2, 20, 0), (3, 1, 11, 1), (3, 3, 30, 0), (3, 4, 40, 0)]
    result = restate(whole, "meters", Interval.closed(date(2024, 3, 1), date(2024, 3, 2)), run_id="restate")
    assert landed(whole) == [(1, 1, 11, 0), (2, 2, 20, 0), (2, 4, 40, 0), (3, 3, 30, 0)]
    assert result.details["readings"]["restated"] == ["2024-03-01", "2024-03-02", "2024-03-03"]
    assert result.committed == 3, "night 4 holds what it held: it is not committed again"
    assert restate(whole, "meters", Interval.closed(date(2024, 3, 1), date(2024, 3, 2)), run_id="again").committed == 0
    assert run(whole, 1, 4).committed == 0, "the restated nights follow from the source"


def test_restate_keeps_later_nights_that_do_not_depend_on_it(tmp_path: Path, whole: Lake) -> None:
    for night, litres in ((1, 10), (2, 11), (3, 12)):
        deliver(tmp_path, "in.csv", [(1, at(1), litres), (2, at(night), 20)])
        run(whole, night)
    deliver(tmp_path, "in.csv", [(1, at(1), 15)])
    restate(whole, "meters", Interval.of(date(2024, 3, 1)), run_id="restate")
    assert [row for row in landed(whole) if row[1] == 1] == [(1, 1, 15, 0), (2, 1, 11, 1), (3, 1, 12, 2)], (
        "later nights keep what they learnt"
    )


def test_a_night_after_a_restated_one_takes_no_short_cut(tmp_path: Path, whole: Lake) -> None:
    deliver(tmp_path, "in.csv", [(1, at(1), 10)])
    run(whole, 1)
    deliver(tmp_path, "in.csv", [(1, at(1), 11)])
    run(whole, 2)
    deliver(tmp_path, "in.csv", [(5, at(2), 50)])
    restate(whole, "meters", Interval.of(date(2024, 3, 1)), run_id="restate")
    assert landed(whole) == [(2, 1, 11, 0)], (
        "the first night no longer has the meter, so the second is the first to know it"
    )
    run(whole, 3)
    assert landed(whole) == [(2, 1, 11, 0), (3, 5, 50, 0)], (
        "night 2 kept its rows: what the source says of it otherwise is still to be landed"
    )


def test_restate_of_an_open_night_is_refused(tmp_path: Path, whole: Lake) -> None:
    deliver(tmp_path, "in.csv", [])
    run(whole, 1)
    with pytest.raises(PartitionNotReady, match=r"no partition 2024-03-02: nothing to restate. Run `meters_ingest`"):
        restate(whole, "meters", Interval.closed(date(2024, 3, 1), date(2024, 3, 2)), run_id="x")


# ---- bulk equals nightly -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """One source row: meter, litres, and the hours after the first midnight at which it became knowable."""

    meter: int
    litres: int
    hour: int

    @property
    def at(self) -> datetime:
        return at(1, self.hour)

    @property
    def natural(self) -> date:
        return data_date_of(self.at, ZONE)


NIGHTS = Interval(FIRST, FIRST + 4 * ONE_DAY)
TOLD = st.builds(Told, st.integers(0, 2), st.integers(0, 1), st.integers(-30, 130))
DELIVERIES = st.lists(st.lists(TOLD, max_size=5), min_size=len(NIGHTS), max_size=len(NIGHTS))


def reference(deliveries: Sequence[Sequence[Told]]) -> list[tuple[date, int, int, int]]:
    """The rules of the module's docstring, night by night, row by row."""
    known: dict[int, tuple[int, list[tuple[datetime, int]]]] = {}
    rows = []
    for night in NIGHTS:
        here = [
            (delivered, told)
            for delivered, delivery in zip(NIGHTS, deliveries, strict=True)
            for told in delivery
            if told.natural >= FIRST and max(told.natural, delivered) == night
        ]
        for meter in sorted({told.meter for _, told in here}):
            mine = [(delivered, told) for delivered, told in here if told.meter == meter]
            newest = max((delivered, told.natural) for delivered, told in mine)
            content = sorted((told.at, told.litres) for delivered, told in mine if (delivered, told.natural) == newest)
            revision, before = known.get(meter, (-1, []))
            if content != before:
                known[meter] = (revision + 1, content)
                rows += [(night, meter, litres, revision + 1) for _, litres in content]
    return sorted(rows)


def dated_raw(lake: Lake) -> list[tuple[date, int, int, int]]:
    raw = raw_table(lake.settings, lake.dataset("meters"), "readings").read().to_pylist()
    return sorted((row["data_date"], row["meter"], row["litres"], row["revision"]) for row in raw)


@settings(max_examples=10, deadline=None)
@given(deliveries=DELIVERIES, cut=st.integers(1, 3))
def test_bulk_equals_nightly_with_late_corrected_and_future_rows(
    tmp_path_factory: pytest.TempPathFactory, deliveries: list[list[Told]], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("bulk")
    lakes = [lake_of(folder / name, DATED, BY_COLUMN) for name in ("bulk", "nightly", "parts")]
    for name in ("bulk", "nightly", "parts"):
        for night, delivery in zip(NIGHTS, deliveries, strict=True):
            deliver(folder / name, f"in/{night}.csv", [(told.meter, told.at, told.litres) for told in delivery])
    bulk, nightly, parts = lakes
    ingest(bulk, "meters", NIGHTS, run_id="bulk")
    for night in NIGHTS:
        ingest(nightly, "meters", Interval.of(night), run_id="nightly")
    ingest(parts, "meters", Interval(FIRST, FIRST + cut * ONE_DAY), run_id="part 1")
    ingest(parts, "meters", NIGHTS, run_id="part 2")
    digests = [
        lake.publications.digests(raw_table(lake.settings, lake.dataset("meters"), "readings"), NIGHTS)
        for lake in lakes
    ]
    assert digests[0] == digests[1] == digests[2]
    assert dated_raw(bulk) == reference(deliveries)
    for lake in lakes:
        assert ingest(lake, "meters", NIGHTS, run_id="again").committed == 0
        assert restate(lake, "meters", NIGHTS, run_id="restate").committed == 0
    shutil.rmtree(folder)


@settings(max_examples=10, deadline=None)
@given(told=st.lists(TOLD, max_size=12), cut=st.integers(1, 3))
def test_a_whole_source_gives_the_same_nights_in_bulk_and_by_the_short_cut(
    tmp_path_factory: pytest.TempPathFactory, told: list[Told], cut: int
) -> None:
    """A night whose predecessors came from the same bytes reads no older partition; it must land what the long way
    lands.
    """
    folder = tmp_path_factory.mktemp("whole")
    names = ("bulk", "short", "long")
    lakes = {name: lake_of(folder / name, WHOLE, BY_COLUMN) for name in names}
    for name in names:
        deliver(folder / name, "in.csv", [(row.meter, row.at, row.litres) for row in told])
    ingest(lakes["bulk"], "meters", NIGHTS, run_id="bulk")
    for night in NIGHTS:
        ingest(lakes["short"], "meters", Interval.of(night), run_id="short")
    with pytest.MonkeyPatch.context() as patched:
        read = features.ingest.read_source  # type: ignore[attr-defined]

        def unknown(*args: Any, **kwargs: Any) -> SourceRead:
            found = read(*args, **kwargs)
            return SourceRead(found.view, found.dated, None, found.differences)

        patched.setattr(features.ingest, "read_source", unknown)
        ingest(lakes["long"], "meters", Interval(FIRST, FIRST + cut * ONE_DAY), run_id="long")
        ingest(lakes["long"], "meters", NIGHTS, run_id="long")
    digests = {
        name: lake.publications.digests(raw_table(lake.settings, lake.dataset("meters"), "readings"), NIGHTS)
        for name, lake in lakes.items()
    }
    assert digests["bulk"] == digests["short"] == digests["long"]
    shutil.rmtree(folder)


def test_the_short_cut_is_not_taken_by_a_key_that_has_earlier_rows(tmp_path: Path, whole: Lake) -> None:
    deliver(tmp_path, "in.csv", [(1, at(1), 10), (1, at(2), 11), (1, at(3), 11), (2, at(3), 20)])
    for night in (1, 2, 3):
        run(whole, night)
    # The third row of meter 1 differs from the second by its time alone: that is content as well.
    assert landed(whole) == [(1, 1, 10, 0), (2, 1, 11, 1), (3, 1, 11, 2), (3, 2, 20, 0)]


def test_the_short_cut_reads_no_older_partition(tmp_path: Path, whole: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(tmp_path, "in.csv", [(day, at(day), 10) for day in range(1, 6)])
    run(whole, 1, 3)
    read: list[list[date]] = []
    register = LakeTable.register

    def noted(self: LakeTable, connection: Any, view: str, dates: Any, version: int) -> None:
        read.append(list(dates))
        register(self, connection, view, dates, version)

    monkeypatch.setattr(LakeTable, "register", noted)
    run(whole, 4)
    assert read == [[]]
    deliver(tmp_path, "in.csv", [(day, at(day), 10) for day in range(2, 6)])
    run(whole, 5)
    assert read[1] == [date(2024, 3, day) for day in (1, 2, 3, 4)], (
        "other bytes: late rows and corrections are looked for"
    )


# ---- the days the clocks change, and the real data sets --------------------------------------------------------------


def test_the_days_the_clocks_change_have_23_and_25_hours(tmp_path: Path) -> None:
    for change, hours in ((date(2024, 3, 31), 23), (date(2024, 10, 27), 25)):
        folder = tmp_path / str(change)
        lake = lake_of(folder, WHOLE, BY_COLUMN)
        begin = cutoff(change - 2 * ONE_DAY, ZONE)
        deliver(folder, "in.csv", [(number, begin + timedelta(hours=number), 1) for number in range(1, 73)])
        ingest(lake, "meters", Interval.closed(FIRST, change + ONE_DAY), run_id="x")
        raw = raw_table(lake.settings, lake.dataset("meters"), "readings")
        rows = [
            publication.rows for day, publication in lake.publications.current(raw).items() if day >= change - ONE_DAY
        ]
        assert rows == [24, hours, min(24, 72 - 24 - hours)]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The shipped catalog on an empty lake."""
    return open_lake(Settings(home=tmp_path_factory.mktemp("real"), duckdb_memory_gb=2.0))


def asked(lake: Lake, dataset: str, table: str, *queries: str) -> list[list[tuple[Any, ...]]]:
    """What queries find in a table's whole source, `found`, as ingest reads it: `nf__natural_date` is the night a row
    lands in.
    """
    entry = lake.dataset(dataset)
    with lake.duckdb() as connection, lake.scratch("test") as folder:
        read_source(lake, dataset, table, Interval.of(entry.first_data_date), connection, name="found", folder=folder)
        return [connection.execute(query).fetchall() for query in queries]


def test_flights_are_dated_by_what_could_be_known(real: Lake) -> None:
    agreed, spread, repeated, known, tails = asked(
        real,
        "flights",
        "outcomes",
        "SELECT count(*), count(*) FILTER (epoch(arr_utc - sched_arr_utc) / 60 = arr_delay) FROM found WHERE "
        "arr_delay IS NOT NULL",
        "SELECT min(arr_utc - dep_utc) > INTERVAL 20 MINUTE, max(arr_utc - dep_utc) < INTERVAL 21 HOUR FROM found",
        "SELECT arr_utc, nf__natural_date FROM found "
        "WHERE event_date = '2013-11-02' AND carrier = 'VX' AND flight = 413",
        """
        SELECT
            count(*),
            count(*) FILTER (cancelled AND known_at_utc = sched_dep_utc),
            count(*) FILTER (NOT cancelled AND arr_utc IS NULL AND known_at_utc = greatest(dep_utc, sched_arr_utc)),
            count(*) FILTER (arr_utc = known_at_utc)
        FROM found
        """,
        "SELECT count(*) FROM found WHERE tailnum IS NULL AND NOT cancelled",
    )
    assert agreed == [(327_346, 327_346)], "arrival by the clock and by the delay must agree everywhere"
    assert spread == [(True, True)]
    # It landed at 01:14 in Los Angeles, in the first of that night's two hours from one to two.
    assert repeated == [(datetime(2013, 11, 3, 8, 14, tzinfo=UTC), date(2013, 11, 3))]
    # Cancelled flights at their scheduled departure; without an arrival at the later of departure and scheduled
    # arrival.
    assert known == [(336_776, 8_255, 458, 336_776 - 8_255 - 458)]
    assert tails == [(0,)], "tailnum is null on cancelled flights alone: the catalog says so"


def test_the_schedule_is_known_at_midnight_before_it_on_the_days_the_clocks_change_too(real: Lake) -> None:
    eve, midnights, islands = asked(
        real,
        "flights",
        "schedule",
        "SELECT count(*) FILTER (event_date <> nf__natural_date + 1), count(DISTINCT nf__natural_date) FROM found",
        "SELECT DISTINCT event_date, hour(known_at_utc) FROM found"
        " WHERE event_date IN ('2013-03-10', '2013-03-11', '2013-11-03', '2013-11-04') ORDER BY event_date",
        "SELECT DISTINCT (sched_arr_hour + 4) % 24 = hour(sched_arr_utc) FROM found WHERE dest IN ('BQN', 'PSE', "
        "'SJU', 'STT')",
    )
    assert eve == [(0, 365)]
    assert [hour for _, hour in midnights] == [5, 4, 4, 5]
    assert islands == [(True,)], "Puerto Rico and the Virgin Islands keep UTC-4 all year"


def test_the_first_nights_of_flights_in_bulk_and_again(real: Lake) -> None:
    first = Interval.closed(date(2012, 12, 31), date(2013, 1, 3))
    result = ingest(real, "flights", first, run_id="bulk")
    assert result.committed == 12
    assert counts(result, "schedule") == {"rows": 842 + 943 + 914 + 915, "waiting": 336_776 - 3_614}
    assert counts(result, "outcomes")["rows"] + counts(result, "outcomes")["waiting"] == 336_776
    assert rows_by_night(real, "flights", "outcomes")[0] == 0, "on New Year's Eve nothing has landed"
    assert ingest(real, "flights", Interval.of(date(2013, 1, 4)), run_id="night").committed == 3
    assert ingest(real, "flights", Interval.closed(date(2012, 12, 31), date(2013, 1, 4)), run_id="again").committed == 0


def rows_by_night(lake: Lake, dataset: str, table: str) -> list[int]:
    return [
        publication.rows
        for publication in lake.publications.current(raw_table(lake.settings, lake.dataset(dataset), table)).values()
    ]


def test_traffic_collapses_labels_and_keeps_its_outliers(real: Lake) -> None:
    local = "timezone('America/Chicago', hour_utc)"
    rows, outliers, autumn, spring, clocks = asked(
        real,
        "traffic",
        "volume",
        "SELECT count(*), count(DISTINCT hour_utc), min(nf__natural_date), max(nf__natural_date) FROM found",
        "SELECT count(*) FILTER (rain_mm > 9000), count(*) FILTER (temp_kelvin = 0) FROM found",
        "SELECT hour(hour_utc) FROM found WHERE event_date = '2016-11-06' AND local_hour <= 3 ORDER BY hour_utc",
        "SELECT hour(hour_utc), local_hour FROM found WHERE event_date = '2018-03-11' AND local_hour <= 4 ORDER BY "
        "hour_utc",
        f"SELECT count(*) FROM found WHERE hour({local}) <> local_hour OR CAST({local} AS DATE) <> event_date OR "
        f"CAST({local} AS DATE) <> nf__natural_date",
    )
    assert rows == [(40_575, 40_575, date(2012, 10, 2), date(2018, 9, 30))]
    assert outliers == [(1, 10)], "validation must see them"
    assert autumn == [(5,), (6,), (8,), (9,)], (
        "the hour that comes twice is labelled once, as the first; the second has no row"
    )
    assert spring == [(6, 0), (7, 1), (8, 3), (9, 4)], "the hour from two to three does not exist"
    assert clocks == [(0,)]


def test_a_gap_in_the_traffic_is_empty_nights(real: Lake) -> None:
    ingest(real, "traffic", Interval.closed(date(2012, 10, 2), date(2014, 8, 31)), run_id="bulk")
    by_night = rows_by_night(real, "traffic", "volume")
    assert len(by_night) == 699
    assert by_night[:2] == [15, 20]
    assert set(by_night[-20:]) == {0}

"""Validation: what becomes valid, what is set aside and why, what stops a night, and that bulk equals nightly."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from config.calendar import ONE_DAY, Interval
from features import validate as validate_module
from features.expectations import marking_sql
from features.validate import DataRejected, validate
from lake.lake import Lake
from lake.lineage import PartitionNotReady
from lake.metrics import metrics_table, read_metrics
from lake.publish import SchemaMismatch, publish
from lake.tables import LakeTable, quarantine_table, raw_table, valid_table
from tests import toy
from tests.config.test_catalog import changed

FIRST = toy.FIRST
WEEKS = Interval(FIRST, FIRST + timedelta(days=16))
SOME = Interval(FIRST, FIRST + timedelta(days=3))


def table(lake: Lake, kind: str, name: str) -> LakeTable:
    make = {"raw": raw_table, "valid": valid_table, "quarantine": quarantine_table}[kind]
    return make(lake.settings, lake.dataset("rides"), name)


def edit(
    lake: Lake, name: str, interval: Interval, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
) -> None:
    """Rewrite raw rows of a table, as if the source had held them so."""
    raw = table(lake, "raw", name)
    rows = change(raw.read().to_pylist())
    toy.publish_rows(lake, raw, pa.Table.from_pylist(rows, schema=raw.schema), interval)


def spoil(lake: Lake, interval: Interval, *, every: int = 10) -> None:
    """Every tenth booking has a negative distance; every twentieth an unknown depot, too; one ride appears twice
    on each night.
    """

    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        changed = []
        for number, row in enumerate(rows):
            if number % every == 0:
                row["distance_km"] = -row["distance_km"]
            if number % (2 * every) == 0:
                row["depot"] = "moon"
            changed.append(row)
            if row["ride"] == 7:
                changed.append({**row, "row_number": 2, "vehicle": "ghost"})
        return changed

    edit(lake, "bookings", interval, change)


def lake_with(folder: Path, interval: Interval, model: str = toy.MODEL_YAML, /, **changes: Any) -> Lake:
    """Raw partitions of the toy in a catalog with some values changed."""
    text = toy.DATASET_YAML
    for path, value in changes.items():
        text = changed(text, path.replace("__", "."), value)
    lake = toy.toy_lake(folder, dataset=text, model=model)
    toy.publish_raw(lake, interval)
    return lake


def metrics(lake: Lake, day: date) -> dict[tuple[str, str], dict[str, Any]]:
    return {(m["check"], m["column"]): m for m in read_metrics(lake, "rides", "quality", Interval.of(day)).to_pylist()}


# ---- rows ------------------------------------------------------------------------------------------------------


def test_good_rows_become_valid_as_they_are(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, SOME)
    result = validate(lake, "rides", SOME, run_id="r")
    for name in ("bookings", "outcomes"):
        raw = table(lake, "raw", name).read()
        valid = table(lake, "valid", name)
        assert valid.read().equals(raw.drop_columns(["row_number"]).select(valid.schema.names).cast(valid.schema))
        assert table(lake, "quarantine", name).read().num_rows == 0
    assert (result.stage, result.subject, result.interval) == ("validate", "rides", "2024-01-01..2024-01-03")
    assert result.rows == sum(table(lake, "raw", name).read().num_rows for name in ("bookings", "outcomes"))
    assert result.committed == 3 * 5, "valid and quarantine of two tables, and the metrics"
    assert result.details["quarantined"] == 0


def test_bad_rows_go_to_quarantine_with_every_rule_they_broke(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, SOME)
    spoil(lake, SOME)
    result = validate(lake, "rides", SOME, run_id="r")
    raw, valid, aside = (table(lake, kind, "bookings").read() for kind in ("raw", "valid", "quarantine"))
    assert valid.num_rows + aside.num_rows == raw.num_rows
    broken = {(row["data_date"], row["ride"], row["row_number"]): row["broken_rules"] for row in aside.to_pylist()}
    assert set(broken.values()) == {
        "between(distance_km)",
        "in_set(depot); between(distance_km)",
        "unique(event_date, ride)",
    }
    assert sum(rules == "unique(event_date, ride)" for rules in broken.values()) == 6, (
        "both rows of a clash are set aside"
    )
    assert (
        aside.drop_columns(["broken_rules"])
        .select(raw.column_names)
        .equals(raw.filter(pa.array([(r["data_date"], r["ride"], r["row_number"]) in broken for r in raw.to_pylist()])))
    ), "a row in quarantine is the raw row"
    assert result.details["quarantined"] == aside.num_rows
    assert result.details["reasons"] == {
        "bookings: between(distance_km)": 9,
        "bookings: unique(event_date, ride)": 6,
        "bookings: in_set(depot)": 5,
    }


def test_a_null_in_a_column_that_must_have_a_value_is_set_aside(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, SOME)
    edit(lake, "bookings", SOME, lambda rows: [{**row, "vehicle": None} if row["ride"] == 1 else row for row in rows])
    validate(lake, "rides", SOME, run_id="r")
    assert table(lake, "quarantine", "bookings").read()["broken_rules"].to_pylist() == ["not_null(vehicle)"] * 3


def test_a_revision_is_valid_beside_the_row_it_corrects_on_another_night(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, SOME)
    late = FIRST + timedelta(days=2)

    def correct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        old = next(row for row in rows if row["data_date"] == FIRST and row["ride"] == 5)
        return [*rows, {**old, "distance_km": 99.0, "revision": 1, "data_date": late}]

    edit(lake, "bookings", SOME, correct)
    validate(lake, "rides", SOME, run_id="r")
    rows = [
        row
        for row in table(lake, "valid", "bookings").read().to_pylist()
        if row["ride"] == 5 and row["event_date"] == FIRST + ONE_DAY
    ]
    assert [(row["data_date"], row["revision"]) for row in rows] == [(FIRST, 0), (late, 1)]


def test_a_number_that_is_none_is_missing(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, SOME)
    edit(
        lake,
        "outcomes",
        SOME,
        lambda rows: [{**row, "minutes": float("nan")} if row["ride"] == 1 else row for row in rows],
    )
    validate(lake, "rides", SOME, run_id="r")
    minutes = [row["minutes"] for row in table(lake, "valid", "outcomes").read().to_pylist() if row["ride"] == 1]
    assert minutes
    assert minutes == [None] * len(minutes)


def test_a_rule_that_had_no_value_to_look_at_is_not_evaluated(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, SOME)

    def unmeasured(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "minutes": None} if row["data_date"] == FIRST else row for row in rows]

    edit(lake, "outcomes", SOME, unmeasured)
    validate(lake, "rides", SOME, run_id="r")
    rule = ("between(minutes)", "outcomes.minutes")
    told = metrics(lake, FIRST)[rule]
    assert (told["status"], told["value"]) == ("not_evaluated", None)
    assert told["reason"] == "every row that it is about lacks a value"
    assert metrics(lake, FIRST + ONE_DAY)[rule]["status"] == "ok"


# ---- again, in bulk, night by night ----------------------------------------------------------------------------


def _digests(lake: Lake) -> dict[str, dict[date, str]]:
    tables = [table(lake, kind, name) for kind in ("valid", "quarantine") for name in ("bookings", "outcomes")]
    return {
        t.name: {d: p.digest for d, p in lake.publications.current(t).items()}
        for t in (*tables, metrics_table(lake.settings, "rides", "quality"))
    }


def test_bulk_equals_nightly_and_again_is_free(tmp_path: Path) -> None:
    bulk, nightly = (lake_with(tmp_path / name, WEEKS) for name in ("bulk", "nightly"))
    for lake in (bulk, nightly):
        spoil(lake, WEEKS)
    validate(bulk, "rides", WEEKS, run_id="bulk")
    for day in WEEKS:
        assert validate(nightly, "rides", Interval.of(day), run_id=f"night {day}").committed == 5
    assert _digests(bulk) == _digests(nightly)
    assert all(len(dates) == len(WEEKS) for dates in _digests(bulk).values())
    assert validate(bulk, "rides", WEEKS, run_id="again").committed == 0
    assert validate(nightly, "rides", WEEKS, run_id="again").committed == 0
    publication = bulk.publications.current(table(bulk, "valid", "bookings"))[FIRST]
    assert [item.table for item in publication.inputs] == ["rides/raw/bookings"]
    assert publication.inputs[0].digest == bulk.publications.current(table(bulk, "raw", "bookings"))[FIRST].digest


def test_interrupted_between_two_tables_and_run_again_it_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturbed, undisturbed = (lake_with(tmp_path / name, SOME) for name in ("disturbed", "undisturbed"))
    for lake in (disturbed, undisturbed):
        spoil(lake, SOME)
    validate(undisturbed, "rides", SOME, run_id="r")
    for allowed in range(5):
        calls: list[int] = []

        def interrupted(*args: Any, calls: list[int] = calls, allowed: int = allowed, **kwargs: Any) -> Any:
            if len(calls) == allowed:
                raise KeyboardInterrupt
            calls.append(1)
            return publish(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(validate_module, "publish", interrupted)
            if allowed < 4:
                with pytest.raises(KeyboardInterrupt):
                    validate(disturbed, "rides", SOME, run_id="r")
            else:
                validate(disturbed, "rides", SOME, run_id="r")
    assert _digests(disturbed) == _digests(undisturbed)


# ---- what is not ready -----------------------------------------------------------------------------------------


def test_a_raw_partition_that_is_missing_is_named(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, SOME)
    with pytest.raises(PartitionNotReady) as caught:
        validate(lake, "rides", Interval(FIRST, FIRST + timedelta(days=5)), run_id="r")
    assert str(caught.value) == (
        "PartitionNotReady: rides/raw/bookings has no partition 2024-01-04 and 1 more (latest is 2024-01-03).\n"
        "  Validating rides for data date 2024-01-01..2024-01-05 needs it. Run `rides_ingest` for the missing nights, "
        "then clear this task."
    )


def test_the_night_before_must_be_validated(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, SOME)
    with pytest.raises(PartitionNotReady, match="rides/valid/bookings has no partition 2024-01-01"):
        validate(lake, "rides", Interval.of(FIRST + ONE_DAY), run_id="r")


def test_an_empty_night_is_published_empty(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, SOME)
    for name in ("bookings", "outcomes"):
        edit(lake, name, SOME, lambda rows: [row for row in rows if row["data_date"] != FIRST + ONE_DAY])
    for night in (Interval.of(FIRST), Interval.of(FIRST + ONE_DAY)):
        validate(lake, "rides", night, run_id="r")
    for kind in ("valid", "quarantine"):
        assert lake.publications.current(table(lake, kind, "bookings"))[FIRST + ONE_DAY].rows == 0
    found = metrics(lake, FIRST + ONE_DAY)
    score = found["quality_score", "bookings"]
    assert (score["status"], score["value"], score["reason"]) == ("not_evaluated", None, "the night has no rows")
    assert found["freshness(end_utc)", "outcomes.end_utc"]["reason"] == "no row with a end_utc"
    assert found["bad_share", "outcomes"]["status"] == "not_evaluated"


# ---- metrics ---------------------------------------------------------------------------------------------------


def test_every_check_and_a_score_are_in_the_metrics(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, SOME)
    spoil(lake, SOME)
    validate(lake, "rides", SOME, run_id="r")
    found = metrics(lake, FIRST)
    rows = lake.publications.current(table(lake, "raw", "bookings"))[FIRST].rows
    share = found["between(distance_km)", "bookings.distance_km"]
    assert (share["value"], share["n"], share["status"], share["threshold"]) == (
        pytest.approx(3 / rows),
        rows,
        "warning",
        0.01,
    )
    assert share["reason"] == f"3 of {rows} rows"
    assert found["between(minutes)", "outcomes.minutes"]["status"] == "ok"
    bad = found["bad_share", "bookings"]["value"]
    assert found["quality_score", "bookings"]["value"] == pytest.approx(1 - bad)
    assert found["quality_score", "outcomes"]["value"] == 1.0
    assert found["row_count(*)", "bookings"]["status"] == "not_evaluated"
    assert found["row_count(*)", "bookings"]["reason"] == "no earlier Mondays to compare with"
    assert {m["data_date"] for m in found.values()} == {m["about_date"] for m in found.values()} == {FIRST}


def test_row_counts_are_held_against_the_same_weekday(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, WEEKS)
    third_monday = FIRST + timedelta(days=14)
    edit(
        lake,
        "bookings",
        WEEKS,
        lambda rows: [row for row in rows if row["data_date"] != third_monday or row["ride"] <= 12],
    )
    validate(lake, "rides", WEEKS, run_id="r")
    count = metrics(lake, third_monday)["row_count(*)", "bookings"]
    assert (count["value"], count["status"], count["threshold"]) == (pytest.approx(0.4), "warning", 0.5)
    assert count["reason"] == "12 rows, mean of the last 2 Mondays 30"
    assert metrics(lake, third_monday)["quality_score", "bookings"]["value"] == 0.0, (
        "the only table check that was evaluated does not hold"
    )
    assert metrics(lake, third_monday + ONE_DAY)["row_count(*)", "bookings"]["status"] == "ok"


def test_a_stale_table_is_noticed(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, SOME, **{"tables__outcomes__checks__2__max_age": "2 hours"})
    edit(lake, "outcomes", SOME, lambda rows: [row for row in rows if row["end_utc"].hour < 12])
    validate(lake, "rides", SOME, run_id="r")
    fresh = metrics(lake, SOME.last)["freshness(end_utc)", "outcomes.end_utc"]
    assert fresh["status"] == "warning"
    assert 10 < fresh["value"] < 13
    assert fresh["threshold"] == 2.0
    assert re.fullmatch(r"newest end_utc 2024-01-03 11:\d\d UTC, cutoff 2024-01-03 23:00 UTC", fresh["reason"])


# ---- what stops ------------------------------------------------------------------------------------------------


def _ruin(lake: Lake, day: date, rides: int) -> None:
    edit(
        lake,
        "bookings",
        WEEKS,
        lambda rows: [
            {**row, "depot": "moon", "distance_km": -1.0 if row["ride"] == 2 else row["distance_km"]}
            if row["data_date"] == day and row["ride"] <= rides
            else row
            for row in rows
        ],
    )


def test_too_many_bad_rows_stop_the_night_and_say_rule_count_share_and_examples(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, WEEKS)
    day = FIRST + timedelta(days=1)
    _ruin(lake, day, 9)
    validate(lake, "rides", Interval.of(FIRST), run_id="r")
    with pytest.raises(DataRejected) as caught:
        validate(lake, "rides", Interval.of(day), run_id="r")
    message = str(caught.value)
    assert message.startswith(
        "DataRejected: rides/raw/bookings for 2024-01-02: 9 of 30 rows break a rule, share 0.300, more than stop_share "
        "0.2.\n"
    )
    assert "  in_set(depot): 9 rows, share 0.300\n" in message
    assert "  between(distance_km): 1 rows, share 0.033\n" in message
    assert message.count("    for example {'event_date': '2024-01-03', 'ride': ") == 3
    assert "'depot': 'moon'}" in message
    assert "Nothing was published. See " in message
    assert "run `restate`, or change the check" in message
    for kind in ("valid", "quarantine"):
        for name in ("bookings", "outcomes"):
            assert list(lake.publications.current(table(lake, kind, name))) == [FIRST], (
                "no table of the night is published"
            )
    assert metrics(lake, day) == {}
    assert (lake.settings.reports / "data_docs" / "rides" / "2024-01-02" / "rides.bookings.html").is_file(), (
        "the rejected night can be looked at"
    )


def test_in_bulk_the_nights_before_the_first_that_stops_are_published(tmp_path: Path) -> None:
    lake, nightly = (lake_with(tmp_path / name, WEEKS) for name in ("bulk", "nightly"))
    for each in (lake, nightly):
        spoil(each, WEEKS)
        for offset in (5, 9):
            _ruin(each, FIRST + timedelta(days=offset), 20)
    with pytest.raises(
        DataRejected, match=r"(?s)bookings for 2024-01-06: .*The nights 2024-01-01..2024-01-05 before it are published"
    ):
        validate(lake, "rides", WEEKS, run_id="r")
    for day in Interval(FIRST, FIRST + timedelta(days=5)):
        validate(nightly, "rides", Interval.of(day), run_id="r")
    assert _digests(lake) == _digests(nightly)
    assert len(metrics(lake, FIRST + timedelta(days=4))) > 10


def test_a_share_at_the_limit_does_not_stop(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, WEEKS)
    _ruin(lake, FIRST, 6)
    validate(lake, "rides", Interval.of(FIRST), run_id="r")
    assert metrics(lake, FIRST)["bad_share", "bookings"]["value"] == 0.2


def test_a_table_check_may_stop_too(tmp_path: Path) -> None:
    lake = lake_with(
        tmp_path,
        WEEKS,
        **{"tables__bookings__checks__3": {"rule": "row_count", "weeks": 2, "min_ratio": 0.5, "severity": "stop"}},
    )
    day = FIRST + timedelta(days=7)
    edit(lake, "bookings", WEEKS, lambda rows: [row for row in rows if row["data_date"] != day])
    with pytest.raises(DataRejected) as caught:
        validate(lake, "rides", WEEKS, run_id="r")
    assert (
        "rides/raw/bookings for 2024-01-08: row_count(*) is 0.000, needs at least 0.5 and at most 2 (0 rows, mean of "
        "the last 1 Mondays 30)." in str(caught.value)
    )
    assert max(lake.publications.current(table(lake, "valid", "bookings"))) == day - ONE_DAY


def test_examples_do_not_show_personal_data(tmp_path: Path) -> None:
    pii = {"type": "string", "nullable": False, "description": "where it starts", "pii": True}
    # A segment of the gate must not be personal data.
    model = toy.MODEL_YAML.replace("segments: {columns: [depot], min_rows: 20, worst: 1.5}, ", "")
    lake = lake_with(tmp_path, SOME, model, **{"tables__bookings__columns__depot": pii})
    edit(lake, "bookings", SOME, lambda rows: [{**row, "depot": "Jane's home"} for row in rows])
    with pytest.raises(DataRejected) as caught:
        validate(lake, "rides", SOME, run_id="r")
    assert "in_set(depot): 30 rows" in str(caught.value)
    assert "Jane" not in str(caught.value)
    page = (lake.settings.reports / "data_docs" / "rides" / "2024-01-01" / "rides.bookings.html").read_text()
    assert "Jane" not in page
    assert "30 unexpected values found" in page


def test_a_column_of_another_type_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = lake_with(tmp_path, SOME)

    def retyped(rules: Any, relation: str) -> str:
        marking = marking_sql(rules, relation)
        if relation != "read_bookings":
            return marking
        return f"SELECT * REPLACE (CAST(vehicle AS BLOB) AS vehicle) FROM ({marking})"

    monkeypatch.setattr(validate_module, "marking_sql", retyped)
    with pytest.raises(SchemaMismatch, match="vehicle"):
        validate(lake, "rides", SOME, run_id="r")
    assert lake.publications.current(table(lake, "valid", "bookings")) == {}


# ---- data docs -------------------------------------------------------------------------------------------------

LOADED = re.compile(r'<(?:link|script|img)\b[^>]*?(?:href|src)="([^"]+)"|url\((?![\'"]?data:)[\'"]?([^\'")]+)')


def test_data_docs_open_without_a_network(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, SOME)
    spoil(lake, SOME)
    validate(lake, "rides", SOME, run_id="r")
    site = lake.settings.reports / "data_docs"
    pages = sorted(site.rglob("*.html"))
    assert [p.relative_to(site).as_posix() for p in pages] == sorted(
        [
            "rides/index.html",
            *(
                f"rides/{folder}/rides.{name}{kind}.html"
                for folder in ("2024-01-01..2024-01-03", "suites")
                for name in ("bookings", "outcomes")
                for kind in ("", "_by_night")
            ),
        ]
    )
    for page in (*pages, *site.glob("static/css/*.css")):
        for match in LOADED.finditer(page.read_text(encoding="utf-8")):
            target = match[1] or match[2]
            assert not re.match(r"(https?:)?//", target), f"{page.relative_to(site)} loads {target}"
            if not target.endswith(".ttf"):  # the fallback of a browser without woff2
                assert (page.parent / target).resolve().is_file(), (
                    f"{page.relative_to(site)} loads {target}, which is not there"
                )
        for link in re.findall(r'<a\b[^>]*href="([^"#]+)"', page.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (page.parent / link).resolve().is_file(), (
                    f"{page.relative_to(site)} links to {link}, which is not there"
                )
    found = (site / "rides" / "2024-01-01..2024-01-03" / "rides.bookings.html").read_text(encoding="utf-8")
    assert "5 unexpected values found" in found
    assert "moon" in found


def test_a_bulk_interval_writes_one_result_a_table(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, WEEKS)
    validate(lake, "rides", WEEKS, run_id="r")
    folders = {p.parent.name for p in (lake.settings.reports / "data_docs" / "rides").rglob("*.html")}
    assert folders == {"rides", "suites", str(WEEKS)}


def test_the_index_lists_nights_newest_first_and_marks_what_broke(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, SOME)
    spoil(lake, SOME)
    for day in SOME:
        validate(lake, "rides", Interval.of(day), run_id="r")
    index = (lake.settings.reports / "data_docs" / "rides" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<tr><th>([\d-]+)</th>", index) == ["2024-01-03", "2024-01-02", "2024-01-01"]
    assert "of 14 broken" in index
    assert "all hold" in index


def test_rows_stay_sorted_for_readers(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, WEEKS)
    validate(lake, "rides", WEEKS, run_id="r")
    rows = table(lake, "valid", "bookings").read()
    assert rows.equals(rows.sort_by([(name, "ascending") for name in ("data_date", "event_date", "ride", "revision")]))
    assert pc.count_distinct(rows["data_date"]).as_py() == len(WEEKS)

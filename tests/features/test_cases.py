"""Small inputs as people meet them, one folder each in `cases/`: read as meant, or refused with what to declare.

A case holds its catalog, its inputs and `case.json`: where they are from, `nights` (first and last; one night where
left out), `nightly` (one run a night instead of one for all), and the SQL of a SQLite source.
"""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.calendar import Interval
from config.catalog.base import BadCatalog
from config.catalog.load import load_catalog
from config.settings import Settings
from features.ingest import SourceSchemaMismatch, SourceUnreadable, ingest
from features.transform import transform
from features.validate import DataRejected, validate
from lake.lake import Lake, StageResult
from lake.metrics import metrics_table
from lake.tables import LakeTable, feature_table, quarantine_table, raw_table, valid_table
from monitoring.alerting.alarms import open_alarms

CASES = Path(__file__).parent / "cases"
Row = dict[str, Any]


class Case:
    """One case in a folder of its own: `declare` changes its catalog, `run` runs its nights."""

    def __init__(self, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = next(CASES.glob(f"{name}-*"), CASES / name)
        shutil.copytree(source, folder, dirs_exist_ok=True)
        shutil.copytree(source / "catalog", folder, dirs_exist_ok=True)
        self.folder = folder
        self.facts: Mapping[str, Any] = json.loads((source / "case.json").read_text())
        self._yaml = folder / "datasets" / "d.yaml"
        self.document: dict[str, Any] = yaml.safe_load(self._yaml.read_text())
        if "sqlite" in self.facts:
            with sqlite3.connect(folder / "s.db") as database:
                database.executescript(self.facts["sqlite"])
        for variable, value in self.facts.get("env", {}).items():
            monkeypatch.setenv(variable, value.format(home=folder))

    def declare(self, *, source: Mapping[str, Any] | None = None, **columns: Mapping[str, Any]) -> None:
        """Add keys to the source of table `t`, and to its columns by name."""
        table = self.document["tables"]["t"]
        table["source"] |= dict(source or {})
        for name, keys in columns.items():
            table["columns"][name] |= dict(keys)
        self._yaml.write_text(yaml.safe_dump(self.document, sort_keys=False))

    @property
    def lake(self) -> Lake:
        settings = Settings(home=self.folder / "var", catalogs=(self.folder,), duckdb_memory_gb=1.0)
        return Lake(settings, load_catalog(settings))

    @property
    def nights(self) -> Interval:
        first = self.document["start"]
        begin, end = self.facts.get("nights", (str(first), str(first)))
        return Interval.closed(date.fromisoformat(begin), date.fromisoformat(end))

    def run(self, *stages: Callable[..., StageResult]) -> list[StageResult]:
        """The results of each stage (ingest and validate where none is named), run by run."""
        runs = [Interval.of(night) for night in self.nights] if self.facts.get("nightly") else [self.nights]
        lake = self.lake
        return [
            stage(lake, "d", interval, run_id=str(interval))
            for interval in runs
            for stage in stages or (ingest, validate)
        ]

    def rows(self, table: Callable[..., LakeTable] = raw_table) -> list[Row]:
        """Rows of table `t` in the lake, all nights and revisions, without the lake's own columns but `data_date`."""
        lake = self.lake
        read = table(lake.settings, lake.dataset("d"), "t").read()
        return list(read.select([*lake.dataset("d").tables["t"].columns, "data_date"]).to_pylist())


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Case]:
    return lambda name: Case(name, tmp_path, monkeypatch)


Cases = Callable[[str], Case]
FIRST = date(2024, 3, 1)


def values(rows: list[Row], column: str) -> dict[Any, Any]:
    """One column by `id`."""
    return {row["id"]: row[column] for row in rows}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("01", ["'d' is declared date", "2 values are not", "'01/02/24'", "row 1"]),
        ("02", ["'d' is declared date", "2 values are not", "'01/03/24'", "row 1"]),
        ("08", ["'x' is BIGINT, declared float64", "would round 1 values", "9007199254740993"]),
        ("10", ["'id' is declared int64", "4 values are not", "'73928e03'", "row 1"]),
        ("12", ["'d' is declared timestamp", "'infinity'", "row 1"]),
    ],
)
def test_what_could_be_read_wrongly_is_refused(case: Cases, name: str, said: list[str]) -> None:
    tried = case(name)
    with pytest.raises(SourceSchemaMismatch) as refusal:
        tried.run()
    message = str(refusal.value)
    assert [part for part in said if part not in message] == [], message
    lake = tried.lake
    assert raw_table(lake.settings, lake.dataset("d"), "t").load() is None, "nothing is written"


def test_a_column_called_content_is_read_and_corrected_once(case: Cases) -> None:
    tried = case("05")
    results = tried.run(ingest)
    assert [result.details["t"]["corrections"] for result in results] == [0, 1]
    first = [row for row in tried.rows() if row["data_date"] == FIRST]
    assert values(first, "content") == {1: 5, 2: None, 3: 7}
    assert [(row["id"], row["price"]) for row in tried.rows() if row["data_date"] > FIRST] == [(1, 9.0)]


def test_a_text_column_called_content_is_read(case: Cases) -> None:
    tried = case("05b")
    tried.run()
    assert values(tried.rows(valid_table), "content") == {1: "hello", 2: None}


def test_columns_called_as_words_of_sql_are_read_and_validated(case: Cases) -> None:
    tried = case("22")
    tried.run()
    assert tried.rows(valid_table) == [{"id": 1, "at": 5, "by": "a", "data_date": FIRST}]


@pytest.mark.parametrize(
    ("name", "expected"), [("landing", {1: FIRST, 2: date(2024, 3, 7)}), ("row_number", {1: 7, 2: 7})]
)
def test_a_column_called_as_one_of_ours_is_read_whole(case: Cases, name: str, expected: dict[int, Any]) -> None:
    tried = case(f"06-column-{name}")
    ingested, validated = tried.run()
    assert {name: count for name, count in ingested.details["t"].items() if count} == {"rows": 2, "undated": 2}
    assert validated.details["quarantined"] == 0
    assert values(tried.rows(valid_table), name) == expected


@pytest.mark.parametrize(("deletes", "closed", "left"), [("keep", 0, {1: 5, 2: 6, 3: 7}), ("close", 1, {1: 5, 3: 7})])
def test_a_key_that_a_snapshot_lacks_stays_or_ends_as_declared(
    case: Cases, deletes: str, closed: int, left: dict[int, float]
) -> None:
    tried = case("31")
    tried.document["tables"]["t"]["deletes"] = deletes
    tried.declare()
    results = tried.run(ingest, validate, transform)
    assert [result.details["t"]["closed"] for result in results if result.stage == "ingest"] == [0, closed]
    lake = tried.lake
    shown = feature_table(lake.settings, lake.dataset("d"), "v").read([tried.nights.last]).to_pylist()
    assert values(shown, "x") == left


def test_two_digit_years_are_read_by_declared_formats(case: Cases) -> None:
    tried = case("01")
    tried.declare(d={"format": ["%d/%m/%y", "%Y-%m-%d"]})
    tried.run()
    assert values(tried.rows(), "d") == {1: date(2024, 2, 1), 2: date(2024, 2, 1), 3: date(2024, 2, 13)}


def test_no_row_is_dropped_behind_a_date_that_known_at_is_made_of(case: Cases) -> None:
    tried = case("02")
    tried.declare(d={"format": ["%d/%m/%y", "%Y-%m-%d", "%d-%m-%y"]})
    (ingested, _) = tried.run()
    assert values(tried.rows(), "d") == {1: FIRST, 2: FIRST}
    assert ingested.details["t"]["before_start"] == 1, "the third row is of the day before the data set begins"


def test_nan_in_a_column_without_nulls_is_set_aside_and_no_feature(case: Cases) -> None:
    tried = case("07")
    tried.document["tables"]["t"]["quality"] = {"stop_share": 0.5}
    tried.declare()
    (ingested, validated, _) = tried.run(ingest, validate, transform)
    assert ingested.details["t"]["rows"] == 3
    assert values(tried.rows(), "x") == {1: 1.0, 2: None, 3: 3.0}
    assert validated.details["reasons"] == {"t: not_null(x)": 1}
    assert values(tried.rows(quarantine_table), "x") == {2: None}
    lake = tried.lake
    features = feature_table(lake.settings, lake.dataset("d"), "v").read()
    assert sorted(zip(features["id"].to_pylist(), features["x"].to_pylist(), strict=True)) == [(1, 1.0), (3, 3.0)]


def test_nights_that_were_stored_with_nan_are_neither_changed_nor_corrected(case: Cases) -> None:
    """A former version stored NaN as it came: a check of such a night, and the night after it, find nothing new."""
    tried = case("07")
    tried.document["tables"]["t"]["quality"] = {"stop_share": 0.5}
    tried.declare(x={"nan": "keep"})
    ingest(tried.lake, "d", tried.nights, run_id="former")
    assert math.isnan(values(tried.rows(), "x")[2])
    del tried.document["tables"]["t"]["columns"]["x"]["nan"]
    tried.declare()
    ingest(tried.lake, "d", tried.nights, run_id="again")
    after = ingest(tried.lake, "d", Interval.of(tried.nights.end), run_id="after")
    assert (after.details["t"]["rows"], after.details["t"]["corrections"]) == (0, 0)
    validated = validate(tried.lake, "d", tried.nights, run_id="v")
    assert validated.details["reasons"] == {"t: not_null(x)": 1}


def test_a_local_time_without_a_zone_is_refused_and_read_in_the_declared_one(case: Cases) -> None:
    tried = case("09")
    with pytest.raises(SourceSchemaMismatch) as refusal:
        tried.run()
    for part in ("'seen' is declared timestamp", "2 values have no time zone", "'2024-07-02 01:00:00'", "`zone: UTC`"):
        assert part in str(refusal.value)
    tried.declare(seen={"zone": "America/Chicago"})
    tried.run(ingest)
    assert [(row["id"], row["data_date"].isoformat(), row["seen"]) for row in tried.rows()] == [
        (2, "2024-07-01", datetime(2024, 7, 1, 17, tzinfo=UTC)),
        (1, "2024-07-02", datetime(2024, 7, 2, 6, tzinfo=UTC)),
    ]


def test_columns_that_differ_in_capitals_alone_are_a_catalog_error_with_a_way_out(case: Cases) -> None:
    tried = case("16")
    with pytest.raises(
        BadCatalog, match=r"'username' and 'userName' differ in capitals alone.*`renamed_from: userName`"
    ):
        tried.run()
    columns = tried.document["tables"]["t"]["columns"]
    columns["user_name"] = columns.pop("userName") | {"renamed_from": "userName"}
    tried.declare()
    tried.run()
    assert tried.rows() == [{"id": 1, "username": "a", "user_name": "b", "data_date": FIRST}]


def test_without_null_values_nothing_is_null(case: Cases) -> None:
    tried = case("18")
    tried.run()
    assert values(tried.rows(), "name") == {1: "", 2: "NA"}


def test_a_windows_header_over_unix_rows_is_read(case: Cases) -> None:
    tried = case("19")
    tried.run()
    assert values(tried.rows(), "name") == {1: "a", 2: "b", 3: "c"}


def test_semicolons_decimal_commas_and_another_encoding_are_declared(case: Cases) -> None:
    tried = case("20")
    with pytest.raises(SourceUnreadable, match="Declare its `encoding`, for example cp1252"):
        tried.run()
    tried.declare(source={"encoding": "cp1252"})
    with pytest.raises(SourceSchemaMismatch, match="Declare `delimiter: ';'`"):
        tried.run()
    tried.declare(source={"delimiter": ";"})
    with pytest.raises(SourceSchemaMismatch, match=r"first '1,5', in row 1 .* Declare `decimal`"):
        tried.run()
    tried.declare(source={"decimal": ","})
    tried.run()
    assert tried.rows() == [{"id": 1, "name": "Ação", "x": 1.5, "data_date": FIRST}]


def test_a_new_column_is_refused_or_left_out_and_told(case: Cases) -> None:
    tried = case("26")
    with pytest.raises(SourceSchemaMismatch, match=r"(?s)02.csv.*'new' is not declared.*`on_extra: warn`"):
        tried.run()
    assert values(tried.rows(), "x") == {1: 5.0}, "the night before stays readable"
    tried.declare(source={"on_extra": "warn"})
    results = tried.run()
    assert results[2].details["t"]["differing_columns"] == {"2024-03-02": [["new", False]]}
    assert [(row["data_date"], row["x"]) for row in tried.rows(valid_table)] == [(FIRST, 5.0), (date(2024, 3, 2), 6.0)]
    metrics = metrics_table(tried.lake.settings, "d", "quality").read().to_pylist()
    told = [(row["data_date"], row["column"], row["status"]) for row in metrics if row["check"] == "undeclared_column"]
    assert told == [(date(2024, 3, 2), "t.new", "warning")]
    [alarm] = [alarm for alarm in open_alarms(tried.lake, ["d"]) if alarm.check == "undeclared_column"]
    assert (alarm.column, alarm.since) == ("t.new", date(2024, 3, 2)), "since when the source has had it"


def test_sql_texts_with_and_without_a_zone(case: Cases) -> None:
    tried = case("27")
    with pytest.raises(
        SourceSchemaMismatch, match=r"'x' .* 1 values have no time zone: first '2024-02-01 10:00:00', in row 1"
    ):
        tried.run()
    tried.declare(x={"zone": "UTC"})
    tried.run()
    assert set(values(tried.rows(), "x").values()) == {datetime(2024, 2, 1, 10, tzinfo=UTC)}


def test_a_row_of_the_future_hides_no_stale_table(case: Cases) -> None:
    tried = case("30")
    with pytest.raises(DataRejected, match=r"freshness\(d\) is 1463.000, needs at most 24 .newest d 2024-01-01 00:00"):
        tried.run()
    tried.document["tables"]["t"]["checks"][0]["severity"] = "warn"
    tried.declare()
    tried.run()
    judged = {row["check"]: row for row in metrics_table(tried.lake.settings, "d", "quality").read().to_pylist()}
    assert (judged["freshness(d)"]["status"], judged["future(d)"]["status"]) == ("warning", "warning")
    assert judged["future(d)"]["reason"].startswith(
        "1 of 2 rows lie after the cutoff, the furthest at 2099-01-01 00:00"
    )
    tried.document["tables"]["t"]["checks"][0]["max_ahead"] = "36500 days"
    tried.declare()
    assert validate(tried.lake, "d", tried.nights, run_id="declared").committed
    judged = {
        row["check"]: row["status"] for row in metrics_table(tried.lake.settings, "d", "quality").read().to_pylist()
    }
    assert (judged["freshness(d)"], judged["future(d)"]) == ("ok", "ok")


def test_a_folder_named_like_a_column_changes_no_value(case: Cases) -> None:
    tried = case("03")
    tried.run(ingest)
    assert set(values(tried.rows(), "region").values()) == {"eu-west", "eu-north"}


def test_a_folder_named_like_a_column_adds_none(case: Cases) -> None:
    tried = case("04")
    tried.run(ingest)
    assert [row["id"] for row in tried.rows()] == [1, 2]


def test_an_archive_that_cannot_be_unpacked_says_how_to_pack_it(case: Cases) -> None:
    with pytest.raises(SourceUnreadable, match=r"(?s)source of d/t: member .* is packed with Deflate64.*Pack it again"):
        case("15").run(ingest)

"""What the catalog says of how values are written, and what is refused without it, for every kind of source."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from config.calendar import Interval
from config.catalog.base import BadCatalog
from config.catalog.load import load_catalog
from config.catalog.source import SourceColumn
from config.settings import Settings
from features.sources import SourceSchemaMismatch, SourceUnreadable, read_source
from features.sources.values import conversion, quoted
from lake.duck import connect, is_nan
from lake.lake import Lake

NIGHT = date(2024, 3, 1)
NOON = datetime(2024, 2, 1, 12)
IN_ROW_1 = "in row 1 (header not counted)."


def lake_of(
    folder: Path,
    kind: str,
    column: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    zone: str = "America/Chicago",
    name: str = "in.csv",
) -> Lake:
    """One table with a key and a column `x` of that type."""
    key = {"type": "int64", "description": "key", "nullable": False}
    columns = {"id": key, "x": {"type": kind, "description": "a value", **column}}
    described = {"kind": "file", "uri": name, "format": name.rpartition(".")[2], **source}
    if described["kind"] != "file":
        described = dict(source)
    table = {"description": "t", "source": described, "key": ["id"], "known_at": "arrival", "columns": columns}
    document = {
        "dataset": "d", "title": "d", "owner": "o", "owner_url": "mailto:o@example.com", "licence": "CC0-1.0",
        "time_zone": zone, "start": NIGHT, "tables": {"t": table},
    }  # fmt: skip
    (folder / "datasets").mkdir(parents=True, exist_ok=True)
    (folder / "datasets" / "d.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    settings = Settings(home=folder / "var", catalogs=(folder,), duckdb_memory_gb=1.0)
    return Lake(settings, load_catalog(settings))


def read(lake: Lake) -> list[Any]:
    with lake.duckdb() as connection, lake.scratch("test") as folder:
        read_source(lake, "d", "t", Interval.of(NIGHT), connection, name="found", folder=folder)
        return [value for (value,) in connection.execute("SELECT x FROM found ORDER BY id").fetchall()]


def of_csv(folder: Path, kind: str, texts: list[str], column: Mapping[str, Any], **more: Any) -> list[Any]:
    """The values of `x` where its cells are those texts, in a file of semicolons."""
    lines = "".join(f"{number};{text}\n" for number, text in enumerate(texts))
    (folder / "in.csv").write_text(f"id;x\n{lines}", encoding="utf-8")
    return read(lake_of(folder, kind, column, {"delimiter": ";", **more.pop("source", {})}, **more))


def of_parquet(folder: Path, kind: str, values: pa.Array, column: Mapping[str, Any], **more: Any) -> list[Any]:
    """The values of `x` where a Parquet file holds that array."""
    pq.write_table(pa.table({"id": pa.array(range(len(values)), pa.int64()), "x": values}), folder / "in.parquet")
    return read(lake_of(folder, kind, column, more.pop("source", {}), name="in.parquet", **more))


@pytest.mark.parametrize(
    ("kind", "texts", "column", "values"),
    [
        ("date", ["01/02/24", "13/02/99"], {"format": "%d/%m/%y"}, [date(2024, 2, 1), date(1999, 2, 13)]),
        ("date", ["20240201", ""], {"format": "%Y%m%d"}, [date(2024, 2, 1), None]),
        (
            "timestamp",
            ["1.2.2024 05:00", "2024-02-01 05:00 +0100"],
            {"format": ["%d.%m.%Y %H:%M", "%Y-%m-%d %H:%M %z"], "zone": "Europe/Berlin"},
            [datetime(2024, 2, 1, 4, tzinfo=UTC)] * 2,
        ),
        (
            "timestamp",
            ["2024-02-01 05:00", "2024-02-01T05:00:00Z", "2024-07-01"],
            {"zone": "America/Chicago"},
            [
                datetime(2024, 2, 1, 11, tzinfo=UTC),
                datetime(2024, 2, 1, 5, tzinfo=UTC),
                datetime(2024, 7, 1, 5, tzinfo=UTC),
            ],
        ),
        ("timestamp", ["2024-11-03 01:30"], {"zone": "America/Chicago", "ambiguous": "earlier"},
         [datetime(2024, 11, 3, 6, 30, tzinfo=UTC)]),
        ("timestamp", ["2024-11-03 01:30"], {"zone": "America/Chicago", "ambiguous": "later"},
         [datetime(2024, 11, 3, 7, 30, tzinfo=UTC)]),
        ("float64", ["1.234,5", "-12,", "1234,5", "1,5e3"], {"decimal": ",", "thousands": "."},
         [1234.5, -12.0, 1234.5, 1500.0]),
        ("float64", ["$1,234.50", "-$ 2", "3 $"], {"thousands": ",", "currency": "$"}, [1234.5, -2.0, 3.0]),
        ("int64", ["1 234", "12"], {"thousands": " "}, [1234, 12]),
        ("int64", ["1'234'567"], {"thousands": "'"}, [1234567]),
        ("float64", ["-999", "1", ""], {"null_values": ["-999", ""]}, [None, 1.0, None]),
        ("string", ["NA", "", "x"], {"null_values": ["NA"]}, [None, "", "x"]),
        ("float64", ["NaN", "1", "-nan"], {"nan": None}, [None, 1.0, None]),
        ("float64", ["NaN", "inf"], {"nan": "keep"}, ["nan", math.inf]),
    ],
)  # fmt: skip
def test_texts_are_read_as_declared(
    tmp_path: Path, kind: str, texts: list[str], column: dict[str, Any], values: list[Any]
) -> None:
    found = of_csv(tmp_path, kind, texts, column)
    assert ["nan" if value != value else value for value in found] == values


@pytest.mark.parametrize(
    ("kind", "texts", "column", "said"),
    [
        ("date", ["01/02/24"], {}, f"first '01/02/24', {IN_ROW_1} Declare how they are written: `format: '%d/%m/%y'`"),
        ("date", ["01.02.2024"], {}, "`format: '%d.%m.%Y'`"),
        ("timestamp", ["Feb 01, 2024 05:00 PM"], {}, "`format: '%b %d, %Y %I:%M %p'`"),
        ("date", ["2024-02-01"], {"format": "%d/%m/%y"}, "1 values are not: first '2024-02-01'"),
        ("date", ["01/02/24"], {"format": "%d/%m/%Y"}, "1 values are not: first '01/02/24'"),
        ("date", ["01/02/24 05:00"], {"format": "%d/%m/%y %H:%M"}, "1 values are not"),
        ("timestamp", ["2024-02-01 05:00"], {}, f"first '2024-02-01 05:00', {IN_ROW_1} Declare `zone: UTC`"),
        ("timestamp", ["2024-02-01Z", "2024-03-10 02:30"], {"zone": "America/Chicago"},
         "1 values never came: the clocks of America/Chicago skipped them: first '2024-03-10 02:30', in row 2"),
        ("timestamp", ["2024-11-03 01:30"], {"zone": "America/Chicago"},
         "1 values came twice: the clocks of America/Chicago were set back: first '2024-11-03 01:30'"),
        ("timestamp", ["2024-11-03 01:30"], {"zone": "America/Chicago"}, f"{IN_ROW_1} Declare `ambiguous: earlier`"),
        ("float64", ["1,5"], {}, "Declare `decimal`"),
        ("float64", ["1.5"], {"decimal": ",", "thousands": "."}, "first '1.5'"),
        ("float64", ["12.34,5"], {"decimal": ",", "thousands": "."}, "first '12.34,5'"),
        ("float64", ["1", "Infinity"], {}, "1 values are infinite: first 'Infinity', in row 2"),
        ("float64", ["nan"], {"nan": "refuse"}, f"1 values are NaN: first 'nan', {IN_ROW_1} Declare `nan: null`"),
        ("float64", ["-999"], {"null_values": []}, None),
        ("float64", [""], {"null_values": []}, "1 values are not: first ''"),
    ],
)  # fmt: skip
def test_a_refusal_says_row_value_and_what_to_declare(
    tmp_path: Path, kind: str, texts: list[str], column: dict[str, Any], said: str | None
) -> None:
    if said is None:
        assert of_csv(tmp_path, kind, texts, column) == [float(text) for text in texts]
        return
    with pytest.raises(SourceSchemaMismatch) as refusal:
        of_csv(tmp_path, kind, texts, column)
    assert said in str(refusal.value)
    assert f"source of d/t ({tmp_path / 'in.csv'})" in str(refusal.value)


def test_what_a_source_says_holds_for_its_columns(tmp_path: Path) -> None:
    assert of_csv(tmp_path, "timestamp", ["2024-02-01 05:00"], {}, source={"zone": "Asia/Tokyo"}) == [
        datetime(2024, 1, 31, 20, tzinfo=UTC)
    ]
    assert of_csv(tmp_path, "float64", ["1,5"], {}, source={"decimal": ","}) == [1.5]
    assert of_csv(tmp_path, "timestamp", ["2024-02-01 05:00"], {}, zone="Etc/UTC") == [
        datetime(2024, 2, 1, 5, tzinfo=UTC)
    ], "a data set in UTC needs no zone"


@pytest.mark.parametrize("zone", ["America/Chicago", "Australia/Lord_Howe", "Africa/Cairo", "America/Santiago"])
@pytest.mark.parametrize("ambiguous", ["earlier", "later"])
def test_local_times_are_the_instants_that_python_knows(zone: str, ambiguous: str) -> None:
    """Every half hour of a year: `ambiguous` is `fold` of `datetime`, and a time that never came is refused."""
    naive = [datetime(2024, 1, 1) + timedelta(minutes=30 * step) for step in range(2 * 24 * 366)]
    column = SourceColumn(type="timestamp", zone=zone, ambiguous=ambiguous)
    with connect() as connection:
        connection.register("times", pa.table({"x": pa.array(naive, pa.timestamp("us"))}))
        read_as = conversion("x", column, "TIMESTAMP")
        rows = connection.execute(f"SELECT x, {read_as.value}, {read_as.failed} FROM times").fetchall()
    place = ZoneInfo(zone)
    for local, instant, failed in rows:
        told = local.replace(tzinfo=place, fold=int(ambiguous == "later")).astimezone(UTC)
        came = told.astimezone(place).replace(tzinfo=None) == local
        assert (None if failed else instant) == (told if came else None), local
    assert any(failed for _, _, failed in rows)


@pytest.mark.parametrize(
    ("kind", "values", "column", "expected"),
    [
        ("int64", pa.array([1, None], pa.uint64()), {}, [1, None]),
        ("int64", pa.array([1.0, None, math.nan]), {}, [1, None, None]),
        ("int32", pa.array([1, 2**31 - 1], pa.int64()), {}, [1, 2**31 - 1]),
        ("float64", pa.array([1.5, math.nan, None]), {}, [1.5, None, None]),
        ("float64", pa.array([1.5, None], pa.float16()), {}, [1.5, None]),
        ("boolean", pa.array([0, 1, None], pa.int8()), {}, [False, True, None]),
        ("date", pa.array([datetime(2024, 2, 1)], pa.timestamp("ns")), {}, [date(2024, 2, 1)]),
        ("date", pa.array([date(2024, 2, 1)], pa.date64()), {}, [date(2024, 2, 1)]),
        ("timestamp", pa.array([NOON], pa.timestamp("ns", "UTC")), {}, [NOON.replace(tzinfo=UTC)]),
        ("timestamp", pa.array([1001], pa.timestamp("ns")), {"zone": "Europe/Berlin"},
         [datetime(1969, 12, 31, 23, 0, 0, 1, tzinfo=UTC)]),
        ("timestamp", pa.array([NOON], pa.timestamp("s")), {"zone": "UTC"}, [NOON.replace(tzinfo=UTC)]),
        ("timestamp", pa.array([NOON], pa.timestamp("ns")), {"zone": "Europe/Berlin"},
         [datetime(2024, 2, 1, 11, tzinfo=UTC)]),
        ("timestamp", pa.nulls(2), {}, [None, None]),
        ("string", pa.nulls(1), {}, [None]),
        ("string", pa.array(["a", "", "a"]).dictionary_encode(), {}, ["a", "", "a"]),
        ("date", pa.array(["01/02/24"]), {"format": "%d/%m/%y"}, [date(2024, 2, 1)]),
    ],
)  # fmt: skip
def test_parquet_types_are_cast_where_nothing_is_lost(
    tmp_path: Path, kind: str, values: pa.Array, column: dict[str, Any], expected: list[Any]
) -> None:
    assert of_parquet(tmp_path, kind, values, column) == expected


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        ("int64", pa.array([2**63], pa.uint64()), "'x' is UBIGINT, declared int64, which would round 1 values"),
        ("int64", pa.array([1.0, 1.5]), "declared int64, which would round 1 values: first 1.5, in row 2"),
        ("int64", pa.array([2.0**53 + 2]), "would round 1 values"),
        ("int32", pa.array([2**31], pa.int64()), "'x' is BIGINT, declared int32, which would round 1 values"),
        ("float64", pa.array([1.0, math.nan, math.inf]), "1 values are infinite: first inf, in row 3"),
        ("boolean", pa.array([2], pa.int8()), "1 values are neither 0 nor 1: first 2"),
        ("date", pa.array([datetime(2024, 2, 1, 5)], pa.timestamp("us")), "would cut the time off 1 values"),
        ("timestamp", pa.array([datetime(2024, 2, 1)], pa.timestamp("us")), "1 values have no time zone"),
        ("timestamp", pa.array([2**60], pa.timestamp("us", "UTC")), "not within the years 1 to 9999"),
        ("date", pa.array([2**24], pa.int32()).cast(pa.date32()), "not within the years 1 to 9999"),
        ("string", pa.array([b"a"]), "'x' is BLOB, declared string"),
        ("string", pa.array([[1]]), "'x' is BIGINT[], declared string"),
        ("string", pa.array([{"a": 1}]), "'x' is STRUCT(a BIGINT), declared string"),
        ("int64", pa.array([True]), "'x' is BOOLEAN, declared int64"),
    ],
)  # fmt: skip
def test_parquet_values_that_would_become_others_are_refused(
    tmp_path: Path, kind: str, values: pa.Array, said: str
) -> None:
    with pytest.raises(SourceSchemaMismatch) as refusal:
        of_parquet(tmp_path, kind, values, {})
    assert said in str(refusal.value)
    assert str(tmp_path / "in.parquet") in str(refusal.value)


def test_nan_is_seen_whatever_statistics_a_file_has(tmp_path: Path) -> None:
    """Most writers leave NaN out of a file's statistics, and DuckDB answers `isnan` from these."""
    pq.write_table(pa.table({"x": [1.0, math.nan, 3.0]}), tmp_path / "in.parquet")
    with connect() as connection:
        rows = connection.execute(f"SELECT {is_nan(quoted('x'))} FROM '{tmp_path / 'in.parquet'}'").fetchall()
        (kept,) = connection.execute(f"SELECT count(*) FROM '{tmp_path / 'in.parquet'}' WHERE {is_nan('x')}").fetchall()
    assert [nan for (nan,) in rows] == [False, True, False]
    assert kept == (1,)


def test_sql_select_and_its_table_are_one_door(tmp_path: Path) -> None:
    """What `select` makes is judged as what a source sends: a NaN is null, a time has a zone, nothing is rounded."""
    (tmp_path / "in.csv").write_text("id,x\n1,0\n2,1\n")
    own = {"columns": {"id": "int64", "x": "float64"}}
    assert read(
        lake_of(tmp_path, "float64", {}, own | {"select": "SELECT id, 'nan'::DOUBLE * x AS x FROM source"})
    ) == [
        None,
        None,
    ]
    for kind, expression, said in (
        (
            "float64",
            "1e300 * x * 1e300",
            "select of the source of d/t differs.*1 values are infinite: first inf, in row 2",
        ),
        ("int64", "x + 0.5", "would round 2 values"),
        ("timestamp", "TIMESTAMP '2024-01-01 05:00'", "2 values have no time zone"),
    ):
        with pytest.raises(SourceSchemaMismatch, match=f"(?s){said}"):
            read(lake_of(tmp_path, kind, {}, own | {"select": f"SELECT id, {expression} AS x FROM source"}))
    told = own | {"select": "SELECT id, TIMESTAMP '2024-01-01 05:00' AS x FROM source"}
    assert read(lake_of(tmp_path, "timestamp", {"zone": "UTC"}, told)) == [datetime(2024, 1, 1, 5, tzinfo=UTC)] * 2


def sqlite(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> dict[str, Any]:
    with sqlite3.connect(folder / "s.db") as database:
        database.executescript(f"DROP TABLE IF EXISTS t; {script}")
    monkeypatch.setenv("SRC_URL", f"sqlite:///{folder / 's.db'}")
    return {"kind": "sql", "url_secret": "SRC_URL", "query": "SELECT id, x FROM t"}


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("float64", "9e999", "1 values are infinite: first inf, in row 2"),
        ("int64", "'a'", "row 2 has 'a' (str), and other rows may have other types"),
        ("date", "'01/02/24'", "`format: '%d/%m/%y'`"),
        ("timestamp", "'2024-02-01 05:00:00'", "1 values have no time zone"),
        ("string", "x'00'", "row 2 has b'\\x00' (bytes)"),
    ],
)
def test_sql_values_are_refused_likewise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, value: str, said: str
) -> None:
    first = {"float64": "1", "int64": "1", "string": "'a'"}.get(kind, "NULL")
    script = f"CREATE TABLE t (id integer, x); INSERT INTO t VALUES (1, {first}), (2, {value})"
    source = sqlite(tmp_path, monkeypatch, script)
    with pytest.raises(SourceSchemaMismatch) as refusal:
        read(lake_of(tmp_path, kind, {}, source))
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("column", "source", "said"),
    [
        ({"type": "int64", "format": "%d"}, {}, "format is for date, timestamp; the column is int64"),
        ({"format": "yyyy"}, {}, "'yyyy' is no strptime format"),
        ({"format": "%q"}, {}, "'%q' is no strptime format"),
        ({"type": "timestamp", "zone": "Chicago"}, {}, "is not an IANA time zone"),
        ({"type": "float64", "thousands": "."}, {}, "as its mark of decimals and of thousands"),
        ({"nullable": False, "on_missing": "warn"}, {}, "it must not say nullable: false"),
        ({}, {"encoding": "klingon"}, "is no encoding of texts that Python knows"),
        ({}, {"encoding": "base64"}, "is no encoding of texts that Python knows"),
        ({}, {"delimiter": ""}, "is no delimiter"),
        ({}, {"quote": "''"}, "is no quote"),
        ({"renamed_from": "y"}, {"columns": {"id": "int64", "x": "date"}}, "belongs to a column of `source: columns`"),
    ],
)
def test_the_catalog_refuses_keys_that_cannot_hold(
    tmp_path: Path, column: dict[str, Any], source: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadCatalog) as refusal:
        lake_of(tmp_path, str(column.pop("type", "date")), column, source)
    assert said in str(refusal.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", [None, "utf-16", "cp1252", "utf-8-sig"])
def test_every_line_end_in_every_encoding(tmp_path: Path, end: str, encoding: str | None) -> None:
    text = f'junk{end}id,x{end}1,"é, {end}ü"{end}2,"say ""é"""\r\n3,z{end}'
    (tmp_path / "in.csv").write_bytes(text.encode(encoding or "utf-8"))
    said = {"skip_lines": 1} | ({"encoding": encoding} if encoding else {})
    assert read(lake_of(tmp_path, "string", {}, said)) == [f"é, {end}ü", 'say "é"', "z"]


def test_a_line_end_may_lie_between_two_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.csv").write_bytes(b'id,x\r\n1,a\n2,"b\r\nc"\r\n3,d\r')
    for size in range(1, 12):
        monkeypatch.setattr("features.sources.file._CHUNK_BYTES", size)
        lake = lake_of(tmp_path, "string", {}, {}, name="in.csv")
        (tmp_path / "in.csv").touch()
        assert read(Lake(lake.settings.model_copy(update={"home": tmp_path / f"var-{size}"}), lake.catalog)) == [
            "a",
            "b\r\nc",
            "d",
        ]


def test_quotes_and_long_lines_are_declared(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,x\n1,'a,b'\n")
    assert read(lake_of(tmp_path, "string", {}, {"quote": "'"})) == ["a,b"]
    (tmp_path / "in.csv").write_text('id,x\n1,"a\n')
    assert read(lake_of(tmp_path, "string", {}, {"quote": ""})) == ['"a']
    (tmp_path / "in.csv").write_text(f"id,x\n1,{'a' * 3_000_000}\n")
    with pytest.raises(SourceUnreadable):
        read(lake_of(tmp_path, "string", {}, {}))
    assert len(read(lake_of(tmp_path, "string", {}, {"max_line_bytes": 4_000_000}))[0]) == 3_000_000
    (tmp_path / "in.csv").write_text("id||x\n1||a|b\n")
    assert read(lake_of(tmp_path, "string", {}, {"delimiter": "||"})) == ["a|b"]


def test_a_column_may_have_had_another_name_or_none(tmp_path: Path) -> None:
    said = {"renamed_from": ["ex", "old x"], "on_missing": "ignore"}
    for header, values in (("id,x", ["a"]), ("id,old x", ["a"]), ("ex,id", ["1"])):
        (tmp_path / "in.csv").write_text(f"{header}\n1,a\n" if header != "ex,id" else f"{header}\n1,2\n")
        assert read(lake_of(tmp_path, "string", said, {})) == values
    (tmp_path / "in.csv").write_text("id\n1\n")
    assert read(lake_of(tmp_path, "string", said, {})) == [None]
    (tmp_path / "in.csv").write_text("id,x,ex\n1,a,b\n")
    with pytest.raises(SourceSchemaMismatch, match="'x' is there twice: as 'x' and as 'ex'"):
        read(lake_of(tmp_path, "string", said, {}))
    (tmp_path / "in.csv").write_text("id, X \n1,a\n")
    with pytest.raises(SourceSchemaMismatch, match="`renamed_from: ' X '` reads it"):
        read(lake_of(tmp_path, "string", {}, {}))


def test_differences_are_told_as_declared_and_survive_the_cache(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,y,y\n1,2,3\n")
    for extra, missing, told in (("warn", "warn", [("x", True), ("y", False)]), ("ignore", "ignore", [])):
        lake = lake_of(tmp_path, "string", {"on_missing": missing}, {"on_extra": extra})
        for _ in range(2):
            with lake.duckdb() as connection, lake.scratch("test") as folder:
                found = read_source(lake, "d", "t", Interval.of(NIGHT), connection, name="found", folder=folder)
            assert [(each.column, each.missing) for each in found.differences.get(None, ())] == told


def test_a_known_at_without_a_zone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,x\n1,2024-02-01\n")
    lake = lake_of(tmp_path, "date", {}, {})
    document = yaml.safe_load((tmp_path / "datasets" / "d.yaml").read_text())
    document["tables"]["t"]["known_at"] = {"sql": "CAST(x AS TIMESTAMP) + INTERVAL 1 DAY"}
    (tmp_path / "datasets" / "d.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(SourceSchemaMismatch, match=r"known_at is a TIMESTAMP without a time zone: .*America/Chicago"):
        read(Lake(lake.settings, load_catalog(lake.settings)))

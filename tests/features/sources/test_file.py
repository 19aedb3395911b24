"""File sources: where they are found, what makes them unreadable, and the differences that stop them."""

from __future__ import annotations

import gzip
import zipfile
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.calendar import Interval
from config.catalog.source import FileSource
from config.limits import SourceLimits
from features.sources import SourceMissing, SourceSchemaMismatch, SourceSqlReachesOutside, SourceUnreadable
from features.sources.file import find, stage
from features.sources.meter import Meter
from lake.duck import connect, read_parquet
from tests.features.sources.reading import COLUMNS, meters, read

HEADER = "meter,at_utc,litres,pulses,open,billed_on\n"
ROWS = "a,2024-03-04T10:00:00Z,1.5,3,true,2024-03-01\nb,2024-03-04T11:00:00Z,,,false,\n"


def source(uri: str, **more: Any) -> dict[str, Any]:
    return {"kind": "file", "uri": uri, **more}


def csv(folder: Path, text: str = HEADER + ROWS, name: str = "readings.csv") -> dict[str, Any]:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return source(name)


def names(table: pa.Table) -> list[str]:
    return list(table["meter"].to_pylist())


def test_every_type_arrives_as_declared(tmp_path: Path) -> None:
    found = read(meters(tmp_path, csv(tmp_path))).to_pylist()
    at = datetime(2024, 3, 4, 10, tzinfo=UTC)
    assert found[0] | {"nf__natural_date": None} == {
        "meter": "a", "at_utc": at, "litres": 1.5, "pulses": 3, "open": True, "billed_on": date(2024, 3, 1),
        "known_at_utc": at, "nf__natural_date": None, "nf__delivered": None,
    }  # fmt: skip
    assert [found[1][name] for name in ("litres", "pulses", "open", "billed_on")] == [None, None, False, None]


def test_the_paths_of_a_folder_start_in_it_and_its_sql_lies_in_sql(tmp_path: Path) -> None:
    declared = csv(tmp_path, name="data/readings.csv") | {"select": "meters/readings.sql"}
    lake = meters(tmp_path, declared)
    (tmp_path / "sql" / "meters").mkdir(parents=True)
    (tmp_path / "sql" / "meters" / "readings.sql").write_text("SELECT * FROM source WHERE meter = 'a'")
    assert names(read(lake)) == ["a"]


def test_columns_may_come_in_any_order_and_in_another_one_in_each_file(tmp_path: Path) -> None:
    csv(tmp_path, name="in/1.csv")
    csv(tmp_path, "billed_on,meter,open,at_utc,pulses,litres\n,c,true,2024-03-04 12:00:00Z,4,2\n", name="in/2.csv")
    assert names(read(meters(tmp_path, source("in/*.csv")))) == ["a", "b", "c"]


@pytest.mark.parametrize("uri", ["packed.csv.gz", "packed.zip", "many.zip!deep/readings.csv", "plain.csv", "bom.csv"])
def test_archives_and_members(tmp_path: Path, uri: str) -> None:
    text = (HEADER + ROWS).encode()
    (tmp_path / "plain.csv").write_bytes(text)
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + text)
    with gzip.open(tmp_path / "packed.csv.gz", "wb") as file:
        file.write(text)
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("readings.csv", text)
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        archive.writestr("README", "x")
        archive.writestr("deep/readings.csv", text)
    assert names(read(meters(tmp_path, source(uri)))) == ["a", "b"]


def test_a_member_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        archive.writestr("1.csv", HEADER)
        archive.writestr("2.csv", HEADER)
    with pytest.raises(
        SourceMissing, match=r"many.zip holds 2 files \(1.csv, 2.csv\). Name one in the uri: many.zip!<member>"
    ):
        read(meters(tmp_path, source("many.zip")))
    with pytest.raises(SourceMissing, match=r"has no member '3.csv'. It holds: 1.csv, 2.csv"):
        read(meters(tmp_path, source("many.zip!3.csv")))


def test_a_member_whose_path_climbs_stays_in_the_scratch_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../../climbed.csv", HEADER + ROWS)
    assert names(read(meters(tmp_path, source("evil.zip")))) == ["a", "b"]
    assert not list(tmp_path.rglob("climbed.csv"))


def test_a_file_of_an_installed_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "waterworks"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('cannot be imported')")
    csv(package)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert names(read(meters(tmp_path, source("package:waterworks/readings.csv")))) == ["a", "b"]
    with pytest.raises(SourceMissing, match="package 'no_such_package', which is not installed"):
        read(meters(tmp_path, source("package:no_such_package/readings.csv")))


def test_a_missing_file_names_the_resolved_path_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SourceMissing) as caught:
        read(meters(tmp_path, source("in/readings-{data_date}.csv")))
    assert str(tmp_path / "in" / "readings-2024-03-04.csv") in str(caught.value)
    assert "for data date 2024-03-04" in str(caught.value)
    assert "Deliver the file, or correct `uri`" in str(caught.value)


def test_each_night_has_its_own_file(tmp_path: Path) -> None:
    csv(tmp_path, HEADER + "a,2024-03-04T10:00:00Z,,,,\n", name="in/readings-2024-03-04.csv")
    csv(tmp_path, HEADER, name="in/readings-2024-03-05.csv")
    csv(tmp_path, HEADER + "c,2024-03-04T10:00:00Z,,,,\n", name="in/readings-2024-03-06.csv")
    found = read(meters(tmp_path, source("in/readings-{data_date}.csv")), Interval(date(2024, 3, 4), date(2024, 3, 7)))
    assert [(row["meter"], row["nf__delivered"].day) for row in found.to_pylist()] == [("a", 4), ("c", 6)]


def test_differing_columns_are_shown_whole(tmp_path: Path) -> None:
    text = "meter,at_utc,litres,pulse,open,serial,meter\n"
    with pytest.raises(SourceSchemaMismatch) as caught:
        read(meters(tmp_path, csv(tmp_path, text)))
    differences = (
        "'pulse' is not declared",
        "'serial' is not declared",
        "'pulses' is missing",
        "'billed_on' is missing",
        "'meter' appears twice",
    )
    for part in (*differences, "readings.csv"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("pulses", "3.5"),
        ("pulses", "35e-1"),
        ("pulses", "three"),
        ("litres", "1,5"),
        ("at_utc", "yesterday"),
        ("open", "maybe"),
        ("billed_on", "2024-03-01 10:00"),
    ],
)
def test_a_retyped_column_shows_count_first_value_and_row(tmp_path: Path, column: str, value: str) -> None:
    row = {
        "meter": "a",
        "at_utc": "2024-03-04T10:00:00Z",
        "litres": "1",
        "pulses": "3.0",
        "open": "true",
        "billed_on": "2024-03-01",
    }
    good = ",".join(row.values())
    bad = ",".join(f'"{cell}"' for cell in (row | {column: value}).values())
    with pytest.raises(SourceSchemaMismatch) as caught:
        read(meters(tmp_path, csv(tmp_path, f"{HEADER}{good}\n{good}\n{bad}\n{bad}\n")))
    assert f"'{column}' is declared {COLUMNS[column]['type']}, but 2 values are not: first '{value}', in row 3" in str(
        caught.value
    )
    assert "Nothing was written" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            HEADER + ROWS + "c,2024-03-04T12:00:00Z,1\n",
            "Expected Number of Columns: 6 Found: 3",
        ),  # cut off in the middle of a line
        (HEADER + ROWS + "c,2024-03-04T12:00:00Z,1,1,true,2024-03-01,7\n", "Expected Number of Columns: 6 Found: 7"),
        (HEADER + 'a,2024-03-04T10:00:00Z,1,1,true,"2024', "unterminated quote"),
        ("", "has no header"),
    ],
)
def test_a_ragged_or_truncated_csv(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SourceUnreadable, match=says) as caught:
        read(meters(tmp_path, csv(tmp_path, text)))
    assert "readings.csv" in str(caught.value)
    assert "Nothing was written" in str(caught.value)


def test_truncated_archives(tmp_path: Path) -> None:
    rows = "".join(f"m{n},2024-03-04T10:00:00Z,{n * 7919 % 1000},{n},true,2024-03-01\n" for n in range(20_000))
    text = (HEADER + rows).encode()
    packed = gzip.compress(text)
    (tmp_path / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "no.csv.gz").write_bytes(b"this is no gzip")
    with zipfile.ZipFile(tmp_path / "whole.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readings.csv", text)
    whole = (tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    (tmp_path / "damaged.zip").write_bytes(damaged)
    for name in ("cut.csv.gz", "no.csv.gz", "cut.zip", "damaged.zip"):
        with pytest.raises(SourceUnreadable) as caught:
            read(meters(tmp_path, source(name)))
        assert name in str(caught.value)
        assert "Deliver the whole file again" in str(caught.value)


def test_parquet_is_checked_by_its_types(tmp_path: Path) -> None:
    at = pa.array([datetime(2024, 3, 4, 10, tzinfo=UTC)], pa.timestamp("us", tz="UTC"))
    good = {
        "billed_on": pa.array([date(2024, 3, 1)]),
        "meter": pa.array(["a"]),
        "at_utc": at,
        "litres": pa.array([1.5], pa.float32()),
        "pulses": pa.array([3], pa.int32()),
        "open": pa.array([True]),
    }
    lake = meters(tmp_path, source("readings.parquet", format="parquet"))
    pq.write_table(pa.table(good), tmp_path / "readings.parquet")
    assert read(lake).to_pylist()[0]["pulses"] == 3
    pq.write_table(
        pa.table(good | {"pulses": pa.array([[3]]), "litres": pa.array([b"1.5"])}), tmp_path / "readings.parquet"
    )
    with pytest.raises(SourceSchemaMismatch) as caught:
        read(lake)
    assert "'pulses' is BIGINT[], declared int64" in str(caught.value)
    assert "'litres' is BLOB, declared float64" in str(caught.value)
    whole = (tmp_path / "readings.parquet").read_bytes()
    (tmp_path / "readings.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceUnreadable, match=r"cannot be read as parquet"):
        read(lake)


def test_select_reshapes_with_a_lookup_and_its_result_is_checked(tmp_path: Path) -> None:
    csv(tmp_path, "id,when,place\n1,2024-03-04 10:00Z,x\n2,2024-03-04 11:00Z,y\n", name="in.csv")
    csv(tmp_path, "place,litres\nx,5\n", name="places.csv")
    columns = {name: COLUMNS[name] for name in ("meter", "at_utc", "litres")}
    shaped = source(
        "in.csv",
        columns={"id": "int64", "when": "timestamp", "place": "string"},
        select="SELECT 'm' || id AS meter, \"when\" AS at_utc, litres FROM source LEFT JOIN places USING (place)",
        lookups={"places": {"uri": "places.csv", "columns": {"place": "string", "litres": "float64"}}},
    )
    assert [(row["meter"], row["litres"]) for row in read(meters(tmp_path, shaped, columns=columns)).to_pylist()] == [
        ("m1", 5.0),
        ("m2", None),
    ]
    short = shaped | {"select": 'SELECT id AS meter, "when" AS at_utc, 1 AS extra FROM source'}
    with pytest.raises(SourceSchemaMismatch, match="select of the source of meters/readings"):
        read(meters(tmp_path, short, columns=columns))
    with pytest.raises(
        SourceUnreadable, match=r"(?s)select or known_at of the source of meters/readings fails.*nowhere"
    ):
        read(meters(tmp_path, shaped | {"select": "SELECT nowhere FROM source"}, columns=columns))
    with pytest.raises(SourceMissing, match=r"is shaped by .*meters/readings.source.sql, which is not a file"):
        read(meters(tmp_path, shaped | {"select": "meters/readings.source.sql"}, columns=columns))
    csv(tmp_path, "place,litres,street\nx,5,z\n", name="places.csv")
    with pytest.raises(
        SourceSchemaMismatch, match=r"(?s)lookup places of source of meters/readings.*'street' is not declared"
    ):
        read(meters(tmp_path, shaped, columns=columns))


def test_an_unchanged_file_is_parsed_once_and_a_changed_one_again(tmp_path: Path) -> None:
    lake = meters(tmp_path, csv(tmp_path))
    read(lake)
    cached = list((lake.settings.home / "cache").rglob("*.parquet"))
    assert len(cached) == 1
    stamp = cached[0].stat().st_mtime_ns
    assert names(read(lake)) == ["a", "b"]
    assert cached[0].stat().st_mtime_ns == stamp, "the same bytes were parsed twice"
    csv(tmp_path, HEADER + ROWS.replace("a,", "z,", 1))
    assert names(read(lake)) == ["b", "z"]
    assert len(list((lake.settings.home / "cache").rglob("*.parquet"))) == 1, (
        "the cache keeps the newest bytes of a source alone"
    )
    assert names(read(meters(tmp_path, source("readings.csv", null_values=["", "z"])))) == ["b", None], (
        "another catalog entry must not find the old cache"
    )
    assert not list(lake.settings.scratch.iterdir()), "a read leaves nothing behind"


@pytest.mark.parametrize("damage", ["changed", "cut", "emptied"])
def test_a_damaged_cache_is_made_again_from_the_source(tmp_path: Path, damage: str) -> None:
    lake = meters(tmp_path, csv(tmp_path))
    rows = read(lake)
    (cached,) = (lake.settings.home / "cache").rglob("*.parquet")
    if damage == "changed":
        pq.write_table(rows.set_column(2, "litres", pa.array([1e6] * rows.num_rows)), cached)
    else:
        cached.write_bytes(cached.read_bytes()[:-40] if damage == "cut" else b"")
    assert read(lake).equals(rows)
    (again,) = (lake.settings.home / "cache").rglob("*.parquet")
    stamp = again.stat().st_mtime_ns
    assert read(lake).equals(rows)
    assert again.stat().st_mtime_ns == stamp, "made again once"


def test_the_sql_of_a_source_reads_no_file(tmp_path: Path) -> None:
    csv(tmp_path, name="other.csv")
    select = f"SELECT s.* FROM source AS s, read_text('{tmp_path}/other.csv')"
    with pytest.raises(SourceSqlReachesOutside, match="It may read source"):
        read(meters(tmp_path, csv(tmp_path) | {"select": select}))
    known_at = {"sql": f"(SELECT now() FROM read_text('{tmp_path}/other.csv'))"}
    with pytest.raises(SourceSqlReachesOutside, match="It may read source"):
        read(meters(tmp_path, csv(tmp_path), known_at=known_at))
    assert not list((tmp_path / "var").rglob("*.parquet"))


def test_names_of_files_are_taken_literally(tmp_path: Path) -> None:
    csv(tmp_path, name="in/q1.csv")
    csv(tmp_path, HEADER + "c,2024-03-04T12:00:00Z,1,1,true,\n", name="in/q[1].csv")
    assert names(read(meters(tmp_path, source("in/*.csv")))) == ["a", "b", "c"]
    assert names(read(meters(tmp_path, source("in/q[1].csv")))) == ["c"]


_ODD_NAMES = st.text(st.sampled_from("q1[]*?!{}ü #%20'=-"), min_size=1, max_size=8)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(folder=_ODD_NAMES, odd=st.lists(_ODD_NAMES, min_size=2, max_size=4, unique=True))
def test_whatever_a_file_and_its_folder_are_called_each_row_comes_once(folder: str, odd: list[str]) -> None:
    with TemporaryDirectory() as outer:
        root = Path(outer) / "start" / folder
        for number, name in enumerate(odd):
            row = f"m{number},2024-03-04T12:00:00Z,1,1,true,\n"
            (root / "in").mkdir(parents=True, exist_ok=True)
            (root / "in" / f"{name}.csv").write_text(HEADER + row, encoding="utf-8")
        found = find("in/*.csv", root, None, "odd", folder=Path(outer) / "copies", meter=Meter("odd", SourceLimits()))
        target = Path(outer) / "staged.parquet"
        with connect() as connection:
            declared = FileSource(kind="file", uri="in/*.csv")
            columns = declared.spelled({name: column["type"] for name, column in COLUMNS.items()}, None)
            meter = Meter("odd", SourceLimits())
            stage(connection, declared, found, columns, Path(outer) / "unpacked", target, meter)
            rows = connection.execute(f"SELECT meter FROM {read_parquet([target])} ORDER BY 1").fetchall()
        assert rows == [(f"m{number}",) for number in range(len(odd))]


LINES = """{"meter": "a", "at_utc": "2024-03-04T10:00:00Z", "litres": 1.5, "pulses": 3, "open": true, "billed_on": null}

{"meter": "b", "at_utc": "2024-03-04T11:00:00Z", "pulses": 9007199254740993, "open": false}
"""


@pytest.mark.parametrize("packed", [False, True])
def test_lines_of_json_are_records(tmp_path: Path, packed: bool) -> None:
    name = "readings.jsonl.gz" if packed else "readings.jsonl"
    (tmp_path / name).write_bytes(gzip.compress(LINES.encode()) if packed else LINES.encode())
    rows = read(meters(tmp_path, source(name, format="jsonl"))).to_pylist()
    assert [(row["meter"], row["litres"], row["pulses"], row["open"]) for row in rows] == [
        ("a", 1.5, 3, True),
        ("b", None, 9007199254740993, False),
    ]
    assert [row["billed_on"] for row in rows] == [None, None]


@pytest.mark.parametrize(
    ("lines", "error", "words"),
    [
        (LINES.replace("litres", "Litres"), SourceSchemaMismatch, "(?s)'Litres' is not declared.*'litres' is missing"),
        (LINES.replace("true", '"perhaps"'), SourceSchemaMismatch, "'open' is declared boolean.*'perhaps'.*row 1"),
        (LINES + "[1]\n", SourceUnreadable, "(?s)1 lines of .*readings.jsonl are JSON, but no objects.*one record"),
        (LINES[:-20], SourceUnreadable, "(?s)cannot be read as jsonl .*Malformed JSON.*Deliver the whole file"),
    ],
)
def test_lines_that_are_no_records_are_refused(tmp_path: Path, lines: str, error: type[Exception], words: str) -> None:
    (tmp_path / "readings.jsonl").write_text(lines)
    with pytest.raises(error, match=words):
        read(meters(tmp_path, source("readings.jsonl", format="jsonl")))


def test_a_file_of_lines_may_be_empty(tmp_path: Path) -> None:
    (tmp_path / "readings.jsonl").write_text("")
    assert read(meters(tmp_path, source("readings.jsonl", format="jsonl"))).num_rows == 0


def test_a_folder_of_parquet_is_read_with_its_subfolders(tmp_path: Path) -> None:
    whole = read(meters(tmp_path / "csv", csv(tmp_path / "csv"))).select(list(COLUMNS))
    for number in range(2):
        (tmp_path / f"in/meter={number}").mkdir(parents=True)
        pq.write_table(whole.slice(number, 1), tmp_path / f"in/meter={number}/part.parquet")
    assert names(read(meters(tmp_path, source("in/**/*.parquet", format="parquet")))) == ["a", "b"]

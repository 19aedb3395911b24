"""A source that sends without end, or leads elsewhere, is refused by name, and leaves nothing behind."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from config.limits import SourceLimits
from features.sources import SourceRefused, SourceTooLarge, SourceUnreadable, http
from features.sources.meter import Meter
from lake.lake import Lake
from tests.features.sources.reading import COLUMNS, meters, read
from tests.features.sources.test_http import Server, record

HEADER = "meter,at_utc,litres,pulses,open,billed_on\n"
ROW = "a,2024-03-04T10:00:00Z,1.5,3,true,2024-03-01\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(http, "FIRST_WAIT_SECONDS", 0.001)
    server = Server()
    yield server
    server.close()


def refused(lake: Lake, error: type[Exception], text: str) -> str:
    """The refusal's text; nothing of what was read is left."""
    with pytest.raises(error, match=text) as caught:
        read(lake)
    home = lake.settings.home
    left = [path for path in home.rglob("*") if path.is_file() and path.suffix != ".db"]
    assert not left
    assert "Nothing was written" in str(caught.value)
    return str(caught.value)


def gzip_bomb(folder: Path) -> dict[str, Any]:
    with gzip.open(folder / "bomb.csv.gz", "wb") as file:
        file.write(HEADER.encode())
        for _ in range(24):
            file.write(b"0" * 2**20)
    return {"kind": "file", "uri": "bomb.csv.gz"}


def zip_bomb(folder: Path) -> dict[str, Any]:
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.csv", HEADER.encode() + b"0" * (24 * 2**20))
    return {"kind": "file", "uri": "bomb.zip"}


def many_members(folder: Path) -> dict[str, Any]:
    with zipfile.ZipFile(folder / "many.zip", "w") as archive:
        for number in range(12):
            archive.writestr(f"{number}.csv", HEADER + ROW)
    return {"kind": "file", "uri": "many.zip!3.csv", "limits": {"max_zip_members": 11}}


def endless_header(folder: Path) -> dict[str, Any]:
    (folder / "header.csv").write_bytes(b"meter," * 400_000)
    return {"kind": "file", "uri": "header.csv"}


def endless_header_packed(folder: Path) -> dict[str, Any]:
    with gzip.open(folder / "header.csv.gz", "wb") as file:
        file.write(b'"' + b"meter\n" * 400_000)  # one field in quotes, over many lines
    return {"kind": "file", "uri": "header.csv.gz", "limits": {"max_header_bytes": 100_000}}


def many_rows(folder: Path) -> dict[str, Any]:
    (folder / "rows.csv").write_text(HEADER + ROW * 50)
    return {"kind": "file", "uri": "rows.csv", "limits": {"max_rows": 49}}


def many_bytes(folder: Path) -> dict[str, Any]:
    (folder / "rows.csv").write_text(HEADER + ROW * 50)
    return {"kind": "file", "uri": "rows.csv", "limits": {"max_bytes": 2_000}}


def rows_of_nothing(folder: Path) -> dict[str, Any]:
    """Two million equal rows in a few kilobytes of Parquet."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 2_000_000, pa.int32()), ["a"])
    pq.write_table(pa.table({"meter": texts}), folder / "rows.parquet")
    return {"kind": "file", "uri": "rows.parquet", "format": "parquet", "limits": {"max_rows": 1_000_000}}


def query(folder: Path) -> dict[str, Any]:
    engine = sa.create_engine(f"sqlite:///{folder / 'source.db'}")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE readings (meter TEXT)"))
        connection.execute(sa.text("INSERT INTO readings VALUES ('a'), ('b'), ('c')"))
    os.environ["SOURCE_LIMITS_URL"] = str(engine.url)
    names = ", ".join(["meter", *(f"NULL AS {name}" for name in list(COLUMNS)[1:])])
    asked = f"SELECT {names} FROM readings"
    return {"kind": "sql", "url_secret": "source_limits_url", "query": asked, "limits": {"max_rows": 2}}


@pytest.mark.parametrize(
    ("source", "limit"),
    [
        (gzip_bomb, "max_ratio"),
        (zip_bomb, "max_ratio"),
        (many_members, "max_zip_members"),
        (endless_header, "max_header_bytes"),
        (endless_header_packed, "max_header_bytes"),
        (many_rows, "max_rows"),
        (many_bytes, "max_bytes"),
        (rows_of_nothing, "max_rows"),
        (query, "max_rows"),
    ],
)
def test_a_delivery_beyond_a_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Callable[[Path], dict[str, Any]], limit: str
) -> None:
    monkeypatch.setenv("SOURCE_LIMITS_URL", "")
    assert limit in refused(meters(tmp_path, source(tmp_path)), SourceTooLarge, "readings")


def test_a_packed_file_within_the_ratio_is_cut_at_its_bytes(tmp_path: Path) -> None:
    described = gzip_bomb(tmp_path) | {"limits": {"max_bytes": 2**20}}
    assert "max_bytes" in refused(meters(tmp_path, described), SourceTooLarge, "more than 1,048,576 bytes")


def test_the_setting_holds_for_all_and_a_sources_own_word_goes_before(tmp_path: Path) -> None:
    described = many_rows(tmp_path)
    del described["limits"]
    lake = meters(tmp_path, described)
    small = lake.settings.model_copy(update={"source_limits": SourceLimits(max_rows=10)})
    refused(Lake(small, lake.catalog), SourceTooLarge, "more than 10 rows")
    other = meters(tmp_path, described | {"limits": {"max_rows": 50}})
    assert read(Lake(small, other.catalog)).num_rows == 50
    # The limits shape no row: what was read, trained and decided before stands.
    assert other.catalog.digest("meters") == lake.catalog.digest("meters")


def http_source(server: Server, **more: Any) -> dict[str, Any]:
    return {"kind": "http", "url": f"{server.url}/readings", "timeout_seconds": 5, "attempts": 1} | more


@pytest.mark.parametrize(("limit", "most"), [("max_pages", 5), ("max_rows", 5), ("max_bytes", 800)])
def test_pages_without_end_are_left(tmp_path: Path, server: Server, limit: str, most: int) -> None:
    server.answer = lambda path, parameters: (200, [record(f"meter {len(server.asked)}")])
    described = http_source(server, page_param="page", limits={limit: most})
    refused(meters(tmp_path, described), SourceTooLarge, f"more than {most} ")
    assert len(server.asked) <= 10


def test_an_answer_that_takes_for_ever_is_left(tmp_path: Path, server: Server) -> None:
    server.answer = lambda path, parameters: (200, [record(f"meter {len(server.asked)}")])
    described = http_source(server, page_param="page", limits={"max_seconds": 0.2})
    refused(meters(tmp_path, described), SourceTooLarge, "max_seconds")


def test_time_is_up_for_a_query_of_duckdb_too(tmp_path: Path) -> None:
    lake = meters(tmp_path, many_rows(tmp_path))
    meter = Meter("slow", SourceLimits(max_seconds=0.05))
    late = pytest.raises(SourceTooLarge, match="slow was not read within")
    with lake.duckdb() as connection, late, meter.interrupting(connection):
        connection.execute("SELECT sum(a.range * b.range) FROM range(10000000) a, range(1000000) b").fetchall()


def test_time_that_is_up_between_two_queries_stops_the_next_one(tmp_path: Path) -> None:
    lake = meters(tmp_path, many_rows(tmp_path))
    moments = itertools.chain([0.0], itertools.repeat(10.0))  # up before the query begins
    meter = Meter("slow", SourceLimits(max_seconds=1), clock=lambda: next(moments))
    late = pytest.raises(SourceTooLarge, match="slow was not read within")
    with lake.duckdb() as connection, late, meter.interrupting(connection):
        connection.execute("SELECT sum(a.range * b.range) FROM range(10000000) a, range(1000000) b").fetchall()


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (json.dumps([record("\ud800")]).encode(), "half a character"),
        (json.dumps({"rows": [], "next": "http://127.0.0.1:port"}).encode(), "no url"),
    ],
)
def test_an_answer_that_no_table_holds_is_refused(tmp_path: Path, server: Server, document: bytes, text: str) -> None:
    server.answer = lambda path, parameters: (200, document)
    more = {"records": "rows", "next_url": "next"} if b"next" in document else {}
    refused(meters(tmp_path, http_source(server, **more)), SourceUnreadable, text)


def test_a_zip_with_a_password_or_an_unknown_packing_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.csv", HEADER + ROW)
    whole = bytearray((tmp_path / "a.zip").read_bytes())
    local, central = 0, whole.index(b"PK\x01\x02")
    lake = meters(tmp_path, {"kind": "file", "uri": "a.zip"})
    for at, value, text in (
        (6, 1, "with a password.*without one"),
        (8, 99, "with AES encryption.*with one of Store, Deflate"),
    ):
        changed = bytearray(whole)
        changed[local + at] = changed[central + at + 2] = value
        (tmp_path / "a.zip").write_bytes(changed)
        refused(lake, SourceUnreadable, f"(?s){text}")


@pytest.mark.parametrize("uri", ["in/*.csv", "in/a.csv", "in/*/a.csv", "in/**/*.csv"])
def test_a_link_in_a_drop_folder_is_not_followed_and_not_printed(tmp_path: Path, uri: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.csv").write_text("root:x:0:0:secret\n")
    (tmp_path / "in").mkdir()
    if uri.count("/") == 1:
        (tmp_path / "in" / "a.csv").symlink_to("../elsewhere/a.csv")
    else:
        (tmp_path / "in" / "day").symlink_to("../elsewhere")
    said = refused(meters(tmp_path, {"kind": "file", "uri": uri}), Exception, "in")
    assert "SourceRefused" in said or "SourceMissing" in said  # `**` does not walk into links
    assert "secret" not in said


def test_a_file_that_becomes_a_link_after_it_was_looked_for_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from features.sources import file

    (tmp_path / "secret.csv").write_text("root:x:0:0:secret\n")
    (tmp_path / "a.csv").symlink_to("secret.csv")
    monkeypatch.setattr(file, "_refuse_links", lambda label, folder, path: None)
    said = refused(meters(tmp_path, {"kind": "file", "uri": "a.csv"}), SourceRefused, "a link")
    assert "secret" not in said


def test_the_folder_that_the_catalog_names_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.csv").write_text(HEADER + ROW)
    (tmp_path / "in").symlink_to("disk")
    assert read(meters(tmp_path, {"kind": "file", "uri": "in/*.csv"})).num_rows == 1

"""Whatever a file, a query or a server sends, a night ends in rows or in an error of ours that a person can act on.

Each run tries the same examples. To try others, take `derandomize` out and pass `--hypothesis-seed=<n>`.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import sqlite3
import tempfile
import zipfile
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.calendar import Interval
from config.errors import NightfleetError
from features.ingest import ingest
from features.sources import http
from features.validate import validate
from lake.tables import quarantine_table, raw_table, valid_table
from tests.features.sources.reading import meters

GOOD = {
    "meter": "a",
    "at_utc": "2024-03-01T10:00:00Z",
    "litres": "1.5",
    "pulses": "3",
    "open": "true",
    "billed_on": "2024-03-01",
}
# What has broken readers before, besides what hypothesis makes up itself.
ODD_TEXTS = st.sampled_from(
    [
        *(
            "",
            " ",
            "\0",
            "a\0b",
            "nan",
            "-inf",
            "1e400",
            "0x1F",
            "1_0",
            "9223372036854775808",
            "-0",
            "١٢",
            "1,5",
            "null",
        ),
        *("0000-01-01", "9999-12-31T23:59:59.9999999Z", "294247-01-10", "2024-02-30", "infinity", "epoch", "24:00"),
        *('"', '""', "'", ";", ",", "\r", "\n", "\r\n", "\\", "\ufeff", "\u2028", "\u202e", "𝔘", "é" * 300),
    ]
)
texts = st.one_of(ODD_TEXTS, st.sampled_from(sorted(GOOD.values())), st.text(max_size=12))
names = st.one_of(st.sampled_from(sorted(GOOD)), texts)


def outcome(source: Mapping[str, Any], files: Mapping[str, bytes] | None = None, **more: Any) -> str:
    """Run ingest and validate of one night over such a source: `rows`, or the name of the error."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in (files or {}).items():
            (folder / file).write_bytes(content)
        lake = None
        try:
            lake = meters(folder, source, **more)
            night = Interval.of(date(2024, 3, 1))
            ingest(lake, "meters", night, run_id="fuzz")
            validate(lake, "meters", night, run_id="fuzz")
            for table in (raw_table, valid_table, quarantine_table):
                loaded = table(lake.settings, lake.dataset("meters"), "readings").load()
                assert loaded is not None
                loaded.create_checkpoint()
        except NightfleetError as error:
            said = str(error)
            assert "meters" in said, f"the message does not say what it is about: {said}"
            assert "\n" in said or ". " in said, f"the message says nothing of what to do: {said}"
            return type(error).__name__
        finally:
            if lake is not None:
                lake.engine.dispose()
        return "rows"


@st.composite
def csv_bytes(draw: st.DrawFn) -> bytes:
    """A CSV that is right but for a few values, names, quotes or bytes."""
    rows = [dict(GOOD) for _ in range(draw(st.integers(0, 3)))]
    for row in rows:
        row |= draw(st.dictionaries(st.sampled_from(sorted(GOOD)), texts, max_size=2))
    header = list(GOOD) if draw(st.booleans()) else draw(st.lists(names, max_size=7))
    separator, end = draw(st.sampled_from([",", ",", ";", "\t"])), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    lines = [separator.join(header), *(separator.join(row.values()) for row in rows)]
    content = bytearray(
        end.join(lines).encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])), "surrogatepass")
    )
    for place in draw(st.lists(st.integers(0, max(len(content) - 1, 0)), max_size=2)):
        if content:
            content[place] = draw(st.integers(0, 255))
    return bytes(content)


@settings(max_examples=30, derandomize=True)
@given(st.one_of(csv_bytes(), st.binary(max_size=60)), st.sampled_from(["f.csv", "f.csv.gz", "f.zip"]), st.booleans())
def test_no_csv_brings_another_error(content: bytes, name: str, cut: bool) -> None:
    packed = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("f.csv", content)
    stored = {"f.csv": content, "f.csv.gz": gzip.compress(content), "f.zip": packed.getvalue()}[name]
    outcome({"kind": "file", "uri": name}, {name: stored[: len(stored) // 2] if cut else stored})


AWAY = datetime(9999, 12, 31, tzinfo=UTC)
ODD_ARRAYS = [
    pa.array([2**64 - 1], pa.uint64()),
    pa.array([None]),
    pa.array([float("nan")]),
    pa.array([float("inf")], pa.float32()),
    pa.array([2**63 - 1], pa.timestamp("us", "UTC")),
    pa.array([-(2**62)], pa.timestamp("us")),
    pa.array([2**62], pa.timestamp("s")),
    pa.array([2**62], pa.timestamp("ms")),
    pa.array([2**62], pa.timestamp("ns", "America/Chicago")),
    pa.array([2**31 - 1], pa.date32()),
    pa.array([-(2**31) + 1], pa.date32()),
    pa.array([2**40], pa.date64()),
    pa.array([1], pa.time32("s")),
    pa.array([1], pa.duration("s")),
    pa.array([Decimal("1.5")], pa.decimal128(38, 10)),
    pa.array([Decimal(10) ** 60], pa.decimal256(76, 2)),
    pa.array([[1]]),
    pa.array([{"a": 1}]),
    pa.array([b"\xff"]),
    pa.array(["x"], pa.large_string()),
    pa.array(["x"]).dictionary_encode(),
    pa.array([AWAY]),
    pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    pa.array(["\0"]),
    pa.array([True]),
    pa.array([1], pa.int8()),
]


def good_table() -> dict[str, pa.Array]:
    return {
        "meter": pa.array(["a"]),
        "at_utc": pa.array([datetime(2024, 3, 1, 10, tzinfo=UTC)]),
        "litres": pa.array([1.5]),
        "pulses": pa.array([3]),
        "open": pa.array([True]),
        "billed_on": pa.array([date(2024, 3, 1)]),
    }


@settings(max_examples=30, derandomize=True)
@given(
    st.dictionaries(st.one_of(st.sampled_from(list(GOOD)), texts), st.sampled_from(range(len(ODD_ARRAYS))), max_size=3),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=2),
    st.booleans(),
)
def test_no_parquet_brings_another_error(odd: dict[str, int], flips: list[tuple[int, int]], twice: bool) -> None:
    table = good_table() | {name: ODD_ARRAYS[number] for name, number in odd.items()}
    columns, labels = list(table.values()), list(table)
    file = io.BytesIO()
    if twice:
        columns, labels = [*columns, columns[0]], [*labels, labels[0]]
    try:
        pq.write_table(pa.table(columns, names=labels), file)
    except (pa.ArrowException, UnicodeError):
        return  # no such file can be
    content = bytearray(file.getvalue())
    for place, value in flips:
        content[place % len(content)] = value
    outcome({"kind": "file", "uri": "f.parquet", "format": "parquet"}, {"f.parquet": bytes(content)})


RECORD: dict[str, Any] = GOOD | {"litres": 1.5, "pulses": 3, "open": True}
JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), ODD_TEXTS),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
RECORDS = st.lists(st.dictionaries(names, JSON_VALUES, max_size=2).map(lambda odd: RECORD | odd), max_size=2)


@settings(max_examples=30, derandomize=True)
@given(RECORDS, st.binary(max_size=12), st.one_of(JSON_VALUES.map(json.dumps), texts))
def test_no_lines_bring_another_error(records: list[dict[str, Any]], end: bytes, line: str) -> None:
    lines = [json.dumps(record) for record in records]
    content = "\n".join([*lines, line]).encode("utf-8", "surrogatepass") + b"\n" + end
    outcome({"kind": "file", "uri": "f.jsonl", "format": "jsonl"}, {"f.jsonl": content})


SQL_VALUES = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=8), st.binary(max_size=8), ODD_TEXTS
)


@settings(max_examples=30, derandomize=True)
@given(
    st.lists(st.dictionaries(st.sampled_from(sorted(GOOD)), SQL_VALUES, max_size=2), max_size=3),
    st.one_of(
        st.just("SELECT * FROM readings"),
        st.sampled_from(
            [
                *(
                    "",
                    ";",
                    "SELEC 1",
                    "SELECT 1; SELECT 2",
                    "DELETE FROM readings",
                    "SELECT :other",
                    "PRAGMA user_version",
                ),
                *("SELECT cast(x'ff' AS text) AS meter FROM readings", "SELECT abs(-9223372036854775808)"),
                *("SELECT *, * FROM readings", "SELECT :start_utc AS meter", "SELECT * FROM away"),
            ]
        ),
        texts,
    ),
    st.sampled_from(
        ["sqlite:///{folder}/s.db"] * 5 + ["sqlite:///{folder}/no/s.db", "sqlite:///{folder}", "nosql://x"]
    ),
)
def test_no_query_brings_another_error(rows: list[dict[str, Any]], query: str, url: str) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("METERS_URL", url.format(folder=folder))
        database = sqlite3.connect(Path(folder, "s.db"))
        database.execute(f"CREATE TABLE readings ({', '.join(GOOD)})")
        for row in rows:
            values = list((GOOD | {"litres": 1.5, "pulses": 3, "open": 1} | row).values())
            try:
                database.execute(f"INSERT INTO readings VALUES ({', '.join('?' * len(values))})", values)
            except UnicodeEncodeError:
                return  # no such text can be stored
        database.commit()
        database.close()
        outcome({"kind": "sql", "url_secret": "meters_url", "query": query})


BODIES = st.one_of(
    RECORDS.map(lambda records: json.dumps(records).encode()),
    st.builds(lambda rows, after: json.dumps({"rows": rows, "next": after}).encode(), RECORDS, JSON_VALUES),
    JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=20),
    st.sampled_from([b"", b"null", b"[" * 100_000, b'[{"a": 1' + b"0" * 5000 + b"}]", b"\xef\xbb\xbf[]", b"NaN"]),
)
HEADERS = st.dictionaries(
    st.sampled_from(["Link", "Content-Encoding", "Content-Type"]),
    st.sampled_from(['</next>; rel="next"', "<http://[>; rel=next", "<>;;;", "gzip", "br", "utf-99"]),
    max_size=2,
)
PAGING = st.sampled_from(
    [
        {},
        {"page_param": "p"},
        {"offset_param": "o", "end_on": [204, "empty", None]},
        {"records": "rows", "cursor": "next", "cursor_param": "c"},
        {"records": "rows", "next_url": "next"},
        {"next_link": True, "lines": True},
    ]
)


@settings(max_examples=40, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from([200] * 6 + [204, 301, 404, 418, 503, 999]), BODIES, HEADERS), min_size=1),
    PAGING,
)
def test_no_answer_brings_another_error(
    answers: list[tuple[int, bytes, dict[str, str]]], paging: dict[str, Any]
) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        status, body, headers = answers[min(len(asked), len(answers)) - 1]
        return httpx.Response(status, headers=headers, stream=httpx.ByteStream(body))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http, "FIRST_WAIT_SECONDS", 0.0)
        patch.setattr(http, "LONGEST_WAIT_SECONDS", 0.0)
        patch.setattr(httpx, "Client", functools.partial(httpx.Client, transport=httpx.MockTransport(answer)))
        limits = {"max_pages": 20}
        outcome({"kind": "http", "url": "http://meters.example/r", "attempts": 2, "limits": limits} | paging)

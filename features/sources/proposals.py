"""What a source seems to hold, from its first rows: the keys with which the catalog would read them.

A proposal is tried with the very SQL that reads: what is proposed for a column reads each of its values.
"""

from __future__ import annotations

import codecs
import csv
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from config.catalog.source import ColumnType, SourceColumn
from features.sources.values import conversion, parsed, plausible_formats, readable

_DELIMITERS = (",", ";", "\t", "|")
_LOOKED_AT_LINES = 200
# What people write where they have no value; of a text column it may be a value.
_NULLS = ("", "NA", "N/A", "n/a", "NULL", "null", "None", "none", "NaN", "nan", "-", "--", "?", "\\N", "#N/A")
_MARKS: tuple[dict[str, str], ...] = (
    {},
    {"thousands": ","},
    {"decimal": ","},
    {"decimal": ",", "thousands": "."},
    {"decimal": ",", "thousands": " "},
    {"decimal": ",", "thousands": "\u00a0"},
    {"decimal": ",", "thousands": "'"},
    {"thousands": "'"},
    {"thousands": " "},
)
_CURRENCIES = ("$", "€", "£", "¥", "USD", "EUR", "GBP", "CHF")
_MOST_FORMATS = 3
_OF_TYPES: tuple[ColumnType, ...] = ("boolean", "int64", "float64", "date", "timestamp", "string")
_TIMES: tuple[ColumnType, ...] = ("date", "timestamp")
_WHOLE_AND_NOT: tuple[ColumnType, ...] = ("int64", "float64")
_NEARLY = 0.8


@dataclass(frozen=True)
class Proposal:
    """Keys of one column, and what a person should look at."""

    keys: Mapping[str, Any]
    note: str | None = None


def guess_csv(begin: bytes) -> dict[str, Any]:
    """How a CSV file is written, from its first bytes: what differs from UTF-8, commas, and a header in line one."""
    guessed: dict[str, Any] = {}
    encoding = "utf-8"
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = guessed["encoding"] = "utf-16"
    else:
        try:
            codecs.getincrementaldecoder("utf-8")().decode(begin)
        except UnicodeDecodeError:
            encoding = guessed["encoding"] = "cp1252"
    text = codecs.getincrementaldecoder(encoding)("replace").decode(begin)
    lines = text.splitlines(keepends=True)[:_LOOKED_AT_LINES]
    fits = {mark: _widths(lines, mark) for mark in _DELIMITERS}
    # The mark that divides the most lines into the same number of cells, and of those into the most.
    best = max(_DELIMITERS, key=lambda mark: (fits[mark][0] > 1, fits[mark][1], fits[mark][0]))
    width, _, first = fits[best]
    if width > 1:
        guessed |= {"delimiter": best} if best != "," else {}
        guessed |= {"skip_lines": first} if first else {}
    return guessed


def _widths(lines: Sequence[str], mark: str) -> tuple[int, int, int]:
    """The usual number of cells of a line, how many lines have it, and the first of these."""
    try:
        widths = [len(row) for row in csv.reader(lines, delimiter=mark)]
    except csv.Error:
        return 0, 0, 0
    if not widths:
        return 0, 0, 0
    width, count = Counter(widths).most_common(1)[0]
    return width, count, widths.index(width)


def propose(connection: duckdb.DuckDBPyConnection, values: pa.ChunkedArray, *, time_zone: str) -> Proposal:
    """Keys that read a column.

    Args:
        values: what its first rows hold, texts or typed.
        time_zone: of the data set: what a time without a zone is taken for, as long as nobody says otherwise.
    """
    connection.register("nf__sample", pa.table({"x": values}))
    try:
        duckdb_type = str(connection.execute("DESCRIBE nf__sample").fetchall()[0][1])
        if duckdb_type == "VARCHAR":
            return _of_texts(connection, values.drop_null(), time_zone)
        for kind in _OF_TYPES:
            keys = _zoned({}, kind, time_zone)
            column = SourceColumn(type=kind, **keys)
            if (
                _natural(kind, duckdb_type)
                and readable(column, duckdb_type)
                and not _refused(connection, column, duckdb_type)
            ):
                return Proposal({"type": kind} | _told(keys, duckdb_type, time_zone))
        return Proposal({"type": "string"}, f"it is {duckdb_type}, which no column holds: shape it with `select`")
    finally:
        connection.unregister("nf__sample")


def _natural(kind: ColumnType, duckdb_type: str) -> bool:
    """Whether a type of Parquet or SQL is that type, and not only can be read so."""
    base = duckdb_type.split("(")[0]
    if kind == "boolean":
        return base == "BOOLEAN"
    if kind == "date":
        return base == "DATE"
    if kind == "int64":
        return "INT" in base
    return True


def _zoned(keys: Mapping[str, Any], kind: ColumnType, time_zone: str) -> dict[str, Any]:
    return dict(keys) | ({"zone": time_zone, "ambiguous": "earlier"} if kind == "timestamp" else {})


def _told(keys: Mapping[str, Any], duckdb_type: str, time_zone: str) -> dict[str, Any]:
    """Without what says nothing: a zone where the times have one, or where the data set is in UTC."""
    naive = (
        "zone" in keys and duckdb_type.startswith("TIMESTAMP") and "TZ" not in duckdb_type and "ZONE" not in duckdb_type
    )
    return {"zone": time_zone} if naive and time_zone != "UTC" else {}


def _refused(connection: duckdb.DuckDBPyConnection, column: SourceColumn, duckdb_type: str = "VARCHAR") -> int:
    """How many values of the sample the keys do not read."""
    failed = conversion("x", column, duckdb_type).failed or "false"
    counted = connection.execute(f"SELECT count_if({failed}) FROM nf__sample").fetchall()  # noqa: S608 (our own SQL)
    return int(counted[0][0])


def _of_texts(connection: duckdb.DuckDBPyConnection, texts: pa.ChunkedArray, time_zone: str) -> Proposal:
    distinct = pc.unique(texts).to_pylist()
    nulls = [text for text in _NULLS if text in distinct]
    present = [text for text in distinct if text not in nulls]
    said = {"null_values": nulls} if set(nulls) - {""} else {}
    empty = {"null_values": nulls} if nulls else {}
    if not present:
        return Proposal({"type": "string"} | said, "without any value in the sample")
    if any(len(text) > 1 and text.startswith("0") and text.isdigit() for text in present):
        return Proposal({"type": "string"}, "digits that begin with 0: a name rather than a number")
    fewest, nearest = len(texts), "string"
    for kind, keys in _candidates(connection, present, time_zone):
        refused = _refused(connection, SourceColumn(type=kind, **empty, **keys))
        if not refused:
            return _proposal(connection, kind, keys, said, present, time_zone)
        if refused < fewest:
            fewest, nearest = refused, kind
    note = None
    if fewest <= (1 - _NEARLY) * len(texts):
        note = f"{fewest} of {len(texts)} values are no {nearest}"
    return Proposal({"type": "string"}, note)


def _candidates(
    connection: duckdb.DuckDBPyConnection, present: Sequence[str], time_zone: str
) -> Iterator[tuple[ColumnType, dict[str, Any]]]:
    """Types and keys to try, the plainer ones first."""
    if {text.lower() for text in present} <= {"true", "false"}:
        yield "boolean", {}
    currency = next((sign for sign in _CURRENCIES if all(sign in text for text in present)), None)
    signed = {"currency": currency} if currency else {}
    for marks, kind in itertools.product(_MARKS, _WHOLE_AND_NOT):
        yield kind, marks | signed
    yield "date", {}
    yield "timestamp", {"zone": time_zone, "ambiguous": "earlier"}
    for kind in _TIMES:
        if formats := _formats(connection, kind, present):
            yield kind, _zoned({"format": formats}, kind, time_zone)


def _formats(connection: duckdb.DuckDBPyConnection, kind: ColumnType, present: Sequence[str]) -> list[str]:
    """The fewest formats in which each text is written; none where there are too many."""
    chosen: list[str] = []
    left = list(present)
    plausible = dict.fromkeys((*plausible_formats(kind), *(("%Y-%m-%d",) if kind == "date" else ())))
    listed = ", ".join(f"{parsed('nf__text', text)} IS NOT NULL" for text in plausible)
    query = f"SELECT nf__text, [{listed}] FROM (SELECT unnest($1) AS nf__text)"  # noqa: S608 (our own formats)
    fits = dict(connection.execute(query, [left]).fetchall())
    while left and len(chosen) < _MOST_FORMATS:
        counts = [sum(fits[text][place] for text in left) for place in range(len(plausible))]
        if not max(counts):
            return []
        place = counts.index(max(counts))
        chosen.append(list(plausible)[place])
        left = [text for text in left if not fits[text][place]]
    return [] if left else chosen


def _proposal(
    connection: duckdb.DuckDBPyConnection,
    kind: ColumnType,
    keys: Mapping[str, Any],
    said: Mapping[str, Any],
    present: Sequence[str],
    time_zone: str,
) -> Proposal:
    told, note = {key: value for key, value in keys.items() if key not in ("zone", "ambiguous")}, None
    if "format" in told:
        note = _other_reading(connection, kind, told["format"], present)
        if len(told["format"]) == 1:
            told["format"] = told["format"][0]
    if "thousands" in keys and "decimal" not in keys and all("," in text and text.count(",") == 1 for text in present):
        note = "`decimal: ','` would read them too: look which is meant"
    if kind == "timestamp" and time_zone != "UTC" and _refused(connection, SourceColumn(type=kind, **told, **said)):
        told["zone"] = time_zone
        note = "times without a zone: the data set's own is proposed, say another one where they are not written in it"
    return Proposal({"type": kind} | told | dict(said), note)


def _other_reading(
    connection: duckdb.DuckDBPyConnection, kind: ColumnType, formats: Sequence[str], present: Sequence[str]
) -> str | None:
    """Whether day and month could as well stand the other way round."""
    swapped = [text.replace("%d/%m", "%m/%d") for text in formats]
    if list(formats) == swapped:
        return None
    keys = _zoned({"format": swapped}, kind, "UTC")
    if _refused(connection, SourceColumn(type=kind, null_values=_NULLS, **keys)):
        return None
    return f"`format: '{swapped[0]}'` would read them too: look which is meant"

"""The digest of rows: the same for the same rows however they are cut, another for any other rows."""

from __future__ import annotations

from datetime import UTC, date, datetime
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake.digest import RowsDigest, rows_digest

SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("flag", pa.bool_()),
        ("number", pa.float64()),
        ("small", pa.int32()),
        ("big", pa.int64()),
        ("day", pa.date32()),
        ("at", pa.timestamp("us", tz="UTC")),
    ]
)
ROW = st.fixed_dictionaries(
    {
        "text": st.none() | st.text(max_size=5),
        "flag": st.none() | st.booleans(),
        "number": st.none() | st.floats(),
        "small": st.none() | st.integers(-(2**31), 2**31 - 1),
        "big": st.none() | st.integers(-(2**63), 2**63 - 1),
        "day": st.none() | st.dates(date(1900, 1, 1), date(2100, 1, 1)),
        "at": st.none() | st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
    }
)
ROWS = st.lists(ROW, max_size=12)


def _chunked(table: pa.Table, cuts: list[int]) -> pa.Table:
    """The same rows in chunks that begin at `cuts`, each a slice with an offset into a longer array."""
    edges = sorted({0, *(cut % (table.num_rows + 1) for cut in cuts), table.num_rows})
    parts = [table.slice(a, b - a) for a, b in pairwise(edges)]
    return pa.concat_tables(parts) if parts else table


@settings(deadline=None)
@given(ROWS, st.lists(st.integers(0, 50), max_size=5))
def test_equal_rows_have_equal_digests_however_they_are_chunked(rows: list[dict[str, object]], cuts: list[int]) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    assert rows_digest(_chunked(table, cuts)) == rows_digest(table)


@settings(deadline=None)
@given(ROWS, ROWS)
def test_different_rows_have_different_digests(left: list[dict[str, object]], right: list[dict[str, object]]) -> None:
    same = repr(left) == repr(right)  # NaN equals NaN here, as it does in the digest
    assert (
        rows_digest(pa.Table.from_pylist(left, schema=SCHEMA))
        == rows_digest(pa.Table.from_pylist(right, schema=SCHEMA))
    ) == same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"text": ["a", "bc"]}, {"text": ["ab", "c"]}),
        ({"text": ["", None]}, {"text": [None, ""]}),
        ({"big": [0]}, {"big": [None]}),
        ({"big": [1, 2]}, {"big": [2, 1]}),
        ({"flag": [False]}, {"flag": [None]}),
        ({"number": [float("nan")]}, {"number": [None]}),
    ],
)
def test_near_misses_differ(one: dict[str, list[object]], other: dict[str, list[object]]) -> None:
    schema = pa.schema([SCHEMA.field(name) for name in one])
    assert rows_digest(pa.table(one, schema=schema)) != rows_digest(pa.table(other, schema=schema))


def test_column_names_and_types_are_part_of_it() -> None:
    of = [
        rows_digest(pa.table({name: pa.array([1], kind)}))
        for name, kind in (("a", pa.int64()), ("b", pa.int64()), ("a", pa.int32()))
    ]
    assert len(set(of)) == 3


def test_every_nan_is_the_same() -> None:
    quiet, other = (
        pa.array([float("nan")]),
        pa.Array.from_buffers(pa.float64(), 1, [None, pa.py_buffer(b"\x01\x00\x00\x00\x00\x00\xf8\xff")]),
    )
    assert rows_digest(pa.table({"x": quiet})) == rows_digest(pa.table({"x": other}))


def test_an_empty_partition_has_a_digest_that_knows_its_schema() -> None:
    empty = RowsDigest(SCHEMA)
    assert empty.hexdigest() == rows_digest(SCHEMA.empty_table())
    assert empty.hexdigest() != RowsDigest(pa.schema([("x", pa.int64())])).hexdigest()


# ---- columns that a table got later ----------------------------------------------------------------------------

ADDED = {"flag": "true", "big": "CASE WHEN text LIKE 'v%' THEN CAST(length(text) AS BIGINT) END"}
BEFORE = pa.schema([field for field in SCHEMA if field.name not in ADDED])


def _as_before(row: dict[str, object]) -> dict[str, object]:
    """The row with what a row of before holds in the later columns."""
    text = row["text"]
    return row | {"flag": True, "big": len(text) if isinstance(text, str) and text.startswith("v") else None}


def _digest(table: pa.Table, cuts: list[int]) -> str:
    digest = RowsDigest(table.schema, ADDED)
    for batch in _chunked(table, cuts).to_batches():
        digest.update(batch)
    return digest.hexdigest()


@given(
    st.lists(ROW | ROW.map(lambda row: row | {"text": "version"}), max_size=12),
    st.lists(st.integers(0, 50), max_size=3),
)
def test_rows_of_before_keep_their_digest_when_their_table_gets_columns(
    rows: list[dict[str, object]], cuts: list[int]
) -> None:
    before = rows_digest(pa.Table.from_pylist(rows, schema=BEFORE))
    assert _digest(pa.Table.from_pylist([_as_before(row) for row in rows], schema=SCHEMA), cuts) == before


@given(st.lists(ROW, min_size=1, max_size=8), st.data())
def test_a_row_that_differs_in_a_later_column_gives_another_digest(
    rows: list[dict[str, object]], data: st.DataObject
) -> None:
    same = [_as_before(row) for row in rows]
    place, name = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.sampled_from(sorted(ADDED)))
    value = data.draw({"flag": st.sampled_from([False, None]), "big": st.integers(100, 200)}[name])
    changed = [row | {name: value} if number == place else row for number, row in enumerate(same)]
    one, other = (_digest(pa.Table.from_pylist(these, schema=SCHEMA), []) for these in (same, changed))
    assert one != other
    # The other later column still counts for nothing.
    kept = [field for field in SCHEMA if field.name == name or field.name not in ADDED]
    expected = RowsDigest(pa.schema(kept))
    for batch in pa.Table.from_pylist(changed, schema=SCHEMA).select([f.name for f in kept]).to_batches():
        expected.update(batch)
    assert other == expected.hexdigest()

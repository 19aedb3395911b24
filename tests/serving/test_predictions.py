from __future__ import annotations

import hashlib
import json
import struct
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake.lake import Lake
from serving.predictions import (
    BadPredictions,
    FeatureMissing,
    check_outputs,
    input_digests,
    prediction_ids,
    predictions_table,
)
from tests.serving.scenario import MODEL

SCHEMA = pa.schema(
    {
        "a": pa.float64(),
        "b": pa.int64(),
        "c": pa.string(),
        "d": pa.bool_(),
        "e": pa.date32(),
        "f": pa.timestamp("us", tz="UTC"),
        "g": pa.int32(),
    }
)
KINDS = ("float", "integer", "text", "boolean", "date", "instant", "integer")
ROW = {
    "a": 1.5,
    "b": 7,
    "c": "EWR",
    "d": True,
    "e": date(2013, 7, 1),
    "f": datetime(2013, 7, 1, 12, tzinfo=UTC),
    "g": -1,
}


def reference(row: dict[str, Any], header: bytes) -> str:
    """The layout that the module's docstring promises, one row at a time and by nothing but the standard library."""
    cells = [hashlib.sha256(header).digest()]
    for name, value in row.items():
        if value is None:
            cells.append(b"\0" * (33 if name == "c" else 9))
        elif isinstance(value, str):
            cells.append(b"\1" + hashlib.sha256(value.encode()).digest())
        elif isinstance(value, float):
            cells.append(b"\1" + struct.pack("<d", np.nan if value != value else value))
        else:
            cells.append(b"\1" + struct.pack("<q", int(value)))
    return hashlib.sha256(b"".join(cells)).hexdigest()[:32]


def header_of(names: list[str], kinds: tuple[str, ...], **about: Any) -> bytes:
    return json.dumps(
        {**about, "columns": [list(pair) for pair in zip(names, kinds, strict=True)]}, sort_keys=True
    ).encode()


def test_a_digest_is_the_same_for_ever() -> None:
    table = pa.Table.from_pylist([ROW], schema=SCHEMA)
    assert input_digests(table, SCHEMA.names).to_pylist() == ["c7062f68d7232491cf26557405e88d82"], (
        "the layout changed: every published id would change with it"
    )


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "a": st.one_of(st.none(), st.floats()),
                "b": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
                "c": st.one_of(st.none(), st.text(max_size=6)),
                "d": st.one_of(st.none(), st.booleans()),
            }
        ),
        min_size=1,
        max_size=8,
    )
)
def test_digests_equal_a_plain_reference_however_the_rows_are_cut(rows: list[dict[str, Any]]) -> None:
    schema = pa.schema([SCHEMA.field(n) for n in "abcd"])
    table = pa.Table.from_pylist(rows, schema=schema)
    header = header_of(list("abcd"), KINDS[:4], what="input")
    expected = [reference({name: row[name] for name in "abcd"}, header) for row in rows]
    assert input_digests(table, "abcd").to_pylist() == expected
    pieces = pa.concat_tables([table.slice(i, 1) for i in range(len(rows))])
    assert input_digests(pieces, "abcd").to_pylist() == expected
    assert input_digests(table.slice(len(rows) // 2), "abcd").to_pylist() == expected[len(rows) // 2 :]


def test_nulls_nan_and_text_that_looks_like_them_differ() -> None:
    texts = input_digests(pa.table({"c": pa.array([None, "", "null", "nan", "NULL"])}), ["c"]).to_pylist()
    numbers = input_digests(pa.table({"a": pa.array([None, float("nan"), 0.0, -0.0])}), ["a"]).to_pylist()
    assert len({*texts, *numbers}) == len(texts) + len(numbers)


def test_every_nan_is_the_same_nan() -> None:
    patterns = np.array([0x7FF8000000000000, 0xFFF8000000000001, 0x7FF0000000000001], dtype="<u8").view("<f8")
    assert len(set(input_digests(pa.table({"a": patterns}), ["a"]).to_pylist())) == 1


def test_a_value_under_another_name_or_in_a_neighbouring_column_is_another_input() -> None:
    assert input_digests(pa.table({"a": [1.0]}), ["a"]) != input_digests(pa.table({"b": [1.0]}), ["b"])
    both = pa.table({"a": pa.array([1.0, None]), "b": pa.array([None, 1.0])})
    assert len(set(input_digests(both, ["a", "b"]).to_pylist())) == 2


def test_a_width_or_an_encoding_is_no_other_value() -> None:
    plain = pa.table({"b": pa.array([5], pa.int64()), "c": ["x"]})
    other = pa.table({"b": pa.array([5], pa.int32()), "c": pa.array(["x"]).dictionary_encode()})
    assert input_digests(plain, ["b", "c"]) == input_digests(other, ["b", "c"])


def test_a_prediction_id_names_everything_it_should() -> None:
    rows = pa.table(
        {
            "e": pa.array([ROW["e"]]),
            "data_date": pa.array([ROW["e"]]),
            "target_time_utc": pa.array([ROW["f"]], SCHEMA.field("f").type),
            "input_digest": ["aa"],
        }
    )

    def one(table: pa.Table = rows, **change: Any) -> str:
        arguments: dict[str, Any] = {"model": "m", "version": 1, "role": "champion", "entity": ("e",)} | change
        return str(prediction_ids(table, **arguments)[0].as_py())

    changed = [
        one(model="n"),
        one(version=2),
        one(role="challenger"),
        one(rows.set_column(0, "e", pa.array([date(2013, 7, 2)]))),
        one(rows.set_column(1, "data_date", pa.array([date(2013, 7, 2)]))),
        one(
            rows.set_column(
                2, "target_time_utc", pa.array([datetime(2013, 7, 1, 13, tzinfo=UTC)], SCHEMA.field("f").type)
            )
        ),
        one(rows.set_column(3, "input_digest", pa.array(["ab"]))),
    ]
    assert len({one(), *changed}) == 1 + len(changed)
    assert len(one()) == 32


def test_no_rows_have_no_digests() -> None:
    assert input_digests(SCHEMA.empty_table(), SCHEMA.names).to_pylist() == []


def test_a_missing_feature_is_named() -> None:
    with pytest.raises(FeatureMissing, match=r"'z'.*put it back"):
        input_digests(pa.table({"a": [1.0]}), ["a", "z"])


def test_the_table_has_role_and_entity_as_its_key(toy_lake: Lake) -> None:
    table = predictions_table(toy_lake.settings, toy_lake.model(MODEL))
    assert table.name == f"{MODEL}/predictions"
    assert table.key == ("role", "event_date", "ride")
    assert table.schema.field("ride").type == pa.int64()
    assert {"ride_minutes_lower", "ride_minutes_upper", "long_probability"} < set(table.schema.names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ride_minutes": [1.0, float("nan")]},
            "1 of 2 values of ride_minutes are not finite numbers, the first is nan",
        ),
        ({"ride_minutes": [None, 1.0]}, "1 of 2 values of ride_minutes are not finite numbers, the first is None"),
        ({"ride_minutes_upper": [1.0, float("inf")]}, "ride_minutes_upper are not finite"),
        (
            {"long_probability": [0.2, 1.01]},
            r"1 of 2 values of long_probability are not probabilities in \[0, 1\], the first is 1.01",
        ),
        ({"long_probability": [-0.2, 1.0]}, "the first is -0.2"),
        (
            {"ride_minutes_lower": [9.0, 0.0]},
            "1 of 2 values of ride_minutes_lower lie above ride_minutes_upper, the first is 9.0",
        ),
    ],
)
def test_outputs_that_must_not_be_published(
    toy_lake: Lake, change: dict[str, list[float | None]], message: str
) -> None:
    good: dict[str, list[float | None]] = {
        "ride_minutes": [1.0, 2.0],
        "ride_minutes_lower": [0.0, 1.0],
        "ride_minutes_upper": [2.0, 3.0],
        "long_probability": [0.0, 1.0],
    }
    entry = toy_lake.model(MODEL)
    check_outputs(entry, pa.table(good), 2, version=4)
    with pytest.raises(BadPredictions, match=f"version 4: .*{message}"):
        check_outputs(entry, pa.table(good | change), 2, version=4)
    with pytest.raises(BadPredictions, match=r"of 2 rows, needs .* of 3 rows"):
        check_outputs(entry, pa.table(good), 3, version=4)

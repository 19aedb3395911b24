"""Positions of units, to the byte, and who is served by them."""

from __future__ import annotations

import hashlib
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake.assignment import CHALLENGER, CHAMPION, Assignment, Plan, Units
from serving.rollout.units import UnitMissing, positions, served_rows

SCHEMA = pa.schema(
    [
        pa.field("text", pa.string()),
        pa.field("number", pa.int64()),
        pa.field("small", pa.int32()),
        pa.field("day", pa.date32()),
        pa.field("instant", pa.timestamp("us", tz="UTC")),
        pa.field("flag", pa.bool_()),
    ]
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def spelled(value: Any) -> str:
    """As the module's docstring says, written a second time."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, datetime):
        value = str((value - EPOCH) // timedelta(microseconds=1))
    text = str(value)
    return f"{len(text.encode())}:{text}"


def position(values: list[Any], salt: str) -> float:
    digest = hashlib.sha256("".join(map(spelled, [salt, *values])).encode()).hexdigest()
    return int(digest[:13], 16) / 2**52


def plan(share: float, **units: Any) -> Plan:
    given = Units(1, 0, "salt", **{"unit": ("text",), **units})
    return (
        Assignment(CHALLENGER, 2, "b", share, 2, given),
        Assignment(CHAMPION, 1, "a", 1.0 - share, 1),
    )


ROWS = st.lists(
    st.tuples(
        st.none() | st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=12),
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | st.integers(-(2**31), 2**31 - 1),
        st.none() | st.dates(date(1900, 1, 1), date(2200, 1, 1)),
        st.none() | st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
        st.none() | st.booleans(),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=40, deadline=None)
@given(ROWS, st.text(alphabet="0123456789abcdef", min_size=1, max_size=16))
def test_a_position_is_what_the_specification_says(rows: list[tuple[Any, ...]], salt: str) -> None:
    table = pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA)
    assert positions(table, tuple(SCHEMA.names), salt).tolist() == [position(list(row), salt) for row in rows]


def test_a_million_keys_have_the_positions_of_the_second_implementation() -> None:
    keys = [f"unit {number}" for number in range(1_000_000)]
    expected = [int(hashlib.sha256(f"4:salt{len(key)}:{key}".encode()).hexdigest()[:13], 16) / 2**52 for key in keys]
    own = positions(pa.table({"unit": keys}), ("unit",), "salt")
    assert np.array_equal(own, np.array(expected))
    for share in (0.05, 0.25, 0.5):
        # Five standard deviations of a binomial share.
        assert abs(np.mean(own < share) - share) < 5 * np.sqrt(share * (1 - share) / len(keys))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=5), min_size=1, max_size=50), st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_who_is_in_at_a_share_is_in_at_every_larger_one(keys: list[str], shares: list[float]) -> None:
    rows = pa.table({"text": keys})
    inside = [
        {key for key, own in zip(keys, served_rows(plan(share), rows)[CHALLENGER].to_pylist(), strict=True) if own}
        for share in sorted(shares)
    ]
    assert all(earlier <= later for earlier, later in pairwise(inside))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.none() | st.text(max_size=3), min_size=1, max_size=40),
    st.floats(0, 1),
    st.none() | st.lists(st.text(max_size=3), max_size=4),
)
def test_each_row_is_served_exactly_once(keys: list[str | None], share: float, groups: list[str] | None) -> None:
    rows = pa.table({"text": pa.array(keys, pa.string())})
    by = None if groups is None else "text"
    served = served_rows(plan(share, by=by, groups=None if groups is None else tuple(groups)), rows)
    assert [sum(pair) for pair in zip(*(mask.to_pylist() for mask in served.values()), strict=True)] == [1] * len(keys)


def test_groups_serve_their_values_and_a_null_belongs_to_the_champion() -> None:
    rows = pa.table({"text": ["north", None, "south", "new"]})
    served = served_rows(plan(0.3, by="text", groups=("north",)), rows)
    assert served[CHALLENGER].to_pylist() == [True, False, False, False]
    whole = served_rows(plan(1.0, by="text"), rows)
    assert whole[CHALLENGER].to_pylist() == [True] * 4


def test_a_null_is_a_unit_of_its_own_and_no_text() -> None:
    rows = pa.table({"a": ["-", None, "", "1:-"], "b": ["x", "x", "x", "x"]})
    assert len(set(positions(rows, ("a", "b"), "s").tolist())) == 4


def test_without_a_champion_nobody_is_served() -> None:
    alone = (Assignment(CHALLENGER, 2, "b", 0.0, 2, Units(1, 0, "salt", ("text",))),)
    assert served_rows(alone, pa.table({"text": ["a"]}))[CHALLENGER].to_pylist() == [False]


def test_a_column_that_is_gone_is_named() -> None:
    with pytest.raises(UnitMissing, match="names its units by 'depot', which the night's rows do not have"):
        served_rows(plan(0.5, unit=("depot",)), pa.table({"text": ["a"]}))

"""Numbers, shares and instants as a person reads them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.wording import counted, exact, figures, instant, percent, shown, with_bounds


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "–"),
        ("", "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        (0, "0"),
        (-0.0, "0"),
        (1234567, "1,234,567"),
        (1234567.8, "1,234,568"),
        (0.123456, "0.1235"),
        (12.3456, "12.35"),
        (-12.3, "-12.3"),
        (999.99, "1,000"),
        (1200.0, "1,200"),
        (0.00001234, "1.234e-05"),
        (1e12, "1,000,000,000,000"),
        (1e15, "1e+15"),
        (True, "yes"),
        (False, "no"),
        ("text", "text"),
        (date(2024, 3, 1), "2024-03-01"),
    ],
)
def test_numbers_have_four_digits_that_count(value: Any, said: str) -> None:
    assert shown(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.5, "50 %"), (0.031, "3.1 %"), (0.0, "0 %"), (1, "100 %"), (-0.25, "-25 %"), (None, "–"), (float("nan"), "–")],
)
def test_shares_are_percent(value: Any, said: str) -> None:
    assert shown(value, "percent") == said


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e8, max_value=1e8))
def test_what_is_shown_is_the_number_to_a_thousandth(value: float) -> None:
    read = float(shown(value).replace(",", ""))
    assert read == pytest.approx(value, rel=1e-3, abs=1e-3 * abs(value) + 1e-12)


def test_instants_are_shown_in_utc() -> None:
    berlin = timezone(timedelta(hours=2))
    assert instant(datetime(2024, 7, 1, 2, 30, tzinfo=berlin)) == "2024-07-01 00:30 UTC"
    assert instant(datetime(2024, 7, 1, 2, 30)) == "2024-07-01 02:30 UTC"
    assert instant(None) == "–"
    assert shown(datetime(2024, 7, 1, 2, 30, tzinfo=UTC)) == "2024-07-01 02:30 UTC"


def test_figures_of_sentences() -> None:
    assert [figures(value) for value in (18.34, 0.41, 12345.6, 999.7, -0.0)] == ["18.3", "0.41", "12,346", "1,000", "0"]
    assert [percent(value, signed=True) for value in (0.114, 0.0, -0.02)] == ["+11 %", "+0 %", "-2 %"]
    assert [counted(count, "row") for count in (0, 1, 1204)] == ["0 rows", "1 row", "1,204 rows"]


def test_a_value_stands_with_its_interval_where_both_ends_are_known() -> None:
    assert with_bounds(1.0, 0.98, 1.2) == "1.00 [0.980, 1.20]"
    assert with_bounds(1.0, None, 1.2) == "1.00"


def test_nothing_of_an_exact_value_is_rounded() -> None:
    at = datetime(2024, 7, 1, 2, 30, 9, tzinfo=UTC)
    assert (
        exact({"a": 0.1 + 0.2, "b": [1, None], "c": at}) == "a 0.30000000000000004, b 1, null, c 2024-07-01 02:30:09Z"
    )

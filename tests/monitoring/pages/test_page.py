"""What addresses may say, who may do what, and CSV that a spreadsheet can open without running anything."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.calendar import Interval
from lake.lake import Lake
from monitoring.pages.page import (
    BadAddress,
    Column,
    Context,
    NotFound,
    Page,
    Table,
    Viewer,
    read_date,
    read_period,
    shortened,
    to_csv,
)


def context(lake: Lake, **changed: Any) -> Context:
    given: dict[str, Any] = {
        "models": ("ride_minutes",),
        "datasets": ("rides",),
        "airflow_url": "/airflow",
        "mlflow_url": "http://mlflow",
    }
    return Context(lake, Viewer("ada", "viewer"), datetime(2024, 3, 1, tzinfo=UTC), **given | changed)


def cells(*values: Any) -> list[str]:
    """What a spreadsheet reads of one row."""
    columns = tuple(Column(f"c{i}", "label") for i in range(len(values)))
    text = to_csv(Table("t", "", columns, [{f"c{i}": value for i, value in enumerate(values)}]))
    return list(csv.reader(io.StringIO(text)))[1]


def test_csv_has_values_as_they_are_under_keys_with_units() -> None:
    columns = (
        Column("night", "Night", "date"),
        Column("share", "Share", "percent"),
        Column("km", "Distance", "number", "km"),
    )
    table = Table("t", "", columns, [{"night": date(2024, 3, 1), "share": 0.123456, "km": 7}, {"night": None}])
    assert to_csv(table) == '"night","share","km [km]"\r\n"2024-03-01",0.123456,7\r\n"","",""\r\n'


def test_csv_has_the_address_of_a_link_and_what_is_the_same_in_every_row() -> None:
    columns = (Column("card", "card", link="url"), Column("n", "n", "number"))
    rows: list[dict[str, Any]] = [{"card": "card", "url": "/nightfleet/x", "n": 1}, {"n": 2}]
    text = to_csv(Table("t", "", columns, rows, same={"model": "m"}), origin="https://fleet.example")
    assert list(csv.reader(io.StringIO(text))) == [
        ["model", "card", "n", "url"],
        ["m", "card", "1", "https://fleet.example/nightfleet/x"],
        ["m", "", "2", ""],
    ]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_a_text_that_a_spreadsheet_would_compute_stays_text(text: str) -> None:
    assert cells(text)[0].startswith("'")
    assert cells([text, "more"])[0].startswith("'"), "a list is text, too"


def test_negative_numbers_stay_numbers() -> None:
    assert cells(-1.5, -3) == ["-1.5", "-3"]


def test_what_is_not_there_is_an_empty_cell() -> None:
    assert cells(None, float("nan"), []) == ["", "", ""]


def test_instants_lists_and_truths() -> None:
    assert cells(datetime(2024, 3, 1, 4, tzinfo=UTC), ["a", 2], True) == ["2024-03-01T04:00:00+00:00", "a; 2", "True"]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40))
def test_any_text_comes_back_from_csv_but_for_apostrophes_before_formulas(text: str) -> None:
    read = cells(text)[0]
    while read != text:
        at = next((i for i, (is_now, was) in enumerate(zip(read, text, strict=False)) if is_now != was), len(text))
        assert read[at] == "'", "nothing but an apostrophe is added"
        before, after = text[:at], text[at:]
        assert before == "" or before[-1] in ";\t\r\n", "and only where a cell or a line begins"
        assert re.match(r"[\s\0]*[=+\-@＝＋－＠]|[\t\r\n]", after), "where a spreadsheet would compute"
        read = read[:at] + read[at + 1 :]


def test_hostile_texts_stay_within_their_cell() -> None:
    values = ["<script>alert(1)</script>", 'a "quoted", thing', "two\nlines", "x" * 10_000]
    assert cells(*values) == values


@pytest.mark.parametrize("text", [None, "", "  "])
def test_no_date_is_none(text: str | None) -> None:
    assert read_date(text, "from") is None


@pytest.mark.parametrize(
    "text",
    [
        "2024-02-30",
        "2024-1-5",
        "yesterday",
        "0001-01-01",
        "9999-12-31",
        "2024-01-01'; DROP TABLE metrics",
        "<script>",
        "9" * 10_000,
    ],
)
def test_what_is_no_date_is_refused_with_what_was_met_and_needed(text: str) -> None:
    with pytest.raises(BadAddress) as refused:
        read_date(text, "compare_from")
    assert "compare_from is " in str(refused.value)
    assert "needs a" in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_period_holds_both_ends() -> None:
    assert read_period("2024-03-01", "2024-03-03", newest=None, nights=7) == Interval(
        date(2024, 3, 1), date(2024, 3, 4)
    )


def test_an_open_period_ends_at_the_newest_night() -> None:
    newest = date(2024, 3, 10)
    assert read_period(None, None, newest=newest, nights=7) == Interval(date(2024, 3, 4), date(2024, 3, 11))
    assert read_period("2024-03-09", None, newest=newest, nights=7) == Interval(date(2024, 3, 9), date(2024, 3, 11))
    assert read_period(None, "2024-03-05", newest=newest, nights=2) == Interval(date(2024, 3, 4), date(2024, 3, 6))


def test_a_period_that_begins_after_the_newest_night_is_that_night() -> None:
    assert read_period("2024-05-01", None, newest=date(2024, 3, 10), nights=7) == Interval.of(date(2024, 5, 1))


def test_without_any_night_the_page_says_so() -> None:
    with pytest.raises(NotFound, match="no night"):
        read_period(None, None, newest=None, nights=7)


def test_turned_and_endless_periods_are_refused() -> None:
    with pytest.raises(BadAddress, match="compare_from is 2024-03-02, which is after compare_to"):
        read_period("2024-03-02", "2024-03-01", newest=None, nights=7, names=("compare_from", "compare_to"))
    with pytest.raises(BadAddress, match="ten years"):
        read_period("1990-01-01", "2024-03-01", newest=None, nights=7)


def test_addresses_are_quoted(toy_lake: Lake) -> None:
    there = context(toy_lake)
    assert there.url() == "/nightfleet/"
    assert (
        there.url("models", "a/b?c", from_=date(2024, 3, 1), to=None) == "/nightfleet/models/a%2Fb%3Fc?from=2024-03-01"
    )
    assert there.url("trace", id="<x> & y") == "/nightfleet/trace?id=%3Cx%3E+%26+y"
    assert (
        there.dag_url("m_train", "manual__1+00:00", "gate")
        == "/airflow/dags/m_train/runs/manual__1%2B00%3A00/tasks/gate"
    )
    assert there.mlflow_run_url("1", "abc") == "http://mlflow/#/experiments/1/runs/abc"
    assert context(toy_lake, mlflow_url="").mlflow_run_url("1", "abc") == ""


def test_models_and_data_sets_that_may_not_be_seen_are_not_there(toy_lake: Lake) -> None:
    there = context(toy_lake)
    assert there.model("ride_minutes").name == "ride_minutes"
    assert there.dataset("rides").name == "rides"
    with pytest.raises(NotFound, match="There are: ride_minutes"):
        there.model("<script>")
    hidden = context(toy_lake, models=(), datasets=())
    with pytest.raises(NotFound, match="none you may see"):
        hidden.model("ride_minutes")
    with pytest.raises(NotFound, match="none you may see"):
        hidden.dataset("rides")


def test_each_role_may_what_the_ones_below_it_may() -> None:
    assert [Viewer("a", "operator").may(role) for role in ("viewer", "operator", "admin")] == [True, True, False]


def test_a_page_finds_its_tables_by_name() -> None:
    first, second = Table("first", "", (), []), Table("second", "", (), [])
    page = Page("t", "x", tables=(first, second))
    assert page.table(None) is page.table("") is first
    assert page.table("second") is second
    with pytest.raises(NotFound, match="It has: first, second"):
        page.table("x" * 500)


def test_long_texts_are_cut_for_messages() -> None:
    assert shortened("short") == "'short'"
    assert len(shortened("x" * 10_000)) < 100
    assert "\n" not in shortened("two\nlines")

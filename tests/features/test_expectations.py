"""Suites generated from the catalog, and the SQL compiled from them: verdicts, numbers and failing rows are GX's."""

from __future__ import annotations

import functools
import json
from datetime import UTC, date, datetime
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.catalog.checks import (
    Between,
    Freshness,
    InSet,
    Matches,
    NotNull,
    PairGreater,
    RowCount,
    RowRule,
    Scalar,
    Unique,
    When,
    check_name,
    check_types,
)
from config.catalog.data import Dataset, Table, TableColumn
from config.catalog.load import load_catalog
from config.settings import ROOT, Settings
from features.expectations import (
    Suite,
    compile_suite,
    gx_suite,
    is_about_type,
    marking_sql,
    night_suite,
    row_rules,
    row_suite,
)
from features.suite_result import suite_result

COLUMNS = {
    "key": TableColumn(type="int64", description="", nullable=False),
    "text": TableColumn(type="string", description=""),
    "small": TableColumn(type="int32", description=""),
    "number": TableColumn(type="float64", description=""),
    "flag": TableColumn(type="boolean", description=""),
    "day": TableColumn(type="date", description=""),
    "begin": TableColumn(type="timestamp", description=""),
    "end": TableColumn(type="timestamp", description=""),
}
CHECKS = (
    NotNull(rule="not_null", column="text"),
    NotNull(rule="not_null", column="number", when=When(column="flag", op="==", value=False)),
    NotNull(rule="not_null", column="end", when=When(column="text", op="!=", value="it's")),
    Between(rule="between", column="small", min=-1, max=2),
    Between(rule="between", column="number", min=0.1),
    Between(rule="between", column="number", max=1.5, when=When(column="small", op=">=", value=1)),
    InSet(rule="in_set", column="text", values=("a", "it's", "")),
    InSet(rule="in_set", column="small", values=(1, 2)),
    Matches(rule="matches", column="text", regex="^[a-z']*$"),
    Unique(rule="unique", columns=("text", "small")),
    Unique(rule="unique", columns=("day",), when=When(column="flag", op="==", value=True)),
    PairGreater(rule="pair_greater", a="end", b="begin"),
    PairGreater(rule="pair_greater", a="number", b="small", or_equal=True),
    PairGreater(rule="pair_greater", a="small", b="key", when=When(column="number", op="<", value=1.0)),
)
TABLE = Table(
    description="",
    source={"kind": "file", "uri": "x.csv"},
    key=("key",),
    known_at="arrival",
    columns=COLUMNS,
    checks=CHECKS,  # type: ignore[arg-type]
)
DATASET = Dataset(
    dataset="odd",
    title="",
    owner="o",
    owner_url="u",
    licence="l",
    time_zone="UTC",
    start=date(2024, 1, 1),
    tables={"things": TABLE},  # type: ignore[call-arg]
)
SCHEMA = pa.schema(
    [
        ("key", pa.int64()),
        ("text", pa.string()),
        ("small", pa.int32()),
        ("number", pa.float64()),
        ("flag", pa.bool_()),
        ("day", pa.date32()),
        ("begin", pa.timestamp("us", tz="UTC")),
        ("end", pa.timestamp("us", tz="UTC")),
        ("data_date", pa.date32()),
        ("position", pa.int64()),
    ]
)
INSTANTS = st.none() | st.sampled_from([datetime(2024, 1, 1, hour, tzinfo=UTC) for hour in (1, 2, 3)])
ROW = st.fixed_dictionaries(
    {
        "key": st.none() | st.integers(0, 3),
        "text": st.none() | st.sampled_from(["a", "b", "it's", "", "B2"]),
        "small": st.none() | st.integers(-2, 3),
        "number": st.none() | st.sampled_from([-1.0, 0.0, 0.1, 0.5, 1.5, 2.0, 1e9]),
        "flag": st.none() | st.booleans(),
        "day": st.none() | st.dates(date(2024, 1, 1), date(2024, 1, 2)),
        "begin": INSTANTS,
        "end": INSTANTS,
        "data_date": st.dates(date(2024, 1, 1), date(2024, 1, 2)),
    }
)

# Values that some rows have, that none has, and the ends of ranges.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "key": st.integers(-1, 4),
    "text": st.sampled_from(["a", "b", "it's", "", "none has it"]),
    "small": st.integers(-3, 4),
    "number": st.sampled_from([-1.0, 0.1, 1.5, 2.0, 7.25]),
    "flag": st.booleans(),
}
ORDERED = ["==", "!=", "<", "<=", ">", ">="]


@st.composite
def conditions(draw: st.DrawFn) -> When | None:
    column = draw(st.none() | st.sampled_from(sorted(VALUES)))
    if column is None:
        return None
    # GX on pandas cannot order an object column that holds a None.
    operators = ORDERED[:2] if column in ("text", "flag") else ORDERED
    return When(column=column, op=draw(st.sampled_from(operators)), value=draw(VALUES[column]))  # type: ignore[arg-type]


@st.composite
def rules(draw: st.DrawFn) -> RowRule:
    when, column = draw(conditions()), st.sampled_from(sorted(COLUMNS))
    kind = draw(st.sampled_from([NotNull, Between, InSet, Matches, Unique, PairGreater]))
    if kind is NotNull:
        return NotNull(rule="not_null", column=draw(column), when=when)
    if kind is Between:
        low, high = draw(st.tuples(VALUES["number"], VALUES["number"]).map(sorted))
        bounds = draw(st.sampled_from([{"min": low}, {"max": high}, {"min": low, "max": high}]))
        return Between(rule="between", column=draw(st.sampled_from(["key", "small", "number"])), when=when, **bounds)
    if kind is InSet:
        name = draw(st.sampled_from(["key", "text", "small", "number"]))
        values: list[Scalar] = draw(st.lists(VALUES[name], min_size=1, max_size=3, unique=True))
        return InSet(rule="in_set", column=name, values=tuple(values), when=when)
    if kind is Matches:
        regex = draw(st.sampled_from(["^[a-z']*$", "B", "^$", "[0-9]", "'s?"]))
        return Matches(rule="matches", column="text", regex=regex, when=when)
    if kind is Unique:
        names = draw(st.lists(column, min_size=1, max_size=3, unique=True))
        return Unique(rule="unique", columns=tuple(names), when=when)
    a, b = draw(st.sampled_from([("end", "begin"), ("number", "small"), ("small", "key"), ("key", "number")]))
    return PairGreater(rule="pair_greater", a=a, b=b, or_equal=draw(st.booleans()), when=when)


@st.composite
def suites(draw: st.DrawFn) -> Suite:
    """The suite of a table with some random checks; a table names each check once."""
    checks = tuple(draw(st.lists(rules(), min_size=1, max_size=6, unique_by=check_name)))
    types = {name: column.type for name, column in COLUMNS.items()}
    assert [check_types(rule, types) for rule in checks] == [None] * len(checks), "the catalog would refuse the suite"
    table = TABLE.model_copy(update={"checks": checks})
    return row_suite(DATASET.model_copy(update={"tables": {"things": table}}), "things")


def _marked(rows: pa.Table, suite: dict[str, Any]) -> dict[str, set[int]]:
    """Positions of the rows each rule marks, by the SQL pass."""
    rules = compile_suite(suite, "things")
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("arrived", rows)
        connection.execute("CREATE TABLE things AS SELECT * FROM arrived")
        marked = connection.sql(marking_sql(rules, "things")).to_arrow_table().to_pylist()
    assert sorted(row["position"] for row in marked) == list(range(rows.num_rows)), (
        "marking neither drops nor repeats a row"
    )
    for row in marked:
        broken = [rule.check for number, rule in enumerate(rules) if row[f"nf__broken_{number}"]]
        assert row["broken_rules"] == ("; ".join(broken) or None)
    return {
        rule.check: {row["position"] for row in marked if row[f"nf__broken_{number}"]}
        for number, rule in enumerate(rules)
    }


@functools.cache
def _pandas_batches() -> Any:
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    return context.data_sources.add_pandas("p").add_dataframe_asset("a").add_batch_definition_whole_dataframe("b")


def _gx_on_pandas(rows: pa.Table, suite: Suite) -> dict[str, Any]:
    """GX's outcome of each rule on pandas, which gives the positions of all failing rows."""
    import pandas as pd

    # A nullable boolean: an object column of True, False and None has no order and no `==` that GX's query takes.
    frame = rows.to_pandas(date_as_object=False, types_mapper={pa.bool_(): pd.BooleanDtype()}.get).astype(
        {"text": "object"}
    )
    batch = _pandas_batches().get_batch({"dataframe": frame})
    # GX has other names for the types of pandas.
    kept = [e for e in suite["expectations"] if not is_about_type(e)]
    result = batch.validate(gx_suite({**suite, "expectations": kept}), result_format="COMPLETE")
    outcomes = {outcome.expectation_config.meta["check"]: outcome for outcome in result.results}
    for check, outcome in outcomes.items():
        assert "unexpected_count" in outcome.result, f"{check}: {outcome.exception_info}"
    return outcomes


def _result(rows: pa.Table, suite: Suite, **choices: Any) -> Any:
    """Our result of the suite over the rows."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("arrived", rows)
        connection.execute(f"CREATE TABLE marked AS {marking_sql(compile_suite(suite, 'arrived'), 'arrived')}")
        return suite_result(suite, "marked", connection, **choices)


def _rows(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{**row, "position": number} for number, row in enumerate(rows)], schema=SCHEMA)


def _agree(rows: list[dict[str, Any]], suite: Suite) -> None:
    """Verdict, counts, shares and failing rows are GX's own."""
    theirs = _gx_on_pandas(_rows(rows), suite)
    assert _marked(_rows(rows), suite) == {
        check: {int(index) for index in outcome.result.get("unexpected_index_list") or ()}
        for check, outcome in theirs.items()
    }
    ours = _result(_rows(rows), suite)
    assert ours.success == all(outcome.success for outcome in (*theirs.values(), *ours.results))
    compared = 0
    for outcome in ours.results:
        check = outcome.expectation_config.meta["check"]
        if check not in theirs:
            assert outcome.success, f"{check}: {outcome.result}"
            continue
        compared += 1
        expected = theirs[check]
        assert outcome.success == expected.success, check
        for name, value in outcome.result.items():
            if not name.startswith("partial"):
                assert value == pytest.approx(expected.result[name]), f"{check}: {name}"
    assert compared == len(theirs)


@settings(deadline=None, max_examples=15)
@given(st.lists(ROW, max_size=12), suites())
def test_verdicts_numbers_and_failing_rows_are_those_of_gx(rows: list[dict[str, Any]], suite: Suite) -> None:
    _agree(rows, suite)


@settings(deadline=None, max_examples=5)
@given(st.lists(ROW, min_size=1, max_size=12))
def test_they_are_for_every_rule_at_once(rows: list[dict[str, Any]]) -> None:
    _agree(rows, row_suite(DATASET, "things"))


def test_a_result_shows_some_of_the_values_that_broke_a_rule_and_no_personal_ones() -> None:
    night = date(2024, 1, 1)
    rows = [{"key": n, "text": "B2" if n % 2 else None, "small": 3, "data_date": night} for n in range(60)]
    rows += [{"key": 0, "text": "a", "small": 2, "data_date": date(2024, 1, 2)}]
    choices = {"where": "data_date = DATE '2024-01-01'", "without_examples": {"small"}}
    outcomes = {
        outcome.expectation_config.meta["check"]: outcome.result
        for outcome in _result(_rows(rows), row_suite(DATASET, "things"), **choices).results
    }
    regex = outcomes["matches(text)"]
    assert (regex["element_count"], regex["missing_count"], regex["unexpected_count"]) == (60, 30, 30)
    assert regex["partial_unexpected_list"] == ["B2"] * 20
    assert regex["partial_unexpected_counts"] == [{"value": "B2", "count": 20}]
    pairs = outcomes["unique(text, small)"]
    assert pairs["unexpected_count"] == 30
    assert "partial_unexpected_list" not in pairs
    assert "partial_unexpected_list" not in outcomes["between(small)"]


def test_a_wrong_type_breaks_its_expectation() -> None:
    rows = _rows([]).set_column(2, "small", pa.array([], pa.int64()))
    result = _result(rows, row_suite(DATASET, "things"))
    wrong = [outcome for outcome in result.results if not outcome.success]
    assert [(o.expectation_config.meta["check"], o.result["observed_value"]) for o in wrong] == [
        ("type(small)", "BIGINT")
    ]
    assert not result.success
    assert result.statistics["unsuccessful_expectations"] == 1


def test_declared_nullability_and_the_key_are_rules_of_their_own() -> None:
    names = [check_name(rule) for rule in row_rules(TABLE)]
    assert names[:2] == ["not_null(key)", "unique(key)"]
    said = TABLE.model_copy(
        update={"checks": (Unique(rule="unique", columns=("key",)), NotNull(rule="not_null", column="key"))}
    )
    assert [check_name(rule) for rule in row_rules(said)] == ["not_null(key)", "unique(key)"], (
        "declared as well, they appear once"
    )


@pytest.mark.parametrize("name", [d.name for d in load_catalog(Settings(catalogs=(ROOT / "config",))).datasets])
def test_suites_of_the_catalog_that_is_shipped_read_as_gx_and_compile(name: str) -> None:
    import great_expectations as gx

    dataset = load_catalog(Settings(catalogs=(ROOT / "config",))).dataset(name)
    for table in dataset.tables:
        for suite in (row_suite(dataset, table), night_suite(dataset, table)):
            assert json.loads(json.dumps(suite)) == suite
            read = gx.ExpectationSuite(**suite).to_json_dict()
            assert [e["kwargs"] for e in read["expectations"]] == [e["kwargs"] for e in suite["expectations"]]
        rules = compile_suite(row_suite(dataset, table), "t")
        assert [rule.check for rule in rules] == [check_name(rule) for rule in row_rules(dataset.tables[table])]


def test_the_suite_of_nights_holds_shares_row_counts_and_freshness() -> None:
    table = TABLE.model_copy(
        update={
            "checks": (
                RowCount(rule="row_count", min_ratio=0.5, severity="stop"),
                Freshness(rule="freshness", column="end"),
            )
        }
    )
    suite = night_suite(DATASET.model_copy(update={"tables": {"things": table}}), "things")
    assert [(e["kwargs"], e["severity"]) for e in suite["expectations"]] == [
        ({"column": "bad_share", "min_value": 0, "max_value": 0.01}, "warning"),
        ({"column": "bad_share", "min_value": 0, "max_value": 0.2}, "critical"),
        ({"column": "row_count_ratio", "min_value": 0.5, "max_value": 2.0}, "critical"),
        ({"column": "hours_since_end", "max_value": 24.0}, "warning"),
    ]


def test_an_expectation_that_has_no_sql_is_said() -> None:
    with pytest.raises(NotImplementedError, match="no SQL for expect_column_values_to_be_unique"):
        compile_suite(
            {
                "expectations": [
                    {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "x"}, "meta": {"check": "x"}}
                ]
            },
            "t",
        )

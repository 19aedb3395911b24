"""Suites generated from the catalog, and the SQL compiled from them: row by row what GX finds on pandas."""

from __future__ import annotations

import json
import os
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
    Unique,
    When,
    check_name,
)
from config.catalog.data import Column, Dataset, Table
from config.catalog.load import load_catalog
from config.settings import ROOT, Settings
from features.expectations import compile_suite, marking_sql, night_suite, row_rules, row_suite
from features.gx_duckdb import suite_runner

COLUMNS = {
    "key": Column(type="int64", description="", nullable=False),
    "text": Column(type="string", description=""),
    "small": Column(type="int32", description=""),
    "number": Column(type="float64", description=""),
    "flag": Column(type="boolean", description=""),
    "day": Column(type="date", description=""),
    "begin": Column(type="timestamp", description=""),
    "end": Column(type="timestamp", description=""),
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
        broken = [rule.check for number, rule in enumerate(rules) if row[f"broken_{number}"]]
        assert row["broken_rules"] == ("; ".join(broken) or None)
    return {
        rule.check: {row["position"] for row in marked if row[f"broken_{number}"]} for number, rule in enumerate(rules)
    }


def _gx_on_pandas(rows: pa.Table, suite: dict[str, Any]) -> dict[str, set[int]]:
    """Positions of the rows GX finds on pandas, where it gives them all."""
    import great_expectations as gx
    import pandas as pd

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    # A nullable boolean: an object column of True, False and None has no order and no `==` that GX's query takes.
    frame = rows.to_pandas(date_as_object=False, types_mapper={pa.bool_(): pd.BooleanDtype()}.get).astype(
        {"text": "object"}
    )
    batch = (
        context.data_sources.add_pandas("p")
        .add_dataframe_asset("a")
        .add_batch_definition_whole_dataframe("b")
        .get_batch({"dataframe": frame})
    )
    kept = [e for e in suite["expectations"] if e["type"] != "expect_column_values_to_be_of_type"]
    result = batch.validate(gx.ExpectationSuite(**{**suite, "expectations": kept}), result_format="COMPLETE")
    found = {}
    for outcome in result.results:
        check = outcome.expectation_config.meta["check"]
        assert "unexpected_count" in outcome.result, f"{check}: {outcome.exception_info}"
        found[check] = {int(index) for index in outcome.result.get("unexpected_index_list") or ()}
    return found


def _rows(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{**row, "position": number} for number, row in enumerate(rows)], schema=SCHEMA)


@settings(deadline=None, max_examples=20)
@given(st.lists(ROW, min_size=1, max_size=12))
def test_the_sql_pass_marks_what_gx_on_pandas_finds(rows: list[dict[str, Any]]) -> None:
    suite = row_suite(DATASET, "things")
    assert _marked(_rows(rows), suite) == _gx_on_pandas(_rows(rows), suite)


@settings(deadline=None, max_examples=10)
@given(st.lists(ROW, min_size=0, max_size=30))
def test_gx_on_duckdb_counts_what_the_sql_pass_marks(rows: list[dict[str, Any]]) -> None:
    suite = row_suite(DATASET, "things")
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("arrived", _rows(rows))
        connection.execute("CREATE TABLE things AS SELECT * FROM arrived")
        with suite_runner(connection) as run:
            result = run("things", suite)
    marked = _marked(_rows(rows), suite)
    for outcome in result.results:
        check = outcome.expectation_config.meta["check"]
        if check in marked:
            assert (outcome.result["unexpected_count"] or 0) == len(marked[check]), check
        else:
            assert outcome.success, f"{check}: {outcome.result}"


def test_a_wrong_type_is_found_by_gx() -> None:
    rows = _rows([]).set_column(2, "small", pa.array([], pa.int64()))
    with duckdb.connect() as connection:
        connection.register("arrived", rows)
        connection.execute("CREATE TABLE things AS SELECT * FROM arrived")
        with suite_runner(connection) as run:
            result = run("things", row_suite(DATASET, "things"))
    assert [o.expectation_config.meta["check"] for o in result.results if not o.success] == ["type(small)"]
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"


def test_declared_nullability_and_the_key_are_rules_of_their_own() -> None:
    names = [check_name(rule) for rule in row_rules(TABLE)]
    assert names[:2] == ["not_null(key)", "unique(key)"]
    said = TABLE.model_copy(
        update={"checks": (Unique(rule="unique", columns=("key",)), NotNull(rule="not_null", column="key"))}
    )
    assert [check_name(rule) for rule in row_rules(said)] == ["not_null(key)", "unique(key)"], (
        "said aloud, they do not stand twice"
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

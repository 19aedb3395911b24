"""The Great Expectations suites of a table, generated from the catalog, and their compilation into one SQL pass.

A suite is GX's own JSON (`ExpectationSuite(**suite)` reads it), so that what is compiled here and what GX would run
are one text. Generating and compiling do not import GX, which takes seconds. Each table has two suites: one over its
rows, one over its nights.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from config.catalog.checks import (
    Between,
    InSet,
    Matches,
    NotNull,
    PairGreater,
    RowCount,
    RowRule,
    TableRule,
    Unique,
    When,
    check_name,
)
from config.catalog.data import Dataset, Table
from config.catalog.source import ColumnType
from features.sources.values import quoted

Suite = dict[str, Any]

# As SQLAlchemy names them, which is how GX compares a column's type.
_TYPE_NAMES: dict[ColumnType, str] = {
    "string": "VARCHAR",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float64": "DOUBLE",
    "boolean": "BOOLEAN",
    "date": "DATE",
    "timestamp": "TIMESTAMP",
}
BAD_SHARE = "bad_share"


def row_rules(table: Table) -> tuple[RowRule, ...]:
    """Every rule a row of the table is held to: declared nullability, a unique key, then the declared checks."""
    implied: list[RowRule] = [
        NotNull(rule="not_null", column=name) for name, column in table.columns.items() if not column.nullable
    ]
    implied.append(Unique(rule="unique", columns=table.key))
    names = {check_name(rule) for rule in implied}
    return (*implied, *(rule for rule in table.row_rules if check_name(rule) not in names))


def row_suite(dataset: Dataset, name: str) -> Suite:
    """The suite over the rows of a table: declared types, and every row rule; `meta.check` names the rule."""
    table = dataset.tables[name]
    types = [
        _expectation("expect_column_values_to_be_of_type", {"column": c, "type_": _TYPE_NAMES[d.type]}, f"type({c})")
        for c, d in table.columns.items()
    ]
    return _suite(f"{dataset.name}.{name}", [*types, *(_row_expectation(rule) for rule in row_rules(table))])


def night_suite(dataset: Dataset, name: str) -> Suite:
    """The suite over the nights of a table, one row a night: share of bad rows, row count against history,
    freshness.
    """
    table = dataset.tables[name]
    quality = table.quality
    expectations = [
        _between("bad_share", 0, quality.warn_share, BAD_SHARE, "warning"),
        _between("bad_share", 0, quality.stop_share, BAD_SHARE, "critical"),
    ]
    for rule in table.table_rules:
        low, high = table_bounds(rule)
        expectations.append(
            _between(
                table_measure(rule), low, high, check_name(rule), "critical" if rule.severity == "stop" else "warning"
            )
        )
    return _suite(f"{dataset.name}.{name} by night", expectations)


def gx_suite(suite: Suite) -> Any:
    """GX's own object of a suite."""
    # Read when GX is first imported: no usage statistics leave this machine.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx

    return gx.ExpectationSuite(**suite)


def column_type(duckdb_type: str) -> str:
    """A DuckDB type, by the name that expectations about types use."""
    return "TIMESTAMP" if duckdb_type == "TIMESTAMP WITH TIME ZONE" else duckdb_type


def is_about_type(expectation: dict[str, Any]) -> bool:
    """Whether an expectation judges a column's type, and therefore marks no rows."""
    return bool(expectation["type"] == "expect_column_values_to_be_of_type")


def table_measure(rule: TableRule) -> str:
    """Column of the nights table that holds what the rule judges."""
    return "row_count_ratio" if isinstance(rule, RowCount) else f"hours_since_{rule.column}"


def table_bounds(rule: TableRule) -> tuple[float | None, float | None]:
    """Least and greatest allowed value of that column."""
    if isinstance(rule, RowCount):
        return rule.min_ratio, rule.max_ratio
    return None, rule.max_age / timedelta(hours=1)


def _suite(name: str, expectations: list[dict[str, Any]]) -> Suite:
    return {"name": name, "expectations": expectations, "meta": {}}


def _expectation(kind: str, kwargs: dict[str, Any], check: str, severity: str = "critical") -> dict[str, Any]:
    return {
        "type": kind,
        "kwargs": {k: v for k, v in kwargs.items() if v is not None},
        "meta": {"check": check},
        "severity": severity,
    }


def _between(column: str, low: float | None, high: float | None, check: str, severity: str) -> dict[str, Any]:
    return _expectation(
        "expect_column_values_to_be_between", {"column": column, "min_value": low, "max_value": high}, check, severity
    )


def _row_expectation(rule: RowRule) -> dict[str, Any]:
    kwargs: dict[str, Any]
    match rule:
        case NotNull():
            kind, kwargs = "expect_column_values_to_not_be_null", {"column": rule.column}
        case Between():
            kind, kwargs = (
                "expect_column_values_to_be_between",
                {"column": rule.column, "min_value": rule.min, "max_value": rule.max},
            )
        case InSet():
            kind, kwargs = "expect_column_values_to_be_in_set", {"column": rule.column, "value_set": list(rule.values)}
        case Matches():
            kind, kwargs = "expect_column_values_to_match_regex", {"column": rule.column, "regex": rule.regex}
        case Unique():
            # Within a partition; a row with a null among the columns is another rule's matter.
            kind = "expect_compound_columns_to_be_unique"
            kwargs = {"column_list": ["data_date", *rule.columns], "ignore_row_if": "any_value_is_missing"}
        case PairGreater():
            kind = "expect_column_pair_values_a_to_be_greater_than_b"
            kwargs = {
                "column_A": rule.a,
                "column_B": rule.b,
                "or_equal": rule.or_equal,
                "ignore_row_if": "either_value_is_missing",
            }
    return _expectation(kind, kwargs | {"row_condition": _condition(rule.when)}, check_name(rule))


def _condition(when: When | None) -> dict[str, Any] | None:
    if when is None:
        return None
    compared = {"type": "comparison", "column": {"name": when.column}, "operator": when.op, "parameter": when.value}
    # A null satisfies `!=` in pandas and not in SQL: said aloud, it is left out in both.
    return {
        "type": "and",
        "conditions": [compared, {"type": "nullity", "column": {"name": when.column}, "is_null": False}],
    }


# ---- compilation -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompiledRule:
    """One rule as SQL over a row.

    Attributes:
        check: the rule's name.
        columns: the columns it is about.
        broken: SQL, true on rows that break it, never null; for a uniqueness rule over the join's `clash` column.
        applies: SQL, true on the rows it looks at; may be null.
        missing: SQL, true on the rows it passes over because a value is missing; None: it is about missing values.
        shown: the columns that an example of a broken row consists of.
        clash: SQL of the query that finds clashing keys, None for other rules.
    """

    check: str
    columns: tuple[str, ...]
    broken: str
    applies: str
    missing: str | None
    shown: tuple[str, ...]
    clash: str | None = None


def compile_suite(suite: Suite, relation: str) -> list[CompiledRule]:
    """The row rules of a suite as SQL over `relation`; expectations about types mark no rows and are left out."""
    compiled: list[CompiledRule] = []
    for expectation in suite["expectations"]:
        if is_about_type(expectation):
            continue
        compiled.append(_compile(expectation, relation, f"clash_{len(compiled)}"))
    return compiled


def _compile(expectation: dict[str, Any], relation: str, alias: str) -> CompiledRule:
    kwargs, check = expectation["kwargs"], expectation["meta"]["check"]
    condition = _sql_condition(kwargs["row_condition"]) if "row_condition" in kwargs else "true"
    if expectation["type"] == "expect_compound_columns_to_be_unique":
        columns = tuple(kwargs["column_list"])
        present = " AND ".join(f"{quoted(c)} IS NOT NULL" for c in columns)
        listed = ", ".join(quoted(c) for c in columns)
        keys = ", ".join(f"{quoted(c)} AS nf__key_{number}" for number, c in enumerate(columns))
        clash = (
            f"SELECT {keys}, true AS nf__hit FROM {quoted(relation)} WHERE ({condition}) AND {present}"  # noqa: S608
            f" GROUP BY {listed} HAVING count(*) > 1"
        )
        broken = f"coalesce({alias}.nf__hit AND ({condition}), false)"
        return CompiledRule(check, columns[1:], broken, f"({condition})", _any_null(columns), columns, clash)
    match expectation["type"]:
        case "expect_column_values_to_not_be_null":
            columns, holds = (kwargs["column"],), f"{quoted(kwargs['column'])} IS NOT NULL"
        case "expect_column_values_to_be_between":
            column = quoted(kwargs["column"])
            parts = [
                f"{column} {sign} {_literal(kwargs[bound])}"
                for bound, sign in (("min_value", ">="), ("max_value", "<="))
                if bound in kwargs
            ]
            columns, holds = (kwargs["column"],), " AND ".join(parts)
        case "expect_column_values_to_be_in_set":
            columns, holds = (
                (kwargs["column"],),
                f"{quoted(kwargs['column'])} IN ({', '.join(_literal(v) for v in kwargs['value_set'])})",
            )
        case "expect_column_values_to_match_regex":
            columns, holds = (
                (kwargs["column"],),
                f"regexp_matches({quoted(kwargs['column'])}, {_literal(kwargs['regex'])})",
            )
        case "expect_column_pair_values_a_to_be_greater_than_b":
            columns = (kwargs["column_A"], kwargs["column_B"])
            holds = f"{quoted(columns[0])} {'>=' if kwargs['or_equal'] else '>'} {quoted(columns[1])}"
        case other:
            raise NotImplementedError(f"no SQL for {other}")
    missing = None if expectation["type"] == "expect_column_values_to_not_be_null" else _any_null(columns)
    broken = f"coalesce(({condition}) AND NOT ({holds}), false)"
    return CompiledRule(check, columns, broken, f"({condition})", missing, columns)


def _any_null(columns: tuple[str, ...]) -> str:
    return "(" + " OR ".join(f"{quoted(column)} IS NULL" for column in columns) + ")"


def _sql_condition(condition: dict[str, Any]) -> str:
    match condition["type"]:
        case "and":
            return " AND ".join(f"({_sql_condition(part)})" for part in condition["conditions"])
        case "nullity":
            return f"{quoted(condition['column']['name'])} IS {'' if condition['is_null'] else 'NOT '}NULL"
        case "comparison":
            operator = {"==": "=", "!=": "<>"}.get(condition["operator"], condition["operator"])
            return f"{quoted(condition['column']['name'])} {operator} {_literal(condition['parameter'])}"
        case other:
            raise NotImplementedError(f"no SQL for a condition of type {other}")


def marking_sql(rules: list[CompiledRule], relation: str) -> str:
    """One SELECT over `relation`: its columns, `nf__broken_0..n` (BOOLEAN, one a rule) and `broken_rules` (names joined
    by `; `, null when none).
    """
    joins, flags = [], []
    for number, rule in enumerate(rules):
        if rule.clash is not None:
            on = " AND ".join(
                f"clash_{number}.nf__key_{part} = r.{quoted(c)}" for part, c in enumerate(("data_date", *rule.columns))
            )
            joins.append(f"LEFT JOIN ({rule.clash}) AS clash_{number} ON {on}")
        flags.append(f"{rule.broken} AS nf__broken_{number}")
    names = ", ".join(
        f"CASE WHEN nf__broken_{number} THEN {_literal(rule.check)} END" for number, rule in enumerate(rules)
    )
    marked = f"SELECT r.*, {', '.join(flags)} FROM {quoted(relation)} AS r {' '.join(joins)}"  # noqa: S608 (names from the typed catalog, values as literals)
    return f"SELECT *, nullif(concat_ws('; ', {names}), '') AS broken_rules FROM ({marked})"  # noqa: S608


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return "'" + str(value).replace("'", "''") + "'"

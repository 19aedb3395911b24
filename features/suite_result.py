"""Great Expectations' result of a suite, put together from the rows that the SQL pass marked.

GX's own engine would read every row once more for each expectation. It runs in a property test instead, which holds
each verdict, each number and each failing row here to GX's.
"""

# ruff: noqa: S608 (names come from the typed catalog, quoted)
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import duckdb

from features.expectations import CompiledRule, Suite, column_type, compile_suite, gx_suite, is_about_type
from features.sources.values import quoted

# As many as GX shows when it is not told otherwise.
_EXAMPLES = 20


def suite_result(
    suite: Suite,
    relation: str,
    connection: duckdb.DuckDBPyConnection,
    *,
    where: str = "true",
    without_examples: AbstractSet[str] = frozenset(),
) -> Any:
    """GX's `ExpectationSuiteValidationResult` of a suite over marked rows.

    Args:
        relation: a table or view as `marking_sql` makes it from this suite: its columns, and `nf__broken_0..n`.
        where: SQL condition, the rows to judge.
        without_examples: columns whose values must not be shown, because they hold personal data.
    """
    import great_expectations as gx
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult

    types = {row[0]: column_type(row[1]) for row in connection.execute(f"DESCRIBE {quoted(relation)}").fetchall()}
    rules = iter(_rule_results(compile_suite(suite, relation), relation, connection, where, without_examples))
    results = []
    for written, expectation in zip(suite["expectations"], gx_suite(suite).expectations, strict=True):
        if is_about_type(written):
            observed = types[written["kwargs"]["column"]]
            told: dict[str, Any] = {"observed_value": observed}
            success = observed == written["kwargs"]["type_"]
        else:
            told = next(rules)
            success = told["unexpected_count"] == 0
        results.append(
            ExpectationValidationResult(success=success, expectation_config=expectation.configuration, result=told)
        )
    successful = sum(result.success for result in results)
    return ExpectationSuiteValidationResult(
        success=successful == len(results),
        results=results,
        suite_name=suite["name"],
        statistics={
            "evaluated_expectations": len(results),
            "successful_expectations": successful,
            "unsuccessful_expectations": len(results) - successful,
            "success_percent": _percent(successful, len(results)),
        },
        meta={"great_expectations_version": gx.__version__, "batch_spec": {"data_asset_name": suite["name"]}},
    )


def _rule_results(
    rules: Sequence[CompiledRule],
    relation: str,
    connection: duckdb.DuckDBPyConnection,
    where: str,
    without_examples: AbstractSet[str],
) -> list[dict[str, Any]]:
    """What GX calls `result`, of each rule: how many rows it looked at, left out, and found wrong, with examples."""
    if not rules:
        return []
    conditions = [
        condition
        for number, rule in enumerate(rules)
        for condition in (rule.applies, f"{rule.applies} AND {rule.missing or 'false'}", f"nf__broken_{number}")
    ]
    counted = ", ".join(f"count(*) FILTER ({condition})" for condition in conditions)
    (counts,) = connection.execute(f"SELECT {counted} FROM {quoted(relation)} WHERE {where}").fetchall()
    results = []
    for number, rule in enumerate(rules):
        elements, missing, unexpected = counts[3 * number : 3 * number + 3]
        told = {
            "element_count": elements,
            "unexpected_count": unexpected,
            "unexpected_percent": _percent(unexpected, elements - missing),
        }
        if rule.missing is not None:
            told |= {
                "missing_count": missing,
                "missing_percent": _percent(missing, elements),
                "unexpected_percent_total": _percent(unexpected, elements),
                "unexpected_percent_nonmissing": told["unexpected_percent"],
            }
        if without_examples.isdisjoint(rule.shown):
            columns = ", ".join(quoted(name) for name in rule.shown)
            query = f"SELECT {columns} FROM {quoted(relation)} WHERE nf__broken_{number} AND {where} ORDER BY ALL"
            examples = connection.execute(f"{query} LIMIT {_EXAMPLES}").fetchall() if unexpected else []
            told |= _examples(examples)
        results.append(told)
    return results


def _examples(rows: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    values = [row[0] if len(row) == 1 else list(row) for row in rows]
    counts = Counter(rows)
    return {
        "partial_unexpected_list": values,
        "partial_unexpected_counts": [
            {"value": row[0] if len(row) == 1 else list(row), "count": count} for row, count in counts.items()
        ],
    }


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None

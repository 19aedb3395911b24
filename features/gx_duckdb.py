"""Great Expectations on a DuckDB connection that is open already.

GX 1.24 does not know DuckDB. Three places are mended, each held to GX on pandas by a test: it must keep its connection
(otherwise it fetches after closing), learn a table's column types, and match regular expressions. Importing GX takes
seconds, so everything here is deferred to the first call.
"""

from __future__ import annotations

import functools
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import duckdb

from features.expectations import Suite


@contextmanager
def suite_runner(connection: duckdb.DuckDBPyConnection) -> Iterator[Callable[[str, Suite], Any]]:
    """A function from a table's name and a suite to GX's `ExpectationSuiteValidationResult`.

    The table, or view, lies in the connection's database and is no temporary one: GX opens a cursor of its own.
    """
    gx = _great_expectations()
    import duckdb_engine

    sources = _context().data_sources
    name = f"duckdb-{uuid.uuid4().hex}"
    source = sources.add_sql(
        name,
        connection_string="duckdb:///:memory:",
        kwargs={"creator": lambda: duckdb_engine.ConnectionWrapper(connection.cursor())},
    )

    def run(table: str, suite: Suite) -> Any:
        batch = source.add_table_asset(table, table_name=table).add_batch_definition_whole_table("all").get_batch()
        return batch.validate(gx.ExpectationSuite(**suite), result_format="SUMMARY")

    try:
        yield run
    finally:
        # Before the caller closes its connection: the pool would roll back on a closed one.
        execution_engine = source.get_execution_engine()
        execution_engine.close()
        execution_engine.engine.dispose()
        sources.delete(name)


@functools.cache
def _context() -> Any:
    context = _great_expectations().get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    return context


@functools.cache
def _great_expectations() -> Any:
    # Read when GX is first imported: no usage statistics leave this machine.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    import sqlalchemy as sa
    from great_expectations.execution_engine import SqlAlchemyExecutionEngine, sqlalchemy_execution_engine
    from great_expectations.expectations.metrics.map_metric_provider import (
        ColumnMapMetricProvider,
        column_condition_partial,
    )
    from great_expectations.expectations.metrics.metric_provider import metric_value
    from great_expectations.expectations.metrics.table_metric_provider import TableMetricProvider

    class DialectName(str):
        value = "duckdb"
        __slots__ = ()

    # GX says at each registration that it overwrites a metric, and at each column that it does not know the dialect.
    for noisy in ("great_expectations.expectations.registry", "great_expectations.expectations.type_comparison"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    sqlalchemy_execution_engine._PERSISTED_CONNECTION_DIALECTS += (DialectName("duckdb"),)

    types = {
        "VARCHAR": sa.VARCHAR(),
        "INTEGER": sa.INTEGER(),
        "BIGINT": sa.BIGINT(),
        "DOUBLE": sa.DOUBLE(),
        "BOOLEAN": sa.BOOLEAN(),
        "DATE": sa.DATE(),
        "TIMESTAMP WITH TIME ZONE": sa.TIMESTAMP(timezone=True),
    }

    class MatchRegex(ColumnMapMetricProvider):  # type: ignore[misc]  # GX has no types here
        condition_metric_name = "column_values.match_regex"
        condition_value_keys = ("regex",)

        @column_condition_partial(engine=SqlAlchemyExecutionEngine)  # type: ignore[untyped-decorator]
        def _sqlalchemy(cls, column: Any, regex: str, **_: Any) -> Any:  # noqa: N805 (as GX calls it)
            return sa.func.regexp_matches(column, regex)

    class ColumnTypes(TableMetricProvider):  # type: ignore[misc]
        metric_name = "table.column_types"
        value_keys = ("include_nested",)
        default_kwarg_values = {"include_nested": True}  # noqa: RUF012 (as GX declares it)

        @metric_value(engine=SqlAlchemyExecutionEngine)  # type: ignore[untyped-decorator]
        def _sqlalchemy(cls, execution_engine: Any, metric_domain_kwargs: Any, **_: Any) -> list[dict[str, Any]]:  # noqa: N805
            data = execution_engine.batch_manager.active_batch_data
            with execution_engine.get_connection() as connection:
                rows = connection.exec_driver_sql(f'DESCRIBE "{data.source_table_name}"').fetchall()
            return [
                {"name": row[0], "type": types.get(row[1], sa.types.NullType()), "primary_key": False} for row in rows
            ]

    return gx

"""The one door to DuckDB: every connection is opened here, and closed to the world before a user's SQL runs on it.

A fresh connection loads no extension and sees no variable of Python. `allow` names the files that its views read;
`confine` makes these, and what is registered as a relation, all that its SQL can reach from then on.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

import duckdb


def connect(
    *, memory_gb: float | None = None, threads: int | None = None, spill: str | None = None
) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection in UTC, in memory.

    Args:
        memory_gb: memory limit; DuckDB's own default where left out.
        threads: likewise.
        spill: folder for what exceeds the limit.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoload_known_extensions": False,
        "autoinstall_known_extensions": False,
        "python_enable_replacements": False,
    }
    if memory_gb is not None:
        config["memory_limit"] = f"{memory_gb}GB"
    if threads is not None:
        config["threads"] = threads
    if spill is not None:
        config["temp_directory"] = spill
    connection = duckdb.connect(config=config)
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def allow(connection: duckdb.DuckDBPyConnection, paths: Iterable[str | Path]) -> None:
    """Let the SQL of a connection that is confined later read and write these files, besides those allowed before."""
    row = connection.execute("SELECT current_setting('allowed_paths')").fetchone()
    allowed = dict.fromkeys(row[0] if row else ())
    before = len(allowed)
    for path in paths:
        # DuckDB asks for the pattern that it is given (`read_parquet` escapes names), then for the file it stands for.
        allowed |= {str(path): None, glob.escape(str(path)): None}
    if len(allowed) == before:
        return  # it writes the whole list anew, which of hundreds of files takes tens of milliseconds
    listed = ", ".join("'" + path.replace("'", "''") + "'" for path in allowed)
    connection.execute(f"SET allowed_paths = [{listed}]")


def confine(connection: duckdb.DuckDBPyConnection) -> None:
    """Leave the connection what is registered on it and the files it was allowed, for good: no other file, extension or
    setting.
    """
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def sql_path(path: str | Path) -> str:
    """A path or URI as the SQL literal that DuckDB writes it to; to read it, `literal_path` or `read_parquet`."""
    return "'" + str(path).replace("'", "''") + "'"


def literal_path(path: str | Path) -> str:
    """A path of a file to read as the SQL literal of just that file: DuckDB takes names for patterns."""
    return sql_path(glob.escape(str(path)))


def read_parquet(paths: Iterable[str | Path], *, partitioned: bool = False) -> str:
    """DuckDB's `read_parquet(...)` of those files, as SQL; at least one.

    Args:
        partitioned: they are files of a Delta table: columns may have come later, and `data_date` stands in the path.
    """
    options = "hive_partitioning=false"  # on its own, DuckDB takes columns from folders called `name=value`
    if partitioned:
        options = "union_by_name=true, hive_partitioning=true, hive_types_autocast=false"
    return f"read_parquet([{', '.join(literal_path(path) for path in paths)}], {options})"


def is_nan(column: str) -> str:
    """SQL that tells whether a float column of any relation is NaN.

    `isnan` alone would not do: DuckDB answers it from the statistics of a Parquet file, and most writers leave NaN out
    of these. What stands in `try` is looked at value by value.
    """
    return f"isnan(try({column}))"

"""Declared against found columns: names, and text as the declared types. Nothing is guessed and nothing is rounded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import duckdb

from config.catalog.data import ColumnType
from config.masking import shown
from features.sources.errors import SourceSchemaMismatch
from features.sources.meter import Meter
from lake.duck import read_parquet, sql_path
from lake.tables import DUCKDB_TYPES

# What a SQL type may be where the catalog declares the key: a cast from it to the declared type loses nothing.
_INTEGERS_TO_32 = frozenset({"TINYINT", "SMALLINT", "INTEGER", "UTINYINT", "USMALLINT"})
_ROUNDED = ("BIGINT", "DECIMAL")  # where declared float64: some of their values have no double
# How a text must be written to be read as a type: DuckDB's own casts also take 1_000, 0x1F, 12e3 for an integer, a year
# of two digits for the first century, and what overflows for infinity.
_SPELLED: dict[str, str] = {
    "int32": r"[+-]?\d+(\.0*)?",
    "int64": r"[+-]?\d+(\.0*)?",
    "float64": r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?([nN][aA][nN]|[iI][nN][fF]([iI][nN][iI][tT][yY])?)",
    "date": r"\d{4}[-/]\d{1,2}[-/]\d{1,2}",
    "timestamp": r"\d{4}[-/]\d{1,2}[-/]\d{1,2}([ T]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?)?\s*([zZ]|UTC|[+-]\d{2}(:?\d{2})?)?",
}
_LOSSLESS: dict[str, frozenset[str]] = {
    "string": frozenset({"VARCHAR"}),
    "int32": _INTEGERS_TO_32,
    "int64": _INTEGERS_TO_32 | {"BIGINT", "UINTEGER"},
    "float64": _INTEGERS_TO_32 | {"BIGINT", "UINTEGER", "FLOAT", "DOUBLE", "DECIMAL"},
    "boolean": frozenset({"BOOLEAN"}),
    "date": frozenset({"DATE"}),
    # A timestamp without a zone is taken for UTC, the zone of every connection here.
    "timestamp": frozenset({"TIMESTAMP WITH TIME ZONE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"}),
}


def quoted(name: str) -> str:
    """A name as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as a SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def check_names(
    label: str, found: Sequence[str], declared: Mapping[str, ColumnType], *, personal: bool = False
) -> None:
    """Compare names, order aside.

    Args:
        personal: what is not declared is not shown: without a header, a row of persons stands in its place.
    Raises:
        SourceSchemaMismatch: with every undeclared, missing and repeated column.
    """
    problems = [f"{shown(name, personal=personal)} is not declared" for name in found if name not in declared]
    problems += [f"{name!r} is missing" for name in declared if name not in found]
    problems += [
        f"{shown(name, personal=personal and name not in declared)} appears twice"
        for name in dict.fromkeys(found)
        if list(found).count(name) > 1
    ]
    if problems:
        raise mismatch(label, problems)


def check_types(label: str, found: Mapping[str, str], declared: Mapping[str, ColumnType]) -> None:
    """Compare names, and DuckDB types with what casts to the declared types without loss.

    Raises:
        SourceSchemaMismatch: with every undeclared, missing and retyped column.
    """
    check_names(label, list(found), declared)
    problems = [
        f"{name!r} is {found[name]}, declared {kind}"
        for name, kind in declared.items()
        if found[name].split("(")[0] not in _LOSSLESS[kind]
    ]
    if problems:
        raise mismatch(label, problems)


def check_values(
    connection: duckdb.DuckDBPyConnection,
    label: str,
    relation: str,
    found: Mapping[str, str],
    declared: Mapping[str, ColumnType],
    personal: Collection[str] = (),
) -> None:
    """Refuse numbers of a relation, whose types `check_types` has accepted, that a double would round.

    Raises:
        SourceSchemaMismatch: with every such column, its number of such values and the first of them.
    """
    problems = []
    for name, kind in declared.items():
        if kind != "float64" or not found[name].startswith(_ROUNDED):
            continue
        column = quoted(name)
        rounded = f"TRY_CAST(CAST({column} AS DOUBLE) AS {found[name]}) IS DISTINCT FROM {column}"
        count, value = connection.execute(
            f"SELECT count(*), any_value({column}) FROM {relation} WHERE {column} IS NOT NULL AND {rounded}"  # noqa: S608 (quoted)
        ).fetchall()[0]
        if count:
            problems.append(
                f"{name!r} is {found[name]}, declared float64, which would round {count} values, for example "
                f"{shown(value, personal=name in personal)}: declare int64, or string, or cast it in `select`"
            )
    if problems:
        raise mismatch(label, problems)


def mismatch(label: str, problems: Sequence[str]) -> SourceSchemaMismatch:
    """The error that lists every difference."""
    listed = "\n".join(f"  - {problem}" for problem in problems)
    return SourceSchemaMismatch(
        f"{label} differs from its declared columns:\n{listed}\n"
        "  Nothing was written. Fix the source, or declare what it has now."
    )


def typed_relation(relation: str, columns: Mapping[str, ColumnType]) -> str:
    """SELECT that casts the columns of a relation, whose types `check_types` has accepted, to the declared types."""
    casts = ", ".join(
        f"CAST({quoted(name)} AS {DUCKDB_TYPES[kind]}) AS {quoted(name)}" for name, kind in columns.items()
    )
    return f"SELECT {casts} FROM {relation}"  # noqa: S608 (names from the typed catalog, quoted)


def _unreadable(name: str, kind: ColumnType) -> str:
    column, duckdb_type = quoted(name), DUCKDB_TYPES[kind]
    if kind == "string":
        return "false"
    failed = f"{column} IS NOT NULL AND TRY_CAST({column} AS {duckdb_type}) IS NULL"
    if kind not in _SPELLED:
        return f"({failed})"
    misspelled = f"NOT regexp_full_match(trim({column}), {literal(_SPELLED[kind])})"
    if kind == "float64":  # what overflows is no infinity that the source has written
        misspelled += f" OR (isinf(TRY_CAST({column} AS DOUBLE)) AND NOT contains(lower({column}), 'inf'))"
    return f"({failed} OR coalesce({misspelled}, false))"


def stage_text(
    connection: duckdb.DuckDBPyConnection,
    meter: Meter,
    relation: str,
    columns: Mapping[str, ColumnType],
    target: Path,
    *,
    personal: Collection[str] = (),
) -> None:
    """Write a relation of texts to a Parquet file with the declared types, in one pass, in bounded memory.

    Args:
        relation: SQL of a relation whose columns are all VARCHAR, named as declared; null where the source has none.
        personal: columns whose values no message shows.
    Raises:
        SourceTooLarge: it has more rows, or takes longer, than its limits allow.
        SourceSchemaMismatch: a value cannot be read as its declared type; every such column is shown with its number
            of bad values and the first of them.
    """
    casts = ", ".join(
        f"TRY_CAST({quoted(name)} AS {DUCKDB_TYPES[kind]}) AS {quoted(name)}" for name, kind in columns.items()
    )
    bad = " OR ".join(_unreadable(name, kind) for name, kind in columns.items())
    staged = target.with_suffix(".staged.parquet")
    connection.execute(
        f"COPY (SELECT {casts}, {bad} AS nf__unreadable FROM {relation}) TO {sql_path(staged)} (FORMAT parquet)"  # noqa: S608 (quoted names of the catalog)
    )
    counts = f"SELECT count(*), count(*) FILTER (WHERE nf__unreadable) FROM {read_parquet([staged])}"  # noqa: S608 (our own path)
    rows, unreadable = connection.execute(counts).fetchall()[0]
    meter.check("max_rows", rows)
    if unreadable:
        staged.unlink()
        raise mismatch(meter.label, _retyped(connection, relation, columns, personal))
    staged.rename(target)


def _retyped(
    connection: duckdb.DuckDBPyConnection, relation: str, columns: Mapping[str, ColumnType], personal: Collection[str]
) -> list[str]:
    problems = []
    for name, kind in columns.items():
        column = quoted(name)
        numbered = f"SELECT {column}, row_number() OVER () AS n FROM {relation}"  # noqa: S608 (quoted names of the catalog)
        query = f"SELECT count(*), min(n), arg_min({column}, n) FROM ({numbered}) WHERE {_unreadable(name, kind)}"  # noqa: S608 (as above)
        count, first, value = connection.execute(query).fetchall()[0]
        if count:
            problems.append(
                f"{name!r} is declared {kind}, but {count} values are not: first "
                f"{shown(value, personal=name in personal)}, in row {first} (header not counted)"
            )
    return problems

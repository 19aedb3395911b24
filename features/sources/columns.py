"""Declared against found columns: their names, and rows as the declared types. Nothing is guessed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb

from config.catalog.source import OnDifference, SourceColumn
from config.masking import HIDDEN, shown
from features.sources.errors import SourceSchemaMismatch
from features.sources.meter import Meter
from features.sources.values import (
    Conversion,
    Fault,
    conversion,
    literal,
    parsed,
    plausible_formats,
    quoted,
    readable,
)
from lake.duck import read_parquet, sql_path
from lake.tables import DUCKDB_TYPES

EVERY_NIGHT = "every"  # how `told` calls the nights of a source that is the same every night
_REFUSED = "nf__refused"
_EXAMPLE_FORMAT = "%d/%m/%y"
_OF_NAMES = (
    "Fix the source, or declare what it has now: `on_extra: warn` in the source leaves out what is not declared, "
    "`on_missing: warn` in a column makes it null where it is missing."
)


@dataclass(frozen=True)
class Difference:
    """A column that a source has and the catalog does not declare, or the other way round; accepted, and told."""

    column: str
    missing: bool


@dataclass(frozen=True)
class Matched:
    """Which column of a source stands for which declared one; a declared one that is missing is left out."""

    names: Mapping[str, str]
    differences: tuple[Difference, ...] = ()

    def relation(self, relation: str) -> str:
        """SQL of a relation with the declared names."""
        listed = ", ".join(f"{quoted(source_name)} AS {quoted(name)}" for name, source_name in self.names.items())
        return f"(SELECT {listed or 'NULL AS nf__none'} FROM {relation})"  # noqa: S608 (quoted)


@dataclass(frozen=True)
class Rows:
    """Rows of a source as they lie there.

    Attributes:
        relation: SQL of a relation whose columns are called as declared.
        types: DuckDB type of each declared column that is there.
        files: what people call each file of it, and the SQL of its rows alone.
    """

    relation: str
    types: Mapping[str, str]
    files: tuple[tuple[str, str], ...] = ()


def told(differences: Mapping[date | None, Sequence[Difference]]) -> dict[str, list[list[str | bool]]]:
    """Differences by night, as JSON can hold them: column, and whether the source lacks it."""
    return {
        night.isoformat() if night else EVERY_NIGHT: [[each.column, each.missing] for each in dict.fromkeys(listed)]
        for night, listed in differences.items()
    }


def null_where_absent(columns: Mapping[str, SourceColumn]) -> dict[str, SourceColumn]:
    """The columns of records that may leave out what is null, also from all records of a night: it is told, and null
    unless a column says otherwise.
    """
    return {
        name: column if column.on_missing else column.model_copy(update={"on_missing": "warn"})
        for name, column in columns.items()
    }


def match_names(
    label: str,
    source_names: Sequence[str],
    declared: Mapping[str, SourceColumn],
    on_extra: OnDifference | None = None,
    *,
    personal: bool = False,
) -> Matched:
    """Compare names, order aside.

    Args:
        on_extra: what of columns that are not declared.
        personal: what is not declared is not shown: without a header, a row of persons stands in its place.
    Raises:
        SourceSchemaMismatch: with every undeclared, missing and repeated column.
    """
    problems: list[str] = []
    names: dict[str, str] = {}
    differences: list[Difference] = []
    for name, column in declared.items():
        present = [own for own in (name, *(column.renamed_from or ())) if own in source_names]
        if len(present) > 1:
            problems.append(f"{name!r} is there twice: as {' and as '.join(map(repr, present))}")
        if present:
            names[name] = present[0]
        elif column.on_missing in ("warn", "ignore"):
            differences += [Difference(name, missing=True)] if column.on_missing == "warn" else []
        else:
            problems.append(f"{name!r} is missing{_nearly(name, source_names, personal=personal)}")
    known = {own for name, column in declared.items() for own in (name, *(column.renamed_from or ()))}
    extra = [name for name in dict.fromkeys(source_names) if name not in known]
    if on_extra == "warn":
        differences += [Difference(HIDDEN if personal else name, missing=False) for name in extra]
    elif on_extra != "ignore":
        problems = [f"{shown(name, personal=personal)} is not declared" for name in extra] + problems
    problems += [
        f"{shown(name, personal=personal and name not in known)} appears twice"
        for name in dict.fromkeys(source_names)
        if list(source_names).count(name) > 1 and (name in known or on_extra in (None, "refuse"))
    ]
    if problems:
        raise mismatch(label, problems, _OF_NAMES)
    return Matched(names, tuple(differences))


def _nearly(name: str, source_names: Sequence[str], *, personal: bool) -> str:
    """What a missing column may be called by mistake."""
    alike = [other for other in source_names if other.strip().lower() == name.strip().lower()]
    if not alike or personal:
        return ""
    return f" (there is {alike[0]!r}: `renamed_from: {alike[0]!r}` reads it)"


def check_types(label: str, types: Mapping[str, str], declared: Mapping[str, SourceColumn]) -> None:
    """Compare DuckDB types with what can be read as the declared types.

    Raises:
        SourceSchemaMismatch: with every column that cannot.
    """
    problems = [
        f"{name!r} is {duckdb_type}, declared {declared[name].type}: declare a type that holds it, or shape it with "
        "`select`"
        for name, duckdb_type in types.items()
        if not readable(declared[name], duckdb_type)
    ]
    if problems:
        raise mismatch(label, problems)


def mismatch(
    label: str, problems: Sequence[str], remedy: str = "Fix the source, or declare what it has now."
) -> SourceSchemaMismatch:
    """The error that lists every difference."""
    listed = "\n".join(f"  - {problem}" for problem in problems)
    return SourceSchemaMismatch(
        f"{label} differs from its declared columns:\n{listed}\n  Nothing was written. {remedy}"
    )


def typed(rows: Rows, columns: Mapping[str, SourceColumn]) -> str:
    """SELECT of the rows as the declared types; it fails on the first value that cannot be read so.

    Its failure is `is_refusal`, and `refusal` says what is wrong.
    """
    conversions = _conversions(rows, columns)
    values = ", ".join(f"{read.value} AS {quoted(name)}" for name, read in conversions.items())
    failed = " OR ".join(failed for read in conversions.values() if (failed := read.failed))
    if not failed:
        return f"SELECT {values} FROM {rows.relation}"  # noqa: S608 (names of the catalog, quoted)
    # Beside the values, not above them: so DuckDB works out once what both need.
    judged = f"SELECT {values}, ({failed}) AS {_REFUSED} FROM {rows.relation}"  # noqa: S608 (as above)
    refused = f"CASE WHEN {_REFUSED} THEN error({literal(_REFUSED)}) ELSE true END"
    return f"SELECT * EXCLUDE ({_REFUSED}) FROM ({judged}) WHERE {refused}"  # noqa: S608 (as above)


def _conversions(rows: Rows, columns: Mapping[str, SourceColumn]) -> dict[str, Conversion]:
    return {
        name: conversion(name, column, rows.types[name])
        if name in rows.types
        else Conversion(f"CAST(NULL AS {DUCKDB_TYPES[column.type]})")
        for name, column in columns.items()
    }


def is_refusal(error: duckdb.Error) -> bool:
    """Whether SQL of `typed` found a value that cannot be read."""
    return _REFUSED in str(error)


def refusal(
    connection: duckdb.DuckDBPyConnection,
    label: str,
    parts: Sequence[Rows],
    columns: Mapping[str, SourceColumn],
    personal: Collection[str] = (),
    *,
    rows_before: int = 0,
) -> SourceSchemaMismatch:
    """What cannot be read: of the first file that has such values every column, with their number and the first one.

    Args:
        personal: columns whose values no message shows.
        rows_before: rows of the source that came before these.
    """
    for part in parts:
        for file, relation in part.files or (("", part.relation),):
            problems = []
            for name, read in _conversions(part, columns).items():
                problems += _problems(connection, relation, name, columns[name], read, rows_before, name in personal)
            if problems:
                return mismatch(f"{label} ({file})" if file else label, problems)
    return mismatch(label, ["a value that was there at first is gone: it gives other rows each time it is read"])


def _problems(
    connection: duckdb.DuckDBPyConnection,
    relation: str,
    name: str,
    column: SourceColumn,
    read: Conversion,
    rows_before: int,
    personal: bool,
) -> list[str]:
    numbered = f"SELECT {quoted(name)}, row_number() OVER () AS nf__row FROM {relation}"  # noqa: S608 (quoted)
    problems, others = [], "true"
    for fault in read.faults:
        holds = f"coalesce({fault.holds}, false)"
        query = (
            f"SELECT count(*), min(nf__row), arg_min({quoted(name)}, nf__row) "  # noqa: S608 (quoted names of the catalog)
            f"FROM ({numbered}) WHERE {others} AND {holds}"
        )
        others += f" AND NOT {holds}"
        count, first, value = connection.execute(query).fetchall()[0]
        if count:
            problem = f"declared {column.type}, but {count} values {fault.problem}"
            if "{count}" in fault.problem:
                problem = fault.problem.format(count=count)
            problems.append(
                f"{name!r} is {problem}: first {shown(value, personal=personal)}, in row {rows_before + first} (header "
                f"not counted). {_remedy(connection, fault, column, value)}"
            )
    return problems


def _remedy(connection: duckdb.DuckDBPyConnection, fault: Fault, column: SourceColumn, value: object) -> str:
    if "{format}" not in fault.remedy:
        return fault.remedy
    fitting = formats_of(connection, column, [str(value)])
    return fault.remedy.format(format=literal(fitting[0] if fitting else _EXAMPLE_FORMAT))


def formats_of(connection: duckdb.DuckDBPyConnection, column: SourceColumn, texts: Sequence[str]) -> list[str]:
    """Formats in which all the texts are written, the more usual ones first."""
    formats = plausible_formats(column.type)
    listed = ", ".join(f"bool_and({parsed('nf__text', text)} IS NOT NULL)" for text in formats)
    row = connection.execute(f"SELECT {listed} FROM (SELECT unnest($1) AS nf__text)", [list(texts)]).fetchall()[0]  # noqa: S608 (our own formats)
    return [text for text, fits in zip(formats, row, strict=True) if fits]


def stage_rows(
    connection: duckdb.DuckDBPyConnection,
    meter: Meter,
    parts: Sequence[Rows],
    columns: Mapping[str, SourceColumn],
    target: Path,
    *,
    personal: Collection[str] = (),
) -> None:
    """Write the rows to a Parquet file with the declared types, in one pass, in bounded memory.

    Args:
        personal: columns whose values no message shows.
    Raises:
        SourceTooLarge: it has more rows, or takes longer, than its limits allow.
        SourceSchemaMismatch: a value cannot be read as its declared type; every such column of the file is shown with
            its number of such values, the first of them, and what to declare.
    """
    selects = " UNION ALL ".join(typed(rows, columns) for rows in parts)
    try:
        connection.execute(f"COPY ({selects}) TO {sql_path(target)} (FORMAT parquet)")
    except duckdb.InvalidInputException as error:
        if not is_refusal(error):
            raise
        raise refusal(connection, meter.label, parts, columns, personal) from None
    counted = connection.execute(f"SELECT count(*) FROM {read_parquet([target])}").fetchall()  # noqa: S608 (our own path)
    meter.check("max_rows", counted[0][0])

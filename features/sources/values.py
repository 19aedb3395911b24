"""One column of a source as SQL: its values as the declared type, and what of them cannot be read so.

Nothing is guessed and nothing is rounded. What a value may stand for besides what the catalog declares is refused, and
the refusal says what to declare.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa

from config.catalog.data import Table
from config.catalog.source import ColumnType, SourceColumn
from lake.duck import is_nan
from lake.tables import DUCKDB_TYPES

_WHOLE = frozenset(
    {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"}
)
_DOUBLES = frozenset({"FLOAT", "DOUBLE"})
_NUMBERS = _WHOLE | _DOUBLES | {"DECIMAL"}
_INTO_32 = frozenset({"TINYINT", "SMALLINT", "INTEGER", "UTINYINT", "USMALLINT"})
# Of these every value is one of the declared type.
_LOSSLESS = {
    "int32": _INTO_32,
    "int64": _INTO_32 | {"BIGINT", "UINTEGER"},
    "float64": _INTO_32 | {"UINTEGER", "FLOAT", "DOUBLE"},
}
_NAIVE = frozenset({"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"})
_ZONED = frozenset({"TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ", "TIMESTAMPTZ_NS"})
_NOTHING = '"NULL"'  # of a column without any value
# What a SQL type may be where the catalog declares the key; of the values more may be refused.
_READABLE: dict[ColumnType, frozenset[str]] = {
    "string": frozenset({"VARCHAR", "JSON", "UUID", "ENUM"}),
    "int32": _NUMBERS | {"VARCHAR"},
    "int64": _NUMBERS | {"VARCHAR"},
    "float64": _NUMBERS | {"VARCHAR"},
    "boolean": _WHOLE | {"BOOLEAN", "VARCHAR"},
    "date": _NAIVE | {"DATE", "VARCHAR"},
    "timestamp": _NAIVE | _ZONED | {"VARCHAR"},
}
_LARGEST_WHOLE_DOUBLE = 2**53
# How a text must be written to be read as a type: DuckDB's own casts also take 1_000, 0x1F, 12e3 for an integer, a year
# of two digits for the first century, and what overflows for infinity.
_SIGN, _POINT, _DIGITS = "[+-]?", r"\.", r"\d+"
_DAY = r"\d{4}[-/]\d{1,2}[-/]\d{1,2}"
_CLOCK = r"([ T]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?)?"
_OFFSET = r"\s*([zZ]|UTC|[+-]\d{2}(:?\d{2})?)"
_NAN, _INFINITY = "[nN][aA][nN]", "[iI][nN][fF]([iI][nN][iI][tT][yY])?"
# Formats that are proposed where a text is written in one of them.
_FORMATS = (
    "%d/%m/%y", "%d/%m/%Y", "%m/%d/%y", "%m/%d/%Y", "%d.%m.%y", "%d.%m.%Y", "%d-%m-%y", "%d-%m-%Y", "%Y%m%d",
    "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y",
)  # fmt: skip
_TIMES = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", "T%H:%M:%S")


def quoted(name: str) -> str:
    """A name as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as a SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def parsed(text: str, written: str) -> str:
    """SQL of a text in a strptime format as a timestamp, null where it is not so written.

    Args:
        text: SQL. written: the format. DuckDB's %Y also takes two digits, for the first century.
    """
    instant = f"try_strptime({text}, {literal(written)})"
    return f"CASE WHEN year({instant}) >= 1000 THEN {instant} END"


def plausible_formats(kind: ColumnType) -> tuple[str, ...]:
    """Formats in which people write a date or timestamp, the more usual ones first."""
    times = _TIMES[:1] if kind == "date" else _TIMES
    return tuple(day + time for time in times for day in (*_FORMATS, *(("%Y-%m-%d",) if time else ())))


def without_nan(schema: pa.Schema, table: Table) -> str:
    """SQL that lists the columns of a table in the lake; NaN is null unless the catalog keeps it.

    No night that is read now has one; those of before were stored with what their source had.
    """
    listed = []
    for field in schema:
        name = quoted(field.name)
        if not pa.types.is_floating(field.type) or table.columns[field.name].nan == "keep":
            listed.append(name)
        else:
            listed.append(f"CASE WHEN {is_nan(name)} THEN NULL ELSE {name} END AS {name}")
    return ", ".join(listed)


@dataclass(frozen=True)
class Fault:
    """What can be wrong with a value.

    Attributes:
        holds: SQL, true for a value that is wrong so.
        problem: what follows "'x' is declared date, but 3 values" or, with `{count}` in it, "'x' is ".
        remedy: what to do, as a sentence.
    """

    holds: str
    problem: str
    remedy: str


@dataclass(frozen=True)
class Conversion:
    """One column: `value` is SQL of the declared type, null where a fault holds; the first fault that holds counts."""

    value: str
    faults: tuple[Fault, ...] = ()

    @property
    def failed(self) -> str | None:
        """SQL that tells whether a value is refused; None where none can be."""
        return " OR ".join(f"coalesce({fault.holds}, false)" for fault in self.faults) or None


def readable(column: SourceColumn, duckdb_type: str) -> bool:
    """Whether some values of a DuckDB type can be read as the declared type."""
    return duckdb_type == _NOTHING or (
        not duckdb_type.endswith("]") and duckdb_type.split("(")[0] in _READABLE[column.type]
    )


def conversion(name: str, column: SourceColumn, duckdb_type: str) -> Conversion:
    """How a column of a relation is read.

    Args:
        name: what the relation calls it.
        duckdb_type: its DuckDB type there, one that is `readable`.
    """
    source, kind = quoted(name), duckdb_type.split("(")[0]
    if duckdb_type == _NOTHING:
        return Conversion(f"CAST(NULL AS {DUCKDB_TYPES[column.type]})")
    if kind == "VARCHAR":
        return _of_text(source, column)
    if column.type == "timestamp":
        naive = f"CAST({source} AS TIMESTAMP)"  # microseconds, as all instants here
        return _of_naive(naive, column, source) if kind in _NAIVE else _within_years(Conversion(_cast(source, column)))
    if column.type == "date":
        return _of_day(source, column, kind, duckdb_type)
    if kind in _NUMBERS:
        return _of_number(source, column, kind, duckdb_type)
    return Conversion(_cast(source, column))


def _cast(source: str, column: SourceColumn) -> str:
    return f"TRY_CAST({source} AS {DUCKDB_TYPES[column.type]})"


# ---- numbers ---------------------------------------------------------------------------------------------------


def _of_number(source: str, column: SourceColumn, kind: str, duckdb_type: str) -> Conversion:
    if column.type == "boolean":
        return Conversion(
            _cast(source, column),
            (
                Fault(
                    f"{source} NOT IN (0, 1)",
                    "are neither 0 nor 1",
                    "Declare int64, or say what they mean in `select`.",
                ),
            ),
        )
    value = _cast(source, column)
    if kind in _LOSSLESS[column.type]:
        return _finite(value, column) if column.type == "float64" else Conversion(value)
    remedy = "Declare int64, or string, or cast it in `select`."
    if column.type != "float64":
        remedy = "Declare float64, or round it in `select`."
    changed = f"({source} IS NOT NULL AND TRY_CAST({value} AS {duckdb_type}) IS DISTINCT FROM {source})"
    if kind in _DOUBLES:  # a NaN is how some tools write that an integer is missing
        changed = f"NOT {is_nan(source)} AND ({changed} OR abs({source}) > {_LARGEST_WHOLE_DOUBLE})"
    return Conversion(
        value, (Fault(changed, f"{duckdb_type}, declared {column.type}, which would round {{count}} values", remedy),)
    )


def _finite(value: str, column: SourceColumn) -> Conversion:
    """A double, its NaN and infinities as the catalog says."""
    if column.nan == "keep":
        return Conversion(value)
    infinite = Fault(
        f"isinf({value})", "are infinite", "Declare `nan: keep` where that is meant, or correct them in `select`."
    )
    if column.nan == "refuse":
        return Conversion(
            value,
            (Fault(is_nan(value), "are NaN", "Declare `nan: null` where it stands for a missing value."), infinite),
        )
    return Conversion(f"CASE WHEN {is_nan(value)} THEN NULL ELSE {value} END", (infinite,))


# ---- dates and times -------------------------------------------------------------------------------------------


def _within_years(read: Conversion) -> Conversion:
    """Python, and so every reader behind, knows the years 1 to 9999."""
    beyond = Fault(
        f"{read.value} < '0001-01-01'::DATE OR {read.value} >= '10000-01-01'::DATE",
        "are infinite, or not within the years 1 to 9999",
        "Make them null in the source: declare the text among `null_values`, or correct them in `select`.",
    )
    return Conversion(read.value, (*read.faults, beyond))


def _of_day(source: str, column: SourceColumn, kind: str, duckdb_type: str) -> Conversion:
    value = _cast(source, column)
    if kind == "DATE":
        return _within_years(Conversion(value))
    clock = Fault(
        f"{value} IS DISTINCT FROM {source} AND {source} IS NOT NULL",
        f"{duckdb_type}, declared date, which would cut the time off {{count}} values",
        "Declare timestamp, or cast it in `select`.",
    )
    return _within_years(Conversion(value, (clock,)))


def _of_naive(naive: str, column: SourceColumn, shown: str) -> Conversion:
    """A timestamp without a zone, in the declared one.

    A clock change shows some local times twice, and others never: of the offsets a day before and a day after, such a
    time has both, or neither.
    """
    if column.zone is None:
        undeclared = Fault(
            f"{shown} IS NOT NULL",
            "have no time zone",
            "Declare `zone: UTC`, or the zone in which they are written, for the column or for its source.",
        )
        return Conversion("CAST(NULL AS TIMESTAMPTZ)", (undeclared,))
    if column.zone == "UTC":
        return _within_years(Conversion(f"timezone('UTC', {naive})"))
    zone = literal(column.zone)
    before, after = (
        f"timezone('UTC', {naive} - (timezone({zone}, {near}) - timezone('UTC', {near})))"
        for near in (f"timezone('UTC', {naive} - INTERVAL 1 DAY)", f"timezone('UTC', {naive} + INTERVAL 1 DAY)")
    )
    holds_before, holds_after = (f"timezone({zone}, {instant}) = {naive}" for instant in (before, after))
    faults = [
        Fault(
            f"NOT ({holds_before}) AND NOT ({holds_after})",
            f"never came: the clocks of {column.zone} skipped them",
            "Correct them in the source, or declare the `zone` in which they are really written.",
        )
    ]
    chosen = f"CASE WHEN {holds_before} THEN {before} WHEN {holds_after} THEN {after} END"
    if column.ambiguous == "later":
        chosen = f"CASE WHEN {holds_after} THEN {after} WHEN {holds_before} THEN {before} END"
    elif column.ambiguous is None:
        faults.append(
            Fault(
                f"{before} <> {after} AND {holds_before} AND {holds_after}",
                f"came twice: the clocks of {column.zone} were set back",
                "Declare `ambiguous: earlier` or `later`, or have them written with their offset.",
            )
        )
    return _within_years(Conversion(chosen, tuple(faults)))


# ---- texts -----------------------------------------------------------------------------------------------------


def _of_text(source: str, column: SourceColumn) -> Conversion:
    given = source
    if column.null_values:
        given = f"CASE WHEN {source} NOT IN ({', '.join(map(literal, column.null_values))}) THEN {source} END"
    if column.type == "string":
        return Conversion(given)
    trimmed = f"trim({given})"
    if column.type == "boolean":
        value = _cast(given, column)
        return Conversion(value, (_unread(given, value, "Declare string, or say what they mean in `select`."),))
    if column.type in ("date", "timestamp"):
        return _text_of_time(given, trimmed, column)
    return _text_of_number(given, trimmed, column)


def _unread(given: str, value: str, remedy: str, misspelled: str = "false") -> Fault:
    return Fault(f"{given} IS NOT NULL AND ({value} IS NULL OR {misspelled})", "are not", remedy)


def _text_of_number(given: str, trimmed: str, column: SourceColumn) -> Conversion:
    decimal, thousands = re.escape(column.decimal or "."), re.escape(column.thousands or "")
    whole = rf"(\d+|\d{{1,3}}({thousands}\d{{3}})+)" if thousands else _DIGITS
    plain = trimmed
    if column.currency:
        sign = re.escape(column.currency)
        around = literal(rf"^([+-]?)\s*{sign}\s*|\s*{sign}$")
        plain = rf"trim(regexp_replace({plain}, {around}, '\1'))"
    pattern = rf"{_SIGN}{whole}({decimal}0*)?"
    if column.type == "float64":
        number = rf"({whole}({decimal}\d*)?|{decimal}\d+)([eE][+-]?\d+)?"
        pattern = rf"{_SIGN}({number}|{_NAN}|{_INFINITY})"
    misspelled = f"NOT regexp_full_match({plain}, {literal(pattern)})"
    canonical = plain
    if column.thousands:
        canonical = f"replace({canonical}, {literal(column.thousands)}, '')"
    if column.decimal:
        canonical = f"replace({canonical}, {literal(column.decimal)}, '.')"
    value = _cast(canonical, column)
    remedy = (
        "Declare `decimal`, `thousands` or `currency` where numbers are written so, add the text to `null_values` "
        "where it means none, or declare string."
    )
    if column.type != "float64":
        return Conversion(value, (_unread(given, value, remedy, misspelled),))
    # What overflows is no infinity that the source has written.
    misspelled += f" OR (isinf({value}) AND NOT contains(lower({plain}), 'inf'))"
    read = _finite(value, column)
    return Conversion(read.value, (_unread(given, value, remedy, misspelled), *read.faults))


def _text_of_time(given: str, trimmed: str, column: SourceColumn) -> Conversion:
    remedy = "Declare how they are written: `format: {format}`, or add the text to `null_values` where it means none."
    if column.format is not None:
        return _formatted(given, trimmed, column, column.format, remedy)
    if column.type == "date":
        value = _cast(trimmed, column)
        misspelled = f"NOT regexp_full_match({trimmed}, {literal(_DAY)})"
        return _within_years(Conversion(value, (_unread(given, value, remedy, misspelled),)))
    zoned = f"regexp_full_match({trimmed}, {literal(_DAY + _CLOCK + _OFFSET)})"
    naive = (
        f"(CASE WHEN regexp_full_match({trimmed}, {literal(_DAY + _CLOCK)}) THEN TRY_CAST({trimmed} AS TIMESTAMP) END)"
    )
    instant = f"(CASE WHEN {zoned} THEN TRY_CAST({trimmed} AS TIMESTAMPTZ) END)"
    unread = _unread(given, f"coalesce({instant}, timezone('UTC', {naive}))", remedy)
    localised = _of_naive(naive, column, naive)
    return _within_years(Conversion(f"coalesce({instant}, {localised.value})", (unread, *localised.faults)))


def _formatted(given: str, trimmed: str, column: SourceColumn, formats: tuple[str, ...], remedy: str) -> Conversion:
    def read(texts: list[str]) -> str:
        return f"coalesce({', '.join([parsed(trimmed, text) for text in texts] or ['NULL'])}, NULL)"

    zoned = [text for text in formats if "%z" in text or "%Z" in text]
    naive = f"CAST({read([text for text in formats if text not in zoned])} AS TIMESTAMP)"
    if column.type == "date":
        value = f"CAST({naive} AS DATE)"
        timed = f"({naive} IS NOT NULL AND {value} IS DISTINCT FROM {naive})"
        return _within_years(Conversion(value, (_unread(given, value, remedy, timed),)))
    instant = f"CAST({read(zoned)} AS TIMESTAMPTZ)"
    unread = _unread(given, f"coalesce({instant}, timezone('UTC', {naive}))", remedy)
    local = _of_naive(naive, column, naive)
    return _within_years(Conversion(f"coalesce({instant}, {local.value})", (unread, *local.faults)))

"""Where the rows of a table come from, and how a source writes them."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, field_validator, model_validator

from config.catalog.base import Model, Name
from config.catalog.simulation import Simulated
from config.limits import SourceLimits

ColumnType = Literal["string", "int32", "int64", "float64", "boolean", "date", "timestamp"]
OnDifference = Literal["refuse", "warn", "ignore"]
# UTC by its other names: where a data set's zone is one of them, a time without a zone has only one meaning.
UTC_NAMES = frozenset({"UTC", "UCT", "Universal", "Zulu", "Etc/UTC", "Etc/UCT", "Etc/Universal", "Etc/Zulu"})
_TEXT_FORMAT = re.compile(r"(?:[^%]|%-?[aAbBdjHIpmMSfgnyYzZcxX%])+")
_NUMBERS = frozenset({"int32", "int64", "float64"})


def _unset(description: str) -> Any:
    """A key that is no part of the catalog's digest while nobody says it: entries of before keep theirs."""
    return Field(None, exclude_if=lambda value: value is None, description=description)


def _known_zone(value: str | None) -> str | None:
    try:
        if value is not None:
            ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("is not an IANA time zone, for example America/New_York") from error
    return value


Zone = Annotated[str, AfterValidator(_known_zone)]
Mark = Annotated[str, Field(min_length=1, max_length=1)]


class Numerals(Model):
    """How a source writes numbers and times, where not plainly; a column may say otherwise."""

    decimal: Mark | None = _unset("mark before the decimals; a point where left out")
    thousands: Mark | None = _unset("mark between groups of three digits; none where left out")
    zone: Zone | None = _unset(
        "IANA zone of times that are written without one, for example UTC or America/Chicago; a data set in UTC needs "
        "none"
    )


class Spelling(Numerals):
    """How a source writes one column, and what to do where it does not have it."""

    null_values: tuple[str, ...] | None = _unset("texts that are null in this column, instead of the source's own")
    format: tuple[str, ...] | None = _unset(
        "strptime format of a date or timestamp, for example '%d/%m/%y'; of several the first that fits"
    )
    ambiguous: Literal["earlier", "later"] | None = _unset(
        "which of the two instants a local time is that a clock change shows twice; refused where left out"
    )
    currency: str | None = _unset("sign before or after a number, left out of it")
    nan: Literal["null", "refuse", "keep"] | None = _unset(
        "what a float64's NaN is: null (where left out), refused, or kept; infinities are refused unless kept"
    )
    renamed_from: tuple[str, ...] | None = _unset("what the source calls the column, or once called it")
    on_missing: OnDifference | None = _unset("where the source lacks the column: refuse, or null and warn or ignore")

    @field_validator("format", "renamed_from", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("format")
    @classmethod
    def _known_directives(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for text in value or ():
            if "%" not in text or not _TEXT_FORMAT.fullmatch(text):
                raise ValueError(f"{text!r} is no strptime format, for example '%d/%m/%y' or '%d.%m.%Y %H:%M'")
        return value

    def misfit(self, kind: ColumnType, *, nullable: bool = True) -> str | None:
        """What a key says that cannot hold of a column of that type."""
        needs: dict[str, frozenset[str]] = {
            "format": frozenset({"date", "timestamp"}),
            "zone": frozenset({"timestamp"}),
            "ambiguous": frozenset({"timestamp"}),
            "decimal": _NUMBERS,
            "thousands": _NUMBERS,
            "currency": _NUMBERS,
            "nan": frozenset({"float64"}),
        }
        for key, kinds in needs.items():
            if getattr(self, key) is not None and kind not in kinds:
                return f"{key} is for {', '.join(sorted(kinds))}; the column is {kind}"
        if self.on_missing in ("warn", "ignore") and not nullable:
            return "on_missing makes the column null; it must not say nullable: false"
        return None


class SourceColumn(Spelling):
    """A column of a source itself, where the table's are others."""

    type: ColumnType

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if misfit := self.misfit(self.type):
            raise ValueError(misfit)
        return self


def _check_case(names: Iterable[str], what: str) -> None:
    """Refuse names that differ in case alone: SQL does not tell them apart."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(name.lower(), name)) != name:
            raise ValueError(
                f"{what} {other!r} and {name!r} differ in capitals alone, which SQL does not tell apart: give one "
                f"another name here, and say `renamed_from: {name}` where its source calls it so"
            )


def distinct_columns(value: dict[str, Any] | None) -> dict[str, Any] | None:
    """The columns; refuses names that SQL or the checks cannot tell apart or quote.

    Raises:
        ValueError: two names differ in capitals alone, or one cannot be quoted.
    """
    _check_case(value or (), "the columns")
    for name in value or ():
        if not name or set(name) & set('"\0'):
            raise ValueError(
                f"column {name!r} is empty, or has a double quote or a NUL in it, which the checks cannot quote: give"
                " it another name here, and say `renamed_from` where its source calls it so"
            )
    return value


SourceColumns = Annotated[dict[str, ColumnType | SourceColumn], AfterValidator(distinct_columns)]


class _Differing(Numerals):
    on_extra: OnDifference | None = _unset(
        "columns of the source that are not declared: refuse (where left out), or leave them out and warn, or ignore"
    )

    @property
    def text_nulls(self) -> tuple[str, ...] | None:
        """Texts that are null in every column that does not say otherwise."""
        return None

    def spelled(
        self, columns: Mapping[str, ColumnType | SourceColumn], naive_zone: str | None
    ) -> dict[str, SourceColumn]:
        """The columns with everything that says how they are written: what they leave out is as the source says.

        Args:
            naive_zone: zone of times without one where neither says it.
        Raises:
            ValueError: a column's marks cannot be told apart.
        """
        whole = {}
        for name, column in columns.items():
            kind = column if isinstance(column, str) else column.type
            keys = {} if isinstance(column, str) else {key: getattr(column, key) for key in Spelling.model_fields}
            if kind in _NUMBERS:
                for mark in ("decimal", "thousands"):
                    keys[mark] = keys.get(mark) or getattr(self, mark)
                if keys["thousands"] == (keys["decimal"] or "."):
                    raise ValueError(
                        f"column {name!r} has {keys['thousands']!r} as its mark of decimals and of thousands: declare "
                        "`decimal` too"
                    )
            if kind == "timestamp":
                zone = keys.get("zone") or self.zone or naive_zone
                keys["zone"] = "UTC" if zone in UTC_NAMES else zone
            if keys.get("null_values") is None:
                keys["null_values"] = self.text_nulls
            whole[name] = SourceColumn(type=kind, **keys)
        return whole


class Csv(_Differing):
    """How a CSV file is written, where not as RFC 4180 says, in UTF-8."""

    delimiter: str | None = _unset("between the cells of a row; a comma where left out")
    encoding: str | None = _unset("Python's name of the encoding, for example cp1252; UTF-8 where left out")
    quote: str | None = _unset("around a cell that holds a delimiter; a double quote where left out, '' for none")
    skip_lines: Annotated[int, Field(ge=0)] | None = _unset("lines before the header")
    max_line_bytes: Annotated[int, Field(ge=1)] | None = _unset("longest row; 2,000,000 where left out")

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        try:
            if value is not None and not codecs.lookup(value)._is_text_encoding:
                raise LookupError(value)
        except LookupError as error:
            raise ValueError("is no encoding of texts that Python knows, for example cp1252 or utf-16") from error
        return value

    @field_validator("delimiter")
    @classmethod
    def _usable_delimiter(cls, value: str | None) -> str | None:
        if value is not None and (not 1 <= len(value.encode()) <= 4 or set(value) & set("\r\n")):
            raise ValueError(f"{value!r} is no delimiter: one to four bytes, no end of line")
        return value

    @field_validator("quote")
    @classmethod
    def _usable_quote(cls, value: str | None) -> str | None:
        if value is not None and (len(value.encode()) > 1 or value in ("\r", "\n")):
            raise ValueError(f"{value!r} is no quote: one ASCII character, or '' for none")
        return value


class Lookup(Csv):
    """A small file that a source's `select` may join, under its name."""

    uri: str
    format: Literal["csv", "parquet", "jsonl"] = "csv"
    null_values: tuple[str, ...] = ("",)
    columns: SourceColumns

    @property
    def text_nulls(self) -> tuple[str, ...] | None:  # noqa: D102 (as in _Differing)
        return self.null_values if self.format == "csv" else None

    @model_validator(mode="after")
    def _marks(self) -> Self:
        self.spelled(self.columns, None)
        return self


class _Source(_Differing):
    columns: SourceColumns | None = Field(
        None, description="columns of the source itself, in any order; left out when they are the table's own"
    )
    select: str | None = Field(
        None,
        description=(
            "DuckDB SQL from `source` (and lookups) to the table's columns; a name ending in .sql is a file in the"
            " catalog folder's sql/ (of the shipped folder: features/sql/)"
        ),
    )
    lookups: dict[Name, Lookup] = Field(default_factory=dict)
    limits: SourceLimits = Field(
        SourceLimits(),
        exclude=True,  # they shape no row: the catalog's digest does not know them
        description="where this source and its lookups differ from the setting `source_limits`",
    )

    def limits_under(self, installation: SourceLimits) -> SourceLimits:
        """The installation's limits with what this source says otherwise."""
        return installation.model_copy(update=self.limits.model_dump(exclude_unset=True))


class FileSource(_Source, Csv):
    """CSV, Parquet, JSON lines or Excel: a path, a folder's glob, a member of a zip or gzip, or
    `package:<module>/<path>` of an installed package.

    `{data_date}` in the uri stands for each night of the interval; without it the same files are read every night.
    Relative paths start at the catalog folder; those of the shipped one at the repository's root.
    """

    kind: Literal["file"]
    uri: str
    format: Literal["csv", "parquet", "jsonl", "xlsx"] = "csv"
    sheet: str | None = _unset("of an xlsx; the only one where left out")
    null_values: tuple[str, ...] = ("",)

    @property
    def text_nulls(self) -> tuple[str, ...] | None:  # noqa: D102 (as in _Differing)
        return self.null_values if self.format == "csv" else None


class SqlSource(_Source):
    """A query, streamed. With `:start_utc` or `:end_utc` it is asked night by night: they are the cutoff of the night
    before and its own.
    """

    kind: Literal["sql"]
    url_secret: str = Field(description="name of the secret that holds the SQLAlchemy URL")
    query: str
    batch_rows: int = Field(50_000, ge=1)


class SecretHeader(Model):
    """A header whose value is a secret."""

    secret: str = Field(description="name of the secret")


class HttpSource(_Source):
    """Paginated JSON. `{data_date}` in the url or a parameter stands for each night of the interval."""

    kind: Literal["http"]
    url: str = Field(pattern=r"^https?://")
    params: dict[str, str] = Field(default_factory=dict)
    headers: dict[str, str | SecretHeader] | None = _unset("headers of each request: a text, or {secret: its name}")
    token_secret: str | None = Field(None, description="name of the secret sent as a bearer token")
    lines: bool | None = _unset("true: each line of an answer is a record (NDJSON)")
    records: str = Field("", description="dotted path to the list of records; empty: the document is the list")
    page_param: str | None = Field(None, description="parameter that counts pages from first_page until one is empty")
    first_page: int = 1
    offset_param: str | None = _unset("parameter that counts the records so far, from 0, until a page is empty")
    cursor: str | None = _unset("dotted path to what `cursor_param` of the next page is, null on the last page")
    cursor_param: str | None = _unset("parameter that takes the cursor")
    next_url: str | None = Field(None, description="dotted path to the next page's url, null on the last page")
    next_link: bool | None = _unset("true: the next page's url is in the header Link, as RFC 8288 says (rel=next)")
    end_on: tuple[Annotated[int, Field(ge=200, le=499)] | Literal["empty"] | None, ...] | None = _unset(
        "answers that are the end of the pages, for example [404, 204]: statuses, empty (no body), null (no list)"
    )
    timeout_seconds: float = Field(30.0, gt=0)
    attempts: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _one_way_of_paging(self) -> Self:
        ways = ("page_param", "offset_param", "cursor", "next_url", "next_link")
        used = [way for way in ways if getattr(self, way)]
        if len(used) > 1:
            raise ValueError(f"pages are found by {' and by '.join(used)}: keep one of them")
        if (self.cursor is None) != (self.cursor_param is None):
            raise ValueError("cursor says where the next page's cursor is, cursor_param where to send it: name both")
        if self.lines and (self.records or self.cursor or self.next_url):
            raise ValueError("lines are records themselves: records, cursor and next_url look into one document")
        return self


class SimulationSource(_Source, Simulated):
    """A table of a simulated world, delivered night by night; `features/sources/simulation/` draws its rows."""

    kind: Literal["simulation"]

    @model_validator(mode="after")
    def _as_it_is(self) -> Self:
        for key in _Source.model_fields:
            if key != "limits" and key in self.model_fields_set:
                raise ValueError(
                    f"{key} says how a source is written; a simulated table has the columns of its world as they are: "
                    "leave it out"
                )
        return self


Source = Annotated[FileSource | SqlSource | HttpSource | SimulationSource, Field(discriminator="kind")]

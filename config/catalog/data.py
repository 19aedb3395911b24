"""Data sets: sources, tables, feature views."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from datetime import date, time
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, field_validator, model_validator

from config.catalog.base import Model, Name
from config.catalog.checks import Check, RowRule, TableRule, check_columns, check_name, check_types
from config.catalog.simulation import WORLDS, Simulated
from config.durations import Duration
from config.limits import SourceLimits

ColumnType = Literal["string", "int32", "int64", "float64", "boolean", "date", "timestamp"]

# Names of our own beside declared columns in SQL and in tables begin so; a catalog may not declare such a column.
OWN_PREFIX = "nf__"
# Columns the lake adds to every table; a catalog may not declare them.
RESERVED_COLUMNS = frozenset(
    {"data_date", "known_at_utc", "revision", "superseded_on", "event_timestamp", "broken_rules", "cutoff_utc"}
)


OnDifference = Literal["refuse", "warn", "ignore"]
# UTC by its other names: where a data set's zone is one of them, a time without a zone has only one meaning.
_UTC = frozenset({"UTC", "UCT", "Universal", "Zulu", "Etc/UTC", "Etc/UCT", "Etc/Universal", "Etc/Zulu"})
_TEXT_FORMAT = re.compile(r"(?:[^%]|%-?[aAbBdjHIpmMSfgnyYzZcxX%])+")
_NUMBERS = frozenset({"int32", "int64", "float64"})
# What XGBoost refuses in the name of a feature.
_NO_FEATURE_NAME = frozenset("[]<")
# What a boolean has too few values to name, and a fraction none that are surely equal.
NO_ENTITY_TYPES = frozenset({"boolean", "float64"})


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


def _distinct_columns(value: dict[str, Any] | None) -> dict[str, Any] | None:
    _check_case(value or (), "the columns")
    for name in value or ():
        if not name or set(name) & set('"\0'):
            raise ValueError(
                f"column {name!r} is empty, or has a double quote or a NUL in it, which the checks cannot quote: give"
                " it another name here, and say `renamed_from` where its source calls it so"
            )
    return value


SourceColumns = Annotated[dict[str, ColumnType | SourceColumn], AfterValidator(_distinct_columns)]
# Columns that stand beside a model's entity in its training sets, and beside entity and outputs in its predictions: no
# column of a spine or of an output is called so. Of a spine's table, other columns of such names are left out.
TRAINING_COLUMNS = frozenset({"split", "label", "baseline"})
PREDICTION_COLUMNS = frozenset(
    {
        *("prediction_id", "role", "model", "version", "artifact_digest", "input_digest", "served", "target_time_utc"),
        *("source_table", "delta_version", "superseded_at"),  # in SQL
    }
)


class Column(Model):
    """One declared column."""

    type: ColumnType
    description: str
    unit: str | None = None
    nullable: bool = True
    pii: bool = False


class TableColumn(Column, Spelling):
    """A column of a table, and how its source writes it."""

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if misfit := self.misfit(self.type, nullable=self.nullable):
            raise ValueError(misfit)
        return self


class FeatureColumn(Column):
    """One feature, or the steps of one."""

    calendar: bool = Field(
        False,
        description=(
            "left out of drift: it follows from the date alone, or shows again what step 0 of an earlier night showed"
        ),
    )
    steps: int | None = Field(
        None, ge=2, le=1000, description="stands for this many columns, <name>_t0 ... <name>_t<steps-1>, newest first"
    )

    def expanded(self, name: str) -> dict[str, FeatureColumn]:
        """The plain columns it stands for, by name: itself, or one a step."""
        if self.steps is None:
            return {name: self}
        columns = {}
        for step in range(self.steps):
            described = f"{self.description}; step {step} back" if step else f"{self.description}; the newest step"
            columns[f"{name}_t{step}"] = self.model_copy(
                update={"steps": None, "calendar": self.calendar or step > 0, "description": described}
            )
        return columns


# ---- sources ---------------------------------------------------------------------------------------------------


class _Differing(Numerals):
    on_extra: OnDifference | None = _unset(
        "columns of the source that are not declared: refuse (where left out), or leave them out and warn, or ignore"
    )

    @property
    def text_nulls(self) -> tuple[str, ...] | None:
        """Texts that are null in every column that does not say otherwise."""
        return None

    def spelled(
        self, columns: Mapping[str, ColumnType | SourceColumn | TableColumn], naive_zone: str | None
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
                keys["zone"] = "UTC" if zone in _UTC else zone
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


class KnownAt(Model):
    """When a row became knowable: a timestamp column of the table, or a DuckDB expression over the table's columns."""

    column: str | None = None
    sql: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.column is None) == (self.sql is None):
            raise ValueError("known_at needs either column or sql, or the word arrival")
        return self


class Quality(Model):
    """Shares of bad rows of one partition, in [0, 1]."""

    warn_share: float = Field(0.01, ge=0, le=1)
    stop_share: float = Field(0.2, ge=0, le=1)


class Table(Model):
    """One table of a data set."""

    description: str
    source: Source
    key: tuple[str, ...] = Field(min_length=1)
    known_at: KnownAt | Literal["arrival"]
    columns: Annotated[dict[str, TableColumn], AfterValidator(_distinct_columns)] = Field(min_length=1)
    checks: tuple[Check, ...] = ()
    quality: Quality = Quality()
    deletes: Literal["keep", "close"] = Field(
        "keep",
        exclude_if=lambda deletes: deletes == "keep",  # the catalog's digest of before it could be declared
        description=(
            "what a key means that a delivery lacks: nothing (keep), or that it is gone from that night on (close);"
            " close is for sources whose every delivery is whole"
        ),
    )
    max_closed_share: float = Field(
        0.5,
        gt=0,
        le=1,
        exclude=True,  # it shapes no row
        description="with `deletes: close`, the share of open keys that one night may close; more is refused",
    )

    @property
    def row_rules(self) -> tuple[RowRule, ...]:
        """Rules that mark rows."""
        return tuple(c for c in self.checks if not isinstance(c, TableRule))

    @property
    def table_rules(self) -> tuple[TableRule, ...]:
        """Rules that judge a partition."""
        return tuple(c for c in self.checks if isinstance(c, TableRule))

    @model_validator(mode="after")
    def _key(self) -> Self:
        for reserved in sorted(
            name for name in self.columns if name.lower() in RESERVED_COLUMNS or name.lower().startswith(OWN_PREFIX)
        ):
            raise ValueError(
                f"column {reserved!r} is reserved; give it another name, and say `renamed_from: {reserved}` there, or "
                "rename it in the source's select"
            )
        for name in self.key:
            if name not in self.columns:
                raise ValueError(f"key names {name!r}, which is not a column of the table")
            if self.columns[name].nullable:
                raise ValueError(f"key column {name!r} must say nullable: false")
        return self

    @model_validator(mode="after")
    def _whole_deliveries(self) -> Self:
        if self.deletes == "close" and isinstance(self.source, SqlSource) and ":start_utc" in self.source.query:
            raise ValueError(
                "deletes: close needs a source whose every delivery is whole, and a query with :start_utc asks for a"
                " part of it: every key from before would be closed. Ask without it, or say deletes: keep"
            )
        return self

    @model_validator(mode="after")
    def _spelling(self) -> Self:
        self.source_columns(None)
        for name, column in self.columns.items() if self.source.columns is not None else ():
            for key in ("null_values", "renamed_from", "on_missing"):
                if getattr(column, key) is not None:
                    raise ValueError(f"column {name!r} says {key}, which belongs to a column of `source: columns`")
        return self

    def source_columns(self, naive_zone: str | None) -> dict[str, SourceColumn]:
        """Columns of the source itself, with everything that says how they are written."""
        columns: Mapping[str, ColumnType | SourceColumn | TableColumn] = self.source.columns or self.columns
        return self.source.spelled(columns, naive_zone)

    def shaped_columns(self, naive_zone: str | None) -> dict[str, SourceColumn]:
        """Columns of the table as `select` makes them: what says how the source's own are called is left out."""
        spelled = self.source.spelled(self.columns, naive_zone)
        own = {"renamed_from": None, "on_missing": None, "null_values": None}
        return {name: column.model_copy(update=own) for name, column in spelled.items()}

    @model_validator(mode="after")
    def _fitting_checks(self) -> Self:
        names = [check_name(c) for c in self.checks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the check {name} appears twice")
        for check in self.checks:
            for column in check_columns(check):
                if column not in self.columns:
                    raise ValueError(f"check {check_name(check)} names {column!r}, which is not a column of the table")
            misfit = check_types(check, {name: column.type for name, column in self.columns.items()})
            if misfit:
                raise ValueError(f"check {check_name(check)}: {misfit}")
        return self

    @model_validator(mode="after")
    def _known_column(self) -> Self:
        if isinstance(self.known_at, KnownAt) and self.known_at.column:
            known = self.columns.get(self.known_at.column)
            if known is None or known.type != "timestamp" or known.nullable:
                raise ValueError(
                    f"known_at names {self.known_at.column!r}, which must be a timestamp column with nullable: false"
                )
        return self


class FeatureView(Model):
    """One SQL file. Its SELECT gives `data_date`, the entity columns and exactly the declared columns, one row per
    entity and night.
    """

    description: str
    entities: tuple[str, ...] = Field(min_length=1, description="join keys, named as in the spine")
    reads: tuple[str, ...] = Field(min_length=1, description="tables of the data set")
    lookback: Duration = Field(description="partitions [T - lookback, T] of the tables it reads suffice for night T")
    ttl: Duration = Field(description="how long a value serves; covers an absent entity, never a missing night")
    columns: dict[str, FeatureColumn] = Field(
        min_length=1, description="steps are columns of their own here, whatever the file says"
    )

    @field_validator("columns")
    @classmethod
    def _expand(cls, value: dict[str, FeatureColumn]) -> dict[str, FeatureColumn]:
        """Columns with `steps` become plain ones, so that nothing behind the catalog knows of two kinds."""
        expanded: dict[str, FeatureColumn] = {}
        for name, column in value.items():
            for plain, declared in column.expanded(name).items():
                if plain in expanded or (plain != name and plain in value):
                    raise ValueError(f"the steps of {name!r} make a column {plain!r}, which exists already; rename one")
                expanded[plain] = declared
        _distinct_columns(expanded)
        for name in expanded:
            if unfit := sorted(set(name) & _NO_FEATURE_NAME):
                raise ValueError(
                    f"feature {name!r} has {' '.join(unfit)} in its name, which trainers refuse: take letters, digits"
                    " and _"
                )
        return expanded


class Replay(Model):
    """Bounds of a historic data set: the DAG keeps quiet about today."""

    first: date = Field(alias="from")
    last: date = Field(alias="to")
    first_night: date

    @model_validator(mode="after")
    def _order(self) -> Self:
        if not self.first < self.first_night <= self.last:
            raise ValueError(f"needs from < first_night <= to, has {self.first}, {self.first_night}, {self.last}")
        return self


class AirflowKnobs(Model):
    """What Airflow needs to know about a DAG's tasks."""

    retries: int = Field(2, ge=0)
    pool: str = "default_pool"
    timeout_minutes: int = Field(60, ge=1)
    tags: tuple[str, ...] = ()


class Dataset(Model):
    """One data set: its tables and feature views."""

    name: Name = Field(alias="dataset")
    title: str
    owner: str
    owner_url: str
    licence: str
    time_zone: Zone
    start: date | None = Field(None, description="first data date of a live data set; a replay says `from` instead")
    replay: Replay | None = None
    ready_after: time | None = Field(None, description="local time before which a live night is not read")
    tables: dict[Name, Table] = Field(min_length=1)
    features: dict[Name, FeatureView] = Field(default_factory=dict)
    airflow: AirflowKnobs = AirflowKnobs()
    run_by_default: bool = Field(
        True,
        exclude=True,  # it shapes no row: the catalog's digest does not know it
        description="whether `make run` replays it unasked; false: with ONLY=<data set> or ALL=1, and from then on",
    )

    @property
    def first_data_date(self) -> date:
        """The first data date there can be."""
        first = self.replay.first if self.replay else self.start
        assert first is not None  # the validator saw to it
        return first

    @property
    def zone_of_naive_times(self) -> str | None:
        """Zone of a time without one, where no source or column declares it; None: such a time is refused."""
        return "UTC" if self.time_zone in _UTC else None

    def entity_types(self, view: str) -> dict[str, ColumnType]:
        """Type of each entity column of a feature view: that of the first table the view reads that has it."""
        types: dict[str, ColumnType] = {}
        for table in self.features[view].reads:
            for name, column in self.tables[table].columns.items():
                types.setdefault(name, column.type)
        return {name: types[name] for name in self.features[view].entities}

    @model_validator(mode="after")
    def _references(self) -> Self:
        if (self.start is None) == (self.replay is None):
            raise ValueError("needs either start (live) or replay (historic)")
        for name, view in self.features.items():
            for table in view.reads:
                if table not in self.tables:
                    raise ValueError(
                        f"feature view {name!r} reads {table!r}, which is not a table of the data set "
                        f"({', '.join(self.tables)})"
                    )
            for column in view.columns:
                if column.lower() in RESERVED_COLUMNS or column in view.entities:
                    raise ValueError(f"feature view {name!r} declares {column!r}, which is reserved or an entity")
            read = {column for table in view.reads for column in self.tables[table].columns}
            for entity in view.entities:
                if entity not in read:
                    raise ValueError(f"feature view {name!r} is keyed by {entity!r}, which no table it reads has")
                self._check_entity(name, view, entity)
        return self

    @model_validator(mode="after")
    def _worlds(self) -> Self:
        for name, table in self.tables.items():
            if not isinstance(table.source, SimulationSource):
                continue
            if self.zone_of_naive_times is None:
                raise ValueError(
                    f"table {name!r} is simulated, whose nights are days in UTC: time_zone must be UTC, is "
                    f"{self.time_zone}"
                )
            begins = WORLDS[table.source.world].begins
            if self.first_data_date < begins:
                raise ValueError(
                    f"table {name!r} is simulated from {begins} on: the data set's first night must not lie before it,"
                    f" is {self.first_data_date}"
                )
        return self

    def _check_entity(self, name: str, view: FeatureView, entity: str) -> None:
        """Refuse an entity that joins nothing surely: of a type that names nothing, or that differs among tables."""
        types: dict[ColumnType, str] = {}
        for table in view.reads:
            if entity in self.tables[table].columns:
                types.setdefault(self.tables[table].columns[entity].type, table)
        told = " and ".join(f"{kind} in {table}" for kind, table in types.items())
        if len(types) > 1:
            raise ValueError(
                f"feature view {name!r} is keyed by {entity!r}, which is {told}: '00061' never meets 61. Declare it"
                " alike in all tables that the view reads"
            )
        if types.keys() & NO_ENTITY_TYPES:
            raise ValueError(
                f"feature view {name!r} is keyed by {entity!r}, which is {told}: an entity is a string, int32, int64,"
                " date or timestamp"
            )

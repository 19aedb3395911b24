"""Data sets: sources, tables, feature views."""

from __future__ import annotations

from datetime import date, time
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from config.catalog.base import Model, Name
from config.catalog.checks import Check, RowRule, TableRule, check_columns, check_name, check_types
from config.durations import Duration
from config.limits import SourceLimits

ColumnType = Literal["string", "int32", "int64", "float64", "boolean", "date", "timestamp"]

# Names of our own beside declared columns in SQL and in tables begin so; a catalog may not declare such a column.
OWN_PREFIX = "nf__"
# Columns the lake adds to every table; a catalog may not declare them.
RESERVED_COLUMNS = frozenset(
    {"data_date", "known_at_utc", "revision", "superseded_on", "event_timestamp", "broken_rules", "cutoff_utc"}
)


class Column(Model):
    """One declared column."""

    type: ColumnType
    description: str
    unit: str | None = None
    nullable: bool = True
    pii: bool = False


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


class Lookup(Model):
    """A small file that a source's `select` may join, under its name."""

    uri: str
    format: Literal["csv", "parquet"] = "csv"
    null_values: tuple[str, ...] = ("",)
    columns: dict[str, ColumnType]


class _Source(Model):
    columns: dict[str, ColumnType] | None = Field(
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


class FileSource(_Source):
    """CSV or Parquet: a path, a folder's glob, a member of a zip or gzip, or `package:<module>/<path>` of an installed
    package.

    `{data_date}` in the uri stands for each night of the interval; without it the same files are read every night.
    Relative paths start at the catalog folder; those of the shipped one at the repository's root.
    """

    kind: Literal["file"]
    uri: str
    format: Literal["csv", "parquet"] = "csv"
    null_values: tuple[str, ...] = ("",)


class SqlSource(_Source):
    """A query, streamed. With `:start_utc` or `:end_utc` it is asked night by night: they are the cutoff of the night
    before and its own.
    """

    kind: Literal["sql"]
    url_secret: str = Field(description="name of the secret that holds the SQLAlchemy URL")
    query: str
    batch_rows: int = Field(50_000, ge=1)


class HttpSource(_Source):
    """Paginated JSON. `{data_date}` in the url or a parameter stands for each night of the interval."""

    kind: Literal["http"]
    url: str
    params: dict[str, str] = Field(default_factory=dict)
    token_secret: str | None = Field(None, description="name of the secret sent as a bearer token")
    records: str = Field("", description="dotted path to the list of records; empty: the document is the list")
    page_param: str | None = Field(None, description="parameter that counts pages from first_page until one is empty")
    first_page: int = 1
    next_url: str | None = Field(None, description="dotted path to the next page's url, null on the last page")
    timeout_seconds: float = Field(30.0, gt=0)
    attempts: int = Field(4, ge=1)


Source = Annotated[FileSource | SqlSource | HttpSource, Field(discriminator="kind")]


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
    columns: dict[str, Column] = Field(min_length=1)
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
            name for name in self.columns if name in RESERVED_COLUMNS or name.startswith(OWN_PREFIX)
        ):
            raise ValueError(f"column {reserved!r} is reserved; rename it in the source's select")
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
    time_zone: str
    start: date | None = Field(None, description="first data date of a live data set; a replay says `from` instead")
    replay: Replay | None = None
    ready_after: time | None = Field(None, description="local time before which a live night is not read")
    tables: dict[Name, Table] = Field(min_length=1)
    features: dict[Name, FeatureView] = Field(default_factory=dict)
    airflow: AirflowKnobs = AirflowKnobs()

    @property
    def first_data_date(self) -> date:
        """The first data date there can be."""
        first = self.replay.first if self.replay else self.start
        assert first is not None  # the validator saw to it
        return first

    def entity_types(self, view: str) -> dict[str, ColumnType]:
        """Type of each entity column of a feature view: that of the first table the view reads that has it."""
        types: dict[str, ColumnType] = {}
        for table in self.features[view].reads:
            for name, column in self.tables[table].columns.items():
                types.setdefault(name, column.type)
        return {name: types[name] for name in self.features[view].entities}

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError("is not an IANA time zone, for example America/New_York") from error
        return value

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
                if column in RESERVED_COLUMNS or column in view.entities:
                    raise ValueError(f"feature view {name!r} declares {column!r}, which is reserved or an entity")
            read = {column for table in view.reads for column in self.tables[table].columns}
            for entity in view.entities:
                if entity not in read:
                    raise ValueError(f"feature view {name!r} is keyed by {entity!r}, which no table it reads has")
        return self

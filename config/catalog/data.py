"""Data sets: tables and feature views."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, time
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from config.catalog.base import Model, Name
from config.catalog.checks import Check, RowRule, TableRule, check_columns, check_name, check_types
from config.catalog.simulation import WORLDS
from config.catalog.source import (
    UTC_NAMES,
    ColumnType,
    SimulationSource,
    Source,
    SourceColumn,
    SqlSource,
    Zone,
    distinct_columns,
)
from config.durations import Duration

# Names of our own beside declared columns in SQL and in tables begin so; a catalog may not declare such a column.
OWN_PREFIX = "nf__"
# Columns the lake adds to every table; a catalog may not declare them.
RESERVED_COLUMNS = frozenset(
    {"data_date", "known_at_utc", "revision", "superseded_on", "event_timestamp", "broken_rules", "cutoff_utc"}
)
# What XGBoost refuses in the name of a feature.
_NO_FEATURE_NAME = frozenset("[]<")
# What a boolean has too few values to name, and a fraction none that are surely equal.
NO_ENTITY_TYPES = frozenset({"boolean", "float64"})
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


class TableColumn(Column, SourceColumn):
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
    columns: Annotated[dict[str, TableColumn], AfterValidator(distinct_columns)] = Field(min_length=1)
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
        columns: Mapping[str, ColumnType | SourceColumn] = self.source.columns or self.columns
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
        distinct_columns(expanded)
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
        return "UTC" if self.time_zone in UTC_NAMES else None

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

"""The catalog: every data set and model, typed, from one YAML file each.

A wrong file never gets past `load_catalog`: the error names file, key, value and expectation.
"""

from __future__ import annotations

import functools
import hashlib
from datetime import date, time, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from config.calendar import ONE_DAY
from config.checks import Check, RowRule, TableRule, check_columns, check_name, check_types
from config.durations import Duration
from config.errors import NightfleetError
from config.settings import Settings, load_settings

ColumnType = Literal["string", "int32", "int64", "float64", "boolean", "date", "timestamp"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]

# Columns the lake adds to every table; a catalog may not declare them.
RESERVED_COLUMNS = frozenset({"data_date", "known_at_utc", "revision", "superseded_on", "event_timestamp", "broken_rules", "cutoff_utc"})


# libyaml reads seven times faster, and every task of Airflow reads the catalog.
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class BadCatalog(NightfleetError):
    """A catalog file is missing, unreadable, or says something impossible."""


class Model(BaseModel):
    """Base of all catalog types."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(Model):
    """One declared column."""

    type: ColumnType
    description: str
    unit: str | None = None
    nullable: bool = True
    pii: bool = False


class FeatureColumn(Column):
    """One feature, or the steps of one."""

    calendar: bool = Field(False, description="left out of drift: it follows from the date alone, or shows again what step 0 of an earlier night showed")
    steps: int | None = Field(None, ge=2, le=1000, description="stands for so many columns, <name>_t0 ... <name>_t<steps-1>, newest first")

    def expanded(self, name: str) -> dict[str, FeatureColumn]:
        """The plain columns it stands for, by name: itself, or one a step."""
        if self.steps is None:
            return {name: self}
        columns = {}
        for step in range(self.steps):
            described = f"{self.description}; step {step} back" if step else f"{self.description}; the newest step"
            columns[f"{name}_t{step}"] = self.model_copy(update={"steps": None, "calendar": self.calendar or step > 0, "description": described})
        return columns


# ---- sources ---------------------------------------------------------------------------------------------------


class Lookup(Model):
    """A small file that a source's `select` may join, under its name."""

    uri: str
    format: Literal["csv", "parquet"] = "csv"
    null_values: tuple[str, ...] = ("",)
    columns: dict[str, ColumnType]


class _Source(Model):
    columns: dict[str, ColumnType] | None = Field(None, description="columns of the source itself, in any order; left out when they are the table's own")
    select: str | None = Field(None, description="DuckDB SQL from `source` (and lookups) to the table's columns; a name ending in .sql is a file below sql_dir")
    lookups: dict[Name, Lookup] = Field(default_factory=dict)


class FileSource(_Source):
    """CSV or Parquet: a path, a folder's glob, a member of a zip or gzip, or `package:<module>/<path>` of an installed package.

    `{data_date}` in the uri stands for each night of the interval; without it the same files are read every night.
    Relative paths start at the folder that holds the catalog folder.
    """

    kind: Literal["file"]
    uri: str
    format: Literal["csv", "parquet"] = "csv"
    null_values: tuple[str, ...] = ("",)


class SqlSource(_Source):
    """A query, streamed. With `:start_utc` or `:end_utc` it is asked night by night: they are the cutoff of the night before and its own."""

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
            raise ValueError("known_at needs exactly one of column, sql; or the word arrival")
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

    @property
    def row_rules(self) -> tuple[RowRule, ...]:
        """Rules that mark rows."""
        return tuple(c for c in self.checks if not isinstance(c, TableRule))

    @property
    def table_rules(self) -> tuple[TableRule, ...]:
        """Rules that judge a partition."""
        return tuple(c for c in self.checks if isinstance(c, TableRule))

    @model_validator(mode="after")
    def _references(self) -> Self:
        for reserved in sorted(RESERVED_COLUMNS & set(self.columns)):
            raise ValueError(f"column {reserved!r} is reserved; rename it in the source's select")
        for name in self.key:
            if name not in self.columns:
                raise ValueError(f"key names {name!r}, which is no column of the table")
            if self.columns[name].nullable:
                raise ValueError(f"key column {name!r} must say nullable: false")
        names = [check_name(c) for c in self.checks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the check {name} stands twice")
        for check in self.checks:
            for column in check_columns(check):
                if column not in self.columns:
                    raise ValueError(f"check {check_name(check)} names {column!r}, which is no column of the table")
            misfit = check_types(check, {name: column.type for name, column in self.columns.items()})
            if misfit:
                raise ValueError(f"check {check_name(check)}: {misfit}")
        if isinstance(self.known_at, KnownAt) and self.known_at.column:
            known = self.columns.get(self.known_at.column)
            if known is None or known.type != "timestamp" or known.nullable:
                raise ValueError(f"known_at names {self.known_at.column!r}, which must be a timestamp column with nullable: false")
        return self


class FeatureView(Model):
    """One SQL file. Its SELECT gives `data_date`, the entity columns and exactly the declared columns, one row per entity and night."""

    description: str
    entities: tuple[str, ...] = Field(min_length=1, description="join keys, named as in the spine")
    reads: tuple[str, ...] = Field(min_length=1, description="tables of the data set")
    lookback: Duration = Field(description="partitions [T - lookback, T] of the tables it reads suffice for night T")
    ttl: Duration = Field(description="how long a value serves; covers an absent entity, never a missing night")
    columns: dict[str, FeatureColumn] = Field(min_length=1, description="steps are columns of their own here, whatever the file says")

    @field_validator("columns")
    @classmethod
    def _expand(cls, value: dict[str, FeatureColumn]) -> dict[str, FeatureColumn]:
        """Columns with `steps` become plain ones, so that nothing behind the catalog knows of two kinds."""
        expanded: dict[str, FeatureColumn] = {}
        for name, column in value.items():
            for plain, declared in column.expanded(name).items():
                if plain in expanded or (plain != name and plain in value):
                    raise ValueError(f"the steps of {name!r} make a column {plain!r}, which stands there already; rename one")
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

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError("is no IANA time zone, for example America/New_York") from error
        return value

    @model_validator(mode="after")
    def _references(self) -> Self:
        if (self.start is None) == (self.replay is None):
            raise ValueError("needs exactly one of start (live) and replay (historic)")
        for name, view in self.features.items():
            for table in view.reads:
                if table not in self.tables:
                    raise ValueError(f"feature view {name!r} reads {table!r}, which is no table of the data set ({', '.join(self.tables)})")
            for column in view.columns:
                if column in RESERVED_COLUMNS or column in view.entities:
                    raise ValueError(f"feature view {name!r} declares {column!r}, which is reserved or an entity")
        return self


# ---- models ----------------------------------------------------------------------------------------------------


class TableSpine(Model):
    """What is scored: the rows of `table` known at T with cutoff(T) < target_time <= cutoff(T+1)."""

    table: str
    entity: tuple[str, ...] = Field(min_length=1)
    target_time: str
    horizon: Duration = ONE_DAY


class CalendarSpine(Model):
    """What is scored: every step of `every` in (cutoff(T), cutoff(T) + horizon local days]; entity is the step's begin, UTC."""

    every: Duration
    horizon: Duration = ONE_DAY
    entity: tuple[str] = Field(description="name of the one entity column, a timestamp")


class Label(Model):
    """What comes true: `column` of `table`, joined on the spine's entity."""

    table: str
    column: str
    matures_after: Duration


class RegressionOutput(Model):
    """A number in the label's unit; with `interval`, also `<name>_lower` and `<name>_upper`."""

    kind: Literal["regression"]
    objective: Literal["median", "mean"] = "median"
    interval: float | None = Field(None, gt=0, lt=1, description="share of outcomes the interval should hold")
    gate: Literal["mae", "rmse"] = "mae"


class BinaryOutput(Model):
    """The calibrated probability that the label lies above `above`."""

    kind: Literal["binary"]
    above: float
    gate: Literal["brier", "log_loss"] = "brier"


Output = Annotated[RegressionOutput | BinaryOutput, Field(discriminator="kind")]


class UniformSpace(Model):
    """A real number in [low, high], every value as likely."""

    kind: Literal["uniform"]
    low: float
    high: float

    @model_validator(mode="after")
    def _order(self) -> Self:
        _check_order(self.low, self.high)
        return self


class LogUniformSpace(Model):
    """A real number in [low, high], every order of magnitude as likely; low > 0."""

    kind: Literal["log_uniform"]
    low: float = Field(gt=0)
    high: float

    @model_validator(mode="after")
    def _order(self) -> Self:
        _check_order(self.low, self.high)
        return self


class IntegerSpace(Model):
    """A whole number in [low, high], in steps."""

    kind: Literal["integer"]
    low: int
    high: int
    step: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _order(self) -> Self:
        _check_order(self.low, self.high)
        return self


class ChoiceSpace(Model):
    """One of the values."""

    kind: Literal["choice"]
    values: tuple[bool | int | float | str | tuple[int, ...] | None, ...] = Field(min_length=1)


def _check_order(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"needs low < high, has {low} and {high}")


Space = Annotated[UniformSpace | LogUniformSpace | IntegerSpace | ChoiceSpace, Field(discriminator="kind")]


class Search(Model):
    """A search for trainer parameters before the training; the best trial is trained again as the model."""

    space: dict[str, Space] = Field(min_length=1, description="trainer parameters that vary; all others stay as in `params`")
    sampler: Literal["grid", "random", "tpe", "gp"] = "tpe"
    pruner: Literal["none", "median", "hyperband", "asha"] = "none"
    trials: int = Field(20, ge=1)
    parallel: int = Field(1, ge=1, description="trials at once, inside the one container")
    metric: str | None = Field(None, description="<output>/<metric> of the validation rows, smaller is better; None: the gate's metric of the first output")
    timeout_minutes: float | None = Field(None, gt=0, description="no trial starts after so long")


class CrossValidation(Model):
    """Expanding windows over the nights of train and validation: each fold is judged on nights after those it learned from."""

    folds: int = Field(4, ge=2)
    embargo: Duration = ONE_DAY


class Trainer(Model):
    """A family (a file in training/trainers and in serving/predictors) with its parameters."""

    family: Name
    params: dict[str, Any] = Field(default_factory=dict)
    seed: int = 7
    device: Literal["auto", "cpu", "gpu"] = "auto"
    search: Search | None = None
    cross_validation: CrossValidation | None = None


class Split(Model):
    """Windows of mature data dates, backwards from the newest: test, embargo, validation, embargo, train."""

    train: Duration
    validation: Duration = timedelta(days=14)
    test: Duration = timedelta(days=14)
    embargo: Duration = timedelta(days=1)
    groups: str | None = Field(None, description="entity column held out whole, for example a machine: its rows stay in the first split it occurs in")

    @property
    def nights(self) -> int:
        """Data dates from the first of train to the last of test."""
        return (self.train + self.validation + self.test + 2 * self.embargo).days


class SegmentGate(Model):
    """A segment fails the gate when its error exceeds `worst` times the rival's."""

    columns: tuple[str, ...] = Field(min_length=1)
    min_rows: int = Field(200, ge=1)
    worst: float = Field(1.05, gt=0)


class Gate(Model):
    """When a challenger is promoted. `better_by`: what the one-sided bound of its relative improvement must reach."""

    better_by: float = Field(0.0, gt=-1, lt=1)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    min_days: int = Field(7, ge=2)
    segments: SegmentGate | None = None
    baseline: Literal["median", "mean", "same_hour_last_week"] = "median"
    max_milliseconds_per_row: float = Field(5.0, gt=0, description="latency bound of batch prediction")


class DriftPolicy(Model):
    """Drift alarms: a column's limit is the `limit_quantile` of the statistic over windows inside training; `share` of columns alarms."""

    method: Literal["psi", "ks"] = "psi"
    window: Duration = ONE_DAY
    limit_quantile: float = Field(0.99, gt=0.5, lt=1)
    share: float = Field(0.3, gt=0, le=1)


class PerformancePolicy(Model):
    """Alarm when error over baseline in the last mature `nights` exceeds the gate's ratio by `worse_by` (relative)."""

    worse_by: float = Field(0.1, gt=0)
    nights: int = Field(14, ge=1)


class Retrain(Model):
    """When to ask for a retraining."""

    every: Duration | None = None
    drift: DriftPolicy = DriftPolicy()
    performance: PerformancePolicy = PerformancePolicy()
    cooldown: Duration = timedelta(days=7)


class Training(Model):
    """Resources of the training job."""

    runner: Literal["auto", "docker", "process"] | None = Field(None, description="None: the profile's")
    gpus: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="auto: all of the machine's, none where there is none; a number is demanded"
    )
    memory_gb: float = Field(8.0, gt=0, description="cap of the container, and what the job takes of the training pool")
    cpus: float = Field(2.0, gt=0, description="cap of the container")
    shm_gb: float = Field(0.5, gt=0, description="size of /dev/shm in the container")
    timeout_minutes: float = Field(60.0, gt=0)
    checkpoint_minutes: float = Field(5.0, gt=0, description="a killed training loses at most so much")
    workers: int = Field(1, ge=1, description="data-parallel workers, each a container of its own with these resources")


AlertSeverity = Literal["warning", "critical"]


class AccuracyDrop(Model):
    """Alarm when a check of an output gets worse by `by` from one judged night to the next."""

    rule: Literal["accuracy_drop"]
    name: Name = "accuracy_drop"
    check: str = Field("accuracy", description="a check of the group `performance` that outputs have")
    outputs: tuple[Name, ...] | None = Field(None, description="None: every output that has the check; accuracy is a binary output's")
    by: float = Field(0.05, gt=0, description="in the check's own unit")
    worse: Literal["lower", "higher"] = Field("lower", description="which way is worse: an accuracy lower, an error higher")
    severity: AlertSeverity = "critical"


class ConsecutiveFailures(Model):
    """Alarm when so many runs of one kind (ingest, score, monitor, train) failed one after the other, up to the newest."""

    rule: Literal["consecutive_failures"]
    name: Name = "consecutive_failures"
    count: int = Field(2, ge=1)
    severity: AlertSeverity = "critical"


class LateNight(Model):
    """Alarm when a night is not scored at the model's deadline."""

    rule: Literal["late"]
    name: Name = "late"
    severity: AlertSeverity = "warning"


AlertRule = Annotated[AccuracyDrop | ConsecutiveFailures | LateNight, Field(discriminator="rule")]


class ModelEntry(Model):
    """One model."""

    name: Name = Field(alias="model")
    title: str
    owner: str
    owner_url: str
    deadline: time
    dataset: str
    spine: TableSpine | CalendarSpine
    label: Label
    features: tuple[str, ...] = Field(min_length=1)
    outputs: dict[Name, Output] = Field(min_length=1)
    trainer: Trainer
    rivals: tuple[Trainer, ...] = Field((), description="further trainers of the same training; the best on validation goes to the gate")
    split: Split
    gate: Gate = Gate()
    approval: Literal["none", "required"] = Field("none", description="required: a person decides on each promotion that passed the gate")
    approval_timeout: Duration = Field(timedelta(days=7), description="without an answer by then the promotion is off")
    retrain: Retrain = Retrain()
    training: Training = Training()
    airflow: AirflowKnobs = AirflowKnobs()
    alerts: tuple[AlertRule, ...] = Field(
        (AccuracyDrop(rule="accuracy_drop"), ConsecutiveFailures(rule="consecutive_failures"), LateNight(rule="late")),
        description="the whole list; left out, each rule at its defaults",
    )

    @model_validator(mode="after")
    def _alerts(self) -> Self:
        names = [alert.name for alert in self.alerts]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"alerts: the name {name!r} stands twice; give one of them another `name`")
        for alert in self.alerts:
            for output in (alert.outputs or ()) if isinstance(alert, AccuracyDrop) else ():
                if output not in self.outputs:
                    raise ValueError(f"alerts: {alert.name} names {output!r}, which is no output ({', '.join(self.outputs)})")
        return self

    @property
    def entity(self) -> tuple[str, ...]:
        """Columns that name what is predicted."""
        return self.spine.entity

    @property
    def output_columns(self) -> tuple[str, ...]:
        """Columns of a prediction, in order."""
        columns: list[str] = []
        for name, output in self.outputs.items():
            columns.append(name)
            if isinstance(output, RegressionOutput) and output.interval:
                columns += [f"{name}_lower", f"{name}_upper"]
        return tuple(columns)


# ---- the whole -------------------------------------------------------------------------------------------------


class Catalog(Model):
    """All data sets and models."""

    datasets: tuple[Dataset, ...]
    models: tuple[ModelEntry, ...]

    def dataset(self, name: str) -> Dataset:
        """The data set of that name; BadCatalog when there is none."""
        for dataset in self.datasets:
            if dataset.name == name:
                return dataset
        raise BadCatalog(f"there is no data set {name!r}. Known: {', '.join(d.name for d in self.datasets)}.")

    def model(self, name: str) -> ModelEntry:
        """The model of that name; BadCatalog when there is none."""
        for model in self.models:
            if model.name == name:
                return model
        raise BadCatalog(f"there is no model {name!r}. Known: {', '.join(m.name for m in self.models)}.")

    def models_of(self, dataset: str) -> tuple[ModelEntry, ...]:
        """The models that read that data set."""
        return tuple(m for m in self.models if m.dataset == dataset)

    def feature_columns(self, model: ModelEntry) -> dict[str, FeatureColumn]:
        """`<view>__<column>` of every feature the model reads, in catalog order."""
        views = self.dataset(model.dataset).features
        return {f"{view}__{name}": column for view in model.features for name, column in views[view].columns.items()}

    def digest(self, name: str) -> str:
        """SHA-256 of one entry, data set or model, as JSON: equal text means equal configuration."""
        entry: Dataset | ModelEntry | None = next((d for d in self.datasets if d.name == name), None) or next((m for m in self.models if m.name == name), None)
        if entry is None:
            raise BadCatalog(f"there is neither a data set nor a model {name!r}.")
        return hashlib.sha256(entry.model_dump_json(by_alias=True).encode()).hexdigest()


Entry = TypeVar("Entry", Dataset, ModelEntry)


def _read(path: Path, kind: type[Entry]) -> Entry:
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_SafeLoader)  # noqa: S506 (both are safe loaders)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadCatalog(f"{path} is not readable as YAML: {error}") from error
    if not isinstance(document, dict):
        raise BadCatalog(f"{path} holds {type(document).__name__}, needs a mapping of keys.")
    try:
        return kind(**document)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"]) or "(top)"
            value = problem.get("input")
            shown = repr(value) if not isinstance(value, dict) else "{" + ", ".join(value) + "}"
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                message = "unknown key"
            lines.append(f"  {key} = {shown[:160]}: {message}")
        raise BadCatalog(f"{path} does not describe a {'data set' if kind is Dataset else 'model'}:\n" + "\n".join(lines)) from error


def _check_model(model: ModelEntry, catalog: Catalog, path: Path) -> None:
    def fail(key: str, value: object, expectation: str) -> None:
        raise BadCatalog(f"{path} does not describe a model:\n  {key} = {value!r}: {expectation}")

    names = [d.name for d in catalog.datasets]
    if model.dataset not in names:
        fail("dataset", model.dataset, f"is no data set ({', '.join(names)})")
    dataset = catalog.dataset(model.dataset)
    spine_columns: set[str] = set(model.entity)
    if isinstance(model.spine, TableSpine):
        if model.spine.table not in dataset.tables:
            fail("spine.table", model.spine.table, f"is no table of {dataset.name} ({', '.join(dataset.tables)})")
        columns = dataset.tables[model.spine.table].columns
        spine_columns = set(columns)
        for name in (*model.spine.entity, model.spine.target_time):
            if name not in columns:
                fail("spine", name, f"is no column of table {model.spine.table}")
        if columns[model.spine.target_time].type != "timestamp":
            fail("spine.target_time", model.spine.target_time, "must be a timestamp column")
    if model.label.table not in dataset.tables:
        fail("label.table", model.label.table, f"is no table of {dataset.name} ({', '.join(dataset.tables)})")
    label_columns = dataset.tables[model.label.table].columns
    for name in (*model.entity, model.label.column):
        if name not in label_columns:
            fail("label", name, f"is no column of table {model.label.table}")
    if model.split.groups is not None and model.split.groups not in spine_columns:
        fail("split.groups", model.split.groups, f"is no column of the spine ({', '.join(sorted(spine_columns))})")
    for view in model.features:
        if view not in dataset.features:
            fail("features", view, f"is no feature view of {dataset.name} ({', '.join(dataset.features)})")
        for entity in dataset.features[view].entities:
            if entity not in spine_columns:
                fail("features", view, f"is keyed by {entity!r}, which the spine does not have")
    if model.gate.segments:
        known = spine_columns | set(catalog.feature_columns(model))
        for column in model.gate.segments.columns:
            if column not in known:
                fail("gate.segments.columns", column, "is no column of the spine and no feature (<view>__<column>)")


@functools.lru_cache(maxsize=8)
def _load(catalog_dir: Path, stamp: tuple[tuple[str, int, int], ...]) -> Catalog:
    dataset_paths = sorted((catalog_dir / "datasets").glob("*.yaml"))
    model_paths = sorted((catalog_dir / "models").glob("*.yaml"))
    if not dataset_paths:
        raise BadCatalog(f"{catalog_dir / 'datasets'} holds no *.yaml. Describe a data set there; config/datasets has examples.")
    datasets = tuple(_read(path, Dataset) for path in dataset_paths)
    models = tuple(_read(path, ModelEntry) for path in model_paths)
    names = [d.name for d in datasets] + [m.name for m in models]
    entries: list[Dataset | ModelEntry] = [*datasets, *models]
    for entry, path in zip(entries, (*dataset_paths, *model_paths), strict=True):
        if entry.name != path.stem:
            raise BadCatalog(f"{path} describes {entry.name!r}. Name the file {entry.name}.yaml.")
        if names.count(entry.name) > 1:
            raise BadCatalog(f"{path}: the name {entry.name!r} is used twice; data sets and models share one name space.")
    catalog = Catalog(datasets=datasets, models=models)
    for model, path in zip(models, model_paths, strict=True):
        _check_model(model, catalog, path)
    return catalog


def load_catalog(settings: Settings | None = None) -> Catalog:
    """Read and check every file of the catalog; cached until one of them changes.

    Raises:
        BadCatalog: a file is unreadable, has an unknown key, a wrong type or a dangling reference.
    """
    catalog_dir = (settings or load_settings()).catalog_dir
    paths = sorted(catalog_dir.glob("*/*.yaml"))
    return _load(catalog_dir, tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in paths))

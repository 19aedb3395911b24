"""The whole catalog from its files.

A wrong file never gets past `load_catalog`: the error names file, key, value and expectation.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import Field, ValidationError

from config.calendar import ONE_DAY
from config.catalog.base import BadCatalog, Model
from config.catalog.data import (
    NO_ENTITY_TYPES,
    PREDICTION_COLUMNS,
    RESERVED_COLUMNS,
    TRAINING_COLUMNS,
    Dataset,
    FeatureColumn,
    FeatureView,
)
from config.catalog.folder import CatalogFolder, catalog_folders
from config.catalog.model import ModelEntry
from config.catalog.spine import Misfit
from config.durations import format_duration
from config.settings import ROOT, Settings, load_settings

_SHIPPED_FAMILIES = ROOT / "serving" / "predictors"
_FAMILY_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
# libyaml reads seven times faster, and every task of Airflow reads the catalog.
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class ModelView:
    """A feature view as a model takes it.

    Attributes:
        name: as the model's `features` says: `<view>`, or `<dataset>.<view>` of another data set. Its feature columns
            are `<name>__<column>`; a data set's name has no dot, so the two never meet.
    """

    name: str
    dataset: Dataset
    view: str

    @property
    def declared(self) -> FeatureView:
        """The view in its data set's file."""
        return self.dataset.features[self.view]


class Catalog(Model):
    """All data sets and models."""

    datasets: tuple[Dataset, ...]
    models: tuple[ModelEntry, ...]
    homes: dict[str, CatalogFolder] = Field({}, description="by name: the folder that holds the entry")
    families: dict[str, Path] = Field({}, description="by name: the folder of a model family that a team brings")

    def home(self, name: str) -> CatalogFolder:
        """The folder that holds the data set or model; BadCatalog when there is none."""
        if name not in self.homes:
            raise BadCatalog(f"there is neither a data set nor a model {name!r}. Known: {', '.join(self.homes)}.")
        return self.homes[name]

    def view_sql(self, dataset: str, view: str) -> Path:
        """The SQL file of a feature view."""
        return self.home(dataset).sql / dataset / f"{view}.sql"

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
        """The models whose spine and label are of that data set."""
        return tuple(m for m in self.models if m.dataset == dataset)

    def readers_of(self, dataset: str) -> tuple[ModelEntry, ...]:
        """The models that read that data set, those that only take features of it included."""
        return tuple(m for m in self.models if dataset in {d.name for d in self.datasets_of(m)})

    def views(self, model: ModelEntry) -> tuple[ModelView, ...]:
        """The feature views that the model takes, in its order."""
        views = []
        for name in model.features:
            dataset, _, view = name.rpartition(".")
            views.append(ModelView(name, self.dataset(dataset or model.dataset), view))
        return tuple(views)

    def datasets_of(self, model: ModelEntry) -> tuple[Dataset, ...]:
        """The data sets that the model reads, its own first."""
        datasets = (self.dataset(model.dataset), *(view.dataset for view in self.views(model)))
        return tuple({dataset.name: dataset for dataset in datasets}.values())

    def feature_columns(self, model: ModelEntry) -> dict[str, FeatureColumn]:
        """`<view>__<column>` of every feature the model reads, `<dataset>.<view>__<column>` of another data set's, in
        catalog order.
        """
        return {
            f"{view.name}__{name}": column
            for view in self.views(model)
            for name, column in view.declared.columns.items()
        }

    def personal_columns(self, model: ModelEntry) -> frozenset[str]:
        """What is marked as personal data of all that the model reads: columns of tables by name, features as
        `feature_columns` names them.
        """
        tables = (table for dataset in self.datasets_of(model) for table in dataset.tables.values())
        columns = {name for table in tables for name, column in table.columns.items() if column.pii}
        return frozenset(columns | {name for name, column in self.feature_columns(model).items() if column.pii})

    def digest(self, name: str) -> str:
        """SHA-256 of one entry, data set or model, as JSON: equal text means equal configuration."""
        entry: Dataset | ModelEntry | None = next((d for d in self.datasets if d.name == name), None) or next(
            (m for m in self.models if m.name == name), None
        )
        if entry is None:
            raise BadCatalog(f"there is neither a data set nor a model {name!r}.")
        return hashlib.sha256(entry.model_dump_json(by_alias=True).encode()).hexdigest()


Entry = TypeVar("Entry", Dataset, ModelEntry)


def _read(path: Path, kind: type[Entry]) -> Entry:
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_SafeLoader)  # noqa: S506 (both are safe loaders)
    except (yaml.YAMLError, RecursionError, ValueError, OSError) as error:
        # Other bytes than UTF-8 and a date such as 2024-02-30 are a ValueError, a deep nesting a RecursionError.
        raise BadCatalog(f"{path} is not readable as YAML: {error}") from error
    if not isinstance(document, dict):
        raise BadCatalog(f"{path} holds {type(document).__name__}, needs a mapping of keys.")
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"]) or "(top)"
            value = problem.get("input")
            shown = repr(value) if not isinstance(value, dict) else "{" + ", ".join(map(str, value)) + "}"
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                message = "unknown key"
            lines.append(f"  {key} = {shown[:160]}: {message}")
        raise BadCatalog(
            f"{path} does not describe a {'data set' if kind is Dataset else 'model'}:\n" + "\n".join(lines)
        ) from error
    except (TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        # Pydantic lets through what is no ValueError, wherever a value is odder than its check foresaw.
        what = "data set" if kind is Dataset else "model"
        raise BadCatalog(
            f"{path} does not describe a {what}: {type(error).__name__}: {error}. Compare it with one that is shipped, "
            "in config/."
        ) from error


def _check_model(model: ModelEntry, catalog: Catalog, path: Path) -> None:
    """Refuse the first value of a model's file that does not fit the rest of the catalog."""
    for key, value, expectation in _misfits(model, catalog):
        raise BadCatalog(f"{path} does not describe a model:\n  {key} = {value!r}: {expectation}")


def _misfits(model: ModelEntry, catalog: Catalog) -> Iterator[Misfit]:
    """What does not fit. Each is looked for only when those before it were not found."""
    names = [d.name for d in catalog.datasets]
    if model.dataset not in names:
        yield Misfit("dataset", model.dataset, f"is not a data set ({', '.join(names)})")
    dataset = catalog.dataset(model.dataset)
    yield from model.spine.misfits(dataset)
    yield from _step_misfits(model)
    yield from _name_misfits(model)
    yield from _label_misfits(model, dataset)
    spine_columns = set(model.spine.columns(dataset.tables))
    if model.split.groups is not None and model.split.groups not in spine_columns:
        known = ", ".join(sorted(spine_columns))
        yield Misfit("split.groups", model.split.groups, f"is not a column of the spine ({known})")
    datasets = {view.rpartition(".")[0] for view in model.features} - {"", *names}
    for name in sorted(datasets):
        yield Misfit("features", name, f"is not a data set ({', '.join(names)})")
    yield from _feature_misfits(model, dataset, catalog)
    for name in sorted(spine_columns & set(catalog.feature_columns(model))):
        yield Misfit("spine", name, "is what training sets call a feature; rename it in the table")
    types = {name: column.type for name, column in model.spine.columns(dataset.tables).items()}
    types |= {name: column.type for name, column in catalog.feature_columns(model).items()}
    yield from model.rollout.misfits(types, catalog.personal_columns(model))
    if model.gate.segments:
        for column in sorted(catalog.personal_columns(model).intersection(model.gate.segments.columns)):
            expectation = "is personal data (pii), which metrics and pages would show; divide by another column"
            yield Misfit("gate.segments.columns", column, expectation)
        known_columns = spine_columns | set(catalog.feature_columns(model))
        for column in model.gate.segments.columns:
            if column not in known_columns:
                expectation = "is neither a column of the spine nor a feature (<view>__<column>)"
                yield Misfit("gate.segments.columns", column, expectation)


def _step_misfits(model: ModelEntry) -> Iterator[Misfit]:
    """Steps that no season repeats, and a horizon that reaches from one split into the next."""
    every, season, horizon = model.spine.every, model.gate.season, model.spine.horizon
    if every is not None and season is not None and season % every:
        expectation = f"is not a whole number of steps of {format_duration(every)}, so that no step is a season's"
        yield Misfit("gate.season", format_duration(season), expectation)
    for name, output in model.outputs.items():
        if output.scaled and model.gate.season is None:
            expectation = (
                "divides errors by how far the seasons of a series lie apart; say which season, with `gate: {baseline: "
                "seasonal_naive, season: 7 days}`"
            )
            yield Misfit(f"outputs.{name}.gate", output.gate, expectation)
    of_series = every is not None and model.spine.table is not None
    if of_series and horizon > model.split.embargo + ONE_DAY:
        expectation = (
            f"is too short for a horizon of {format_duration(horizon)}: labels of training lie in the test's nights; "
            f"give it at least {format_duration(horizon - ONE_DAY)}"
        )
        yield Misfit("split.embargo", format_duration(model.split.embargo), expectation)


def _name_misfits(model: ModelEntry) -> Iterator[Misfit]:
    """Columns that the model's training sets or predictions would hold twice; SQL does not tell a from A."""
    entity = {name.lower() for name in model.entity}
    for name in model.entity:
        if name.lower() in TRAINING_COLUMNS | PREDICTION_COLUMNS:
            of = "training sets" if name.lower() in TRAINING_COLUMNS else "predictions"
            expectation = f"is a column of its own in {of}; rename it in the table (`renamed_from: {name}`) and here"
            yield Misfit("spine.entity", name, expectation)
    for name in model.output_types:
        if name.lower() in PREDICTION_COLUMNS | RESERVED_COLUMNS | entity:
            expectation = "is published as a column that predictions have already; give the output another name"
            yield Misfit("outputs", name, expectation)


def _label_misfits(model: ModelEntry, dataset: Dataset) -> Iterator[Misfit]:
    table = model.label.table
    if table not in dataset.tables:
        yield Misfit("label.table", table, f"is not a table of {dataset.name} ({', '.join(dataset.tables)})")
    for name in (*model.entity, model.label.column):
        if name not in dataset.tables[table].columns:
            yield Misfit("label", name, f"is not a column of table {table}")
    spine = model.spine.columns(dataset.tables)
    for name in model.entity:
        kind, labelled = spine[name].type, dataset.tables[table].columns[name].type
        if kind != labelled:
            expectation = (
                f"is {kind} in the spine and {labelled} in table {table}, so that no label is ever found; declare it "
                "alike in both"
            )
            yield Misfit("label", name, expectation)
        if kind in NO_ENTITY_TYPES:
            expectation = f"is a {kind}; an entity is a string, int32, int64, date or timestamp"
            yield Misfit("spine.entity", name, expectation)
    yield from _label_kind_misfits(model, dataset.tables[table].columns[model.label.column].type)


def _label_kind_misfits(model: ModelEntry, kind: str) -> Iterator[Misfit]:
    """What the outputs cannot learn from a label column of that type."""
    if model.label.values:
        if kind != "string":
            yield Misfit("label.values", model.label.values, f"maps texts, and {model.label.column} is a {kind}")
        kind = "int64" if all(number.is_integer() for number in model.label.values.values()) else "float64"
    for name, output in model.outputs.items():
        problem = output.label_problem(model.label.column, kind)
        if problem:
            yield Misfit("outputs", name, problem)


def _feature_misfits(model: ModelEntry, dataset: Dataset, catalog: Catalog) -> Iterator[Misfit]:
    spine = model.spine.columns(dataset.tables)
    for name in model.features:
        if model.features.count(name) > 1:
            yield Misfit("features", name, "appears twice")
        of, _, view = name.rpartition(".")
        home = catalog.dataset(of or dataset.name)
        if of:
            yield from _foreign_misfits(name, dataset, catalog.dataset(of))
        if view not in home.features:
            yield Misfit("features", name, f"is not a feature view of {home.name} ({', '.join(home.features)})")
        for entity, kind in home.entity_types(view).items():
            if entity not in spine:
                yield Misfit("features", name, f"is keyed by {entity!r}, which the spine does not have")
            if kind != spine[entity].type:
                expectation = (
                    f"is keyed by {entity!r} of type {kind}, which is {spine[entity].type} in the spine: "
                    "'00061' never meets 61; declare it alike in both tables"
                )
                yield Misfit("features", name, expectation)
        for column, declared in home.features[view].columns.items():
            if declared.type in ("date", "timestamp"):
                expectation = (
                    f"is a {declared.type}, which no trainer takes; make a number of it in the view's SQL, for example "
                    "the hours since then"
                )
                yield Misfit("features", f"{name}__{column}", expectation)


def _foreign_misfits(name: str, own: Dataset, other: Dataset) -> Iterator[Misfit]:
    """Why the nights of another data set cannot serve the nights of a model's own."""
    if other.name == own.name:
        yield Misfit("features", name, f"names the model's own data set; write {name.partition('.')[2]!r}")
    if other.time_zone != own.time_zone:
        expectation = (
            f"is of time zone {other.time_zone}, but {own.name} of {own.time_zone}: their nights end at different "
            "instants; take features of data sets of one time zone"
        )
        yield Misfit("features", name, expectation)
    yield from _bounds_misfits(name, own, other)


def _bounds_misfits(name: str, own: Dataset, other: Dataset) -> Iterator[Misfit]:
    if (own.replay is None) != (other.replay is None):
        kinds = ("a replay" if other.replay else "live", "a replay" if own.replay else "live")
        expectation = f"is {kinds[0]}, but {own.name} is {kinds[1]}: their nights never run together"
        yield Misfit("features", name, expectation)
    if own.replay is None or other.replay is None:
        return
    if other.replay.first >= own.replay.first_night:
        expectation = f"begins with {other.replay.first}, but the first night of {own.name} is {own.replay.first_night}"
        yield Misfit("features", name, f"{expectation}; it must begin before that")
    if other.replay.last < own.replay.last:
        yield Misfit("features", name, f"ends with {other.replay.last}, but {own.name} goes on to {own.replay.last}")


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file of the catalog; the text names file, key, value and expectation."""

    path: Path
    text: str


@dataclass(frozen=True)
class Reading:
    """The files of all folders, read as far as they can be: the entries that are right, and all that is wrong."""

    catalog: Catalog
    problems: tuple[Problem, ...]


def read_catalog(folders: tuple[CatalogFolder, ...]) -> Reading:
    """Read and check every file; what is wrong is collected, so that one look shows all of it."""
    problems: list[Problem] = []
    places: dict[str, tuple[CatalogFolder, Path]] = {}

    def entries(kind: type[Entry]) -> tuple[Entry, ...]:
        read: list[Entry] = []
        for folder, path in _files(folders, "datasets" if kind is Dataset else "models"):
            try:
                entry = _read(path, kind)
                _check_name(entry, path, places)
            except BadCatalog as error:
                problems.append(Problem(path, error.args[0]))
            else:
                places[entry.name] = (folder, path)
                read.append(entry)
        return tuple(read)

    datasets, models = entries(Dataset), entries(ModelEntry)
    families, twice = _families(folders)
    problems += twice
    catalog = Catalog(
        datasets=datasets,
        models=models,
        homes={name: folder for name, (folder, _) in places.items()},
        families=families,
    )
    dataset_files = {path.stem for _, path in _files(folders, "datasets")}
    if not dataset_files:
        listed = ", ".join(str(folder.path / "datasets") for folder in folders)
        text = f"{listed} holds no *.yaml. Describe a data set there; config/datasets has examples."
        problems.append(Problem(folders[0].path, text))
    unread = dataset_files - {dataset.name for dataset in datasets}
    for model in models:
        if unread & {model.dataset, *(view.rpartition(".")[0] for view in model.features)}:
            continue  # its data set's own problem is told
        path = places[model.name][1]
        try:
            _check_model(model, catalog, path)
        except BadCatalog as error:
            problems.append(Problem(path, error.args[0]))
    return Reading(catalog, tuple(problems))


def _families(folders: tuple[CatalogFolder, ...]) -> tuple[dict[str, Path], list[Problem]]:
    """The families of all folders, and those whose name is taken or is none."""
    families: dict[str, Path] = {}
    problems = []
    for path in (path for folder in folders for path in folder.families.values()):
        known = families.get(path.name) or next(_SHIPPED_FAMILIES.glob(f"{path.name}.py"), None)
        if known is not None:
            problems.append(
                Problem(path, f"{path}: there is a family {path.name!r} already, {known}. Rename the folder.")
            )
        elif not _FAMILY_NAME.fullmatch(path.name):
            problems.append(Problem(path, f"{path}: {path.name!r} is no name of a family, needs a-z, 0-9 and _."))
        else:
            families[path.name] = path
    return families, problems


def _files(folders: tuple[CatalogFolder, ...], kind: str) -> list[tuple[CatalogFolder, Path]]:
    return [(folder, path) for folder in folders for path in folder.files(kind)]


def _check_name(entry: Dataset | ModelEntry, path: Path, places: Mapping[str, tuple[CatalogFolder, Path]]) -> None:
    if entry.name != path.stem:
        raise BadCatalog(f"{path} describes {entry.name!r}. Name the file {entry.name}.yaml.")
    if entry.name in places:
        raise BadCatalog(
            f"{path}: the name {entry.name!r} is used twice, first in {places[entry.name][1]}. Data sets and models of "
            "all catalog folders share one name space, since tables, DAGs and SQL are named after them. Rename one of "
            "the two: the file, and the name in it."
        )


@functools.lru_cache(maxsize=8)
def _load(folders: tuple[CatalogFolder, ...], stamp: tuple[tuple[str, int, int], ...]) -> Catalog:
    reading = read_catalog(folders)
    if reading.problems:
        raise BadCatalog("\n".join(problem.text for problem in reading.problems))
    return reading.catalog


def load_catalog(settings: Settings | None = None) -> Catalog:
    """Read and check every file of every catalog folder; cached until one of them changes.

    Raises:
        BadCatalog: a folder is not there, a name is used twice, or a file is unreadable, has an unknown key, a wrong
            type or a dangling reference; the text lists every such file.
    """
    folders = catalog_folders(settings or load_settings())
    stats = [(path, path.stat()) for kind in ("datasets", "models") for _, path in _files(folders, kind)]
    families = [(str(path), 0, 0) for folder in folders for path in folder.families.values()]
    return _load(folders, (*((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in stats), *families))

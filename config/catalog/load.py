"""The whole catalog from its files.

A wrong file never gets past `load_catalog`: the error names file, key, value and expectation.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from config.catalog.base import BadCatalog, Model
from config.catalog.data import Dataset, FeatureColumn
from config.catalog.model import ModelEntry
from config.catalog.spine import Misfit
from config.settings import Settings, load_settings

# libyaml reads seven times faster, and every task of Airflow reads the catalog.
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
        raise BadCatalog(
            f"{path} does not describe a {'data set' if kind is Dataset else 'model'}:\n" + "\n".join(lines)
        ) from error


def _check_model(model: ModelEntry, catalog: Catalog, path: Path) -> None:
    """Refuse the first value of a model's file that does not fit the rest of the catalog."""
    for key, value, expectation in _misfits(model, catalog):
        raise BadCatalog(f"{path} does not describe a model:\n  {key} = {value!r}: {expectation}")


def _misfits(model: ModelEntry, catalog: Catalog) -> Iterator[Misfit]:
    """What does not fit. Each is looked for only when those before it were not found."""
    names = [d.name for d in catalog.datasets]
    if model.dataset not in names:
        yield Misfit("dataset", model.dataset, f"is no data set ({', '.join(names)})")
    dataset = catalog.dataset(model.dataset)
    yield from model.spine.misfits(dataset)
    yield from _label_misfits(model, dataset)
    spine_columns = set(model.spine.columns(dataset.tables))
    if model.split.groups is not None and model.split.groups not in spine_columns:
        known = ", ".join(sorted(spine_columns))
        yield Misfit("split.groups", model.split.groups, f"is no column of the spine ({known})")
    yield from _feature_misfits(model, dataset, spine_columns)
    if model.gate.segments:
        known_columns = spine_columns | set(catalog.feature_columns(model))
        for column in model.gate.segments.columns:
            if column not in known_columns:
                expectation = "is no column of the spine and no feature (<view>__<column>)"
                yield Misfit("gate.segments.columns", column, expectation)


def _label_misfits(model: ModelEntry, dataset: Dataset) -> Iterator[Misfit]:
    table = model.label.table
    if table not in dataset.tables:
        yield Misfit("label.table", table, f"is no table of {dataset.name} ({', '.join(dataset.tables)})")
    for name in (*model.entity, model.label.column):
        if name not in dataset.tables[table].columns:
            yield Misfit("label", name, f"is no column of table {table}")


def _feature_misfits(model: ModelEntry, dataset: Dataset, spine_columns: Set[str]) -> Iterator[Misfit]:
    for view in model.features:
        if view not in dataset.features:
            yield Misfit("features", view, f"is no feature view of {dataset.name} ({', '.join(dataset.features)})")
        for entity in dataset.features[view].entities:
            if entity not in spine_columns:
                yield Misfit("features", view, f"is keyed by {entity!r}, which the spine does not have")


@functools.lru_cache(maxsize=8)
def _load(catalog_dir: Path, stamp: tuple[tuple[str, int, int], ...]) -> Catalog:
    dataset_paths = sorted((catalog_dir / "datasets").glob("*.yaml"))
    model_paths = sorted((catalog_dir / "models").glob("*.yaml"))
    if not dataset_paths:
        raise BadCatalog(
            f"{catalog_dir / 'datasets'} holds no *.yaml. Describe a data set there; config/datasets has examples."
        )
    datasets = tuple(_read(path, Dataset) for path in dataset_paths)
    models = tuple(_read(path, ModelEntry) for path in model_paths)
    names = [d.name for d in datasets] + [m.name for m in models]
    entries: list[Dataset | ModelEntry] = [*datasets, *models]
    for entry, path in zip(entries, (*dataset_paths, *model_paths), strict=True):
        if entry.name != path.stem:
            raise BadCatalog(f"{path} describes {entry.name!r}. Name the file {entry.name}.yaml.")
        if names.count(entry.name) > 1:
            raise BadCatalog(
                f"{path}: the name {entry.name!r} is used twice; data sets and models share one name space."
            )
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

"""Feast's objects, generated from the catalog, and the store that serves them.

Names: a feature view is `<dataset>__<view>`, an entity `<dataset>__<column>`, since all data sets share one project. A
model's feature service gives its views the names that the model says, so retrieved columns read `<view>__<column>`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import sqlalchemy as sa
import yaml

from config.catalog.data import Dataset
from config.catalog.load import Catalog
from config.catalog.source import ColumnType
from config.settings import Settings
from lake.delta import table_location
from lake.lake import Lake
from lake.storage import advisory_lock
from lake.tables import feature_table

if TYPE_CHECKING:
    from feast import Entity, FeatureService, FeatureStore, FeatureView

PROJECT = "nightfleet"
TIMESTAMP_FIELD = "event_timestamp"
# Raised when the objects made here change though the catalog does not; it makes every installation apply anew.
_DEFINITIONS_VERSION = 1


def view_name(dataset: str, view: str) -> str:
    """A feature view's name in Feast."""
    return f"{dataset}__{view}"


def feast_type(kind: ColumnType) -> Any:
    """The Feast type of a catalog type. Feast has no date: a date is its ISO text, `2013-07-01`."""
    from feast import types

    return {
        "string": types.String,
        "date": types.String,
        "int32": types.Int32,
        "int64": types.Int64,
        "float64": types.Float64,
        "boolean": types.Bool,
        "timestamp": types.UnixTimestamp,
    }[kind]


def feast_objects(settings: Settings, catalog: Catalog) -> list[Entity | FeatureView | FeatureService]:
    """Every entity, feature view and feature service of the catalog."""
    from feast import Entity, FeatureService, FeatureView, Field, FileSource
    from feast.data_format import DeltaFormat

    views: dict[str, FeatureView] = {}
    entities: dict[str, Entity] = {}
    for dataset in catalog.datasets:
        for view, declared in dataset.features.items():
            kinds = dataset.entity_types(view)
            for name, kind in kinds.items():
                entities.setdefault(
                    view_name(dataset.name, name),
                    Entity(
                        name=view_name(dataset.name, name),
                        join_keys=[name],
                        value_type=feast_type(kind).to_value_type(),
                        description=_describe(dataset, name),
                        tags={"dataset": dataset.name},
                        owner=dataset.owner,
                    ),
                )
            schema = [
                Field(name=name, dtype=feast_type(kind), description=_describe(dataset, name))
                for name, kind in kinds.items()
            ]
            for name, column in declared.columns.items():
                tags = {"unit": column.unit} if column.unit else {}
                schema.append(
                    Field(name=name, dtype=feast_type(column.type), description=column.description, tags=tags)
                )
            table = feature_table(settings, dataset, view)
            views[view_name(dataset.name, view)] = FeatureView(
                name=view_name(dataset.name, view),
                entities=[entities[view_name(dataset.name, name)] for name in declared.entities],
                ttl=declared.ttl,
                schema=schema,
                source=FileSource(
                    name=table.name,
                    path=table.location.uri,
                    file_format=DeltaFormat(),
                    timestamp_field=TIMESTAMP_FIELD,
                    description=declared.description,
                    owner=dataset.owner,
                ),
                description=declared.description,
                tags={"dataset": dataset.name, "view": view, "owner": dataset.owner},
                owner=dataset.owner,
            )
    services = [
        FeatureService(
            name=model.name,
            features=[
                views[view_name(view.dataset.name, view.view)].with_name(view.name) for view in catalog.views(model)
            ],
            description=model.title,
            tags={"dataset": model.dataset},
            owner=model.owner,
        )
        for model in catalog.models
    ]
    return [*entities.values(), *views.values(), *services]


def _describe(dataset: Dataset, column: str) -> str:
    return next((t.columns[column].description for t in dataset.tables.values() if column in t.columns), "")


def repo_config(settings: Settings, pins: Mapping[str, int] | None = None, *, stores: str = "") -> dict[str, Any]:
    """Feast's configuration of an installation, as `feature_store.yaml` holds it.

    Args:
        pins: Delta version by feature table (`flights/features/carrier_daily`); what is not named is read at its newest
            version.
        stores: module that holds all three classes, where they are not imported from their own.
    """
    return {
        "project": PROJECT,
        "provider": "local",
        "registry": {"registry_type": "sql", "path": settings.registry_url, "cache_ttl_seconds": 0},
        "offline_store": {
            "type": f"{stores or 'features.offline_store'}.DuckDBDeltaOfflineStore",
            "pins": dict(pins or {}),
            "memory_gb": settings.duckdb_memory_gb,
            "threads": settings.duckdb_threads,
            "scratch": str(settings.scratch),
        },
        "online_store": {
            "type": f"{stores or 'features.online_store'}.NewestWinsSqliteOnlineStore",
            "path": str(settings.online_store),
        },
        "batch_engine": {"type": f"{stores or 'features.compute_engine'}.ColumnarComputeEngine"},
        "entity_key_serialization_version": 3,
    }


_stores: dict[tuple[int, str, str], FeatureStore] = {}
# In the registry's own database: who takes the registry away takes this away with it.
_applied_table = sa.Table(
    "nightfleet_applied",
    sa.MetaData(),
    sa.Column("project", sa.String, primary_key=True),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("token", sa.String, nullable=False),
)


def feature_store(lake: Lake, pins: Mapping[str, int] | None = None) -> FeatureStore:
    """Feast's store on the applied definitions, reading each feature view at its pinned Delta version.

    The registry is read once per process and catalog; only the configuration differs from call to call.
    """
    from feast import FeatureStore, RepoConfig

    # A forked worker must not use its parent's database connections; what was applied anew is read anew.
    key = (os.getpid(), str(lake.settings.home), _ensure_applied(lake).token)
    if key not in _stores:
        _stores.clear()
        _stores[key] = FeatureStore(config=RepoConfig(**repo_config(lake.settings)))
    known = _stores[key]
    store = FeatureStore(config=RepoConfig(**repo_config(lake.settings, pins)))
    store._registry = known.registry
    return store


def definitions_digest(lake: Lake) -> str:
    """Digest of all that the applied objects follow from."""
    import feast

    parts = {
        "version": _DEFINITIONS_VERSION,
        "feast": feast.__version__,
        "lake": table_location(lake.settings).uri,
        "online": str(lake.settings.online_store),
        "registry": lake.settings.registry_url,
        "catalog": [
            lake.catalog.digest(name)
            for name in (*(d.name for d in lake.catalog.datasets), *(m.name for m in lake.catalog.models))
        ],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def feast_lock(lake: Lake) -> AbstractContextManager[None]:
    """One process at a time writes to Feast's registry and online store: Feast loses intervals otherwise."""
    return advisory_lock(lake.engine, "feast")


@dataclass(frozen=True)
class _Applied:
    """What Feast's registry holds: the digest of its objects, and a token that no other applying has."""

    digest: str
    token: str


def ensure_applied(lake: Lake) -> str:
    """Apply the catalog to Feast's registry, unless the same catalog is there already; returns its digest."""
    return _ensure_applied(lake).digest


def apply_anew(lake: Lake) -> None:
    """Apply the catalog to Feast's registry whatever it holds."""
    _folder(lake.settings)
    with feast_lock(lake), _registry(lake.settings) as engine, engine.begin() as connection:
        if sa.inspect(connection).has_table(_applied_table.name):
            connection.execute(_applied_table.delete().where(_applied_table.c.project == PROJECT))
    ensure_applied(lake)


def registry_problems(lake: Lake) -> list[str]:
    """What Feast's registry and the online store lack of the catalog; nothing is written, and where no feature was ever
    materialized nothing is missing.
    """
    if not lake.settings.online_store.is_file():
        return []
    with _registry(lake.settings) as engine, engine.connect() as connection:
        return missing_objects(lake, connection)


def _ensure_applied(lake: Lake) -> _Applied:
    digest = definitions_digest(lake)
    there = _applied(lake)
    if there is not None and there.digest == digest:
        return there
    with feast_lock(lake):
        there = _applied(lake)
        if there is not None and there.digest == digest:
            return there  # another process did it meanwhile
        _apply(lake)
        applied = _Applied(digest, uuid.uuid4().hex)
        with _registry(lake.settings) as engine, engine.begin() as connection:
            _applied_table.create(connection, checkfirst=True)
            connection.execute(_applied_table.delete().where(_applied_table.c.project == PROJECT))
            connection.execute(_applied_table.insert().values(project=PROJECT, **asdict(applied)))
    return applied


def _applied(lake: Lake) -> _Applied | None:
    """What is applied; None where nothing is, or where a store was removed or lost something since."""
    settings = lake.settings
    files = [settings.online_store]
    if settings.registry_url.startswith("sqlite:///"):
        files.append(Path(settings.registry_url.removeprefix("sqlite:///")))
    if not all(path.exists() for path in files):
        return None
    with _registry(settings) as engine, engine.connect() as connection:
        if not sa.inspect(connection).has_table(_applied_table.name):
            return None
        query = sa.select(_applied_table.c.digest, _applied_table.c.token)
        row = connection.execute(query.where(_applied_table.c.project == PROJECT)).first()
        if row is None or missing_objects(lake, connection):
            return None
    return _Applied(*row)


def missing_objects(lake: Lake, registry: sa.Connection) -> list[str]:
    """Feature views and services of the catalog that Feast's registry lacks, and views without a table in the online
    store; sorted.
    """
    views = {view_name(dataset.name, view) for dataset in lake.catalog.datasets for view in dataset.features}
    services = {model.name for model in lake.catalog.models}
    missing = {f"feature view {name}" for name in views - _registered(registry, "feature_view")}
    missing |= {f"feature service {name}" for name in services - _registered(registry, "feature_service")}
    with closing(open_online(lake.settings)) as online:
        tables = {name for (name,) in online.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    missing |= {f"online table of {name}" for name in views if f"{PROJECT}_{name}" not in tables}
    return sorted(missing)


def open_online(settings: Settings, *, writable: bool = False) -> sqlite3.Connection:
    """The online store's own database.

    Raises:
        sqlite3.OperationalError: it is not there.
    """
    uri = f"file:{quote(str(settings.online_store))}?mode={'rw' if writable else 'ro'}"
    return sqlite3.connect(uri, uri=True, timeout=30)


def _registered(registry: sa.Connection, kind: str) -> set[str]:
    """Names of one kind of object in Feast's registry, by its tables: reading them through Feast costs a second."""
    table = sa.table(f"{kind}s", sa.column(f"{kind}_name"), sa.column("project_id"))
    if not sa.inspect(registry).has_table(table.name):
        return set()
    query = sa.select(table.c[f"{kind}_name"]).where(table.c.project_id == PROJECT)
    return set(registry.execute(query).scalars())


@contextmanager
def _registry(settings: Settings) -> Iterator[sa.Engine]:
    """The database of Feast's registry, without connections that would outlive the block."""
    engine = sa.create_engine(settings.registry_url, poolclass=sa.NullPool)
    try:
        yield engine
    finally:
        engine.dispose()


def _forget_lost_views(settings: Settings) -> None:
    """Drop the version history of views that are not in the registry: Feast refuses to apply them again beside it."""
    with _registry(settings) as engine, engine.begin() as connection:
        if not sa.inspect(connection).has_table("feature_view_version_history"):
            return
        history = sa.table("feature_view_version_history", sa.column("feature_view_name"), sa.column("project_id"))
        there = _registered(connection, "feature_view")
        connection.execute(
            history.delete().where(history.c.project_id == PROJECT, history.c.feature_view_name.not_in(there))
        )


def _folder(settings: Settings) -> Path:
    folder = settings.home / "feast"
    folder.mkdir(parents=True, exist_ok=True)  # SQLite makes a file, not its folder
    return folder


def _apply(lake: Lake) -> None:
    from feast import FeatureStore, RepoConfig

    folder = _folder(lake.settings)
    config = repo_config(lake.settings)
    store = FeatureStore(config=RepoConfig(**config))
    _forget_lost_views(lake.settings)
    wanted = feast_objects(lake.settings, lake.catalog)
    names = {type(o).__name__: {x.name for x in wanted if type(x) is type(o)} for o in wanted}
    known = [
        *store.list_feature_services(),
        *store.list_feature_views(),
        *store.list_entities(),
        *store.list_data_sources(),
    ]
    sources = {getattr(o, "batch_source", o).name for o in wanted if hasattr(o, "batch_source")}
    gone = [o for o in known if o.name not in names.get(type(o).__name__, set()) | sources | {"__dummy"}]
    store.apply(wanted, objects_to_delete=gone, partial=not gone)
    # For the plain `feast` command on an installation elsewhere: `feast -f <home>/feast/feature_store.yaml …`.
    (folder / "feature_store.yaml").write_text(
        yaml.safe_dump(repo_config(lake.settings, stores="nightfleet_stores"), sort_keys=False)
    )

"""The handle every stage gets: settings, catalog, publications index, DuckDB connections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import sqlalchemy as sa

from config.calendar import Interval
from config.catalog.data import Dataset
from config.catalog.load import Catalog, load_catalog
from config.catalog.model import ModelEntry
from config.settings import Settings, code_version, load_settings
from lake.duck import connect
from lake.ledger import Ledger
from lake.leftovers import try_folder
from lake.lineage import Lineage, Publications, create_engine
from lake.migrations import is_former, migrate
from lake.rollouts import RolloutLedger
from lake.tables import LakeTable, feature_table


@dataclass(frozen=True)
class StageResult:
    """What a stage did, small enough for XCom and for the live view. `committed` counts partitions; 0 means they were
    there already.
    """

    stage: str
    subject: str
    interval: str
    rows: int
    committed: int
    details: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As a JSON document."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Lake:
    """One installation's state, opened. Cheap to make; connections come on first use.

    Attributes:
        read_only: nothing is projected or repaired on the way, and the database refuses to be written: for pages.
    """

    settings: Settings
    catalog: Catalog
    read_only: bool = False

    @cached_property
    def engine(self) -> sa.Engine:
        """The projections' database, its tables brought up to date where a former version wrote them."""
        self.settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        engine = create_engine(self.settings.database_url, read_only=self.read_only)
        if is_former(engine):
            # Whoever opens it first: a reader could not read it.
            writer = create_engine(self.settings.database_url)
            migrate(writer)
            writer.dispose()
        return engine

    @cached_property
    def publications(self) -> Publications:
        """The index of publications."""
        return Publications(self.engine, read_only=self.read_only)

    def dataset(self, name: str) -> Dataset:
        """A data set of the catalog."""
        return self.catalog.dataset(name)

    def model(self, name: str) -> ModelEntry:
        """A model of the catalog."""
        return self.catalog.model(name)

    def feature_tables(self, model: ModelEntry) -> dict[str, LakeTable]:
        """The feature table of each view that a model takes, by the view's name in the model."""
        return {view.name: feature_table(self.settings, view.dataset, view.view) for view in self.catalog.views(model)}

    def ledger(self, model: str) -> Ledger:
        """A model's promotions."""
        return Ledger(self.settings, model)

    def rollouts(self, model: str) -> RolloutLedger:
        """How a model's versions took over."""
        return RolloutLedger(self.settings, model)

    def lineage(self, subject: str, run_id: str, **details: Any) -> Lineage:
        """Lineage without inputs yet; add them with `dataclasses.replace`."""
        return Lineage(
            run_id=run_id, code_version=code_version(), catalog_digest=self.catalog.digest(subject), details=details
        )

    @contextmanager
    def duckdb(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A DuckDB connection in UTC, bounded in memory, that spills below `scratch`."""
        with try_folder(self.settings.scratch, "duckdb") as spill:
            memory_gb, threads = self.settings.duckdb_memory_gb, self.settings.duckdb_threads
            with connect(memory_gb=memory_gb, threads=threads, spill=str(spill)) as connection:
                yield connection

    @contextmanager
    def scratch(self, prefix: str) -> Iterator[Path]:
        """A temporary folder of this try, removed at the end."""
        with try_folder(self.settings.scratch, prefix) as folder:
            yield folder


def register_nights(
    connection: duckdb.DuckDBPyConnection, interval: Interval, time_zone: str, name: str = "nights"
) -> None:
    """Table `nights(data_date DATE, cutoff_utc TIMESTAMPTZ)` of the interval."""
    connection.execute(f'CREATE OR REPLACE TEMP TABLE "{name}" (data_date DATE, cutoff_utc TIMESTAMPTZ)')
    connection.executemany(
        f'INSERT INTO "{name}" VALUES (?, ?)',  # noqa: S608 (fixed name)
        [(day, instant) for day, instant in interval.cutoffs(time_zone).items()],
    )


def open_lake(settings: Settings | None = None) -> Lake:
    """The lake of this process' settings, with its catalog checked."""
    settings = settings or load_settings()
    return Lake(settings, load_catalog(settings))

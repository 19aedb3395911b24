"""A lake with an empty catalog of its own and one small table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa

from config.calendar import Interval
from config.catalog.load import Catalog, load_catalog
from config.settings import Settings
from lake.lake import Lake
from lake.lineage import Lineage
from lake.publish import Published, publish
from lake.tables import LakeTable, named_table
from tests import toy

FIRST = date(2024, 1, 1)
COLUMNS = {"item": "int64", "label": "string", "value": "float64", "at": "timestamp", "on": "boolean"}
LINEAGE = Lineage("run", "code", "catalog")


def item_table(settings: Settings) -> LakeTable:
    """`things/raw/items`, keyed by item."""
    return named_table(settings, "things/raw/items", COLUMNS, ("item",))


def item_rows(interval: Interval, *, count: int = 4, seed: int = 1) -> pa.Table:
    """`count` rows of every night, the same for the same arguments."""
    nights = list(interval)
    random = np.random.default_rng(seed)
    total = count * len(nights)
    return pa.table(
        {
            "item": pa.array(np.tile(np.arange(count), len(nights))),
            "label": pa.array([f"item {n}" if n % 3 else None for n in range(total)], pa.string()),
            "value": pa.array(random.normal(size=total)),
            "at": pa.array(random.integers(0, 10**15, total), pa.timestamp("us", tz="UTC")),
            "on": pa.array(
                [True, None, False, True][:count] * len(nights) if count <= 4 else random.random(total) < 0.5,
                pa.bool_(),
            ),
            "data_date": pa.array([night for night in nights for _ in range(count)], pa.date32()),
        }
    )


@dataclass(frozen=True)
class Items:
    """A lake and its table `things/raw/items`."""

    lake: Lake
    table: LakeTable

    def publish(
        self,
        rows: pa.Table | pa.RecordBatchReader,
        interval: Interval,
        *,
        replaces: dict[date, str | None] | None = None,
        lineage: Lineage = LINEAGE,
    ) -> Published:
        """`lake.publish`, replacing what is there unless `replaces` says otherwise."""
        before = self.lake.publications.digests(self.table, interval) if replaces is None else replaces
        with self.lake.scratch("test") as scratch:
            return publish(
                self.lake.publications, self.table, rows, interval, replaces=before, lineage=lineage, scratch=scratch
            )

    def digests(self, interval: Interval) -> dict[date, str | None]:
        """What the index says is published."""
        return self.lake.publications.digests(self.table, interval)


@pytest.fixture
def items(tmp_path: Path) -> Items:
    settings = Settings(home=tmp_path / "var")
    return Items(Lake(settings, Catalog(datasets=(), models=())), item_table(settings))


@pytest.fixture
def items_at(tmp_path: Path) -> Callable[..., Items]:
    def make(name: str, sql_url: str = "") -> Items:
        settings = Settings(home=tmp_path / name, sql_url=sql_url)
        return Items(Lake(settings, Catalog(datasets=(), models=())), item_table(settings))

    return make


@pytest.fixture
def rides(tmp_path: Path) -> Callable[[str], Lake]:
    """Lakes of the toy catalog, with `sql_url` as given."""

    def make(sql_url: str = "") -> Lake:
        settings = toy.write_catalog(tmp_path).model_copy(update={"sql_url": sql_url})
        return Lake(settings, load_catalog(settings))

    return make


def reader_of(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatchReader:
    """A stream of those batches."""
    return pa.RecordBatchReader.from_batches(schema, iter(batches))


@pytest.fixture
def empty_postgres(postgres_url: str) -> Iterator[str]:
    """URL of the shared Postgres with all its tables gone, before and after."""

    def clear() -> None:
        engine = sa.create_engine(postgres_url)
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        engine.dispose()

    clear()
    yield postgres_url
    clear()

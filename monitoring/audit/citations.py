"""Which partitions, at which versions, kept predictions and stored models were computed from."""

from __future__ import annotations

import bisect
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from config.errors import NightfleetError
from lake.delta import table_location
from lake.lake import Lake
from lake.lineage import publications_table
from lake.projection import sql_columns
from lake.storage import artifacts, version_key
from lake.tables import DATA_DATE, LakeTable
from serving.projection import SQL_PREFIX
from training.registry.job import TRAINING_SET_FILE

PREDICTIONS = "/predictions"
_NO_OUTPUTS = pa.schema([DATA_DATE])


class CitationsUnreadable(NightfleetError):
    """What a stored model was trained on cannot be read, so that nobody knows which rows it needs."""


@dataclass(frozen=True)
class Citation:
    """One partition as a table held it at a version."""

    table: str
    data_date: date
    version: int


def lake_tables(lake: Lake) -> list[LakeTable]:
    """Every Delta table that lies in the lake, whether the catalog still names it or not, by name and place alone."""
    root = Path(table_location(lake.settings).uri)
    names = sorted(log.parent.relative_to(root).as_posix() for log in root.rglob("_delta_log"))
    return [LakeTable(name, table_location(lake.settings, name), pa.schema([]), ()) for name in names]


def citations(lake: Lake, *, superseded_since: datetime, without_jobs: Collection[Path] = ()) -> set[Citation]:
    """What kept predictions and stored models were computed from, and what that was computed from, down to raw.

    Kept are the current predictions and those that were replaced since the instant; every stored version of a model,
    and every job that is still there.

    Args:
        without_jobs: folders of jobs that are about to go.
    Raises:
        CitationsUnreadable: a stored version or a job does not say what it was trained on.
    """
    publications = lake.publications
    for table in lake_tables(lake):
        publications.sync(table)
    index = _Index.read(lake)
    reached: set[Citation] = set()
    waiting = [*_of_predictions(lake, index, superseded_since), *_of_models(lake, without_jobs)]
    while waiting:
        cited = waiting.pop()
        if cited not in reached:
            reached.add(cited)
            waiting += index.inputs(cited)
    return reached


@dataclass(frozen=True)
class _Index:
    """The publications of all tables: versions, rising, and inputs of each by `(table, data date)`."""

    versions: Mapping[tuple[str, date], list[int]]
    inputs_json: Mapping[tuple[str, date], list[str]]

    @classmethod
    def read(cls, lake: Lake) -> _Index:
        c = publications_table.c
        query = sa.select(c.table_name, c.data_date, c.version, c.inputs).order_by(c.version)
        versions: dict[tuple[str, date], list[int]] = {}
        inputs: dict[tuple[str, date], list[str]] = {}
        with lake.engine.connect() as connection:
            for row in connection.execute(query):
                key = (row.table_name, row.data_date)
                versions.setdefault(key, []).append(row.version)
                inputs.setdefault(key, []).append(row.inputs)
        return cls(versions, inputs)

    def newest(self, suffix: str) -> Iterator[Citation]:
        """The newest publication of every partition of the tables whose name ends so."""
        for (table, day), versions in self.versions.items():
            if table.endswith(suffix):
                yield Citation(table, day, versions[-1])

    def inputs(self, cited: Citation) -> Iterator[Citation]:
        """What the publication that stood there at that version was computed from."""
        key = (cited.table, cited.data_date)
        position = bisect.bisect_right(self.versions.get(key, []), cited.version) - 1
        if position >= 0:
            yield from _inputs(json.loads(self.inputs_json[key][position]))


def _inputs(documents: Iterable[Mapping[str, Any]]) -> Iterator[Citation]:
    pins: dict[str, int] = {}
    listed = list(documents)
    for each in listed:
        yield Citation(each["table"], date.fromisoformat(each["data_date"]), each["version"])
        pins[each["table"]] = max(pins.get(each["table"], 0), each["version"])
    for each in listed:
        # A table is read at one version, that of its newest input.
        yield Citation(each["table"], date.fromisoformat(each["data_date"]), pins[each["table"]])


def _of_predictions(lake: Lake, index: _Index, superseded_since: datetime) -> Iterator[Citation]:
    yield from index.newest(PREDICTIONS)
    for table in superseding_tables(lake):
        c = table.c
        kept = sa.or_(c.superseded_at.is_(None), c.superseded_at >= superseded_since)
        query = sa.select(c.source_table, c.data_date, c.delta_version).where(kept).distinct()
        with lake.engine.connect() as connection:
            for row in connection.execute(query):
                yield Citation(row.source_table, row.data_date, row.delta_version)


def superseding_tables(lake: Lake) -> list[sa.Table]:
    """The SQL tables of predictions, which keep replaced rows with `superseded_at`."""
    names = [name for name in sa.inspect(lake.engine).get_table_names() if name.startswith(SQL_PREFIX)]
    return [sql_columns(name, _NO_OUTPUTS, keep_replaced=True) for name in sorted(names)]


def _of_models(lake: Lake, without_jobs: Collection[Path]) -> Iterator[Citation]:
    store = artifacts(lake.settings)
    for model in store.names():
        for digest in store.names(model):
            key = version_key(model, digest, TRAINING_SET_FILE)
            if store.exists(key):
                yield from _trained_on(store.read(key), store.uri(key))
    for path in sorted(lake.settings.jobs.glob(f"*/*/{TRAINING_SET_FILE}")):
        if path.parent not in without_jobs:
            yield from _trained_on(path.read_bytes(), str(path))


def _trained_on(document: bytes, where: str) -> Iterator[Citation]:
    try:
        yield from _inputs(json.loads(document)["inputs"])
    except (ValueError, KeyError, TypeError) as error:
        raise CitationsUnreadable(
            f"{where} does not say what its model was trained on ({type(error).__name__}: {error}). No data file was "
            "removed.\n  Restore that file from a backup, or remove the folder it lies in, then clean again."
        ) from error

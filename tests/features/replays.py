"""The shipped data sets in a lake of their own, over some of their nights: whole histories take longer than a test
may.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa

from config.calendar import ONE_DAY, Interval
from config.catalog.load import load_catalog
from config.catalog.model import Split
from config.settings import ROOT, Settings
from features.ingest import ingest
from features.sources.read import read_source
from features.transform import transform
from features.validate import validate
from lake.lake import Lake


def replay_lake(folder: Path, dataset: str, *, first: date, split: Mapping[str, Any] | None = None) -> Lake:
    """An empty lake whose catalog has that data set alone, begun on `first`, and its models, with another split where
    one is given.
    """
    settings = Settings(home=folder / "var", duckdb_memory_gb=1.0)
    catalog = load_catalog(Settings(catalogs=(ROOT / "config",)))
    entry = catalog.dataset(dataset)
    assert entry.replay is not None
    begun = entry.model_copy(update={"replay": entry.replay.model_copy(update={"first": first})})
    models = catalog.models_of(dataset)
    if split is not None:
        models = tuple(model.model_copy(update={"split": Split(**split)}) for model in models)
    return Lake(settings, catalog.model_copy(update={"datasets": (begun,), "models": models}))


def publish_history(lake: Lake, dataset: str, *, last: date | None = None) -> Interval:
    """Every night of the replay up to `last`, in bulk, through the real stages."""
    replay = lake.dataset(dataset).replay
    assert replay is not None
    nights = Interval(replay.first, (last or replay.last) + ONE_DAY)
    for stage in (ingest, validate, transform):
        stage(lake, dataset, nights, run_id="test")
    return nights


def source_rows(lake: Lake, dataset: str, table: str) -> pa.Table:
    """A table's whole source as it is read, whatever night its rows become known in."""
    with lake.duckdb() as connection, lake.scratch("source") as folder:
        read = read_source(
            lake,
            dataset,
            table,
            Interval.of(lake.dataset(dataset).first_data_date),
            connection,
            name="source_rows",
            folder=folder,
        )
        return connection.sql(f"SELECT * FROM {read.view} ORDER BY ALL").to_arrow_table()


def provenance(folder: Path) -> dict[str, tuple[int, str]]:
    """Bytes and SHA-256 of each file that PROVENANCE.md lists."""
    rows = [
        line.split("|")[1:-1]
        for line in (folder / "PROVENANCE.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    cells = [[cell.strip() for cell in row] for row in rows]
    return {row[0]: (int(row[1].replace(",", "")), row[2]) for row in cells if len(row) > 2 and len(row[2]) == 64}

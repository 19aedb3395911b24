"""One table, read: what the tests of all source kinds do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from config.calendar import Interval
from config.catalog.load import load_catalog
from config.settings import Settings
from features.sources import read_source
from lake.lake import Lake

NIGHT = date(2024, 3, 4)
COLUMNS: dict[str, dict[str, Any]] = {
    "meter": {"type": "string", "nullable": False, "description": "which one"},
    "at_utc": {"type": "timestamp", "nullable": False, "description": "when"},
    "litres": {"type": "float64", "unit": "l", "description": "how much"},
    "pulses": {"type": "int64", "description": "how often"},
    "open": {"type": "boolean", "description": "whether"},
    "billed_on": {"type": "date", "description": "until when"},
}


def meters(
    folder: Path,
    source: Mapping[str, Any],
    *,
    columns: Mapping[str, Any] = COLUMNS,
    known_at: Any = None,
    key: Sequence[str] = ("meter", "at_utc"),
) -> Lake:
    """A lake with one table `meters/readings` of that source; relative paths start at `folder`."""
    dataset = {
        "dataset": "meters",
        "title": "Water meters",
        "owner": "tests",
        "owner_url": "mailto:tests@example.com",
        "licence": "CC0-1.0",
        "time_zone": "Europe/Berlin",
        "start": date(2024, 3, 1),
        "tables": {
            "readings": {
                "description": "One reading.",
                "source": dict(source),
                "key": list(key),
                "known_at": known_at or {"column": "at_utc"},
                "columns": dict(columns),
            }
        },
    }
    (folder / "datasets").mkdir(parents=True, exist_ok=True)
    (folder / "datasets" / "meters.yaml").write_text(yaml.safe_dump(dataset, sort_keys=False), encoding="utf-8")
    settings = Settings(home=folder / "var", catalogs=(folder,), duckdb_memory_gb=0.5)
    return Lake(settings, load_catalog(settings))


def read(lake: Lake, interval: Interval | None = None) -> pa.Table:
    """The rows of `meters/readings`, as `read_source` hands them out, sorted by meter and time."""
    with lake.duckdb() as connection, lake.scratch("test") as folder:
        read_source(lake, "meters", "readings", interval or Interval.of(NIGHT), connection, name="found", folder=folder)
        return connection.sql("SELECT * FROM found ORDER BY meter, at_utc").to_arrow_table()

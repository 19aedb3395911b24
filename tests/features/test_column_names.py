"""A user's column may be called as anything in our SQL is: the rows are those of a column with another name."""

from __future__ import annotations

import ast
import re
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pytest
import yaml

from config.calendar import ONE_DAY, Interval
from config.catalog.data import OWN_PREFIX, RESERVED_COLUMNS
from config.catalog.load import load_catalog
from config.settings import ROOT, Settings
from features.ingest import ingest
from features.transform import transform
from features.validate import validate
from lake.lake import Lake
from lake.tables import feature_table, quarantine_table, raw_table, valid_table

FIRST = date(2024, 3, 1)
NIGHTS = Interval(FIRST, date(2024, 3, 4))
_AT_ONCE = 120


def words_of_our_sql() -> list[str]:
    """Every word in a text of the rooms whose SQL sees a user's columns, and every internal column."""
    words = {"a", "b", "n", "r", "s"}
    for path in sorted([*(ROOT / "features").rglob("*.py"), *(ROOT / "lake").glob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "SELECT" in node.value.upper():
                words |= set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", node.value))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                words.add(node.value)
    return sorted({word.lower() for word in words if not word.startswith(OWN_PREFIX)} - RESERVED_COLUMNS - {"id"})


WORDS = words_of_our_sql()


def lake_with(folder: Path, columns: list[str]) -> Lake:
    """One table, delivered night by night: the second night corrects row 1, the third adds row 4 and a null."""
    declared = {"id": {"type": "int64", "description": "key", "nullable": False}}
    declared |= {name: {"type": "int64", "description": "a column"} for name in columns}
    features = {name: {"type": "int64", "description": "a feature"} for name in columns}
    table = {
        "description": "t",
        "source": {"kind": "file", "uri": "in/{data_date}.csv"},
        "key": ["id"],
        "known_at": "arrival",
        "columns": declared,
        "checks": [{"rule": "between", "column": name, "min": 0, "max": 900} for name in columns[:20]],
        "quality": {"warn_share": 1.0, "stop_share": 1.0},
    }
    view = {
        "description": "v", "entities": ["id"], "reads": ["t"], "lookback": "3 days", "ttl": "1 day",
        "columns": features,
    }  # fmt: skip
    document = {
        "dataset": "d", "title": "d", "owner": "o", "owner_url": "mailto:o@example.com", "licence": "CC0-1.0",
        "time_zone": "Europe/Berlin", "start": FIRST, "tables": {"t": table}, "features": {"v": view},
    }  # fmt: skip
    for name in ("datasets", "models", "sql/d", "in"):
        (folder / name).mkdir(parents=True)
    (folder / "datasets" / "d.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    listed = ", ".join(f't."{name}"' for name in columns)
    (folder / "sql" / "d" / "v.sql").write_text(
        f"SELECT nights.data_date, t.id, {listed} FROM nights INNER JOIN t ON t.data_date <= nights.data_date "
        "AND (t.superseded_on IS NULL OR t.superseded_on > nights.data_date)"
    )
    for number, day in enumerate(NIGHTS):
        ids = [1, 2, 3, 4][: 3 + (number == 2)]
        rows: dict[str, Any] = {"id": ids}
        for position, name in enumerate(columns):
            values: list[int | None] = [position + i for i in ids]
            values[0] = values[0] + (number > 0)  # type: ignore[operator]
            values[1] = 1000 if number == 1 and position < 20 else values[1]
            values[-1] = None if number == 2 else values[-1]
            rows[name] = values
        pc.write_csv(pa.table(rows), folder / "in" / f"{day}.csv")
    settings = Settings(home=folder / "var", catalogs=(folder,), duckdb_memory_gb=1.0)
    return Lake(settings, load_catalog(settings))


def outcome(folder: Path, columns: list[str]) -> list[tuple[Any, ...]]:
    """Rows of all tables, by position instead of name, and what the stages counted."""
    lake = lake_with(folder, columns)
    dataset = lake.dataset("d")
    rows: list[tuple[Any, ...]] = []
    for day in NIGHTS:
        night = Interval(day, day + ONE_DAY)
        counted = ingest(lake, "d", night, run_id="r").details["t"]
        rows.append((day, "counted", *sorted(counted.items())))
        validate(lake, "d", night, run_id="r")
        transform(lake, "d", night, run_id="r")
    for make in (raw_table, valid_table, quarantine_table):
        table = make(lake.settings, dataset, "t")
        rows += [(table.name, *row.values()) for row in table.read().to_pylist()]
    rows += [("features", *row.values()) for row in feature_table(lake.settings, dataset, "v").read().to_pylist()]
    return [tuple("broken" if "between(" in str(value) else value for value in row) for row in rows]


@pytest.mark.parametrize("begin", range(0, len(WORDS), _AT_ONCE))
def test_a_column_called_as_a_word_of_our_sql_is_a_column_like_any_other(tmp_path: Path, begin: int) -> None:
    words = WORDS[begin : begin + _AT_ONCE]
    plain = [f"plain_{number}" for number in range(len(words))]
    assert outcome(tmp_path / "ours", words) == outcome(tmp_path / "plain", plain)

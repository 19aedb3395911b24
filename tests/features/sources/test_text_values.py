"""How a text must be written to be read as its declared type: nothing is guessed, nothing is rounded."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from config.calendar import Interval
from config.catalog.load import load_catalog
from config.settings import Settings
from features.ingest import ingest
from features.sources.errors import SourceSchemaMismatch
from lake.lake import Lake
from lake.tables import raw_table

NIGHT = Interval.of(date(2024, 3, 1))


def lake_of(folder: Path, kind: str, name: str = "in.csv") -> Lake:
    """One table with a key and a column `x` of that type, in a file that is the same every night."""
    column = {"type": kind, "description": "a value"}
    key = {"type": "int64", "description": "key", "nullable": False}
    source = {"kind": "file", "uri": name, "format": name.rpartition(".")[2]}
    table = {
        "description": "t", "source": source, "key": ["id"], "known_at": "arrival", "columns": {"id": key, "x": column}
    }  # fmt: skip
    document = {
        "dataset": "d", "title": "d", "owner": "o", "owner_url": "mailto:o@example.com", "licence": "CC0-1.0",
        "time_zone": "Europe/Berlin", "start": date(2024, 3, 1), "tables": {"t": table},
    }  # fmt: skip
    (folder / "datasets").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "datasets" / "d.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    settings = Settings(home=folder / "var", catalogs=(folder,), duckdb_memory_gb=1.0)
    return Lake(settings, load_catalog(settings))


def read(lake: Lake) -> list[Any]:
    ingest(lake, "d", NIGHT, run_id="r")
    values: list[Any] = raw_table(lake.settings, lake.dataset("d"), "t").read()["x"].to_pylist()
    return values


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("int64", "-7", -7),
        ("int64", "007", 7),
        ("int64", "5.0", 5),
        ("int64", "9007199254740993", 9007199254740993),
        ("int32", "+12", 12),
        ("float64", "1e-3", 0.001),
        ("float64", ".5", 0.5),
        ("float64", "-7.", -7.0),
        ("float64", "nan", None),
        ("date", "2024-02-01", date(2024, 2, 1)),
        ("date", "2024/2/1", date(2024, 2, 1)),
        ("timestamp", "2024-02-01T05:00:00Z", datetime(2024, 2, 1, 5, tzinfo=UTC)),
        ("timestamp", "2024-02-01 06:00:00.5+01:00", datetime(2024, 2, 1, 5, 0, 0, 500_000, tzinfo=UTC)),
        ("boolean", "true", True),
    ],
)
def test_what_is_written_plainly_is_read(tmp_path: Path, kind: str, text: str, value: Any) -> None:
    lake = lake_of(tmp_path, kind)
    (tmp_path / "in.csv").write_text(f"id,x\n1,{text}\n")
    assert read(lake) == [value]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("int64", "73928e03"),
        ("int64", "1.23457E+11"),
        ("int64", "12_345"),
        ("int64", "0x1F"),
        ("int64", "5.7"),
        ("int32", "4294967296"),
        ("int64", "1e400"),
        ("float64", "1e400"),
        ("float64", "-1e999"),
        ("float64", "1_0.5"),
        ("float64", "0x1F"),
        ("float64", "NAN(5)"),
        ("date", "01/02/24"),
        ("date", "13/02/24"),
        ("date", "29-02-24"),
        ("date", "2023-02-29"),
        ("date", "2024-02-01 05:00:00"),
        ("date", "infinity"),
        ("date", "epoch"),
        ("timestamp", "infinity"),
        ("timestamp", "01/02/24 05:00"),
        ("timestamp", "2024-02-01T25:00:00Z"),
        ("boolean", "2"),
    ],
)
def test_what_could_be_read_as_something_else_is_refused_with_row_and_value(
    tmp_path: Path, kind: str, text: str
) -> None:
    lake = lake_of(tmp_path, kind)
    (tmp_path / "in.csv").write_text(f"id,x\n1,\n2,{text}\n")
    with pytest.raises(SourceSchemaMismatch) as refusal:
        read(lake)
    assert f"'x' is declared {kind}, but 1 values are not: first {text!r}, in row 2" in str(refusal.value)
    assert raw_table(lake.settings, lake.dataset("d"), "t").load() is None, "nothing is written"


@pytest.mark.parametrize(
    ("values", "rounds"),
    [
        (pa.array([1, 9007199254740992, None, -(2**63)], pa.int64()), False),
        (pa.array([1, 9007199254740993], pa.int64()), True),
        (pa.array([2**63 - 1], pa.int64()), True),
        (pa.array(["0.1", "12345.678901"]).cast(pa.decimal128(18, 6)), False),
        (pa.array(["123456789012.123456789012345678"]).cast(pa.decimal128(38, 18)), True),
    ],
)
def test_numbers_that_a_double_would_round_are_refused(tmp_path: Path, values: pa.Array, rounds: bool) -> None:
    lake = lake_of(tmp_path, "float64", "in.parquet")
    pq.write_table(pa.table({"id": pa.array(range(len(values)), pa.int64()), "x": values}), tmp_path / "in.parquet")
    if not rounds:
        assert [None if v is None else float(v) for v in values.to_pylist()] == read(lake)
        return
    with pytest.raises(SourceSchemaMismatch, match=r"'x' is .* declared float64, which would round 1 values"):
        read(lake)

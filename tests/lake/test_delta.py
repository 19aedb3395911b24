"""What a data file says of itself in a commit."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from lake.delta import write_data_file


def test_a_data_file_s_bounds_are_those_that_delta_writes(tmp_path: Path) -> None:
    """Readers leave out files by them, and the partitions that a prediction names follow from that."""
    instants = [datetime(2024, 3, 1, 5, 0, 0, 123_456, tzinfo=UTC), datetime(2024, 3, 2, tzinfo=UTC), None]
    rows = pa.table(
        {
            "ride": pa.array([3, 1, 2], pa.int64()),
            "depot": pa.array(["north", None, "süd"], pa.string()),
            "minutes": pa.array([0.5, -2.0, None], pa.float64()),
            "endless": pa.array([math.inf, 1.0, 2.0], pa.float64()),
            "late": pa.array([True, False, None], pa.bool_()),
            "event_date": pa.array([date(2024, 3, 1), date(2024, 2, 1), None], pa.date32()),
            "start_utc": pa.array(instants, pa.timestamp("us", "UTC")),
            "nothing": pa.array([None, None, None], pa.int64()),
            "curve": pa.array([[1.0], [], None], pa.list_(pa.float64())),
        }
    )
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    night = pa.array(["2024-03-01"] * 3)
    write_deltalake(theirs, rows.append_column("data_date", night), partition_by=["data_date"])
    table = DeltaTable.create(ours, schema=DeltaTable(theirs).schema(), partition_by=["data_date"])
    action = write_data_file(ours, rows.schema, rows.to_batches(), {"data_date": "2024-03-01"})
    table.create_write_transaction([action], "append", table.schema(), ["data_date"])
    expected, written = (
        pa.table(DeltaTable(path).get_add_actions(flatten=True)).to_pylist()[0] for path in (theirs, ours)
    )
    bounds = {name for name in expected if name.partition(".")[0] in {"min", "max", "null_count"}}
    assert {"min.start_utc", "max.event_date", "null_count.nothing"} <= bounds
    assert {name: written.get(name) for name in bounds} == {name: expected[name] for name in bounds}

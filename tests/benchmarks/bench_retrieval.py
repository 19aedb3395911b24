"""Point-in-time retrieval through Feast, against DuckDB by hand and against Feast's default store.

Every contestant runs in a process of its own, on the same files, one right after the other; the first run of each warms
the file cache and the imports, the best of the others counts. `python -m tests.benchmarks.bench_retrieval` prints a
table.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FEATURES = 8
TTL = timedelta(days=7)
SPAN_DAYS = 60
DEFAULT_STORE_GB = 10
# (entity rows, feature rows, keys): many keys and few.
SIZES = (
    (300_000, 1_000_000, 50_000),
    (300_000, 1_000_000, 200),
    (1_000_000, 10_000_000, 500_000),
    (1_000_000, 10_000_000, 200),
)
_ROOT = Path(__file__).resolve().parents[2]


def run(
    entity_rows: int, feature_rows: int, keys: int, *, default_store: bool | None = None, repeats: int = 3
) -> list[dict[str, Any]]:
    """Time one size.

    Args:
        default_store: also Feast's own default store, on the same rows; None: up to a million feature rows, where it
            takes minutes and 7 GB already.
    Returns:
        Rows with keys what, seconds, against, ratio, peak_mb, aim. `peak_mb` is what the process grew by while it
        retrieved.
    """
    size = f"{entity_rows:,} rows over {feature_rows:,}, {keys:,} keys"
    with TemporaryDirectory() as made:
        folder = Path(made)
        _generate(folder, entity_rows, feature_rows, keys)
        ours, by_hand = _child("ours", folder, repeats), _child("by_hand", folder, repeats)
        rows = [
            {"what": f"retrieval by DuckDB by hand: {size}", **by_hand, "against": "", "ratio": None, "aim": ""},
            {
                "what": f"retrieval through Feast: {size}",
                **ours,
                "against": "DuckDB by hand",
                "ratio": ours["seconds"] / by_hand["seconds"],
                "aim": "<= 1.2",
            },
        ]
        if default_store or (default_store is None and feature_rows <= 1_000_000):
            rows.append(_default_row(f"Feast's default store: {size}", folder, ours["seconds"]))
    return rows


def _default_row(what: str, folder: Path, ours_seconds: float) -> dict[str, Any]:
    """One run, which is enough for minutes of work. It joins every feature row of a key before it picks one: few keys,
    and memory ends first.
    """
    row: dict[str, Any] = {"what": what, "against": "retrieval through Feast", "aim": ">= 20"}
    begin = time.perf_counter()
    try:
        measured = _child("default", folder, 1)
    except RuntimeError as error:
        if "MemoryError" not in str(error) and "ArrayMemoryError" not in str(error) and "malloc" not in str(error):
            raise
        ended = {"seconds": time.perf_counter() - begin, "ratio": None, "peak_mb": DEFAULT_STORE_GB * 1024}
        return row | ended | {"what": f"{what}: out of memory at {DEFAULT_STORE_GB} GB"}
    return row | measured | {"ratio": measured["seconds"] / ours_seconds}


def _generate(folder: Path, entity_rows: int, feature_rows: int, keys: int) -> None:
    import duckdb
    from deltalake import write_deltalake

    steps = max(feature_rows // keys, 1)
    step_us = int(timedelta(days=SPAN_DAYS) / steps / timedelta(microseconds=1))
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SELECT setseed(0.5)").fetchall()
        values = ", ".join(f"hash(i, {n}) % 1000 / 7.0 AS f{n}" for n in range(FEATURES))
        rows = f"""
            SELECT i % {keys} AS key, TIMESTAMPTZ '2024-01-01'
              + to_microseconds((i // {keys}) * {step_us}) AS event_timestamp, {values}
            FROM range({feature_rows}) AS r(i)
        """
        write_deltalake(folder / "delta", connection.sql(rows).to_arrow_reader(250_000))
        connection.execute(f"COPY ({rows}) TO '{folder}/features.parquet'")
        connection.execute(f"""
            COPY (
                SELECT CAST(random() * {keys} AS BIGINT) AS key, i AS amount,
                TIMESTAMPTZ '2024-01-01' + to_microseconds(CAST(random() * {SPAN_DAYS * 86_400_000_000} AS BIGINT))
                    AS event_timestamp
                FROM range({entity_rows}) AS r(i)
            ) TO '{folder}/entities.parquet'
        """)


def _child(contestant: str, folder: Path, repeats: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_retrieval", contestant, str(folder), str(repeats)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{contestant} failed: {done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def _store(folder: Path, offline: dict[str, Any]) -> Any:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
    from feast.data_format import DeltaFormat, ParquetFormat
    from feast.types import Float64, Int64
    from feast.value_type import ValueType

    default = offline["type"] == "dask"
    registry = {"registry_type": "sql", "path": f"sqlite:///{folder}/registry-{offline['type']}.db"}
    online = {"type": "sqlite", "path": str(folder / "online.db")}
    config = RepoConfig(
        project="bench",
        provider="local",
        registry=registry,
        offline_store=offline,
        online_store=online,
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    key = Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)
    source = FileSource(
        name="features",
        path=str(folder / ("features.parquet" if default else "delta")),
        file_format=ParquetFormat() if default else DeltaFormat(),
        timestamp_field="event_timestamp",
    )
    schema = [Field(name="key", dtype=Int64), *(Field(name=f"f{n}", dtype=Float64) for n in range(FEATURES))]
    store.apply([key, FeatureView(name="view", entities=[key], ttl=TTL, schema=schema, source=source)])
    return store


def _ours(folder: Path) -> Callable[[], int]:
    store = _store(
        folder,
        {
            "type": "features.offline_store.DuckDBDeltaOfflineStore",
            "memory_gb": 4.0,
            "threads": 2,
            "scratch": str(folder),
        },
    )
    references = [f"view:f{n}" for n in range(FEATURES)]
    query = f"SELECT * FROM read_parquet('{folder}/entities.parquet')"
    return lambda: int(
        store.get_historical_features(entity_df=query, features=references, full_feature_names=True).to_arrow().num_rows
    )


def _default(folder: Path) -> Callable[[], int]:
    import pandas as pd

    resource.setrlimit(resource.RLIMIT_DATA, (DEFAULT_STORE_GB << 30, DEFAULT_STORE_GB << 30))
    store = _store(folder, {"type": "dask"})
    references = [f"view:f{n}" for n in range(FEATURES)]
    entities = pd.read_parquet(folder / "entities.parquet")
    return lambda: len(
        store.get_historical_features(entity_df=entities, features=references, full_feature_names=True).to_df()
    )


def _by_hand(folder: Path) -> Callable[[], int]:
    import duckdb
    from deltalake import DeltaTable

    files = ", ".join(f"'{uri}'" for uri in DeltaTable(folder / "delta").file_uris())
    columns = ", ".join(
        f"CASE WHEN e.event_timestamp - f.event_timestamp <= INTERVAL {TTL.days} DAY THEN f.f{n} END AS f{n}"
        for n in range(FEATURES)
    )

    def retrieve() -> int:
        with duckdb.connect(config={"memory_limit": "4GB", "threads": 2, "temp_directory": str(folder)}) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            sql = f"""
                SELECT e.* EXCLUDE (number), {columns}
                FROM (SELECT *, row_number() OVER () AS number FROM read_parquet('{folder}/entities.parquet')) AS e
                ASOF LEFT JOIN read_parquet([{files}]) AS f ON e.key = f.key AND e.event_timestamp >= f.event_timestamp
                ORDER BY e.number
            """
            return int(connection.sql(sql).to_arrow_table().num_rows)

    return retrieve


def _measure(contestant: str, folder: Path, repeats: int) -> dict[str, Any]:
    retrieve = {"ours": _ours, "default": _default, "by_hand": _by_hand}[contestant](folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeats + 1 if repeats > 1 else 1):
        begin = time.perf_counter()
        rows = retrieve()
        seconds.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": min(seconds[1:] or seconds), "peak_mb": peak / 1024, "rows": rows}


def main() -> None:
    """Run as a child for one contestant, or print every size."""
    if len(sys.argv) == 4:
        print(json.dumps(_measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
        return
    for entity_rows, feature_rows, keys in SIZES:
        for row in run(entity_rows, feature_rows, keys):
            ratio = f"{row['ratio']:.2f}x of {row['against']} (aim {row['aim']})" if row["ratio"] else ""
            print(f"{row['what']:80} {row['seconds']:8.2f} s {row['peak_mb']:7.0f} MB  {ratio}", flush=True)


if __name__ == "__main__":
    main()

"""Validation of many rows against one SQL pass written by hand, and against Great Expectations on pandas.

`python -m tests.benchmarks.bench_validation --rows 1000000`. Each figure is measured in a process of its own, with
imports done before the clock starts and one small run to warm up; the two of a pair run back to back.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from config.calendar import Interval
from config.catalog.load import load_catalog
from config.settings import ROOT, Settings
from features.expectations import row_suite
from features.validate import _mark, _require_raw, validate
from lake.lake import Lake
from lake.publish import publish
from lake.tables import raw_table

FIRST = date(2024, 1, 1)
ROWS_A_NIGHT = 10_000
CATALOG = """
dataset: parcels
title: Parcels
owner: bench
owner_url: mailto:bench@example.com
licence: CC0-1.0
time_zone: UTC
replay: {from: 2024-01-01, to: 2099-12-31, first_night: 2024-01-02}
tables:
  parcels:
    description: Generated parcels; about one in five hundred breaks a rule.
    source: {kind: file, uri: parcels.csv}
    key: [parcel, depot]
    known_at: arrival
    columns:
      parcel: {type: int64, nullable: false, description: number}
      depot: {type: string, nullable: false, description: depot}
      code: {type: string, nullable: false, description: code}
      sent: {type: timestamp, nullable: false, description: sent}
      arrived: {type: timestamp, description: arrived}
      grams: {type: float64, description: weight}
      price: {type: float64, description: price}
      pieces: {type: int32, description: pieces}
      floor: {type: int32, description: floor}
      express: {type: boolean, nullable: false, description: express}
    checks:
      - {rule: matches, column: code, regex: "^[A-Z][0-9]+$"}
      - {rule: in_set, column: depot, values: [D0, D1, D2, D3, D4, D5, D6, D7, D8, D9]}
      - {rule: between, column: grams, min: 1, max: 30000}
      - {rule: between, column: price, min: 0, max: 500}
      - {rule: between, column: pieces, min: 1, max: 9}
      - {rule: between, column: floor, min: -2, max: 40}
      - {rule: not_null, column: price, when: {column: express, op: "==", value: true}}
      - {rule: pair_greater, a: arrived, b: sent}
      - {rule: row_count, weeks: 4}
"""
# What a person would write for these rules: bad rows of each, of all, and what is to be set aside.
BROKEN = """
    parcel IS NULL AS b0, depot IS NULL AS b1, code IS NULL AS b2, sent IS NULL AS b3, express IS NULL AS b4,
    coalesce(NOT regexp_matches(code, '^[A-Z][0-9]+$'), false) AS b5,
    coalesce(depot NOT IN ('D0', 'D1', 'D2', 'D3', 'D4', 'D5', 'D6', 'D7', 'D8', 'D9'), false) AS b6,
    coalesce(grams NOT BETWEEN 1 AND 30000, false) AS b7, coalesce(price NOT BETWEEN 0 AND 500, false) AS b8,
    coalesce(pieces NOT BETWEEN 1 AND 9, false) AS b9, coalesce(floor NOT BETWEEN -2 AND 40, false) AS b10,
    coalesce(express AND price IS NULL, false) AS b11, coalesce(arrived <= sent, false) AS b12,
    count(*) OVER (PARTITION BY data_date, parcel, depot) > 1 AS b13
"""
COUNTED = ", ".join(f"count_if(b{n}) AS b{n}" for n in range(14))


def _lake(folder: Path) -> Lake:
    (folder / "datasets").mkdir(parents=True, exist_ok=True)
    (folder / "datasets" / "parcels.yaml").write_text(CATALOG, encoding="utf-8")
    settings = Settings(home=folder / "var", catalogs=(folder,))
    return Lake(settings, load_catalog(settings))


def _interval(rows: int) -> Interval:
    return Interval(FIRST, FIRST + timedelta(days=max(1, rows // ROWS_A_NIGHT)))


def _generate(lake: Lake, rows: int) -> None:
    """Publish `rows` raw rows, in nights of ROWS_A_NIGHT."""
    table, interval = raw_table(lake.settings, lake.dataset("parcels"), "parcels"), _interval(rows)
    a_night = min(rows, ROWS_A_NIGHT)
    query = f"""
        SELECT i % {a_night} AS parcel, 'D' || (i * 7 % 10) AS depot,
            CASE WHEN hash(i, 1) % 2000 = 0 THEN 'odd' ELSE chr(65 + CAST(i % 26 AS INTEGER)) || (i % 1000) END AS code,
            TIMESTAMPTZ '2024-01-01 00:00:00Z' + to_seconds(i % 86400) AS sent,
            TIMESTAMPTZ '2024-01-01 00:00:00Z' + to_seconds(i % 86400 + CAST(hash(i, 2) % 10000 AS BIGINT)) AS arrived,
            CASE WHEN hash(i, 3) % 50 = 0 THEN NULL ELSE (hash(i, 4) % 300020) / 10.0 END AS grams,
            CASE WHEN hash(i, 5) % 3000 = 0 THEN NULL ELSE (hash(i, 6) % 5000) / 10.0 END AS price,
            CAST(1 + hash(i, 7) % 9 AS INTEGER) AS pieces, CAST(hash(i, 8) % 43 AS INTEGER) - 2 AS floor, hash(i,
              9) % 4 = 0 AS express,
            TIMESTAMPTZ '2024-01-01 00:00:00Z' + INTERVAL 1 DAY * (i // {a_night}) AS known_at_utc,
              CAST(0 AS INTEGER) AS revision,
            CAST(0 AS BIGINT) AS row_number, DATE '2024-01-01' + CAST(i // {a_night} AS INTEGER) AS data_date
        FROM range({len(interval) * a_night}) r(i)
        ORDER BY data_date, parcel, depot
    """
    with lake.duckdb() as connection, lake.scratch("bench") as scratch:
        reader = connection.sql(query).to_arrow_reader(100_000)
        schema = table.schema
        batches = pa.RecordBatchReader.from_batches(
            schema, (pa.record_batch(b.select(schema.names).columns, names=schema.names).cast(schema) for b in reader)
        )
        publish(
            lake.publications,
            table,
            batches,
            interval,
            replaces=dict.fromkeys(interval),
            lineage=lake.lineage("parcels", "bench"),
            scratch=scratch,
        )


def _by_hand(lake: Lake, rows: int, connection: duckdb.DuckDBPyConnection) -> None:
    raw_table(lake.settings, lake.dataset("parcels"), "parcels").register(connection, "raw", list(_interval(rows)))
    connection.sql(
        f"SELECT data_date, count(*), {COUNTED} FROM (SELECT data_date, {BROKEN} FROM raw) GROUP BY data_date"
    ).fetchall()


def _by_hand_written(lake: Lake, rows: int, connection: duckdb.DuckDBPyConnection) -> None:
    raw_table(lake.settings, lake.dataset("parcels"), "parcels").register(connection, "raw", list(_interval(rows)))
    connection.execute(f"CREATE OR REPLACE TABLE marked AS SELECT *, {BROKEN} FROM raw")
    connection.sql(f"SELECT data_date, count(*), {COUNTED} FROM marked GROUP BY data_date").fetchall()
    bad = " OR ".join(f"b{n}" for n in range(14))
    with lake.scratch("bench") as folder:
        for name, condition in (("good", f"NOT ({bad})"), ("bad", bad)):
            query = (
                f"SELECT * EXCLUDE (row_number) FROM marked WHERE {condition} ORDER BY data_date, parcel, depot,"
                " revision"
            )
            connection.execute(f"COPY ({query}) TO '{folder / name}.parquet' (COMPRESSION zstd)")


def _judge(lake: Lake, rows: int, connection: duckdb.DuckDBPyConnection) -> None:
    dataset, interval = lake.dataset("parcels"), _interval(rows)
    _mark(lake, dataset, "parcels", interval, _require_raw(lake, dataset, "parcels", interval), connection)


def _stage(lake: Lake, rows: int, _: duckdb.DuckDBPyConnection) -> None:
    validate(lake, "parcels", _interval(rows), run_id="bench")


def _gx_on_pandas(lake: Lake, rows: int, connection: duckdb.DuckDBPyConnection) -> None:
    import great_expectations as gx

    dataset = lake.dataset("parcels")
    raw_table(lake.settings, dataset, "parcels").register(connection, "raw", list(_interval(rows)))
    frame = (
        connection.sql("SELECT * FROM raw")
        .to_arrow_table()
        .to_pandas(date_as_object=False, strings_to_categorical=True)
    )
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    suite = row_suite(dataset, "parcels")
    # GX has other names for pandas' types: without them it runs the rest of the suite.
    suite = {
        **suite,
        "expectations": [e for e in suite["expectations"] if e["type"] != "expect_column_values_to_be_of_type"],
    }
    batch = (
        context.data_sources.add_pandas("p")
        .add_dataframe_asset("a")
        .add_batch_definition_whole_dataframe("b")
        .get_batch({"dataframe": frame})
    )
    # COMPLETE: what sets rows aside must know all of them.
    batch.validate(gx.ExpectationSuite(**suite), result_format="COMPLETE")


MEASURED: dict[str, Callable[[Lake, int, duckdb.DuckDBPyConnection], None]] = {
    "one SQL pass by hand: counts": _by_hand,
    "one SQL pass by hand: counts, good and bad rows to Parquet": _by_hand_written,
    "validation: rows marked, nights judged": _judge,
    "validation: the whole stage, published, with data docs": _stage,
    "GX on pandas, complete results": _gx_on_pandas,
}
# What is measured, against what, and the aim for the ratio.
PAIRS: list[tuple[str, str, float | None]] = [
    ("validation: rows marked, nights judged", "one SQL pass by hand: counts", 3.0),
    (
        "validation: the whole stage, published, with data docs",
        "one SQL pass by hand: counts, good and bad rows to Parquet",
        3.0,
    ),
    ("validation: rows marked, nights judged", "GX on pandas, complete results", None),
]


def _peak_mb() -> float:
    # Not `ru_maxrss`: that of a forked process begins with its parent's.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) / 1024


def _child(what: str, folder: Path, rows: int) -> None:
    """Warm up on one night of a lake of its own, then measure; prints JSON."""
    small = _lake(folder / "small")
    measured = MEASURED[what]
    with small.duckdb() as connection:
        measured(small, 1_000, connection)
    lake = _lake(folder / "large")
    with lake.duckdb() as connection:
        begin = time.perf_counter()
        measured(lake, rows, connection)
        seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "peak_mb": _peak_mb()}))


def _measure(what: str, folder: Path, rows: int) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.bench_validation",
        "--child",
        what,
        "--folder",
        str(folder),
        "--rows",
        str(rows),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} failed:\n{done.stderr}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def run(rows: int) -> list[dict[str, Any]]:
    """Each pair's figures: `what`, `seconds`, `against` and its `against_seconds`, `ratio`, `peak_mb`, `aim`."""
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-validation-") as name:
        for what, against, aim in PAIRS:
            folder = Path(name) / f"pair-{len(results)}"
            _generate(_lake(folder / "small"), 1_000)
            _generate(_lake(folder / "large"), rows)
            theirs, ours = _measure(against, folder, rows), _measure(what, folder, rows)
            results.append(
                {
                    "what": what,
                    "seconds": ours["seconds"],
                    "against": against,
                    "against_seconds": theirs["seconds"],
                    "ratio": ours["seconds"] / theirs["seconds"],
                    "peak_mb": ours["peak_mb"],
                    "against_peak_mb": theirs["peak_mb"],
                    "aim": aim,
                }
            )
    return results


def main() -> None:
    """Print the table, or, as a child, one measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--child", choices=MEASURED)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        _child(arguments.child, arguments.folder, arguments.rows)
        return
    for result in run(arguments.rows):
        aim = f"aim <= {result['aim']:g}" if result["aim"] else "no aim"
        print(f"{result['what']}\n  {result['seconds']:.2f} s, {result['peak_mb']:.0f} MB")
        print(
            f"  against {result['against']}: {result['against_seconds']:.2f} s, {result['against_peak_mb']:.0f} MB; "
            f"ratio {result['ratio']:.2f} ({aim})"
        )


if __name__ == "__main__":
    main()

"""Bulk history against nightly runs of the same interval, and what a bulk run needs per million rows."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from config.calendar import Interval
from config.catalog.load import load_catalog
from config.settings import ROOT, Settings
from lake.lake import Lake

FIRST = date(2012, 12, 31)
MEMORY_GB = 2.0


def _lake(folder: Path) -> Lake:
    settings = Settings(home=folder, duckdb_memory_gb=MEMORY_GB)
    return Lake(settings, load_catalog(settings))


def _interval(nights: int) -> Interval:
    return Interval(FIRST, FIRST + timedelta(days=nights))


def generate(folder: Path, rows: int, nights: int) -> dict[str, int]:
    """Valid partitions of flights with about `rows` outcomes over `nights`; returns rows by table."""
    from tests.features.generated import publish_generated

    return publish_generated(_lake(folder), "flights", _interval(nights), per_day=max(rows // nights, 1))


def bulk(folder: Path, _rows: int, nights: int) -> dict[str, Any]:
    """All feature views of all nights, in one call."""
    from features.transform import transform

    began = time.perf_counter()
    result = transform(_lake(folder), "flights", _interval(nights), run_id="bulk")
    return {"seconds": time.perf_counter() - began, "rows": result.rows}


def nightly(folder: Path, _rows: int, nights: int) -> dict[str, Any]:
    """The same, one call a night."""
    from features.transform import transform

    lake = _lake(folder)
    began = time.perf_counter()
    rows = sum(transform(lake, "flights", Interval.of(night), run_id="nightly").rows for night in _interval(nights))
    return {"seconds": time.perf_counter() - began, "rows": rows}


STEPS = {"generate": generate, "bulk": bulk, "nightly": nightly}


def _child(step: str, folder: Path, rows: int, nights: int) -> dict[str, Any]:
    """One step in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_backfill", step, str(folder), str(rows), str(nights)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{step} of {rows} rows over {nights} nights failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def run(rows: int = 1_000_000, nights: int = 30) -> list[dict[str, Any]]:
    """Compute `nights` nights over `rows` generated outcomes in bulk, then night by night, on the same valid tables.

    Returns:
        rows with what, seconds, against, ratio, peak_mb, aim. The ratio of nightly is to bulk; that of the bulk's
        second row is its seconds per million outcomes to those of a tenth of the rows, where 1 means that time grows as
        the rows do.
    """
    with tempfile.TemporaryDirectory(prefix="backfill-") as name:
        folder = Path(name)
        # A tenth of the rows over the same nights: the pair that shows how time grows.
        small = max(rows // 10, nights)
        _child("generate", folder / "small", small, nights)
        few = _child("bulk", folder / "small", small, nights)
        counted = _child("generate", folder / "bulk", rows, nights)["result"]
        (folder / "nightly" / "lake" / "flights").mkdir(parents=True)
        (folder / "nightly" / "lake" / "flights" / "valid").symlink_to(folder / "bulk" / "lake" / "flights" / "valid")
        one = _child("bulk", folder / "bulk", rows, nights)
        single = _child("nightly", folder / "nightly", rows, nights)
        if one["result"]["rows"] != single["result"]["rows"]:
            raise RuntimeError(f"bulk gives {one['result']['rows']} rows, nightly {single['result']['rows']}")
    millions, small_millions = counted["outcomes"] / 1e6, small / 1e6
    seconds, few_seconds = one["result"]["seconds"], few["result"]["seconds"]
    title = f"transform flights, {counted['outcomes']:,} outcomes, {nights} nights"
    return [
        {
            "what": f"{title}: bulk",
            "seconds": seconds,
            "against": "",
            "ratio": None,
            "peak_mb": one["peak_mb"],
            "aim": "",
        },
        {
            "what": f"{title}: night by night",
            "seconds": single["result"]["seconds"],
            "against": "bulk",
            "ratio": single["result"]["seconds"] / seconds,
            "peak_mb": single["peak_mb"],
            "aim": "",
        },
        {
            "what": f"{title}: bulk, per million outcomes",
            "seconds": seconds / millions,
            "against": f"{small:,} outcomes",
            "ratio": (seconds / millions) / (few_seconds / small_millions),
            "peak_mb": few["peak_mb"],
            "aim": "",
        },
    ]


def main() -> None:
    """`python -m tests.benchmarks.bench_backfill STEP FOLDER ROWS NIGHTS`: one step, its answer as JSON on the last
    line.
    """
    step, folder, rows, nights = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    result = STEPS[step](folder, rows, nights)
    print(json.dumps({"result": result, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main()

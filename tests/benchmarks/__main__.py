"""`make bench`: every figure as a ratio of two measurements made back to back.

`python -m tests.benchmarks [--only NAME] [--full]`; `--full` uses the sizes that take minutes and gigabytes.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table


def _suites(full: bool) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    def retrieval() -> list[dict[str, Any]]:
        from tests.benchmarks import bench_retrieval

        sizes = [(300_000, 1_000_000, 50_000), (300_000, 1_000_000, 200)] + (
            [(1_000_000, 10_000_000, 500_000), (1_000_000, 10_000_000, 200)] if full else []
        )
        return [row for size in sizes for row in bench_retrieval.run(*size)]

    def validation() -> list[dict[str, Any]]:
        from tests.benchmarks import bench_validation

        return bench_validation.run(1_000_000)

    def scoring() -> list[dict[str, Any]]:
        from tests.benchmarks import bench_score_stage, bench_scoring

        return bench_scoring.run(1_000_000) + bench_score_stage.run_score(1_000_000)

    def backfill() -> list[dict[str, Any]]:
        from tests.benchmarks import bench_backfill

        return [
            row for rows in ([1_000_000, 10_000_000] if full else [1_000_000]) for row in bench_backfill.run(rows, 30)
        ]

    def containers() -> list[dict[str, Any]]:
        from tests.benchmarks import bench_training

        return bench_training.run_overhead() + bench_training.run_jobs()

    def verify() -> list[dict[str, Any]]:
        from tests.benchmarks import bench_verify

        return bench_verify.run(5_000)

    suites = {
        "published": _run_of("bench_published"),
        "containers": containers,
        "airflow": _run_of("bench_airflow"),
        "retrieval": retrieval,
        "validation": validation,
        "scoring": scoring,
        "backfill": backfill,
        "kinds": _run_of("bench_kinds"),
        "pages": _run_of("bench_pages"),
        "verify": verify,
        "simulation": _run_of("bench_simulation"),
    }
    return {**suites, "rollout": _run_of("bench_rollout"), "delivery": _run_of("bench_delivery")}


def _run_of(module: str) -> Callable[[], list[dict[str, Any]]]:
    """The suite that is a module's `run`, which is imported when it runs."""

    def suite() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = importlib.import_module(f"tests.benchmarks.{module}").run()
        return rows

    return suite


def main() -> None:
    """Run the suites and print one table each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=sorted(_suites(False)), help="this suite alone; may be given again"
    )
    parser.add_argument("--full", action="store_true", help="also the sizes that take minutes and gigabytes")
    chosen = parser.parse_args()
    console = Console(width=150)
    for name, suite in _suites(chosen.full).items():
        if chosen.only and name not in chosen.only:
            continue
        table = Table(title=name, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column, justify in (
            ("what", "left"),
            ("seconds", "right"),
            ("against", "left"),
            ("ratio", "right"),
            ("aim", "right"),
            ("peak MB", "right"),
        ):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]  # the literals are those rich knows
        for row in suite():
            ratio = "" if row.get("ratio") is None else f"{row['ratio']:.2f}"
            peak = "" if row.get("peak_mb") is None else f"{row['peak_mb']:,.0f}"
            table.add_row(row["what"], f"{row['seconds']:.3f}", row["against"], ratio, str(row.get("aim", "")), peak)
        console.print(table)
        console.print()


if __name__ == "__main__":
    main()

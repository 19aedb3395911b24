"""What a rollout costs: a night that two versions score against a plain one, and who is served of ten million entities
against the hash alone.

Each night is scored in a process of its own, warmed by a small one: `python -m tests.benchmarks.bench_delivery ACTION
FOLDER NIGHT`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from config.calendar import ONE_DAY, Interval
from config.settings import ROOT
from lake.assignment import CHALLENGER, CHAMPION, Assignment, Plan, Units
from lake.ledger import LedgerSnapshot
from lake.rollouts import RolloutSnapshot
from serving.rollout.units import _hasher, served_rows
from serving.score import BATCH_ROWS, score
from tests.benchmarks import bench_score_stage
from tests.benchmarks.bench_score_stage import MODEL, NIGHT

ROWS = 100_000
ENTITIES = 10_000_000
NIGHT_AIM, PLAN_AIM = 1.6, 1.2
ROUNDS = 3


def run() -> list[dict[str, Any]]:
    """Both ratios, each of measurements made back to back, at their median."""
    return [*nights(), *plans()]


def nights(rows: int = ROWS) -> list[dict[str, Any]]:
    """Retrieve to publish of a night of as many entities, by one version and by two."""
    with tempfile.TemporaryDirectory(prefix="bench-delivery-") as folder:
        bench_score_stage._child("prepare", "xgboost", folder, *[str(rows)] * (2 * ROUNDS))
        pairs = [
            (_child("plain", folder, NIGHT + 2 * n * ONE_DAY), _child("rollout", folder, NIGHT + (2 * n + 1) * ONE_DAY))
            for n in range(ROUNDS)
        ]
    what = f"xgboost, {rows:,} entities"
    return [
        {"what": f"{what}: a plain night", "against": "", "ratio": None, "aim": ""}
        | {"seconds": median(plain for plain, _ in pairs)},
        {"what": f"{what}: a night in rollout", "against": "a plain night", "aim": f"≤ {NIGHT_AIM}"}
        | {"ratio": median(two / one for one, two in pairs), "seconds": median(two for _, two in pairs)},
    ]


def _child(action: str, folder: str, night: date) -> float:
    command = [sys.executable, "-m", __name__, action, folder, night.isoformat()]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def in_rollout(ledger: LedgerSnapshot, _: RolloutSnapshot, night: date) -> Plan:
    """The champion, and a challenger as large as it that serves a twentieth."""
    champion = ledger.champion_of(night)
    units = Units(1, 0, "salt", ("item",))
    return (
        Assignment(CHALLENGER, 2, champion.artifact_digest, 0.05, 1, units),
        Assignment(CHAMPION, 1, champion.artifact_digest, 0.95, 1),
    )


def scored(action: str, folder: Path, night: date) -> dict[str, float]:
    """Seconds of scoring a night, in a process that has scored the small one so."""
    lake = bench_score_stage._lake(folder)
    named: dict[str, Any] = {"planned": in_rollout} if action == "rollout" else {}
    score(lake, MODEL, Interval.of(NIGHT - ONE_DAY), run_id="warm")
    return bench_score_stage._timed(lambda: score(lake, MODEL, Interval.of(night), run_id="bench", **named))


def plans(entities: int = ENTITIES) -> list[dict[str, Any]]:
    """Who serves each of so many entities, in the pieces that scoring has, against their SHA-256 alone."""
    rows = pa.table({"item": pa.array(np.arange(entities), pa.int64())})
    plan = (
        Assignment(CHALLENGER, 2, "b", 0.05, 2, Units(1, 0, "0123456789abcdef", ("item",))),
        Assignment(CHAMPION, 1, "a", 0.95, 1),
    )
    pieces = [rows.slice(first, BATCH_ROWS) for first in range(0, entities, BATCH_ROWS)]

    def hashed(query: str) -> float:
        begun = time.perf_counter()
        with _hasher().cursor() as connection:
            for piece in pieces:
                connection.register("piece", piece)
                connection.sql(query).to_arrow_table()
        return time.perf_counter() - begun

    def planned() -> float:
        begun = time.perf_counter()
        for piece in pieces:
            served_rows(plan, piece)
        return time.perf_counter() - begun

    digest = "sha256(CAST(item AS VARCHAR))"
    bare = {
        "SHA-256 of each": (f"SELECT {digest} FROM piece", f"≤ {PLAN_AIM}"),
        "SHA-256 of each, computed and dropped": (f"SELECT max({digest}) FROM piece", ""),
    }
    measured = []
    for name, (query, aim) in bare.items():
        pairs = [(hashed(query), planned()) for _ in range(ROUNDS)]
        told = {"what": f"{entities:,} entities: who is served", "against": name, "aim": aim}
        ratio, seconds = median(two / one for one, two in pairs), median(two for _, two in pairs)
        measured.append(told | {"ratio": ratio, "seconds": seconds})
    return measured


if __name__ == "__main__":
    chosen, place, day = sys.argv[1:]
    print(json.dumps(scored(chosen, Path(place), date.fromisoformat(day))))

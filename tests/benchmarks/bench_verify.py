"""What it costs a night that every data file is compared with its digest before it is used.

Measured inside the stages themselves: seconds in the comparison, against those of the whole stages.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from config.calendar import ONE_DAY, Interval
from features import offline_store
from features.transform import transform
from lake import delta, tables
from monitoring.drift import drift
from monitoring.performance import performance
from serving.score import score
from tests import toy
from tests.monitoring import scenario
from tests.serving.scenario import MODEL, use_linear

HISTORY = Interval.closed(toy.FIRST, date(2024, 2, 20))
AIM = 0.05


def run(per_day: int) -> list[dict[str, Any]]:
    """One night of the toy with `per_day` rides a day: transform, score, drift, performance, each as in a process of
    its own.
    """
    spent = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal spent
            begun = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                spent += time.perf_counter() - begun

        return call

    found, whole, compared = [], 0.0, 0.0
    with tempfile.TemporaryDirectory(prefix="bench-verify-") as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setenv("MODEL_SIGNING_KEY", "the-key-of-a-bench-which-signs-nothing-else")
        use_linear(patch)
        lake = toy.toy_lake(folder)
        toy.publish_valid(lake, HISTORY, per_day=per_day)
        toy.publish_features(lake, HISTORY)
        (folder / "training").mkdir()
        scenario.champion(lake, folder / "training")
        scenario.decide_gate(lake)
        night = HISTORY.last
        scenario.score_all(lake, Interval(night - 3 * ONE_DAY, night))
        for module in (tables, offline_store):
            for function in ("check_files", "file_sizes"):
                patch.setattr(module, function, timed(getattr(module, function)))
        stages: dict[str, Callable[[], Any]] = {
            "transform": lambda: transform(lake, "rides", Interval.of(night), run_id="bench"),
            "score": lambda: score(lake, MODEL, Interval.of(night), run_id="bench"),
            "drift": lambda: drift(lake, MODEL, Interval.of(night), run_id="bench"),
            "performance": lambda: performance(lake, MODEL, Interval.of(night), run_id="bench"),
        }
        for stage, work in stages.items():
            delta._digest_of.cache_clear()
            spent, begun = 0.0, time.perf_counter()
            work()
            seconds = time.perf_counter() - begun
            whole, compared = whole + seconds, compared + spent
            found.append({"what": f"comparing files, {stage}", "seconds": spent, "against": "the stage"})
            found[-1] |= {"ratio": spent / seconds, "aim": ""}
    total = {"what": f"comparing files, a night of {per_day:,} rows", "seconds": compared, "against": "its stages"}
    return [*found, total | {"ratio": compared / whole, "aim": f"≤ {AIM}"}]

"""A dozen trainings asked for at once: queued, in containers, never more at a time than the pool holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_training import most_at_once, train_all, write_catalog
from training.registry.containers import INSTALLATION_LABEL, installation_id
from training.registry.gate import read_decisions


def test_twelve_trainings_queue_for_one_pool_and_all_succeed(docker_engine: Any, tmp_path: Path) -> None:
    lake = write_catalog(tmp_path, 12, memory_gb=2.0)
    lake = replace(lake, settings=lake.settings.model_copy(update={"training_memory_gb": 6.0}))
    jobs = train_all(lake)
    assert [job.state for job in jobs] == ["success"] * 12
    assert 2 * 2 <= most_at_once(jobs) <= 6, (
        f"of a pool of 6 slots, jobs of 2 slots took {most_at_once(jobs)} at once: {jobs}"
    )
    assert all(len(read_decisions(lake, model.name)) == 1 for model in lake.catalog.models)
    label = f"{INSTALLATION_LABEL}={installation_id(lake.settings)}"
    assert docker_engine.containers(all=True, filters={"label": label}) == []

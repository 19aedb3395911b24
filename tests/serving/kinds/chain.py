"""The stages that a model of any kind goes through, for the tests that follow one from its source to the pages."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

from config.calendar import Interval
from features.ingest import ingest
from features.materialize import materialize
from features.transform import transform
from features.validate import validate
from lake.lake import Lake
from training.__main__ import run
from training.registry.decision import Decision
from training.registry.gate import judge
from training.registry.job import prepare_job
from training.registry.promotion import promote
from training.registry.register import Registered, register


def features(lake: Lake, dataset: str, nights: Interval) -> None:
    """Every stage of the data set, in bulk."""
    for stage in (ingest, validate, transform, materialize):
        stage(lake, dataset, nights, run_id=stage.__name__)


def first_champion(
    lake: Lake, model: str, as_of: date, overrides: dict[str, Any] | None = None
) -> tuple[Path, Registered, Decision]:
    """Train the model's own trainer, register, judge and promote it; its job folder, version and decision."""
    job_dir = prepare_job(lake, model, as_of=as_of, run_id="train", overrides=overrides)
    run(job_dir)
    registered = register(lake, model, job_dir, run_id="register")
    decision = judge(lake, model, job_dir, registered, run_id="gate")
    assert decision.verdict == "promote", decision.reasons
    assert promote(lake, decision, registered, by="test") is not None
    return job_dir, registered, decision

"""Preparing a job: what it holds, what it never holds, and that a retry finds it again."""

from __future__ import annotations

import json
import logging
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from config.calendar import Interval
from lake.artifact import file_digest
from lake.lake import Lake
from tests import toy
from tests.mlflow_server import free_port
from training.registry.job import gate_folder, prepare_job
from training.registry.runner import run_job
from training.trainers import BadParameter

AS_OF = date(2024, 3, 1)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Two months of rides, and an MLflow that is not there."""
    made = toy.toy_lake(tmp_path)
    nights = Interval.closed(date(2024, 1, 1), AS_OF)
    toy.publish_valid(made, nights)
    toy.publish_features(made, nights)
    return Lake(
        made.settings.model_copy(update={"mlflow_tracking_uri": f"http://127.0.0.1:{free_port()}"}), made.catalog
    )


def job_of(job_dir: Path) -> dict[str, Any]:
    return dict(json.loads((job_dir / "job.json").read_text()))


def test_the_job_holds_what_a_trainer_may_see_and_no_test_row(lake: Lake) -> None:
    job_dir = prepare_job(lake, "ride_minutes", as_of=AS_OF, run_id="r1")
    assert job_dir.parent == lake.settings.jobs / "ride_minutes"
    assert sorted(p.name for p in job_dir.iterdir()) == ["job.json", "training_set.parquet"]
    assert {p.name for p in gate_folder(job_dir).iterdir()} == {
        *("test_set.parquet", "training_set.json", "unlabelled_set.parquet"),
    }
    job = job_of(job_dir)
    assert job["training_set"]["digest"] == file_digest(job_dir / "training_set.parquet")
    assert set(pq.read_table(job_dir / "training_set.parquet")["split"].unique().to_pylist()) == {"train", "validation"}
    assert set(pq.read_table(gate_folder(job_dir) / "test_set.parquet")["split"].unique().to_pylist()) == {"test"}
    assert job["feature_columns"] == {"vehicle_daily__rides_7d": "int64", "vehicle_daily__minutes_7d": "float64"}
    assert job["output_columns"] == ["ride_minutes", "ride_minutes_lower", "ride_minutes_upper", "long_probability"]
    assert job["params"]["n_estimators"] == 20
    assert job["params"]["threads"] == 2, "defaults are filled in"
    assert job["catalog_digest"] == lake.catalog.digest("ride_minutes")
    described = json.loads((gate_folder(job_dir) / "training_set.json").read_text())
    assert described["training_digest"] == job["training_set"]["digest"]
    assert {i["table"] for i in described["inputs"]} >= {"rides/valid/bookings", "rides/features/vehicle_daily"}
    assert "secret" not in json.dumps(job)


def test_a_retry_finds_the_same_job_and_keeps_what_was_trained(lake: Lake) -> None:
    job_dir = prepare_job(lake, "ride_minutes", as_of=AS_OF, run_id="r1")
    manifest = run_job(lake, "ride_minutes", job_dir, say=lambda line: None).read_bytes()
    assert prepare_job(lake, "ride_minutes", as_of=AS_OF, run_id="r1") == job_dir
    assert (job_dir / "manifest.json").read_bytes() == manifest
    assert [p.name for p in job_dir.parent.iterdir() if ".try-" in p.name] == []


def test_other_runs_dates_and_overrides_are_other_jobs(lake: Lake) -> None:
    first = prepare_job(lake, "ride_minutes", as_of=AS_OF, run_id="r1")
    others = [
        prepare_job(lake, "ride_minutes", as_of=AS_OF, run_id="r2"),
        prepare_job(lake, "ride_minutes", as_of=date(2024, 2, 29), run_id="r1"),
        prepare_job(lake, "ride_minutes", as_of=AS_OF, run_id="r1", overrides={"max_depth": 2}),
    ]
    assert len({first, *others}) == 4
    assert job_of(others[0])["training_set"] == job_of(first)["training_set"]
    assert job_of(others[2])["params"]["max_depth"] == 2
    assert job_of(others[2])["overrides"] == {"max_depth": 2}


def test_a_retry_after_the_lake_changed_replaces_the_job(lake: Lake) -> None:
    job_dir = prepare_job(lake, "ride_minutes", as_of=AS_OF, run_id="r1")
    run_job(lake, "ride_minutes", job_dir, say=lambda line: None)
    before = job_of(job_dir)["training_set"]["digest"]
    toy.publish_features(lake, Interval.closed(date(2024, 1, 1), AS_OF), seed=2)
    assert prepare_job(lake, "ride_minutes", as_of=AS_OF, run_id="r1") == job_dir
    assert job_of(job_dir)["training_set"]["digest"] != before
    assert not (job_dir / "manifest.json").exists()


def test_unknown_overrides_are_refused_before_anything_is_built(lake: Lake) -> None:
    with pytest.raises(BadParameter, match=r"xgboost has no parameter 'depth'. Known: n_estimators"):
        prepare_job(lake, "ride_minutes", as_of=AS_OF, run_id="r1", overrides={"depth": 3})
    with pytest.raises(BadParameter, match=r"parameter max_depth is 0"):
        prepare_job(lake, "ride_minutes", as_of=AS_OF, run_id="r1", overrides={"max_depth": 0})
    assert not lake.settings.jobs.exists()


def test_without_mlflow_the_job_is_made_and_said_so(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        job_dir = prepare_job(lake, "ride_minutes", as_of=AS_OF, run_id="r1")
    assert job_of(job_dir)["mlflow"]["run_id"] is None
    assert "Training goes on without it" in caplog.text


def test_a_build_that_fails_leaves_nothing(lake: Lake) -> None:
    from features.training_set import NotEnoughHistory

    with pytest.raises(NotEnoughHistory):
        prepare_job(lake, "ride_minutes", as_of=date(2024, 1, 20), run_id="r1")
    assert list((lake.settings.jobs / "ride_minutes").iterdir()) == []

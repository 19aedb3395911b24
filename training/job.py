"""Prepare a training job: a folder that holds all a trainer may see, and beside it what only the gate may."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from config.settings import code_version
from lake.lake import Lake
from serving.predictors.contract import read_json, write_json
from training.__main__ import JOB_FILE
from training.tracking import MlflowUnavailable, answered, experiment_id, tracking_client
from training.trainers import validated_params

TRAINING_SET_FILE = "training_set.json"
log = logging.getLogger(__name__)


def gate_folder(job_dir: Path) -> Path:
    """What lies beside a job: `test_set.parquet` and `training_set.json`; the trainer never gets it."""
    return job_dir.with_name(f"{job_dir.name}.gate")


def prepare_job(lake: Lake, model: str, *, as_of: date, run_id: str, overrides: Mapping[str, Any] | None = None) -> Path:
    """Build the training set and describe the job.

    The folder's name follows from model, as-of date, run and overrides, so that a retry finds it again: with equal
    content it stays as it is, a finished training included; otherwise it is replaced.

    Args:
        as_of: the night whose knowledge is used; nothing known later is read.
        overrides: trainer parameters that replace the catalog's.
    Returns:
        JOB_DIR, `<jobs>/<model>/<as_of>-<12 digits>`, with `job.json` and `training_set.parquet`.
    Raises:
        BadParameter: an override is unknown or out of range.
        NotEnoughHistory, PartitionNotReady: the training set cannot be built.
    """
    from features.training_set import build_training_set

    entry = lake.model(model)
    params = validated_params(entry.trainer.family, {**entry.trainer.params, **(overrides or {})})
    named = hashlib.sha256(json.dumps([model, as_of.isoformat(), run_id, overrides or {}], sort_keys=True, default=str).encode()).hexdigest()
    job_dir = lake.settings.jobs / model / f"{as_of.isoformat()}-{named[:12]}"
    attempt = job_dir.with_name(f"{job_dir.name}.try-{os.getpid()}")
    shutil.rmtree(attempt, ignore_errors=True)
    attempt.mkdir(parents=True)
    try:
        built = build_training_set(lake, model, as_of, attempt)
        job = {
            "model": model,
            "as_of": as_of.isoformat(),
            "run_id": run_id,
            "entry": entry.model_dump(mode="json", by_alias=True),
            "feature_columns": {name: column.type for name, column in lake.catalog.feature_columns(entry).items()},
            "output_columns": list(entry.output_columns),
            "params": params,
            "overrides": dict(overrides or {}),
            "seed": entry.trainer.seed,
            "resources": entry.training.model_dump(mode="json"),
            "training_set": {"path": built.training_path.name, "digest": built.training_digest},
            "windows": built.to_json()["windows"],
            "code_version": code_version(),
            "catalog_digest": lake.catalog.digest(model),
        }
        existing = job_dir / JOB_FILE
        found = read_json(existing) if existing.is_file() else {}
        mlflow = found.pop("mlflow", None) or {}
        if found == json.loads(json.dumps(job)) and gate_folder(job_dir).is_dir():
            return job_dir
        write_json(attempt / JOB_FILE, job | {"mlflow": _mlflow_run(lake, model, as_of, job_dir.name, mlflow.get("run_id"))})
        gate = attempt.with_name(f"{attempt.name}.gate")
        shutil.rmtree(gate, ignore_errors=True)
        gate.mkdir()
        built.test_path.rename(gate / "test_set.parquet")
        write_json(gate / TRAINING_SET_FILE, built.to_json())
        for target, source in ((gate_folder(job_dir), gate), (job_dir, attempt)):
            shutil.rmtree(target, ignore_errors=True)
            source.rename(target)
        return job_dir
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def _mlflow_run(lake: Lake, model: str, as_of: date, job: str, previous: str | None) -> dict[str, Any]:
    """The run that the trainer streams its curves to; without MLflow there is none yet, and `register` makes it."""
    document: dict[str, Any] = {"tracking_uri": lake.settings.tracking_uri, "experiment": model, "run_id": previous}
    if previous:
        return document
    try:
        client = tracking_client(lake.settings)
        with answered(lake.settings):
            tags = {"model": model, "as_of": as_of.isoformat(), "job": job}
            document["run_id"] = client.create_run(experiment_id(client, model), run_name=f"{model} {as_of}", tags=tags).info.run_id
    except MlflowUnavailable as error:
        log.warning("%s\n  Training goes on without it.", error)
    return document

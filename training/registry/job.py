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

from config.settings import code_version, image_code
from features.training_set import TrainingSet, build_training_set
from lake.lake import Lake
from lake.storage import link_or_copy
from serving.predictors.contract import read_json, write_json
from training.job_file import JOB_FILE, job_identity
from training.registry.containers import check_size
from training.registry.tracking import MlflowUnavailable, answered, experiment_id, tracking_client
from training.search.study import check_search
from training.trainers import check_outputs, validated_params

TRAINING_SET_FILE = "training_set.json"
log = logging.getLogger(__name__)


def gate_folder(job_dir: Path) -> Path:
    """What lies beside a job: `test_set.parquet` and `training_set.json`; the trainer never gets it."""
    return job_dir.with_name(f"{job_dir.name}.gate")


def prepare_job(
    lake: Lake, model: str, *, as_of: date, run_id: str, overrides: Mapping[str, Any] | None = None
) -> Path:
    """`prepare_jobs` for the model's own trainer alone."""
    return prepare_jobs(lake, model, as_of=as_of, run_id=run_id, overrides=overrides, candidates=False)[0]


def prepare_jobs(
    lake: Lake,
    model: str,
    *,
    as_of: date,
    run_id: str,
    overrides: Mapping[str, Any] | None = None,
    candidates: bool = True,
) -> list[Path]:
    """Build the training set and describe one job for each candidate: the model's trainer, and those of `candidates`.

    A folder's name follows from model, as-of date, run, trainer and overrides, so that a retry finds it again: with
    equal content it stays as it is, a finished training included; otherwise it is replaced.

    Args:
        as_of: the night whose knowledge is used; nothing known later is read.
        overrides: trainer parameters that replace the catalog's; with any, the model's own trainer alone is trained.
        candidates: False leaves the model's own trainer alone.
    Returns:
        JOB_DIRs, `<jobs>/<model>/<as_of>-<12 digits>`, each with `job.json` and `training_set.parquet`.
    Raises:
        BadParameter: an override, or a search space, is unknown or out of range.
        TrainingImpossible: a candidate's family cannot learn an output of the model.
        NotEnoughMemory, GpuUnavailable: the job asks for more than trainings may take.
        NotEnoughHistory, PartitionNotReady: the training set cannot be built.
    """
    entry = lake.model(model)
    check_size(entry, lake.settings)
    trainers = entry.trainers if candidates and not overrides else (entry.trainer,)
    wanted = []
    for trainer in trainers:
        params = validated_params(trainer.family, {**trainer.params, **(overrides or {})})
        check_search(trainer, overrides or ())
        check_outputs(model, trainer.family, entry.outputs)
        named = [model, as_of.isoformat(), run_id, trainer.model_dump(mode="json"), overrides or {}]
        digits = hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()[:12]
        wanted.append((trainer, params, lake.settings.jobs / model / f"{as_of.isoformat()}-{digits}"))
    attempt = lake.settings.jobs / model / f"{as_of.isoformat()}.try-{os.getpid()}"
    shutil.rmtree(attempt, ignore_errors=True)
    attempt.mkdir(parents=True)
    try:
        built = build_training_set(lake, model, as_of, attempt)
        for trainer, params, job_dir in wanted:
            described = entry.model_copy(update={"trainer": trainer, "candidates": ()})
            job = {
                "model": model,
                "as_of": as_of.isoformat(),
                "run_id": run_id,
                "entry": described.model_dump(mode="json", by_alias=True),
                "feature_columns": {name: column.type for name, column in lake.catalog.feature_columns(entry).items()},
                "output_columns": list(entry.output_columns),
                "params": params,
                "overrides": dict(overrides or {}),
                "seed": trainer.seed,
                "training_set": {"path": built.training_path.name, "digest": built.training_digest},
                "windows": built.to_json()["windows"],
                "code_version": code_version(),
                "image_code": image_code(),
                "catalog_digest": lake.catalog.digest(model),
            }
            job["identity"] = job_identity(job)
            _place(lake, job, job_dir, attempt, built)
        return [job_dir for _, _, job_dir in wanted]
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def _place(lake: Lake, job: dict[str, Any], job_dir: Path, built_in: Path, built: TrainingSet) -> None:
    """Put one job where it belongs; one that lies there with equal content stays."""
    existing = job_dir / JOB_FILE
    prepared = read_json(existing) if existing.is_file() else {}
    mlflow = prepared.pop("mlflow", None) or {}
    if prepared == json.loads(json.dumps(job)) and gate_folder(job_dir).is_dir():
        return
    folder, gate = (
        job_dir.with_name(f"{job_dir.name}.try-{os.getpid()}"),
        gate_folder(job_dir.with_name(f"{job_dir.name}.try-{os.getpid()}")),
    )
    for path in (folder, gate):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    try:
        name = f"{job['model']} {job['as_of']} {job['entry']['trainer']['family']}"
        write_json(
            folder / JOB_FILE, job | {"mlflow": _mlflow_run(lake, job, name, job_dir.name, mlflow.get("run_id"))}
        )
        link_or_copy(built.training_path, folder / built.training_path.name)
        link_or_copy(built.test_path, gate / built.test_path.name)
        write_json(gate / TRAINING_SET_FILE, built.to_json())
        for target, source in ((gate_folder(job_dir), gate), (job_dir, folder)):
            shutil.rmtree(target, ignore_errors=True)
            source.rename(target)
    finally:
        for path in (folder, gate):
            shutil.rmtree(path, ignore_errors=True)


def _mlflow_run(lake: Lake, job: Mapping[str, Any], name: str, folder: str, previous: str | None) -> dict[str, Any]:
    """The run that the trainer streams its curves to; without MLflow there is none yet, and `register` makes it."""
    document: dict[str, Any] = {"experiment": job["model"], "run_id": previous}
    if previous:
        return document
    try:
        client = tracking_client(lake.settings)
        with answered(lake.settings):
            tags = {"model": job["model"], "as_of": job["as_of"], "job": folder}
            document["run_id"] = client.create_run(
                experiment_id(client, job["model"]), run_name=name, tags=tags
            ).info.run_id
    except MlflowUnavailable as error:
        log.warning("%s\n  Training goes on without it.", error)
    return document

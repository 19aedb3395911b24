"""Prepare a training job: a folder that holds all a trainer may see, and beside it what only the gate may."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any

from config.catalog.model import ModelEntry
from config.errors import NightfleetError
from config.settings import code_version, image_code
from features.training_set import TrainingSet, build_training_set
from lake.contained import open_contained
from lake.lake import Lake
from lake.leftovers import held, remove_leftovers
from lake.storage import link_or_copy
from serving.predictors.brought import FAMILY_FOLDER, FamilyCode, bring
from serving.predictors.contract import read_json, write_json
from training.job_file import JOB_FILE, job_identity, read_job
from training.registry.attempt import host_folder
from training.registry.containers import check_size
from training.registry.tracking import MlflowUnavailable, answered, experiment_id, tracking_client
from training.search.study import check_search
from training.trainers import check_outputs, validated_params

TRAINING_SET_FILE = "training_set.json"
TRIES = "*.try-*"  # folders of tries at a job, below the jobs of a model
log = logging.getLogger(__name__)


class ForeignJob(NightfleetError):
    """A path that was handed over is not the folder of a prepared job of the model."""


class PersonalFeature(NightfleetError):
    """A feature of a model is a text that is personal data."""


def gate_folder(job_dir: Path) -> Path:
    """What lies beside a job: `test_set.parquet`, `unlabelled_set.parquet` and `training_set.json`; the trainer never
    gets it.
    """
    return host_folder(job_dir)


def checked_job(lake: Lake, model: str, given: str | Path) -> Path:
    """A job folder that came from outside of this process, resolved, once it is known to be one of the model's.

    Raises:
        ForeignJob: it is not a folder directly below the model's job folder, its `job.json` is another model's, or
            names a training set elsewhere; nothing was touched.
        BadJob, JobChanged: it has no `job.json`, or that says something else than when it was prepared.
        UnsafeFile: its `job.json` is a link, or no regular file.
    """
    jobs, path = (lake.settings.jobs / lake.model(model).name).resolve(), Path(given)
    resolved = path.resolve()
    if not path.is_absolute() or path.is_symlink() or resolved.parent != jobs or "." in resolved.name:
        raise ForeignJob(
            f"{str(given)[:200]!r} is not a job of {model}: needs a folder directly below {jobs}. Nothing was touched. "
            "Clear `prepare` to prepare the job again."
        )
    if resolved.is_dir():
        with suppress(FileNotFoundError), open_contained(resolved, JOB_FILE):
            pass
    job = read_job(resolved)
    training_set = str(job["training_set"].get("path"))
    if job["model"] != model or training_set != Path(training_set).name:
        raise ForeignJob(
            f"{resolved / JOB_FILE} is of {job['model']!r} with training set {training_set!r}: needs {model!r} and a "
            "file of that folder. Nothing was touched. Clear `prepare` to prepare the job again."
        )
    return resolved


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
        BadFamily: the code of a candidate's own family is incomplete, or cannot be imported.
        NotEnoughMemory, GpuUnavailable: the job asks for more than trainings may take.
        NotEnoughHistory, PartitionNotReady: the training set cannot be built.
        PersonalFeature: a feature is a text that is personal data.
    """
    entry = lake.model(model)
    _refuse_personal_texts(lake, entry)
    check_size(entry, lake.settings)
    trainers = entry.trainers if candidates and not overrides else (entry.trainer,)
    wanted = []
    for trainer in trainers:
        code = _own_code(lake, trainer.family)
        params = validated_params(trainer.family, {**trainer.params, **(overrides or {})})
        check_search(trainer, overrides or ())
        check_outputs(model, trainer.family, entry.outputs)
        named = [model, as_of.isoformat(), run_id, trainer.model_dump(mode="json"), overrides or {}]
        digits = hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()[:12]
        wanted.append((trainer, params, code, lake.settings.jobs / model / f"{as_of.isoformat()}-{digits}"))
    jobs = lake.settings.jobs / model
    jobs.mkdir(parents=True, exist_ok=True)
    remove_leftovers(jobs.glob(TRIES))
    with _try_folder(jobs / f"{as_of.isoformat()}.try-{uuid.uuid4().hex}") as attempt:
        built = build_training_set(lake, model, as_of, attempt)
        for trainer, params, code, job_dir in wanted:
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
            if code is not None:
                job["family_code"] = code.digests
            job["identity"] = job_identity(job)
            _place(lake, job, job_dir, attempt, built, code)
        return [job_dir for *_, job_dir in wanted]


def _refuse_personal_texts(lake: Lake, entry: ModelEntry) -> None:
    """A model lists the values of each text that it reads: in its manifest, its drift profile and at MLflow."""
    columns = lake.catalog.feature_columns(entry)
    texts = [name for name, column in columns.items() if column.pii and column.type == "string"]
    if texts:
        raise PersonalFeature(
            f"{entry.name} reads {texts[0]}, a text that is personal data (pii): its values would be listed in the "
            "model's manifest and its drift profile. Nothing was prepared; a champion that reads it goes on scoring.\n"
            "  Let the view's SQL derive a number from it, or a text that names nobody, and declare that instead."
        )


@contextmanager
def _try_folder(folder: Path) -> Iterator[Path]:
    """A new folder of this try, which may be renamed meanwhile; else it is removed at the end."""
    folder.mkdir()
    try:
        with held(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _own_code(lake: Lake, family: str) -> FamilyCode | None:
    """The code of a family that a catalog folder brings, known to this process from then on; None for a shipped one."""
    folder = lake.catalog.families.get(family)
    return bring(FamilyCode.read(family, folder)) if folder is not None else None


def _place(
    lake: Lake, job: dict[str, Any], job_dir: Path, built_in: Path, built: TrainingSet, code: FamilyCode | None
) -> None:
    """Put one job where it belongs; one that lies there with equal content stays."""
    existing = job_dir / JOB_FILE
    prepared = read_json(existing) if existing.is_file() else {}
    mlflow = prepared.pop("mlflow", None) or {}
    if prepared == json.loads(json.dumps(job)) and (gate_folder(job_dir) / TRAINING_SET_FILE).is_file():
        return
    # No process id: two containers that share the disk may have equal ones.
    attempt = job_dir.with_name(f"{job_dir.name}.try-{uuid.uuid4().hex}")
    with _try_folder(attempt) as folder, _try_folder(gate_folder(attempt)) as gate:
        name = f"{job['model']} {job['as_of']} {job['entry']['trainer']['family']}"
        write_json(
            folder / JOB_FILE, job | {"mlflow": _mlflow_run(lake, job, name, job_dir.name, mlflow.get("run_id"))}
        )
        if code is not None:
            code.write(folder / FAMILY_FOLDER)
        link_or_copy(built.training_path, folder / built.training_path.name)
        for path in (built.test_path, built.unlabelled_path):
            link_or_copy(path, gate / path.name)
        write_json(gate / TRAINING_SET_FILE, built.to_json())
        for target, source in ((gate_folder(job_dir), gate), (job_dir, folder)):
            shutil.rmtree(target, ignore_errors=True)
            source.rename(target)


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

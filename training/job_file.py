"""`job.json`: what a training is asked to do, and the digest that says when two trainings are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.errors import NightfleetError
from serving.predictors.contract import read_json

JOB_FILE = "job.json"
# Equal values of these give an equal model. Not: run id, MLflow run, limits, owner.
_DECISIVE = ("model", "as_of", "feature_columns", "output_columns", "params", "seed", "windows", "image_code")
_NEEDED = ("model", "entry", "feature_columns", "output_columns", "training_set", "params", "seed", "as_of", "identity")


class BadJob(NightfleetError):
    """A job is missing, unreadable or asks for something impossible."""


class JobChanged(NightfleetError):
    """A job does not say what it said when it was prepared."""


def job_identity(job: Mapping[str, Any]) -> str:
    """SHA-256 of all that decides the model: training set, outputs, trainer with its parameters and search, seed,
    code.
    """
    decisive = {key: job.get(key) for key in _DECISIVE}
    if job.get("family_code"):  # jobs of shipped families keep the identities they had
        decisive["family_code"] = job["family_code"]
    decisive |= {
        "training_set": job["training_set"]["digest"],
        "outputs": job["entry"]["outputs"],
        "trainer": job["entry"]["trainer"],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def read_job(job_dir: Path) -> dict[str, Any]:
    """The job's description.

    Raises:
        BadJob: there is none, or it lacks something.
        JobChanged: it was edited after it was prepared.
    """
    path = job_dir / JOB_FILE
    if not path.is_file():
        raise BadJob(f"{path} does not exist. Give the folder that `prepare_job` made.")
    try:
        job = dict(read_json(path))
        missing = [key for key in _NEEDED if key not in job]
    except (ValueError, TypeError) as error:
        raise BadJob(f"{path} is not readable as JSON: {error}. Prepare the job again.") from error
    if missing:
        raise BadJob(f"{path} lacks {', '.join(missing)}. Prepare the job again.")
    identity = job_identity(job)
    if identity != job["identity"]:
        raise JobChanged(
            f"{path} has identity {identity[:12]}…, it was prepared as {str(job['identity'])[:12]}…: it was edited. "
            "Prepare the job again."
        )
    return job

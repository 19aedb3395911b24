"""`python -m training JOB_DIR`: train one model from a prepared job, and nothing else.

Reads    JOB_DIR/job.json and the training set it names. Has no credential, reads no lake, never sees the gate's test
         rows.
Writes   JOB_DIR/model/, curves.json, importances.json, search.json and study/ where the catalog asks for a search, and
         last,
         atomically, manifest.json: without it nothing has finished.
Exit     0 done; 2 wrong usage; 3 a refusal, whose text is the last line; 4 the disk is full; 5 what may pass by itself;
         143 ended by SIGTERM; anything else is a fault.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import errno
import hashlib
import json
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from config.catalog.output import SCALE, outputs_of
from config.catalog.trainer import Trainer
from config.errors import NightfleetError, TransientError
from lake.artifact import file_digest, folder_digests
from serving.predictors import MANIFEST_FILE, load_model_folder
from serving.predictors.brought import FAMILY_FOLDER, FamilyCode, bring
from serving.predictors.contract import Contract, write_json
from training.checkpoints import CHECKPOINTS_FOLDER, Checkpoints
from training.cross_validation import cross_validate
from training.evaluate import baseline_metrics, evaluate, lifts
from training.job_file import JobChanged, read_job
from training.progress import POINTS_FILE, Progress, say
from training.rows import batches, read_rows
from training.search.study import search
from training.trainers import (
    Cluster,
    Floats,
    Rows,
    Run,
    TrainingImpossible,
    check_outputs,
    family_of,
    validated_params,
)

IMPORTANCES_FILE = "importances.json"
REFUSED = 3
DISK_FULL = 4
TRANSIENT = 5
TERMINATED = 128 + signal.SIGTERM


class TrainingSetMismatch(NightfleetError):
    """The training set's bytes are not those the job names."""


def run(job_dir: Path, cluster: Cluster | None = None) -> Path:
    """Train the job's model; returns the manifest's path.

    Args:
        cluster: the data-parallel workers this process is one of; all but the first write nothing but their log.
    Raises:
        BadJob, JobChanged, TrainingSetMismatch, TrainingImpossible, TrainingDiverged, NoGpu, BadParameter, WorkerLost:
            as their texts say; there is no manifest then.
    """
    started = time.monotonic()
    job = read_job(job_dir)
    index = cluster.index if cluster else 0
    chief = index == 0
    if chief:
        (job_dir / MANIFEST_FILE).unlink(missing_ok=True)
    training_set = _verified_training_set(job, job_dir)
    entry, trainer = job["entry"], job["entry"]["trainer"]
    family = str(trainer["family"])
    own_code = _own_code(job, job_dir, family)
    params = validated_params(family, job["params"])
    check_outputs(job["model"], family, outputs_of(entry["outputs"]))
    # Two containers may have the same process id: the worker's number tells them apart.
    own = f"{index}-{os.getpid()}"
    partial = job_dir / f"model.partial-{own}"
    checkpoints_folder = job_dir / CHECKPOINTS_FOLDER
    for stale in (*job_dir.glob(f"model.partial-{index}-*"), *job_dir.glob(f"scratch-{index}-*")):
        shutil.rmtree(stale, ignore_errors=True)
    if chief:
        shutil.rmtree(job_dir / "model", ignore_errors=True)
        if not checkpoints_folder.is_dir():
            (job_dir / POINTS_FILE).unlink(missing_ok=True)
    progress = Progress(folder=job_dir) if chief else Progress(say_line=lambda line: say(f"worker {index}: {line}"))
    scratch = job_dir / f"scratch-{own}"
    scratch.mkdir()
    try:
        contract, splits, baseline = read_rows(job, family, params, training_set, scratch)
        fit, validation = splits["train"], splits["validation"]
        counts = (
            f"{len(fit.label)} training rows, {len(validation.label)} validation rows, {len(contract.features)}"
            " features"
        )
        progress.line(f"{job['model']} as of {job['as_of']}: {family}, {counts}")
        contract, searched, cross_validation = _decided(
            job, contract, fit, validation, job_dir, progress, scratch, cluster
        )
        params = dict(contract.params)
        checkpoints = Checkpoints(
            checkpoints_folder, _fit_identity(job, params), entry["training"]["checkpoint_minutes"] * 60.0
        )
        fit_run = Run(job["seed"], trainer.get("device", "auto"), progress, checkpoints, scratch, cluster)
        partial.mkdir()
        fitted = family_of(family).train(contract, fit, validation, partial, params=params, run=fit_run)
        if not chief:
            shutil.rmtree(partial)
            return job_dir / MANIFEST_FILE
        contract.write(partial)
        if own_code is not None:
            own_code.write(partial / FAMILY_FOLDER)
        metrics = _validate(partial, training_set, contract, fit.label, validation.label, baseline)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for name, value in metrics.items():
        progress.line(f"validation {name} {value:.5g}")
    progress.close(job_dir)
    write_json(job_dir / IMPORTANCES_FILE, fitted.importances)
    partial.rename(job_dir / "model")
    manifest = {
        "model": job["model"],
        "family": family,
        "as_of": job["as_of"],
        "artifacts": {f"model/{name}": digest for name, digest in folder_digests(job_dir / "model").items()},
        "identity": job["identity"],
        "training_set_digest": job["training_set"]["digest"],
        "feature_columns": {name: spec.to_json() for name, spec in contract.features.items()},
        "outputs": contract.outputs,
        "output_columns": list(contract.output_columns),
        "params": params,
        "seed": job["seed"],
        "device": fitted.device,
        "best_iteration": fitted.best_iteration,
        "rows": {"train": len(fit.label), "validation": len(validation.label)},
        "metrics": metrics,
        **({"search": searched} if searched else {}),
        **({"cross_validation": cross_validation} if cross_validation else {}),
        "libraries": {name: version(name) for name in fitted.libraries} | {"python": platform.python_version()},
        "details": fitted.details,
        "seconds": round(time.monotonic() - started, 3),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    written = job_dir / f"{MANIFEST_FILE}.{os.getpid()}"
    write_json(written, manifest)
    written.replace(job_dir / MANIFEST_FILE)
    shutil.rmtree(checkpoints_folder, ignore_errors=True)  # the manifest stands: nothing is left to resume
    progress.line(f"{job['model']}: trained in {manifest['seconds']:.1f} s on the {fitted.device}")
    return job_dir / MANIFEST_FILE


def _own_code(job: dict[str, Any], job_dir: Path, family: str) -> FamilyCode | None:
    """The code that the job brings for its family, known to this process from then on; None for a shipped family.

    Raises:
        JobChanged: it is not what the job names.
    """
    named = job.get("family_code")
    if not named:
        return None
    code = FamilyCode.read(family, job_dir / FAMILY_FOLDER)
    if code.digests != named:
        raise JobChanged(
            f"the code of the family {family!r} in {job_dir / FAMILY_FOLDER} is not the one that the job names: it "
            "was edited. Nothing was trained. Prepare the job again."
        )
    return bring(code)


def _verified_training_set(job: dict[str, Any], job_dir: Path) -> Path:
    path = job_dir / str(job["training_set"]["path"])
    digest = file_digest(path) if path.is_file() else "nothing"
    if digest != job["training_set"]["digest"]:
        raise TrainingSetMismatch(
            f"{path} has digest {digest[:12]}…, the job names {job['training_set']['digest'][:12]}…: its bytes were "
            "changed or cut. "
            "Nothing was trained. Prepare the job again."
        )
    return path


def _decided(
    job: dict[str, Any],
    contract: Contract,
    fit: Rows,
    validation: Rows,
    job_dir: Path,
    progress: Progress,
    scratch: Path,
    cluster: Cluster | None,
) -> tuple[Contract, dict[str, Any] | None, dict[str, Any] | None]:
    """The contract with the parameters to train with, what a search found, and what cross-validation says of them."""
    trainer = Trainer.model_validate(job["entry"]["trainer"])
    if trainer.search is None and trainer.cross_validation is None:
        return contract, None, None
    if cluster:
        raise TrainingImpossible(
            f"{job['model']}: search and cross-validation run in one container. Set `training.workers: 1`, or take "
            "them out."
        )
    seconds = job["entry"]["training"]["checkpoint_minutes"] * 60.0
    if trainer.search is not None:
        searched = search(
            job, contract, fit, validation, job_dir, progress=progress, scratch=scratch, checkpoint_seconds=seconds
        )
        return dataclasses.replace(contract, params=searched.params), searched.summary, searched.cross_validation
    assert trainer.cross_validation is not None
    asked, quiet = trainer.cross_validation, Progress(say_line=lambda line: None)
    folder = job_dir / CHECKPOINTS_FOLDER

    def checkpoints_of(name: str) -> Checkpoints:
        return Checkpoints(folder / name, _fit_identity(job, contract.params), seconds)

    def after_fold(fold: int, metrics: list[dict[str, float]]) -> None:
        judged = [f"{name}/{output.gate}" for name, output in contract.kinds.items()]
        progress.line(
            f"cross-validation: fold {fold} of {asked.folds}: "
            + ", ".join(f"{name} {metrics[-1][name]:.5g}" for name in judged)
        )

    run_of_folds = Run(job["seed"], trainer.device, quiet, checkpoints_of("folds"), scratch)
    return (
        contract,
        None,
        cross_validate(
            asked, contract, (fit, validation), run=run_of_folds, checkpoints_of=checkpoints_of, after_fold=after_fold
        ),
    )


def _fit_identity(job: dict[str, Any], params: Mapping[str, Any]) -> str:
    """Whose checkpoints a fit may take: the job's, with the parameters that a search may have chosen."""
    return hashlib.sha256(json.dumps([job["identity"], dict(params)], sort_keys=True).encode()).hexdigest()


def _validate(
    folder: Path, training_set: Path, contract: Contract, fitted_on: Floats, label: Floats, baseline: Floats | None
) -> dict[str, float]:
    """Metrics of the validation split, predicted by the files just written: what is measured is what will be served."""
    predictor = load_model_folder(folder)
    scaled = [SCALE] if SCALE in pq.read_schema(training_set).names else []
    parts, scales = [], []
    for batch in batches(training_set, [*contract.features, "split", *scaled]):
        part = batch.filter(pc.equal(batch["split"], "validation"))
        if part.num_rows:
            parts.append(predictor.predict(part))
            scales += [part[name] for name in scaled]
    predictions, scale = pa.concat_tables(parts), None
    if scaled:
        predictions = predictions.append_column(SCALE, pa.chunked_array(scales))
        scale = predictions[SCALE].to_numpy()
    metrics = evaluate(contract.kinds, label, predictions) | baseline_metrics(
        contract.kinds, fitted_on, label, baseline, scale=scale
    )
    return metrics | lifts(contract.kinds, metrics)


def _end_with(parent_pid: int) -> None:
    """Ask the kernel for SIGTERM when the process that started this one dies: a killed task leaves no training
    behind.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)
    if os.getppid() != parent_pid:
        sys.exit(TERMINATED)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    print("ended by SIGTERM; nothing was finished, there is no manifest", flush=True)
    sys.exit(TERMINATED)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m training", description="Train one model from a prepared job.")
    parser.add_argument("job_dir", type=Path, help="folder with job.json and the training set")
    parser.add_argument(
        "--workers", help="host:port of every data-parallel worker, the first is the chief; comma-separated"
    )
    parser.add_argument("--worker-index", type=int, default=0, help="which of --workers this process is")
    parser.add_argument("--parent-pid", type=int, help="end when this process, which started this one, ends")
    given = parser.parse_args(arguments)
    # As process 1 of a container, Python would ignore SIGTERM.
    signal.signal(signal.SIGTERM, _terminate)
    if given.parent_pid:
        _end_with(given.parent_pid)
    addresses = tuple(given.workers.split(",")) if given.workers else ()
    try:
        run(given.job_dir.resolve(), Cluster(addresses, given.worker_index) if len(addresses) > 1 else None)
    except TransientError as error:
        print(error, flush=True)
        return TRANSIENT
    except NightfleetError as error:
        print(error, flush=True)
        return REFUSED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(
            f"the disk is full ({error.filename or given.job_dir}). Nothing was finished. Free space below "
            f"{given.job_dir}, then try again.",
            flush=True,
        )
        return DISK_FULL
    return 0


if __name__ == "__main__":
    sys.exit(main())

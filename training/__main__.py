"""`python -m training JOB_DIR`: train one model from a prepared job, and nothing else.

Reads    JOB_DIR/job.json and the training set it names. Has no credential, reads no lake, never sees the gate's test rows.
Writes   JOB_DIR/model/, curves.json, importances.json, and last, atomically, manifest.json: without it nothing has finished.
Exit     0 done; 2 wrong usage; 3 a refusal, whose text is the last line; 143 ended by SIGTERM; anything else is a fault.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import platform
import shutil
import signal
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from config.errors import NightfleetError
from lake.artifact import file_digest, folder_digests
from serving.predictors import MANIFEST_FILE, check_family, load_model_folder
from serving.predictors.contract import FEATURE_TYPES, Contract, FeatureSpec, read_json, write_json
from training.evaluate import baseline_metrics, evaluate
from training.progress import Progress, say, stream_of
from training.trainers import Fitted, Floats, Rows, TrainingImpossible, validated_params

JOB_FILE = "job.json"
IMPORTANCES_FILE = "importances.json"
REFUSED = 3
TERMINATED = 128 + signal.SIGTERM


class TrainingSetMismatch(NightfleetError):
    """The training set's bytes are not those the job names."""


class BadJob(NightfleetError):
    """A job is missing, unreadable or asks for something impossible."""


def read_job(job_dir: Path) -> dict[str, Any]:
    """The job's description.

    Raises:
        BadJob: there is none, or it lacks something.
    """
    path = job_dir / JOB_FILE
    if not path.is_file():
        raise BadJob(f"{path} does not exist. Give the folder that `prepare_job` made.")
    try:
        job = read_json(path)
        missing = [key for key in ("model", "entry", "feature_columns", "output_columns", "training_set", "params", "seed", "as_of") if key not in job]
    except (ValueError, TypeError) as error:
        raise BadJob(f"{path} is not readable as JSON: {error}. Prepare the job again.") from error
    if missing:
        raise BadJob(f"{path} lacks {', '.join(missing)}. Prepare the job again.")
    return dict(job)


def run(job_dir: Path) -> Path:
    """Train the job's model; returns the manifest's path.

    Raises:
        BadJob, TrainingSetMismatch, TrainingImpossible, TrainingDiverged, NoGpu, BadParameter: as their texts say; there is no manifest then.
    """
    started = time.monotonic()
    job = read_job(job_dir)
    (job_dir / MANIFEST_FILE).unlink(missing_ok=True)
    for stale in (job_dir / "model", *job_dir.glob("model.partial-*")):
        shutil.rmtree(stale, ignore_errors=True)
    training_set = job_dir / job["training_set"]["path"]
    digest = file_digest(training_set) if training_set.is_file() else "nothing"
    if digest != job["training_set"]["digest"]:
        raise TrainingSetMismatch(
            f"{training_set} has digest {digest[:12]}…, the job names {job['training_set']['digest'][:12]}…: its bytes were changed or cut. "
            "Nothing was trained. Prepare the job again."
        )
    trainer = job["entry"]["trainer"]
    family = check_family(trainer["family"])
    params = validated_params(family, job["params"])
    progress = Progress(stream=stream_of(job.get("mlflow") or {}, say))
    contract, splits, baseline = _read_rows(job, family, params, training_set)
    fit, validation = splits["train"], splits["validation"]
    counts = f"{len(fit.label)} training rows, {len(validation.label)} validation rows, {len(contract.features)} features"
    progress.line(f"{job['model']} as of {job['as_of']}: {family}, {counts}")

    partial = job_dir / f"model.partial-{os.getpid()}"
    partial.mkdir()
    module = importlib.import_module(f"training.trainers.{family}")
    fitted: Fitted = module.train(contract, fit, validation, partial, params=params, seed=job["seed"], device=trainer.get("device", "auto"), progress=progress)
    contract.write(partial)
    metrics = _validate(partial, training_set, contract, fit.label, validation.label, baseline)
    for name, value in metrics.items():
        progress.line(f"validation {name} {value:.5g}")
    progress.close(job_dir)
    write_json(job_dir / IMPORTANCES_FILE, fitted.importances)
    partial.rename(job_dir / "model")
    artifacts = {f"model/{name}": digest for name, digest in folder_digests(job_dir / "model").items()}
    manifest = {
        "model": job["model"],
        "family": family,
        "as_of": job["as_of"],
        "artifacts": artifacts,
        "job_digest": file_digest(job_dir / JOB_FILE),
        "training_set_digest": digest,
        "feature_columns": {name: spec.to_json() for name, spec in contract.features.items()},
        "outputs": contract.outputs,
        "output_columns": list(contract.output_columns),
        "params": params,
        "seed": job["seed"],
        "device": fitted.device,
        "best_iteration": fitted.best_iteration,
        "rows": {"train": len(fit.label), "validation": len(validation.label)},
        "metrics": metrics,
        "libraries": {name: version(name) for name in fitted.libraries} | {"python": platform.python_version()},
        "details": fitted.details,
        "seconds": round(time.monotonic() - started, 3),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    written = job_dir / f"{MANIFEST_FILE}.{os.getpid()}"
    write_json(written, manifest)
    written.replace(job_dir / MANIFEST_FILE)
    progress.line(f"{job['model']}: trained in {manifest['seconds']:.1f} s on the {fitted.device}")
    return job_dir / MANIFEST_FILE


def _read_rows(job: dict[str, Any], family: str, params: dict[str, Any], path: Path) -> tuple[Contract, dict[str, Rows], Floats | None]:
    """Contract with the vocabularies of the training rows, both splits, and validation's row-wise baseline if there is one."""
    columns: dict[str, str] = job["feature_columns"]
    unfit = {name: kind for name, kind in columns.items() if kind not in FEATURE_TYPES}
    if unfit:
        name, kind = next(iter(unfit.items()))
        raise TrainingImpossible(
            f"{job['model']}: the feature {name!r} has type {kind}; a model takes {', '.join(FEATURE_TYPES)}. Derive a number from it in the view."
        )
    file = pq.ParquetFile(path)
    wanted = [*columns, "label", "split", "baseline"]
    missing = [name for name in wanted if name not in file.schema_arrow.names and name != "baseline"]
    if missing:
        raise BadJob(f"{path} lacks the columns {', '.join(missing)}. Prepare the job again.")
    table = file.read([name for name in wanted if name in file.schema_arrow.names])
    parts = {split: table.filter(pc.equal(table["split"], split)) for split in ("train", "validation")}
    for split, part in parts.items():
        if not part.num_rows:
            raise TrainingImpossible(f"{job['model']}: the training set has no {split} rows. Widen `split.{split}`, or train as of a later date.")
        labels = part["label"]
        if labels.null_count or not np.isfinite(labels.to_numpy()).all():
            raise TrainingImpossible(
                f"{job['model']}: {split} rows hold labels that are null, NaN or infinite. Let a check quarantine them, then prepare the job again."
            )
    specs = {}
    for name, kind in columns.items():
        categories = tuple(sorted(v for v in pc.unique(parts["train"][name]).to_pylist() if v is not None)) if kind == "string" else None
        specs[name] = FeatureSpec(kind, categories)
    contract = Contract(
        model=job["model"],
        family=family,
        features=specs,
        outputs=job["entry"]["outputs"],
        output_columns=tuple(job["output_columns"]),
        training_set_digest=job["training_set"]["digest"],
        as_of=job["as_of"],
        seed=job["seed"],
        params=params,
    )
    splits = {split: Rows(contract.matrix(part), part["label"].to_numpy().astype(np.float64)) for split, part in parts.items()}
    baseline = None
    if "baseline" in table.schema.names:
        values = pc.cast(parts["validation"]["baseline"], pa.float64())
        baseline = None if values.null_count == len(values) else values.to_numpy().astype(np.float64)
    return contract, splits, baseline


def _validate(folder: Path, training_set: Path, contract: Contract, fitted_on: Floats, label: Floats, baseline: Floats | None) -> dict[str, float]:
    """Metrics of the validation split, predicted by the files just written: what is measured is what will be served."""
    rows = pq.read_table(training_set, columns=list(contract.features), filters=[("split", "=", "validation")])
    predictions = load_model_folder(folder).predict(rows)
    return evaluate(contract.outputs, label, predictions) | baseline_metrics(contract.outputs, fitted_on, label, baseline)


def _end_with(parent_pid: int) -> None:
    """Ask the kernel for SIGTERM when the process that started this one dies: a killed task leaves no training behind."""
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
    parser.add_argument("--parent-pid", type=int, help="end when this process, which started this one, ends")
    given = parser.parse_args(arguments)
    # As process 1 of a container, Python would ignore SIGTERM.
    signal.signal(signal.SIGTERM, _terminate)
    if given.parent_pid:
        _end_with(given.parent_pid)
    try:
        run(given.job_dir.resolve())
    except NightfleetError as error:
        print(error, flush=True)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Run a prepared training job: choose where, take what is finished already, and say in words how it ended."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from config.errors import NightfleetError, TransientError
from config.settings import mlflow_login
from lake.artifact import ArtifactMismatch, verify_files
from lake.contained import UnsafeFile, check_contained
from lake.lake import Lake
from serving.predictors import MANIFEST_FILE, BadManifest, read_manifest
from serving.predictors.contract import read_json, write_json
from training.__main__ import DISK_FULL, REFUSED, TERMINATED, TRANSIENT
from training.checkpoints import CHECKPOINTS_FOLDER
from training.job_file import JOB_FILE, BadJob, JobChanged, read_job
from training.registry.attempt import LAST_LINES, LOG_FILE, Attempt, Ended, Runner, host_folder
from training.registry.containers import EngineUnavailable, ImageMissing, engine, find_image, limits
from training.registry.curves import CurveStream
from training.registry.docker_runner import DockerRunner, Launch
from training.registry.process_runner import ProcessRunner

WHERE_FILE = "where.json"
# Worth trying again: a signal, as a process and as a container reports it, and what the trainer says may pass.
_PASSING = {
    sign * number + base for number in (signal.SIGKILL, signal.SIGTERM) for sign, base in ((-1, 0), (1, 128))
} | {TRANSIENT}


class TrainingFailed(NightfleetError):
    """A training job ended without a manifest."""


class TrainingInterrupted(TransientError):
    """A training was ended from outside; a retry resumes from its checkpoint."""


def where_trained(job_dir: Path) -> str:
    """`in a container` or `as a process`, as the last one who trained the job noted; else `by an equal job`."""
    path = host_folder(job_dir) / WHERE_FILE
    if not path.is_file():
        return "by an equal job"
    return "in a container" if read_json(path)["runner"] == "docker" else "as a process"


def choose_runner(
    lake: Lake, model: str, say: Callable[[str], None], *, task: Mapping[str, str], launch: Launch | None = None
) -> Runner:
    """The catalog's runner for this model, else the profile's; `auto` says why it falls back to a process.

    Args:
        task: who wants the job trained, as `DockerRunner` labels its containers.
        launch: who starts a container and follows it, for `DockerRunner`.
    Raises:
        EngineUnavailable, ImageMissing, GpuUnavailable: the runner is `docker`, and cannot be used.
        GpuUnavailable: a number of GPUs is demanded that the engine cannot give, whatever the runner but `process`.
    """
    entry = lake.model(model)
    runner = entry.training.runner or lake.settings.runner
    if runner == "process":
        return ProcessRunner()
    try:
        client = engine()
        caps = limits(client, entry, lake.settings)
        image = find_image(client, lake.settings, gpus=caps.gpus > 0)
    except (EngineUnavailable, ImageMissing) as error:
        if runner == "docker":
            raise
        say(f"runner auto: training as a process of this machine, because {error}")
        return ProcessRunner()
    return DockerRunner(client, image, caps, lake.settings, task, launch)


def ready_manifest(lake: Lake, model: str, job_dir: Path, *, force: bool, say: Callable[[str], None]) -> Path | None:
    """The job's manifest where nothing needs to be trained: this job has finished, or one that is equal in all that
    decides.

    Args:
        force: train again whatever there is; finished files and checkpoints of this job are removed.
    """
    if force:
        for name in ("model", CHECKPOINTS_FOLDER, "study"):
            shutil.rmtree(job_dir / name, ignore_errors=True)
        (job_dir / MANIFEST_FILE).unlink(missing_ok=True)
        return None
    if _finished(job_dir):
        say(f"{model}: {job_dir.name} is trained already")
        return job_dir / MANIFEST_FILE
    identity = read_job(job_dir)["identity"]
    for manifest in sorted(job_dir.parent.glob(f"*/{MANIFEST_FILE}")):
        if manifest.parent == job_dir or ".try-" in manifest.parent.name or not _finished(manifest.parent, identity):
            continue
        for stale in (job_dir / "model", *job_dir.glob("model.partial-*")):
            shutil.rmtree(stale, ignore_errors=True)
        taken = job_dir / f"model.partial-{os.getpid()}"
        shutil.copytree(manifest.parent / "model", taken)
        taken.rename(job_dir / "model")
        for path in sorted(manifest.parent.glob("*.json")):
            if path.name not in {JOB_FILE, MANIFEST_FILE}:
                shutil.copyfile(path, job_dir / path.name)
        written = job_dir / f"{MANIFEST_FILE}.{os.getpid()}"
        shutil.copyfile(manifest, written)
        written.replace(job_dir / MANIFEST_FILE)
        say(
            f"{model}: equal to {manifest.parent.name} (same data, trainer, seed and code), whose model is taken. "
            "`force` in the form trains again."
        )
        return job_dir / MANIFEST_FILE
    return None


def run_job(
    lake: Lake,
    model: str,
    job_dir: Path,
    *,
    runner: Runner | None = None,
    say: Callable[[str], None] | None = None,
    timeout_seconds: float | None = None,
    force: bool = False,
) -> Path:
    """Train a prepared job and wait for it; one that has finished already is not run again.

    Args:
        runner: where; None: a process of this machine.
        say: takes each line the trainer writes, as it comes; by default they are printed. All are kept in
            `training.log` of the host folder.
        timeout_seconds: by default the catalog's `training.timeout_minutes`.
        force: train even where an equal job has finished.
    Returns:
        Path of the manifest.
    Raises:
        TrainingFailed: it refused, failed or ran out of memory or time; there is no manifest, and a retry resumes from
            its checkpoint.
        TrainingInterrupted: it was killed from outside; trying again is safe, and done.
        EngineBusy: what an earlier try left in the engine could not be removed.
        UnsafeFile: a link, or a file that no trainer writes, lies in the job's folder; nothing of it is used.
    """
    runner = runner or ProcessRunner()
    say = say or (lambda line: print(line, flush=True))
    runner.prepare(say)
    # What an earlier try left behind: its container is gone by now, so that what is checked stays as it is.
    check_contained(job_dir)
    ready = ready_manifest(lake, model, job_dir, force=force, say=say)
    if ready is not None:
        return ready
    entry = lake.model(model)
    host_folder(job_dir).mkdir(exist_ok=True)
    write_json(host_folder(job_dir) / WHERE_FILE, {"runner": runner.name, "image": runner.image})
    attempt = Attempt(entry, job_dir, timeout_seconds or entry.training.timeout_minutes * 60.0, say)
    settings = lake.settings
    with CurveStream(job_dir, settings.tracking_uri, mlflow_run_of(job_dir), say, login=mlflow_login(settings)):
        ended = runner.run(attempt)
    check_contained(job_dir)
    return _checked_end(attempt, ended)


def mlflow_run_of(job_dir: Path) -> str | None:
    """The MLflow run a job's curves belong to, if there is one yet."""
    run_id = (read_job(job_dir).get("mlflow") or {}).get("run_id")
    return str(run_id) if run_id else None


def _finished(job_dir: Path, identity: str | None = None) -> bool:
    try:
        check_contained(job_dir)
        manifest = read_manifest(job_dir)
        if manifest.get("identity") != (identity or read_job(job_dir)["identity"]):
            return False
        verify_files(job_dir, manifest["artifacts"])
    except (BadManifest, ArtifactMismatch, BadJob, JobChanged, UnsafeFile):
        return False
    return True


def _checked_end(attempt: Attempt, ended: Ended) -> Path:
    """The manifest of a trainer that ended well.

    Raises:
        TrainingFailed: it did not end well; the text says why and what to do, with its last lines.
        TrainingInterrupted: it was killed from outside, neither for memory nor for time.
    """
    job_dir = attempt.job_dir
    if ended.code == 0 and not ended.overdue and _finished(job_dir):
        return job_dir / MANIFEST_FILE
    reason = exit_sentence(ended.code)
    if ended.overdue:
        reason = (
            f"it ran longer than {attempt.timeout_seconds:g} s and was killed; raise `training.timeout_minutes`, or"
            " train less"
        )
    elif ended.out_of_memory:
        reason = "memory ran out (exit code 137); raise `training.memory_gb`, or train on fewer nights"
    text = "\n".join(f"    {line}" for line in ended.last_lines[-LAST_LINES:])
    killed = not ended.overdue and not ended.out_of_memory and ended.code in _PASSING
    raise (TrainingInterrupted if killed else TrainingFailed)(
        f"training {attempt.entry.name} in {job_dir} did not finish: {reason}.\n"
        f"  Its last lines ({host_folder(job_dir) / LOG_FILE}):\n{text}\n"
        "  Clear this task to try again; it resumes from its last checkpoint, if there is one."
    )


def exit_sentence(code: int) -> str:
    """What an exit code of a trainer, or of the container around it, means."""
    if code > 128:
        code = 128 - code  # as shells and container engines report a signal
    match code:
        case 0:
            return "it ended well but wrote no manifest"
        case _ if code == REFUSED:
            return "it refused; its last line says why"
        case _ if code == TRANSIENT:
            return "it met what may pass by itself; its last line says what"
        case _ if code == DISK_FULL:
            return "its disk is full; free space where the job folder lies"
        case _ if code == -signal.SIGKILL:
            return (
                "it was killed (exit code 137): from outside, or because the machine's memory ran out; lower what runs"
                " beside it, or train on fewer nights"
            )
        case _ if code in (-signal.SIGTERM, 128 - TERMINATED):
            return "it was ended from outside (SIGTERM)"
        case _ if code < 0:
            return f"signal {signal.Signals(-code).name if -code in set(signal.Signals) else -code} ended it"
        case _:
            return f"it failed with exit code {code}"

"""Run a prepared training job where the profile says: as a process of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from config.errors import NightfleetError
from config.settings import ROOT, process_environment
from lake.artifact import ArtifactMismatch, verify_files
from lake.lake import Lake
from serving.predictors import MANIFEST_FILE, BadManifest, read_manifest
from training.__main__ import REFUSED, TERMINATED
from training.job_file import read_job

LOG_FILE = "training.log"
_LAST_LINES = 15
_GRACE_SECONDS = 5.0
# What a trainer needs of the outside: programs and libraries, where GPUs are, certificates; and no secret.
_INHERITED = ("PATH", "HOME", "TMPDIR", "LANG", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


class TrainingFailed(NightfleetError):
    """A training job ended without a manifest."""


class RunnerUnavailable(NightfleetError):
    """The runner that is asked for cannot be used here."""


def run_job(lake: Lake, model: str, job_dir: Path, *, say: Callable[[str], None] | None = None, timeout_seconds: float | None = None) -> Path:
    """Train a prepared job and wait for it; a job that has finished already is not run again.

    Args:
        say: takes each line the trainer writes, as it comes; by default they are printed. All are kept in `training.log`.
        timeout_seconds: by default the catalog's `training.timeout_minutes`.
    Returns:
        Path of the manifest.
    Raises:
        RunnerUnavailable: the catalog or profile asks for a runner that there is not.
        TrainingFailed: it refused, failed, was killed or ran out of time; there is no manifest, and a retry may begin anew.
    """
    say = say or (lambda line: print(line, flush=True))
    entry = lake.model(model)
    runner = entry.training.runner or lake.settings.runner
    if runner == "docker":
        raise RunnerUnavailable(
            f"the runner docker is asked for ({'training.runner of ' + model if entry.training.runner else 'NIGHTFLEET_RUNNER'}), which is not available yet. "
            "Set it to process: the same command, as a process of this machine."
        )
    if _finished(job_dir):
        say(f"{model}: {job_dir.name} is trained already")
        return job_dir / MANIFEST_FILE
    if runner == "auto":
        say("runner auto: there is no container runner yet, so the job runs as a process of this machine")
    return _run_process(model, job_dir, lake.settings.tracking_uri, say, timeout_seconds or entry.training.timeout_minutes * 60.0)


def _finished(job_dir: Path) -> bool:
    try:
        manifest = read_manifest(job_dir)
        verify_files(job_dir, manifest["artifacts"])
    except (BadManifest, ArtifactMismatch):
        return False
    return bool(manifest.get("identity") == read_job(job_dir)["identity"])


def _run_process(model: str, job_dir: Path, tracking_uri: str, say: Callable[[str], None], timeout_seconds: float) -> Path:
    environment = process_environment(_INHERITED) | {
        "PYTHONUNBUFFERED": "1",
        "PYTHONHASHSEED": "0",
        "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads sleep: the scheduler and the other tasks share these cores
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "MLFLOW_TRACKING_URI": tracking_uri,
    }
    command = [sys.executable, "-m", "training", str(job_dir), "--parent-pid", str(os.getpid())]
    last: deque[str] = deque(maxlen=_LAST_LINES)
    overdue = threading.Event()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None

    def end_overdue() -> None:
        overdue.set()
        _kill_group(process)

    timer = threading.Timer(timeout_seconds, end_overdue)
    timer.daemon = True
    timer.start()
    try:
        with (job_dir / LOG_FILE).open("w", encoding="utf-8") as kept:
            for line in process.stdout:
                kept.write(line)
                last.append(line.rstrip("\n"))
                say(line.rstrip("\n"))
        code = process.wait()
    finally:
        timer.cancel()
        _kill_group(process)  # also when this process is interrupted: no training stays behind
    if overdue.is_set():
        code = -signal.SIGKILL
    if code == 0 and (job_dir / MANIFEST_FILE).is_file():
        return job_dir / MANIFEST_FILE
    reason = exit_sentence(code)
    if overdue.is_set():
        reason = f"it ran longer than {timeout_seconds:g} s and was killed; raise `training.timeout_minutes`, or train less"
    text = "\n".join(f"    {line}" for line in last)
    raise TrainingFailed(
        f"training {model} in {job_dir} did not finish: {reason}.\n  Its last lines ({job_dir / LOG_FILE}):\n{text}\n  Clear this task to try again."
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
        case _ if code == -signal.SIGKILL:
            return "it was killed (exit code 137), most likely because memory ran out; raise `training.memory_gb`, or train on fewer nights"
        case _ if code in (-signal.SIGTERM, 128 - TERMINATED):
            return "it was ended from outside (SIGTERM)"
        case _ if code < 0:
            return f"signal {signal.Signals(-code).name if -code in set(signal.Signals) else -code} ended it"
        case _:
            return f"it failed with exit code {code}"


def _kill_group(process: subprocess.Popen[str]) -> None:
    """End the trainer and whatever it started: SIGTERM, then SIGKILL."""
    for sent, wait_seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, _GRACE_SECONDS)):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            return
        except PermissionError:
            return  # the group's number belongs to somebody else by now: ours is gone
        try:
            process.wait(wait_seconds)
        except subprocess.TimeoutExpired:
            continue

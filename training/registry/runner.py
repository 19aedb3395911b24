"""Run a prepared training job: choose where, take what is finished already, and as a process of this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from config.errors import NightfleetError, TransientError
from config.settings import ROOT, process_environment
from lake.artifact import ArtifactMismatch, verify_files
from lake.lake import Lake
from serving.predictors import MANIFEST_FILE, BadManifest, read_manifest
from serving.predictors.contract import read_json, write_json
from training.__main__ import DISK_FULL, REFUSED, TERMINATED, TRANSIENT
from training.checkpoints import CHECKPOINTS_FOLDER
from training.job_file import JOB_FILE, BadJob, JobChanged, read_job
from training.registry.containers import EngineUnavailable, ImageMissing, Limits, engine, find_image, limits
from training.registry.curves import CurveStream

LOG_FILE = "training.log"
WHERE_FILE = "where.json"
# Worth trying again: a signal, as a process and as a container reports it, and what the trainer says may pass.
_PASSING = {
    sign * number + base for number in (signal.SIGKILL, signal.SIGTERM) for sign, base in ((-1, 0), (1, 128))
} | {TRANSIENT}
_LAST_LINES = 15
_GRACE_SECONDS = 5.0
# What a trainer needs of the outside: programs and libraries, where GPUs are, certificates; and no secret.
_INHERITED = (
    "PATH",
    "HOME",
    "TMPDIR",
    "LANG",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
)


class TrainingFailed(NightfleetError):
    """A training job ended without a manifest."""


class TrainingInterrupted(TransientError):
    """A training was ended from outside; a retry resumes from its checkpoint."""


@dataclass(frozen=True)
class Chosen:
    """Where a job runs: in a container of `image` within `limits`, or, both None, as a process of this machine."""

    image: str | None = None
    limits: Limits | None = None

    def note(self, job_dir: Path) -> None:
        """Leave word of it beside the job."""
        write_json(job_dir / WHERE_FILE, {"runner": "docker" if self.image else "process", "image": self.image})


def where_trained(job_dir: Path) -> str:
    """`in a container` or `as a process`, as the last one who trained the job noted; else `by an equal job`."""
    path = job_dir / WHERE_FILE
    if not path.is_file():
        return "by an equal job"
    return "in a container" if read_json(path)["runner"] == "docker" else "as a process"


def choose_runner(lake: Lake, model: str, say: Callable[[str], None]) -> Chosen:
    """The catalog's runner for this model, else the profile's; `auto` says why it falls back to a process.

    Raises:
        EngineUnavailable, ImageMissing, GpuUnavailable: the runner is `docker`, and cannot be used.
        GpuUnavailable: a number of GPUs is demanded that the engine cannot give, whatever the runner but `process`.
    """
    entry = lake.model(model)
    runner = entry.training.runner or lake.settings.runner
    if runner == "process":
        return Chosen()
    try:
        client = engine()
        caps = limits(client, entry, lake.settings)
        return Chosen(find_image(client, lake.settings, gpus=caps.gpus > 0), caps)
    except (EngineUnavailable, ImageMissing) as error:
        if runner == "docker":
            raise
        say(f"runner auto: training as a process of this machine, because {error}")
        return Chosen()


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
            if path.name not in {JOB_FILE, MANIFEST_FILE, WHERE_FILE}:
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
    say: Callable[[str], None] | None = None,
    timeout_seconds: float | None = None,
    force: bool = False,
) -> Path:
    """Train a prepared job as a process of this machine and wait for it; one that has finished already is not run
    again.

    Args:
        say: takes each line the trainer writes, as it comes; by default they are printed. All are kept in
            `training.log`.
        timeout_seconds: by default the catalog's `training.timeout_minutes`.
        force: train even where an equal job has finished.
    Returns:
        Path of the manifest.
    Raises:
        TrainingFailed: it refused, failed, was killed or ran out of time; there is no manifest, and a retry resumes
            from its checkpoint.
    """
    say = say or (lambda line: print(line, flush=True))
    ready = ready_manifest(lake, model, job_dir, force=force, say=say)
    if ready is not None:
        return ready
    entry = lake.model(model)
    Chosen().note(job_dir)
    with CurveStream(job_dir, lake.settings.tracking_uri, mlflow_run_of(job_dir), say):
        return _run_process(
            model, job_dir, say, timeout_seconds or entry.training.timeout_minutes * 60.0, entry.training.workers
        )


def mlflow_run_of(job_dir: Path) -> str | None:
    """The MLflow run a job's curves belong to, if there is one yet."""
    run_id = (read_job(job_dir).get("mlflow") or {}).get("run_id")
    return str(run_id) if run_id else None


def _finished(job_dir: Path, identity: str | None = None) -> bool:
    try:
        manifest = read_manifest(job_dir)
        if manifest.get("identity") != (identity or read_job(job_dir)["identity"]):
            return False
        verify_files(job_dir, manifest["artifacts"])
    except (BadManifest, ArtifactMismatch, BadJob, JobChanged):
        return False
    return True


def _run_process(model: str, job_dir: Path, say: Callable[[str], None], timeout_seconds: float, workers: int) -> Path:
    environment = process_environment(_INHERITED) | {
        "PYTHONUNBUFFERED": "1",
        "PYTHONHASHSEED": "0",
        "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads sleep: the scheduler and the other tasks share these cores
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, "-m", "training", str(job_dir), "--parent-pid", str(os.getpid())]
    if workers > 1:
        command += ["--workers", ",".join(f"127.0.0.1:{port}" for port in _free_ports(workers))]
    started: list[subprocess.Popen[str]] = []

    def start(arguments: list[str], output: int | IO[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            arguments, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    last: deque[str] = deque(maxlen=_LAST_LINES)
    overdue = threading.Event()

    def end_overdue() -> None:
        overdue.set()
        for process in started:
            _kill_group(process)

    timer = threading.Timer(timeout_seconds, end_overdue)
    timer.daemon = True
    timer.start()
    try:
        with ExitStack() as files:
            for index in range(1, workers):
                file = files.enter_context((job_dir / f"training.worker-{index}.log").open("w", encoding="utf-8"))
                start([*command, "--worker-index", str(index)], file)
            kept = files.enter_context((job_dir / LOG_FILE).open("w", encoding="utf-8"))
            chief = start(command, subprocess.PIPE)
            assert chief.stdout is not None
            for line in chief.stdout:
                kept.write(line)
                last.append(line.rstrip("\n"))
                say(line.rstrip("\n"))
            code = chief.wait()
    finally:
        timer.cancel()
        for process in started:
            _kill_group(process)  # also when this process is interrupted: no training stays behind
    if overdue.is_set():
        code = -signal.SIGKILL
    return checked_end(
        model, job_dir, code, overdue_after=timeout_seconds if overdue.is_set() else None, last_lines=list(last)
    )


def checked_end(
    model: str,
    job_dir: Path,
    code: int,
    *,
    overdue_after: float | None,
    last_lines: Sequence[str],
    out_of_memory: bool = False,
) -> Path:
    """The manifest of a trainer that ended well.

    Args:
        code: as a process or a container reports it.
        overdue_after: seconds after which it was killed, None where it was not.
        out_of_memory: the kernel killed it for memory, as seen and not guessed.
    Raises:
        TrainingFailed: it did not end well; the text says why and what to do, with its last lines.
        TrainingInterrupted: it was killed from outside, neither for memory nor for time; trying again is safe, and
            done.
    """
    if code == 0 and overdue_after is None and _finished(job_dir):
        return job_dir / MANIFEST_FILE
    reason = exit_sentence(code)
    if overdue_after is not None:
        reason = (
            f"it ran longer than {overdue_after:g} s and was killed; raise `training.timeout_minutes`, or train less"
        )
    elif out_of_memory:
        reason = "memory ran out (exit code 137); raise `training.memory_gb`, or train on fewer nights"
    text = "\n".join(f"    {line}" for line in last_lines[-_LAST_LINES:])
    killed = overdue_after is None and not out_of_memory and code in _PASSING
    raise (TrainingInterrupted if killed else TrainingFailed)(
        f"training {model} in {job_dir} did not finish: {reason}.\n  Its last lines ({job_dir / LOG_FILE}):\n{text}\n"
        "  Clear this task to try again; it resumes from its last checkpoint, if there is one."
    )


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on right now."""
    with ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in sockets]


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

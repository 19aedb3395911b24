"""Trains a job as a process of this machine, or as several, one a data-parallel worker."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import IO

from config.settings import ROOT, process_environment
from training.registry.attempt import LAST_LINES, LOG_FILE, Attempt, Ended, host_folder

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


class ProcessRunner:
    """A `Runner`: the trainer is a child that dies with this process, in a session of its own, without our secrets."""

    name = "process"
    image = None

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def prepare(self, say: Callable[[str], None]) -> None:
        """Nothing is left of an earlier try: a trainer ends with the process that started it."""

    def cancel(self) -> None:
        """End the trainers and whatever they started."""
        for process in self._started:
            _kill_group(process)

    def run(self, attempt: Attempt) -> Ended:
        """Train and wait; see `Runner.run`."""
        workers = attempt.entry.training.workers
        command = [sys.executable, "-m", "training", str(attempt.job_dir), "--parent-pid", str(os.getpid())]
        if workers > 1:
            command += ["--workers", ",".join(f"127.0.0.1:{port}" for port in _free_ports(workers))]
        overdue = threading.Event()

        def end_overdue() -> None:
            overdue.set()
            self.cancel()

        timer = threading.Timer(attempt.timeout_seconds, end_overdue)
        timer.daemon = True
        timer.start()
        last: deque[str] = deque(maxlen=LAST_LINES)
        try:
            with ExitStack() as files:
                for index in range(1, workers):
                    log = host_folder(attempt.job_dir) / f"training.worker-{index}.log"
                    file = files.enter_context(log.open("w", encoding="utf-8"))
                    self._start([*command, "--worker-index", str(index)], file)
                kept = files.enter_context((host_folder(attempt.job_dir) / LOG_FILE).open("w", encoding="utf-8"))
                chief = self._start(command, subprocess.PIPE)
                assert chief.stdout is not None
                for line in chief.stdout:
                    kept.write(line)
                    last.append(line.rstrip("\n"))
                    attempt.say(line.rstrip("\n"))
                code = chief.wait()
        finally:
            timer.cancel()
            self.cancel()  # also when this process is interrupted: no training stays behind
        return Ended(-signal.SIGKILL if overdue.is_set() else code, list(last), overdue=overdue.is_set())

    def _start(self, command: list[str], output: int | IO[str]) -> subprocess.Popen[str]:
        environment = process_environment(_INHERITED) | {
            "PYTHONUNBUFFERED": "1",
            "PYTHONHASHSEED": "0",
            "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads sleep: the scheduler and the other tasks share these cores
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self._started.append(process)
        return process


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on right now."""
    with ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in sockets]


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

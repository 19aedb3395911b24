"""Starts, watches and ends the processes of an installation: one process group per component."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

from config.errors import NightfleetError

_GRACE_SECONDS = 8.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """In the child, before it becomes the component: ask the kernel for a SIGTERM should the supervisor be killed
    outright.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class ComponentDied(NightfleetError):
    """A component ended by itself, or never became healthy."""


class AlreadyRunning(NightfleetError):
    """Another process supervises this installation, or what it started has not ended yet."""


@contextmanager
def sole_supervisor(home: Path) -> Iterator[int]:
    """Supervise the installation in that folder alone; yields the lock's descriptor, for the components to inherit.

    The lock lasts until the last who has it open has ended: components that outlive a killed supervisor keep the next
    one out, so that there are never two schedulers.

    Raises:
        AlreadyRunning: there is another.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning(
                f"another `run` or `up` is running in {home}, or was killed and what it started is still ending. Stop "
                "it (Ctrl-C in its terminal), or wait half a minute; or set NIGHTFLEET_HOME to another folder."
            ) from error
        yield lock.fileno()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether nobody listens on that TCP port of the loopback interface."""
    with socket.socket() as probe:
        # As servers do: connections of the last start that still linger are no listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@dataclass
class Component:
    """One process with its log file."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes]
    log_path: Path


@dataclass
class Supervisor:
    """Owns components; leaving the `with` block ends every one of them, whatever happened inside.

    Attributes:
        inherited: descriptors that every component keeps open.
    """

    log_folder: Path
    environment: Mapping[str, str]
    inherited: tuple[int, ...] = ()
    components: list[Component] = field(default_factory=list)
    _files: list[IO[bytes]] = field(default_factory=list)

    def __enter__(self) -> Supervisor:
        self.log_folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, name: str, command: list[str], extra_environment: Mapping[str, str] | None = None) -> Component:
        """Start a component in a process group of its own; its output goes to `<log_folder>/<name>.log`."""
        path = self.log_folder / f"{name}.log"
        file = path.open("ab")
        self._files.append(file)
        process = subprocess.Popen(  # our own fixed commands, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**self.environment, **(extra_environment or {})},
            start_new_session=True,
            pass_fds=self.inherited,
            preexec_fn=_end_with_parent if _LIBC else None,
        )
        component = Component(name, command, process, path)
        self.components.append(component)
        return component

    def check(self) -> None:
        """Raise when a component has ended.

        Raises:
            ComponentDied: names it, its exit code, the end of its log.
        """
        for component in self.components:
            code = component.process.poll()
            if code is not None:
                tail = component.log_path.read_text(errors="replace").splitlines()[-15:]
                raise ComponentDied(
                    f"{component.name} ended with exit code {code}. Its log is {component.log_path}; the last lines:\n"
                    "  " + "\n  ".join(tail)
                )

    def logged_bytes(self, names: Collection[str]) -> int:
        """Bytes in the logs of those components."""
        return sum(c.log_path.stat().st_size for c in self.components if c.name in names)

    def stop(self) -> None:
        """End every process group: SIGTERM, then SIGKILL to what is left after a few seconds. A second Ctrl-C does not
        cut it short.
        """
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._stop()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        # The newest first: the scheduler goes before the API its workers report to.
        for component in reversed(self.components):
            _signal_group(component, signal.SIGTERM)
        self._wait_ended(_GRACE_SECONDS)
        for component in self.components:
            _signal_group(component, signal.SIGKILL)
        self._wait_ended(_GRACE_SECONDS)
        for file in self._files:
            file.close()
        self.components.clear()
        self._files.clear()

    def _wait_ended(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while any(_group_alive(c) for c in self.components) and time.monotonic() < deadline:
            time.sleep(0.05)


def _signal_group(component: Component, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # the whole group has ended already
        os.killpg(component.process.pid, number)
    # Workers of the scheduler may have made groups of their own: they are found by their session.
    for pid in _session_members(component.process.pid):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _session_members(session: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            members.append(int(entry.name))
    return members


def _group_alive(component: Component) -> bool:
    return component.process.poll() is None or bool(_session_members(component.process.pid))


def python_tool(name: str) -> str:
    """Path of a console script installed beside this interpreter."""
    return str(Path(sys.executable).parent / name)

"""Real runs of the whole chain: real Airflow, real MLflow, as a user starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from config.catalog.load import load_catalog
from config.settings import ROOT, Settings
from lake.lake import Lake
from tests import toy

_RUN_SECONDS = 1500


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    output: str


@dataclass(frozen=True)
class User:
    """Somebody with a clone: runs the project's commands on one installation."""

    settings: Settings

    @property
    def lake(self) -> Lake:
        return Lake(self.settings, load_catalog(self.settings))

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | toy.environment(self.settings)

    def command(self, *arguments: str, seconds: float = _RUN_SECONDS) -> Finished:
        done = subprocess.run(
            [sys.executable, "-m", "cli", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        return Finished(done.returncode, done.stdout + done.stderr)

    def start(self, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "cli", *arguments],
                cwd=ROOT,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def processes(self) -> list[str]:
        """Every living process of this installation, by the home in its environment."""
        marker = f"NIGHTFLEET_HOME={self.settings.home}".encode()
        living = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if (
                    marker in (entry / "environ").read_bytes()
                    and (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
                ):
                    living.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120])
            except OSError:
                continue
        return living


def wait_for(what: str, log: Path, process: subprocess.Popen[bytes], seconds: float = 300) -> None:
    """Until `what` stands in the log of a living process."""
    deadline = time.monotonic() + seconds
    while what not in log.read_text():
        assert process.poll() is None, f"ended early:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"no {what!r} after {seconds} s:\n{log.read_text()}"
        time.sleep(0.2)


def interrupt(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGINT) -> int:
    process.send_signal(number)
    return process.wait(timeout=60)


def versions(lake: Lake) -> Mapping[str, int]:
    """Delta version of every table of a lake: equal maps mean that nothing was committed in between."""
    logs = sorted(lake.settings.lake.rglob("_delta_log"))
    return {str(log.parent.relative_to(lake.settings.lake)): len(list(log.glob("*.json"))) for log in logs}


@pytest.fixture(scope="session")
def real_user(tmp_path_factory: pytest.TempPathFactory) -> User:
    """An empty installation of the project's own catalog."""
    return User(Settings(home=tmp_path_factory.mktemp("real") / "var"))

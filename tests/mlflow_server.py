"""A real MLflow server for tests, as the product starts it: with a login."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from cli.installation import mlflow_command, mlflow_environment
from config.settings import Settings


@dataclass
class MlflowServer:
    """A server on a free port of this machine."""

    uri: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """End it and its workers at once, as a crash would."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait(10)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_mlflow(folder: Path, port: int | None = None) -> MlflowServer:
    """Start a server whose state lies in `folder`, and wait until it is healthy."""
    port = port or free_port()
    settings = Settings(home=folder)
    # What a run in this process logged in with elsewhere is none of the server's.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING_")}
    environment = {**inherited, **mlflow_environment(settings), "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(
            mlflow_command(settings, port),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    server = MlflowServer(f"http://127.0.0.1:{port}", process)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{server.uri}/health", timeout=1):
                return server
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)  # between two questions, not instead of one
    server.kill()
    raise RuntimeError(f"the MLflow server did not become healthy:\n{(folder / 'mlflow.log').read_text()[-2000:]}")

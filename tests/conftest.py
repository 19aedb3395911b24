"""Fixtures that tests of several packages share."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from config.settings import load_settings
from lake.lake import Lake
from tests import toy
from tests.mlflow_server import start_mlflow

pytest_plugins = ["tests.groups"]

# A slow machine is no finding: properties are about results, never about time.
settings.register_profile("nightfleet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("nightfleet")
# Models are signed and verified in nearly every test; an installation of its own makes its own key.
os.environ["MODEL_SIGNING_KEY"] = "the-tests'-own-key-which-signs-nothing-else"
os.environ.pop("MODEL_SIGNING_KEY_PREVIOUS", None)
os.environ["MLFLOW_PASSWORD"] = "the-tests'-own-password"


_BUILD_SECONDS = 1200.0


@pytest.fixture
def toy_lake(tmp_path: Path) -> Lake:
    """A lake with the catalog of `tests/toy.py`, still empty; `toy.toy_lake(folder, ...)` makes others."""
    return toy.toy_lake(tmp_path)


def missing_service(reason: str) -> None:
    """Skip the test, or fail it where `REQUIRE_SERVICES=1` promises that every service is installed."""
    if os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(f"{reason}, though REQUIRE_SERVICES=1. Install it (`.ci/run` does), or unset the variable to skip.")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """SQLAlchemy URL of a private, empty Postgres on a free loopback port; each test cleans up what it makes."""
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    folder_of = shutil.which("initdb")
    binaries = packaged[-1] if packaged else Path(folder_of).parent if folder_of else None
    if binaries is None:
        missing_service("Postgres is not installed (no initdb)")
    with tempfile.TemporaryDirectory(prefix="postgres-") as name, socket.socket() as probe:
        folder = Path(name)
        # Postgres refuses to run as root.
        owner = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        if owner:
            shutil.chown(folder, "postgres", "postgres")
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        data, log = str(folder / "data"), str(folder / "log")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"

        def call(*command: str) -> None:
            done = subprocess.run(
                [f"{binaries}/{command[0]}", *command[1:]],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
                **owner,
            )  # type: ignore[call-overload]
            assert done.returncode == 0, f"{' '.join(command)} failed: {done.stderr or done.stdout}"

        call("initdb", "-D", data, "-U", "test", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        # pg_ctl hands its output to the server, which outlives it: a pipe would never end.
        started = subprocess.run(
            [f"{binaries}/pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "start"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            check=False,
            **owner,
        )  # type: ignore[call-overload]
        assert started.returncode == 0, Path(log).read_text()
        try:
            yield f"postgresql+psycopg2://test@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


@pytest.fixture(scope="session")
def built_image() -> None:
    """Wait for a build of the training image that is under way beside the tests (`.ci/run`); there need be none."""
    status = os.environ.get("TRAINING_IMAGE_STATUS")
    deadline = time.monotonic() + _BUILD_SECONDS
    while status and not Path(status).exists():
        assert time.monotonic() < deadline, f"the training image was not built within {_BUILD_SECONDS:.0f} s"
        time.sleep(0.5)  # between two questions


@pytest.fixture(scope="session")
def docker_engine(built_image: None) -> Any:
    """A client of the Docker engine, on a machine where the training image of this code was built (`make images`)."""
    from training.registry.containers import EngineUnavailable, ImageMissing, engine, find_image

    try:
        client = engine()
        find_image(client, load_settings(), gpus=False)
    except (EngineUnavailable, ImageMissing) as error:
        missing_service(str(error))
    return client


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server that lives as long as the session."""
    server = start_mlflow(tmp_path_factory.mktemp("mlflow"))
    try:
        yield server.uri
    finally:
        server.kill()

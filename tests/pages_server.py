"""The pages' app without Airflow around it: one fixed person, for looking at pages and for timing them."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, Self
from urllib.error import URLError
from urllib.request import urlopen

from cli.processes import free_port
from config.settings import ROOT
from tests.generated_year import NOW

_START_SECONDS = 120.0


@dataclass(frozen=True)
class Person:
    """Whom the app believes to see."""

    name: str
    role: str

    def get_id(self) -> str:
        return self.name

    def get_name(self) -> str:
        return self.name


class _Morning(datetime):
    """A clock that stands still on the morning after the newest night: a page looks the same whenever it is looked
    at.
    """

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls.fromtimestamp(NOW.timestamp(), tz)


def make_app(home: Path, role: str) -> Any:
    """The plugin's app below `/nightfleet`; settings come from the environment, as in Airflow."""
    airflow_home = home / "airflow"
    airflow_home.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "AIRFLOW_HOME": str(airflow_home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{airflow_home}/airflow.db",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(64),
    }
    if str(ROOT / "plugins") not in sys.path:
        sys.path.insert(0, str(ROOT / "plugins"))
    import mlops_ui_app
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi import FastAPI
    from fastapi.responses import RedirectResponse

    from monitoring.pages.page import Viewer

    person = Person(role, role)
    # Who one is and what one may see is Airflow's to say; there is none here.
    mlops_ui_app.viewer_of = lambda user: Viewer(user.name, user.role)  # type: ignore[attr-defined]
    mlops_ui_app.datetime = _Morning  # type: ignore[attr-defined]
    mlops_ui_app.may_read = lambda user: lambda dag_id: True  # type: ignore[attr-defined]
    pages = mlops_ui_app.make_app()
    pages.dependency_overrides[get_user] = lambda: person
    app = FastAPI(docs_url=None, openapi_url=None)
    app.mount("/nightfleet", pages)
    app.add_api_route("/", lambda: RedirectResponse("/nightfleet/"), methods=["GET"])
    return app


def serve(home: Path, port: int, role: str) -> None:
    """Until interrupted."""
    import uvicorn

    uvicorn.run(make_app(home, role), host="127.0.0.1", port=port, log_level="warning", access_log=False)


@contextmanager
def serving(home: Path, role: str = "operator") -> Iterator[str]:
    """The address of the app in a process of its own."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    log = home.parent / f"pages-{port}.log"
    command = [sys.executable, "-m", "tests.generated_year", str(home), "--serve", str(port), "--role", role]
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + _START_SECONDS
    try:
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                urlopen(f"{address}/nightfleet/static/icon.svg", timeout=5).close()
                break
            except (URLError, OSError):
                time.sleep(0.1)  # between two questions
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)

"""What one installation needs to start: its secrets, ports, and the environment of Airflow and MLflow."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from cli.processes import Supervisor, free_port, is_free, python_tool
from config.catalog.load import Catalog
from config.errors import NightfleetError
from config.settings import MLFLOW_LOGIN, ROOT, Settings, mlflow_login
from lake.signature import KEY as MODEL_SIGNING_KEY

# How long a start may go on without a sign of life.
_START_SECONDS = 240.0
# Components by the part of Airflow's health that speaks for them.
_HEALTH = {"metadatabase": "api-server", "scheduler": "scheduler", "dag_processor": "dag-processor"}


class StartFailed(NightfleetError):
    """A component did not become healthy in time, or the metadata database could not be made."""


@dataclass(frozen=True)
class Installation:
    """Addresses and credentials of the embedded Airflow and MLflow."""

    settings: Settings
    airflow_port: int
    mlflow_port: int
    admin_password: str

    @property
    def airflow_url(self) -> str:
        """Address of the UI and the API."""
        return f"http://127.0.0.1:{self.airflow_port}"

    @property
    def pages_url(self) -> str:
        """Address of the landing page of analyst and operator, inside the UI."""
        return f"{self.airflow_url}/plugin/models"

    @property
    def mlflow_url(self) -> str:
        """Address of the tracking server."""
        return f"http://127.0.0.1:{self.mlflow_port}"


def _secret_file(path: Path, length_bytes: int) -> str:
    """The secret in that file, made on first use with mode 600."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(length_bytes))
    return path.read_text()


def _private_database(path: Path) -> None:
    """Let nobody else read a SQLite database. Where it is not there yet it is made here, empty: SQLite itself asks the
    umask, and gives the files beside it the mode of this one.

    One that is there is never opened: the operating system drops every lock that this process has on a file when any of
    its descriptors is closed, and SQLite's connections would go on without theirs.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        with suppress(FileExistsError):  # somebody else's connection has just made it
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o600))
    path.chmod(0o600)


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def prepare(settings: Settings) -> Installation:
    """Make folders, secrets and the login file; choose free ports."""
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.home.chmod(0o700)
    _private_database(settings.home / "airflow" / "airflow.db")
    _private_database(settings.home / "mlflow" / "mlflow.db")
    _private_database(settings.home / "feast" / "online.db")
    if not settings.sql_url:
        _private_database(settings.home / "nightfleet.db")
    if not settings.feast_registry_url:
        _private_database(settings.home / "feast" / "registry.db")
    folder = settings.home / "secrets"
    admin = _secret_file(folder / "admin_password", 12)
    operator = _secret_file(folder / "operator_password", 12)
    viewer = _secret_file(folder / "viewer_password", 12)
    _secret_file(folder / MODEL_SIGNING_KEY, 48)
    _secret_file(folder / MLFLOW_LOGIN, 24)
    _secret_file(folder / "metrics_token", 48)  # what Prometheus shows at /nightfleet/metrics
    _write_private(folder / "airflow_logins.json", json.dumps({"admin": admin, "operator": operator, "viewer": viewer}))
    airflow_port, mlflow_port = _ports(settings.home / "ports.json")
    return Installation(settings, airflow_port, mlflow_port, admin)


def _ports(path: Path) -> tuple[int, int]:
    """Ports of Airflow and MLflow: those of the last start where they are free, so that a link outlives a restart."""
    ports: list[int] = json.loads(path.read_text()) if path.is_file() else []
    if len(ports) != 2 or not all(is_free(port) for port in ports):
        ports = [free_port(), free_port()]
        path.write_text(json.dumps(ports))
    return ports[0], ports[1]


def airflow_environment(installation: Installation) -> dict[str, str]:
    """Environment of every Airflow component and of its tasks."""
    from base64 import urlsafe_b64encode
    from hashlib import sha256

    settings = installation.settings
    folder = settings.home / "secrets"
    home = settings.home / "airflow"
    home.mkdir(parents=True, exist_ok=True)
    fernet = urlsafe_b64encode(sha256(_secret_file(folder / "fernet_seed", 48).encode()).digest()).decode()
    database = f"sqlite:///{home / 'airflow.db'}?timeout=30"
    # What a user exported for another Airflow would otherwise leak into this one; PYTHONDONTWRITEBYTECODE triples
    # import times.
    inherited = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("AIRFLOW__", "AIRFLOW_", "MLFLOW_TRACKING_", "MLFLOW_AUTH_"))
        and k != "PYTHONDONTWRITEBYTECODE"
    }
    return inherited | {
        "PATH": f"{Path(python_tool('airflow')).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(ROOT),
        "NIGHTFLEET_HOME": str(settings.home),
        "NIGHTFLEET_MLFLOW_TRACKING_URI": installation.mlflow_url,
        "NIGHTFLEET_MLFLOW_USER": settings.mlflow_user,
        "NIGHTFLEET_APPROVERS": ",".join(settings.approvers) or "admin",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "mlops_executor.WarmLocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "4",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__FERNET_KEY": fernet,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{installation.airflow_url}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:ADMIN,operator:OP,viewer:VIEWER",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(folder / "airflow_logins.json"),
        "AIRFLOW__API_AUTH__JWT_SECRET": _secret_file(folder / "jwt_secret", 64),
        "AIRFLOW__API__SECRET_KEY": _secret_file(folder / "api_secret_key", 64),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(installation.airflow_port),
        "AIRFLOW__API__BASE_URL": installation.airflow_url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "20",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "60",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "60",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        # A changed file is parsed at once, an unchanged one now and then for the catalog that it reads.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "120",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "GX_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "FEAST_USAGE": "False",
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait starve each other where cores are few
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYTHONUNBUFFERED": "1",
    }


def mlflow_command(settings: Settings, port: int) -> list[str]:
    """The command that starts MLflow's server on the loopback interface, with its own login."""
    home = settings.home / "mlflow"
    (home / "artifacts").mkdir(parents=True, exist_ok=True)
    options = {
        "--app-name": "basic-auth",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
        "--backend-store-uri": f"sqlite:///{home / 'mlflow.db'}",
        "--artifacts-destination": str(home / "artifacts"),
    }
    return [python_tool("mlflow"), "server", *(word for option in options.items() for word in option)]


def mlflow_environment(settings: Settings) -> dict[str, str]:
    """Environment in which MLflow's server asks for a login: its accounts lie in a database of their own."""
    home = settings.home / "mlflow"
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)  # whoever writes there needs no login
    database = str(home / "accounts.db").replace("%", "%%")  # the file knows interpolation
    _write_private(
        home / "auth.ini",
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = sqlite:///{database}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        # Else every request hashes the password once more, and a training streams for hours.
        "auth_cache_ttl_seconds = 60\n",
    )
    user, password = mlflow_login(settings) or ("", "")
    return {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_AUTH_CONFIG_PATH": str(home / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": user,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": _secret_file(settings.home / "secrets" / "mlflow_session_key", 48),
    }


def start(installation: Installation, supervisor: Supervisor, catalog: Catalog, *, for_people: bool = False) -> None:
    """Start MLflow and the components of Airflow that the catalog needs, and wait until all are healthy.

    Args:
        for_people: Airflow's home is looked at, which shows a triggerer that nothing needs as one that is missing.
    Raises:
        StartFailed: the metadata database could not be migrated, or a component is not healthy and shows no progress.
        ComponentDied: a component ended.
    """
    settings = installation.settings
    supervisor.start("mlflow", mlflow_command(settings, installation.mlflow_port), mlflow_environment(settings))
    (settings.home / "mlflow.uri").write_text(installation.mlflow_url)
    migrated = subprocess.run(
        [python_tool("airflow"), "db", "migrate"],
        env=dict(supervisor.environment),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if migrated.returncode:
        raise StartFailed(
            f"`airflow db migrate` ended with exit code {migrated.returncode}:\n{migrated.stderr[-2000:]}"
        )
    airflow = python_tool("airflow")
    supervisor.start("api-server", [airflow, "api-server"])
    supervisor.start("dag-processor", [airflow, "dag-processor"])
    # Live data sets wait, deferred, for their hour.
    if for_people or any(dataset.replay is None and dataset.ready_after for dataset in catalog.datasets):
        supervisor.start("triggerer", [airflow, "triggerer"])
    supervisor.start("scheduler", [airflow, "scheduler"])
    _wait_healthy(installation, supervisor)


def _wait_healthy(installation: Installation, supervisor: Supervisor) -> None:
    """Wait as long as something gets on: a part becomes healthy, or a component that is not yet writes to its log. A
    loaded machine may take minutes to import what a start needs.
    """
    progress: tuple[str, int] | None = None
    deadline = time.monotonic() + _START_SECONDS
    while True:
        supervisor.check()
        waiting = _not_healthy(installation)
        if not waiting:
            _check_login(installation)
            return
        seen = (", ".join(sorted(waiting)), supervisor.logged_bytes(waiting))
        if seen != progress:
            progress, deadline = seen, time.monotonic() + _START_SECONDS
        if time.monotonic() > deadline:
            raise StartFailed(
                f"{seen[0]}: not healthy, and nothing was logged for {_START_SECONDS:.0f} s. The logs are in "
                f"{supervisor.log_folder}. Read the last lines of theirs, then start again."
            )
        time.sleep(0.2)


def _not_healthy(installation: Installation) -> set[str]:
    """The components that do not say yet that they are healthy."""
    waiting = set()
    try:
        health = httpx.get(f"{installation.airflow_url}/api/v2/monitor/health", timeout=5).json()
        for part, component in _HEALTH.items():
            if health[part]["status"] != "healthy":
                waiting.add(component)
    except (httpx.HTTPError, ValueError, KeyError):
        waiting = set(_HEALTH.values())
    try:
        if httpx.get(f"{installation.mlflow_url}/health", timeout=5).status_code != 200:
            waiting.add("mlflow")
    except httpx.HTTPError:
        waiting.add("mlflow")
    return waiting


def _check_login(installation: Installation) -> None:
    """MLflow keeps the password that it was first started with."""
    url = f"{installation.mlflow_url}/api/2.0/mlflow/experiments/search?max_results=1"
    answer = httpx.get(url, auth=mlflow_login(installation.settings), timeout=30)
    if answer.status_code == 401:
        home = installation.settings.home
        raise StartFailed(
            f"MLflow refuses the login of {installation.settings.mlflow_user} with "
            f"{home / 'secrets' / MLFLOW_LOGIN}: its accounts were made with another one.\n"
            f"  Restore that file, or remove {home / 'mlflow' / 'accounts.db'}: accounts are made anew, runs and "
            "models stay."
        )
    answer.raise_for_status()

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from cli import installation
from cli.installation import airflow_environment, prepare
from cli.processes import AlreadyRunning, ComponentDied, Supervisor, free_port, sole_supervisor
from config.settings import ROOT, Settings, load_settings


def _wait_line(path: Path, supervisor: Supervisor) -> str:
    while not (text := path.read_text()):
        supervisor.check()
    return text


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_component_that_ends_is_named_with_its_last_words(tmp_path: Path) -> None:
    with Supervisor(tmp_path, os.environ) as supervisor:
        component = supervisor.start("fragile", [sys.executable, "-c", "print('no database'); raise SystemExit(3)"])
        component.process.wait()
        with pytest.raises(ComponentDied, match=r"fragile ended with exit code 3(?s:.*)no database"):
            supervisor.check()


def test_stopping_ends_whole_families_even_those_that_ignore_it(tmp_path: Path) -> None:
    stubborn = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    child = stubborn + "print('up', flush=True); time.sleep(600)"
    parent = (
        stubborn
        + f"p = subprocess.Popen([sys.executable, '-c', {child!r}], process_group=0); print(p.pid, flush=True);"
        " time.sleep(600)"
    )
    with Supervisor(tmp_path, os.environ) as supervisor:
        import cli.processes

        grace, cli.processes._GRACE_SECONDS = cli.processes._GRACE_SECONDS, 0.5
        component = supervisor.start("family", [sys.executable, "-c", parent])
        while "up" not in _wait_line(component.log_path, supervisor):
            supervisor.check()
        grandchild = int(next(line for line in component.log_path.read_text().splitlines() if line.isdigit()))
        assert _alive(grandchild)
    cli.processes._GRACE_SECONDS = grace
    assert not _alive(grandchild)
    assert not _alive(component.process.pid)


def test_components_end_when_their_supervisor_is_killed_outright(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from cli.processes import Supervisor\n"
        f"with Supervisor(Path({str(tmp_path)!r}), os.environ) as s:\n"
        "    print(s.start('sleeper', ['sleep', '600']).process.pid, flush=True); time.sleep(600)"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert supervisor.stdout is not None
    pid = int(supervisor.stdout.readline())
    assert _alive(pid)
    supervisor.kill()
    supervisor.wait()
    deadline = time.monotonic() + 20
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(pid)


def test_nobody_supervises_beside_another_or_what_a_killed_one_left(tmp_path: Path) -> None:
    code = (
        "import os, time; from pathlib import Path; from cli.processes import Supervisor, sole_supervisor\n"
        f"home = Path({str(tmp_path)!r}); ignoring = 'trap \"\" TERM; echo up; read line < {tmp_path / 'end'}'\n"
        "with sole_supervisor(home) as lock, Supervisor(home / 'logs', os.environ, (lock,)) as s:\n"
        "    print(s.start('slow', ['sh', '-c', ignoring]).log_path, flush=True); time.sleep(600)"
    )
    os.mkfifo(tmp_path / "end")
    killed = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert killed.stdout is not None
    log = Path(killed.stdout.readline().strip())
    while "up" not in log.read_text():
        assert killed.poll() is None
    with pytest.raises(AlreadyRunning, match="another `run` or `up` is running"), sole_supervisor(tmp_path):
        pass
    killed.kill()
    killed.wait()
    with (
        pytest.raises(AlreadyRunning, match="was killed and what it started is still ending"),
        sole_supervisor(tmp_path),
    ):
        pass
    (tmp_path / "end").write_text("end\n")
    deadline = time.monotonic() + 20
    while True:
        try:
            with sole_supervisor(tmp_path):
                break
        except AlreadyRunning:
            assert time.monotonic() < deadline, "what was left has ended"


def test_components_end_when_the_block_is_left_by_an_error(tmp_path: Path) -> None:
    def fail() -> int:
        with Supervisor(tmp_path, os.environ) as supervisor:
            pids.append(supervisor.start("sleeper", ["sleep", "600"]).process.pid)
            raise KeyboardInterrupt

    pids: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not _alive(pids[0])


def test_nobody_else_reads_the_home_or_a_database(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "var")
    (settings.home / "airflow").mkdir(parents=True)
    (settings.home / "airflow" / "airflow.db").touch(0o644)  # that of an installation of before
    prepare(settings)
    prepare(settings)
    assert settings.home.stat().st_mode & 0o777 == 0o700
    databases = {path.relative_to(settings.home).as_posix(): path for path in settings.home.rglob("*.db")}
    assert {name: oct(path.stat().st_mode & 0o777) for name, path in databases.items()} == dict.fromkeys(
        ("airflow/airflow.db", "mlflow/mlflow.db", "nightfleet.db", "feast/online.db", "feast/registry.db"), "0o600"
    )
    with sqlite3.connect(databases["nightfleet.db"]) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (a)")
        assert {path.stat().st_mode & 0o777 for path in settings.home.glob("nightfleet.db*")} == {0o600}


def test_secrets_are_made_once_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "var")
    first, second = prepare(settings), prepare(settings)
    assert first.admin_password == second.admin_password
    environment = airflow_environment(first)
    files = list((settings.home / "secrets").iterdir())
    assert len(files) >= 6
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)
    assert len(environment["AIRFLOW__API__SECRET_KEY"]) >= 64
    assert environment["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert environment["AIRFLOW__API__SECRET_KEY"] == airflow_environment(second)["AIRFLOW__API__SECRET_KEY"]


def test_another_airflow_s_settings_do_not_leak_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "True")
    monkeypatch.setenv("AIRFLOW__SMTP__SMTP_HOST", "elsewhere")
    environment = airflow_environment(prepare(Settings(home=tmp_path / "var")))
    assert environment["AIRFLOW__CORE__LOAD_EXAMPLES"] == "False"
    assert "AIRFLOW__SMTP__SMTP_HOST" not in environment


def test_free_ports_differ() -> None:
    assert len({free_port() for _ in range(5)}) > 1


def test_addresses_outlive_a_restart(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path)
    first, again = prepare(settings), prepare(settings)
    assert (again.airflow_url, again.mlflow_url) == (first.airflow_url, first.mlflow_url)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first.mlflow_port))
        taken.listen()
        other = prepare(settings)
    assert other.mlflow_port != first.mlflow_port
    assert prepare(settings).mlflow_url == other.mlflow_url


@pytest.mark.parametrize(("named", "handed_on"), [(("eva", "7:ada"), "eva,7:ada"), ((), "admin")])
def test_components_learn_the_approvers_of_the_profile(tmp_path: Path, named: tuple[str, ...], handed_on: str) -> None:
    installation = prepare(Settings(home=tmp_path / "var", approvers=named))
    assert airflow_environment(installation)["NIGHTFLEET_APPROVERS"] == handed_on


class SlowStart:
    """Airflow on a loaded machine: each look at its health takes most of the patience; all are healthy at the last."""

    def __init__(self, log: Path, *, looks: int, logs: bool) -> None:
        self.now, self._log, self._looks, self._logs = 0.0, log, looks, logs

    def get(self, url: str, timeout: float) -> SimpleNamespace:
        if not url.endswith("monitor/health"):
            return SimpleNamespace(status_code=200)
        self.now += 0.8 * installation._START_SECONDS
        self._looks -= 1
        if self._logs:
            with self._log.open("a") as file:
                file.write("importing\n")
        status = "healthy" if self._looks <= 0 else "unhealthy"
        return SimpleNamespace(json=lambda: {part: {"status": status} for part in installation._HEALTH})


@pytest.mark.parametrize("logs", [True, False])
def test_a_start_is_given_up_when_nothing_gets_on_not_when_it_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: bool
) -> None:
    with Supervisor(tmp_path, os.environ) as supervisor:
        component = supervisor.start("scheduler", ["sleep", "600"])
        slow = SlowStart(component.log_path, looks=6, logs=logs)
        monkeypatch.setattr(installation, "httpx", SimpleNamespace(get=slow.get, HTTPError=httpx.HTTPError))
        monkeypatch.setattr(
            installation, "time", SimpleNamespace(monotonic=lambda: slow.now, sleep=lambda seconds: None)
        )
        monkeypatch.setattr(installation, "_check_login", lambda of: None)
        ready = prepare(Settings(home=tmp_path / "var"))
        if logs:
            installation._wait_healthy(ready, supervisor)
            assert slow.now > 4 * installation._START_SECONDS
        else:
            with pytest.raises(installation.StartFailed, match=r"scheduler: not healthy, and nothing was logged"):
                installation._wait_healthy(ready, supervisor)


def test_preparing_an_installation_leaves_this_process_its_locks(tmp_path: Path) -> None:
    """A `run` has the database open already. Without its locks, the next process to close the database is the last one
    for SQLite, and takes away the journal that this process goes on reading.
    """
    settings = Settings(home=tmp_path / "var")
    prepare(settings)
    database = settings.home / "nightfleet.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE t (v INTEGER)")
        prepare(settings)
        write = f"""
import sqlite3
connection = sqlite3.connect({str(database)!r})
connection.execute("INSERT INTO t VALUES (1)")
connection.commit()
connection.close()
"""
        subprocess.run([sys.executable, "-c", write], check=True)
        assert database.with_name("nightfleet.db-wal").stat().st_size > 0
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (1,)

"""Who may see and do what on the pages, in a real API server: with the simple auth manager of the embedded run, and
with FAB as in production.

Four people, one of each of Airflow's roles; each route of the app, found by walking it; each action, tried by each of
them.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from cli.processes import free_port, python_tool
from config.calendar import Interval
from config.settings import ROOT
from lake.lake import Lake
from lake.metrics import Metric, publish_metrics
from monitoring.alerting.actions import read_actions
from tests import toy
from tests.serving import scenario

MODEL = scenario.MODEL
NIGHT = date(2024, 3, 5)
ALARM = f"{MODEL}/drift_share//"
HOSTILE = "<script>document.title='x'</script>"
TOKEN = "a-token-for-metrics-that-nobody-guesses"
KEY = "k" * 64
READERS = ("viewer", "user", "op", "admin")
# Airflow's roles, as the pages see them.
ROLES = {"viewer": "viewer", "user": "viewer", "op": "operator", "admin": "admin"}
FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_SECONDS = 180.0


# ---- the API server ----------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A real API server with our plugin, on a lake with something to see."""

    kind: str
    lake: Lake
    url: str
    log: Path
    tokens: dict[str, str] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def ask(self, who: str | None, method: str, path: str, **arguments: Any) -> httpx.Response:
        headers = arguments.pop("headers", {})
        if who is not None:
            headers = {"Authorization": f"Bearer {self.tokens[who]}"} | headers
        return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=60, **arguments)

    def form(self, who: str, **fields: str) -> dict[str, str]:
        """Fields of a form that was made for that person."""
        return {"csrf_token": self.form_token(who), "back": "/nightfleet/", **fields}

    def form_token(self, who: str) -> str:
        from mlops_ui_access import form_token

        payload = self.tokens[who].split(".")[1]
        user_id = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"]
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("AIRFLOW__API__SECRET_KEY", KEY)
            return form_token(SimpleNamespace(get_id=lambda: user_id))

    def act(self, who: str, action: str, **fields: str) -> httpx.Response:
        return self.ask(who, "POST", f"/nightfleet/actions/{action}", data=self.form(who, **fields))


def _lake(folder: Path) -> Lake:
    lake = toy.toy_lake(folder)
    nights = Interval.of(NIGHT)
    rows = [
        Metric(MODEL, NIGHT, NIGHT, "drift_share", "failing", value=0.5, threshold=0.3, reason=HOSTILE, n=40),
        Metric(
            MODEL, NIGHT, NIGHT, "drift_psi", "warning", column=HOSTILE, value=0.5, threshold=0.3, reason="moved", n=40
        ),
    ]
    publish_metrics(lake, MODEL, "drift", rows, nights, run_id="m")
    whole = Interval(toy.FIRST, nights.end)  # what trainings as of any night of the last weeks need
    toy.publish_valid(lake, whole)
    toy.publish_features(lake, whole)
    scenario.promote(lake, 1)
    scenario.promote(lake, 2, NIGHT)
    card = lake.settings.reports / MODEL / "model_cards" / "1.html"
    card.parent.mkdir(parents=True)
    card.write_text(f"<html><body>card {HOSTILE}</body></html>")
    secrets = lake.settings.home / "secrets"
    secrets.mkdir(exist_ok=True)
    (secrets / "metrics_token").write_text(TOKEN)
    (secrets / "metrics_token").chmod(0o600)
    return lake


def _environment(lake: Lake, home: Path, port: int, kind: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "NIGHTFLEET", "PYTHONDONTWRITE"))}
    settings = lake.settings
    own = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}?timeout=30",
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(b"f" * 32).decode(),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__API_AUTH__JWT_SECRET": KEY,
        "AIRFLOW__API__SECRET_KEY": KEY,
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "PYTHONPATH": str(ROOT),
        "NIGHTFLEET_HOME": str(settings.home),
        "NIGHTFLEET_CATALOGS": str(settings.catalogs[0]),
    }
    if kind == "fab":
        own["AIRFLOW__CORE__AUTH_MANAGER"] = FAB
    else:
        passwords = home / "logins.json"
        passwords.write_text(json.dumps({who: f"password-of-{who}" for who in READERS}))
        own["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] = ",".join(f"{who}:{who.upper()}" for who in READERS)
        own["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"] = str(passwords)
    return inherited | own


# Commands of Airflow's own command line, in one process: each start would cost seconds of imports.
_COMMANDS = """
import json, sys
from airflow.cli.cli_parser import get_parser
for arguments in json.load(sys.stdin):
    parsed = get_parser().parse_args(arguments)
    parsed.func(parsed)
"""


def _airflow(environment: dict[str, str], commands: list[list[str]]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _COMMANDS],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        input=json.dumps(commands),
    )
    assert done.returncode == 0, f"{commands} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def _new_user(who: str) -> list[str]:
    named = ["--username", who, "--firstname", who, "--lastname", who, "--email", f"{who}@example.com"]
    return ["users", "create", *named, "--role", who.capitalize(), "--password", f"password-of-{who}"]


@pytest.fixture(scope="module", params=["simple", "fab"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp(f"access-{request.param}")
    lake, home, port = _lake(folder), folder / "airflow", free_port()
    home.mkdir()
    environment = _environment(lake, home, port, request.param)
    users = [_new_user(who) for who in READERS] if request.param == "fab" else []
    _airflow(environment, [["db", "migrate"], *users, ["dags", "reserialize"]])
    log = folder / "api-server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [python_tool("airflow"), "api-server"],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    found = Server(request.param, lake, f"http://127.0.0.1:{port}", log)
    try:
        _until_healthy(found, process)
        for who in READERS:
            answer = httpx.post(
                f"{found.url}/auth/token", json={"username": who, "password": f"password-of-{who}"}, timeout=60
            )
            assert answer.status_code == 201, answer.text
            found.tokens[who] = answer.json()["access_token"]
        yield found
    finally:
        process.terminate()
        process.wait(timeout=60)


def _until_healthy(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _SECONDS
    while True:
        assert process.poll() is None, server.log.read_text()[-3000:]
        assert time.monotonic() < deadline, server.log.read_text()[-3000:]
        try:
            if httpx.get(f"{server.url}/api/v2/monitor/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)


# ---- every route ---------------------------------------------------------------------------------------------------


def routes() -> list[tuple[str, str]]:
    """Method and path of every route of the app, mounted apps included; a parameter stands for something that is
    there.
    """
    from mlops_ui_app import make_app

    values = {
        "model": MODEL,
        "night": NIGHT.isoformat(),
        "dataset": "rides",
        "name": "page.css",
        "action": "acknowledge",
        "dag_id": f"{MODEL}_score",
    }

    def walk(app: Any, prefix: str) -> Iterator[tuple[str, str]]:
        for route in app.routes:
            path = prefix + route.path
            if getattr(route, "app", None) is not None and not hasattr(route, "methods"):
                assert hasattr(route.app, "routes"), (
                    f"{path} is mounted and is no app whose routes could be walked: give it a route with a login "
                    "instead."
                )
                yield from walk(route.app, path)
                continue
            filled = re.sub(r"\{path:path\}", "anything/at/all", path)
            filled = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], filled)
            yield from ((method, filled) for method in METHODS)

    return sorted(set(walk(make_app(), "/nightfleet")))


def test_there_are_no_other_routes_than_those_that_are_walked() -> None:
    found = {path for _, path in routes()}
    assert {
        "/nightfleet/",
        "/nightfleet/metrics",
        f"/nightfleet/models/{MODEL}",
        "/nightfleet/actions/acknowledge",
    } <= found
    assert not {path for path in found if "docs" in path or "openapi" in path or "redoc" in path}
    assert not [path for path in found if "{" in path]


def test_who_is_not_logged_in_gets_nothing(server: Server) -> None:
    listed = routes()
    assert len(listed) > 60
    for method, path in [
        *listed,
        ("GET", "/nightfleet/docs"),
        ("GET", "/nightfleet/openapi.json"),
        ("GET", "/nightfleet/%2e%2e/x"),
    ]:
        answer = server.ask(None, method, path, follow_redirects=True)
        assert answer.status_code == 401, (
            f"{method} {path} is open to everybody (status {answer.status_code}): give its route the login of "
            "`context_of`."
        )
        assert MODEL not in answer.text.replace(path, "")
    for wrong in ("Bearer x", "Bearer", f"Basic {base64.b64encode(b'admin:admin').decode()}", "Bearer " + "x" * 5000):
        answer = server.ask(None, "GET", "/nightfleet/", headers={"Authorization": wrong})
        assert answer.status_code in (401, 403), f"{wrong[:20]}: {answer.status_code}"
    assert read_actions(server.lake) == []


def test_the_address_of_a_reproduction_leads_back_to_its_trace(server: Server) -> None:
    for query, trace in (("?id=ab%22%2F..", "?id=ab%22%2F.."), ("", "")):
        answer = server.ask("viewer", "GET", f"/nightfleet/actions/reproduce{query}")
        assert (answer.status_code, answer.headers["location"]) == (303, f"/nightfleet/trace{trace}")


@pytest.mark.parametrize("who", READERS)
def test_every_page_is_readable(server: Server, who: str) -> None:
    for path in (
        "/",
        f"/models/{MODEL}",
        f"/models/{MODEL}/nights/{NIGHT}",
        "/retraining",
        f"/retraining?model={MODEL}",
        "/data/rides",
        "/trace",
    ):
        answer = server.ask(who, "GET", f"/nightfleet{path}")
        # A model that was never scored has no time lines, and a night that was not no report: told in words, to
        # everybody.
        expected = (200, 404) if path.startswith("/models") else (200,)
        assert answer.status_code in expected, f"{who} {path}: {answer.status_code} {answer.text[:300]}"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert "<script>document" not in answer.text, f"{path} shows a value of the data as markup"
    card = server.ask(who, "GET", f"/nightfleet/embedded/{MODEL}/model_cards/1.html")
    assert card.status_code == 200
    assert "sandbox" in card.headers["content-security-policy"]
    assert "allow-same-origin" not in card.headers["content-security-policy"]
    # They hold every model, whatever one may see: a login does not do.
    assert server.ask(who, "GET", "/nightfleet/metrics").status_code == 401


@pytest.mark.parametrize("who", READERS)
def test_a_cookie_does_as_well(server: Server, who: str) -> None:
    assert httpx.get(f"{server.url}/nightfleet/", cookies={"_token": server.tokens[who]}, timeout=60).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "..%2f..%2fsecrets%2fmetrics_token",
        f"{MODEL}%2f..%2f..%2fsecrets%2fmetrics_token",
        f"{MODEL}/model_cards/..%2f1.html",
        "%00",
    ],
)
def test_no_address_leaves_the_folder_of_reports(server: Server, path: str) -> None:
    answer = server.ask("admin", "GET", f"/nightfleet/embedded/{path}")
    assert answer.status_code in (400, 404), answer.status_code
    assert TOKEN not in answer.text


@pytest.mark.parametrize(
    ("dag_id", "leads_to"),
    [
        (f"{MODEL}_score", f"/nightfleet/models/{MODEL}"),
        (f"{MODEL}_monitor", f"/nightfleet/models/{MODEL}"),
        (f"{MODEL}_train", f"/nightfleet/retraining?model={MODEL}"),
        ("rides_ingest", "/nightfleet/data/rides"),
        ("rides_history", "/nightfleet/data/rides"),
        ("rollback", "/nightfleet/"),
    ],
)
def test_the_tab_of_a_dag_leads_to_its_page(server: Server, dag_id: str, leads_to: str) -> None:
    answer = server.ask("viewer", "GET", f"/nightfleet/dags/{dag_id}")
    assert (answer.status_code, answer.headers["location"]) == (307, leads_to)


def test_the_tab_of_another_dag_says_so(server: Server) -> None:
    answer = server.ask("viewer", "GET", "/nightfleet/dags/somebody%3Cscript%3E_score")
    assert answer.status_code in (403, 404)
    assert "<script>_score" not in answer.text


# ---- metrics -------------------------------------------------------------------------------------------------------


def test_prometheus_shows_its_own_token(server: Server) -> None:
    def scrape(token: str) -> httpx.Response:
        return server.ask(None, "GET", "/nightfleet/metrics", headers={"Authorization": f"Bearer {token}"})

    good = scrape(TOKEN)
    assert good.status_code == 200
    assert f'nightfleet_model_drift_ratio{{model="{MODEL}"}} 0.5' in good.text
    for wrong in ("x", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper()):
        assert scrape(wrong).status_code == 401, wrong
    # Its token opens nothing else.
    assert server.ask(None, "GET", "/nightfleet/", headers={"Authorization": f"Bearer {TOKEN}"}).status_code in (
        401,
        403,
    )


def test_a_real_prometheus_scrapes_the_real_server(server: Server, tmp_path: Path) -> None:
    from tests.monitoring.alerting.test_prometheus import ask, running_prometheus

    target = server.url.removeprefix("http://")
    with running_prometheus(tmp_path, target, "/nightfleet/metrics", TOKEN) as client:
        assert ask(client, "nightfleet_model_drift_ratio") == {MODEL: 0.5}


# ---- actions -------------------------------------------------------------------------------------------------------


def _asked(server: Server, who: str, action: str, *, as_of: date | None = None) -> httpx.Response:
    """That action with a form that is complete; each time with a reason, and a night, of its own."""
    number = next(server.numbers)
    fields = {
        "reason": f"{who} {number}",
        "model": MODEL,
        "fingerprint": ALARM,
        "until": str(NIGHT + timedelta(days=number)),
        "evidence_digest": "e" * 64,
        "as_of": str(as_of or NIGHT - timedelta(days=number % 25)),
    }
    return server.act(who, action, **fields)


@pytest.mark.parametrize(
    "action",
    ["acknowledge", "silence", "unsilence", "request_retraining", "approve", "reject", "rollback", "rollout_finish"],
)
@pytest.mark.parametrize("who", READERS)
def test_each_role_does_what_it_may(server: Server, who: str, action: str) -> None:
    from mlops_ui_actions import ROLE_OF

    from monitoring.pages.page import ROLES as ORDER

    wanted = ROLE_OF[action]
    assert wanted == ("admin" if action in {"approve", "reject", "rollback", "rollout_finish"} else "operator")
    allowed = ORDER.index(ROLES[who]) >= ORDER.index(wanted)  # type: ignore[arg-type]
    before = len(read_actions(server.lake, limit=1000))
    answer = _asked(server, who, action)
    newest = read_actions(server.lake, limit=1000)
    assert len(newest) == before + 1, "done or refused, it is on record"
    last = newest[0]
    assert (last.action, last.by, last.role) == (action, who, ROLES[who])
    if not allowed:
        assert answer.status_code == 403, f"{who} {action}: {answer.status_code}"
        assert last.outcome.startswith("refused: ")
        assert f"needs role {wanted}" in last.outcome
    elif action in {"approve", "reject", "rollout_finish"}:
        # Nobody asks here, and no rollout goes on: the role was let through, and told so.
        assert answer.status_code == 409, f"{who} {action}: {answer.status_code} {answer.text[:500]}"
        said = "has no rollout that goes on" if action == "rollout_finish" else "is waiting for an answer"
        assert said in last.outcome
    else:
        assert answer.status_code == 303, f"{who} {action}: {answer.status_code} {answer.text[-1500:]}"
        assert last.outcome == "done"


def test_what_was_asked_of_airflow_is_there_under_the_person_s_name(server: Server) -> None:
    as_of = NIGHT - timedelta(days=26)
    assert _asked(server, "op", "request_retraining", as_of=as_of).status_code == 303
    runs = server.ask("admin", "GET", f"/api/v2/dags/{MODEL}_train/dagRuns").json()["dag_runs"]
    newest = max(runs, key=lambda run: run["queued_at"])
    assert (newest["partition_key"], newest["triggering_user_name"]) == (as_of.isoformat(), "op")


# ---- forms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["missing", "wrong", "of another", "twisted", "huge"])
def test_a_form_that_is_not_the_person_s_own_does_nothing(server: Server, broken: str) -> None:
    own = server.form_token("op")
    token = {
        "missing": None,
        "wrong": "x",
        "of another": server.form_token("admin"),
        "twisted": own[:-2] + ("aa" if own[-2:] != "aa" else "bb"),
        "huge": "x" * 50_000,
    }
    fields = {"back": "/nightfleet/", "fingerprint": ALARM, "reason": "planted", "csrf_token": token[broken]}
    before = read_actions(server.lake, limit=1000)
    answer = server.ask(
        "op", "POST", "/nightfleet/actions/acknowledge", data={k: v for k, v in fields.items() if v is not None}
    )
    assert answer.status_code == 403
    after = read_actions(server.lake, limit=1000)
    assert len(after) == len(before) + 1
    assert after[0].outcome.startswith("refused: ")
    assert "this form was not issued to you" in after[0].outcome


def test_actions_are_posts(server: Server) -> None:
    before = len(read_actions(server.lake, limit=1000))
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE"):
        answer = server.ask(
            "admin",
            method,
            "/nightfleet/actions/acknowledge",
            params=server.form("admin", fingerprint=ALARM, reason="x"),
        )
        assert answer.status_code in (404, 405), f"{method}: {answer.status_code}"
    assert len(read_actions(server.lake, limit=1000)) == before


@pytest.mark.parametrize(
    "back", ["https://example.com/", "//example.com/", "/nightfleet/\\example.com", "javascript:alert(1)", "/elsewhere"]
)
def test_a_form_leads_back_to_our_pages_only(server: Server, back: str) -> None:
    answer = server.ask(
        "op",
        "POST",
        "/nightfleet/actions/acknowledge",
        data=server.form("op", fingerprint=ALARM, reason=f"again {back}") | {"back": back},
    )
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/nightfleet/")
    assert "\\" not in answer.headers["location"]


@pytest.mark.parametrize("reason", [HOSTILE, "a'; DROP TABLE actions; --", "line\nline", "x" * 400, "\u202e\u0000ü"])
def test_what_people_write_is_text(server: Server, reason: str) -> None:
    until = NIGHT + timedelta(days=next(server.numbers))
    assert server.act("op", "silence", fingerprint=ALARM, reason=reason, until=str(until)).status_code == 303
    assert read_actions(server.lake, limit=1)[0].reason == reason.replace("\0", "\ufffd")
    for path in ("/", f"/models/{MODEL}/nights/{NIGHT}", f"/retraining?model={MODEL}"):
        assert "<script>document" not in server.ask("viewer", "GET", f"/nightfleet{path}").text

"""What Airflow's own pages and files give the operator after three real nights: links from tasks, tabs on DAG pages,
logs of one night.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser

from cli.airflow_api import AirflowApi
from lake.events import correlation_id
from tests.browser import Visit, chromium, visit
from tests.three_nights import CLEAN, DRIFTED, WRONG, ThreeNights

INSIDE = "/plugin/models/nightfleet"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def viewer(browser: Browser, nights: ThreeNights) -> Iterator[Visit]:
    """A viewer who has logged in through Airflow's own form."""
    with visit(browser, nights.url) as window:
        window.page.goto(nights.url)
        window.page.fill("input[name=username]", "viewer")
        window.page.fill("input[name=password]", nights.password("viewer"))
        window.page.click("button[type=submit]")
        window.page.wait_for_url(f"{nights.url}/")
        yield window


def newest_run(api: AirflowApi, dag_id: str, key: str | None = None) -> str:
    runs = api.call("GET", f"/dags/{dag_id}/dagRuns", params={"order_by": "-run_after", "limit": 100}).json()[
        "dag_runs"
    ]
    return str(next(run["dag_run_id"] for run in runs if key in (None, run["partition_key"])))


def links(api: AirflowApi, dag_id: str, run_id: str) -> dict[str, dict[str, str | None]]:
    """By task; of a mapped one those of its first part."""
    by_task = {}
    for task in api.tasks(dag_id, run_id):
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task['task_id']}/links"
        by_task[task["task_id"]] = api.call("GET", path, params={"map_index": task["map_index"]}).json()["extra_links"]
    return by_task


# ---- links ---------------------------------------------------------------------------------------------------------


def test_each_task_leads_to_what_it_made(nights: ThreeNights) -> None:
    night = str(DRIFTED)
    by_dag = {
        dag: links(nights.api, dag, newest_run(nights.api, dag, night))
        for dag in ("rides_ingest", "ride_minutes_score", "ride_minutes_monitor")
    }
    assert {task: named["Data of the night"] for task, named in by_dag["rides_ingest"].items()} == dict.fromkeys(
        ("ingest", "validate", "transform", "materialize"), f"{INSIDE}/data/rides?night={night}"
    )
    assert by_dag["ride_minutes_score"]["score"]["Predictions"] == f"{INSIDE}/trace?model=ride_minutes&date={night}"
    for task in ("drift", "performance", "report", "decide"):
        assert by_dag["ride_minutes_monitor"][task]["Drift report"] == f"{INSIDE}/models/ride_minutes/nights/{night}"


def test_a_failed_task_has_its_links_too(nights: ThreeNights) -> None:
    by_task = links(nights.api, "ride_delay_score", newest_run(nights.api, "ride_delay_score", str(WRONG)))
    assert by_task["score"]["Predictions"] == f"{INSIDE}/trace?model=ride_delay&date={WRONG}"


def test_mapped_and_parked_tasks_have_theirs(nights: ThreeNights) -> None:
    first = next(
        run
        for run in nights.api.call("GET", "/dags/tour_minutes_train/dagRuns").json()["dag_runs"]
        if run["state"] == "success"
    )
    by_task = links(nights.api, "tour_minutes_train", first["dag_run_id"])
    assert by_task["train"]["MLflow run"] == by_task["register"]["MLflow run"]
    assert str(by_task["train"]["MLflow run"]).startswith(f"{nights.installation.mlflow_url}/#/runs/")
    assert (
        by_task["approve"]["Model card"]
        == by_task["explain"]["Model card"]
        == f"{INSIDE}/embedded/tour_minutes/model_cards/1.html"
    )


def test_where_links_lead_there_is_a_page(nights: ThreeNights) -> None:
    token = httpx.post(
        f"{nights.url}/auth/token", json={"username": "viewer", "password": nights.password("viewer")}
    ).json()["access_token"]
    wanted = set()
    for dag in ("rides_ingest", "ride_minutes_score", "ride_minutes_monitor"):
        for named in links(nights.api, dag, newest_run(nights.api, dag, str(CLEAN))).values():
            wanted |= {address for address in named.values() if address}
    assert len(wanted) >= 4
    for address in wanted:
        answer = httpx.get(
            nights.url + address.removeprefix("/plugin/models"),
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
        )
        assert answer.status_code == 200, f"{address}: {answer.status_code} {answer.text[:300]}"


def test_a_person_follows_a_link_in_airflow_s_own_page(nights: ThreeNights, viewer: Visit) -> None:
    run_id = newest_run(nights.api, "ride_minutes_monitor", str(DRIFTED))
    viewer.page.goto(f"{nights.url}/dags/ride_minutes_monitor/runs/{quote(run_id, safe='')}/tasks/drift/details")
    viewer.page.get_by_role("link", name="Drift report").click()
    viewer.page.frame_locator("iframe").locator("h1").wait_for()
    assert viewer.page.url == f"{nights.url}{INSIDE}/models/ride_minutes/nights/{DRIFTED}"


# ---- tabs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dag_id", "leads_to"),
    [
        ("ride_minutes_score", "/nightfleet/models/ride_minutes"),
        ("ride_minutes_train", "/nightfleet/retraining?model=ride_minutes"),
        ("rides_ingest", "/nightfleet/data/rides"),
        ("rollback", "/nightfleet/"),
    ],
)
def test_a_tab_of_a_dag_s_page_shows_its_model_or_data(
    nights: ThreeNights, viewer: Visit, dag_id: str, leads_to: str
) -> None:
    viewer.page.goto(f"{nights.url}/dags/{dag_id}")
    viewer.page.get_by_role("link", name="Nightfleet", exact=True).click()
    viewer.page.frame_locator("iframe").locator("h1").wait_for()
    assert viewer.page.url == f"{nights.url}/dags/{dag_id}/plugin/nightfleet"
    frame = viewer.page.frames[-1]
    assert frame.url == f"{nights.url}{leads_to}", "the tab's frame carries the login"
    # Scripts, same origin and forms: charts draw, and a form can be sent.
    sandbox = viewer.page.locator("iframe").get_attribute("sandbox") or ""
    assert {"allow-scripts", "allow-same-origin", "allow-forms"} <= set(sandbox.split())


# ---- logs ----------------------------------------------------------------------------------------------------------


def lines(nights: ThreeNights) -> list[dict[str, Any]]:
    """Every line of every task's log file."""
    parsed = []
    for path in sorted((nights.lake.settings.home / "airflow" / "logs").rglob("*.log")):
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            if line.startswith("{"):
                parsed.append(json.loads(line))
    return parsed


def test_one_night_is_followed_from_ingest_to_report(nights: ThreeNights) -> None:
    wanted = correlation_id(nights.lake.catalog, "ride_minutes", str(CLEAN))
    assert wanted == f"rides/{CLEAN}"
    ended = [line for line in lines(nights) if line.get("correlation_id") == wanted and line["event"] == "stage ended"]
    order = [
        "ingest",
        "validate",
        "transform",
        "materialize",
        "score",
        "publish",
        "drift",
        "performance",
        "report",
        "decide",
    ]
    of_model = [line for line in ended if line["subject"] in ("rides", "ride_minutes")]
    assert {line["stage"] for line in of_model} >= set(order)
    at = {line["stage"]: line["timestamp"] for line in of_model}
    assert (
        at["ingest"]
        < at["validate"]
        < at["transform"]
        < at["materialize"]
        < at["score"]
        < at["publish"]
        < at["drift"]
        < at["report"]
    )
    for line in of_model:
        assert line["data_date"] == str(CLEAN)
        assert line["run_id"]
        assert line["seconds"] >= 0
        if line["stage"] in order:
            assert line["rows"] >= 0
            assert line["committed"] >= 0
    # Two models of one data set share the night, each in runs of its own.
    assert {line["subject"] for line in ended} == {"rides", "ride_minutes", "ride_delay"}
    assert len({line["run_id"] for line in ended}) >= 5


def test_a_training_s_own_lines_carry_the_night(nights: ThreeNights) -> None:
    of_training = [
        line for line in lines(nights) if line.get("stage") == "train" and line.get("dag_id") == "ride_minutes_train"
    ]
    said = [line for line in of_training if "trained in" in line["event"]]
    assert said
    assert all(line["correlation_id"].startswith("rides/") and line["subject"] == "ride_minutes" for line in said)


def test_a_failure_is_an_event_with_its_reason(nights: ThreeNights) -> None:
    failed = [line for line in lines(nights) if line["event"] == "stage failed"]
    assert {(line["subject"], line["stage"], line["correlation_id"]) for line in failed} >= {
        ("ride_delay", "score", f"rides/{WRONG}")
    }
    assert all(line["error"] and line["level"] == "error" for line in failed)

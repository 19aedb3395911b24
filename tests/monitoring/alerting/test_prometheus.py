"""The chain's numbers as a real Prometheus reads them, and that none of them is made up where there is nothing."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from config.calendar import Interval, cutoff
from config.catalog.load import load_catalog
from features.validate import SCORE
from lake.lake import Lake
from lake.lineage import publications_table
from lake.metrics import Metric, publish_metrics
from monitoring.alerting.prometheus import ChainCollector, scrape
from monitoring.alerting.runs import Run, record_run
from tests import toy
from tests.conftest import missing_service
from tests.monitoring.scenario import SCORED
from tests.serving.scenario import MODEL

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
LAST = SCORED.last


@pytest.fixture
def judged(night: Lake) -> Lake:
    """Scored nights with metrics, alarms and runs."""
    days = Interval.of(LAST)
    share = Metric(MODEL, LAST, LAST, "drift_share", "failing", value=0.5, threshold=0.3, reason="3 of 6 columns", n=40)
    psi = Metric(
        MODEL, LAST, LAST, "psi", "warning", column='a"b\n<script>', value=0.4, threshold=0.2, reason="moved", n=40
    )
    publish_metrics(night, MODEL, "drift", [share, psi], days, run_id="m")
    about = LAST - timedelta(days=2)
    errors = [
        Metric(MODEL, about, LAST, "error_ratio", "ok", column="ride_minutes", value=0.8, threshold=1.1, n=40),
        Metric(MODEL, about, LAST, "error_ratio", "not_evaluated", column="long_probability", reason="no label"),
        Metric(MODEL, about, LAST, "error_ratio", "ok", column="gone", value=9.0, n=40),
    ]
    publish_metrics(night, MODEL, "performance", errors, days, run_id="m")
    publish_metrics(
        night,
        "rides",
        "quality",
        [Metric("rides", LAST, LAST, SCORE, "ok", column="bookings", value=0.97, n=40)],
        days,
        run_id="v",
    )
    for number, state in enumerate(("success", "failed")):
        started = NOW - timedelta(hours=3 - number)
        ended = started + timedelta(seconds=90)
        record_run(
            night, Run(f"{MODEL}_train", f"r{number}", MODEL, "train", "2024-02-15", state, started, ended), at=ended
        )
    old = NOW - timedelta(days=30)
    record_run(night, Run(f"{MODEL}_score", "old", MODEL, "score", "2024-02-15", "failed", old, old), at=old)
    record_run(night, Run("gone_score", "g", "gone", "score", "2024-02-15", "failed", NOW, NOW), at=NOW)
    return night


def values(lake: Lake, now: datetime = NOW) -> dict[str, float]:
    found = {}
    for metric in ChainCollector(lake, now=now).collect():
        for sample in metric.samples:
            found[sample.name + "".join(f"/{v}" for v in sample.labels.values())] = sample.value
    return found


def test_each_number_is_that_of_the_newest_night(judged: Lake) -> None:
    found = values(judged)
    publication = judged.publications.newest(toy_predictions(judged))
    assert publication is not None
    assert publication.data_date == LAST
    assert (
        found[f"nightfleet_model_scored_data_date_timestamp_seconds/{MODEL}"] == cutoff(LAST, toy.TIME_ZONE).timestamp()
    )
    assert found[f"nightfleet_model_scored_rows/{MODEL}"] == publication.rows > 0
    assert found[f"nightfleet_model_scored_timestamp_seconds/{MODEL}"] == pytest.approx(
        publication.committed_at.timestamp(), abs=1
    )
    assert found[f"nightfleet_model_drift_ratio/{MODEL}"] == 0.5
    assert found[f"nightfleet_model_error_ratio/{MODEL}/ride_minutes"] == 0.8
    assert found[f"nightfleet_model_error_ratio_limit/{MODEL}/ride_minutes"] == 1.1
    assert found["nightfleet_table_quality_ratio/rides/bookings"] == 0.97
    assert found[f"nightfleet_alarms/{MODEL}/critical/open"] == 1
    assert found[f"nightfleet_alarms/{MODEL}/warning/open"] == 1
    assert found["nightfleet_alarms/rides/critical/open"] == 0
    assert found[f"nightfleet_retraining_requests/{MODEL}/success"] == 1
    assert found[f"nightfleet_retraining_requests/{MODEL}/failed"] == 1
    assert found[f"nightfleet_runs/{MODEL}/train/failed"] == 1
    assert found[f"nightfleet_run_duration_seconds/{MODEL}/train"] == 90
    assert found[f"nightfleet_run_failed/{MODEL}/train"] == 1, "the newest ended run failed"


def toy_predictions(lake: Lake) -> Any:
    from serving.predictions import predictions_table

    return predictions_table(lake.settings, lake.model(MODEL), lake.dataset("rides"))


def test_the_status_is_the_word_of_the_page(judged: Lake) -> None:
    from monitoring.alerting.standing import standings

    [standing] = standings(judged, [MODEL], NOW)
    found = {
        name.rpartition("/")[2]: value
        for name, value in values(judged).items()
        if name.startswith("nightfleet_model_status/")
    }
    assert [status for status, value in found.items() if value == 1] == [standing.status] != ["healthy"]
    assert set(found) == {"failing", "degraded", "late", "not evaluated", "healthy"}
    assert found[standing.status] == 1


def test_what_is_not_known_has_no_sample(judged: Lake) -> None:
    found = values(judged)
    assert f"nightfleet_model_error_ratio/{MODEL}/long_probability" not in found, (
        "a check that was not evaluated is not zero"
    )
    assert f"nightfleet_model_lateness_seconds/{MODEL}" not in found, "a replay has no deadline"
    assert not [name for name in found if "gone" in name or "script" in name], (
        "labels are of the catalog, never of data"
    )
    assert f"nightfleet_runs/{MODEL}/score/failed" not in found, "a month ago is out of the window"


def test_an_empty_installation_says_nothing_and_fails_nothing(toy_lake: Lake) -> None:
    found = values(toy_lake)
    told = {"nightfleet_alarms", "nightfleet_retraining_requests", "nightfleet_model_status"}
    assert {name.split("/")[0] for name in found} <= told | {
        "nightfleet_model_approvals_waiting",
        "nightfleet_model_retraining_requests_open",
    }
    assert found[f"nightfleet_model_status/{MODEL}/healthy"] == 0, "nothing scored is not healthy"


@pytest.mark.parametrize(
    ("now", "seconds"),
    [
        # 06:00 of the next morning in Berlin is 05:00 UTC in winter.
        (datetime(2024, 2, 20, 4, tzinfo=UTC), 0.0),
        (datetime(2024, 2, 22, 6, 30, tzinfo=UTC), 5400.0),
    ],
)
def test_a_live_model_is_late_by_what_its_deadline_is_ago(judged: Lake, now: datetime, seconds: float) -> None:
    assert date(2024, 2, 21) > LAST
    live = judged.dataset("rides").model_copy(update={"replay": None, "start": toy.FIRST})
    lake = Lake(judged.settings, judged.catalog.model_copy(update={"datasets": (live,)}))
    at = datetime(2024, 2, 18, tzinfo=UTC)
    with lake.engine.begin() as connection:
        connection.execute(publications_table.update().values(committed_at=at))
    assert values(lake, now)[f"nightfleet_model_lateness_seconds/{MODEL}"] == seconds


def test_a_scrape_reads_no_table_whole(judged: Lake) -> None:
    plans: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT") and "sqlite_master" not in statement:
            plans.extend(row[3] for row in connection.connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters))

    sa.event.listen(judged.engine, "before_cursor_execute", explain)
    values(judged)
    assert plans
    whole = [plan for plan in plans if re.match(r"SCAN (publications|metrics|projections|runs)\b", plan)]
    assert not whole, f"{whole[0]}: a scrape every few seconds must look up the newest nights by an index."


def test_the_names_are_as_prometheus_wants_them(judged: Lake) -> None:
    if not shutil.which("promtool"):
        missing_service("promtool is not installed")
    text, kind = scrape(judged, "text/plain", now=NOW)
    assert kind.startswith("text/plain")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
    assert all(line.startswith(("# HELP", "# TYPE", "nightfleet_")) for line in text.decode().splitlines())


# ---- a real Prometheus -------------------------------------------------------------------------------------------

TOKEN = "the-test's-token"


@contextmanager
def served(lake: Lake) -> Iterator[str]:
    """The metrics behind a token, on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self.send_error(401)
                return
            text, kind = scrape(lake, self.headers["Accept"], now=NOW)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def running_prometheus(folder: Path, target: str, path: str, token: str) -> Iterator[httpx.Client]:
    """A Prometheus that scrapes one target each second; yields a client of its API."""
    if not shutil.which("prometheus"):
        missing_service("Prometheus is not installed")
    (folder / "token").write_text(token)
    (folder / "prometheus.yml").write_text(
        f"""
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: nightfleet
    metrics_path: {path}
    authorization: {{credentials_file: {folder / "token"}}}
    static_configs: [{{targets: ["{target}"]}}]
"""
    )
    checked = subprocess.run(
        ["promtool", "check", "config", str(folder / "prometheus.yml")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5) as client:
            yield client
    finally:
        process.terminate()
        process.wait(timeout=30)


def ask(client: httpx.Client, query: str, seconds: float = 60) -> dict[str, float]:
    """What Prometheus answers, once it has an answer; by the labels' values."""
    deadline = time.monotonic() + seconds
    answer: Any = None
    while time.monotonic() < deadline:
        try:
            answer = client.get("/api/v1/query", params={"query": query}).json()
        except (httpx.TransportError, ValueError) as error:
            answer = error
        else:
            if answer["status"] == "success" and answer["data"]["result"]:
                hidden = {"__name__", "instance", "job"}
                return {
                    "/".join(v for k, v in sorted(r["metric"].items()) if k not in hidden): float(r["value"][1])
                    for r in answer["data"]["result"]
                }
        time.sleep(0.2)
    raise AssertionError(f"Prometheus had no answer to {query} in {seconds:g} s; the last: {answer}")


def test_a_real_prometheus_reads_the_values_back(judged: Lake, tmp_path: Path) -> None:
    with served(judged) as target, running_prometheus(tmp_path, target, "/metrics", TOKEN) as client:
        assert ask(client, "up == 1") == {"": 1}
        assert ask(client, "nightfleet_model_drift_ratio > 0.3") == {MODEL: 0.5}
        assert ask(client, "nightfleet_model_error_ratio / nightfleet_model_error_ratio_limit") == {
            f"{MODEL}/ride_minutes": pytest.approx(0.8 / 1.1)
        }
        assert ask(client, 'sum by (severity) (nightfleet_alarms{attention="open"})') == {"critical": 1, "warning": 1}
        assert ask(client, "nightfleet_run_failed == 1") == {f"train/{MODEL}": 1}


def test_a_wrong_token_reads_nothing(judged: Lake, tmp_path: Path) -> None:
    with served(judged) as target, running_prometheus(tmp_path, target, "/metrics", "another") as client:
        assert ask(client, "up") == {"": 0}


def test_postgres_gives_the_same(judged: Lake, postgres_url: str) -> None:
    settings = judged.settings.model_copy(update={"sql_url": postgres_url})
    twin = Lake(settings, load_catalog(settings))
    wanted = values(judged)
    try:
        _copy_tables(judged.engine, twin.engine)
        assert values(twin) == wanted
    finally:
        metadata = sa.MetaData()
        metadata.reflect(twin.engine)
        metadata.drop_all(twin.engine)
        twin.engine.dispose()


def _copy_tables(source: sa.Engine, target: sa.Engine) -> None:
    metadata = sa.MetaData()
    metadata.reflect(source)
    for table in metadata.sorted_tables:
        for column in table.columns:
            column.type = column.type.as_generic()
    metadata.create_all(target)
    with source.connect() as reading, target.begin() as writing:
        for table in metadata.sorted_tables:
            rows = [dict(row) for row in reading.execute(table.select()).mappings()]
            if rows:
                writing.execute(table.insert(), rows)

"""HTTP sources, against a local server that fails in every way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from config.calendar import Interval
from features.sources import SourceRefused, SourceSchemaMismatch, SourceUnavailable, SourceUnreadable, http
from tests.features.sources.reading import COLUMNS, NIGHT, meters, read

Answer = tuple[int, Any]


class Server:
    """Answers what `answer(path, parameters)` returns: a status with a JSON document or bytes, or None for silence."""

    def __init__(self) -> None:
        self.answer: Callable[[str, dict[str, str]], Answer | None] = lambda path, parameters: (200, [])
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.closing = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                server.headers.append(dict(self.headers))
                parts = urlsplit(self.path)
                answer = server.answer(parts.path, {name: values[0] for name, values in parse_qs(parts.query).items()})
                if answer is None:
                    server.closing.wait(30)
                    return
                status, document = answer
                body = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}"
        self.thread = threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.closing.set()
        self.httpd.shutdown()
        self.httpd.server_close()
        self.thread.join(10)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(http, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(http, "LONGEST_WAIT_SECONDS", 0.002)
    server = Server()
    yield server
    server.close()


def record(meter: str, **more: Any) -> dict[str, Any]:
    return {
        "meter": meter,
        "at_utc": "2024-03-04T10:00:00Z",
        "litres": 1.5,
        "pulses": 3,
        "open": True,
        "billed_on": None,
    } | more


def source(server: Server, **more: Any) -> dict[str, Any]:
    return {"kind": "http", "url": f"{server.url}/readings", "timeout_seconds": 5, "attempts": 3} | more


def found(tmp_path: Path, described: dict[str, Any]) -> list[str]:
    return list(read(meters(tmp_path, described))["meter"].to_pylist())


def test_pages_by_number_until_one_is_empty(tmp_path: Path, server: Server) -> None:
    pages = {"1": [record("a"), record("b")], "2": [record("c", litres=None)], "3": []}
    server.answer = lambda path, parameters: (200, {"data": {"rows": pages[parameters["page"]]}})
    assert found(tmp_path, source(server, page_param="page", records="data.rows", params={"size": "2"})) == [
        "a",
        "b",
        "c",
    ]
    assert server.asked == [f"/readings?size=2&page={page}" for page in (1, 2, 3)]


def test_pages_by_next_url_on_the_same_host(tmp_path: Path, server: Server) -> None:
    documents: dict[str, dict[str, Any]] = {
        "/readings": {"rows": [record("a")], "next": "/more?cursor=x"},
        "/more": {"rows": [record("b")], "next": None},
    }
    server.answer = lambda path, parameters: (200, documents[path])
    assert found(tmp_path, source(server, records="rows", next_url="next")) == ["a", "b"]
    documents["/more"]["next"] = server.url.replace("127.0.0.1", "localhost") + "/more"
    with pytest.raises(SourceRefused, match=r"on another host than 127\.0\.0\.1"):
        found(tmp_path, source(server, records="rows", next_url="next"))
    documents["/more"]["next"] = "/readings"
    with pytest.raises(SourceRefused, match="form a loop"):
        found(tmp_path, source(server, records="rows", next_url="next"))


def test_values_arrive_as_declared_and_a_field_may_be_absent_from_a_record(tmp_path: Path, server: Server) -> None:
    short = record("b")
    del short["pulses"]
    server.answer = lambda path, parameters: (200, [record("a", billed_on="2024-03-01"), short])
    rows = read(meters(tmp_path, source(server))).to_pylist()
    assert (rows[0]["litres"], rows[0]["pulses"], rows[0]["open"], str(rows[0]["billed_on"])) == (
        1.5,
        3,
        True,
        "2024-03-01",
    )
    assert rows[1]["pulses"] is None
    assert rows[0]["nf__natural_date"] == NIGHT


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(tmp_path: Path, server: Server, status: int) -> None:
    answers: list[Answer] = [(status, b"busy"), (status, b"busy"), (200, [record("a")])]
    server.answer = lambda path, parameters: answers[len(server.asked) - 1]
    assert found(tmp_path, source(server)) == ["a"]
    assert len(server.asked) == 3


def test_the_last_attempt_ends_in_a_clear_error(tmp_path: Path, server: Server) -> None:
    server.answer = lambda path, parameters: (503, b"busy")
    with pytest.raises(SourceUnavailable, match=r"/readings failed 3 times, last with status 503 Service Unavailable"):
        found(tmp_path, source(server))
    assert len(server.asked) == 3


def test_a_time_out_counts_as_a_failure(tmp_path: Path, server: Server) -> None:
    server.answer = lambda path, parameters: None
    with pytest.raises(SourceUnavailable, match=r"failed 2 times, last with ReadTimeout"):
        found(tmp_path, source(server, timeout_seconds=0.05, attempts=2))
    assert len(server.asked) == 2


def test_no_server_counts_as_a_failure(tmp_path: Path, server: Server) -> None:
    with pytest.raises(SourceUnavailable, match=r"failed 2 times, last with ConnectError"):
        found(tmp_path, source(server, url="http://127.0.0.1:9/readings", attempts=2))


@pytest.mark.parametrize(
    ("status", "says"), [(401, "answers 401 Unauthorized, needs 200"), (404, "answers 404"), (302, "answers 302 Found")]
)
def test_a_refusal_is_not_tried_again(tmp_path: Path, server: Server, status: int, says: str) -> None:
    server.answer = lambda path, parameters: (status, {})
    with pytest.raises(SourceRefused, match=says):
        found(tmp_path, source(server))
    assert len(server.asked) == 1


def test_documents_of_another_shape(tmp_path: Path, server: Server) -> None:
    server.answer = lambda path, parameters: (200, b"<html>")
    with pytest.raises(SourceUnreadable, match="did not send JSON"):
        found(tmp_path, source(server))
    server.answer = lambda path, parameters: (200, {"rows": "none"})
    with pytest.raises(SourceUnreadable, match="has no list of records at 'rows' but str"):
        found(tmp_path, source(server, records="rows"))


def test_undeclared_missing_and_retyped_fields(tmp_path: Path, server: Server) -> None:
    server.answer = lambda path, parameters: (200, [record("a", serial=7)])
    with pytest.raises(SourceSchemaMismatch, match="'serial' is not declared"):
        found(tmp_path, source(server))
    server.answer = lambda path, parameters: (200, [{"meter": "a", "at_utc": "2024-03-04T10:00:00Z"}])
    with pytest.raises(SourceSchemaMismatch, match=r"(?s)'litres' is missing.*'billed_on' is missing"):
        found(tmp_path, source(server))
    server.answer = lambda path, parameters: (200, [record("a"), record("b", pulses=2.5)])
    with pytest.raises(
        SourceSchemaMismatch, match=r"'pulses' is declared int64, but 1 values are not: first '2.5', in row 2"
    ):
        found(tmp_path, source(server))


def test_each_night_is_asked_for_with_the_token(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERS_TOKEN", "sesame")
    lake = meters(tmp_path, source(server, params={"day": "{data_date}"}, token_secret="meters_token"))
    read(lake, Interval.closed(NIGHT, NIGHT.replace(day=5)))
    assert server.asked == ["/readings?day=2024-03-04", "/readings?day=2024-03-05"]
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sesame"}


def test_nan_is_null_other_names_are_read_and_extra_keys_are_left_out(tmp_path: Path, server: Server) -> None:
    body = json.dumps([record("a", litres=float("nan"), extra=1), record("b", extra=1)])
    server.answer = lambda path, parameters: (200, body.replace('"pulses"', '"beats"').encode())
    columns = COLUMNS | {"pulses": COLUMNS["pulses"] | {"renamed_from": "beats"}}
    rows = read(meters(tmp_path, source(server, on_extra="ignore"), columns=columns)).to_pylist()
    assert [(row["litres"], row["pulses"]) for row in rows] == [(None, 3), (1.5, 3)]
    server.answer = lambda path, parameters: (200, body.replace("NaN", "Infinity").encode())
    with pytest.raises(SourceSchemaMismatch, match="'litres' is declared float64, but 1 values are infinite"):
        read(meters(tmp_path, source(server, on_extra="ignore")))


def test_keys_that_are_left_out_are_null_where_the_catalog_says_so(tmp_path: Path, server: Server) -> None:
    one = record("a")
    del one["litres"]
    server.answer = lambda path, parameters: (200, [one])
    with pytest.raises(SourceSchemaMismatch, match="'litres' is missing"):
        read(meters(tmp_path, source(server)))
    columns = COLUMNS | {"litres": COLUMNS["litres"] | {"on_missing": "ignore"}}
    assert read(meters(tmp_path, source(server), columns=columns))["litres"].to_pylist() == [None]

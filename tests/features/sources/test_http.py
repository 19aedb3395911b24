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
from config.catalog.base import BadCatalog
from features.sources import SourceRefused, SourceSchemaMismatch, SourceUnavailable, SourceUnreadable, http
from tests.features.sources.reading import COLUMNS, NIGHT, meters, read

Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]  # status, document, headers


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
                status, document, *more = answer
                body = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                for name, value in more[0].items() if more else ():
                    self.send_header(name, value)
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
    renamed = record("a", Litres=1.5)
    del renamed["litres"]
    server.answer = lambda path, parameters: (200, [renamed])
    with pytest.raises(SourceSchemaMismatch, match=r"(?s)'Litres' is not declared.*'litres' is missing"):
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


def test_a_key_that_all_records_omit_is_null(tmp_path: Path, server: Server) -> None:
    """Many services leave out what is null; a night in which it is null everywhere lacks the key."""
    server.answer = lambda path, parameters: (200, [{"meter": "a", "at_utc": "2024-03-04T10:00:00Z"}])
    (row,) = read(meters(tmp_path, source(server))).to_pylist()
    assert (row["meter"], row["litres"], row["billed_on"]) == ("a", None, None)
    declared = COLUMNS | {"litres": COLUMNS["litres"] | {"on_missing": "refuse"}}
    with pytest.raises(SourceSchemaMismatch, match="'litres' is missing"):
        read(meters(tmp_path, source(server), columns=declared))


def test_a_service_that_knows_no_pages_ends(tmp_path: Path, server: Server) -> None:
    """It ignores the parameter, and sends all of it again and again."""
    server.answer = lambda path, parameters: (200, [record("a")])
    with pytest.raises(SourceRefused, match=r"(?s)page=2 answers with the records of the page before.*`page_param`"):
        found(tmp_path, source(server, page_param="page"))
    assert len(server.asked) == 2


def test_pages_by_cursor(tmp_path: Path, server: Server) -> None:
    documents = {None: ("a", "x=1&y"), "x=1&y": ("b", 7), "7": ("c", None)}

    def answer(path: str, parameters: dict[str, str]) -> Answer:
        meter, cursor = documents[parameters.get("after")]
        return 200, {"rows": [record(meter)], "meta": {"next": cursor}}

    server.answer = answer
    paging = {"cursor": "meta.next", "cursor_param": "after", "params": {"size": "1"}}
    assert found(tmp_path, source(server, records="rows", **paging)) == ["a", "b", "c"]
    assert server.asked[1] == "/readings?size=1&after=x%3D1%26y"
    documents["7"] = ("c", "x=1&y")
    with pytest.raises(SourceRefused, match="(?s)form a loop.*`cursor_param`"):
        found(tmp_path, source(server, records="rows", **paging))


def test_pages_by_offset(tmp_path: Path, server: Server) -> None:
    whole = [record("a"), record("b"), record("c")]

    def answer(path: str, parameters: dict[str, str]) -> Answer:
        offset = int(parameters["skip"])
        return 200, whole[offset : offset + 2]

    server.answer = answer
    assert found(tmp_path, source(server, offset_param="skip")) == ["a", "b", "c"]
    assert server.asked == [f"/readings?skip={offset}" for offset in (0, 2, 3)]


def test_pages_by_the_header_link(tmp_path: Path, server: Server) -> None:
    answers: dict[str, Answer] = {
        "/readings": (200, [record("a")], {"Link": '</first>; rel="first", </more?x=1>; rel="next"'}),
        "/more": (200, [record("b")], {"Link": '</first>; rel="first"'}),
    }
    server.answer = lambda path, parameters: answers[path]
    assert found(tmp_path, source(server, next_link=True)) == ["a", "b"]
    answers["/more"] = (200, [record("b")], {"Link": '<http://elsewhere.example/>; rel="next"'})
    with pytest.raises(SourceRefused, match=r"on another host than 127\.0\.0\.1"):
        found(tmp_path, source(server, next_link=True))


@pytest.mark.parametrize(
    ("last", "end"), [((404, {}), 404), ((204, b""), 204), ((200, b""), "empty"), ((200, {"rows": None}), None)]
)
def test_a_declared_answer_is_the_end_of_the_pages(
    tmp_path: Path, server: Server, last: Answer, end: int | str | None
) -> None:
    server.answer = lambda path, parameters: (200, {"rows": [record("a")]}) if parameters["page"] == "1" else last
    paging = {"page_param": "page", "records": "rows"}
    assert found(tmp_path, source(server, end_on=[end], **paging)) == ["a"]
    with pytest.raises((SourceRefused, SourceUnreadable)):
        found(tmp_path, source(server, **paging))


def test_lines_are_records(tmp_path: Path, server: Server) -> None:
    lines = [json.dumps(record("a\u2028b"), ensure_ascii=False), "", json.dumps(record("c"))]
    server.answer = lambda path, parameters: (200, "\r\n".join(lines).encode())
    assert found(tmp_path, source(server, lines=True)) == ["a\u2028b", "c"]
    server.answer = lambda path, parameters: (200, b'{"meter": "a"}\n{"meter": ')
    with pytest.raises(SourceUnreadable, match="did not send JSON"):
        found(tmp_path, source(server, lines=True))


def test_headers_may_be_secrets(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METERS_KEY", "sesame")
    server.answer = lambda path, parameters: (200, [record("a")])
    headers = {"X-Api-Key": {"secret": "meters_key"}, "X-Client": "nightfleet"}
    assert found(tmp_path, source(server, headers=headers)) == ["a"]
    assert (server.headers[0]["X-Api-Key"], server.headers[0]["X-Client"]) == ("sesame", "nightfleet")
    monkeypatch.setenv("METERS_KEY", "sesame\nX-Other: 1")
    with pytest.raises(SourceRefused, match="the header 'X-Api-Key' has a name or a value that HTTP") as caught:
        found(tmp_path, source(server, headers=headers))
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"page_param": "p", "offset_param": "o"}, "pages are found by page_param and by offset_param: keep one"),
        ({"cursor": "next"}, "name both"),
        ({"lines": True, "records": "rows"}, "lines are records themselves"),
        ({"url": "ftp://somewhere/readings"}, "String should match pattern"),
        ({"end_on": [503]}, "less than or equal to 499"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(
    tmp_path: Path, server: Server, keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadCatalog, match=words):
        meters(tmp_path, source(server, **keys))


def test_keys_that_nobody_says_are_no_part_of_the_digest(tmp_path: Path, server: Server) -> None:
    """Else every prediction id of an installation would be another one after an upgrade."""
    lake = meters(tmp_path, source(server))
    described = lake.dataset("meters").tables["readings"].source.model_dump(by_alias=True)
    assert described.keys() == {
        *("kind", "url", "params", "token_secret", "records", "page_param", "first_page", "next_url", "columns"),
        *("timeout_seconds", "attempts", "select", "lookups"),
    }

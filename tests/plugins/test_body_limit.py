"""A body larger than any form is refused before a byte of it is parsed, however it comes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from mlops_ui_app import HEADERS, MOST_BODY_BYTES, BodyLimit, make_app


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.add_middleware(BodyLimit)

    @app.post("/form")
    async def form(request: Request) -> int:
        return len(dict(await request.form()))

    return TestClient(app)


def chunks(sent: list[int], count: int) -> Iterator[bytes]:
    yield b"reason="
    for _ in range(count):
        sent.append(1)
        yield b"x" * 1024


def test_a_form_within_the_limit_is_read(client: TestClient) -> None:
    assert client.post("/form", data={"reason": "x" * 1000}).json() == 1


def test_a_body_that_says_how_large_it_is_is_not_read(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Request, "form", lambda self: pytest.fail("it was parsed"))
    answer = client.post("/form", data={"reason": "x" * MOST_BODY_BYTES})
    assert answer.status_code == 413
    assert "more than 65,536 bytes" in answer.text


def test_a_body_in_chunks_is_left_at_the_limit(client: TestClient) -> None:
    head = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/form", content=chunks([], 10), headers=head).status_code == 200
    assert client.post("/form", content=chunks([], 300), headers=head).status_code == 413


def test_a_multipart_form_is_left_at_the_limit(client: TestClient) -> None:
    answer = client.post("/form", files={"file": b"x" * (2 * MOST_BODY_BYTES)})
    assert answer.status_code == 413


def test_the_pages_refuse_it_before_they_ask_who_sends_it() -> None:
    answer = TestClient(make_app()).post("/actions/rollback", content=b"x" * (MOST_BODY_BYTES + 1))
    assert answer.status_code == 413
    assert answer.headers["content-security-policy"] == HEADERS["content-security-policy"]

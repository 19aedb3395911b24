"""Curves reach MLflow while training runs; whatever MLflow does, training goes on and every point is kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cli.processes import free_port
from training.progress import POINTS_FILE, Progress, read_points
from training.registry.curves import CurveStream


class FakeMlflow:
    """Takes `log-batch` requests; after `alive_for` of them it drops every connection."""

    def __init__(self, alive_for: int) -> None:
        self.metrics: list[dict[str, Any]] = []
        fake, left = self, [alive_for]

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                left[0] -= 1
                if left[0] < 0:
                    self.connection.close()
                    return
                fake.metrics.extend(body["metrics"])
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.uri = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def mlflow_answering() -> Any:
    """Makes servers that answer so many requests, and ends them."""
    made: list[FakeMlflow] = []

    def make(alive_for: int) -> FakeMlflow:
        made.append(FakeMlflow(alive_for))
        return made[-1]

    yield make
    for fake in made:
        fake.server.shutdown()
        fake.server.server_close()


def train(folder: Path, points: int) -> None:
    progress = Progress(say_line=lambda line: None, folder=folder)
    for step in range(1, points + 1):
        progress.point("validation/minutes/mae", step, 1.0 / step)
    progress.close(folder)


def test_alive_it_gets_every_point(tmp_path: Path, mlflow_answering: Callable[[int], FakeMlflow]) -> None:
    said: list[str] = []
    fake = mlflow_answering(10_000)
    with CurveStream(tmp_path, fake.uri, "r", said.append):
        train(tmp_path, 1200)
    assert sorted((m["key"], m["step"], m["value"]) for m in fake.metrics) == sorted(
        read_points(tmp_path / POINTS_FILE)
    )
    assert len(fake.metrics) == 1200
    assert said == []


def test_down_is_one_line(tmp_path: Path) -> None:
    said: list[str] = []
    with CurveStream(tmp_path, f"http://127.0.0.1:{free_port()}", "r", said.append):
        train(tmp_path, 10)
    assert len(said) == 1
    assert "training goes on, curves are kept in curves.json" in said[0]
    assert json.loads((tmp_path / "curves.json").read_text())["validation/minutes/mae"][-1] == [10, 0.1]


def test_dying_in_the_middle_is_one_line(tmp_path: Path, mlflow_answering: Callable[[int], FakeMlflow]) -> None:
    said: list[str] = []
    fake = mlflow_answering(2)
    with CurveStream(tmp_path, fake.uri, "r", said.append):
        train(tmp_path, 1200)
    assert len(said) == 1
    assert 0 < len(fake.metrics) < 1200


def test_without_a_run_or_a_server_nothing_is_sent(tmp_path: Path) -> None:
    said: list[str] = []
    for uri, run in (("http://127.0.0.1:9", None), ("sqlite:///x", "r")):
        with CurveStream(tmp_path, uri, run, said.append):
            train(tmp_path, 3)
    assert said == []


def test_a_resumed_training_keeps_its_earlier_points_and_a_cut_line_is_no_point(tmp_path: Path) -> None:
    train(tmp_path, 5)
    with (tmp_path / POINTS_FILE).open("a") as file:
        file.write('{"metric": "validation/minutes/mae", "step": 6, "va')
    assert len(read_points(tmp_path / POINTS_FILE)) == 5
    progress = Progress(say_line=lambda line: None, folder=tmp_path)
    progress.point("validation/minutes/mae", 5, 0.5)
    progress.close(tmp_path)
    assert json.loads((tmp_path / "curves.json").read_text())["validation/minutes/mae"][-2:] == [[4, 0.25], [5, 0.5]]

"""What a running training job says: plain lines, and curves that are kept whatever happens to MLflow."""

from __future__ import annotations

import json
import math
import queue
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

CURVES_FILE = "curves.json"
Curves = dict[str, list[tuple[int, float]]]
_POINTS_A_REQUEST = 500  # MLflow takes at most 1,000
_REQUEST_TIMEOUT_SECONDS = 5.0


def say(text: str) -> None:
    """One line to standard output, at once."""
    print(text, flush=True)


class CurveStream:
    """Sends curve points to an MLflow run from a thread of its own, so that a slow or dead server never holds training up.

    The first failure is one warning line; after it nothing more is sent.
    """

    def __init__(self, tracking_uri: str, run_id: str, say: Callable[[str], None]) -> None:
        self._tracking_uri = tracking_uri
        self._run_id = run_id
        self._say = say
        self._points: queue.SimpleQueue[tuple[str, int, float, int] | None] = queue.SimpleQueue()
        self.failed = False
        self._thread = threading.Thread(target=self._send, name="mlflow-curves", daemon=True)
        self._thread.start()

    def put(self, metric: str, step: int, value: float) -> None:
        """Queue one point; returns at once."""
        if not self.failed:
            self._points.put((metric, step, value, int(time.time() * 1000)))

    def close(self, timeout_seconds: float) -> None:
        """Send what is queued, for at most so long."""
        self._points.put(None)
        self._thread.join(timeout_seconds)
        if self._thread.is_alive() and not self.failed:
            self.failed = True
            self._say(f"warning: MLflow at {self._tracking_uri} did not take all curves within {timeout_seconds:.0f} s; they are in {CURVES_FILE}")

    def _send(self) -> None:
        try:
            ended = False
            while not ended:
                points = [self._points.get()]
                while len(points) < _POINTS_A_REQUEST and not self._points.empty():
                    points.append(self._points.get())
                ended = None in points
                metrics = [{"key": metric, "value": value, "timestamp": at, "step": step} for metric, step, value, at in (p for p in points if p is not None)]
                if metrics:
                    self._post({"run_id": self._run_id, "metrics": metrics})
        except (OSError, ValueError, HTTPException) as error:  # urllib's errors are OSErrors
            if not self.failed:
                self.failed = True
                self._say(f"warning: MLflow at {self._tracking_uri} is not reachable ({error}); training goes on, curves are kept in {CURVES_FILE}")

    def _post(self, document: dict[str, Any]) -> None:
        # One request of MLflow's REST API instead of its client, whose import alone takes longer than many a training.
        request = urllib.request.Request(  # noqa: S310 (http and https alone come here, see `stream_of`)
            f"{self._tracking_uri.rstrip('/')}/api/2.0/mlflow/runs/log-batch", json.dumps(document).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=_REQUEST_TIMEOUT_SECONDS):  # noqa: S310 (as above)
            pass


def stream_of(mlflow: Mapping[str, Any], say: Callable[[str], None]) -> CurveStream | None:
    """A stream to the run a job names, or None where it names none or the address is no server's."""
    uri, run_id = str(mlflow.get("tracking_uri") or ""), mlflow.get("run_id")
    return CurveStream(uri, str(run_id), say) if run_id and uri.startswith(("http://", "https://")) else None


class Progress:
    """Lines to standard output, flushed; curves to memory, to MLflow when a stream is given, at the end to `curves.json`."""

    def __init__(self, say_line: Callable[[str], None] = say, stream: CurveStream | None = None) -> None:
        self._say = say_line
        self._stream = stream
        self.curves: Curves = {}

    def line(self, text: str) -> None:
        """Say one line."""
        self._say(text)

    def point(self, metric: str, step: int, value: float) -> None:
        """Add one point to a curve; a value that is not finite is left out, since no chart can show it."""
        if not math.isfinite(value):
            return
        self.curves.setdefault(metric, []).append((step, float(value)))
        if self._stream:
            self._stream.put(metric, step, float(value))

    def close(self, folder: Path, timeout_seconds: float = 10.0) -> None:
        """Write the curves, and wait a little for MLflow."""
        (folder / CURVES_FILE).write_text(json.dumps(self.curves) + "\n", encoding="utf-8")
        if self._stream:
            self._stream.close(timeout_seconds)

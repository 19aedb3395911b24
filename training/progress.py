"""What a running training job says: plain lines, and curves that are kept whatever happens to MLflow."""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

CURVES_FILE = "curves.json"
Curves = dict[str, list[tuple[int, float]]]


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
            from mlflow import MlflowClient
            from mlflow.entities import Metric

            client = MlflowClient(tracking_uri=self._tracking_uri)
            ended = False
            while not ended:
                points = [self._points.get()]
                while len(points) < 500 and not self._points.empty():
                    points.append(self._points.get())
                ended = None in points
                metrics = [Metric(metric, value, at, step) for metric, step, value, at in (p for p in points if p is not None)]
                if metrics:
                    client.log_batch(self._run_id, metrics=metrics)
        except Exception as error:  # noqa: BLE001 (whatever MLflow's client meets must not end a training; it is said, once)
            if not self.failed:
                self.failed = True
                reason = str(error).splitlines()[0][:200]
                self._say(f"warning: MLflow at {self._tracking_uri} is not reachable ({reason}); training goes on, curves are kept in {CURVES_FILE}")


class Progress:
    """Lines to standard output, flushed; curves to memory, to MLflow when a stream is given, at the end to `curves.json`."""

    def __init__(self, say: Callable[[str], None] | None = None, stream: CurveStream | None = None) -> None:
        self._say = say or (lambda text: print(text, flush=True))
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

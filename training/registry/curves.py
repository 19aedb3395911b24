"""Follows the curve points a running training writes, and streams them to its MLflow run."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from types import TracebackType

from lake.contained import UnsafeFile, open_contained
from training.progress import CURVES_FILE, POINTS_FILE

_EVERY_SECONDS = 1.0
_POINTS_A_REQUEST = 500  # MLflow takes at most 1,000
_REQUEST_TIMEOUT_SECONDS = 5.0
_MOST_BYTES = 2**20  # of the file, at a time
_LONGEST_LINE_BYTES = 2**12


class CurveStream:
    """Sends points from a thread of its own while the block runs: a slow or dead server never holds training up.

    The first failure is one line; after it nothing more is sent, and `register` completes the curves from the finished
    job.
    """

    def __init__(
        self,
        job_dir: Path,
        tracking_uri: str,
        run_id: str | None,
        say: Callable[[str], None],
        *,
        login: tuple[str, str] | None = None,
    ) -> None:
        self._login = login
        self._job_dir, self._uri, self._run_id, self._say = job_dir, tracking_uri.rstrip("/"), run_id, say
        self._read_bytes, self._cut_line = 0, b""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mlflow-curves", daemon=True)

    def __enter__(self) -> CurveStream:
        if self._run_id and self._uri.startswith(("http://", "https://")):
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(2 * _REQUEST_TIMEOUT_SECONDS)

    def _follow(self) -> None:
        sent: set[tuple[str, int]] = set()
        try:
            while True:
                last = self._ended.wait(_EVERY_SECONDS)
                points = {(metric, step): value for metric, step, value in self._new_points()}
                fresh = [
                    (metric, step, value) for (metric, step), value in points.items() if (metric, step) not in sent
                ]
                for start in range(0, len(fresh), _POINTS_A_REQUEST):
                    self._post(fresh[start : start + _POINTS_A_REQUEST])
                sent |= {(metric, step) for metric, step, _ in fresh}
                if last and not points:  # a try reads so much at most; the last one goes to the end
                    return
        except UnsafeFile as error:
            self._say(f"warning: no curves are sent on: {error}")
        except (OSError, ValueError, HTTPException) as error:  # urllib's errors are OSErrors
            self._say(
                f"warning: MLflow at {self._uri} is not reachable ({error}); training goes on, curves are kept in "
                f"{CURVES_FILE}"
            )

    def _new_points(self) -> list[tuple[str, int, float]]:
        """Points that the trainer has written since the last time, at most a mebibyte of them.

        Raises:
            UnsafeFile: the file is none that a trainer writes: a link, too large, with lines without end or no points.
        """
        try:
            file = open_contained(self._job_dir, POINTS_FILE)
        except FileNotFoundError:
            return []
        with file:
            if os.fstat(file.fileno()).st_size < self._read_bytes:  # a resumed training has cut it
                self._read_bytes, self._cut_line = 0, b""
            file.seek(self._read_bytes)
            chunk = file.read(_MOST_BYTES)
        self._read_bytes += len(chunk)
        *lines, self._cut_line = (self._cut_line + chunk).split(b"\n")
        if len(self._cut_line) > _LONGEST_LINE_BYTES:
            raise UnsafeFile(f"{self._job_dir / POINTS_FILE} has a line of more than {_LONGEST_LINE_BYTES:,} bytes.")
        try:
            parsed = [json.loads(line) for line in lines]
            return [(str(point["metric"]), int(point["step"]), float(point["value"])) for point in parsed]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UnsafeFile(f"{self._job_dir / POINTS_FILE} has a line that is no point.") from error

    def _post(self, points: list[tuple[str, int, float]]) -> None:
        # One request of MLflow's REST API instead of its client, whose import alone takes longer than many a training.
        now = int(time.time() * 1000)
        body = {
            "run_id": self._run_id,
            "metrics": [{"key": m, "value": v, "timestamp": now, "step": step} for m, step, v in points],
        }
        request = urllib.request.Request(  # noqa: S310 (http and https alone come here)
            f"{self._uri}/api/2.0/mlflow/runs/log-batch",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        if self._login is not None:
            word = b64encode(":".join(self._login).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {word}")
        with urllib.request.urlopen(request, timeout=_REQUEST_TIMEOUT_SECONDS):  # noqa: S310 (as above)
            pass

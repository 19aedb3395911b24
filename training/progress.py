"""What a running training says: plain lines on standard output, and curves in a file that grows with every point.

A trainer has no network: whoever runs it follows the file and streams the points to MLflow
(training/registry/curves.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import IO

CURVES_FILE = "curves.json"
POINTS_FILE = "curves.jsonl"
Curves = dict[str, list[tuple[int, float]]]


def say(text: str) -> None:
    """One line to standard output, at once."""
    print(text, flush=True)


class Progress:
    """Lines to standard output, flushed; points to memory and, line by line, to `curves.jsonl` of a folder if one is
    given.
    """

    def __init__(self, say_line: Callable[[str], None] = say, folder: Path | None = None) -> None:
        self._say = say_line
        self._points: dict[str, dict[int, float]] = {}
        self._file: IO[str] | None = None
        if folder:
            for metric, step, value in read_points(folder / POINTS_FILE):  # of the try that a checkpoint continues
                self._points.setdefault(metric, {})[step] = value
            self._file = (folder / POINTS_FILE).open("a", encoding="utf-8")

    def line(self, text: str) -> None:
        """Say one line."""
        self._say(text)

    def point(self, metric: str, step: int, value: float) -> None:
        """Add one point to a curve; a value that is not finite is left out, since no chart can show it."""
        if not math.isfinite(value):
            return
        self._points.setdefault(metric, {})[step] = float(value)
        if self._file:
            self._file.write(json.dumps({"metric": metric, "step": step, "value": float(value)}) + "\n")
            self._file.flush()

    @property
    def curves(self) -> Curves:
        """Every point, by metric, in the order of the steps."""
        return {metric: sorted(points.items()) for metric, points in self._points.items()}

    def close(self, folder: Path) -> None:
        """Write all curves as one document."""
        (folder / CURVES_FILE).write_text(json.dumps(self.curves) + "\n", encoding="utf-8")
        if self._file:
            self._file.close()


def read_points(path: Path) -> list[tuple[str, int, float]]:
    """Points of a file that may still be written, or was cut by a kill: whole lines alone count."""
    if not path.is_file():
        return []
    points = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            point = json.loads(line)
            points.append((str(point["metric"]), int(point["step"]), float(point["value"])))
    return points

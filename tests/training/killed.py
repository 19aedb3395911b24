"""`python tests/training/killed.py SIGNAL EPOCH ARGUMENTS…`: the trainer as it is, hit by a signal at a known moment.

That moment lies after the points of the epoch were written and before its checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from training.__main__ import main
from training.progress import Progress

point = Progress.point


def deadly(self: Progress, metric: str, step: int, value: float) -> None:
    point(self, metric, step, value)
    if metric == "validation/network/loss" and step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.Signals[sys.argv[1]])


if __name__ == "__main__":
    Progress.point = deadly  # type: ignore[method-assign]
    sys.exit(main(sys.argv[3:]))

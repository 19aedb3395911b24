"""The score of the Numenta Anomaly Benchmark, standard profile, from its published rule (Lavin and Ahmad 2015).

A series has windows around its incidents. Rows scored at or above a threshold are detections. The first one inside a
window earns up to 1, the more the earlier; a window without one costs 1; every one outside costs 0.11, less shortly
after a window. The first 15 % of a series, 750 rows at most, count for nothing. One threshold for the whole corpus is
the one that scores best, and 0 is a detector that says nothing, 100 a perfect one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FALSE_ALARM = 0.11
MISS = 1.0
_PROBATION, _LONGEST_PROBATION = 0.15, 750
_FORGOTTEN = 3.0  # windows' lengths after a window, from where on a false alarm costs all of it


@dataclass(frozen=True)
class Scored:
    """A series as a detector scored it.

    Attributes:
        scores: (rows,), larger is stranger.
        windows: first and last row of each incident's window, ascending.
    """

    scores: Floats
    windows: Sequence[tuple[int, int]]


def nab_score(corpus: Sequence[Scored]) -> tuple[float, float]:
    """The normalised score at the best threshold, and that threshold (infinity: better to say nothing)."""
    windows = sum(len(series.windows) for series in corpus)
    if not windows:
        raise ValueError("no series has a window: nothing can be found in this corpus")
    changes = [_changes(series) for series in corpus]
    thresholds, gains = (np.concatenate(parts) for parts in zip(*changes, strict=True))
    order = np.argsort(-thresholds, kind="stable")
    thresholds, totals = thresholds[order], np.cumsum(gains[order])
    told = np.append(thresholds[1:] != thresholds[:-1], True) if len(thresholds) else np.zeros(0, bool)
    best = max(float(totals[told].max(initial=0.0)), 0.0)
    threshold = float(thresholds[told][totals[told].argmax()]) if best else np.inf
    return 100.0 * best / (windows * (1.0 + MISS)), threshold


def _changes(series: Scored) -> tuple[Floats, Floats]:
    """How the raw score changes as the threshold falls to each value: (thresholds, changes)."""
    rows = len(series.scores)
    counted = np.arange(rows) >= min(int(_PROBATION * rows), _LONGEST_PROBATION)
    worth, inside = np.full(rows, -1.0), np.zeros(rows, bool)
    thresholds, changes = [], []
    for number, (first, last) in enumerate(series.windows):
        length = last - first + 1
        inside[first : last + 1] = True
        until = series.windows[number + 1][0] if number + 1 < len(series.windows) else rows
        after = np.arange(1, until - last) / max(length - 1, 1)
        worth[last + 1 : until] = np.where(after > _FORGOTTEN, -1.0, _sigmoid(after))
        earned = _sigmoid(-np.arange(length, 0, -1) / length) / _sigmoid(np.array([-1.0]))
        looked_at = counted[first : last + 1]
        scores, earned = series.scores[first : last + 1][looked_at], earned[looked_at]
        # The first row at or above a threshold is one that exceeds all before it.
        records = np.flatnonzero(scores > np.concatenate([[-np.inf], np.maximum.accumulate(scores)[:-1]]))[::-1]
        thresholds.append(scores[records])
        changes.append(np.diff(earned[records], prepend=-MISS))
    alarms = counted & ~inside
    thresholds.append(series.scores[alarms])
    changes.append(FALSE_ALARM * worth[alarms])
    return np.concatenate(thresholds), np.concatenate(changes)


def _sigmoid(place: Floats) -> Floats:
    """From 0.987 at -1, the begin of a window, through 0 at its end to -1 long after it."""
    scaled: Floats = 2.0 / (1.0 + np.exp(5.0 * place)) - 1.0
    return scaled

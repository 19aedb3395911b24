"""Items that go with those of a row's history: sums of weights from item to item, as a NumPy array; the items as JSON.

The history are columns of texts, `<name>_t0` the newest. Each item in it counts once, one that training never met not
at all. A row starts from weights of its own number of items: one without any gets what others without any got.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serving.predictors.contract import Contract, Matrix, Predictor, Scores, read_json
from serving.predictors.shapley import Sample, Shapley

DETAILS_FILE = "recommender.json"
WEIGHTS_FILE = "weights.npy"
PRELOAD = ()
# Scores of a chunk: 32 MB.
_CELLS_AT_ONCE = 2**22

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]


class Weights(NamedTuple):
    """What the score of each item is made of; the last row of both tables of items is 0, for a step without one.

    Attributes:
        of_item: what an item of the history adds, (items + 1, items).
        of_newest: what it adds beside that as the newest step, (items + 1, items).
        of_count: what a row starts from, by the number of its items; the last for that many or more.
    """

    of_item: Floats
    of_newest: Floats
    of_count: Floats

    @classmethod
    def read(cls, folder: Path, details: Mapping[str, Any]) -> Weights:
        """Weights from their file; `details` tell how many `counts` there are."""
        return cls.of(np.load(folder / WEIGHTS_FILE, allow_pickle=False), details["counts"])

    @classmethod
    def of(cls, stored: Floats, starts: int) -> Weights:
        """Weights of items, of newest items if there are any, and of so many counts, that stand one after the other."""
        count, nothing = stored.shape[1], np.zeros((1, stored.shape[1]))
        of_item, of_newest, of_count = np.split(stored, [count, len(stored) - starts])
        newest = of_newest if len(of_newest) else np.zeros((count, count))
        return cls(np.vstack([of_item, nothing]), np.vstack([newest, nothing]), of_count)


class RecommenderPredictor(Predictor):
    """One list for all outputs, which differ in its length."""

    def __init__(self, contract: Contract, weights: Weights, details: Mapping[str, Any]) -> None:
        super().__init__(contract)
        self._weights = weights
        self._items = np.array(details["items"], np.float64)
        self._history: list[str] = details["history"]
        self._exclude_seen = bool(details["exclude_seen"])
        self.chunk_rows = max(1, _CELLS_AT_ONCE // len(self._items))

    def scores(self, matrix: Matrix) -> Scores:
        """See `Predictor.scores`."""
        history = positions(self.contract, self._history, self._items, matrix)
        items, scores = ranked(self._weights, history, exclude_seen=self._exclude_seen)
        columns = []
        for name, output in self.contract.kinds.items():
            k = len(output.judged_columns(name))
            columns += [self._items[items[:, :k]], scores[:, :k]]
        return np.hstack(columns)


def positions(contract: Contract, history: Sequence[str], items: Floats, matrix: Matrix) -> Positions:
    """Where in `items` each step of each row's history stands, (rows, steps); `len(items)` for a step that is missing,
    unknown, or an item of a newer step.
    """
    features = list(contract.features)
    nowhere = len(items)
    stood = np.full((len(matrix), len(history)), nowhere, np.int64)
    for step, name in enumerate(history):
        numbers = np.array([float(text) for text in contract.features[name].categories or ()])
        known = np.append(np.searchsorted(items, numbers), nowhere)  # all that training met are among the items
        codes = matrix[:, features.index(name)]
        stood[:, step] = known[np.where(np.isnan(codes), len(numbers), codes).astype(np.int64)]
    for step in range(1, len(history)):
        again = (stood[:, :step] == stood[:, step, None]).any(axis=1)
        stood[again, step] = nowhere
    return stood


def counts(weights: Weights, history: Positions) -> Positions:
    """Which row of `of_count` each row starts from."""
    known: Positions = (history < weights.of_count.shape[1]).sum(axis=1)
    return np.minimum(known, len(weights.of_count) - 1)


def ranked(weights: Weights, history: Positions, *, exclude_seen: bool) -> tuple[Positions, Floats]:
    """Positions of all items for each row, best first, and their scores; equal scores in the order of the items.

    Sums go step by step, so that a row gets the same bits whatever rows are beside it.

    Args:
        history: of `positions`.
        exclude_seen: items of the history follow after all others.
    """
    scores = weights.of_count[counts(weights, history)] + weights.of_newest[history[:, 0]]
    seen = np.zeros((len(history), scores.shape[1] + 1), np.bool_)
    for step in history.T:
        scores += weights.of_item[step]
        seen[np.arange(len(history)), step] = True
    if exclude_seen:
        behind = scores.max(axis=1, keepdims=True) - scores.min(axis=1, keepdims=True) + 1.0
        np.subtract(scores, behind, out=scores, where=seen[:, :-1])
    order = np.argsort(-scores, axis=1, kind="stable")
    return order, np.take_along_axis(scores, order, axis=1)


def load(folder: Path, contract: Contract) -> RecommenderPredictor:
    """Load weights and items from a verified folder."""
    details = read_json(folder / DETAILS_FILE)
    return RecommenderPredictor(contract, Weights.read(folder, details), details)


def explain(folder: Path, contract: Contract, sample: Sample) -> Shapley:
    """Contributions of every step of the history to the score of the first item; what a row starts from, by the number
    of its steps, is shared by all of them.
    """
    details = read_json(folder / DETAILS_FILE)
    weights, items, history = Weights.read(folder, details), np.array(details["items"], np.float64), details["history"]
    stood, usual = (positions(contract, history, items, matrix) for matrix in (sample.matrix, sample.background))
    first = ranked(weights, stood, exclude_seen=details["exclude_seen"])[0][:, 0]
    start = weights.of_count[counts(weights, stood), first]
    shared = (start - weights.of_count[counts(weights, usual)].mean(axis=0)[first]) / len(history)
    features = list(contract.features)
    values = np.zeros((len(stood), len(features)))
    for step, name in enumerate(history):
        added = weights.of_item + weights.of_newest if step == 0 else weights.of_item
        values[:, features.index(name)] = added[stood[:, step], first] - added[usual[:, step]].mean(axis=0)[first]
        values[:, features.index(name)] += shared
    return Shapley("Shapley values of the sum", sample.matrix, dict.fromkeys(contract.outputs, values), "score")

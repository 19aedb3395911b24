"""Items in an order that boosted trees learned: the recommender's weights name candidates, trees rank them.

Weights as NumPy arrays, the booster as UBJSON, the items as JSON; nothing is unpickled. What the trees see of a pair of
row and item is computed from that row alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serving.predictors.contract import Contract, Matrix, Predictor, Scores, read_json
from serving.predictors.recommender import Positions, Weights, counts, positions, ranked

BOOSTER_FILE = "booster.ubj"
DETAILS_FILE = "xgboost_ranking.json"
NEXT_FOLDER, TOGETHER_FOLDER = "next", "together"
PRELOAD = ("xgboost",)
# What the trees see of a pair, in the order of the columns of `pairs`.
PAIR_FEATURES = ("next", "rank", "behind", "together", "newest", "strongest", "start", "share", "items")
_ROWS_AT_ONCE = 4_096

Floats = npt.NDArray[np.float64]


class FirstStage(NamedTuple):
    """What names the candidates of a row, and describes them to the trees.

    Attributes:
        after: weights of what comes next after a history.
        together: weights of what is together in a row.
        share: of the training rows, how many each item came for, (items,).
    """

    after: Weights
    together: Weights
    share: Floats


class RankingPredictor(Predictor):
    """One list for all outputs, which differ in its length."""

    chunk_rows = _ROWS_AT_ONCE

    def __init__(self, contract: Contract, stage: FirstStage, booster: Any, details: Mapping[str, Any]) -> None:
        super().__init__(contract)
        self._stage, self._booster = stage, booster
        self._items = np.array(details["items"], np.float64)
        self._history: list[str] = details["history"]
        self._exclude_seen, self._candidates = bool(details["exclude_seen"]), int(details["candidates"])

    def scores(self, matrix: Matrix) -> Scores:
        """See `Predictor.scores`."""
        history = positions(self.contract, self._history, self._items, matrix)
        named, seen = pairs(self._stage, history, self._candidates, exclude_seen=self._exclude_seen)
        margins = self._booster.inplace_predict(seen, predict_type="margin", missing=np.nan, validate_features=False)
        margins = margins.astype(np.float64).reshape(named.shape)
        order = np.argsort(-margins, axis=1, kind="stable")  # of equal ones the recommender's first
        items = self._items[np.take_along_axis(named, order, axis=1)]
        ordered = np.take_along_axis(margins, order, axis=1)
        columns = []
        for name, output in self.contract.kinds.items():
            k = len(output.judged_columns(name))
            columns += [items[:, :k], ordered[:, :k]]
        return np.hstack(columns)


def pairs(
    stage: FirstStage, history: Positions, candidates: int, *, exclude_seen: bool
) -> tuple[Positions, npt.NDArray[np.float32]]:
    """Positions of each row's candidates, best first by what comes next, and what the trees see of each.

    Args:
        history: of `recommender.positions`, (rows, steps).
        exclude_seen: items of the history are candidates only where there are no others.
    Returns:
        (rows, candidates), and (rows * candidates, `PAIR_FEATURES`).
    """
    named, scores = ranked(stage.after, history, exclude_seen=exclude_seen)
    named, scores = named[:, :candidates], scores[:, :candidates]
    together = stage.together.of_count[counts(stage.together, history)]
    strongest = np.full(together.shape, -np.inf)
    for step in history.T:
        together = together + stage.together.of_item[step]
        strongest = np.maximum(strongest, stage.after.of_item[step])
    newest = stage.after.of_newest[history[:, 0]] + stage.after.of_item[history[:, 0]]
    known = (history < len(stage.share)).sum(axis=1)
    start = stage.after.of_count[counts(stage.after, history)]

    def of_named(values: Floats) -> Floats:
        return np.take_along_axis(values, named, axis=1)

    seen = (
        scores,
        np.broadcast_to(np.arange(named.shape[1], dtype=np.float64), named.shape),
        scores - scores[:, :1],
        of_named(together),
        of_named(newest),
        of_named(strongest),
        of_named(start),
        stage.share[named],
        np.broadcast_to(known[:, None].astype(np.float64), named.shape),
    )
    return named, np.stack(seen, axis=2).reshape(-1, len(PAIR_FEATURES)).astype(np.float32)


def load(folder: Path, contract: Contract) -> RankingPredictor:
    """Load weights, booster and items from a verified folder."""
    import xgboost as xgb

    details = read_json(folder / DETAILS_FILE)
    after, together = (
        Weights.read(folder / name, {"counts": details["counts"][name]}) for name in (NEXT_FOLDER, TOGETHER_FOLDER)
    )
    booster = xgb.Booster()
    booster.load_model(folder / BOOSTER_FILE)
    booster.set_param({"device": "cpu"})
    return RankingPredictor(contract, FirstStage(after, together, np.array(details["share"])), booster, details)

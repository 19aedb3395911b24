"""Random forests: skops files of scikit-learn's own types, what their leaves say beyond a mean as plain arrays,
calibration as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.predictors.calibration import adjusted_interval, calibrated, calibrated_classes, class_odds
from serving.predictors.contract import BadModelFile, Contract, Matrix, Predictor, Scores, read_json
from serving.predictors.shapley import Sample, Shapley, affordable_rows, owners, tree_values
from serving.predictors.sklearn_model import FOLDS, PRELOADED, TREE, Floats, column_origins, read_model

DETAILS_FILE = "random_forest.json"
PRELOAD = (PRELOADED,)
TRUSTED = (FOLDS, TREE)
# A share of 0 or 1 in every leaf is not a certainty.
_LEAST_SHARE = 1e-4
_ROWS_OF_A_THREAD = 8_192

Tree = tuple[Any, Floats]


class RandomForestPredictor(Predictor):
    """One forest an output. Threads share the rows, never the trees of a row: its sum has the same bits in any batch,
    with any number of threads.
    """

    def __init__(
        self, contract: Contract, forests: Mapping[str, tuple[Any, list[Tree]]], details: Mapping[str, Any]
    ) -> None:
        super().__init__(contract)
        self._forests = forests
        self._details = details

    def scores(self, matrix: Matrix) -> Scores:
        """See `Predictor.scores`."""
        columns: list[Any] = []
        for name, detail in self._details["outputs"].items():
            encoder, trees = self._forests[name]
            means = _summed_by_threads(trees, encoded(encoder, matrix), self.contract.params["threads"]) / len(trees)
            if "calibration" in detail:
                columns.append(calibrated(log_odds(means[:, 0]), detail["calibration"]))
                continue
            if "class_calibrations" in detail:
                columns.append(calibrated_classes(log_odds(means), detail["class_calibrations"]))
                continue
            columns.append(means[:, 0])
            if "interval" in detail:
                columns += adjusted_interval(means[:, 0], means[:, 1], means[:, 2], detail["interval"])
        return np.column_stack(columns)


def encoded(encoder: Any, matrix: Matrix) -> npt.NDArray[np.float32]:
    """What the trees see: numbers as they are, missing ones as NaN, and a number in the place of each category."""
    return np.ascontiguousarray(encoder.transform(matrix), dtype=np.float32)


def forest_trees(forest: Any, bounds: Floats | None, first: int = 0, *, every_class: bool = False) -> list[Tree]:
    """Each tree from number `first` on, with what its nodes say, float64 of shape (nodes, 1, 3 or classes): centre, or
    share of rows above; lower; upper bound; or the share of each class.

    Args:
        bounds: (nodes of these trees, 2), or None without an interval.
        every_class: the forest tells classes apart, not an event from its absence.
    """
    trees, start = [], 0
    for estimator in forest.estimators_[first:]:
        tree = estimator.tree_
        # Of an event, the share of the second class.
        said = tree.value[:, 0, :] if every_class else tree.value[:, 0, -1:]
        if bounds is not None:
            said = np.hstack([said, bounds[start : start + tree.node_count]])
            start += tree.node_count
        trees.append((tree, np.ascontiguousarray(said, dtype=np.float64)))
    if bounds is not None and start != len(bounds):
        raise BadModelFile(
            f"the forest has {start} nodes, its interval has bounds for {len(bounds)}. Train the model again."
        )
    return trees


def summed(trees: Iterable[Tree], matrix: npt.NDArray[np.float32]) -> Floats:
    """Sum over the trees of what they say about each encoded row, float64 of shape (rows, 1, 3 or classes)."""
    total: Any = 0.0
    for tree, said in trees:
        total = total + said.take(tree.apply(matrix), axis=0)
    return np.asarray(total, dtype=np.float64)


def _summed_by_threads(trees: list[Tree], matrix: npt.NDArray[np.float32], threads: int) -> Floats:
    """As `summed`; a tree lets other threads run while rows pass through it."""
    parts = np.array_split(matrix, max(1, min(threads, len(matrix) // _ROWS_OF_A_THREAD)))
    if len(parts) == 1:
        return summed(trees, matrix)
    with ThreadPoolExecutor(len(parts)) as pool:
        return np.concatenate(list(pool.map(lambda part: summed(trees, part), parts)))


def log_odds(share: Floats) -> Floats:
    """Raw scores of shares of rows above, or of each class."""
    return class_odds(share, _LEAST_SHARE)


def load(folder: Path, contract: Contract) -> RandomForestPredictor:
    """Load forests and details from a verified folder."""
    details = read_json(folder / DETAILS_FILE)
    forests = {}
    for name, detail in details["outputs"].items():
        model = _read(folder, contract, name, detail)
        bounds = np.load(folder / detail["interval"]["file"], allow_pickle=False) if "interval" in detail else None
        every_class = contract.kinds[name].task == "classes"
        forests[name] = (model["encode"], forest_trees(model["model"], bounds, every_class=every_class))
    return RandomForestPredictor(contract, forests, details)


def explain(folder: Path, contract: Contract, sample: Sample) -> Shapley:
    """Contributions of every feature to what the leaves say, of classes to the share of the one said, by Tree SHAP."""
    details = read_json(folder / DETAILS_FILE)["outputs"]
    models = {name: _read(folder, contract, name, detail) for name, detail in details.items()}
    sample = sample.thinned(affordable_rows(*(model["model"] for model in models.values())))
    values = {}
    for name, model in models.items():
        columns = encoded(model["encode"], sample.matrix)
        raw = tree_values(model["model"], columns)
        if contract.kinds[name].task == "classes":
            trees = forest_trees(model["model"], None, every_class=True)
            shares = summed(trees, columns) / len(trees)
            said = calibrated_classes(log_odds(shares), details[name]["class_calibrations"]).argmax(axis=1)
            raw = raw[np.arange(len(raw)), :, said]
        of_columns = raw[:, :, -1] if raw.ndim == 3 else raw  # of an event and its absence, the event
        values[name] = of_columns @ owners(contract, column_origins(contract, model["encode"]))
    return Shapley("Shapley values of the trees (Tree SHAP)", sample.matrix, values, "probability before calibration")


def _read(folder: Path, contract: Contract, name: str, detail: Mapping[str, Any]) -> Any:
    kind = "RandomForestRegressor" if contract.kinds[name].task == "number" else "RandomForestClassifier"
    return read_model(folder / detail["file"], kind, TRUSTED)

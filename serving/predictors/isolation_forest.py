"""Isolation forests: how easily a row is told from the others, in a skops file; what that says of each output as
JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.predictors.anomaly import raw_anomaly
from serving.predictors.calibration import calibrated
from serving.predictors.contract import Contract, Matrix, Predictor, Scores, read_json
from serving.predictors.shapley import Sample, Shapley, affordable_rows, owners, tree_values
from serving.predictors.sklearn_model import CUT, KIND, PRELOADED, TREE, Floats, column_origins, read_model

DETAILS_FILE = "isolation_forest.json"
MODEL_FILE = "isolation_forest.skops"
PRELOAD = (PRELOADED,)
TRUSTED = (CUT, KIND, TREE)


class IsolationForestPredictor(Predictor):
    """One forest for all outputs, which differ in their calibration."""

    def __init__(self, contract: Contract, pipeline: Any, details: Mapping[str, Any]) -> None:
        super().__init__(contract)
        self._pipeline = pipeline
        self._details = details

    def scores(self, matrix: Matrix) -> Scores:
        """See `Predictor.scores`."""
        anomaly = anomaly_scores(self._pipeline, matrix)
        return np.column_stack(
            [
                calibrated(anomaly, detail["calibration"])
                if "calibration" in detail
                else raw_anomaly(lambda rows: anomaly_scores(self._pipeline, rows), matrix, detail)
                for detail in self._details["outputs"].values()
            ]
        )


def anomaly_scores(pipeline: Any, matrix: Matrix) -> Floats:
    """Anomaly of each row, larger is stranger, around 0 for a usual one; float64 of shape (rows,)."""
    # scikit-learn's score is minus a number in (0, 1), near 0.5 for usual rows; ten times that is a scale that
    # calibration meets well.
    scores: Floats = -10.0 * (pipeline["model"].score_samples(pipeline["encode"].transform(matrix)) + 0.5)
    return scores


def load(folder: Path, contract: Contract) -> IsolationForestPredictor:
    """Load pipeline and details from a verified folder."""
    return IsolationForestPredictor(
        contract, read_model(folder / MODEL_FILE, "IsolationForest", TRUSTED), read_json(folder / DETAILS_FILE)
    )


def explain(folder: Path, contract: Contract, sample: Sample) -> Shapley:
    """Contributions of every feature to how few cuts a row takes, by Tree SHAP; the same for all outputs."""
    pipeline = read_model(folder / MODEL_FILE, "IsolationForest", TRUSTED)
    sample = sample.thinned(affordable_rows(pipeline["model"]))
    columns = np.ascontiguousarray(pipeline["encode"].transform(sample.matrix), dtype=np.float32)
    # The fewer cuts a row takes, the stranger it is: with the sign turned, to the right is stranger.
    cuts = -tree_values(pipeline["model"], columns) @ owners(contract, column_origins(contract, pipeline["encode"]))
    values = dict.fromkeys(read_json(folder / DETAILS_FILE)["outputs"], cuts)
    unit = "cuts fewer until the row stands alone"
    return Shapley("Shapley values of the trees (Tree SHAP)", sample.matrix, values, unit)

"""Isolation forests: how easily a row is told from the others, in a skops file; what that says of each output as
JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.predictors.calibration import calibrated
from serving.predictors.contract import Contract, Matrix, Predictor, Scores, read_json
from serving.predictors.sklearn_model import CUT, KIND, TREE, Floats, read_model

DETAILS_FILE = "isolation_forest.json"
MODEL_FILE = "isolation_forest.skops"
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
            [calibrated(anomaly, detail["calibration"]) for detail in self._details["outputs"].values()]
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

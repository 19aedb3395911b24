"""Logistic regressions: a pipeline an output in a skops file, calibration as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.predictors.calibration import calibrated
from serving.predictors.contract import Contract, Matrix, Predictor, Scores, read_json
from serving.predictors.shapley import Sample, Shapley, linear_values, slope
from serving.predictors.sklearn_model import CUT, KIND, PRELOADED, linear_scores, read_model

DETAILS_FILE = "logistic.json"
PRELOAD = (PRELOADED,)
TRUSTED = (CUT, KIND)


class LogisticPredictor(Predictor):
    """One regression an output."""

    def __init__(self, contract: Contract, pipelines: Mapping[str, Any], details: Mapping[str, Any]) -> None:
        super().__init__(contract)
        self._pipelines = pipelines
        self._details = details

    def scores(self, matrix: Matrix) -> Scores:
        """See `Predictor.scores`."""
        outputs = self._details["outputs"].items()
        return np.column_stack(
            [
                calibrated(linear_scores(self._pipelines[name], matrix)[:, 0], detail["calibration"])
                for name, detail in outputs
            ]
        )


def load(folder: Path, contract: Contract) -> LogisticPredictor:
    """Load pipelines and details from a verified folder."""
    details = read_json(folder / DETAILS_FILE)
    pipelines = {
        name: read_model(folder / detail["file"], "LogisticRegression", TRUSTED)
        for name, detail in details["outputs"].items()
    }
    return LogisticPredictor(contract, pipelines, details)


def explain(folder: Path, contract: Contract, sample: Sample) -> Shapley:
    """Contributions of every feature to the sums, by Linear SHAP."""
    values = {}
    for name, detail in read_json(folder / DETAILS_FILE)["outputs"].items():
        pipeline = read_model(folder / detail["file"], "LogisticRegression", TRUSTED)
        coefficients = np.atleast_2d(pipeline["model"].coef_)[0] * slope(detail["calibration"])
        values[name] = linear_values(contract, pipeline["encode"], coefficients, sample)
    return Shapley("Shapley values of the sum (Linear SHAP)", sample.matrix, values)

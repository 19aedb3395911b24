"""Linear models: one pipeline for all outputs in a skops file, calibration and interval widths as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.predictors.calibration import adjusted_interval, calibrated
from serving.predictors.contract import Contract, Matrix, Predictor, Scores, read_json
from serving.predictors.shapley import Sample, Shapley, linear_values, slope
from serving.predictors.sklearn_model import CUT, KIND, PRELOADED, linear_scores, read_model

DETAILS_FILE = "linear.json"
MODEL_FILE = "linear.skops"
PRELOAD = (PRELOADED,)
TRUSTED = (CUT, KIND)


class LinearPredictor(Predictor):
    """One row of coefficients an output, and two more for the bounds of an interval."""

    def __init__(self, contract: Contract, pipeline: Any, details: Mapping[str, Any]) -> None:
        super().__init__(contract)
        self._pipeline = pipeline
        self._details = details

    def scores(self, matrix: Matrix) -> Scores:
        """See `Predictor.scores`."""
        raw = linear_scores(self._pipeline, matrix)
        columns: list[Any] = []
        position = 0
        for detail in self._details["outputs"].values():
            center = raw[:, position]
            position += 1
            if "calibration" in detail:
                columns.append(calibrated(center, detail["calibration"]))
                continue
            columns.append(center)
            if "interval" in detail:
                columns += adjusted_interval(center, raw[:, position], raw[:, position + 1], detail["interval"])
                position += 2
        return np.column_stack(columns)


def load(folder: Path, contract: Contract) -> LinearPredictor:
    """Load pipeline and details from a verified folder."""
    return LinearPredictor(
        contract, read_model(folder / MODEL_FILE, "Ridge", TRUSTED), read_json(folder / DETAILS_FILE)
    )


def explain(folder: Path, contract: Contract, sample: Sample) -> Shapley:
    """Contributions of every feature to the sums, by Linear SHAP."""
    pipeline = read_model(folder / MODEL_FILE, "Ridge", TRUSTED)
    coefficients = np.atleast_2d(pipeline["model"].coef_)
    values, position = {}, 0
    for name, detail in read_json(folder / DETAILS_FILE)["outputs"].items():
        scale = slope(detail["calibration"]) if "calibration" in detail else 1.0
        values[name] = linear_values(contract, pipeline["encode"], coefficients[position] * scale, sample)
        position += 3 if "interval" in detail else 1
    return Shapley("Shapley values of the sum (Linear SHAP)", sample.matrix, values)

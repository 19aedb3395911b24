"""Gradient-boosted trees: boosters as UBJSON, calibration as JSON; nothing is unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.predictors.calibration import adjusted_interval, calibrated, calibrated_classes, class_odds, softmax
from serving.predictors.contract import Contract, Matrix, Predictor, Scores, read_json
from serving.predictors.shapley import Sample, Shapley, slope

DETAILS_FILE = "xgboost.json"
PRELOAD = ("xgboost",)
_LEAST_SHARE = 1e-9


class XgboostPredictor(Predictor):
    """One booster an output, and one more for the bounds of an interval."""

    def __init__(self, contract: Contract, boosters: Mapping[str, Any], details: Mapping[str, Any]) -> None:
        super().__init__(contract)
        self._boosters = boosters
        self._details = details

    def scores(self, matrix: Matrix) -> Scores:
        """See `Predictor.scores`."""
        columns: list[Any] = []
        for detail in self._details["outputs"].values():
            margin = self._margin(detail["file"], matrix)
            if "calibration" in detail:
                columns.append(calibrated(margin, detail["calibration"]))
                continue
            if "class_calibrations" in detail:
                columns.append(calibrated_classes(margin_odds(margin), detail["class_calibrations"]))
                continue
            columns.append(margin)
            if "interval" in detail:
                bounds = self._margin(detail["interval"]["file"], matrix)
                columns += adjusted_interval(margin, bounds[:, 0], bounds[:, 1], detail["interval"])

        return np.column_stack(columns)

    def _margin(self, file: str, matrix: Matrix) -> Any:
        return (
            self._boosters[file]
            .inplace_predict(matrix, predict_type="margin", missing=np.nan, validate_features=False)
            .astype(np.float64)
        )


def margin_odds(margins: Any) -> Any:
    """Log odds of each class against all others, from margins, (rows, classes)."""
    return class_odds(softmax(margins), _LEAST_SHARE)


def load(folder: Path, contract: Contract) -> XgboostPredictor:
    """Load boosters and details from a verified folder."""
    details = read_json(folder / DETAILS_FILE)
    files = [d["file"] for d in details["outputs"].values()] + [
        d["interval"]["file"] for d in details["outputs"].values() if "interval" in d
    ]
    return XgboostPredictor(contract, {file: _booster(folder / file) for file in files}, details)


def explain(folder: Path, contract: Contract, sample: Sample) -> Shapley:
    """Contributions of every feature to the boosters' raw scores, by their own Tree SHAP; of classes to that of the one
    said.
    """
    import xgboost as xgb

    types = ["c" if spec.categories is not None else "q" for spec in contract.features.values()]
    matrix = xgb.DMatrix(sample.matrix, feature_names=list(contract.features), feature_types=types, missing=np.nan)
    values = {}
    for name, detail in read_json(folder / DETAILS_FILE)["outputs"].items():
        raw = _booster(folder / detail["file"]).predict(matrix, pred_contribs=True).astype(np.float64)
        if "class_calibrations" in detail:
            odds = margin_odds(raw.sum(axis=2))
            said = calibrated_classes(odds, detail["class_calibrations"]).argmax(axis=1)
            raw = raw[np.arange(len(raw)), said]
        values[name] = raw[:, :-1] * (slope(detail["calibration"]) if "calibration" in detail else 1.0)
    return Shapley("Shapley values of the trees (Tree SHAP)", sample.matrix, values)


def _booster(path: Path) -> Any:
    import xgboost as xgb

    booster = xgb.Booster()
    booster.load_model(path)
    booster.set_param({"device": "cpu"})
    return booster

"""Shapley values, how far each feature moved a prediction: what the families' own `explain` share.

Explaining loads SHAP, which the training image does not have: nothing here imports it before it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.predictors.contract import Contract, Matrix
from serving.predictors.sklearn_model import Floats, column_origins

LOG_ODDS = "log-odds"
SAMPLE_ROWS = 2_000
# About three seconds; at least so many rows, which of a forest of full depth take ten.
_TREE_WORK = 1.5e9
_LEAST_TREE_ROWS = 25


@dataclass(frozen=True)
class Sample:
    """Rows to explain, and the training rows that contributions are measured from; both as a contract's matrix."""

    matrix: Matrix
    background: Matrix

    def thinned(self, rows: int) -> Sample:
        """The same background with at most so many rows, evenly spaced."""
        return Sample(self.matrix[evenly(len(self.matrix), rows)], self.background)


@dataclass(frozen=True)
class Shapley:
    """What moved the predictions of some rows.

    Attributes:
        method: how it was found, in words.
        rows: matrix of the rows looked at.
        values: by output, contributions of shape (rows, features) in the output's unit.
        probability_unit: unit of the contributions to a probability.
    """

    method: str
    rows: Matrix
    values: Mapping[str, Floats]
    probability_unit: str = LOG_ODDS


def evenly(count: int, wanted: int) -> npt.NDArray[np.int64]:
    """At most `wanted` positions among `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))


def slope(calibration: Mapping[str, Any]) -> float:
    """What a raw score's distance becomes in calibrated log-odds; one that is not a line leaves it as it is."""
    return float(calibration["slope"]) if calibration["method"] == "platt" else 1.0


def owners(contract: Contract, names: Sequence[str]) -> Floats:
    """0 and 1, (columns, features): sums contributions of encoded columns by the feature they were made from."""
    features = list(contract.features)
    owner = np.zeros((len(names), len(features)))
    owner[np.arange(len(names)), [features.index(name) for name in names]] = 1.0
    return owner


def linear_values(contract: Contract, encoder: Any, coefficients: Floats, sample: Sample) -> Floats:
    """Contributions to a sum over encoded columns, (rows, features), measured from the mean of the background."""
    import shap

    def dense(matrix: Matrix) -> Floats:
        return np.ascontiguousarray(encoder.transform(matrix), dtype=np.float64)

    background = shap.maskers.Independent(dense(sample.background), max_samples=len(sample.background))
    values = shap.LinearExplainer((coefficients, 0.0), background).shap_values(dense(sample.matrix))
    return np.asarray(values, dtype=np.float64) @ owners(contract, column_origins(contract, encoder))


def tree_values(forest: Any, columns: npt.NDArray[np.float32]) -> Floats:
    """Contributions of encoded columns to what a scikit-learn forest says, (rows, columns[, classes])."""
    import shap

    # Its own check of the sum loads the whole forest a second time; the sums are tested where this code is.
    return np.asarray(shap.TreeExplainer(forest).shap_values(columns, check_additivity=False), dtype=np.float64)


def affordable_rows(*forests: Any) -> int:
    """Rows that forests are explained on, decided by their size and not by a clock, so that equal forests have equal
    explanations.

    A row costs, in units of some two nanoseconds, leaves times squared depth, summed over the trees (Lundberg 2020).
    """
    trees = [estimator.tree_ for forest in forests for estimator in forest.estimators_]
    work = float(sum(tree.n_leaves * tree.max_depth**2 for tree in trees))
    return int(np.clip(_TREE_WORK / max(work, 1.0), _LEAST_TREE_ROWS, SAMPLE_ROWS))

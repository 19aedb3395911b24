"""How far in the tail of its own distribution each input lies, after ECOD (Li, Zhao, Hu, Botta, Ionescu, Chen 2022):
distributions as JSON, no library needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.predictors.anomaly import raw_anomaly
from serving.predictors.contract import Contract, Matrix, Predictor, Scores, read_json
from serving.predictors.shapley import Sample, Shapley

DETAILS_FILE = "ecod.json"
PRELOAD = ()  # nothing but what all of them import

Floats = npt.NDArray[np.float64]


class EcodPredictor(Predictor):
    """One set of distributions for all outputs, which differ in their thresholds."""

    def __init__(self, contract: Contract, details: Mapping[str, Any]) -> None:
        super().__init__(contract)
        self._details = details

    def scores(self, matrix: Matrix) -> Scores:
        """See `Predictor.scores`."""
        return np.column_stack(
            [raw_anomaly(self._strangeness, matrix, detail) for detail in self._details["outputs"].values()]
        )

    def _strangeness(self, matrix: Matrix) -> Floats:
        return strangeness(self._details, matrix)


def strangeness(details: Mapping[str, Any], matrix: Matrix) -> Floats:
    """Surprise of the inputs together, (rows,): the largest of them, or their sum."""
    whole = np.zeros(len(matrix))
    for own in surprises(details, matrix):
        whole = np.maximum(whole, own) if details["combine"] == "max" else whole + own
    return whole


def surprises(details: Mapping[str, Any], matrix: Matrix) -> list[Floats]:
    """Surprise of each input, (rows,)."""
    return [surprise(distribution, matrix[:, index]) for index, distribution in enumerate(details["inputs"])]


def surprise(distribution: Sequence[Mapping[str, Any]], values: npt.NDArray[np.float32]) -> Floats:
    """`-log` of the share of training rows that lie at least as far out, (rows,), of two tails the larger; 0 for a
    missing value.
    """
    largest = np.zeros(len(values))
    for tail in distribution:
        outward = tail["sign"] * values.astype(np.float64)
        knots = tail["knots"]
        own = np.interp(outward, knots, tail["surprise"])
        own += np.maximum(outward - knots[-1], 0.0) / tail["excess"]
        largest = np.maximum(largest, np.where(np.isnan(outward), 0.0, own))
    return largest


def explain(folder: Path, contract: Contract, sample: Sample) -> Shapley:
    """Contributions of every input to the surprise of all, measured from rows that surprise by nothing; exact."""
    details = read_json(folder / DETAILS_FILE)
    own = np.column_stack(surprises(details, sample.matrix))
    values = dict.fromkeys(details["outputs"], shares_of_largest(own) if details["combine"] == "max" else own)
    return Shapley("Shapley values in closed form", sample.matrix, values, "surprise, -log of a share of rows")


def shares_of_largest(parts: Floats) -> Floats:
    """Shapley values of the largest of each row's parts, none negative, (rows, parts): what lies between two parts in
    order is shared by all that reach it (Littlechild and Owen 1973).
    """
    order = np.argsort(parts, axis=1, kind="stable")
    steps = np.diff(np.take_along_axis(parts, order, axis=1), prepend=0.0, axis=1)
    reached = np.cumsum(steps / np.arange(parts.shape[1], 0, -1), axis=1)
    shares = np.empty_like(parts)
    np.put_along_axis(shares, order, reached, axis=1)
    return shares


def load(folder: Path, contract: Contract) -> EcodPredictor:
    """Load the distributions from a verified folder."""
    return EcodPredictor(contract, read_json(folder / DETAILS_FILE))

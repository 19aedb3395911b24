"""Dense networks: a `.keras` file loaded in safe mode, preprocessing constants as JSON. What other networks share lies
here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from serving.predictors.calibration import calibrated, ordered_interval
from serving.predictors.contract import Contract, Matrix, Predictor, Scores, read_json

DETAILS_FILE = "keras.json"
NETWORK_FILE = "network.keras"
_ROWS_TOGETHER = 16
CHUNK_ROWS = 65_536

Inputs = tuple[npt.NDArray[Any], ...]


class NetworkEncoding(Protocol):
    """From features to what a network sees, and back to the label's unit."""

    def inputs(self, matrix: Matrix) -> Inputs:
        """One array for each input of the network, every value finite; rows first."""

    def base(self, matrix: Matrix) -> Scores:
        """What regression outputs are added to, float64 of shape (rows,)."""


class KerasPredictor(Predictor):
    """One network for all outputs, called on chunks of 65,536 rows: forty times faster than `predict` at its default
    batch of 32.
    """

    chunk_rows = CHUNK_ROWS

    def __init__(
        self, contract: Contract, network: Callable[..., Any], encoding: NetworkEncoding, details: Mapping[str, Any]
    ) -> None:
        super().__init__(contract)
        self._network = network
        self._encoding = encoding
        self._details = details

    def scores(self, matrix: Matrix) -> Scores:
        """See `Predictor.scores`."""
        raw = np.asarray(self._network(*self._encoding.inputs(matrix)), dtype=np.float64)
        return decode(raw, self._encoding.base(matrix), self._details)


class Encoding:
    """What the network sees: standardised numbers, missing ones at their mean; flags of nulls; categories and levels of
    whole numbers as one-hot.
    """

    def __init__(self, contract: Contract, constants: Mapping[str, Any]) -> None:
        names = list(contract.features)
        self._numeric = [names.index(name) for name in constants["means"]]
        self._means = np.array(list(constants["means"].values()), dtype=np.float32)
        self._scales = np.array([constants["scales"][name] for name in constants["means"]], dtype=np.float32)
        self._flagged = [list(constants["means"]).index(name) for name in constants["null_flags"]]
        self._one_hot = [(names.index(name), count) for name, count in constants["one_hot"].items()]
        self._levels = [
            (names.index(name), np.array(values, dtype=np.float32)) for name, values in constants["levels"].items()
        ]
        self._residual_of = None if constants["residual_of"] is None else names.index(constants["residual_of"])
        self._residual_default = np.float64(constants["residual_default"])
        self.width = (
            len(self._numeric)
            + len(self._flagged)
            + sum(count for _, count in self._one_hot)
            + sum(len(values) for _, values in self._levels)
        )

    def encode(self, matrix: Matrix) -> npt.NDArray[np.float32]:
        """Network input, float32 of shape (rows, width), every value finite; standardised numbers are cut at 10
        deviations.
        """
        encoded = np.zeros((len(matrix), self.width), dtype=np.float32)
        numbers = encoded[:, : len(self._numeric)]
        chosen = matrix if len(self._numeric) == matrix.shape[1] else matrix[:, self._numeric]
        np.subtract(chosen, self._means, out=numbers)
        np.divide(numbers, self._scales, out=numbers)
        missing = np.isnan(numbers)
        np.copyto(numbers, 0.0, where=missing)
        np.clip(numbers, -10.0, 10.0, out=numbers)
        position = len(self._numeric) + len(self._flagged)
        encoded[:, len(self._numeric) : position] = missing[:, self._flagged]
        rows = np.arange(len(matrix))
        for index, count in self._one_hot:
            known = ~np.isnan(matrix[:, index])
            encoded[rows[known], position + matrix[known, index].astype(np.int64)] = 1.0
            position += count
        for index, values in self._levels:
            found = np.minimum(np.searchsorted(values, matrix[:, index]), len(values) - 1)
            known = values[found] == matrix[:, index]
            encoded[rows[known], position + found[known]] = 1.0
            position += len(values)
        return encoded

    def inputs(self, matrix: Matrix) -> Inputs:
        """See `NetworkEncoding.inputs`."""
        return (self.encode(matrix),)

    def base(self, matrix: Matrix) -> Scores:
        """What regression outputs are added to: the feature the network corrects, or a constant."""
        if self._residual_of is None:
            return np.full(len(matrix), self._residual_default)
        feature = matrix[:, self._residual_of].astype(np.float64)
        return np.where(np.isnan(feature), self._residual_default, feature)


def decode(raw: Scores, base: Scores, details: Mapping[str, Any]) -> Scores:
    """Predictions of raw network outputs, in the label's unit."""
    columns: list[Any] = []
    position = 0
    for detail in details["outputs"].values():
        if "calibration" in detail:
            columns.append(calibrated(raw[:, position], detail["calibration"]))
            position += 1
            continue
        center = base + details["label_scale"] * raw[:, position]
        columns.append(center)
        position += 1
        if "interval" in detail:
            # Distances from the centre through softplus: the bounds cannot cross it.
            below, above = (details["label_scale"] * np.logaddexp(0.0, raw[:, position + side]) for side in (0, 1))
            columns += ordered_interval(center, center - below, center + above, detail["interval"]["widen_by"])
            position += 2
    return np.column_stack(columns)


def compiled(network: Any) -> Callable[..., npt.NDArray[np.float32]]:
    """The network as one function of its inputs, any number of rows: traced once, whatever the chunk.

    A row's output has the same bits in any batch: a matrix product of a single row takes another way through the
    library than one of many, so rows are always given by sixteens, the last repeated where they do not fill one.
    """
    import tensorflow as tf

    signature = [tf.TensorSpec(part.shape, part.dtype) for part in network.inputs]
    function: Callable[..., Any] = tf.function(
        lambda *parts: network(list(parts) if len(parts) > 1 else parts[0], training=False), input_signature=signature
    )

    def forward(*parts: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        rows = len(parts[0])
        missing = -rows % _ROWS_TOGETHER
        if missing:
            parts = tuple(np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) for part in parts)
        return np.asarray(function(*parts))[:rows]

    return forward


def load_network(folder: Path) -> Callable[..., npt.NDArray[np.float32]]:
    """The compiled network of a verified folder."""
    import keras

    # Safe mode refuses anything in the file that would run code of its own.
    return compiled(keras.saving.load_model(folder / NETWORK_FILE, compile=False, safe_mode=True))


def load(folder: Path, contract: Contract) -> KerasPredictor:
    """Load network and constants from a verified folder."""
    details = read_json(folder / DETAILS_FILE)
    return KerasPredictor(contract, load_network(folder), Encoding(contract, details["encoding"]), details)

"""Dense networks: a `.keras` file loaded in safe mode, preprocessing constants as JSON. What other networks share lies
here too.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from serving.predictors.calibration import adjusted_interval, calibrated
from serving.predictors.contract import Contract, Matrix, Predictor, Scores, read_json
from serving.predictors.shapley import Sample, Shapley, owners, slope

DETAILS_FILE = "keras.json"
NETWORK_FILE = "network.keras"
PRELOAD = ("keras",)
_ROWS_TOGETHER = 16
CHUNK_ROWS = 65_536
# Of an explanation: rows looked at, and draws for each.
GRADIENT_ROWS = 200
GRADIENT_DRAWS = 200

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

    Attributes:
        width: inputs in all.
        numbers: how many of them, the first, are numbers and flags.
        one_hot: where the inputs of each category, and of each number with levels, lie; all of them are 0 for a null
            and for a value that training never met.
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
        self.numbers = len(self._numeric) + len(self._flagged)
        counts = [*(count for _, count in self._one_hot), *(len(values) for _, values in self._levels)]
        ends = np.cumsum([self.numbers, *counts]).tolist()
        self.one_hot = tuple(slice(start, end) for start, end in itertools.pairwise(ends) if end > start)
        self.width = int(ends[-1])

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
            nearest = np.minimum(np.searchsorted(values, matrix[:, index]), len(values) - 1)
            known = values[nearest] == matrix[:, index]
            encoded[rows[known], position + nearest[known]] = 1.0
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
            columns += adjusted_interval(center, center - below, center + above, detail["interval"])
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
    return compiled(read_network(folder))


def read_network(folder: Path) -> Any:
    """The network of a verified folder, as Keras has it."""
    import keras

    # Safe mode refuses anything in the file that would run code of its own.
    return keras.saving.load_model(folder / NETWORK_FILE, compile=False, safe_mode=True)


def load(folder: Path, contract: Contract) -> KerasPredictor:
    """Load network and constants from a verified folder."""
    details = read_json(folder / DETAILS_FILE)
    return KerasPredictor(contract, load_network(folder), Encoding(contract, details["encoding"]), details)


def explain(folder: Path, contract: Contract, sample: Sample) -> Shapley:
    """Contributions of every feature by SHAP's expected gradients."""
    import shap

    sample = sample.thinned(GRADIENT_ROWS)
    details = read_json(folder / DETAILS_FILE)
    constants = details["encoding"]
    encoding = Encoding(contract, constants)
    explainer = shap.GradientExplainer(read_network(folder), encoding.encode(sample.background))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The structure of `inputs`")  # the explainer hands over a list of one
        drawn = explainer.shap_values(encoding.encode(sample.matrix), nsamples=GRADIENT_DRAWS, rseed=contract.seed)
    # Each input of the network belongs to the feature it was made from.
    by_feature = np.asarray(drawn, dtype=np.float64).transpose(2, 0, 1) @ owners(contract, input_features(constants))
    values = decoded_contributions(contract, details, constants, by_feature, encoding, sample)
    return Shapley(f"Expected gradients (Gradient SHAP, {GRADIENT_DRAWS} draws a row)", sample.matrix, values)


def expected_gradients(
    network: Any, inputs: Sequence[npt.NDArray[Any]], background: Sequence[npt.NDArray[Any]], *, seed: int
) -> list[Scores]:
    """Shapley values of a network of several inputs by expected gradients (Erion and others 2021).

    SHAP's own explainer of gradients walks every input from the background to the row, and half a mask is none: here an
    input that is not a floating-point number stays the row's own.

    Returns:
        Per input, float64 of shape (outputs, rows, *its own); zeros for one that is not a floating-point number.
    """
    import tensorflow as tf

    random = np.random.default_rng(seed)
    moving = [index for index, part in enumerate(inputs) if np.issubdtype(part.dtype, np.floating)]
    rows, count = len(inputs[0]), int(network.outputs[0].shape[-1])
    totals = [np.zeros((count, *part.shape)) for part in inputs]

    def gradients(parts: Any) -> Any:
        watched = [parts[index] for index in moving]
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(watched)
            raw = network(list(parts), training=False)
            sums = [tf.reduce_sum(raw[:, position]) for position in range(count)]
        return [tape.gradient(one, watched, unconnected_gradients=tf.UnconnectedGradients.ZERO) for one in sums]

    traced = tf.function(gradients)
    for draw in range(GRADIENT_DRAWS):
        start = random.integers(0, len(background[0]), rows)
        share = ((draw + random.random(rows)) / GRADIENT_DRAWS).astype(np.float32)  # all stretches of the way alike
        ways = [inputs[index] - background[index][start] for index in moving]
        parts = list(inputs)
        for index, way in zip(moving, ways, strict=True):
            parts[index] = background[index][start] + share.reshape(-1, *[1] * (way.ndim - 1)) * way
        for position, slopes in enumerate(traced(tuple(tf.constant(part) for part in parts))):
            for index, way, gradient in zip(moving, ways, slopes, strict=True):
                totals[index][position] += way * np.asarray(gradient) / GRADIENT_DRAWS
    return totals


def input_features(constants: Mapping[str, Any]) -> list[str]:
    """The feature that each input of a dense encoding was made from."""
    one_hot = [name for name, count in constants["one_hot"].items() for _ in range(count)]
    return [
        *constants["means"],
        *constants["null_flags"],
        *one_hot,
        *(name for name, levels in constants["levels"].items() for _ in levels),
    ]


def decoded_contributions(
    contract: Contract,
    details: Mapping[str, Any],
    constants: Mapping[str, Any],
    raw: Scores,
    encoding: NetworkEncoding,
    sample: Sample,
) -> dict[str, Scores]:
    """Contributions to a network's raw outputs, (raw outputs, rows, features), as contributions to the outputs in their
    unit.
    """
    values, position = {}, 0
    for name, detail in details["outputs"].items():
        if "calibration" in detail:
            values[name] = raw[position] * slope(detail["calibration"])
        else:
            values[name] = raw[position] * details["label_scale"]
            if constants["residual_of"] is not None:
                corrected = list(contract.features).index(constants["residual_of"])
                values[name][:, corrected] += encoding.base(sample.matrix) - encoding.base(sample.background).mean()
        position += 3 if "interval" in detail else 1
    return values

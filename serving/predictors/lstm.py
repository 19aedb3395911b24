"""Recurrent networks: steps of a sequence from columns `<channel>_t<k>` of the prediction's own row, k = 0 the newest,
beside static features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.predictors.contract import Contract, Matrix, Scores, read_json
from serving.predictors.keras import (
    DETAILS_FILE,
    GRADIENT_DRAWS,
    GRADIENT_ROWS,
    Encoding,
    Inputs,
    KerasPredictor,
    decoded_contributions,
    expected_gradients,
    input_features,
    load_network,
    read_network,
)
from serving.predictors.shapley import Sample, Shapley, owners

PRELOAD = ("keras",)


class LstmPredictor(KerasPredictor):
    """A recurrent network for all outputs."""

    # All steps of a chunk are held at once: fewer rows than a dense network takes.
    chunk_rows = 8_192


class SequenceEncoding:
    """What a recurrent network sees: `sequence` float32 (rows, steps, channels and flags), `present` bool (rows,
    steps), `static` float32 (rows, width).

    A history shorter than the window is moved to the front, oldest step first, and what follows it is masked: the one
    place of padding that cuDNN takes. A row without any history has one step at the mean.
    """

    def __init__(self, contract: Contract, constants: Mapping[str, Any]) -> None:
        names = list(contract.features)
        channels, self._steps = constants["channels"], int(constants["steps"])
        self._columns = np.array(
            [names.index(f"{channel}_t{step}") for step in range(self._steps) for channel in channels]
        )
        self._means = np.array([channel["mean"] for channel in channels.values()], dtype=np.float32)
        self._scales = np.array([channel["scale"] for channel in channels.values()], dtype=np.float32)
        self._flagged = [list(channels).index(name) for name in constants["null_flags"]]
        self._static = Encoding(contract, constants["static"])
        self.sequence_shape = (self._steps, len(channels) + len(self._flagged))
        self.static_width = self._static.width

    def inputs(self, matrix: Matrix) -> Inputs:
        """See `NetworkEncoding.inputs`; standardised numbers are cut at 10 deviations."""
        newest_first = matrix[:, self._columns].reshape(len(matrix), self._steps, -1)
        missing = np.isnan(newest_first)
        length = history_length(missing)
        values = np.clip((newest_first - self._means) / self._scales, -10.0, 10.0)
        np.copyto(values, 0.0, where=missing)
        if self._flagged:
            values = np.concatenate([values, missing[:, :, self._flagged].astype(np.float32)], axis=2)
        age = length[:, None] - 1 - np.arange(self._steps)
        present = age >= 0
        if present.all():
            sequence = np.ascontiguousarray(values[:, ::-1])
        else:
            sequence = np.take_along_axis(values, np.maximum(age, 0)[:, :, None], axis=1)
            sequence[~present] = 0.0
        return sequence, present, self._static.encode(matrix)

    def base(self, matrix: Matrix) -> Scores:
        """See `NetworkEncoding.base`."""
        return self._static.base(matrix)


def history_length(missing: Any) -> Any:
    """Steps from the newest to the oldest one that any channel knows, at least 1; int64 (rows,) of a bool array (rows,
    steps newest first, channels).
    """
    steps = missing.shape[1]
    known = ~missing.all(axis=2)
    return np.where(known.any(axis=1), steps - np.argmax(known[:, ::-1], axis=1), 1)


def load(folder: Path, contract: Contract) -> LstmPredictor:
    """Load network and constants from a verified folder."""
    details = read_json(folder / DETAILS_FILE)
    return LstmPredictor(contract, load_network(folder), SequenceEncoding(contract, details["encoding"]), details)


def explain(folder: Path, contract: Contract, sample: Sample) -> Shapley:
    """Contributions of every feature by expected gradients; those of a channel's steps stand in its newest step."""
    sample = sample.thinned(GRADIENT_ROWS)
    details = read_json(folder / DETAILS_FILE)
    constants = details["encoding"]
    encoding = SequenceEncoding(contract, constants)
    sequence, _, static = expected_gradients(
        read_network(folder), encoding.inputs(sample.matrix), encoding.inputs(sample.background), seed=contract.seed
    )
    # A channel's steps are shown as one, so their sum may stand in the newest step's column.
    channels = [f"{name}_t0" for name in [*constants["channels"], *constants["null_flags"]]]
    by_feature = sequence.sum(axis=2) @ owners(contract, channels) + static @ owners(
        contract, input_features(constants["static"])
    )
    values = decoded_contributions(contract, details, constants["static"], by_feature, encoding, sample)
    return Shapley(f"Expected gradients ({GRADIENT_DRAWS} draws a row)", sample.matrix, values)

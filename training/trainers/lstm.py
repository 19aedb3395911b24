"""A recurrent network on TensorFlow: LSTM layers over the steps `<channel>_t<k>` of each row, then dense layers that
see the static features too.

A graph network is this one with `per_step`: a node's channels are then what it measured, x, and by the view's SQL what
its neighbours in an adjacency table did, Ax, and theirs, A²x. A dense layer of [x, Ax, A²x] in each step is a graph
convolution of two hops (Li, Yu, Shahabi and Liu, "Diffusion convolutional recurrent neural network", ICLR 2018; Wu et
al., "Simplifying graph convolutional networks", ICML 2019), the layers after it its recurrence; and a node alone is
predicted as among others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from config.catalog.output import Task
from serving.predictors.contract import Contract
from training.trainers import Fitted, Rows, Run
from training.trainers.keras_sequences import SequenceParams, train_sequences


class Params(SequenceParams):
    """What a catalog or a form may set."""

    units: tuple[int, ...] = Field((64,), min_length=1, description="units of each LSTM layer")
    per_step: tuple[int, ...] = Field(
        (),
        description="units of dense layers applied to each step before the recurrence; with means over the neighbours "
        "of a graph as channels, a graph convolution",
    )


LEARNS: tuple[Task, ...] = ("number", "event")
ROUNDS: str | None = "epochs"
QUICK: dict[str, Any] = {
    "units": [8],
    "dense": [16],
    "epochs": 20,
    "learning_rate": 0.02,
    "patience": 5,
    "max_levels": 10,
}


def train(
    contract: Contract, fit: Rows, validation: Rows, folder: Path, *, params: Mapping[str, Any], run: Run
) -> Fitted:
    """See `train_sequences`."""
    chosen = Params(**params)

    def read_steps(layers: Any, regularizer: Any, dropped: Callable[[Any], Any], sequence: Any, present: Any) -> Any:
        flow = sequence
        for index, units in enumerate(chosen.per_step):
            mixed = layers.Dense(units, activation="relu", kernel_regularizer=regularizer, name=f"per_step_{index}")
            flow = mixed(flow)
        for index, units in enumerate(chosen.units):
            # Activations and masks as cuDNN takes them; on a CPU the same layer runs step by step.
            more = index + 1 < len(chosen.units)
            flow = dropped(
                layers.LSTM(units, return_sequences=more, kernel_regularizer=regularizer, name=f"lstm_{index}")(
                    flow, mask=present
                )
            )
        return flow

    return train_sequences(contract, fit, validation, folder, chosen=chosen, run=run, read_steps=read_steps)

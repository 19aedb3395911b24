"""A recurrent network on TensorFlow: LSTM layers over the steps `<channel>_t<k>` of each row, then dense layers that
see the static features too.

A graph network is this one with `per_step`: a node's channels are then what it measured, x, and by the view's SQL what
its neighbours in an adjacency table did, Ax, and theirs, A²x. A dense layer of [x, Ax, A²x] in each step is a graph
convolution of two hops (Li, Yu, Shahabi and Liu, "Diffusion convolutional recurrent neural network", ICLR 2018; Wu et
al., "Simplifying graph convolutional networks", ICML 2019), the layers after it its recurrence; and a node alone is
predicted as among others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from config.catalog.output import Task
from serving.predictors.contract import Contract
from serving.predictors.lstm import LstmPredictor, SequenceEncoding
from training.trainers import Fitted, Rows, Run
from training.trainers.keras_fit import train_network
from training.trainers.keras_network import NetworkParams, output_width
from training.trainers.keras_sequences import sequence_channels, sequence_constants


class Params(NetworkParams):
    """What a catalog or a form may set."""

    units: tuple[int, ...] = Field((64,), min_length=1, description="units of each LSTM layer")
    dense: tuple[int, ...] = Field((32,), description="units of each dense layer after them")
    per_step: tuple[int, ...] = Field(
        (),
        description="units of dense layers applied to each step before the recurrence; with means over the neighbours "
        "of a graph as channels, a graph convolution",
    )
    gradient_clip: float = Field(1.0, ge=0, description="largest norm of all gradients together; 0: not limited")


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
    """Fit the network and write it into `folder`.

    Args:
        contract: features and outputs; its order is the order of the matrices. Features `<channel>_t0`, `<channel>_t1`,
            ... are the steps of a channel.
        fit, validation: rows to learn from; rows for early stopping, calibration and interval widths.
        params: as `validated_params` gives them.
        run: seed, device, progress, checkpoints, workers.
    Raises:
        NoGpu, TrainingImpossible, TrainingDiverged, WorkerLost: as their texts say; nothing usable is written.
    """
    chosen = Params(**params)
    channels = sequence_channels(contract)
    constants = sequence_constants(contract, fit, chosen, channels)  # checked before TensorFlow's seconds are spent
    encoding = SequenceEncoding(contract, constants)

    def build(keras: Any) -> Any:
        regularizer = keras.regularizers.L2(chosen.l2) if chosen.l2 else None
        layers, dropouts = keras.layers, iter(range(100))

        def dropped(flow: Any) -> Any:
            return (
                layers.Dropout(chosen.dropout, seed=(number := next(dropouts)), name=f"dropout_{number}")(flow)
                if chosen.dropout
                else flow
            )

        sequence = keras.Input(encoding.sequence_shape, name="sequence")
        present = keras.Input(encoding.sequence_shape[:1], dtype="bool", name="present")
        static = keras.Input((encoding.static_width,), name="static")
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
        flow = layers.Concatenate(name="with_static")([flow, static])
        for index, units in enumerate(chosen.dense):
            flow = dropped(
                layers.Dense(units, activation="relu", kernel_regularizer=regularizer, name=f"dense_{index}")(flow)
            )
        return keras.Model(
            [sequence, present, static], layers.Dense(output_width(contract), name="outputs")(flow), name=contract.model
        )

    fitted = train_network(
        contract,
        fit,
        validation,
        folder,
        chosen=chosen,
        run=run,
        encoding=encoding,
        constants=constants,
        build=build,
        together=channels,
        chunk_rows=LstmPredictor.chunk_rows,
    )
    fitted.details.update(steps=encoding.sequence_shape[0], channels=len(channels), static_inputs=encoding.static_width)
    return fitted

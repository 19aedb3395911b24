"""A transformer encoder on TensorFlow: attention over the steps `<channel>_t<k>` of each row, then dense layers that
see the static features too.
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

    width: int = Field(32, ge=2, description="numbers that stand for a step")
    heads: int = Field(4, ge=1, description="attentions side by side")
    blocks: int = Field(2, ge=1, le=24, description="layers of attention, each followed by two dense ones")
    widening: int = Field(2, ge=1, description="units of the first of them, times `width`")
    dense: tuple[int, ...] = Field((32,), description="units of each dense layer after the last block")
    gradient_clip: float = Field(1.0, ge=0, description="largest norm of all gradients together; 0: not limited")


LEARNS: tuple[Task, ...] = ("number", "event")
ROUNDS: str | None = "epochs"
QUICK: dict[str, Any] = {
    "width": 8,
    "heads": 2,
    "blocks": 1,
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

    Blocks normalise before they attend (Xiong and others 2020), so that no warm-up of the learning rate is needed; a
    place in the sequence is a learned vector. What lies before a history's first step is attended to by nobody.

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
        layers, dropouts = keras.layers, iter(range(1_000))

        def dropped(flow: Any) -> Any:
            return (
                layers.Dropout(chosen.dropout, seed=(number := next(dropouts)), name=f"dropout_{number}")(flow)
                if chosen.dropout
                else flow
            )

        def dense(units: int, activation: str | None, name: str) -> Any:
            return layers.Dense(units, activation=activation, kernel_regularizer=regularizer, name=name)

        sequence = keras.Input(encoding.sequence_shape, name="sequence")
        present = keras.Input(encoding.sequence_shape[:1], dtype="bool", name="present")
        static = keras.Input((encoding.static_width,), name="static")
        # One matrix for all steps, and a bias for each: the vector of its place.
        flow = layers.EinsumDense(
            "btc,cd->btd", (encoding.sequence_shape[0], chosen.width), bias_axes="td", name="steps"
        )(sequence)
        for index in range(chosen.blocks):
            calm = layers.LayerNormalization(name=f"before_attention_{index}")(flow)
            attention = layers.MultiHeadAttention(
                chosen.heads, max(1, chosen.width // chosen.heads), name=f"attention_{index}"
            )
            attended = attention(calm, calm, key_mask=present)
            # Keras counts these layers through the whole process, and writes the count into the file of the weights.
            for inner in attention._flatten_layers(include_self=False):
                inner.name = f"{attention.name}_{type(inner).__name__.lower()}"
            flow = layers.Add(name=f"attended_{index}")([flow, dropped(attended)])
            calm = layers.LayerNormalization(name=f"before_dense_{index}")(flow)
            widened = dense(chosen.widening * chosen.width, "gelu", f"widened_{index}")(calm)
            narrowed = dropped(dense(chosen.width, None, f"narrowed_{index}")(widened))
            flow = layers.Add(name=f"block_{index}")([flow, narrowed])
        flow = layers.LayerNormalization(name="after_blocks")(flow)
        flow = layers.GlobalAveragePooling1D(name="pooled")(flow, mask=present)
        flow = layers.Concatenate(name="with_static")([flow, static])
        for index, units in enumerate(chosen.dense):
            flow = dropped(dense(units, "relu", f"dense_{index}")(flow))
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

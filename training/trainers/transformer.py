"""A transformer encoder on TensorFlow: attention over the steps `<channel>_t<k>` of each row, or over their channels,
then dense layers that see the static features too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from config.catalog.output import Task
from serving.predictors.contract import Contract
from training.trainers import Fitted, Rows, Run
from training.trainers.keras_sequences import SequenceParams, train_sequences


class Params(SequenceParams):
    """What a catalog or a form may set."""

    tokens: Literal["steps", "channels"] = Field(
        "steps",
        description="what attends to what: each step with all its channels, or each channel with all its steps, which "
        "suits many channels of few steps",
    )
    width: int = Field(32, ge=2, description="numbers that stand for a step, or a channel")
    heads: int = Field(4, ge=1, description="attentions side by side")
    blocks: int = Field(2, ge=1, le=24, description="layers of attention, each followed by two dense ones")
    widening: int = Field(2, ge=1, description="units of the first of them, times `width`")


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
    """See `train_sequences`.

    Blocks normalise before they attend (Xiong and others 2020), so that no warm-up of the learning rate is needed; a
    place in the sequence is a learned vector. What lies before a history's first step is attended to by nobody. Where
    channels attend to channels (Liu and others, "iTransformer", 2024), such steps stand at the channel's mean.
    """
    chosen = Params(**params)

    def read_steps(layers: Any, regularizer: Any, dropped: Callable[[Any], Any], sequence: Any, present: Any) -> Any:
        def dense(units: int, activation: str | None, name: str) -> Any:
            return layers.Dense(units, activation=activation, kernel_regularizer=regularizer, name=name)

        flow, attended_to = (
            (layers.Permute((2, 1), name="turned")(sequence), None)
            if chosen.tokens == "channels"
            else (sequence, present)
        )
        # One matrix for all of them, and a bias for each: the vector of its place.
        flow = layers.EinsumDense("btc,cd->btd", (flow.shape[1], chosen.width), bias_axes="td", name="steps")(flow)
        for index in range(chosen.blocks):
            calm = layers.LayerNormalization(name=f"before_attention_{index}")(flow)
            attention = layers.MultiHeadAttention(
                chosen.heads, max(1, chosen.width // chosen.heads), name=f"attention_{index}"
            )
            attended = attention(calm, calm, key_mask=attended_to)
            # Keras counts these layers through the whole process, and writes the count into the file of the weights.
            for inner in attention._flatten_layers(include_self=False):
                inner.name = f"{attention.name}_{type(inner).__name__.lower()}"
            flow = layers.Add(name=f"attended_{index}")([flow, dropped(attended)])
            calm = layers.LayerNormalization(name=f"before_dense_{index}")(flow)
            widened = dense(chosen.widening * chosen.width, "gelu", f"widened_{index}")(calm)
            narrowed = dropped(dense(chosen.width, None, f"narrowed_{index}")(widened))
            flow = layers.Add(name=f"block_{index}")([flow, narrowed])
        flow = layers.LayerNormalization(name="after_blocks")(flow)
        return layers.GlobalAveragePooling1D(name="pooled")(flow, mask=attended_to)

    return train_sequences(contract, fit, validation, folder, chosen=chosen, run=run, read_steps=read_steps)

"""What every network over sequences shares in training: channels from columns `<channel>_t<k>`, their constants, and
the frame around what a family makes of the steps: inputs before it, dense layers that see static features after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from serving.predictors.contract import Contract
from serving.predictors.lstm import LstmPredictor, SequenceEncoding, history_length
from training.trainers import Fitted, Rows, Run, TrainingImpossible
from training.trainers.keras_fit import train_network
from training.trainers.keras_network import NetworkParams, output_width, static_constants

# Layers of Keras, their regularizer, dropout of the next number, the sequence (rows, steps, channels) and which of its
# steps are present (rows, steps): one vector a row.
ReadSteps = Callable[[Any, Any, Callable[[Any], Any], Any, Any], Any]

_STEP = re.compile(r"(?P<channel>.+__.+)_t(?P<step>0|[1-9]\d*)")


class SequenceParams(NetworkParams):
    """What every network over sequences may be told."""

    dense: tuple[int, ...] = Field((32,), description="units of each dense layer after the steps were read")
    gradient_clip: float = Field(1.0, ge=0, description="largest norm of all gradients together; 0: not limited")


def train_sequences(
    contract: Contract,
    fit: Rows,
    validation: Rows,
    folder: Path,
    *,
    chosen: SequenceParams,
    run: Run,
    read_steps: ReadSteps,
) -> Fitted:
    """Fit a network over sequences and write it into `folder`.

    Args:
        contract: features and outputs; its order is the order of the matrices. Features `<channel>_t0`, `<channel>_t1`,
            ... are the steps of a channel.
        fit, validation: rows to learn from; rows for early stopping, calibration and interval widths.
        read_steps: the family's layers; every one has a name.
    Raises:
        NoGpu, TrainingImpossible, TrainingDiverged, WorkerLost: as their texts say; nothing usable is written.
    """
    channels = sequence_channels(contract)
    constants = sequence_constants(contract, fit, chosen, channels)  # checked before TensorFlow's seconds are spent
    encoding = SequenceEncoding(contract, constants)

    def build(keras: Any) -> Any:
        layers, regularizer = keras.layers, keras.regularizers.L2(chosen.l2) if chosen.l2 else None
        dropouts = iter(range(1_000))

        def dropped(flow: Any) -> Any:
            return (
                layers.Dropout(chosen.dropout, seed=(number := next(dropouts)), name=f"dropout_{number}")(flow)
                if chosen.dropout
                else flow
            )

        sequence = keras.Input(encoding.sequence_shape, name="sequence")
        present = keras.Input(encoding.sequence_shape[:1], dtype="bool", name="present")
        static = keras.Input((encoding.static_width,), name="static")
        flow = read_steps(layers, regularizer, dropped, sequence, present)
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


def sequence_channels(contract: Contract) -> dict[str, list[str]]:
    """Columns of each channel, the newest step first.

    Raises:
        TrainingImpossible: there is no channel, a step is missing, channels differ in length, or one is of text.
    """
    steps: dict[str, dict[int, str]] = {}
    for name, spec in contract.features.items():
        if parts := _STEP.fullmatch(name):
            steps.setdefault(parts["channel"], {})[int(parts["step"])] = name
            if spec.categories is not None:
                raise TrainingImpossible(
                    f"{contract.model}: the step {name!r} holds text, but a sequence takes numbers. Derive a number "
                    "from it in the view."
                )
    if not steps:
        raise TrainingImpossible(
            f"{contract.model}: no feature is named as a step of a sequence (`<name>_t0` the newest, `<name>_t1`, "
            f"...), which the {contract.family} family needs. "
            "Add such columns to a view, or take another family."
        )
    window = max(max(columns) for columns in steps.values()) + 1
    for channel, columns in steps.items():
        missing = [step for step in range(window) if step not in columns]
        if missing:
            raise TrainingImpossible(
                f"{contract.model}: the channel {channel!r} has no step {channel}_t{missing[0]}, though a window of "
                f"{window} steps begins at t0 and "
                f"ends at t{window - 1} ({len(missing)} of {window} are missing). Give every channel every step in its "
                "view."
            )
    return {channel: [columns[step] for step in range(window)] for channel, columns in steps.items()}


def sequence_constants(
    contract: Contract, fit: Rows, chosen: NetworkParams, channels: Mapping[str, list[str]]
) -> dict[str, Any]:
    """Preprocessing constants, from training rows alone; one mean and scale for all steps of a channel."""
    names = list(contract.features)
    in_channels = {name for columns in channels.values() for name in columns}
    static = static_constants(contract, fit, chosen, [name for name in names if name not in in_channels])
    missing = {
        channel: np.isnan(fit.matrix[:, [names.index(name) for name in columns]])
        for channel, columns in channels.items()
    }
    window = len(next(iter(channels.values())))
    length = history_length(np.stack(list(missing.values()), axis=2))
    inside = np.arange(window) < length[:, None]
    constants: dict[str, Any] = {}
    for channel, columns in channels.items():
        values = fit.matrix[:, [names.index(name) for name in columns]].astype(np.float64)
        present = values[~missing[channel]]
        mean, deviation = (float(present.mean()), float(present.std())) if len(present) else (0.0, 0.0)
        constants[channel] = {"mean": mean, "scale": deviation or 1.0}
    # A step that lies inside the history and is not known: told to the network, since its value says nothing then.
    flags = [channel for channel in channels if (missing[channel] & inside).any()]
    return {"steps": window, "channels": constants, "null_flags": flags, "static": static}

"""A dense network on TensorFlow: all outputs from one trunk; losses are absolute, squared or quantile errors and
cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from config.catalog.output import Task
from serving.predictors.contract import Contract
from serving.predictors.keras import CHUNK_ROWS, Encoding
from training.trainers import Fitted, Rows, Run
from training.trainers.keras_fit import train_network
from training.trainers.keras_network import NetworkParams, output_width, static_constants


class Params(NetworkParams):
    """What a catalog or a form may set."""

    hidden: tuple[int, ...] = Field((128, 64), min_length=1, description="units of each dense layer")
    embedding: int = Field(
        0,
        ge=0,
        description=(
            "numbers that each category, and each level of `max_levels`, becomes, learned with the rest; 0: an "
            "input of its own for each"
        ),
    )
    forget: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of rows whose category is taken for an unknown one while it learns, with `embedding`",
    )


LEARNS: tuple[Task, ...] = ("number", "event")
ROUNDS: str | None = "epochs"
QUICK: dict[str, Any] = {"hidden": [16], "epochs": 20, "learning_rate": 0.02, "patience": 5, "max_levels": 10}


def train(
    contract: Contract, fit: Rows, validation: Rows, folder: Path, *, params: Mapping[str, Any], run: Run
) -> Fitted:
    """Fit the network and write it into `folder`.

    Args:
        contract: features and outputs; its order is the order of the matrices.
        fit, validation: rows to learn from; rows for early stopping, calibration and interval widths.
        params: as `validated_params` gives them.
        run: seed, device, progress, checkpoints, workers.
    Raises:
        NoGpu, TrainingImpossible, TrainingDiverged, WorkerLost: as their texts say; nothing usable is written.
    """
    chosen = Params(**params)
    # Checked before TensorFlow's seconds are spent.
    constants = static_constants(contract, fit, chosen, contract.features)
    encoding = Encoding(contract, constants)

    def build(keras: Any) -> Any:
        regularizer = keras.regularizers.L2(chosen.l2) if chosen.l2 else None
        inputs = keras.Input((encoding.width,), name="features")
        flow = _embedded(keras, inputs, encoding, chosen) if chosen.embedding and encoding.one_hot else inputs
        for index, units in enumerate(chosen.hidden):
            flow = keras.layers.Dense(units, activation="relu", kernel_regularizer=regularizer, name=f"dense_{index}")(
                flow
            )
            if chosen.dropout:
                flow = keras.layers.Dropout(chosen.dropout, seed=index, name=f"dropout_{index}")(flow)
        return keras.Model(
            inputs, keras.layers.Dense(output_width(contract), name="outputs")(flow), name=contract.model
        )

    fitted = train_network(
        contract, fit, validation, folder,
        chosen=chosen, run=run, encoding=encoding, constants=constants, build=build, together={}, chunk_rows=CHUNK_ROWS,
    )  # fmt: skip
    fitted.details["inputs"] = encoding.width
    return fitted


def _embedded(keras: Any, inputs: Any, encoding: Encoding, chosen: Params) -> Any:
    """The inputs with a learned vector in the place of each feature's one-hot inputs.

    A layer without bias over one-hot inputs is a table of vectors, one for each category. A null, and a value never
    met, has zeros for a vector: the layers behind learn what that means from rows with a null, and from those whose
    category is forgotten.
    """
    layers = keras.layers
    cells = layers.Reshape((encoding.width, 1), name="cells")(inputs)

    def part(where: slice, name: str) -> Any:
        # A slice by index would be an operation whose name Keras counts through the whole process.
        cropped = layers.Cropping1D((where.start, encoding.width - where.stop), name=f"{name}_cells")(cells)
        return layers.Flatten(name=f"{name}_inputs")(cropped)

    parts = [part(slice(0, encoding.numbers), "numbers")] if encoding.numbers else []
    for number, where in enumerate(encoding.one_hot):
        size = max(1, min(chosen.embedding, where.stop - where.start - 1))
        flow = layers.Dense(size, use_bias=False, name=f"embedding_{number}")(part(where, f"category_{number}"))
        if chosen.forget:
            # Apart from the seeds of the other dropouts, which count from 0.
            flow = layers.Dropout(chosen.forget, noise_shape=(None, 1), seed=1_000 + number, name=f"forget_{number}")(
                flow
            )
        parts.append(flow)
    return layers.Concatenate(name="embedded")(parts) if len(parts) > 1 else parts[0]

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
    constants = static_constants(
        contract, fit, chosen, contract.features
    )  # checked before TensorFlow's seconds are spent
    encoding = Encoding(contract, constants)

    def build(keras: Any) -> Any:
        regularizer = keras.regularizers.L2(chosen.l2) if chosen.l2 else None
        inputs = keras.Input((encoding.width,), name="features")
        flow = inputs
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

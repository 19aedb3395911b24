"""What every network over sequences shares in training: channels from columns `<channel>_t<k>`, and their constants."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.predictors.contract import Contract
from serving.predictors.lstm import history_length
from training.trainers import Rows, TrainingImpossible
from training.trainers.keras_network import NetworkParams, static_constants

_STEP = re.compile(r"(?P<channel>.+__.+)_t(?P<step>0|[1-9]\d*)")


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

"""ECOD: how far in the tail of its own distribution each input of a row lies, learned without labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from config.catalog.output import Task
from serving.predictors.contract import Contract, FeatureSpec, write_json
from serving.predictors.ecod import DETAILS_FILE, strangeness, surprise
from training.trainers import FamilyParams, Fitted, Floats, NoGpu, Rows, Run, TrainingImpossible, normalised
from training.trainers.anomaly import fit_anomaly

# Of each distribution: so many steps over all rows, and each of so many of the outermost values.
_STEPS = 400
_TAIL = 0.01


class Params(FamilyParams):
    """What a catalog or a form may set."""

    combine: Literal["max", "sum"] = "max"
    tails: Literal["upper", "both"] = "both"


LEARNS: tuple[Task, ...] = ("anomaly",)
ROUNDS: str | None = None
QUICK: dict[str, Any] = {}


def train(
    contract: Contract, fit: Rows, validation: Rows, folder: Path, *, params: Mapping[str, Any], run: Run
) -> Fitted:
    """Learn one distribution for each input, choose thresholds on validation rows, and write both into `folder`.

    Labels are never looked at. A category is the more surprising the rarer it is, a missing value not at all.

    Args:
        contract: features and outputs, all of them anomalies; its order is the order of the matrices.
        fit, validation: rows of the distributions; rows of the thresholds.
        params: as `validated_params` gives them.
        run: device and workers.
    Raises:
        NoGpu, TrainingImpossible: as their texts say; nothing is written.
    """
    chosen = Params(**params)
    if run.device == "gpu":
        raise NoGpu("trainer.device is gpu, but ecod counts on the CPU. Set `device: auto`.")
    if run.cluster and len(run.cluster.addresses) > 1:
        raise TrainingImpossible(
            f"{contract.model}: ecod trains in one process, the job has {len(run.cluster.addresses)} workers. Set "
            "`training.workers: 1`, or take a family with data parallelism."
        )
    inputs = [
        _distribution(np.asarray(fit.matrix[:, index], np.float64), spec, chosen.tails)
        for index, spec in enumerate(contract.features.values())
    ]
    details: dict[str, Any] = {"combine": chosen.combine, "inputs": inputs}
    strange = strangeness(details, validation.matrix)
    details["outputs"] = {name: fit_anomaly(contract, name, strange, fit, validation) for name in contract.outputs}
    write_json(folder / DETAILS_FILE, details)
    importances = _importances(contract, inputs, validation, strange)
    return Fitted("cpu", {}, dict.fromkeys(contract.outputs, importances), ("numpy", "pyarrow"))


def _distribution(values: Floats, spec: FeatureSpec, tails: str) -> list[dict[str, Any]]:
    """The tails of an input; none where it has no value."""
    values = values[~np.isnan(values)]
    if not len(values):
        return []
    if spec.categories is not None:
        counts = np.bincount(values.astype(np.int64), minlength=len(spec.categories))
        rare = -np.log(np.maximum(counts, 1) / len(values))
        return [{"sign": 1.0, "knots": list(range(len(counts))), "surprise": rare.tolist(), "excess": 1.0}]
    return [_tail(values, sign) for sign in ((1.0,) if tails == "upper" else (1.0, -1.0))]


def _tail(values: Floats, sign: float) -> dict[str, Any]:
    ordered = np.sort(sign * values)
    rows = len(ordered)
    places = np.concatenate([np.linspace(0, rows - 1, _STEPS), np.arange(max(0, rows - _STEPS), rows)])
    knots = np.unique(ordered[np.rint(places).astype(np.int64)])
    beyond: npt.NDArray[np.int64] = rows - np.searchsorted(ordered, knots, side="left")
    outer = ordered[min(int(rows * (1.0 - _TAIL)), rows - 1) :]
    excess = float((outer - outer[0]).mean())
    return {
        "sign": sign,
        "knots": knots.tolist(),
        "surprise": (-np.log(beyond / rows)).tolist(),
        "excess": excess if excess > 0.0 else 1.0,
    }


def _importances(
    contract: Contract, inputs: list[list[dict[str, Any]]], validation: Rows, strange: Floats
) -> dict[str, float]:
    """How surprising each input is among the strangest rows of validation."""
    strangest = np.argsort(-strange, kind="stable")[: max(1, int(len(strange) * _TAIL))]
    mean = {
        name: float(surprise(inputs[index], validation.matrix[strangest, index]).mean())
        for index, name in enumerate(contract.features)
    }
    return normalised(mean, contract)

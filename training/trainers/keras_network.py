"""What every network on Keras shares, whatever it sees: constants of static features, outputs and their loss,
calibration, the file, importances.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from serving.predictors.contract import Contract
from training.trainers import FamilyParams, Floats, Rows, TrainingImpossible, normalised
from training.trainers.calibration import Method, fit_calibration, fit_interval

_IMPORTANCE_ROWS = 2_000


class NetworkParams(FamilyParams):
    """What every network on Keras may be told."""

    dropout: float = Field(0.0, ge=0, lt=1)
    learning_rate: float = Field(0.002, gt=0)
    l2: float = Field(0.0, ge=0)
    gradient_clip: float = Field(0.0, ge=0, description="largest norm of all gradients together; 0: not limited")
    batch_size: int = Field(256, ge=1, description="rows of one step, over all replicas")
    epochs: int = Field(150, ge=1)
    patience: int = Field(15, ge=1, description="epochs without a better validation loss before it stops")
    residual_of: str | None = Field(None, description="a feature the network corrects, for example last week's value")
    max_levels: int = Field(
        0,
        ge=0,
        description=(
            "a whole number with at most so many values in training gets an input for each, for example the hour"
        ),
    )
    max_categories: int = Field(256, ge=1, description="most categories of one feature that get an input of their own")
    calibration: Method = "platt"
    threads: int = Field(2, ge=1)


def static_constants(contract: Contract, fit: Rows, chosen: NetworkParams, names: Iterable[str]) -> dict[str, Any]:
    """Preprocessing constants of the named features, from training rows alone, for `serving.predictors.keras.Encoding`.

    Raises:
        TrainingImpossible: `residual_of` is not a feature, or a feature has more categories than a network takes.
    """
    if chosen.residual_of is not None and chosen.residual_of not in contract.features:
        raise TrainingImpossible(
            f"{contract.model}: residual_of names {chosen.residual_of!r}, which is not a feature. Known: "
            f"{', '.join(contract.features)}."
        )
    wanted = set(names)
    means, scales, flags, one_hot, levels = {}, {}, [], {}, {}
    for index, (name, spec) in enumerate(contract.features.items()):
        if name not in wanted:
            continue
        if spec.categories is not None:
            if len(spec.categories) > chosen.max_categories:
                raise TrainingImpossible(
                    f"{contract.model}: the feature {name!r} has {len(spec.categories)} categories, a network of this "
                    f"family takes {chosen.max_categories}. "
                    "Raise `max_categories`, or derive a coarser feature in the view."
                )
            one_hot[name] = len(spec.categories)
            continue
        column = fit.matrix[:, index].astype(np.float64)
        present = column[~np.isnan(column)]
        means[name] = float(present.mean()) if len(present) else 0.0
        scales[name] = (float(present.std()) if len(present) else 0.0) or 1.0
        if len(present) < len(column):
            flags.append(name)
        if spec.type in {"int32", "int64"} and 2 < len(values := np.unique(present)) <= chosen.max_levels:
            levels[name] = values.tolist()
    default = float(np.median(fit.label))
    encoding = {"means": means, "scales": scales, "null_flags": flags, "one_hot": one_hot, "levels": levels}
    return {**encoding, "residual_of": chosen.residual_of, "residual_default": default}


def output_positions(contract: Contract) -> dict[str, int]:
    """Where each output begins among the network's numbers: one number, or three with an interval."""
    positions, position = {}, 0
    for name, output in contract.outputs.items():
        positions[name] = position
        position += 3 if output.get("interval") else 1
    return positions


def output_width(contract: Contract) -> int:
    """How many numbers the network gives for one row."""
    return sum(3 if output.get("interval") else 1 for output in contract.outputs.values())


def targets(contract: Contract, rows: Rows, base: Floats, scale: float) -> Any:
    """What the network should give, float32 (rows, outputs): the residual in units of `scale`, or 0 and 1."""
    residual = (rows.label - base) / scale
    columns = [output.truth(rows.label) if output.task == "event" else residual for output in contract.kinds.values()]
    return np.column_stack(columns).astype(np.float32)


def row_losses(contract: Contract) -> Callable[[Any, Any], Any]:
    """The loss of each row, summed over the outputs: absolute, squared and quantile errors, and cross-entropy."""
    from keras import ops

    positions = output_positions(contract)

    def losses(truth: Any, raw: Any) -> Any:
        total = 0.0
        for column, (name, output) in enumerate(contract.outputs.items()):
            wanted, position = truth[:, column], positions[name]
            center = raw[:, position]
            if contract.kinds[name].task == "event":
                total += ops.softplus(center) - wanted * center
                continue
            error = wanted - center
            total += ops.abs(error) if output["objective"] == "median" else ops.square(error)
            if output.get("interval"):
                tail = (1.0 - output["interval"]) / 2.0
                # The centre is held still here: the bounds must not pull it.
                still = ops.stop_gradient(center)
                low = wanted - (still - ops.softplus(raw[:, position + 1]))
                high = wanted - (still + ops.softplus(raw[:, position + 2]))
                total += ops.maximum(tail * low, (tail - 1.0) * low) + ops.maximum((1.0 - tail) * high, -tail * high)
        return total

    return losses


def output_details(
    contract: Contract, label: Floats, raw: Floats, base: Floats, scale: float, calibration: Method
) -> dict[str, Any]:
    """Calibration of each probability and widening of each interval, from raw outputs of validation rows."""
    details: dict[str, Any] = {}
    for name, position in output_positions(contract).items():
        output = contract.outputs[name]
        if contract.kinds[name].task == "event":
            truth = contract.kinds[name].truth(label)
            details[name] = {"calibration": fit_calibration(raw[:, position], truth, calibration)}
            continue
        details[name] = {}
        if output.get("interval"):
            center = base + scale * raw[:, position]
            below, above = (scale * np.logaddexp(0.0, raw[:, position + side]) for side in (1, 2))
            details[name]["interval"] = fit_interval(output, label, center, center - below, center + above)
    return details


def save_network(network: Any, path: Path) -> None:
    """Save, then write the archive again without times and memory addresses in it: equal weights give equal bytes."""
    network.save(path)
    addresses: dict[str, int] = {}

    def numbered(match: re.Match[str]) -> str:
        return f'"shared_object_id": {addresses.setdefault(match[1], len(addresses))}'

    with (
        zipfile.ZipFile(io.BytesIO(path.read_bytes())) as saved,
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as written,
    ):
        for name in sorted(saved.namelist()):
            content = saved.read(name)
            if name == "metadata.json":
                content = json.dumps(
                    json.loads(content) | {"date_saved": "1980-01-01@00:00:00"}, sort_keys=True
                ).encode()
            elif name == "config.json":
                content = re.sub(r'"shared_object_id": (\d+)', numbered, content.decode()).encode()
            written.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)


def importances(
    contract: Contract,
    validation: Rows,
    predict: Callable[[Any], Any],
    seed: int,
    together: Mapping[str, Sequence[str]],
) -> dict[str, dict[str, float]]:
    """How much the predictions' error grows when a feature is shuffled among a sample of validation rows.

    Args:
        together: features that are shuffled as one, since each follows from the others, and share the growth equally;
            what a row does not know of them stays unknown, or the length of its history would be shuffled too. Others
            are shuffled alone.
    """
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.permutation(len(validation.label))[:_IMPORTANCE_ROWS])
    matrix, label = np.asarray(validation.matrix[chosen]), validation.label[chosen]
    columns = {name: contract.raw_columns.index(name) for name in contract.outputs}
    names = list(contract.features)
    joined = {name for group in together.values() for name in group}
    groups = [[name] for name in names if name not in joined] + [list(group) for group in together.values()]

    def errors(candidate: Any) -> dict[str, float]:
        scores = predict(candidate)
        return {
            name: float(np.mean(np.abs(scores[:, columns[name]] - output.truth(label))))
            for name, output in contract.kinds.items()
        }

    whole = errors(matrix)
    growth: dict[str, dict[str, float]] = {name: {} for name in contract.outputs}
    for group in groups:
        shuffled = matrix.copy()
        positions = [names.index(name) for name in group]
        own, other = matrix[:, positions], matrix[generator.permutation(len(matrix))][:, positions]
        shuffled[:, positions] = np.where(np.isnan(own) | np.isnan(other), own, other) if len(group) > 1 else other
        for name, error in errors(shuffled).items():
            growth[name] |= dict.fromkeys(group, (error - whole[name]) / len(group))
    return {name: normalised(values, contract) for name, values in growth.items()}

"""A dense network on TensorFlow: all outputs from one trunk; losses are absolute, squared or quantile errors and cross-entropy."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from serving.predictors.calibration import ordered_interval
from serving.predictors.contract import Contract, write_json
from serving.predictors.keras import DETAILS_FILE, NETWORK_FILE, Encoding, compiled, decode
from training.progress import Progress
from training.trainers import FamilyParams, Fitted, Floats, NoGpu, Rows, Run, TrainingDiverged, TrainingImpossible, normalised
from training.trainers.calibration import Method, fit_calibration, fit_widening

_SAY_EVERY = 10
_IMPORTANCE_ROWS = 2_000


class Params(FamilyParams):
    """What a catalog or a form may set."""

    hidden: tuple[int, ...] = Field((128, 64), min_length=1, description="units of each dense layer")
    dropout: float = Field(0.0, ge=0, lt=1)
    learning_rate: float = Field(0.002, gt=0)
    l2: float = Field(0.0, ge=0)
    batch_size: int = Field(256, ge=1)
    epochs: int = Field(150, ge=1)
    patience: int = Field(15, ge=1, description="epochs without a better validation loss before it stops")
    residual_of: str | None = Field(None, description="a feature the network corrects, for example last week's value")
    max_levels: int = Field(0, ge=0, description="a whole number with at most so many values in training gets an input for each, for example the hour")
    max_categories: int = Field(256, ge=1, description="most categories of one feature that get an input of their own")
    calibration: Method = "platt"
    threads: int = Field(2, ge=1)


def train(contract: Contract, fit: Rows, validation: Rows, folder: Path, *, params: Mapping[str, Any], run: Run) -> Fitted:
    """Fit the network and write it into `folder`.

    Args:
        contract: features and outputs; its order is the order of the matrices.
        fit, validation: rows to learn from; rows for early stopping, calibration and interval widths.
        params: as `validated_params` gives them.
        run: seed, device, progress, checkpoints, workers.
    Raises:
        NoGpu, TrainingImpossible, TrainingDiverged: as their texts say; nothing usable is written.
    """
    chosen = Params(**params)
    constants = _constants(contract, fit, chosen)  # checked before TensorFlow's seconds are spent
    import keras
    import tensorflow as tf

    used = _choose_device(tf, run.device)
    with suppress(RuntimeError):  # TensorFlow is in use in this process already and keeps the threads it has
        tf.config.threading.set_intra_op_parallelism_threads(chosen.threads)
        tf.config.threading.set_inter_op_parallelism_threads(chosen.threads)
    keras.utils.set_random_seed(run.seed)
    tf.config.experimental.enable_op_determinism()

    encoding = Encoding(contract, constants)
    residual = fit.label - encoding.base(fit.matrix)
    scale = float(np.std(residual)) or 1.0
    details: dict[str, Any] = {"encoding": constants, "label_scale": scale, "outputs": {}}
    network, width = _network(keras, encoding.width, contract, chosen)
    targets = {id(rows): _targets(contract, rows, encoding, scale) for rows in (fit, validation)}
    trained = keras.Model(network.inputs, network.outputs, name="trained")
    trained.compile(optimizer=keras.optimizers.Adam(chosen.learning_rate), loss=_loss(keras, contract))
    history = trained.fit(
        encoding.encode(fit.matrix),
        targets[id(fit)],
        validation_data=(encoding.encode(validation.matrix), targets[id(validation)]),
        batch_size=chosen.batch_size,
        validation_batch_size=65_536,
        epochs=chosen.epochs,
        shuffle=True,
        verbose=0,
        callbacks=[
            _report(keras, chosen.epochs, run.progress),
            keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=max(1, chosen.patience // 3)),
            keras.callbacks.EarlyStopping(monitor="val_loss", patience=chosen.patience, restore_best_weights=True),
        ],
    )
    losses = history.history["val_loss"]
    best = int(np.argmin(losses)) + 1
    run.progress.line(f"keras network: best epoch {best} of {len(losses)}, validation loss {losses[best - 1]:.5g}")

    forward = compiled(network, encoding.width)

    def raw_of(matrix: Any) -> Floats:
        return np.asarray(forward(encoding.encode(matrix)), dtype=np.float64)

    raw = raw_of(validation.matrix)
    base = encoding.base(validation.matrix)
    for name, position in _positions(contract).items():
        output = contract.outputs[name]
        if output["kind"] == "binary":
            truth = np.where(validation.label > output["above"], 1.0, 0.0)
            details["outputs"][name] = {"calibration": fit_calibration(raw[:, position], truth, chosen.calibration)}
        else:
            details["outputs"][name] = {}
            if output.get("interval"):
                center = base + scale * raw[:, position]
                below, above = (scale * np.logaddexp(0.0, raw[:, position + side]) for side in (1, 2))
                lower, upper = ordered_interval(center, center - below, center + above, 0.0)
                details["outputs"][name]["interval"] = {"widen_by": fit_widening(validation.label, lower, upper, output["interval"])}
    _save(network, folder / NETWORK_FILE)
    write_json(folder / DETAILS_FILE, details)
    importances = _importances(contract, validation, lambda matrix: decode(raw_of(matrix), encoding.base(matrix), details), run.seed)
    return Fitted(used, {"network": best}, importances, ("tensorflow", "keras", "numpy", "pyarrow"), {"inputs": encoding.width, "outputs": width})


def _choose_device(tf: Any, wanted: str) -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if wanted == "gpu" and not gpus:
        raise NoGpu("trainer.device is gpu, but TensorFlow sees none. Set `device: auto` to train on the CPU, or run the job where a GPU is.")
    if wanted == "cpu" and gpus:
        tf.config.set_visible_devices([], "GPU")
    return "gpu" if gpus and wanted != "cpu" else "cpu"


def _constants(contract: Contract, fit: Rows, chosen: Params) -> dict[str, Any]:
    """Preprocessing constants, from training rows alone."""
    if chosen.residual_of is not None and chosen.residual_of not in contract.features:
        raise TrainingImpossible(f"{contract.model}: residual_of names {chosen.residual_of!r}, which is no feature. Known: {', '.join(contract.features)}.")
    means, scales, flags, one_hot, levels = {}, {}, [], {}, {}
    for index, (name, spec) in enumerate(contract.features.items()):
        column = fit.matrix[:, index].astype(np.float64)
        present = column[~np.isnan(column)]
        if spec.categories is not None:
            if len(spec.categories) > chosen.max_categories:
                raise TrainingImpossible(
                    f"{contract.model}: the feature {name!r} has {len(spec.categories)} categories, a network of this family takes {chosen.max_categories}. "
                    "Raise `max_categories`, or derive a coarser feature in the view."
                )
            one_hot[name] = len(spec.categories)
            continue
        means[name] = float(present.mean()) if len(present) else 0.0
        scales[name] = (float(present.std()) if len(present) else 0.0) or 1.0
        if len(present) < len(column):
            flags.append(name)
        if spec.type in {"int32", "int64"} and 2 < len(values := np.unique(present)) <= chosen.max_levels:
            levels[name] = values.tolist()
    default = float(np.median(fit.label))
    encoding = {"means": means, "scales": scales, "null_flags": flags, "one_hot": one_hot, "levels": levels}
    return {**encoding, "residual_of": chosen.residual_of, "residual_default": default}


def _positions(contract: Contract) -> dict[str, int]:
    """Where each output begins in the network's output: one number, or three with an interval."""
    positions, position = {}, 0
    for name, output in contract.outputs.items():
        positions[name] = position
        position += 3 if output.get("interval") else 1
    return positions


def _network(keras: Any, width: int, contract: Contract, chosen: Params) -> tuple[Any, int]:
    count = sum(3 if output.get("interval") else 1 for output in contract.outputs.values())
    regularizer = keras.regularizers.L2(chosen.l2) if chosen.l2 else None
    inputs = keras.Input((width,), name="features")
    flow = inputs
    for index, units in enumerate(chosen.hidden):
        flow = keras.layers.Dense(units, activation="relu", kernel_regularizer=regularizer, name=f"dense_{index}")(flow)
        if chosen.dropout:
            flow = keras.layers.Dropout(chosen.dropout, name=f"dropout_{index}")(flow)
    return keras.Model(inputs, keras.layers.Dense(count, name="outputs")(flow), name=contract.model), count


def _targets(contract: Contract, rows: Rows, encoding: Encoding, scale: float) -> Any:
    """One column an output: the scaled residual, or 0 and 1."""
    residual = (rows.label - encoding.base(rows.matrix)) / scale
    columns = [np.where(rows.label > o["above"], 1.0, 0.0) if o["kind"] == "binary" else residual for o in contract.outputs.values()]
    return np.column_stack(columns).astype(np.float32)


def _loss(keras: Any, contract: Contract) -> Any:
    ops = keras.ops
    positions = _positions(contract)

    def loss(truth: Any, raw: Any) -> Any:
        total = 0.0
        for column, (name, output) in enumerate(contract.outputs.items()):
            wanted, position = truth[:, column], positions[name]
            center = raw[:, position]
            if output["kind"] == "binary":
                total += ops.mean(ops.softplus(center) - wanted * center)
                continue
            error = wanted - center
            total += ops.mean(ops.abs(error) if output["objective"] == "median" else ops.square(error))
            if output.get("interval"):
                tail = (1.0 - output["interval"]) / 2.0
                # The centre is held still here: the bounds must not pull it.
                still = ops.stop_gradient(center)
                low = wanted - (still - ops.softplus(raw[:, position + 1]))
                high = wanted - (still + ops.softplus(raw[:, position + 2]))
                total += ops.mean(ops.maximum(tail * low, (tail - 1.0) * low)) + ops.mean(ops.maximum((1.0 - tail) * high, -tail * high))
        return total

    return loss


def _report(keras: Any, epochs: int, progress: Progress) -> Any:
    class Report(keras.callbacks.Callback):  # type: ignore[misc]
        """Curves each epoch, a line now and then; stops at the first loss that is no number."""

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            for metric, split in (("loss", "train"), ("val_loss", "validation")):
                value = float(logs[metric])
                if not np.isfinite(value):
                    raise TrainingDiverged(
                        f"keras network: {split} loss is {value} in epoch {epoch + 1} of {epochs}. Lower `learning_rate`, and look for extreme labels."
                    )
                progress.point(f"{split}/network/loss", epoch + 1, value)
            if (epoch + 1) % _SAY_EVERY == 0:
                progress.line(f"keras network: epoch {epoch + 1} of {epochs}, validation loss {float(logs['val_loss']):.5g}")

    return Report()


def _save(network: Any, path: Path) -> None:
    """Save, then write the archive again without times and memory addresses in it: equal weights give equal bytes."""
    network.save(path)
    addresses: dict[str, int] = {}

    def numbered(match: re.Match[str]) -> str:
        return f'"shared_object_id": {addresses.setdefault(match[1], len(addresses))}'

    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as saved, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as written:
        for name in sorted(saved.namelist()):
            content = saved.read(name)
            if name == "metadata.json":
                content = json.dumps(json.loads(content) | {"date_saved": "1980-01-01@00:00:00"}, sort_keys=True).encode()
            elif name == "config.json":
                content = re.sub(r'"shared_object_id": (\d+)', numbered, content.decode()).encode()
            written.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)


def _importances(contract: Contract, validation: Rows, predict: Any, seed: int) -> dict[str, dict[str, float]]:
    """How much the predictions' error grows when one feature is shuffled among a sample of validation rows."""
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.permutation(len(validation.label))[:_IMPORTANCE_ROWS])
    matrix, label = validation.matrix[chosen], validation.label[chosen]
    columns = _columns(contract)

    def errors(candidate: Any) -> dict[str, float]:
        scores = predict(candidate)
        return {
            name: float(np.mean(np.abs(scores[:, columns[name]] - (np.where(label > o["above"], 1.0, 0.0) if o["kind"] == "binary" else label))))
            for name, o in contract.outputs.items()
        }

    whole = errors(matrix)
    growth: dict[str, dict[str, float]] = {name: {} for name in contract.outputs}
    for index, feature in enumerate(contract.features):
        shuffled = matrix.copy()
        shuffled[:, index] = shuffled[generator.permutation(len(shuffled)), index]
        for name, error in errors(shuffled).items():
            growth[name][feature] = error - whole[name]
    return {name: normalised(values, contract) for name, values in growth.items()}


def _columns(contract: Contract) -> dict[str, int]:
    return {name: contract.output_columns.index(name) for name in contract.outputs}

"""Random forests: a median or mean with an interval, and calibrated probabilities, each from a forest of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from config.catalog.output import OutputKind, Task
from serving.metrics.log_loss import METRIC as LOG_LOSS
from serving.metrics.mae import METRIC as MAE
from serving.metrics.rmse import METRIC as RMSE
from serving.predictors.calibration import sigmoid
from serving.predictors.contract import Contract, write_json
from serving.predictors.random_forest import DETAILS_FILE, TRUSTED, encoded, forest_trees, log_odds, summed
from serving.predictors.sklearn_model import column_origins, read_model
from training.trainers import FamilyParams, Fitted, Floats, Rows, Run, normalised, truth_to_learn
from training.trainers.calibration import Method, fit_calibration, fit_class_calibrations, fit_interval
from training.trainers.sklearn_rows import (
    LIBRARIES,
    cpu_alone,
    steps_of,
    summed_by_feature,
    tree_encoder,
    write_model,
)

_STEPS = 10
_FOREST_FILE = "forest.skops"
_BOUNDS_FILE = "bounds.npy"


class Params(FamilyParams):
    """What a catalog or a form may set; scikit-learn's names."""

    n_estimators: int = Field(100, ge=1, le=10_000, description="trees of each forest")
    max_depth: int | None = Field(
        12,
        ge=1,
        le=100,
        description="None lets trees grow until `min_samples_leaf` stops them, and their files with them",
    )
    min_samples_split: int = Field(2, ge=2)
    min_samples_leaf: int = Field(5, ge=1)
    max_features: float | Literal["sqrt", "log2"] = Field(
        0.4, gt=0, le=1, description="share of the features that a split chooses from"
    )
    max_samples: float = Field(1.0, gt=0, le=1, description="share of the rows that a tree draws, with replacement")
    max_leaf_nodes: int | None = Field(None, ge=2)
    calibration: Method = "platt"
    threads: int = Field(2, ge=1, description="trees that grow at once; the forest is the same with any number")


LEARNS: tuple[Task, ...] = ("number", "event", "classes")
ROUNDS: str | None = "n_estimators"
QUICK: dict[str, Any] = {"n_estimators": 30, "threads": 1}


def train(
    contract: Contract, fit: Rows, validation: Rows, folder: Path, *, params: Mapping[str, Any], run: Run
) -> Fitted:
    """Grow one forest an output and write them into `folder`.

    Splits minimise squared error whatever the objective. For a median the leaves say the median of their training rows,
    as under scikit-learn's criterion `absolute_error`, whose splits take seven times as long; an interval's bounds are
    their quantiles, both averaged over the trees. The bounds are widened on validation.

    Args:
        contract: features and outputs; its order is the order of the matrices.
        fit, validation: rows to learn from; rows for curves, calibration and interval widths.
        params: as `validated_params` gives them.
        run: seed, device, progress, checkpoints, workers.
    Raises:
        NoGpu, TrainingImpossible: as their texts say; nothing usable is written.
    """
    from sklearn.pipeline import Pipeline

    chosen = Params(**params)
    used = cpu_alone("random_forest", contract, run)
    # Refused before the first forest has grown.
    targets = {
        name: fit.label if output.task == "number" else truth_to_learn(contract, name, fit)
        for name, output in contract.kinds.items()
    }
    importances: dict[str, dict[str, float]] = {}
    details: dict[str, dict[str, Any]] = {}
    for name, output in contract.outputs.items():
        kind = contract.kinds[name]
        encoder = tree_encoder(contract, kind.task, len(fit.label))
        matrix = np.ascontiguousarray(encoder.fit_transform(fit.matrix, targets[name]), dtype=np.float32)
        held_out_target = kind.truth(validation.label)
        forest, bounds, means = _grow(
            name, kind, output, matrix, targets[name], encoded(encoder, validation.matrix), held_out_target, chosen, run
        )
        write_model(Pipeline([("encode", encoder), ("model", forest)]), folder / f"{name}.skops")
        details[name] = {"file": f"{name}.skops"}
        if kind.task == "event":
            details[name]["calibration"] = fit_calibration(log_odds(means[:, 0]), held_out_target, chosen.calibration)
        elif kind.task == "classes":
            details[name]["class_calibrations"] = fit_class_calibrations(
                log_odds(means), held_out_target, chosen.calibration
            )
        elif bounds is not None:
            np.save(folder / f"{name}_interval.npy", bounds, allow_pickle=False)
            details[name]["interval"] = {
                "file": f"{name}_interval.npy",
                **fit_interval(output, validation.label, means[:, 0], means[:, 1], means[:, 2]),
            }
        importances[name] = normalised(
            summed_by_feature(contract, column_origins(contract, encoder), forest.feature_importances_), contract
        )
    write_json(folder / DETAILS_FILE, {"outputs": details})
    return Fitted(used, dict.fromkeys(contract.outputs, chosen.n_estimators), importances, LIBRARIES)


def _grow(
    name: str,
    kind: OutputKind,
    output: Mapping[str, Any],
    matrix: npt.NDArray[np.float32],
    target: Floats,
    held_out: npt.NDArray[np.float32],
    held_out_target: Floats,
    chosen: Params,
    run: Run,
) -> tuple[Any, Floats | None, Floats]:
    """Forest, bounds of its nodes, and what it says of the held-out rows.

    Trees come in steps, each seeded by its number: a curve to look at, and a forest that a killed training leaves goes
    on as if nothing had been.
    """
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    classifier, every_class = kind.task != "number", kind.task == "classes"
    shape = chosen.model_dump(
        include={"max_depth", "min_samples_split", "min_samples_leaf", "max_features", "max_leaf_nodes"}
    )
    forest = (RandomForestClassifier if classifier else RandomForestRegressor)(
        **shape,
        max_samples=chosen.max_samples if chosen.max_samples < 1.0 else None,
        random_state=run.seed,
        n_jobs=chosen.threads,
        warm_start=True,
    )
    levels, grown = _levels(output), 0
    bounds: Any = np.empty((0, 2)) if output.get("interval") else None
    total: Any = 0.0
    saved = run.checkpoints.load(name)
    if saved:
        forest = read_model(saved.folder / _FOREST_FILE, type(forest).__name__, TRUSTED)["model"]
        bounds = np.load(saved.folder / _BOUNDS_FILE, allow_pickle=False) if bounds is not None else None
        grown = len(forest.estimators_)
        total = summed(forest_trees(forest, bounds, every_class=every_class), held_out)
        run.progress.line(f"random forest {name}: goes on from {grown} trees")
    by_label = np.argsort(target, kind="stable")
    for trees in steps_of(chosen.n_estimators, _STEPS):
        if trees <= grown:
            continue
        forest.set_params(n_estimators=trees).fit(matrix, target)
        fresh = (
            [_leaf_quantiles(e.tree_, matrix, target, by_label, levels) for e in forest.estimators_[grown:]]
            if levels
            else []
        )
        if output.get("objective") == "median":
            for estimator, (leaves, quantiles) in zip(forest.estimators_[grown:], fresh, strict=True):
                estimator.tree_.value[leaves, 0, 0] = quantiles[leaves, 0]
        fresh_bounds = np.concatenate([quantiles[:, -2:] for _, quantiles in fresh]) if bounds is not None else None
        total = total + summed(forest_trees(forest, fresh_bounds, grown, every_class=every_class), held_out)
        bounds = np.concatenate([bounds, fresh_bounds]) if bounds is not None else None
        grown = trees
        metric, value = _error(kind, output, total / trees, held_out_target)
        run.progress.point(f"validation/{name}/{metric}", trees, value)
        run.progress.line(
            f"random forest {name}: {trees} of {chosen.n_estimators} trees, validation {metric} {value:.5g}"
        )
        if run.checkpoints.due():
            _save(name, forest, bounds, trees, chosen, run)
    # The number of threads decides nothing, so it must not be in the bytes.
    return forest.set_params(n_jobs=1, warm_start=False), bounds, total / grown


def _save(name: str, forest: Any, bounds: Floats | None, trees: int, chosen: Params, run: Run) -> None:
    from sklearn.pipeline import Pipeline

    def write(folder: Path) -> None:
        write_model(Pipeline([("encode", "passthrough"), ("model", forest)]), folder / _FOREST_FILE)
        if bounds is not None:
            np.save(folder / _BOUNDS_FILE, bounds, allow_pickle=False)

    run.checkpoints.save(name, write, {"trees": trees}, finished=trees == chosen.n_estimators)


def _levels(output: Mapping[str, Any]) -> list[float]:
    """Quantiles that the leaves must say: the median, where it is the objective; the bounds of the interval."""
    tail = (1.0 - output["interval"]) / 2.0 if output.get("interval") else None
    return ([0.5] if output.get("objective") == "median" else []) + ([] if tail is None else [tail, 1.0 - tail])


def _leaf_quantiles(
    tree: Any, matrix: npt.NDArray[np.float32], target: Floats, by_label: npt.NDArray[np.intp], levels: list[float]
) -> tuple[npt.NDArray[np.intp], Floats]:
    """Nodes that are leaves, and quantiles of the training labels in each, float64 of shape (nodes, levels), 0 in nodes
    that are none.
    """
    leaf_of = tree.apply(matrix)
    sorted_target = target[by_label[np.argsort(leaf_of[by_label], kind="stable")]]  # by leaf, and by label within it
    counts = np.bincount(leaf_of, minlength=tree.node_count)
    leaves = np.flatnonzero(counts)
    position = (np.cumsum(counts) - counts)[leaves, None] + np.array(levels) * (counts[leaves, None] - 1)
    low = np.floor(position).astype(np.intp)
    high = np.ceil(position).astype(np.intp)
    quantiles = np.zeros((tree.node_count, len(levels)))
    quantiles[leaves] = sorted_target[low] + (position - low) * (sorted_target[high] - sorted_target[low])
    return leaves, quantiles


def _error(kind: OutputKind, output: Mapping[str, Any], said: Floats, target: Floats) -> tuple[str, float]:
    """Name and value of a curve's point, from what the trees say, (rows, 1, 3 or classes)."""
    if kind.task == "classes":
        return "mlogloss", LOG_LOSS.value(target, said)
    if kind.task == "event":
        return "logloss", LOG_LOSS.value(target, sigmoid(log_odds(said[:, 0])))
    if output["objective"] == "median":
        return "mae", MAE.value(target, said[:, 0])
    return "rmse", RMSE.value(target, said[:, 0])

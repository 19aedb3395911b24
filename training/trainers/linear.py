"""Linear models: a median or mean with an interval, and calibrated probabilities, all as sums over the same columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from config.catalog.output import Task
from serving.predictors.contract import Contract, write_json
from serving.predictors.linear import DETAILS_FILE, MODEL_FILE
from serving.predictors.sklearn_model import linear_scores
from training.trainers import FamilyParams, Fitted, Floats, Rows, Run, TrainingDiverged, truth_to_learn
from training.trainers.calibration import Method, fit_calibration, fit_interval
from training.trainers.sklearn_rows import (
    LIBRARIES,
    cpu_alone,
    design,
    linear_encoder,
    linear_importances,
    write_model,
)

# Of the labels' deviation: how far from a label a quantile regression takes its error for a straight line.
_SMOOTH = 1e-3
_SAY_EVERY = 20
_WEIGHTS_FILE = "weights.npy"


class Params(FamilyParams):
    """What a catalog or a form may set; scikit-learn's names."""

    alpha: float = Field(
        1.0, gt=0, description="weight of the squared coefficients, as of Ridge on standardised columns and labels"
    )
    max_categories: int = Field(
        100, ge=2, description="columns for one feature's categories; the rarest share the last"
    )
    max_iter: int = Field(200, ge=1, description="most reweightings of a median or another quantile")
    tol: float = Field(1e-5, gt=0, description="relative gain of a reweighting below which it ends")
    calibration: Method = "platt"


LEARNS: tuple[Task, ...] = ("number", "event")
ROUNDS: str | None = None
QUICK: dict[str, Any] = {}


def train(
    contract: Contract, fit: Rows, validation: Rows, folder: Path, *, params: Mapping[str, Any], run: Run
) -> Fitted:
    """Fit every output on the same standardised columns and write them into `folder`.

    A mean is a ridge regression. A median, and the bounds of an interval, are quantile regressions with the same
    penalty: scikit-learn's own is a linear programme that does not end on a hundred thousand rows, so ridge regressions
    are reweighted until the quantile's loss falls no more. A probability is a ridge regression of 0 and 1, put on the
    scale of log odds on training rows and calibrated on validation.

    Args:
        contract: features and outputs; its order is the order of the matrices.
        fit, validation: rows to learn from; rows for curves, calibration and interval widths.
        params: as `validated_params` gives them.
        run: seed, device, progress, checkpoints, workers.
    Raises:
        NoGpu, TrainingImpossible, TrainingDiverged: as their texts say; nothing usable is written.
    """
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import Pipeline
    from threadpoolctl import threadpool_limits

    chosen = Params(**params)
    used = cpu_alone("linear", contract, run)
    truths = {
        name: truth_to_learn(contract, name, fit) for name, output in contract.kinds.items() if output.task == "event"
    }
    encoder = linear_encoder(contract, chosen.max_categories)
    rows: dict[str, Floats] = {}
    iterations: dict[str, int] = {}
    with threadpool_limits(1):  # sums depend on how many threads share them
        columns, held_out = design(encoder, fit.matrix, fit=True), design(encoder, validation.matrix)
        labels = _Labels.of(fit, validation)
        for name, output in contract.outputs.items():
            if name in truths:
                rows[name], iterations[name] = _log_odds(columns, truths[name], chosen), 1
                continue
            for stage, level in _stages(name, output).items():
                rows[stage], iterations[stage] = _number(stage, level, columns, held_out, labels, chosen, run)
    stacked = np.vstack(list(rows.values()))
    if not np.isfinite(stacked).all():
        raise TrainingDiverged(
            f"{contract.model}: a linear model's coefficients are not finite. Raise `alpha`, and look for extreme "
            "labels."
        )
    model = Ridge(alpha=chosen.alpha)
    model.coef_, model.intercept_, model.n_features_in_ = (
        stacked[:, :-1].copy(),
        stacked[:, -1].copy(),
        columns.shape[1],
    )
    pipeline = Pipeline([("encode", encoder), ("model", model)])
    write_model(pipeline, folder / MODEL_FILE)
    positions = _positions(contract)
    details: dict[str, dict[str, Any]] = {}
    raw = linear_scores(pipeline, validation.matrix)
    for name, position in positions.items():
        details[name] = {}
        if name in truths:
            details[name]["calibration"] = fit_calibration(
                raw[:, position], contract.kinds[name].truth(validation.label), chosen.calibration
            )
        elif contract.outputs[name].get("interval"):
            details[name]["interval"] = fit_interval(
                contract.outputs[name], validation.label, *raw[:, position : position + 3].T
            )
    write_json(folder / DETAILS_FILE, {"outputs": details})
    deviations = columns.std(axis=0)
    importances = {
        name: linear_importances(contract, encoder, stacked[position, :-1], deviations)
        for name, position in positions.items()
    }
    return Fitted(used, iterations, importances, LIBRARIES, {"inputs": columns.shape[1]})


@dataclass(frozen=True)
class _Labels:
    """Labels of training and validation rows around their middle, in units of their deviation."""

    middle: float
    scale: float
    fit: Floats
    validation: Floats

    @classmethod
    def of(cls, fit: Rows, validation: Rows) -> _Labels:
        middle, scale = float(np.median(fit.label)), float(np.std(fit.label)) or 1.0
        return cls(middle, scale, (fit.label - middle) / scale, (validation.label - middle) / scale)


def _stages(name: str, output: Mapping[str, Any]) -> dict[str, float | None]:
    """What is fitted for a number, in the order of the rows: the quantile it is, None for the mean."""
    stages: dict[str, float | None] = {name: 0.5 if output["objective"] == "median" else None}
    if output.get("interval"):
        tail = (1.0 - output["interval"]) / 2.0
        stages |= {f"{name}_lower": tail, f"{name}_upper": 1.0 - tail}
    return stages


def _least_squares(columns: Floats, wanted: Floats, chosen: Params) -> Floats:
    """Coefficients of a ridge regression, the intercept last."""
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=chosen.alpha).fit(columns, wanted)
    return np.append(model.coef_, model.intercept_)


def _log_odds(columns: Floats, truth: Floats, chosen: Params) -> Floats:
    """Coefficients of a probability's log odds, the intercept last: those of two normal clouds of equal shape are a
    line through the score of a ridge regression.
    """
    weights = _least_squares(columns, truth, chosen)
    odds = fit_calibration(columns @ weights[:-1] + weights[-1], truth, "platt")
    row: Floats = odds["slope"] * weights
    row[-1] += odds["intercept"]
    return row


def _number(
    stage: str, level: float | None, columns: Floats, held_out: Floats, labels: _Labels, chosen: Params, run: Run
) -> tuple[Floats, int]:
    """Coefficients in the label's unit, the intercept last, and the regressions it took."""
    weights, iterations = _least_squares(columns, labels.fit, chosen), 1
    if level is not None:
        weights, iterations = _quantile(
            stage, level, weights, (columns, labels.fit), (held_out, labels.validation, labels.scale), chosen, run
        )
    row = weights * labels.scale
    row[-1] += labels.middle
    return row, iterations


def _positions(contract: Contract) -> dict[str, int]:
    """Where each output's row of coefficients is: the first of three with an interval."""
    positions, position = {}, 0
    for name, output in contract.outputs.items():
        positions[name] = position
        position += 3 if output.get("interval") else 1
    return positions


def _quantile(
    stage: str,
    level: float,
    weights: Floats,
    fit: tuple[Floats, Floats],
    held_out: tuple[Floats, Floats, float],
    chosen: Params,
    run: Run,
) -> tuple[Floats, int]:
    """Coefficients, the intercept last, that minimise a quantile's loss plus `alpha` times their squares; and the
    reweightings it took.

    Each step minimises parabolas that lie on or above the loss, bent smooth near zero, and touch it where the last step
    ended, so that it never rises (Hunter and Lange, 2000); their minimum is a weighted ridge regression.

    Args:
        weights: where to begin.
        fit, held_out: columns and scaled label; the latter's scale beside them, for curves in the label's unit.
    """
    from sklearn.linear_model import Ridge

    columns, target = fit
    model = Ridge(alpha=chosen.alpha)
    done, loss = 0, np.inf
    saved = run.checkpoints.load(stage)
    if saved:
        weights, done, loss = (
            np.load(saved.folder / _WEIGHTS_FILE, allow_pickle=False),
            saved.state["iteration"],
            saved.state["loss"],
        )
        run.progress.line(f"linear {stage}: goes on from reweighting {done}")
    finished = bool(saved and saved.finished)
    while not finished:
        residual = target - (columns @ weights[:-1] + weights[-1])
        distance = np.abs(residual) + _SMOOTH
        model.fit(columns, target + (2.0 * level - 1.0) * distance, sample_weight=0.25 / distance)
        weights = np.append(model.coef_, model.intercept_)
        done += 1
        before = loss
        loss = _loss(weights, columns, target, level) * len(target) + chosen.alpha * float(
            np.square(weights[:-1]).sum()
        )
        if not np.isfinite(loss):
            raise TrainingDiverged(
                f"linear {stage}: the loss is {loss} in reweighting {done}. Raise `alpha`, and look for extreme labels."
            )
        finished = done >= chosen.max_iter or before - loss <= chosen.tol * loss
        value = _loss(weights, held_out[0], held_out[1], level) * held_out[2]
        run.progress.point(f"validation/{stage}/quantile", done, value)
        if finished or done % _SAY_EVERY == 0:
            run.progress.line(
                f"linear {stage}: reweighting {done} of at most {chosen.max_iter}, validation quantile loss {value:.5g}"
            )
        if run.checkpoints.due():
            _save(stage, weights, {"iteration": done, "loss": loss}, finished, run)
    return weights, done


def _save(stage: str, weights: Floats, state: Mapping[str, Any], finished: bool, run: Run) -> None:
    run.checkpoints.save(
        stage, lambda folder: np.save(folder / _WEIGHTS_FILE, weights, allow_pickle=False), state, finished=finished
    )


def _loss(weights: Floats, columns: Floats, target: Floats, level: float) -> float:
    """Mean quantile loss."""
    error = target - (columns @ weights[:-1] + weights[-1])
    return float(np.maximum(level * error, (level - 1.0) * error).mean())

"""Logistic regression: calibrated probabilities from sums over standardised columns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from config.catalog.output import Task
from serving.metrics.log_loss import METRIC
from serving.predictors.calibration import sigmoid
from serving.predictors.contract import Contract, write_json
from serving.predictors.logistic import DETAILS_FILE, TRUSTED
from serving.predictors.sklearn_model import linear_scores, read_model
from training.trainers import FamilyParams, Fitted, Floats, Rows, Run, TrainingDiverged, truth_to_learn
from training.trainers.calibration import Method, fit_calibration
from training.trainers.sklearn_rows import (
    LIBRARIES,
    cpu_alone,
    design,
    linear_encoder,
    linear_importances,
    write_model,
)

_STEP = 2  # Newton steps between two points of the curve; scikit-learn says that it has arrived by taking fewer
_MODEL_FILE = "model.skops"


class Params(FamilyParams):
    """What a catalog or a form may set; scikit-learn's names."""

    C: float = Field(1.0, gt=0, description="how little the squared coefficients weigh")
    max_categories: int = Field(
        100, ge=2, description="columns for one feature's categories; the rarest share the last"
    )
    max_iter: int = Field(100, ge=1, description="most Newton steps")
    tol: float = Field(1e-4, gt=0, description="largest slope of the loss at which it ends")
    calibration: Method = "platt"


LEARNS: tuple[Task, ...] = ("event",)
ROUNDS: str | None = None
QUICK: dict[str, Any] = {}


def train(
    contract: Contract, fit: Rows, validation: Rows, folder: Path, *, params: Mapping[str, Any], run: Run
) -> Fitted:
    """Fit one regression an output and write them into `folder`.

    Args:
        contract: features and outputs, all of them binary; its order is the order of the matrices.
        fit, validation: rows to learn from; rows for curves and calibration.
        params: as `validated_params` gives them.
        run: seed, device, progress, checkpoints, workers.
    Raises:
        NoGpu, TrainingImpossible, TrainingDiverged: as their texts say; nothing usable is written.
    """
    from sklearn.pipeline import Pipeline
    from threadpoolctl import threadpool_limits

    chosen = Params(**params)
    used = cpu_alone("logistic", contract, run)
    truths = {name: truth_to_learn(contract, name, fit) for name in contract.outputs}
    encoder = linear_encoder(contract, chosen.max_categories)
    details, iterations, importances = {}, {}, {}
    with threadpool_limits(1):  # sums depend on how many threads share them
        columns, held_out = design(encoder, fit.matrix, fit=True), design(encoder, validation.matrix)
        deviations = columns.std(axis=0)
        for name, truth in truths.items():
            held_out_truth = contract.kinds[name].truth(validation.label)
            model, iterations[name] = _descend(name, (columns, truth), (held_out, held_out_truth), chosen, run)
            pipeline = Pipeline([("encode", encoder), ("model", model)])
            write_model(pipeline, folder / f"{name}.skops")
            logits = linear_scores(pipeline, validation.matrix)[:, 0]
            details[name] = {
                "file": f"{name}.skops",
                "calibration": fit_calibration(logits, held_out_truth, chosen.calibration),
            }
            importances[name] = linear_importances(contract, encoder, model.coef_[0], deviations)
    write_json(folder / DETAILS_FILE, {"outputs": details})
    return Fitted(used, iterations, importances, LIBRARIES, {"inputs": columns.shape[1]})


def _descend(
    name: str, fit: tuple[Floats, Floats], held_out: tuple[Floats, Floats], chosen: Params, run: Run
) -> tuple[Any, int]:
    """The regression and the Newton steps it took, in pairs: a step knows nothing but the coefficients before it, so a
    killed training goes on from them.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # Newton's steps with the whole Hessian: many rows, few columns, and bits that repeat.
    model = LogisticRegression(C=chosen.C, tol=chosen.tol, solver="newton-cholesky", warm_start=True)
    done, finished = 0, False
    saved = run.checkpoints.load(name)
    if saved:
        model = read_model(saved.folder / _MODEL_FILE, "LogisticRegression", TRUSTED)["model"]
        done, finished = saved.state["iteration"], saved.finished
        run.progress.line(f"logistic {name}: goes on from step {done}")
    while not finished:
        allowed = min(_STEP, chosen.max_iter - done)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of each pair but the last
            model.set_params(max_iter=allowed).fit(*fit)
        taken = int(model.n_iter_[0])
        done += taken
        logits = held_out[0] @ model.coef_[0] + model.intercept_[0]
        value = METRIC.value(held_out[1], sigmoid(np.clip(logits, -30.0, 30.0)))
        if not np.isfinite(value):
            raise TrainingDiverged(
                f"logistic {name}: validation logloss is {value} in step {done}. Lower `C`, and look for extreme "
                "features."
            )
        finished = taken < allowed or done >= chosen.max_iter
        run.progress.point(f"validation/{name}/logloss", done, value)
        run.progress.line(f"logistic {name}: step {done} of at most {chosen.max_iter}, validation logloss {value:.5g}")
        if run.checkpoints.due():
            _save(name, model, done, finished, run)
    return model.set_params(max_iter=chosen.max_iter, warm_start=False), done


def _save(name: str, model: Any, done: int, finished: bool, run: Run) -> None:
    from sklearn.pipeline import Pipeline

    pipeline = Pipeline([("encode", "passthrough"), ("model", model)])
    run.checkpoints.save(
        name, lambda folder: write_model(pipeline, folder / _MODEL_FILE), {"iteration": done}, finished=finished
    )

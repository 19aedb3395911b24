"""Isolation forest: how strange a row is, learned without labels; what that says of the probability of an event is
calibrated on validation labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from config.catalog.output import Task
from serving.metrics.log_loss import METRIC
from serving.predictors.calibration import calibrated
from serving.predictors.contract import Contract, write_json
from serving.predictors.isolation_forest import DETAILS_FILE, MODEL_FILE, TRUSTED, anomaly_scores
from serving.predictors.sklearn_model import read_model
from training.trainers import FamilyParams, Fitted, Floats, Rows, Run, normalised, truth_to_learn
from training.trainers.anomaly import fit_anomaly
from training.trainers.calibration import fit_calibration
from training.trainers.sklearn_rows import (
    LIBRARIES,
    cpu_alone,
    design,
    linear_encoder,
    steps_of,
    write_model,
)

_STEPS = 5
_STAGE = "forest"
_SHOWN_ROWS = 10_000
_IMPORTANCE_ROWS = 2_000


class Params(FamilyParams):
    """What a catalog or a form may set; scikit-learn's names."""

    n_estimators: int = Field(100, ge=1, le=10_000)
    max_samples: int = Field(256, ge=2, description="rows that a tree draws, without replacement")
    max_features: float = Field(1.0, gt=0, le=1, description="share of the columns that a tree sees")
    max_categories: int = Field(20, ge=2, description="columns for one feature's categories; the rarest share the last")
    calibration: Literal["platt", "isotonic"] = "platt"
    threads: int = Field(2, ge=1, description="trees that grow at once; the forest is the same with any number")


LEARNS: tuple[Task, ...] = ("event", "anomaly")
ROUNDS: str | None = "n_estimators"
QUICK: dict[str, Any] = {"n_estimators": 20, "threads": 1}


def train(
    contract: Contract, fit: Rows, validation: Rows, folder: Path, *, params: Mapping[str, Any], run: Run
) -> Fitted:
    """Grow one forest for all outputs, calibrate its score for each, and write them into `folder`.

    Training labels are never looked at, and those of validation for events alone. An event whose rows are not the
    strange ones gets its base rate.

    Args:
        contract: features and outputs, events and anomalies; its order is the order of the matrices.
        fit, validation: rows to learn from; rows for curves, calibration and thresholds, with labels on both sides of
            every event's `above`.
        params: as `validated_params` gives them.
        run: seed, device, progress, checkpoints, workers.
    Raises:
        NoGpu, TrainingImpossible: as their texts say; nothing usable is written.
    """
    chosen = Params(**params)
    used = cpu_alone("isolation_forest", contract, run)
    events = [name for name, output in contract.kinds.items() if output.task == "event"]
    truths = {name: truth_to_learn(contract, name, validation, "validation") for name in events}
    pipeline = _grow(contract, fit, validation, truths, chosen, run)
    write_model(pipeline, folder / MODEL_FILE)
    anomaly = anomaly_scores(pipeline, validation.matrix)
    calibrations = {name: fit_calibration(anomaly, truth, chosen.calibration) for name, truth in truths.items()}
    for name, calibration in calibrations.items():
        if calibration.get("slope") == 0.0:
            run.progress.line(
                f"isolation forest: rows above are no stranger than others, so {name} is predicted as its base rate"
            )
    details = {
        name: {"calibration": calibrations[name]}
        if name in calibrations
        else fit_anomaly(contract, name, anomaly, fit, validation)
        for name in contract.outputs
    }
    write_json(folder / DETAILS_FILE, {"outputs": details})
    importances = _importances(contract, pipeline, validation, run.seed)
    return Fitted(used, {_STAGE: chosen.n_estimators}, dict.fromkeys(contract.outputs, importances), LIBRARIES)


def _grow(
    contract: Contract, fit: Rows, validation: Rows, truths: Mapping[str, Floats], chosen: Params, run: Run
) -> Any:
    """The pipeline. Trees come in steps, each seeded by its number, so that a killed training goes on as if nothing had
    been.
    """
    from sklearn.ensemble import IsolationForest
    from sklearn.pipeline import Pipeline

    encoder = linear_encoder(contract, chosen.max_categories)
    columns = design(encoder, fit.matrix, fit=True).astype(np.float32)
    forest = IsolationForest(
        max_samples=min(chosen.max_samples, len(columns)),
        max_features=chosen.max_features,
        random_state=run.seed,
        n_jobs=chosen.threads,
        warm_start=True,
    )
    shown = np.sort(np.random.default_rng(run.seed).permutation(len(validation.label))[:_SHOWN_ROWS])
    grown = 0
    saved = run.checkpoints.load(_STAGE)
    if saved:
        forest = read_model(saved.folder / MODEL_FILE, "IsolationForest", TRUSTED)["model"]
        grown = len(forest.estimators_)
        run.progress.line(f"isolation forest: goes on from {grown} trees")
    pipeline = Pipeline([("encode", encoder), ("model", forest)])
    for trees in steps_of(chosen.n_estimators, _STEPS):
        if trees <= grown:
            continue
        forest.set_params(n_estimators=trees).fit(columns)
        anomaly = anomaly_scores(pipeline, validation.matrix[shown])
        for name, output in contract.kinds.items():
            if name not in truths and output.untold(validation.label[shown]) is None:
                loss = output.metric.value(output.truth(validation.label[shown]), anomaly)
                run.progress.point(f"validation/{name}/{output.gate}", trees, float(loss or 0.0))
        for name, truth in truths.items():
            said = calibrated(anomaly, fit_calibration(anomaly, truth[shown], "platt"))
            value = METRIC.value(truth[shown], said)
            run.progress.point(f"validation/{name}/logloss", trees, value)
            run.progress.line(
                f"isolation forest: {trees} of {chosen.n_estimators} trees, validation logloss of {name} {value:.5g}"
            )
        if run.checkpoints.due():
            run.checkpoints.save(
                _STAGE,
                lambda folder: write_model(pipeline, folder / MODEL_FILE),
                {"trees": trees},
                finished=trees == chosen.n_estimators,
            )
    # The number of threads decides nothing, so it must not be in the bytes.
    forest.set_params(n_jobs=1, warm_start=False)
    return pipeline


def _importances(contract: Contract, pipeline: Any, validation: Rows, seed: int) -> dict[str, float]:
    """How much the score moves when one feature is shuffled among a sample of validation rows."""
    generator = np.random.default_rng(seed)
    matrix = validation.matrix[np.sort(generator.permutation(len(validation.label))[:_IMPORTANCE_ROWS])]
    whole = anomaly_scores(pipeline, matrix)
    moved = {}
    for index, feature in enumerate(contract.features):
        shuffled = matrix.copy()
        shuffled[:, index] = shuffled[generator.permutation(len(shuffled)), index]
        moved[feature] = float(np.abs(anomaly_scores(pipeline, shuffled) - whole).mean())
    return normalised(moved, contract)

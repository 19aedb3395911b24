"""Time-series cross-validation: each fold learns from earlier nights and is judged on later ones, never the reverse."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from config.calendar import ONE_DAY
from config.catalog.trainer import CrossValidation
from serving.predictors import Contract, load_model_folder
from training.checkpoints import Checkpoints
from training.evaluate import evaluate
from training.rows import select, slices
from training.trainers import Rows, Run, TrainingDiverged, TrainingImpossible, family_of

# Of a fold's training nights, the share at their end that its early stopping and calibration use.
_TAIL_SHARE = 0.2


@dataclass(frozen=True)
class Fold:
    """One expanding window; each attribute but the number is its first and last night, both included, as days since
    1970.

    Attributes:
        number: counted from 1.
        fit: what the model learns from.
        tail: what its early stopping and calibration use, after `fit`.
        judged: what it is judged on, after `tail`.
    """

    number: int
    fit: tuple[int, int]
    tail: tuple[int, int]
    judged: tuple[int, int]


def folds(nights: npt.NDArray[np.int32], count: int, embargo_days: int) -> list[Fold]:
    """Windows over the nights: `count` + 1 blocks of equally many nights; fold k is judged on block k + 1 and learns
    from all before it.

    Between `fit`, `tail` and `judged` at least `embargo_days` days are left out.

    Args:
        nights: data dates as days since 1970, in any order, repeated or not.
    Raises:
        TrainingImpossible: there are too few nights.
    """
    distinct = np.unique(nights)
    needed = (count + 1) * (2 + 2 * embargo_days)
    if len(distinct) < needed:
        raise TrainingImpossible(
            f"cross-validation in {count} folds with an embargo of {embargo_days} days needs at least {needed} nights "
            "of training and validation, "
            f"there are {len(distinct)}. Widen `split.train`, or lower `cross_validation.folds`."
        )
    folds = []
    for number, block in enumerate(np.array_split(distinct, count + 1)[1:], 1):
        known = distinct[distinct < block[0] - embargo_days]
        tail = known[-max(1, min(round(_TAIL_SHARE * len(known)), len(known) - embargo_days - 1)) :]
        fit = known[known < tail[0] - embargo_days]
        folds.append(Fold(number, _ends(fit), _ends(tail), _ends(block)))
    return folds


def cross_validate(
    asked: CrossValidation,
    contract: Contract,
    parts: Sequence[Rows],
    *,
    run: Run,
    checkpoints_of: Callable[[str], Checkpoints],
    after_fold: Callable[[int, list[dict[str, float]]], None] = lambda number, metrics: None,
) -> dict[str, Any]:
    """Fit and judge every fold.

    The vocabularies of the contract are those of all training rows: a category that a fold has not met has an index of
    its own there, which no row of it uses. Rows of one entity, for example a machine, may stand in both parts of a
    fold.

    Args:
        contract: with the parameters that every fold is fitted with.
        parts: the splits, together all rows.
        run: seed, device, progress and scratch; its checkpoints keep the metrics of finished folds.
        checkpoints_of: gives the checkpoints of one fold's own fit, by its name.
        after_fold: called with the fold's number and the metrics so far.
    Returns:
        `folds`, each with nights, rows and metrics, and the `summary` of these.
    Raises:
        TrainingImpossible: there are too few nights.
    """
    windows = folds(np.concatenate([part.nights for part in parts]), asked.folds, math.ceil(asked.embargo / ONE_DAY))
    documents: list[dict[str, Any]] = []
    for fold in windows:
        name = f"fold_{fold.number}"
        saved = run.checkpoints.load(name)
        if saved:
            document = dict(saved.state)
        else:
            folder = run.scratch / name
            folder.mkdir()
            fit, tail, judged = (select(parts, *ends, folder / f"{part}.f32") for part, ends in _ends_of(fold))
            metrics = fit_and_judge(
                contract,
                fit,
                tail,
                judged,
                folder,
                dataclasses.replace(run, checkpoints=checkpoints_of(name), scratch=folder),
            )
            document = {
                "fold": fold.number,
                "nights": {part: [str(np.datetime64(night, "D")) for night in ends] for part, ends in _ends_of(fold)},
                "rows": {"fit": len(fit.label), "tail": len(tail.label), "judged": len(judged.label)},
                "metrics": metrics,
            }
            del fit, tail, judged
            shutil.rmtree(folder)
            run.checkpoints.save(name, lambda empty: None, document, finished=True)
        documents.append(document)
        after_fold(fold.number, [document["metrics"] for document in documents])
    return {"folds": documents, **summary([document["metrics"] for document in documents])}


def summary(metrics: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """`mean` and `std` (of the population) of every metric over the folds whose labels tell it, and, if some do not,
    `not_evaluated`: of how many folds.
    """
    named = list(dict.fromkeys(name for fold in metrics for name in fold))
    values = {name: np.array([fold[name] for fold in metrics if name in fold]) for name in named}
    untold = {name: len(metrics) - len(told) for name, told in values.items() if len(told) < len(metrics)}
    summed: dict[str, dict[str, Any]] = {
        "mean": {name: float(told.mean()) for name, told in values.items()},
        "std": {name: float(told.std()) for name, told in values.items()},
    }
    return summed | ({"not_evaluated": untold} if untold else {})


def fit_and_judge(contract: Contract, fit: Rows, early: Rows, judged: Rows, folder: Path, run: Run) -> dict[str, float]:
    """Metrics on `judged` of a model that is fitted on `fit`, stopped and calibrated on `early`, and thrown away.

    Raises:
        TrainingDiverged: it predicts values that are not finite.
    """
    written = folder / "model"
    written.mkdir()
    try:
        family_of(contract.family).train(contract, fit, early, written, params=contract.params, run=run)
        contract.write(written)
        return _judge(contract, written, judged)
    finally:
        shutil.rmtree(written)


def _judge(contract: Contract, folder: Path, judged: Rows) -> dict[str, float]:
    predictor = load_model_folder(folder)
    scores = np.concatenate([predictor.scores(np.array(judged.matrix[some])) for some in slices(*judged.matrix.shape)])
    if not np.isfinite(scores).all():
        raise TrainingDiverged(
            f"{contract.model}: the fitted model predicts values that are NaN or infinite. Lower `learning_rate`."
        )
    return evaluate(contract.kinds, judged.label, contract.published(scores))


def _ends_of(fold: Fold) -> Iterable[tuple[str, tuple[int, int]]]:
    return (("fit", fold.fit), ("tail", fold.tail), ("judged", fold.judged))


def _ends(nights: npt.NDArray[np.int32]) -> tuple[int, int]:
    return int(nights[0]), int(nights[-1])

"""Boosted trees that rank: `rank:ndcg` over the candidates that the recommender's weights name for each row.

The weights that describe a training row were found without the nights of its fold, so that the trees see candidates as
they will meet them. Nothing is drawn at random; a fit that was killed goes on from its checkpoint and ends in the same
bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from config.catalog.output import Task
from serving.predictors.contract import Contract, write_json
from serving.predictors.recommender import WEIGHTS_FILE, Positions, Weights, positions
from serving.predictors.xgboost_ranking import (
    BOOSTER_FILE,
    DETAILS_FILE,
    NEXT_FOLDER,
    PAIR_FEATURES,
    TOGETHER_FOLDER,
    FirstStage,
    pairs,
)
from training.trainers import FamilyParams, Fitted, Floats, Rows, Run, TrainingImpossible, normalised, truth_to_learn
from training.trainers.recommender import Params as RecommenderParams
from training.trainers.recommender import (
    ease_weights,
    history_columns,
    history_importances,
    items_to_rank,
    next_weights,
)
from training.trainers.sklearn_rows import cpu_alone

_CURVES_FILE = "curves.json"
_STAGE = "ranking"
_SAY_EVERY = 50


class Params(FamilyParams):
    """What a catalog or a form may set."""

    n_estimators: int = Field(200, ge=1, le=10_000)
    max_depth: int = Field(4, ge=1, le=30)
    learning_rate: float = Field(0.1, gt=0, le=1)
    min_child_weight: float = Field(1.0, ge=0)
    reg_lambda: float = Field(1.0, ge=0)
    early_stopping_rounds: int = Field(30, ge=1)
    candidates: int = Field(30, ge=2, le=1_000, description="items of each row that the trees rank; at least the list")
    folds: int = Field(4, ge=2, le=20, description="parts of the nights whose candidates the others name")
    l2: float = Field(10.0, gt=0, description="weight of the squared weights that name candidates")
    history: str | None = Field(
        None, description="column of a feature view that the steps `<history>_t0` … are of; None: there is only one"
    )
    exclude_seen: bool = Field(True, description="items of the history follow after all others")
    threads: int = Field(2, ge=1)


LEARNS: tuple[Task, ...] = ("ranking",)
ROUNDS: str | None = "n_estimators"
QUICK: dict[str, Any] = {"n_estimators": 20, "max_depth": 3, "threads": 1}


def train(
    contract: Contract, fit: Rows, validation: Rows, folder: Path, *, params: Mapping[str, Any], run: Run
) -> Fitted:
    """Find the weights that name candidates, then the trees that rank them, and write both into `folder`.

    Args:
        contract: features, of which the steps of one text column are the history; others are not looked at.
        fit, validation: rows to learn from; rows for early stopping. Their labels are items.
        params: as `validated_params` gives them.
        run: device, progress, checkpoints; nothing is random.
    Raises:
        NoGpu, TrainingImpossible: as their texts say; nothing usable is written.
    """
    chosen = Params(**params)
    used = cpu_alone("xgboost_ranking", contract, run)
    history = history_columns(contract, chosen.history)
    label = next(truth_to_learn(contract, name, fit) for name in contract.outputs)
    items = items_to_rank(contract, history, label)
    longest = max(len(output.judged_columns(name)) for name, output in contract.kinds.items())
    candidates = min(len(items), max(chosen.candidates, longest))
    stood, came = positions(contract, history, items, fit.matrix), np.searchsorted(items, label)
    stages = _Stages(chosen, len(items))

    fold = np.unique(fit.nights, return_inverse=True)[1] % chosen.folds
    if fold.max() == 0:
        raise TrainingImpossible(
            f"{contract.model}: the training rows are of one night alone, so there are no others to name their "
            "candidates. Widen `split.train`."
        )
    ranked = [
        _groups(stages.of(stood[fold != part], came[fold != part])[0], stood[fold == part], came[fold == part],
                candidates, chosen)
        for part in np.unique(fold)
    ]  # fmt: skip
    taught = tuple(np.concatenate(parts) for parts in zip(*ranked, strict=True))
    stage, files = stages.of(stood, came)
    later = np.searchsorted(items, validation.label)
    later[items[np.minimum(later, len(items) - 1)] != validation.label] = -1  # an item that training never met
    judged = _groups(stage, positions(contract, history, items, validation.matrix), later, candidates, chosen)
    if not len(taught[0]) or not len(judged[0]):
        raise TrainingImpossible(
            f"{contract.model}: of no row the item that came is among its {candidates} candidates. Raise `candidates` "
            "of the trainer, or widen `split.train`."
        )
    curve = f"validation/{next(iter(contract.outputs))}/ndcg_loss"
    booster, best, lowest = _boosted(taught, judged, candidates, longest, chosen, run, curve)
    booster.save_model(folder / BOOSTER_FILE)
    for name, (weights, _) in files.items():
        (folder / name).mkdir()
        np.save(folder / name / WEIGHTS_FILE, weights, allow_pickle=False)
    details = {
        "items": [int(item) for item in items],
        "history": history,
        "exclude_seen": chosen.exclude_seen,
        "candidates": candidates,
        "counts": {name: starts for name, (_, starts) in files.items()},
        "share": stage.share.tolist(),
    }
    write_json(folder / DETAILS_FILE, details)
    run.progress.line(
        f"xgboost ranking: {len(items):,} items, {candidates} candidates a row, best round {best}, validation "
        f"ndcg_loss of rows with a hit {lowest:.5g}"
    )
    importances = normalised(history_importances(history, files[NEXT_FOLDER][0], stood), contract)
    return Fitted(
        used,
        dict.fromkeys(contract.outputs, best),
        dict.fromkeys(contract.outputs, importances),
        ("xgboost", "numpy", "scipy", "pyarrow"),
        {"items": len(items), "candidates": candidates},
    )


class _Stages:
    """What names candidates, found on some of the rows."""

    def __init__(self, chosen: Params, count: int) -> None:
        self._asked, self._count = RecommenderParams(l2=chosen.l2), count

    def of(self, stood: Positions, came: Positions) -> tuple[FirstStage, dict[str, tuple[Floats, int]]]:
        """The weights that those rows tell, and as they are kept, with their numbers of counts."""
        files = {
            NEXT_FOLDER: next_weights(stood, came, self._count, self._asked),
            TOGETHER_FOLDER: ease_weights(stood, came, self._count, self._asked),
        }
        share = np.bincount(came, minlength=self._count) / len(came)
        after, together = (Weights.of(weights, starts) for weights, starts in files.values())
        return FirstStage(after, together, share), files


def _groups(
    stage: FirstStage, stood: Positions, came: Positions, candidates: int, chosen: Params
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What the trees see of the candidates of each row whose item is among them, and 1 for the item that came."""
    named, seen = pairs(stage, stood, candidates, exclude_seen=chosen.exclude_seen)
    hit = named == came[:, None]
    teaches = hit.any(axis=1)
    shaped = seen.reshape(*named.shape, len(PAIR_FEATURES))[teaches]
    return shaped.reshape(-1, len(PAIR_FEATURES)), hit[teaches].astype(np.float32).ravel()


def _boosted(
    taught: tuple[Any, ...],
    judged: tuple[Any, ...],
    candidates: int,
    longest: int,
    chosen: Params,
    run: Run,
    curve: str,
) -> tuple[Any, int, float]:
    """The booster up to its best round by NDCG on validation, that round, and 1 minus its NDCG."""
    import xgboost as xgb

    def quantised(rows: tuple[Any, ...], reference: Any) -> Any:
        groups = np.full(len(rows[1]) // candidates, candidates)
        return xgb.QuantileDMatrix(rows[0], label=rows[1], group=groups, ref=reference, nthread=chosen.threads)

    matrix = quantised(taught, None)
    held_out = quantised(judged, matrix)
    settings = {
        "objective": "rank:ndcg",
        "lambdarank_pair_method": "topk",
        "lambdarank_num_pair_per_sample": longest,
        "ndcg_exp_gain": False,
        "eval_metric": f"ndcg@{longest}",
        "tree_method": "hist",
        "device": "cpu",
        "nthread": chosen.threads,
        "seed": run.seed,
        **chosen.model_dump(include={"max_depth", "learning_rate", "min_child_weight", "reg_lambda"}),
    }
    saved = run.checkpoints.load(_STAGE)
    losses: list[float] = [] if saved is None else json.loads((saved.folder / _CURVES_FILE).read_text("utf-8"))
    kept = {} if saved is None else {"model_file": saved.folder / BOOSTER_FILE}
    booster = xgb.Booster(settings, [matrix, held_out], **kept)

    def save(*, finished: bool) -> None:
        def write(folder: Path) -> None:
            booster.save_model(folder / BOOSTER_FILE)
            (folder / _CURVES_FILE).write_text(json.dumps(losses), encoding="utf-8")

        run.checkpoints.save(_STAGE, write, {"round": len(losses)}, finished=finished)

    for step, loss in enumerate(losses, 1):
        run.progress.point(curve, step, loss)
    for done in range(len(losses), 0 if saved is not None and saved.finished else chosen.n_estimators):
        if done - _best(losses) >= chosen.early_stopping_rounds:
            break
        booster.update(matrix, done)
        losses.append(1.0 - float(booster.eval(held_out, "validation", done).rsplit(":", 1)[1]))
        run.progress.point(curve, len(losses), losses[-1])
        if len(losses) % _SAY_EVERY == 0:
            run.progress.line(f"xgboost ranking: round {len(losses)}, validation ndcg_loss {losses[-1]:.5g}")
        if run.checkpoints.due():
            save(finished=False)
    save(finished=True)
    best = _best(losses)
    return booster[:best], best, losses[best - 1]


def _best(losses: list[float]) -> int:
    """The first round with the lowest loss, counted from 1; 0 before the first."""
    return losses.index(min(losses)) + 1 if losses else 0

"""Recommender: which items go with those of a row's history, learned from the items of each training row, those of its
history and the one that came.

Both methods know an item that is in every row: its weights are what a row starts from, and all that a row without
history has. A fit takes seconds, so a killed one begins again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from config.catalog.output import Task
from serving.predictors.contract import Contract, write_json
from serving.predictors.recommender import DETAILS_FILE, WEIGHTS_FILE, positions
from training.trainers import FamilyParams, Fitted, Floats, Rows, Run, TrainingImpossible, normalised, truth_to_learn
from training.trainers.sklearn_rows import cpu_alone

# Weights of 10,000 items take 800 MB, and their inversion three times that.
MOST_ITEMS = 10_000
_STEP = re.compile(r"(?P<history>.+)_t\d+")


class Params(FamilyParams):
    """What a catalog or a form may set."""

    method: Literal["ease", "cosine"] = Field(
        "ease", description="ease: weights that tell each item from all others (Steck 2019); cosine: of two items' rows"
    )
    l2: float = Field(10.0, gt=0, description="weight of the squared weights; ease alone")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the history that is taken to be missing (Steck 2020); ease alone"
    )
    history: str | None = Field(
        None, description="column of a feature view that the steps `<history>_t0` … are of; None: there is only one"
    )
    exclude_seen: bool = Field(True, description="items of the history follow after all others")


LEARNS: tuple[Task, ...] = ("ranking",)
ROUNDS: str | None = None
QUICK: dict[str, Any] = {}


def train(
    contract: Contract, fit: Rows, validation: Rows, folder: Path, *, params: Mapping[str, Any], run: Run
) -> Fitted:
    """Find the weights from item to item and write them into `folder`; all outputs share them.

    Args:
        contract: features, of which the steps of one text column are the history; others are not looked at.
        fit: rows to learn from; their labels are items.
        validation: not learned from.
        params: as `validated_params` gives them.
        run: device and workers; nothing is random.
    Raises:
        NoGpu, TrainingImpossible: as their texts say; nothing usable is written.
    """
    chosen = Params(**params)
    used = cpu_alone("recommender", contract, run)
    history = _history(contract, chosen.history)
    label = next(truth_to_learn(contract, name, fit) for name in contract.outputs)
    items = _items(contract, history, label)
    together = _together(contract, history, items, fit, label)
    weights = _ease(together, chosen) if chosen.method == "ease" else _cosine(together)
    np.save(folder / WEIGHTS_FILE, weights, allow_pickle=False)
    write_json(
        folder / DETAILS_FILE,
        {"items": [int(item) for item in items], "history": history, "exclude_seen": chosen.exclude_seen},
    )
    run.progress.line(f"recommender: {len(items):,} items, {len(history)} steps of history, {len(label):,} rows")
    importances = normalised(_importances(contract, history, items, weights, fit), contract)
    return Fitted(
        used,
        dict.fromkeys(contract.outputs, 1),
        dict.fromkeys(contract.outputs, importances),
        ("numpy", "scipy", "pyarrow"),
        {"items": len(items), "history_steps": len(history)},
    )


def _history(contract: Contract, wanted: str | None) -> list[str]:
    """The columns of the history, newest first.

    Raises:
        TrainingImpossible: there is none, several and none is named, or an item in them is no whole number.
    """
    steps: dict[str, list[str]] = {}
    for name, spec in contract.features.items():
        parts = _STEP.fullmatch(name)
        if parts and spec.categories is not None:
            steps.setdefault(parts["history"], []).append(name)
    if wanted is not None:
        steps = {name: columns for name, columns in steps.items() if wanted in {name, name.split("__")[-1]}}
    if len(steps) != 1:
        listed = ", ".join(steps) or "none"
        raise TrainingImpossible(
            f"{contract.model}: a recommender needs one text feature with `steps`, the items of a row's history; "
            f"{'`history` names' if wanted else 'the model has'} {listed}. Add one to `features`, or name it in "
            "`trainer.params.history`."
        )
    (history,) = steps.values()
    for name in history:
        unfit = [text for text in contract.features[name].categories or () if not re.fullmatch(r"-?\d+", text)]
        if unfit:
            raise TrainingImpossible(
                f"{contract.model}: {name} holds {unfit[0]!r}; an item of the history is a whole number as text, as "
                "the label names it. Write the item's number into the feature."
            )
    return history


def _items(contract: Contract, history: list[str], label: Floats) -> Floats:
    """Every item of training, of histories and labels, in order.

    Raises:
        TrainingImpossible: they are fewer than a list has, or more than a matrix of them should hold.
    """
    met = [np.array([float(text) for text in contract.features[name].categories or ()]) for name in history]
    items = np.unique(np.concatenate([label, *met]))
    for name, output in contract.kinds.items():
        k = len(output.judged_columns(name))
        if k > len(items):
            raise TrainingImpossible(
                f"{contract.model}: {name} lists {k} items, training rows hold {len(items)} different ones. Lower "
                f"its `k`, or widen `split.train`."
            )
    if len(items) > MOST_ITEMS:
        raise TrainingImpossible(
            f"{contract.model}: training rows hold {len(items):,} different items, a matrix of items takes at most "
            f"{MOST_ITEMS:,}. Recommend groups of items, or leave out rare ones in the feature view and label."
        )
    return items


def _together(contract: Contract, history: list[str], items: Floats, fit: Rows, label: Floats) -> Floats:
    """How many rows hold each pair of items, and each item; the last is the item of every row."""
    from scipy.sparse import csr_matrix

    rows, count = len(label), len(items)
    stood = np.column_stack([positions(contract, history, items, fit.matrix), np.searchsorted(items, label)])
    known = stood < count
    held = csr_matrix(
        (np.ones(int(known.sum())), (np.broadcast_to(np.arange(rows)[:, None], stood.shape)[known], stood[known])),
        shape=(rows, count),
    )
    held.data[:] = 1.0  # an item that is in the history and came again is in the row once
    each = np.asarray(held.sum(axis=0)).ravel()
    return np.block([[(held.T @ held).toarray(), each[:, None]], [each[None, :], np.array([[float(rows)]])]])


def _ease(together: Floats, chosen: Params) -> Floats:
    """Weights whose sum over a row's other items comes nearest to 1 for an item of the row and to 0 for others, in
    closed form (Steck 2019); with dropout as if a share of each row's items were missing (Steck 2020).

    Args:
        together: of `_together`, (items + 1, items + 1).
    Returns:
        (items + 1, items), the last row is what every row starts from.
    """
    from threadpoolctl import threadpool_limits

    penalty = np.append(np.diag(together)[:-1] * (chosen.dropout / (1.0 - chosen.dropout)), 0.0) + chosen.l2
    with threadpool_limits(1):  # sums depend on how many threads share them
        inverse = np.linalg.inv(together + np.diag(penalty))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return np.ascontiguousarray(weights[:, :-1])


def _cosine(together: Floats) -> Floats:
    """The cosine between two items' columns of rows, (items + 1, items)."""
    lengths = np.sqrt(np.diag(together))
    weights = together / np.outer(lengths, lengths)
    np.fill_diagonal(weights, 0.0)
    return np.ascontiguousarray(weights[:, :-1])


def _importances(contract: Contract, history: list[str], items: Floats, weights: Floats, fit: Rows) -> dict[str, float]:
    """How far each step of the history spreads the scores of a row, on average."""
    spread = np.append(weights[:-1].std(axis=1), 0.0)
    stood = positions(contract, history, items, fit.matrix)
    return {name: float(spread[stood[:, step]].mean()) for step, name in enumerate(history)}

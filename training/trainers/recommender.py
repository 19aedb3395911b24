"""Recommender: which items go with those of a row's history, by sums of weights in closed form.

`next` learns what came after a history: the order of the steps counts, and how many there are. `ease` learns which
items are together in a row, whatever came last: for histories without an order. A fit takes seconds, so a killed one
begins again.
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
from serving.predictors.recommender import DETAILS_FILE, WEIGHTS_FILE, Positions, positions
from training.trainers import FamilyParams, Fitted, Floats, Rows, Run, TrainingImpossible, normalised, truth_to_learn
from training.trainers.sklearn_rows import cpu_alone

# Weights of 5,000 items take 400 MB, finding them ten times that.
MOST_ITEMS = 5_000
# Rows with so many items of history, or more, start from the same weights.
_MOST_COUNTED = 10
_STEP = re.compile(r"(?P<history>.+)_t\d+")


class Params(FamilyParams):
    """What a catalog or a form may set."""

    method: Literal["next", "ease"] = Field(
        "next", description="next: what came after a history; ease: what is together in a row (Steck 2019)"
    )
    l2: float = Field(10.0, gt=0, description="weight of the squared weights")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of a row's items that is taken to be missing (Steck 2020); ease alone"
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
    history = history_columns(contract, chosen.history)
    label = next(truth_to_learn(contract, name, fit) for name in contract.outputs)
    items = items_to_rank(contract, history, label)
    stood = positions(contract, history, items, fit.matrix)
    came = np.searchsorted(items, label)
    weights, starts = (next_weights if chosen.method == "next" else ease_weights)(stood, came, len(items), chosen)
    np.save(folder / WEIGHTS_FILE, weights, allow_pickle=False)
    details = {"items": [int(item) for item in items], "history": history, "counts": starts}
    write_json(folder / DETAILS_FILE, details | {"exclude_seen": chosen.exclude_seen})
    run.progress.line(f"recommender: {len(items):,} items, {len(history)} steps of history, {len(label):,} rows")
    importances = normalised(history_importances(history, weights, stood), contract)
    return Fitted(
        used,
        dict.fromkeys(contract.outputs, 1),
        dict.fromkeys(contract.outputs, importances),
        ("numpy", "scipy", "pyarrow"),
        {"items": len(items), "history_steps": len(history)},
    )


def history_columns(contract: Contract, wanted: str | None) -> list[str]:
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


def items_to_rank(contract: Contract, history: list[str], label: Floats) -> Floats:
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


def next_weights(stood: Positions, came: Positions, count: int, chosen: Params) -> tuple[Floats, int]:
    """The ridge regression of which item came, 0 or 1 for each, on the items of the history, its newest item, and the
    number of its items.

    Args:
        stood: positions of each row's history, (rows, steps).
        came: position of each row's item, (rows,).
        count: of items.
    Returns:
        weights, (2 * items + numbers, items), and how many numbers of items there are.
    """
    from scipy.linalg import solve
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    rows = len(came)
    known = np.minimum((stood < count).sum(axis=1), _MOST_COUNTED)
    starts = int(known.max()) + 1
    newest = np.where(stood[:, :1] < count, stood[:, :1] + count, -1)
    held = np.hstack([np.where(stood < count, stood, -1), newest, 2 * count + known[:, None]])
    given = _indicators(held, 2 * count + starts)
    wanted = csr_matrix((np.ones(rows), (np.arange(rows), came)), shape=(rows, count))
    squares = (given.T @ given).toarray()
    squares[np.diag_indices(len(squares))] += chosen.l2
    with threadpool_limits(1):  # sums depend on how many threads share them
        weights = solve(squares, (given.T @ wanted).toarray(), assume_a="pos")
    return np.ascontiguousarray(weights), starts


def ease_weights(stood: Positions, came: Positions, count: int, chosen: Params) -> tuple[Floats, int]:
    """Weights whose sum over a row's other items comes nearest to 1 for an item of the row and to 0 for others (Steck
    2019); with dropout as if a share of each row's items were missing (Steck 2020).

    The item that came is one of the row's. One more item is in every row: its weights are what all rows start from.

    Returns:
        weights, (items + 1, items), and 1.
    """
    from threadpoolctl import threadpool_limits

    every = np.full((len(came), 1), count)
    held = _indicators(np.hstack([np.where(stood < count, stood, -1), came[:, None], every]), count + 1)
    together = (held.T @ held).toarray()
    penalty = np.diag(together) * (chosen.dropout / (1.0 - chosen.dropout)) + chosen.l2
    penalty[-1] = chosen.l2
    with threadpool_limits(1):  # sums depend on how many threads share them
        inverse = np.linalg.inv(together + np.diag(penalty))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return np.ascontiguousarray(weights[:, :-1]), 1


def _indicators(columns: Positions, width: int) -> Any:
    """A sparse matrix, (rows, width): 1 in each column that a row names, however often; -1 names none."""
    from scipy.sparse import csr_matrix

    named = columns >= 0
    rows = np.broadcast_to(np.arange(len(columns))[:, None], columns.shape)
    matrix = csr_matrix((np.ones(int(named.sum())), (rows[named], columns[named])), shape=(len(columns), width))
    matrix.data[:] = 1.0
    return matrix


def history_importances(history: list[str], weights: Floats, stood: Positions) -> dict[str, float]:
    """How far each step of the history spreads the scores of a row, on average."""
    count = weights.shape[1]
    newest = weights[count : 2 * count] if len(weights) > 2 * count else 0.0
    spread = np.append(weights[:count].std(axis=1), 0.0)
    first = np.append((weights[:count] + newest).std(axis=1), 0.0)
    return {name: float((spread if step else first)[stood[:, step]].mean()) for step, name in enumerate(history)}

"""How well predictions order the rows of each group, for example of a night."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def ranking_metrics(groups: npt.NDArray[Any], relevance: Floats, scores: Floats) -> dict[str, float]:
    """How well the scores order the rows of each group; both absent where no group can tell.

    ndcg: discounted cumulative gain, `sum(relevance / log2(1 + rank))`, over that of the best order, averaged over
        groups
    (Järvelin and Kekäläinen 2002; gains as they are, and tied scores share their discounts, as in scikit-learn's
    `ndcg_score`).
    mrr: 1 over the rank of the first of a group's most relevant rows, averaged over groups (Voorhees 1999; with 0 and 1
    that is the first relevant row). Of tied rows the most relevant are counted last: a constant score earns nothing.

    Args:
        groups: (rows,) what each row is ranked within, for example its data date; one dimension, sortable.
        relevance: not negative, (rows,).
        scores: larger ranks higher, (rows,).
    Raises:
        ValueError: a relevance is negative.
    """
    if len(relevance) and relevance.min() < 0.0:
        raise ValueError(f"the relevance of a row must not be negative, the lowest is {relevance.min():g}")
    _, codes = np.unique(groups, return_inverse=True)
    count = int(codes.max()) + 1 if len(codes) else 0
    lowest, highest = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(lowest, codes, relevance)
    np.maximum.at(highest, codes, relevance)
    told = lowest < highest  # where all rows are as relevant, every order is as good
    if not told.any():
        return {}
    starts = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=count))])

    order = np.lexsort((relevance, -scores, codes))
    rank = np.arange(len(order)) - starts[codes[order]]
    discount = 1.0 / np.log2(rank + 2.0)
    ties = np.concatenate([[0], np.cumsum((np.diff(codes[order]) != 0) | (np.diff(scores[order]) != 0))])
    shared = (np.bincount(ties, weights=discount) / np.bincount(ties))[ties]
    gained = np.bincount(codes[order], weights=relevance[order] * shared, minlength=count)

    best = np.lexsort((-relevance, codes))
    best_rank = np.arange(len(best)) - starts[codes[best]]
    reachable = np.bincount(codes[best], weights=relevance[best] / np.log2(best_rank + 2.0), minlength=count)

    first = np.full(count, np.inf)
    top = relevance[order] == highest[codes[order]]
    np.minimum.at(first, codes[order][top], rank[top] + 1.0)
    return {"ndcg": float((gained[told] / reachable[told]).mean()), "mrr": float((1.0 / first[told]).mean())}


def above_lowest(groups: npt.NDArray[Any], label: Floats) -> Floats:
    """Each label minus the lowest of its group, (rows,)."""
    _, codes = np.unique(groups, return_inverse=True)
    lowest = np.full(int(codes.max()) + 1, np.inf)
    np.minimum.at(lowest, codes, label)
    above: Floats = label - lowest[codes]
    return above

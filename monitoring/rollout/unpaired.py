"""Bounds of harm where predictions change outcomes: each arm is judged by its own rows alone.

A maintained engine does not fail, so what the challenger would have lost on the champion's engines is unknown. The arms
are compared unpaired, by unit: one mean loss a unit and night, the arms' difference a night as block, as in `sequence`.

Units stay in their arm, so that what distinguishes the arms' units (older engines here than there) does not average out
over the nights; nights as blocks cannot see it. The variance of a look is therefore clustered both ways (Cameron,
Gelbach and Miller, "Robust inference with multiway clustering", 2011): by night, plus Welch's by unit, less what both
count. Where few units carry it, the fewer degrees of freedom of the two decide the critical value.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from monitoring.rollout.sequence import Floats, Look, Prefixes, looks_of, prefixes

_KEYS = ["data_date", "unit", "challenger"]


def unpaired(rows: pa.Table, *, alpha: float, tolerance: float = 0.0) -> tuple[Look, ...]:
    """Bounds of the mean harm after each night, from the rows that each version served.

    Args:
        rows: as of `arms`.
        alpha, tolerance: as of `sequence.paired`.
    Returns:
        A look for each night on which both arms have units; its `rows` counts units times nights.
    Raises:
        ValueError: a loss is not finite.
    """
    nights, counted, statistics = arms(rows)
    return looks_of(nights, counted, statistics, alpha=alpha, tolerance=tolerance) if nights else ()


def arms(rows: pa.Table) -> tuple[list[date], Floats, Prefixes]:
    """Nights on which both arms have units, units times nights until each, and the statistics of their difference.

    Args:
        rows: `data_date`, `unit`, `challenger` (true where the challenger served the row), `loss`; a unit belongs to
            one arm in a night. Rows without a loss are left out; so are nights on which an arm has no unit.
    Raises:
        ValueError: a loss is not finite.
    """
    known = rows.filter(pc.is_valid(rows["loss"]))
    means = known.group_by(_KEYS).aggregate([("loss", "mean")]).sort_by([(key, "ascending") for key in _KEYS])
    dates, night = _numbered(means["data_date"])
    units, unit = _numbered(means["unit"])
    arm = means["challenger"].to_numpy().astype(np.int64)
    loss = means["loss_mean"].to_numpy()
    if not np.isfinite(loss).all():
        raise ValueError(f"a loss of {dates[int(night[int(np.argmin(np.isfinite(loss)))])]} is not a finite number")
    count = _sums(night, arm, np.ones_like(loss), len(dates))
    both: NDArray[np.bool_] = np.all(count > 0, axis=1)
    kept = both[night]
    mean = np.divide(_sums(night, arm, loss, len(dates)), count, out=np.zeros_like(count), where=count > 0)
    residual = (loss - mean[night, arm])[kept]
    place, member = (np.cumsum(both) - 1)[night[kept]], unit[kept] * 2 + arm[kept]
    across, freedom = _across_units(place, member, residual, int(both.sum()), len(units))
    count, mean = count[both], mean[both]
    statistics = prefixes(mean[:, 1] - mean[:, 0], count.prod(axis=1) / count.sum(axis=1))
    variance = statistics.error**2
    with np.errstate(invalid="ignore"):
        error = np.sqrt(np.maximum(variance + across[:, 1], np.maximum(variance, across[:, 0])))
    clustered = replace(statistics, error=error, nights=np.minimum(statistics.nights, freedom + 1.0))
    judged = [day for day, is_judged in zip(dates, both, strict=True) if is_judged]
    return judged, np.cumsum(count.sum(axis=1)), clustered


def _numbered(column: pa.ChunkedArray) -> tuple[list[Any], NDArray[np.int64]]:
    """The different values, ascending, and the place of each row's among them."""
    encoded = column.combine_chunks().dictionary_encode()
    order = pc.array_sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return encoded.dictionary.take(pa.array(order)).to_pylist(), rank[encoded.indices.to_numpy()]


def _sums(night: NDArray[np.int64], arm: NDArray[np.int64], values: Floats, nights: int) -> Floats:
    """Sums by night and arm, (nights, 2)."""
    sums = np.bincount(night * 2 + arm, weights=values, minlength=2 * nights).astype(np.float64)
    return sums.reshape(nights, 2)


def _across_units(
    night: NDArray[np.int64], member: NDArray[np.int64], residual: Floats, nights: int, units: int
) -> tuple[Floats, Floats]:
    """By look: variance of the difference of the arms by unit, and the same less that of single rows, (nights, 2);
    Welch's degrees of freedom, (nights,).

    Args:
        member: twice the unit's number, plus 1 in the challenger's arm.
        residual: loss less the mean of its night and arm: what all units of a night share is no difference of units.
    """
    starts = np.searchsorted(night, np.arange(nights + 1))
    count, total, squares = (np.zeros(2 * units) for _ in range(3))
    variances, freedom = np.empty((nights, 2)), np.empty(nights)
    for look in range(nights):
        part = slice(starts[look], starts[look + 1])
        count += np.bincount(member[part], minlength=2 * units)
        total += np.bincount(member[part], weights=residual[part], minlength=2 * units)
        squares += np.bincount(member[part], weights=residual[part] ** 2, minlength=2 * units)
        by_unit, by_row, arms = np.zeros(2), np.zeros(2), np.zeros(2)
        for arm in (0, 1):
            there = count[arm::2] > 0
            n, rows = there.sum(), count[arm::2].sum()
            means = total[arm::2][there] / count[arm::2][there]
            arms[arm] = n
            by_unit[arm] = means.var(ddof=1) / n if n > 1 else np.inf
            by_row[arm] = squares[arm::2].sum() / max(rows - 1.0, 1.0) / rows
        variances[look] = by_unit.sum(), by_unit.sum() - by_row.sum()
        freedom[look] = _welch(by_unit, arms)
    return variances, freedom


def _welch(variances: Floats, units: Floats) -> float:
    """Welch's degrees of freedom of a difference of two means, from their variances and numbers of units."""
    if (units < 2).any():
        return 0.0
    if not variances.any():
        return float(units.sum() - 2.0)
    return float(variances.sum() ** 2 / (variances**2 / (units - 1.0)).sum())

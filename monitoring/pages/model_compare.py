"""Two periods of a model compared: every metric's means, their difference, and whether it is more than chance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from config.calendar import ONE_DAY, Interval
from config.catalog.model import ModelEntry
from lake.lake import Lake
from lake.ledger import Promotion
from monitoring.drift import MEAN, REFERENCE_MEAN
from monitoring.pages.model_history import (
    DRIFT_SHARE,
    LEAST_NIGHTS,
    NULL_RATE,
    PREDICTION_DRIFT,
    VOLUME,
    Average,
    rounded,
)
from monitoring.pages.page import BadAddress, Column, Table, shortened
from monitoring.performance import ERROR_RATIO, LABEL_SHARE

SORTS = {"effect": "difference in units of chance", "change": "relative change", "name": "name"}
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """One metric in two periods.

    Attributes:
        chance: by how much two such means differ in 95 of 100 cases where nothing changed; None where too few nights
            say.
        verdict: exceeds, within, or not evaluated.
    """

    check: str
    column: str
    first: Average
    second: Average
    chance: float | None
    verdict: str

    @property
    def value(self) -> float:
        """The second mean less the first."""
        return self.second.mean - self.first.mean

    @property
    def effect(self) -> float:
        """In units of chance, for sorting."""
        if self.chance is None:
            return -1.0
        if self.chance > 0:
            return abs(self.value) / self.chance
        return math.inf if self.value else 0.0

    @property
    def change(self) -> float | None:
        """Relative to the first period."""
        return self.value / abs(self.first.mean) if self.first.mean else None


def compared(first: Mapping[tuple[str, str], Average], second: Mapping[tuple[str, str], Average]) -> list[Difference]:
    """Every metric that both periods have, held against what nights differ by (Welch's t interval, nights as
    independent).
    """
    compared = []
    # What the nights are compared with is the version's, not theirs.
    for key in {key for key in first.keys() & second.keys() if key[0] != REFERENCE_MEAN}:
        a, b = first[key], second[key]
        chance = _chance(a, b)
        compared.append(Difference(*key, a, b, chance, _verdict(a.mean, b.mean, chance)))
    return compared


def _verdict(before: float, after: float, chance: float | None) -> str:
    if chance is None:
        return "not_evaluated"
    change = abs(after - before)
    return "exceeds" if change > chance and change > 1e-9 * abs(before) else "within"


def _chance(a: Average, b: Average) -> float | None:
    if min(a.nights, b.nights) < LEAST_NIGHTS:
        return None
    from scipy.special import stdtrit

    first, second = a.spread**2 / a.nights, b.spread**2 / b.nights
    if first + second <= 0:
        return 0.0
    freedom = (first + second) ** 2 / (first**2 / (a.nights - 1) + second**2 / (b.nights - 1))
    return float(stdtrit(freedom, 0.5 + _CONFIDENCE / 2)) * math.sqrt(first + second)


def comparison_table(
    lake: Lake, entry: ModelEntry, differences: Iterable[Difference], earlier: Interval, later: Interval, sort: str
) -> Table:
    """Both means, the difference, and whether it is more than chance.

    Raises:
        BadAddress: there is no such order.
    """
    if sort not in SORTS:
        raise BadAddress(f"sort is {shortened(sort)}, needs one of {', '.join(SORTS)}.")
    listed = sorted(differences, key=lambda d: (_said(d.check), d.column))
    if sort == "effect":
        listed.sort(key=lambda d: -d.effect)
    elif sort == "change":
        listed.sort(key=lambda d: -abs(d.change or 0.0))
    units = _units(lake, entry)
    columns = (
        Column("metric", "metric"),
        Column("column", "column"),
        Column("first", "A, earlier", "number"),
        Column("second", "B, later", "number"),
        Column("difference", "difference", "number"),
        Column("change", "change", "percent"),
        Column("chance", "by chance up to", "number"),
        Column("verdict", "verdict", "status"),
        Column("unit", "unit"),
        Column("nights", "nights", "date"),
    )
    rows = [
        {
            "metric": _said(d.check),
            "column": d.column,
            "first": rounded(d.first.mean),
            "second": rounded(d.second.mean),
            "difference": rounded(d.value),
            "change": rounded(d.change),
            "chance": rounded(d.chance),
            "verdict": d.verdict,
            "unit": units.get(d.column, "") if d.check in _IN_UNIT else "",
            "nights": f"{d.first.nights} and {d.second.nights}",
        }
        for d in listed
    ]
    exceeding = sum(d.verdict == "exceeds" for d in listed)
    caption = (
        f"A, {_spoken(earlier)}, against B, {_spoken(later)}: {exceeding} of {len(rows)} metrics differ by more than "
        "chance. "
        "Means over the nights with a value, weighted by rows."
    )
    empty = "No metric has a value in both periods: labels may not be mature yet, or the nights were not scored."
    return Table("comparison", caption, columns, rows, empty=empty)


def _spoken(interval: Interval) -> str:
    return f"{interval.start} to {interval.last}" if len(interval) > 1 else f"{interval.start}"


_IN_UNIT = {MEAN, "mae", "rmse", "bias", "mae_baseline", "rmse_baseline"}
_WORDS = {
    NULL_RATE: "null rate",
    VOLUME: "rows scored",
    DRIFT_SHARE: "share of features beyond their limit",
    PREDICTION_DRIFT: "drift of predictions",
    LABEL_SHARE: "share of labels that came",
    ERROR_RATIO: "error over the baseline's",
    "drift_psi": "drift (PSI)",
    "drift_ks": "drift (KS)",
    "interval_coverage": "outcomes inside the interval",
}


def _said(check: str) -> str:
    return _WORDS.get(check) or check.replace("_", " ")


def _units(lake: Lake, entry: ModelEntry) -> dict[str, str]:
    units = {name: column.unit or "" for name, column in lake.catalog.feature_columns(entry).items()}
    label = lake.dataset(entry.dataset).tables[entry.label.table].columns[entry.label.column].unit or ""
    for name, output in entry.outputs.items():
        units |= output.units(name, label)
    return units


def comparison_presets(newest: date, promotions: Sequence[Promotion]) -> list[tuple[str, Interval, Interval]]:
    """Name, the later and the earlier period."""
    week = Interval.closed(newest - timedelta(days=6), newest)
    presets = [("last 7 nights against the 7 before", week, Interval(week.start - timedelta(days=7), week.start))]
    begun = [p for p in promotions if p.effective_from <= newest]
    if begun:
        since = max(p.effective_from for p in begun)
        length = newest - since + ONE_DAY
        presets.append(
            (
                f"since the last promotion ({since}) against before",
                Interval(since, newest + ONE_DAY),
                Interval(since - length, since),
            )
        )
    month = newest.replace(day=1)
    presets.append(
        (
            "this month against the last",
            Interval(month, newest + ONE_DAY),
            Interval((month - ONE_DAY).replace(day=1), month),
        )
    )
    return presets

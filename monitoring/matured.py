"""Errors on matured labels over several nights together, beside the baseline's, with an interval that takes nights, not
rows, as independent.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import sqlalchemy as sa

from config.calendar import Interval
from config.catalog.output import Metric
from lake.lake import Lake
from lake.metric_queries import METRICS, fetch, read_metrics_of, these

CONFIDENCE = 0.95
LEAST_NIGHTS = 3
Key = tuple[str, str]


@dataclass(frozen=True)
class JudgedNight:
    """One output on one mature night.

    Attributes:
        version: of the model that scored the night, None where the metrics do not say it.
        error, baseline: in the gate's metric; rows: rows with a label.
    """

    night: date
    version: int | None
    error: float
    baseline: float
    rows: int


@dataclass(frozen=True)
class Pooled:
    """Error over baseline of several nights together.

    Attributes:
        ratio: below 1 is better than the baseline.
        lower, upper: its 95 % interval, None with fewer than three nights.
        error: in the metric's own unit.
    """

    ratio: float
    lower: float | None
    upper: float | None
    error: float
    nights: int
    rows: int
    first: date
    last: date


def judged_nights(
    lake: Lake, models: Collection[str], interval: Interval, *, by: str = "about_date"
) -> dict[Key, list[JudgedNight]]:
    """Nights of a period on which the champion was judged, by model and output, in order of the nights; one query for
    all models.
    """
    gates = {name: {output: o.gate for output, o in lake.model(name).outputs.items()} for name in models}
    checks = sorted(
        {check for outputs in gates.values() for gate in outputs.values() for check in (gate, f"{gate}_baseline")}
    )
    measured: dict[tuple[str, str, date], dict[str, Mapping[str, Any]]] = {}
    columns = sorted({output for outputs in gates.values() for output in outputs})
    for row in read_metrics_of(lake, models, interval, by=by, checks=checks, columns=columns):
        measured.setdefault((row["subject"], row["column"], row["about_date"]), {})[row["check"]] = row
    nights: dict[Key, list[JudgedNight]] = {}
    for (model, output, night), rows in sorted(measured.items()):
        gate = gates[model].get(output)
        own, base = rows.get(gate or ""), rows.get(f"{gate}_baseline")
        if own is None or base is None or own["value"] is None or base["value"] is None or not own["n"]:
            continue
        nights.setdefault((model, output), []).append(
            JudgedNight(night, own["model_version"], own["value"], base["value"], own["n"])
        )
    return nights


def pooled(nights: Sequence[JudgedNight], metric: Metric) -> Pooled | None:
    """Those nights together; None without one, or where the baseline made no error.

    The interval comes from how much the nights differ (a ratio of sums, linearised), with Student's t for few of them.

    Args:
        metric: of the errors; says what of them can be added up.
    """
    errors, baselines = [(n.error, n.rows) for n in nights], [(n.baseline, n.rows) for n in nights]
    ratio, error = metric.pooled_ratio(errors, baselines), metric.pooled(errors)
    if ratio is None or error is None:
        return None
    lower = upper = None
    if len(nights) >= LEAST_NIGHTS:
        own, base = ([metric.as_mean(value) * rows for value, rows in side] for side in (errors, baselines))
        half, inner = _half_width(own, base), metric.as_mean(ratio)
        lower, upper = (float(metric.of_mean(max(inner + sign * half, 0.0))) for sign in (-1, 1))
    rows = sum(n.rows for n in nights)
    return Pooled(
        ratio, lower, upper, error, len(nights), rows, min(n.night for n in nights), max(n.night for n in nights)
    )


def _half_width(own: Sequence[float], base: Sequence[float]) -> float:
    from scipy.special import stdtrit

    count, below = len(own), sum(base)
    ratio = sum(own) / below
    spread = sum((o - ratio * b) ** 2 for o, b in zip(own, base, strict=True))
    return float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * math.sqrt(spread * count / (count - 1)) / below


@dataclass(frozen=True)
class LastNights:
    """The nights on which a model is held against its gate.

    Attributes:
        version: the version whose nights count; last: no later one counts; count: so many at most.
    """

    version: int
    last: date
    count: int


def last_judged(lake: Lake, wanted: Mapping[str, LastNights]) -> dict[Key, list[JudgedNight]]:
    """The last judged nights of each model's own version, by model and output, in order of the nights.

    Nights are counted, not days: a data set may skip weeks, and each model has a newest night of its own.
    """
    spans: dict[Interval, list[str]] = {}
    for name, first in _first_nights(lake, wanted).items():
        spans.setdefault(Interval.closed(first, wanted[name].last), []).append(name)
    nights: dict[Key, list[JudgedNight]] = {}
    for span, names in spans.items():
        for (name, output), judged in judged_nights(lake, names, span).items():
            of_version = [night for night in judged if night.version == wanted[name].version]
            nights[name, output] = of_version[-wanted[name].count :]
    return nights


def _first_nights(lake: Lake, wanted: Mapping[str, LastNights]) -> dict[str, date]:
    """By model: the first of those nights, of the output that goes back farthest."""
    c = METRICS.c
    oldest = []
    for name, nights in wanted.items():
        for output, declared in lake.model(name).outputs.items():
            of_output = these([name], checks=[declared.gate], columns=[output])
            known = (c.value.is_not(None), c.model_version == nights.version, c.about_date <= nights.last)
            last = sa.select(c.about_date).where(*of_output, *known).distinct()
            last_of_output = last.order_by(c.about_date.desc()).limit(nights.count).subquery()
            oldest.append(
                sa.select(sa.literal(name).label("model"), sa.func.min(last_of_output.c.about_date).label("first"))
            )
    if not oldest:
        return {}
    firsts: dict[str, date] = {}
    for name, first in fetch(lake, sa.union_all(*oldest)):
        if first is not None:
            firsts[name] = min(first, firsts.get(name, first))
    return firsts


def ever_judged(lake: Lake, models: Collection[str]) -> set[str]:
    """Models of which some night was judged, by whatever version."""
    any_night = []
    for name in models:
        outputs = lake.model(name).outputs
        of_gates = these([name], checks=sorted({o.gate for o in outputs.values()}), columns=sorted(outputs))
        has_one = sa.select(METRICS.c.subject).where(*of_gates, METRICS.c.value.is_not(None)).exists()
        any_night.append(sa.select(sa.literal(name)).where(has_one))
    return {name for (name,) in fetch(lake, sa.union_all(*any_night))} if any_night else set()

"""What the Model page reads: a model's metrics by check, column and night as arrays, averages of periods, and the
nights that were scored.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from config.calendar import Interval
from config.catalog.model import ModelEntry
from lake.assignment import CHAMPION, champion_in
from lake.lake import Lake
from lake.lineage import publications_table
from lake.metric_queries import METRICS, fetch, these
from lake.metrics import SQL_TABLE
from lake.projection import has_table
from lake.publication_queries import published_nights
from monitoring.performance import ERROR_RATIO, LABEL_SHARE
from serving.metrics import rooted_checks

Floats = npt.NDArray[np.float64]
DRIFT_CHECKS = "drift_psi", "drift_ks"
NULL_RATE, VOLUME, DRIFT_SHARE, PREDICTION_DRIFT = "null_rate", "volume", "drift_share", "prediction_drift"
LEAST_NIGHTS = 3  # of each period: fewer say nothing about what nights differ by
_WORST_RATIO = 99.0


@dataclass(frozen=True)
class Line:
    """One check of one column over the nights of a period; NaN where there is no number.

    Attributes:
        known: whether the night has a row, be it `not_evaluated`.
    """

    value: Floats
    lower: Floats
    upper: Floats
    threshold: Floats
    n: Floats
    known: npt.NDArray[np.bool_]

    @property
    def ratio(self) -> Floats:
        """Value over its limit, at most 99; NaN where one of them is missing."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = self.value / self.threshold
        ratio[(self.threshold <= 0) & (self.value > 0)] = _WORST_RATIO
        return np.minimum(ratio, _WORST_RATIO)


@dataclass(frozen=True)
class ScoredNight:
    """One published night of predictions, as its newest commit left it.

    Attributes:
        version: the model's, that scored it as champion, or, where there was none yet, ran along.
        table_version: Delta's, of the predictions table.
        committed_at: aware, UTC.
    """

    version: int
    artifact_digest: str
    rows: int
    table_version: int
    digest: str
    run_id: str
    committed_at: datetime


@dataclass(frozen=True)
class History:
    """A model over the nights of a period."""

    entry: ModelEntry
    interval: Interval
    nights: tuple[date, ...]
    lines: Mapping[tuple[str, str], Line]
    scored: Mapping[date, ScoredNight]

    def line(self, check: str, column: str = "") -> Line:
        """Of one check and column; all NaN where there is none."""
        return self.lines.get((check, column)) or _empty_line(len(self.nights))

    @functools.cached_property
    def drift(self) -> dict[str, Line]:
        """By feature."""
        return {column: line for (check, column), line in self.lines.items() if check in DRIFT_CHECKS}

    @functools.cached_property
    def nulls(self) -> dict[str, Line]:
        """Null rates by feature."""
        return {column: line for (check, column), line in self.lines.items() if check == NULL_RATE}

    def within(self, interval: Interval) -> npt.NDArray[np.bool_]:
        """Mask of the nights that lie in another interval."""
        return np.array([night in interval for night in self.nights], dtype=bool)


@dataclass(frozen=True)
class Average:
    """A metric over the nights of a period.

    Attributes:
        mean: weighted by rows; of a rooted metric the root of the mean of squares.
        nights: with a value; rows: together.
        spread: standard deviation between nights, NaN below two.
    """

    mean: float
    nights: int
    rows: int
    spread: float


@dataclass(frozen=True)
class SegmentLoss:
    """One segment of one output over a period; `error` as in the gate's metric, `loss` summed over its rows."""

    output: str
    column: str
    value: str
    rows: int
    error: float
    loss: float
    baseline: float | None


# ---- nights ------------------------------------------------------------------------------------------------------


def known_nights(lake: Lake, model: str) -> tuple[date, date] | None:
    """First and newest night that was scored, None before the first."""
    if not has_table(lake, publications_table.name):
        return None
    c = publications_table.c
    query = sa.select(sa.func.min(c.data_date).label("first"), sa.func.max(c.data_date).label("newest")).where(
        c.table_name == f"{model}/predictions"
    )
    with lake.engine.connect() as connection:
        row = connection.execute(query).one()
    return None if row.first is None else (row.first, row.newest)


def read_history(lake: Lake, entry: ModelEntry, interval: Interval, *, role: str = CHAMPION) -> History:
    """What is drawn over time, of all rows (not of segments), about the nights of a period.

    Args:
        role: whose metrics; the challenger's of a model that never had a champion.
    """
    nights = tuple(interval)
    lines = _read_lines(lake, entry, nights, interval, role)
    return History(entry, interval, nights, lines, read_scored(lake, entry.name, interval))


def _read_lines(
    lake: Lake, entry: ModelEntry, nights: tuple[date, ...], interval: Interval, role: str
) -> dict[tuple[str, str], Line]:
    if not has_table(lake, SQL_TABLE):
        return {}
    lines: dict[tuple[str, str], Line] = {}
    # Nine of ten rows are about features, of which a value and its limit are all that is shown.
    _gather(lake, entry.name, nights, interval, lines, (*DRIFT_CHECKS, NULL_RATE), ("value", "threshold"), role)
    checks = {VOLUME, DRIFT_SHARE, PREDICTION_DRIFT, LABEL_SHARE, ERROR_RATIO}
    checks |= {name for output in entry.outputs.values() for name in (output.gate, f"{output.gate}_baseline")}
    _gather(
        lake, entry.name, nights, interval, lines, sorted(checks), ("value", "lower", "upper", "threshold", "n"), role
    )
    return lines


def _gather(
    lake: Lake,
    model: str,
    nights: tuple[date, ...],
    interval: Interval,
    lines: dict[tuple[str, str], Line],
    checks: Collection[str],
    wanted: tuple[str, ...],
    role: str,
) -> None:
    c = METRICS.c
    query = (
        # Nights as text: both databases write them alike, and parsing tens of thousands of dates takes longer than
        # reading them.
        sa.select(c.check, c.column, sa.cast(c.about_date, sa.String), *(c[name] for name in wanted))
        .where(*these([model], about=interval, checks=checks, role=role))
        # A night that was judged twice counts as judged last: later rows overwrite.
        .order_by(c.check, c.column, c.about_date, c.data_date)
    )
    with lake.engine.connect() as connection:
        rows = connection.execute(query).cursor.fetchall()  # type: ignore[union-attr]  # plain tuples: a third of the time of SQLAlchemy's rows
    if not rows:
        return
    keys, columns, days, *numbers = zip(*rows, strict=True)
    place = {day.isoformat(): position for position, day in enumerate(nights)}
    position = np.fromiter((place[day] for day in days), dtype=np.int64, count=len(rows))
    values = [np.array(column, dtype=np.float64) for column in numbers]
    names = np.array([keys, columns], dtype=object)
    starts = [0, *(np.flatnonzero((names[:, 1:] != names[:, :-1]).any(axis=0)) + 1).tolist(), len(rows)]
    for begin, end in itertools.pairwise(starts):
        line = _empty_line(len(nights))
        at = position[begin:end]
        for name, column in zip(wanted, values, strict=True):
            getattr(line, name)[at] = column[begin:end]
        line.known[at] = True
        lines[keys[begin], columns[begin]] = line


def _empty_line(count: int) -> Line:
    value, lower, upper, threshold, n = np.full((5, count), np.nan)
    return Line(value, lower, upper, threshold, n, np.zeros(count, dtype=bool))


def read_scored(lake: Lake, model: str, interval: Interval) -> dict[date, ScoredNight]:
    """The published nights of a period, each with the version that scored it as champion, or beside nobody."""
    table = f"{model}/predictions"
    scored = {}
    for day, night in published_nights(lake, [table], interval).get(table, {}).items():
        plan = night.scored_by
        scorer = champion_in(plan) or (plan[0] if plan else None)
        if scorer is not None:
            scored[day] = ScoredNight(
                scorer.version,
                scorer.artifact_digest,
                night.rows,
                night.version,
                night.digest,
                night.run_id,
                night.newest_at,
            )
    return scored


def inputs_of(lake: Lake, model: str, night: date) -> list[Mapping[str, Any]]:
    """Table, data date, digest and version of each partition that the newest scoring of a night read."""
    c = publications_table.c
    query = (
        sa.select(c.inputs)
        .where(c.table_name == f"{model}/predictions", c.data_date == night)
        .order_by(c.version.desc())
        .limit(1)
    )
    with lake.engine.connect() as connection:
        text = connection.execute(query).scalar()
    inputs: list[Mapping[str, Any]] = json.loads(text) if text else []
    return inputs


# ---- averages ----------------------------------------------------------------------------------------------------


def replaced_judgements(lake: Lake, model: str, interval: Interval) -> list[tuple[date, date]]:
    """Pairs of about and data date of the judgements of a night that a later one replaced; nearly always none."""
    c = METRICS.c
    query = sa.select(c.about_date, c.data_date).where(
        *these([model], about=interval, checks=[LABEL_SHARE], columns=[""])
    )
    newest: dict[date, date] = {}
    replaced = []
    for about, judged in fetch(lake, query.order_by(c.about_date, c.data_date)):
        if about in newest:
            replaced.append((about, newest[about]))
        newest[about] = judged
    return replaced


def _not_replaced(pairs: Collection[tuple[date, date]]) -> Iterator[sa.ColumnElement[bool]]:
    for about, judged in pairs:
        yield sa.not_(sa.and_(METRICS.c.about_date == about, METRICS.c.data_date == judged))


def read_averages(
    lake: Lake, model: str, interval: Interval, *, role: str = CHAMPION
) -> dict[tuple[str, str], Average]:
    """Mean and spread between nights of each check and column over a period; nights without a value do not count."""
    c = METRICS.c
    # Rows are what volume counts: weighted by itself it would be no mean.
    weight = sa.case((c.check == VOLUME, 1.0), else_=sa.cast(sa.func.coalesce(c.n, 1), sa.Double))
    rooted = rooted_checks()
    power = sa.case((c.check.in_(rooted), c.value * c.value), else_=c.value)
    query = (
        sa.select(
            c.check,
            c.column,
            sa.func.sum(power * weight).label("weighted"),
            sa.func.sum(weight).label("weights"),
            sa.func.count(c.value).label("nights"),
            sa.func.sum(sa.cast(c.n, sa.Double)).label("rows"),
            sa.func.sum(c.value).label("total"),
            sa.func.sum(c.value * c.value).label("squares"),
        )
        .where(*these([model], about=interval, role=role), c.value.is_not(None))
        .where(*_not_replaced(replaced_judgements(lake, model, interval)))
        .group_by(c.check, c.column)
    )
    averages = {}
    for row in fetch(lake, query):
        if not row.weights:
            continue
        mean = row.weighted / row.weights
        variance = (row.squares - row.total**2 / row.nights) / (row.nights - 1) if row.nights > 1 else math.nan
        averages[row.check, row.column] = Average(
            math.sqrt(max(mean, 0.0)) if row.check in rooted else mean,
            row.nights,
            int(row.rows or 0),
            math.sqrt(max(variance, 0.0)) if row.nights > 1 else math.nan,
        )
    return averages


def read_segments(lake: Lake, entry: ModelEntry, interval: Interval, *, role: str = CHAMPION) -> list[SegmentLoss]:
    """Loss of every segment of the gate's columns over a period, by output, column, and falling loss."""
    if entry.gate.segments is None:
        return []
    c = METRICS.c
    checks = sorted({name for output in entry.outputs.values() for name in (output.gate, f"{output.gate}_baseline")})
    loss = sa.case((c.check.in_(rooted_checks()), c.value * c.value), else_=c.value) * c.n
    query = (
        sa.select(c.check, c.column, c.segment, sa.func.sum(c.n).label("rows"), sa.func.sum(loss).label("loss"))
        .where(*these([entry.name], about=interval, checks=checks, segments=True, role=role), c.segment != "", c.n > 0)
        .where(c.value.is_not(None), *_not_replaced(replaced_judgements(lake, entry.name, interval)))
        .group_by(c.check, c.column, c.segment)
    )
    rows = {(row.check, row.column, row.segment): (int(row.rows), float(row.loss)) for row in fetch(lake, query)}
    segments = []
    for (check, output, segment), (count, total) in rows.items():
        declared = entry.outputs.get(output)
        if declared is None or check != declared.gate:
            continue
        name = next(
            (column for column in entry.gate.segments.columns if segment.startswith(f"{column}=")),
            segment.partition("=")[0],
        )
        beside = rows.get((f"{check}_baseline", output, segment))
        baseline = None if beside is None else float(declared.metric.of_mean(beside[1] / beside[0]))
        segments.append(
            SegmentLoss(
                output,
                name,
                segment.removeprefix(f"{name}="),
                count,
                float(declared.metric.of_mean(total / count)),
                total,
                baseline,
            )
        )
    return sorted(segments, key=lambda s: (list(entry.outputs).index(s.output), s.column, -s.loss, s.value))


def number(value: float) -> float | None:
    """To six digits that count; None for what is not there."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def rounded(value: float | None) -> float | None:
    """As `number`, None for None."""
    return None if value is None else number(value)

"""Bias by segment: is the model worse for some carrier, place or machine than for all rows together?

The segments are those of the gate, and what `split.groups` holds out whole. Where the gate compares a segment with the
incumbent's error there, this compares it with the model's own error over all rows. Days are resampled, as at the gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from config.catalog.model import ModelEntry, SegmentGate
from config.catalog.output import SCALE, OutputKind
from training.registry.bootstrap import RESAMPLES, day_weights

Floats = npt.NDArray[np.float64]
SEGMENTS_FILE = "segments.json"
FORMAT = 1
CONFIDENCE = 0.95
NULL = "(null)"
_MIN_DAYS = 2  # one day resampled is that day: it would claim to be certain
_COLUMNS_AT_ONCE = 256
_FEW = 10  # a quantile of fewer draws is none


@dataclass(frozen=True)
class Bounds:
    """A value with its two-sided 95 % interval by bootstrap over days; without bounds where too few days or draws hold
    the segment.
    """

    value: float
    lower: float | None
    upper: float | None


@dataclass(frozen=True)
class Segment:
    """One output's error among the rows of one segment.

    Attributes:
        error: in the unit of the gate's metric.
        ratio: error over the error of all rows; None where that is 0.
        bias: mean of prediction minus label, in the label's unit; for a probability predicted rate minus rate; None for
            what cannot lie above a label.
        rate, predicted_rate: of the event that an output says a probability of, else None.
        coverage: share of outcomes inside the output's interval, None without one.
        worse: the whole interval of the ratio lies above 1.
    """

    column: str
    value: str
    n: int
    days: int
    error: Bounds
    ratio: Bounds | None
    bias: float | None
    rate: float | None
    predicted_rate: float | None
    worse: bool
    coverage: float | None = None


@dataclass(frozen=True)
class TooSmall:
    """A segment that was not evaluated."""

    column: str
    value: str
    n: int


@dataclass(frozen=True)
class OutputSegments:
    """One output: `segments` with the largest ratio first, `not_evaluated` by column and value."""

    output: str
    metric: str
    whole: Bounds
    segments: tuple[Segment, ...]
    not_evaluated: tuple[TooSmall, ...]


@dataclass(frozen=True)
class SegmentReport:
    """Bias by segment of one version on the test rows.

    Attributes:
        columns: what segments were formed by; none: the catalog names none.
        min_rows: segments with fewer rows are not evaluated.
        rows, days: looked at.
    """

    columns: tuple[str, ...]
    min_rows: int
    rows: int
    days: int
    outputs: tuple[OutputSegments, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON document."""
        rules = {"confidence": CONFIDENCE, "resampled": "days", "resamples": RESAMPLES}
        return {"format": FORMAT, **rules, **asdict(self)}


def segment_columns(entry: ModelEntry) -> tuple[str, ...]:
    """The gate's segment columns, and the column whose values are held out whole."""
    named = entry.gate.segments.columns if entry.gate.segments else ()
    return tuple(dict.fromkeys([*named, *([entry.split.groups] if entry.split.groups else [])]))


def min_rows(entry: ModelEntry) -> int:
    """Segments with fewer rows are not evaluated."""
    rules = entry.gate.segments or SegmentGate(columns=segment_columns(entry) or ("none",))
    return rules.min_rows


def segment_report(
    entry: ModelEntry,
    rows: pa.Table,
    label: Floats,
    predictions: Mapping[str, Floats],
    inside: Mapping[str, npt.NDArray[np.bool_]],
) -> SegmentReport:
    """Measure every output in every segment.

    Args:
        rows: `data_date`, the columns of `segment_columns` and, of a scaled model, `SCALE`; at least one row.
        label: (rows,).
        predictions: of each output as its metrics take them.
        inside: of each output with an interval whether it holds the label.
    """
    days, day = np.unique(rows["data_date"].cast(pa.int32()).to_numpy(), return_inverse=True)
    weights = day_weights(len(days), seed=entry.trainer.seed) if len(days) >= _MIN_DAYS else None
    columns, least = segment_columns(entry), min_rows(entry)
    scale = rows[SCALE].to_numpy() if entry.scaled else None
    encoded = {column: _encoded(rows[column]) for column in columns}
    outputs = []
    for name, output in entry.outputs.items():
        measured = _Measured(output, label, predictions[name], inside.get(name), scale, day, len(days), weights)
        worse: list[Segment] = []
        small: list[TooSmall] = []
        for column, (values, codes) in encoded.items():
            counts = np.bincount(codes, minlength=len(values))
            small += [TooSmall(column, values[i], int(counts[i])) for i in np.flatnonzero(counts < least)]
            worse += measured.segments(column, values, codes, np.flatnonzero(counts >= least))
        worse.sort(key=lambda s: (-(s.ratio.value if s.ratio else 0.0), s.column, s.value))
        outputs.append(OutputSegments(name, output.gate, measured.whole(), tuple(worse), tuple(small)))
    return SegmentReport(columns, least, rows.num_rows, len(days), tuple(outputs))


class _Measured:
    """One output's losses, summed by day."""

    def __init__(
        self,
        output: OutputKind,
        label: Floats,
        judged: Floats,
        inside: npt.NDArray[np.bool_] | None,
        scale: Floats | None,
        day: npt.NDArray[np.int64],
        days: int,
        weights: Floats | None,
    ) -> None:
        self._output, self._day, self._days, self._weights = output, day, days, weights
        self._losses = output.row_losses(label, judged, scale)
        self._pair, self._inside = output.event(label, judged), inside
        self._bias = output.bias(label, judged)
        self._sums, self._rows = _by_day(day, days, np.zeros_like(day), 1, self._losses)

    def _error(self, sums: Floats, rows: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            errors: Floats = self._output.metric.of_mean(sums / rows)
        return errors

    def whole(self) -> Bounds:
        """The error of all rows."""
        draws = None if self._weights is None else self._error(self._weights @ self._sums, self._weights @ self._rows)
        return _bounds(self._error(self._sums.sum(axis=0), self._rows.sum(axis=0)), draws)[0]

    def segments(
        self, column: str, values: list[str], codes: npt.NDArray[np.int64], chosen: npt.NDArray[np.int64]
    ) -> list[Segment]:
        """The chosen values of a column, `codes` being each row's position in `values`."""
        if not len(chosen):
            return []
        all_sums, all_rows = _by_day(self._day, self._days, codes, len(values), self._losses)
        counts = np.bincount(codes, minlength=len(values))

        def means(numbers: Floats) -> Floats:
            return np.bincount(codes, weights=numbers, minlength=len(values)) / np.maximum(counts, 1)

        bias = None if self._bias is None else means(self._bias)
        events, said = (None, None) if self._pair is None else (means(self._pair[0]), means(self._pair[1]))
        held = None if self._inside is None else means(self._inside.astype(np.float64))
        whole = self._error(self._sums.sum(axis=0), self._rows.sum(axis=0))
        parts = []
        for start in range(0, len(chosen), _COLUMNS_AT_ONCE):
            part = chosen[start : start + _COLUMNS_AT_ONCE]
            sums, rows = all_sums[:, part], all_rows[:, part]
            errors = self._error(sums.sum(axis=0), rows.sum(axis=0))
            drawn = ratios = None
            if self._weights is not None:
                drawn = self._error(self._weights @ sums, self._weights @ rows)
                drawn[:, (rows > 0).sum(axis=0) < _MIN_DAYS] = np.nan
                with np.errstate(divide="ignore", invalid="ignore"):
                    ratios = drawn / self._error(self._weights @ self._sums, self._weights @ self._rows)
            error = _bounds(errors, drawn)
            ratio = _bounds(errors / whole, ratios) if whole[0] > 0.0 else [None] * len(part)
            for position, index in enumerate(part):
                against = ratio[position]
                parts.append(
                    Segment(
                        column=column,
                        value=values[index],
                        n=int(counts[index]),
                        days=int((rows[:, position] > 0).sum()),
                        error=error[position],
                        ratio=against,
                        bias=None if bias is None else float(bias[index]),
                        rate=None if events is None else float(events[index]),
                        predicted_rate=None if said is None else float(said[index]),
                        worse=against is not None and against.lower is not None and against.lower > 1.0,
                        coverage=None if held is None else float(held[index]),
                    )
                )
        return parts


def _by_day(
    day: npt.NDArray[np.int64], days: int, codes: npt.NDArray[np.int64], count: int, losses: Floats
) -> tuple[Floats, Floats]:
    """Sums of losses, and numbers of rows, of shape (days, count)."""
    cell = day * count + codes
    sums: Floats = np.bincount(cell, weights=losses, minlength=days * count).reshape(days, count).astype(np.float64)
    return sums, np.bincount(cell, minlength=days * count).reshape(days, count).astype(np.float64)


def _bounds(values: Floats, draws: Floats | None) -> list[Bounds]:
    """Each value with the quantiles of its draws, (draws, values); a draw without a row of the segment says nothing and
    is left out.
    """
    bounds = []
    for position, value in enumerate(values):
        told = np.empty(0) if draws is None else draws[:, position]
        told = told[np.isfinite(told)]
        if len(told) < _FEW:
            bounds.append(Bounds(float(value), None, None))
            continue
        tail = (1.0 - CONFIDENCE) / 2.0
        lower, upper = (float(np.quantile(told, q, method=m)) for q, m in ((tail, "lower"), (1.0 - tail, "higher")))  # type: ignore[call-overload]  # a method by variable
        bounds.append(Bounds(float(value), lower, upper))
    return bounds


def _encoded(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Sorted values as text, and each row's position in them."""
    text = pc.fill_null(column.cast(pa.string()), NULL)
    encoded = text.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    values = encoded.dictionary.to_pylist()
    order = np.argsort(np.array(values, dtype=object), kind="stable")
    position = np.empty(len(values), dtype=np.int64)
    position[order] = np.arange(len(values))
    return [values[i] for i in order], position[encoded.indices.to_numpy()]

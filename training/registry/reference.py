"""The reference profile of a model version: what its training window looked like, and how far a normal night strays
from it.

A fixed threshold of drift alarms every night where one night can never look like months (it has one weekday). So each
column's limit comes from the column itself: the same statistic, over windows of as many nights as are judged later,
walked through the training window, each compared with the rest of it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from config.catalog.model import ModelEntry
from config.errors import NightfleetError
from training.registry.coarse import Grid

FORMAT = 2  # since 2 a numeric column has its mean; profiles of 1 are read, without it
READABLE_FORMATS = (1, 2)
MAX_BINS = 20
MIN_BINS = 5
ROWS_PER_BIN = 5  # a night of 24 rows in 20 bins would be noise: fewer bins where a window has few rows
MIN_WINDOWS = 7  # a limit out of fewer windows is not a limit
PSEUDO_COUNT = 0.5
VOLUME_TOLERANCE = 0.25
SAMPLE_ROWS = 20_000
SAMPLE_FILE = "reference_sample.parquet"
_AVERAGED = frozenset({"int32", "int64", "float64"})  # the mean of dates or instants would tell nobody anything
_UNIT_BITS = 1126  # exact sums count in 2**-1126, which the last bit of the smallest double is a multiple of
_MANTISSA_BITS = 53
_HALF_BITS = 27
_ROWS_AT_ONCE = 1 << 20

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class BadReference(NightfleetError):
    """A reference profile cannot be built from these rows, or cannot be read."""


# ---- the statistics --------------------------------------------------------------------------------------------


def smoothed_shares(counts: npt.ArrayLike) -> Floats:
    """Counts of bins (last axis) as shares, all above zero: `(count + 0.5) / (rows + 0.5 * bins)`.

    The half count is Jeffreys' prior for a multinomial (Krichevsky and Trofimov 1981). Without it one empty bin makes
    the logarithm of the PSI infinite.
    """
    array = np.asarray(counts, dtype=np.float64)
    smoothed: Floats = (array + PSEUDO_COUNT) / (array.sum(axis=-1, keepdims=True) + PSEUDO_COUNT * array.shape[-1])
    return smoothed


def psi(expected_shares: npt.ArrayLike, found_shares: npt.ArrayLike) -> Floats:
    """Population stability index, `sum((observed - expected) * ln(observed / expected))` over the last axis.

    Siddiqi, Credit Risk Scorecards (2006); equal to the symmetrised Kullback-Leibler divergence of Jeffreys. Zero
    where the shares are equal, never negative.

    Args:
        expected_shares: shares of the bins in the reference, all above zero (see `smoothed_shares`).
        found_shares: shares of the same bins in what is judged, all above zero.
    Raises:
        BadReference: a share is zero or negative.
    """
    expected, observed = np.asarray(expected_shares, dtype=np.float64), np.asarray(found_shares, dtype=np.float64)
    if (expected <= 0).any() or (observed <= 0).any():
        raise BadReference(
            "the PSI met a share of zero, needs all above zero. Smooth the counts with `smoothed_shares` first."
        )
    values: Floats = np.maximum(((observed - expected) * np.log(observed / expected)).sum(axis=-1), 0.0)
    return values


def ks(expected_shares: npt.ArrayLike, found_shares: npt.ArrayLike, *, ordered: bool = True) -> Floats:
    """Kolmogorov-Smirnov distance at the edges of the bins, over the last axis, in [0, 1].

    Categories have no order (`ordered=False`): theirs is the total variation distance, half the sum of absolute
    differences, which is the largest distance that any order of them could show.
    """
    difference = np.asarray(found_shares, dtype=np.float64) - np.asarray(expected_shares, dtype=np.float64)
    values: Floats = (
        np.abs(np.cumsum(difference, axis=-1)).max(axis=-1) if ordered else np.abs(difference).sum(axis=-1) / 2
    )
    return values


def statistic(method: str, expected_counts: npt.ArrayLike, found_counts: npt.ArrayLike, *, ordered: bool) -> Floats:
    """PSI or KS of counts per bin (last axis), rounded to six decimals so that equal nights give equal bits.

    The reference's shares are brought to the found rows before both are smoothed: equal shares then give exactly zero
    whatever the sizes. Smoothed at its own size, a constant column would differ a little from itself every night.
    """
    reference, judged = np.asarray(expected_counts, dtype=np.float64), np.asarray(found_counts, dtype=np.float64)
    brought = reference / reference.sum(axis=-1, keepdims=True) * judged.sum(axis=-1, keepdims=True)
    expected, observed = smoothed_shares(brought), smoothed_shares(judged)
    match method:
        case "psi":
            values = psi(expected, observed)
        case "ks":
            values = ks(expected, observed, ordered=ordered)
        case _:
            raise BadReference(f"there is no drift statistic {method!r}. Known: psi, ks.")
    return np.round(values, 6)


def upper_limit(values: npt.ArrayLike, quantile: float) -> float | None:
    """The bound that a further value of the same kind exceeds with a probability of at most `1 - quantile`.

    It is the `ceil(quantile * (n + 1))`-th smallest of n values (the split conformal quantile; the plain sample
    quantile is exceeded more often, because the limit itself is estimated), the largest where n is too small for that.
    Always one of the values, so no interpolation can differ between machines. None for fewer than MIN_WINDOWS values.
    The promise is that of values that are drawn alike: of windows of w nights that overlap, walked through N, it is
    nearer to that of N / w values (10 of them: exceeded by one in 11).
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if len(ordered) < MIN_WINDOWS:
        return None
    rank = min(math.ceil(quantile * (len(ordered) + 1)), len(ordered))
    return float(ordered[rank - 1])


def window_sums(counts: Counts, nights: int) -> Counts:
    """Sums over each run of `nights` consecutive rows of `counts` (nights × bins): (rows - nights + 1) × bins."""
    total = np.concatenate([np.zeros((1, counts.shape[1]), dtype=np.int64), np.cumsum(counts, axis=0)])
    sums: Counts = total[nights:] - total[:-nights]
    return sums


# ---- means -----------------------------------------------------------------------------------------------------


def is_averaged(kind: str) -> bool:
    """Whether a column of that catalog type has a mean."""
    return kind in _AVERAGED


@dataclass(frozen=True)
class ExactSum:
    """A sum without rounding, so that it is the same in whatever order and batches its numbers come.

    Attributes:
        total: in units of 2**-1126.
        count: numbers in it.
        infinite: numbers left out, since they are infinite.
    """

    total: int = 0
    count: int = 0
    infinite: int = 0

    def __add__(self, other: ExactSum) -> ExactSum:
        """Both together."""
        return ExactSum(self.total + other.total, self.count + other.count, self.infinite + other.infinite)

    def mean(self) -> float | None:
        """The double nearest to the mean; None without a number."""
        return self.total / (self.count << _UNIT_BITS) if self.count else None


def exact_sum(values: Floats) -> ExactSum:
    """The sum of float64 values; NaN is not a value."""
    present = values[~np.isnan(values)]
    finite = present[np.isfinite(present)]
    total = 0
    for start in range(0, len(finite), _ROWS_AT_ONCE):
        mantissas, exponents = np.frexp(finite[start : start + _ROWS_AT_ONCE])
        whole = np.ldexp(mantissas, _MANTISSA_BITS).astype(np.int64)
        lowest = int(exponents.min())
        # Halves of a mantissa, so that sums of a million of them are whole numbers that a double holds.
        high = np.bincount(exponents - lowest, weights=whole >> _HALF_BITS)
        low = np.bincount(exponents - lowest, weights=whole & ((1 << _HALF_BITS) - 1))
        for place in np.flatnonzero((high != 0) | (low != 0)):
            total += ((int(high[place]) << _HALF_BITS) + int(low[place])) << (
                lowest + int(place) - _MANTISSA_BITS + _UNIT_BITS
            )
    return ExactSum(total, len(finite), len(present) - len(finite))


# ---- bins ------------------------------------------------------------------------------------------------------


def is_categorical(kind: str) -> bool:
    """Strings and booleans are categories; numbers, dates and timestamps are numbers."""
    return kind in {"string", "boolean"}


def as_numbers(column: pa.ChunkedArray | pa.Array) -> Floats:
    """A numeric, date or timestamp column as float64; null becomes NaN, a date days and a timestamp microseconds since
    1970.
    """
    kind = column.type
    if pa.types.is_date32(kind):
        column = column.cast(pa.int32())
    elif pa.types.is_timestamp(kind):
        column = column.cast(pa.int64())
    values: Floats = np.asarray(pc.fill_null(column.cast(pa.float64(), safe=False), float("nan")), dtype=np.float64)
    return values


def _as_categories(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    text = column.cast(pa.string())
    return text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text


def numeric_edges(values: Floats, bins: int) -> list[float]:
    """Inner edges of at most `bins` quantile bins; bin i holds `edge[i-1] < value <= edge[i]`, the outer two are open.

    Quantiles are values that occur (no interpolation), so infinities are fine. Where the lowest edge is the minimum (a
    constant, a pile of zeros), one edge just below it lets a lower value show.
    """
    finite_order = values[~np.isnan(values)]
    if not len(finite_order):
        return []
    quantiles = np.quantile(finite_order, np.arange(1, bins) / bins, method="inverted_cdf")
    edges = np.unique(quantiles)
    lowest = finite_order.min()
    if edges[0] == lowest and np.isfinite(lowest):
        edges = np.concatenate([[np.nextafter(lowest, -np.inf)], edges])
    return [float(edge) for edge in edges]


def bin_indices(column: pa.ChunkedArray | pa.Array, profile: Mapping[str, Any]) -> npt.NDArray[np.int64]:
    """Number of the bin of each row, -1 for null and NaN.

    A category that the reference does not list falls into the last bin, `other`.
    """
    if profile["kind"] == "categorical":
        text = _as_categories(column)
        positions = pc.index_in(text, value_set=pa.array(profile["categories"], pa.string()))
        indices = np.asarray(pc.fill_null(positions, len(profile["categories"])), dtype=np.int64)
        return np.where(np.asarray(text.is_null()), -1, indices)
    numbers = as_numbers(column)
    edges = np.asarray([_unpack(edge) for edge in profile["edges"]], dtype=np.float64)
    return np.where(np.isnan(numbers), -1, np.searchsorted(edges, numbers, side="left"))


def count_bins(
    column: pa.ChunkedArray | pa.Array, profile: Mapping[str, Any], nights: npt.NDArray[np.int64], night_count: int
) -> tuple[Counts, Counts]:
    """Rows per night and bin (nights × bins), and nulls per night; `nights` holds each row's night as 0, 1, 2…"""
    bins = len(profile["counts"])
    indices = bin_indices(column, profile)
    present = indices >= 0
    flat = np.bincount(nights[present] * bins + indices[present], minlength=night_count * bins)
    return flat.reshape(night_count, bins).astype(np.int64), np.bincount(
        nights[~present], minlength=night_count
    ).astype(np.int64)


def _pack(number: float) -> float | str:
    """JSON has no infinity."""
    return number if math.isfinite(number) else str(number)


def _unpack(value: float | str) -> float:
    return float(value)


# ---- the profile -----------------------------------------------------------------------------------------------


def _profile(
    column: pa.ChunkedArray,
    kind: str,
    nights: npt.NDArray[np.int64],
    night_count: int,
    *,
    method: str,
    window: int,
    quantile: float,
    personal: bool = False,
) -> dict[str, Any]:
    """Bins, counts and walked-window limits of one column. A personal one's edges lie on a coarse grid, and it has no
    mean.
    """
    rows = len(column)
    windows = max(night_count - window + 1, 0)
    bins = min(MAX_BINS, max(MIN_BINS, rows * window // max(night_count, 1) // ROWS_PER_BIN))
    profile: dict[str, Any]
    if is_categorical(kind):
        counted = pc.value_counts(_as_categories(column).drop_null())
        # The most frequent first, ties by name, so that the same rows always give the same list.
        ranked = sorted((-int(pair["counts"].as_py()), str(pair["values"].as_py())) for pair in counted)[: MAX_BINS - 1]
        profile = {"kind": "categorical", "categories": [name for _, name in ranked], "counts": [0] * (len(ranked) + 1)}
    else:
        numbers = as_numbers(column)
        edges = numeric_edges(numbers, bins)
        if personal:
            edges = Grid.of(edges).lines
        profile = {"kind": "numeric", "edges": [_pack(edge) for edge in edges], "counts": [0] * (len(edges) + 1)}
        if is_averaged(kind) and not personal:
            summed = exact_sum(numbers)
            profile |= {"mean": summed.mean(), "mean_rows": summed.count}
    per_night, nulls_per_night = count_bins(column, profile, nights, night_count)
    total, null_total = per_night.sum(axis=0), int(nulls_per_night.sum())
    profile["counts"] = [int(n) for n in total]
    profile["shares"] = [round(float(s), 9) for s in total / max(int(total.sum()), 1)]
    profile |= {"rows": rows, "nulls": null_total, "null_share": round(null_total / rows, 9) if rows else 0.0}
    profile |= {"method": method, "window_nights": window, "windows": 0, "limit": None, "null_limit": None}
    if windows:
        per_window = window_sums(per_night, window)
        nulls = window_sums(nulls_per_night.reshape(-1, 1), window)[:, 0]
        in_window = per_window.sum(axis=1)
        # Each window against the rest of the training window: a night to come is not part of the reference either.
        rest = total - per_window
        judged = (in_window > 0) & (rest.sum(axis=1) > 0)
        values = statistic(method, rest[judged], per_window[judged], ordered=not is_categorical(kind))
        profile["windows"] = int(judged.sum())
        profile["limit"] = upper_limit(values, quantile)
        everything = in_window + nulls
        profile["null_limit"] = upper_limit(np.round(nulls[everything > 0] / everything[everything > 0], 6), quantile)
    return profile


def _nights_of(data_dates: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], list[date]]:
    encoded = data_dates.combine_chunks().cast(pa.int32())
    numbers = np.asarray(encoded, dtype=np.int64)
    distinct, nights = np.unique(numbers, return_inverse=True)
    return nights.astype(np.int64), [date.fromordinal(int(n) + date(1970, 1, 1).toordinal()) for n in distinct]


def build_reference(
    scored: Sequence[Path],
    feature_columns: Mapping[str, str],
    entry: ModelEntry,
    predictions: pa.Table | None = None,
    *,
    calendar_columns: Collection[str] = (),
    personal_columns: Collection[str] = (),
) -> dict[str, Any]:
    """The profile that drift is measured against, JSON-able and equal for equal rows.

    Args:
        scored: Parquet files of the rows that the nights of the training window score: those trained on, and those
            without a label. `data_date`, `split` ("train" or "validation") and the feature columns; `label` where there
            is one. Features are profiled on the train split. One column is in memory at a time.
        feature_columns: feature name to column type of the catalog.
        predictions: the model's output columns, one row for each row of `scored` in their order. They are profiled
            on the validation split where that has enough nights, because a model's predictions on rows it was fitted to
            are sharper than any later ones. None: predictions are not profiled.
        calendar_columns: features that follow from the date alone; left out.
        personal_columns: features whose values the profile must not hold.
    Returns:
        `{"format", "method", "limit_quantile", "window_nights", "nights", "rows", "first", "last", "volume", "label",
        "columns", "predictions"}`. A column has its bins (`edges` or `categories` and `other`), their `counts` and
        `shares`, `null_share`, `limit` (of the statistic) and `null_limit`; a limit is None where fewer than
        MIN_WINDOWS windows had values. A column of numbers also has its `mean` (None: no finite value) over `mean_rows`
        finite values.
    Raises:
        BadReference: no row is of the train split, a column is missing, or predictions have another length.
    """
    drift = entry.retrain.drift
    window = max(drift.window.days, 1)
    for path in scored:
        missing = sorted(set(feature_columns) - set(pq.read_schema(path).names))
        if missing:
            raise BadReference(
                f"{path.name} has no column {missing[0]}, which {entry.name} reads. Build the training set again."
            )
    frame = _read(scored, ["data_date", "split"])
    train = pc.equal(frame["split"], "train")
    dates = frame["data_date"].filter(train)
    if not len(dates):
        raise BadReference(
            f"{scored[0].name} has no row of the train split, so later nights have nothing to be compared with. "
            "Build it again."
        )
    nights, days = _nights_of(dates)
    settings: dict[str, Any] = {"method": drift.method, "window": window, "quantile": drift.limit_quantile}
    columns = {
        name: _profile(
            _read(scored, [name])[name].filter(train),
            kind,
            nights,
            len(days),
            **settings,
            personal=name in personal_columns,
        )
        for name, kind in feature_columns.items()
        if name not in calendar_columns
    }
    return {
        "format": FORMAT,
        "method": drift.method,
        "limit_quantile": drift.limit_quantile,
        "window_nights": window,
        "nights": len(days),
        "rows": len(dates),
        "first": days[0].isoformat(),
        "last": days[-1].isoformat(),
        "volume": _volume(np.bincount(nights, minlength=len(days))),
        "label": _label_facts(scored, entry),
        "columns": columns,
        "predictions": {} if predictions is None else _prediction_profiles(frame, predictions, entry, settings),
    }


def _volume(volumes: npt.NDArray[Any]) -> dict[str, Any]:
    """Bounds of the rows of one night: the fewest and most that a night of the training window scored, widened by
    VOLUME_TOLERANCE. Of n nights the next one lies outside of all by chance with a probability of 2 / (n + 1).
    """
    if len(volumes) < MIN_WINDOWS:
        return {"lower": None, "upper": None, "nights": len(volumes)}
    return {
        "lower": math.floor(int(volumes.min()) * (1 - VOLUME_TOLERANCE)),
        "upper": math.ceil(int(volumes.max()) * (1 + VOLUME_TOLERANCE)),
        "nights": len(volumes),
    }


def _read(paths: Sequence[Path], columns: Sequence[str]) -> pa.Table:
    return pa.concat_tables([pq.read_table(path, columns=list(columns)) for path in paths])


def _label_facts(scored: Sequence[Path], entry: ModelEntry) -> dict[str, Any]:
    """What somebody without a model would say of every row: median and mean of the train split's labels, and the
    rates of outputs that are probabilities.
    """
    labelled = [path for path in scored if "label" in pq.read_schema(path).names]
    if not labelled:
        return {}
    rows = _read(labelled, ["split", "label"])
    labels = as_numbers(rows["label"].filter(pc.equal(rows["split"], "train")))
    labels = labels[~np.isnan(labels)]
    if not len(labels):
        return {}
    rates = {name: output.rate(labels) for name, output in entry.outputs.items()}
    return {
        "median": float(np.median(labels)),
        "mean": float(labels.mean()),
        "rates": {name: rate for name, rate in rates.items() if rate is not None},
    }


def _prediction_split(frame: pa.Table) -> str | None:
    """Split whose predictions are the reference: validation where it has enough nights, else all (None)."""
    validation = pc.count_distinct(frame["data_date"].filter(pc.equal(frame["split"], "validation"))).as_py()
    return "validation" if validation >= MIN_WINDOWS else None


def _prediction_profiles(
    frame: pa.Table, predictions: pa.Table, entry: ModelEntry, settings: dict[str, Any]
) -> dict[str, Any]:
    if predictions.num_rows != frame.num_rows:
        raise BadReference(
            f"{predictions.num_rows} predictions were given for {frame.num_rows} rows; needs one a row, in their "
            "order. Predict the files of the training set."
        )
    missing = [name for name in entry.output_columns if name not in predictions.column_names]
    if missing:
        raise BadReference(
            f"the predictions have no column {missing[0]}, which {entry.name} declares. Fix the predictor."
        )
    split = _prediction_split(frame)
    keep = pc.equal(frame["split"], split) if split else pa.array(np.ones(frame.num_rows, dtype=bool))
    nights, days = _nights_of(frame["data_date"].filter(keep))
    return {
        name: _profile(predictions[name].filter(keep), kind, nights, len(days), **settings)
        | {"split": split or "all"}
        | _extent(predictions[name].filter(keep), kind)
        for name, kind in entry.drift_types.items()
    }


def _extent(column: pa.ChunkedArray, kind: str) -> dict[str, float]:
    """The smallest and the largest number, for the guardrails of a rollout; nothing for classes or without numbers."""
    if is_categorical(kind):
        return {}
    numbers = as_numbers(column)
    numbers = numbers[np.isfinite(numbers)]
    return {"lowest": float(numbers.min()), "highest": float(numbers.max())} if len(numbers) else {}


def write_reference_sample(
    scored: Sequence[Path],
    folder: Path,
    seed: int,
    features: Iterable[str],
    predictions: pa.Table | None = None,
    *,
    personal_columns: Collection[str] = (),
) -> Path:
    """Write features and split of at most SAMPLE_ROWS of the rows to `folder/reference_sample.parquet`; the same rows
    for the same seed. Whose rows they are is not in it.

    Args:
        scored: files of rows, as in `build_reference`.
        features: columns to keep; numbers among `personal_columns` are brought to a coarse grid.
        predictions: output columns row by row, as in `build_reference`; kept only on the rows whose predictions are the
            reference, null elsewhere.
    Returns:
        The file's path.
    """
    rows = sum(pq.ParquetFile(path).metadata.num_rows for path in scored)
    chosen = (
        np.arange(rows)
        if rows <= SAMPLE_ROWS
        else np.sort(np.random.default_rng(seed).choice(rows, SAMPLE_ROWS, replace=False))
    )
    picked = pa.array(chosen, pa.int64())
    # Column by column: the files may be far larger than their sample.
    columns = {name: _read(scored, [name])[name].take(picked) for name in ("data_date", "split", *features)}
    for name in personal_columns:
        if name in columns and not pa.types.is_boolean(columns[name].type):
            columns[name] = _coarse(columns[name])
    if predictions is not None:
        split = _prediction_split(_read(scored, ["data_date", "split"]))
        for name in predictions.column_names:
            values = predictions[name].take(picked)
            columns[name] = (
                pc.if_else(pc.equal(columns["split"], split), values, pa.scalar(None, values.type)) if split else values
            )
    path = folder / SAMPLE_FILE
    pq.write_table(pa.table(columns).replace_schema_metadata(None), path, compression="zstd")
    return path


def _coarse(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers on the grid that the profile's edges lie on; null where there is none."""
    values = as_numbers(column)
    rounded = Grid.of(numeric_edges(values, MAX_BINS)).nearest(values)
    return pa.chunked_array([pa.array(rounded, mask=np.isnan(rounded)).cast(column.type, safe=False)])


def window_values(method: str, total: Sequence[int], observed: npt.ArrayLike, *, ordered: bool) -> Floats:
    """The statistic of each row of `observed` (windows × bins) against the whole reference's counts."""
    return statistic(
        method, np.broadcast_to(np.asarray(total, dtype=np.int64), np.shape(observed)), observed, ordered=ordered
    )

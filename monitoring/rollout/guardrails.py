"""What may stop a challenger before any label is there: both versions scored the same rows, so they can be compared.

Each guardrail is a pure function with a `Guardrail` as its result. Nothing here looks at ranks or at medians alone: a
test of ranks passes a canary that is visibly broken on a few rows (kayenta issues 426 and 780 are in the tests).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from monitoring.wording import counted, figures, percent, spaced

Status = Literal["ok", "breached", "not_evaluated"]
Column: TypeAlias = "pa.Array | pa.ChunkedArray"
Floats = NDArray[np.float64]

# Part of the range that the gate saw by which an output may leave it, and the share of rows that may leave even that.
RANGE_SLACK = 0.25
SHARE_OUTSIDE = 0.001
# A storm sets any two versions apart for a night: the median of so many nights is judged.
MEDIAN_NIGHTS = 7
# What was measured to be usual is multiplied with: a guardrail stops what is broken, not what is a little worse, which
# labels will tell. Measured on the nights of flights (docs/rollout_statistics.md).
PREDECESSOR_QUANTILE, PREDECESSOR_HEADROOM = 0.9, 1.5
HALVES_QUANTILE, HALVES_HEADROOM = 0.99, 2.0
_LEAST_NIGHTS = 5
LARGEST_WIDTH_RATIO = 1.5
LARGEST_TIME_RATIO = 3.0
# Milliseconds a row of a small night are those of loading the model.
LEAST_TIMED_SECONDS = 5.0
LARGEST_MEMORY_RATIO = 2.0
# A feature whose share of nulls is larger than at training by more than this counts as missing.
NULLS_SLACK = 0.2
SHARE_DISAGREEING = 0.1
_LEAST_ROWS = 2


@dataclass(frozen=True)
class Guardrail:
    """One guardrail on one night.

    Attributes:
        value: what was measured, None where nothing was.
        limit: it is breached beyond this.
        explanation: what an operator reads.
    """

    name: str
    status: Status
    value: float | None
    limit: float | None
    explanation: str


@dataclass(frozen=True)
class ShiftLimit:
    """How far apart two sound versions are in the median of many nights; `basis` says what it was measured on."""

    value: float
    basis: str


def _in_median(values: Sequence[float | None]) -> tuple[float, float, str]:
    """Median of the newest seven, by how much a limit is wider for so few, and the words for it."""
    known = [value for value in values if value is not None][-MEDIAN_NIGHTS:]
    words = f" in the median of {len(known)} nights" if len(known) > 1 else ""
    return float(np.median(known)), 1.0 + 1.0 / len(known), words


def _judged(name: str, value: float, limit: float, explanation: str) -> Guardrail:
    return Guardrail(name, "breached" if value > limit else "ok", value, limit, explanation)


def _silent(name: str, explanation: str, limit: float | None = None) -> Guardrail:
    return Guardrail(name, "not_evaluated", None, limit, explanation)


def is_number(column: Column) -> bool:
    """Whether an output is compared by its size, and not as a class."""
    return bool(pa.types.is_floating(column.type) or pa.types.is_integer(column.type))


def _floats(column: Column) -> Floats:
    """As float64; null is NaN."""
    return np.asarray(pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def finite_outputs(output: str, values: Column, *, rows: int) -> Guardrail:
    """Every row has a finite output; none is tolerated without.

    Args:
        values: what the challenger put out, numbers or classes.
        rows: that it had to score; the champion's count.
    """
    name = f"{output}: finite"
    if rows < 1:
        return _silent(name, f"No row had to be scored, so {output} could not be looked at.", 0.0)
    good = int(np.isfinite(_floats(values)).sum()) if is_number(values) else len(values) - values.null_count
    bad = max(rows, len(values)) - good
    if bad:
        text = f"{bad:,} of {counted(max(rows, len(values)), 'row')} have no finite {output} of the challenger."
    else:
        text = f"Each of {counted(rows, 'row')} has a finite {output} of the challenger."
    return _judged(name, float(bad), 0.0, text)


def within_gate_range(
    output: str,
    values: Column,
    *,
    lowest: float | None,
    highest: float | None,
    slack: float = RANGE_SLACK,
    share: float = SHARE_OUTSIDE,
    unit: str = "",
) -> Guardrail:
    """No more than a share of the outputs lies outside what the gate saw of this version.

    Args:
        lowest, highest: of the challenger's outputs on the gate's test rows; None where the gate kept none.
        slack: part of their distance that is added at both ends.
        share: of the finite outputs, in [0, 1].
    """
    name = f"{output}: range"
    if lowest is None or highest is None:
        return _silent(name, f"The gate kept no range of {output}.", share)
    numbers = _floats(values)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return _silent(name, f"The challenger put out no finite {output}.", share)
    room = slack * (highest - lowest)
    outside = (numbers < lowest - room) | (numbers > highest + room)
    value = float(outside.mean())
    limits = f"{figures(lowest - room)} to {figures(highest + room)}{spaced(unit)}"
    text = (
        f"{outside.sum():,} of {counted(len(numbers), 'row')} have a {output} outside {limits}, the gate's range with"
    )
    text += f" {percent(slack)} slack"
    if outside.any():
        text += f"; the farthest is {figures(float(max(numbers[outside], key=lambda v: max(lowest - v, v - highest))))}"
    return _judged(name, value, share, f"{text}. {percent(share)} are tolerated.")


def shift(first: Column, second: Column) -> float | None:
    """Distance of two distributions, in [0, 1]; None where one has fewer than two values.

    Of numbers the Kolmogorov-Smirnov distance, of classes the total variation; neither needs bins or a unit.
    """
    if is_number(first):
        a, b = _floats(first), _floats(second)
        a, b = np.sort(a[np.isfinite(a)]), np.sort(b[np.isfinite(b)])
        return None if min(len(a), len(b)) < _LEAST_ROWS else _kolmogorov_smirnov(a, b)
    counts: list[Mapping[str, int]] = [
        {str(item["values"]): int(item["counts"]) for item in pc.value_counts(column.drop_null()).to_pylist()}
        for column in (first, second)
    ]
    totals = [sum(count.values()) for count in counts]
    if min(totals) < _LEAST_ROWS:
        return None
    classes = sorted(counts[0].keys() | counts[1].keys())
    return 0.5 * math.fsum(abs(counts[0].get(c, 0) / totals[0] - counts[1].get(c, 0) / totals[1]) for c in classes)


def _kolmogorov_smirnov(a: Floats, b: Floats) -> float:
    """Of two sorted samples."""
    steps = np.concatenate([a, b])
    below = np.searchsorted(a, steps, side="right") / len(a) - np.searchsorted(b, steps, side="right") / len(b)
    return float(np.abs(below).max())


def limit_from_predecessor(values: Sequence[float | None]) -> ShiftLimit | None:
    """1.5 times what nine nights of ten kept between the champion and its predecessor; None for fewer than five nights.

    This is how far versions of this model lie apart, so it is to be preferred wherever it can be had.

    Args:
        values: `shift` or `disagreeing` of predecessor and champion on the same rows, one a night; None: not known.
    """
    known = [value for value in values if value is not None]
    if len(known) < _LEAST_NIGHTS:
        return None
    value = PREDECESSOR_HEADROOM * float(np.quantile(known, PREDECESSOR_QUANTILE))
    nights = f"what {percent(PREDECESSOR_QUANTILE)} of {counted(len(known), 'night')} kept"
    return ShiftLimit(value, f"{figures(PREDECESSOR_HEADROOM)} times {nights} between the champion and its predecessor")


def limit_from_halves(
    champion: Column, nights: Column | None = None, *, seed: int, resamples: int = 200
) -> ShiftLimit | None:
    """Twice the `shift` that 99 % of random halves of the champion's own outputs keep; None for too few outputs.

    Whole nights are drawn where there are at least five, since the nights of one half differ from those of the other in
    more than chance; rows otherwise, which makes the limit strict where rows are many.

    Args:
        nights: data date of each row.
        seed: same seed, same limit.
    """
    blocks = np.arange(len(champion))
    drawn = "rows"
    if nights is not None:
        encoded = nights.dictionary_encode()
        encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        if len(encoded.dictionary) >= _LEAST_NIGHTS:
            blocks, drawn = encoded.indices.to_numpy(), "nights"
    count = int(blocks.max()) + 1 if len(blocks) else 0
    if count < _LEAST_NIGHTS:
        return None
    random = np.random.default_rng(seed)
    distances = []
    for _ in range(resamples):
        half = np.isin(blocks, random.permutation(count)[: count // 2])
        distance = shift(champion.filter(pa.array(half)), champion.filter(pa.array(~half)))
        if distance is not None:
            distances.append(distance)
    if not distances:
        return None
    value = float(np.quantile(distances, HALVES_QUANTILE, method="higher"))
    halves = f"what {percent(HALVES_QUANTILE)} of the halves of the champion's own {drawn} keep"
    return ShiftLimit(HALVES_HEADROOM * value, f"{figures(HALVES_HEADROOM)} times {halves}")


def prediction_shift(output: str, shifts: Sequence[float | None], limit: ShiftLimit | None) -> Guardrail:
    """The challenger's outputs are distributed as the champion's, within what was measured to be usual.

    After n nights, n up to seven, the median of them may be 1 + 1 / n times the limit.

    Args:
        shifts: `shift` of champion and challenger on the same rows, one a night of the rollout, tonight's last; None:
            not known.
        limit: of `limit_from_predecessor` or `limit_from_halves`; None: there was nothing to measure it on.
    """
    name = f"{output}: shift"
    if limit is None:
        return _silent(name, f"No limit for a shift of {output} could be measured: the champion has scored too little.")
    if not shifts or shifts[-1] is None:
        return _silent(name, f"Too few outputs tonight to compare the distributions of {output}.")
    value, wider, words = _in_median(shifts)
    text = f"{output} of the challenger is {figures(value)} away from the champion's distribution{words}; up to"
    return _judged(
        name, value, wider * limit.value, f"{text} {figures(wider * limit.value)} is usual, by {limit.basis}."
    )


def interval_width(
    output: str,
    champion: tuple[Column, Column],
    challenger: tuple[Column, Column],
    *,
    ratio: float = LARGEST_WIDTH_RATIO,
) -> Guardrail:
    """The mean width of the challenger's intervals is not a multiple of the champion's, nor a fraction of it.

    Args:
        champion, challenger: lower and upper ends, of the same rows.
        ratio: largest ratio either way; an interval that is too narrow promises what it does not keep.
    """
    name = f"{output}: interval width"
    widths = [_floats(upper) - _floats(lower) for lower, upper in (champion, challenger)]
    known = np.isfinite(widths[0]) & np.isfinite(widths[1])
    if not known.any():
        return _silent(name, f"No row has intervals of {output} by both versions.", ratio)
    own, other = (float(width[known].mean()) for width in (widths[1], widths[0]))
    crossed = int((widths[1][known] < 0).sum())
    if crossed:
        text = f"{counted(crossed, 'interval')} of {output} end below their beginning."
        return Guardrail(name, "breached", math.inf, ratio, text)
    value = 1.0
    if own != other:
        value = max(own / other, other / own) if min(own, other) > 0.0 else math.inf
    text = f"Intervals of {output} are {figures(own)} wide on average, the champion's {figures(other)}"
    return _judged(name, value, ratio, f"{text}; a ratio of {figures(ratio)} either way is tolerated.")


def milliseconds_a_row(
    champion_seconds: float | None, challenger_seconds: float | None, *, rows: int, ratio: float = LARGEST_TIME_RATIO
) -> Guardrail:
    """Scoring with the challenger takes no multiple of the time.

    Args:
        champion_seconds, challenger_seconds: to score the same `rows`; None where they were not measured.
        ratio: how many times the champion's time is tolerated. A challenger that is done within five seconds is never
            too slow: there the time is that of loading a model.
    """
    name = "milliseconds a row"
    if champion_seconds is None or challenger_seconds is None or rows < 1:
        return _silent(name, "The time to score was not measured for both versions.")
    own, other = (1000.0 * seconds / rows for seconds in (challenger_seconds, champion_seconds))
    limit = 1000.0 * max(ratio * champion_seconds, LEAST_TIMED_SECONDS) / rows
    text = f"The challenger takes {figures(own)} ms a row, the champion {figures(other)}; up to {figures(limit)} is"
    return _judged(name, own, limit, f"{text} tolerated.")


def memory(
    champion_mib: float | None,
    challenger_mib: float | None,
    *,
    ratio: float = LARGEST_MEMORY_RATIO,
    available_mib: float | None = None,
) -> Guardrail:
    """Scoring with the challenger needs no multiple of the champion's peak, nor more than there is.

    Args:
        champion_mib, challenger_mib: peak of the process that scored; None where it was not measured.
        available_mib: of the pool that scores; None: not known.
    """
    name = "memory"
    if champion_mib is None or challenger_mib is None:
        return _silent(name, "The peak of memory was not measured for both versions.")
    limit = min(ratio * champion_mib, math.inf if available_mib is None else available_mib)
    text = f"The challenger needs {figures(challenger_mib)} MiB, the champion {figures(champion_mib)}; up to"
    return _judged(name, challenger_mib, limit, f"{text} {figures(limit)} MiB is tolerated.")


def features_present(
    null_shares: Mapping[str, float | None], usual: Mapping[str, float], *, slack: float = NULLS_SLACK
) -> Guardrail:
    """Every feature that the challenger reads is there, and not emptier than where it was trained.

    Args:
        null_shares: in tonight's rows, of each feature the challenger reads; None: there is no such column.
        usual: share of nulls in its training set; a feature without one is held against 0.
        slack: by how much more may be null tonight.
    """
    name = "features"
    if not null_shares:
        return _silent(name, "It is not known which features the challenger reads.", 0.0)
    absent = [feature for feature, share in null_shares.items() if share is None]
    emptier = {
        feature: share
        for feature, share in null_shares.items()
        if share is not None and share > usual.get(feature, 0.0) + slack
    }
    texts = [f"{feature} is not there" for feature in absent] + [
        f"{feature} is null in {percent(share)} of the rows, at training in {percent(usual.get(feature, 0.0))}"
        for feature, share in emptier.items()
    ]
    whole = f"All {counted(len(null_shares), 'feature')} of the challenger are there."
    return _judged(name, float(len(texts)), 0.0, f"{'; '.join(texts)}." if texts else whole)


def disagreeing(champion: Column, challenger: Column, *, beyond: float | None) -> float | None:
    """Share of rows on which two versions disagree, in [0, 1]; None without rows, or for numbers without `beyond`.

    Args:
        champion, challenger: outputs of the same rows, in the same order.
        beyond: difference of two numbers that is a disagreement, in the output's unit; of no use for classes, where any
            difference is one. A row with one finite output of two is a disagreement.
    Raises:
        ValueError: the two have different numbers of rows.
    """
    if len(champion) != len(challenger):
        raise ValueError(f"{len(challenger)} outputs of the challenger cannot be compared with {len(champion)} rows")
    if not len(champion):
        return None
    if not is_number(champion):
        same = pc.fill_null(pc.equal(champion, challenger), False)
        neither = pc.and_(pc.is_null(champion), pc.is_null(challenger))
        return 1.0 - float(pc.mean(pc.or_(same, neither)).as_py())
    if beyond is None:
        return None
    a, b = _floats(champion), _floats(challenger)
    known = np.isfinite(a) & np.isfinite(b)
    with np.errstate(invalid="ignore"):
        return float(np.where(known, np.abs(a - b) > beyond, np.isfinite(a) != np.isfinite(b)).mean())


def disagreement(
    output: str,
    champion: Column,
    challenger: Column,
    *,
    beyond: float | None,
    share: float = SHARE_DISAGREEING,
    earlier: Sequence[float | None] | None = None,
    usual: ShiftLimit | None = None,
    unit: str = "",
) -> Guardrail:
    """The two versions say about the same of nearly every row.

    Args:
        champion, challenger, beyond: as of `disagreeing`.
        share: of rows that may disagree, in [0, 1].
        earlier: `disagreeing` of the earlier nights of the rollout, oldest first. Where it is given, the median of the
            newest seven nights is judged, and after n of them it may be 1 + 1 / n times the limit. None: tonight alone.
        usual: of `limit_from_predecessor`, from `disagreeing`; where it is more than `share`, it is tolerated.
    """
    name = f"{output}: disagreement"
    tonight = disagreeing(champion, challenger, beyond=beyond)
    if tonight is None:
        reason = "No row was scored" if not len(champion) else "The catalog names no `disagreement`"
        return _silent(name, f"{reason}, so {output} was not compared row by row.", share)
    value, wider, words = (tonight, 1.0, "") if earlier is None else _in_median([*earlier, tonight])
    limit = wider * max(share, usual.value if usual else 0.0)
    how = "in the class" if beyond is None else f"by more than {figures(beyond)}{spaced(unit)}"
    text = f"{output} of champion and challenger differs {how} in {figures(100.0 * value)} % of the rows{words}; up to"
    return _judged(name, value, limit, f"{text} {figures(100.0 * limit)} % are tolerated.")

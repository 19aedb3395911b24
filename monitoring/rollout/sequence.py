"""Always-valid bounds of a challenger's harm, from nights: they may be looked at every night.

The harm of a night is the challenger's mean loss less the champion's, in the loss's unit; nights are the blocks, since
one storm delays every flight. The bounds are a confidence sequence: with probability `1 - alpha` the true mean harm
lies above `lower` at *all* looks together, and with the same probability below `upper` at all looks.

Method: the anytime-valid t-test (Lai, "On confidence sequences", Annals of Statistics 4, 1976; Wang and Ramdas,
"Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance", 2024, arXiv 2310.03722), with
a half-normal mixture over the standardized harm for each side. It is exact for independent Gaussian nights of equal
size with unknown variance. Three things are added that are not exact, each for a departure from that, each measured
(docs/rollout_statistics.md): nights weigh as their rows do; the variance grows with the nights' lag-1 autocorrelation
(Marriott and Pope 1954 for its bias); the t statistic is corrected for skewness where that widens the bound (Hall, "On
the removal of skewness by transformation", 1992).

Late, rewritten and reordered nights: the functions take the whole history that is known, in data-date order, and keep
nothing. Apart from the autocorrelation a bound depends on the set of nights and not on their order, so a night whose
labels come late is one more night in order of arrival: the guarantee holds as long as what makes a night late has
nothing to do with its harm. It does not cover a night that is *rewritten* after a look: the new history is another
sequence with a rate of its own, and in the worst case the rates add up. A harm that changes over the nights is not
followed: the bounds are those of the mean over the nights that were seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray
from scipy import special
from scipy.optimize import elementwise

Floats = NDArray[np.float64]

# Standard deviation of the mixture over a night's mean harm / its standard deviation. Chosen by measurement.
MIXTURE = 0.7
# An autocorrelation above this cannot be told from a trend in the nights that a rollout has.
_LARGEST_AUTOCORRELATION = 0.8
_LARGEST_T = 1e6
_LEAST_NIGHTS = 1.0 + 1e-9


@dataclass(frozen=True)
class Look:
    """What the first `nights` nights say of the mean harm, in the loss's unit; bounds may be infinite.

    Attributes:
        e_value: evidence against "the mean harm is at most the tolerance": it exceeds 1 / alpha where `lower` exceeds
            the tolerance.
        p_value: 1 / the largest e-value so far, at most 1; valid at every look.
    """

    data_date: date
    nights: int
    rows: int
    harm: float
    lower: float
    upper: float
    e_value: float
    p_value: float


@dataclass(frozen=True)
class Prefixes:
    """Statistics of the first 1, 2, ... nights, each of shape (..., nights).

    Attributes:
        mean: mean harm over rows.
        error: its standard error; infinite for one night.
        nights: Kish's effective number of nights: as many of equal size would say as much.
        skewness: of the nights, 0 for fewer than three.
    """

    mean: Floats
    error: Floats
    nights: Floats
    skewness: Floats


def prefixes(harm: ArrayLike, rows: ArrayLike, *, autocorrelated: bool = True) -> Prefixes:
    """The statistics that the bounds need, of each prefix of the last axis.

    Args:
        harm: mean difference of each night, challenger less champion, shape (..., nights).
        rows: what each night weighs, positive, same shape.
        autocorrelated: enlarge the standard error by the nights' autocorrelation.
    """
    weights = np.asarray(rows, dtype=np.float64)
    # Against cancellation; by the first night, so that a later one does not change a look by a rounding.
    shift = np.asarray(harm, dtype=np.float64)[..., :1]
    values = np.asarray(harm, dtype=np.float64) - shift
    total = np.cumsum(weights, axis=-1)
    mean = np.cumsum(weights * values, axis=-1) / total
    squares = weights**2
    # To hundredths, downwards, which is on the safe side and leaves few values to solve for.
    nights = np.floor(total**2 / np.cumsum(squares, axis=-1) * 100.0 + 1e-6) / 100.0
    spread = np.maximum(_powers(squares, values, mean, 2), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = spread / total**2 * nights / (nights - 1.0)
        if autocorrelated:
            variance = variance * _inflation(_following(weights, values, mean), spread, nights)
        error = np.where(nights > _LEAST_NIGHTS, np.sqrt(variance), np.inf)
        third = _powers(weights**3, values, mean, 3) / spread**1.5 * np.sqrt(np.arange(1, spread.shape[-1] + 1))
        skewness = np.where(
            (nights > 2.5) & (spread > 0), third * np.sqrt(nights * (nights - 1.0)) / (nights - 2.0), 0.0
        )
    return Prefixes(mean + shift, error, nights, skewness)


def _powers(weights: Floats, values: Floats, mean: Floats, power: int) -> Floats:
    """Sums over each prefix of weight (value - mean)^power, the mean being the prefix's own."""
    sums = [
        special.comb(power, k) * (-mean) ** (power - k) * np.cumsum(weights * values**k, axis=-1)
        for k in range(power + 1)
    ]
    return np.asarray(np.sum(sums, axis=0))


def _following(weights: Floats, values: Floats, mean: Floats) -> Floats:
    """Sums over each prefix of the products of residuals of neighbouring nights."""
    both, first, second = weights[..., 1:] * weights[..., :-1], values[..., :-1], values[..., 1:]
    product, total, pairs = (np.cumsum(both * term, axis=-1) for term in (first * second, first + second, 1.0))
    sums = np.zeros_like(mean)
    sums[..., 1:] = product - mean[..., 1:] * total + mean[..., 1:] ** 2 * pairs
    return sums


def _inflation(following: Floats, spread: Floats, nights: Floats) -> Floats:
    """Variance of a mean of autocorrelated nights over that of independent ones, (1 + r) / (1 - r), never below 1.

    r is the lag-1 autocorrelation of the residuals, freed of its bias of -(1 + 4 r) / n.
    """
    measured = np.divide(following, spread, out=np.zeros_like(spread), where=spread > 0)
    enough = nights > 5.0
    unbiased = np.divide(nights * measured + 1.0, nights - 4.0, out=np.zeros_like(spread), where=enough)
    r = np.clip(unbiased, 0.0, _LARGEST_AUTOCORRELATION)
    return np.asarray((1.0 + r) / (1.0 - r))


def log_e_value(t: ArrayLike, nights: ArrayLike) -> Floats:
    """Logarithm of the e-value of a t statistic against "the mean is at most the one it was taken against".

    The likelihood ratio of the scale-invariant t statistic, mixed over mean / standard deviation ~ |N(0, MIXTURE^2)|,
    has a closed form with Student's distribution function. Averaged over the two signs of t it is the e-process of Wang
    and Ramdas with a Gaussian mixture.

    Args:
        t: (mean - mean under the null) / standard error.
        nights: number of nights, above 1; need not be whole.
    """
    t, n = np.asarray(t, dtype=np.float64), np.asarray(nights, dtype=np.float64)
    mass = 1.0 + n * MIXTURE**2
    bounded = np.clip(t, -_LARGEST_T, _LARGEST_T)
    kappa = bounded**2 / (bounded**2 + n - 1.0) * (n * MIXTURE**2 / mass)
    tail = special.stdtr(n, np.sign(bounded) * np.sqrt(n * kappa / (1.0 - kappa)))
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(2.0) - 0.5 * np.log(mass) - 0.5 * n * np.log1p(-kappa) + np.log(tail))


def critical_values(nights: ArrayLike, alpha: float) -> Floats:
    """The t statistic from which on so many nights reject at `alpha`; infinite where so few cannot."""
    different, places = np.unique(np.asarray(nights, dtype=np.float64), return_inverse=True)

    def excess(t: Floats, n: Floats) -> Floats:
        return np.asarray(log_e_value(t, n) + math.log(alpha))

    critical = np.full(different.shape, np.inf)
    able = different > _LEAST_NIGHTS
    able[able] = excess(np.full(able.sum(), _LARGEST_T), different[able]) > 0.0
    if able.any():
        critical[able] = elementwise.find_root(excess, (0.0, _LARGEST_T), args=(different[able],)).x
    return np.asarray(critical[places.reshape(np.shape(nights))])


def straightened(t: Floats, skewness: Floats, nights: Floats) -> Floats:
    """A t statistic with the skewness of its nights removed by Hall's monotone cubic, only where that makes it smaller.

    Nights that are mostly a little worse and rarely much better than their mean have an upper tail of t that is too
    heavy: their mean is high just when their spread is small.
    """
    root = np.sqrt(nights)
    g = np.minimum(skewness, 0.0)
    return np.asarray(t + g * t**2 / (3.0 * root) + g**2 * t**3 / (27.0 * nights) + g / (6.0 * root))


def distance(critical: Floats, skewness: Floats, nights: Floats) -> Floats:
    """The inverse of `straightened`: standard errors between the mean and its bound on the side of larger t."""
    root = np.sqrt(nights)
    g = np.minimum(skewness, 0.0)
    skewed = g < -1e-9
    divisor = np.where(skewed, g, 1.0)
    with np.errstate(invalid="ignore"):
        bent = 3.0 * root / divisor * (np.cbrt(1.0 + divisor * (critical - divisor / (6.0 * root)) / root) - 1.0)
    return np.asarray(np.where(skewed & np.isfinite(critical), bent, critical))


def bounds(statistics: Prefixes, *, alpha: float) -> tuple[Floats, Floats]:
    """Lower and upper bound of each prefix, infinite while nights are too few."""
    critical = critical_values(statistics.nights, alpha)
    widths = []
    for skewness in (statistics.skewness, -statistics.skewness):
        away = distance(critical, skewness, statistics.nights)
        known = np.isfinite(away) & np.isfinite(statistics.error)
        widths.append(np.multiply(away, statistics.error, out=np.full_like(away, np.inf), where=known))
    return statistics.mean - widths[0], statistics.mean + widths[1]


def paired(
    dates: Sequence[date], harm: ArrayLike, rows: ArrayLike, *, alpha: float, tolerance: float = 0.0
) -> tuple[Look, ...]:
    """Bounds of the mean harm after each night, from losses of both versions on the same rows.

    Args:
        dates: data dates with mature labels, ascending, each once; nights without rows are left out.
        harm: mean over the night's rows of the challenger's loss less the champion's, (nights,).
        rows: of each night, (nights,), positive.
        alpha: the rate at which a challenger whose harm is at most the tolerance may *ever* be found harmful, and one
            whose harm is at least the tolerance ever harmless.
        tolerance: harm that is put up with, in the loss's unit; what `e_value` and `p_value` are against.
    Returns:
        A look for each night, its bounds infinite while the nights are too few to say anything.
    Raises:
        ValueError: dates are not ascending, lengths differ, a harm is not finite, a night has no rows.
    """
    values, weights = _checked(dates, harm, rows, alpha)
    if not len(dates):
        return ()
    return looks_of(dates, np.cumsum(weights), prefixes(values, weights), alpha=alpha, tolerance=tolerance)


def looks_of(
    dates: Sequence[date], rows: Floats, statistics: Prefixes, *, alpha: float, tolerance: float
) -> tuple[Look, ...]:
    """A look for each prefix; `rows` counts all rows up to it."""
    lower, upper = bounds(statistics, alpha=alpha)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = (statistics.mean - tolerance) / statistics.error
    t = np.where(np.isnan(t), 0.0, np.clip(t, -_LARGEST_T, _LARGEST_T))  # 0 / 0 says nothing
    enough = np.isfinite(statistics.error)
    log_e = np.where(
        enough,
        log_e_value(
            straightened(t, statistics.skewness, statistics.nights), np.maximum(statistics.nights, _LEAST_NIGHTS)
        ),
        0.0,
    )
    # Beyond e^700 a float is infinite; nobody needs to know.
    e_values = np.exp(np.minimum(log_e, 700.0))
    p_values = np.minimum(1.0, 1.0 / np.maximum.accumulate(e_values))
    columns = (rows.astype(np.int64), statistics.mean, lower, upper, e_values, p_values)
    return tuple(
        Look(dates[night], night + 1, *values)
        for night, values in enumerate(zip(*(column.tolist() for column in columns), strict=True))
    )


def _checked(dates: Sequence[date], harm: ArrayLike, rows: ArrayLike, alpha: float) -> tuple[Floats, Floats]:
    values, weights = np.asarray(harm, dtype=np.float64), np.asarray(rows, dtype=np.float64)
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha is {alpha}; needed is a rate between 0 and 1, for example 0.05")
    if values.shape != (len(dates),) or weights.shape != (len(dates),):
        raise ValueError(f"{len(dates)} nights, but harm of shape {values.shape} and rows of shape {weights.shape}")
    if any(second <= first for first, second in itertools.pairwise(dates)):
        raise ValueError("nights must be in ascending order of their data dates, each once; sort them first")
    if not np.isfinite(values).all():
        raise ValueError(f"the harm of {dates[int(np.argmin(np.isfinite(values)))]} is not a finite number")
    if not (weights > 0).all():
        raise ValueError(f"{dates[int(np.argmin(weights > 0))]} has no rows: leave such a night out")
    return values, weights


def nightly_harm(rows: pa.Table, *, by: Sequence[str] = ()) -> pa.Table:
    """Pool rows to nights, as `paired` and `paired_segments` want them.

    Args:
        rows: `data_date`, `harm` (the challenger's loss less the champion's, of one row), and the columns of `by`; rows
            without a harm are left out.
        by: further columns to group by, for example `segment`.
    Returns:
        `data_date`, the columns of `by`, `harm` (mean), `rows`; sorted by all of the former.
    """
    keys = ["data_date", *by]
    known = rows.filter(pc.is_valid(rows["harm"]))
    nights = known.group_by(keys).aggregate([("harm", "mean"), ("harm", "count")])
    named = nights.rename_columns({"harm_mean": "harm", "harm_count": "rows"})
    return named.select([*keys, "harm", "rows"]).sort_by([(key, "ascending") for key in keys])


def paired_segments(
    nights: pa.Table, *, alpha: float, tolerance: float = 0.0, family: int | None = None
) -> dict[str, tuple[Look, ...]]:
    """`paired` within each segment, all of whose bounds hold together.

    The correction is Bonferroni's: each segment has `alpha / family`. It is valid for confidence sequences because they
    need nothing but the sum of the rates at which each *ever* misses, whatever the dependence between segments, between
    looks, and of the nights on which a segment has rows. (Holm's and Benjamini's steps would not give bounds that hold
    together.)

    Args:
        nights: `data_date`, `segment` (text), `harm`, `rows`: a row a night and segment.
        family: number of segments that are corrected for; at least those that come. To keep the promise name the number
            that was known at the start: one that grows loosens what was said before.
    Returns:
        By segment, sorted by its name.
    Raises:
        ValueError: more segments than `family`, or as `paired`.
    """
    names = sorted(pc.unique(nights["segment"]).to_pylist())
    corrected = len(names) if family is None else family
    if len(names) > corrected:
        raise ValueError(f"{len(names)} segments came, but the correction is for {corrected}; raise `family`")
    looks = {}
    for name in names:
        own = nights.filter(pc.equal(nights["segment"], name)).sort_by("data_date")
        looks[name] = paired(
            own["data_date"].to_pylist(),
            own["harm"].to_numpy(),
            own["rows"].to_numpy(),
            alpha=alpha / corrected,
            tolerance=tolerance,
        )
    return looks

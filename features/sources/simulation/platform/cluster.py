"""The clusters that the platform runs on: how much of its processors, memory and storage each uses, day by day.

A day's use is what the cluster's accounts ask for, times a week, times noise that returns to its mean: an
autoregression of the first order (Box and Jenkins, Time Series Analysis, 1970, chapter 3), added up from the last 400
days' innovations, so that no day needs the days before it. What can be known of it days ahead is a log-normal
distribution in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache

import numpy as np
import pyarrow as pa

from config.catalog.simulation import MoreCapacity
from features.sources.simulation.draws import Floats, normals, uniforms
from features.sources.simulation.platform.accounts import CLUSTERS, FIRST_DAY, Platform
from features.sources.simulation.renewal import Ints
from features.sources.simulation.reports import instant, repeated

_REMEMBERED_DAYS, _BLOCK_DAYS = 400, 100
CLEANING_DAYS = 91


@dataclass(frozen=True)
class Resource:
    """How the use of a resource behaves.

    Attributes:
        base: share used when all accounts are there.
        elasticity: exponent of the share of the accounts that are there.
        weekend: factor on Saturdays and Sundays.
        filling: by how much it grows until it is cleaned, every 91 days.
        kept: share of a day's deviation that is left the day after.
        spread: standard deviation of the deviations, as a logarithm.
        noise: that of a day alone.
    """

    name: str
    base: float
    elasticity: float
    weekend: float
    filling: float
    kept: float
    spread: float
    noise: float


RESOURCES = (
    Resource("cpu", 0.62, 1.0, 0.62, 0.0, 0.90, 0.07, 0.050),
    Resource("memory", 0.68, 0.6, 0.90, 0.0, 0.95, 0.05, 0.020),
    Resource("storage", 0.55, 1.0, 1.00, 0.22, 0.98, 0.03, 0.003),
)
_SERIES = len(CLUSTERS) * len(RESOURCES)


def _of_resource(attribute: str) -> Floats:
    """An attribute of each series' resource; series are (cluster, resource), row by row."""
    return np.tile([getattr(each, attribute) for each in RESOURCES], len(CLUSTERS)).astype(np.float64)


def accounts(platform: Platform, day: int) -> Ints:
    """How many accounts each cluster has on a day."""
    return np.bincount(platform.cluster[platform.joined(day)], minlength=len(CLUSTERS))


def since_cleaning_days(day: int) -> Ints:
    """How many days ago each series' cluster was cleaned of old files; clusters take turns."""
    turns = np.repeat(np.arange(len(CLUSTERS)) * 15, len(RESOURCES))
    return np.asarray((day - FIRST_DAY + turns) % CLEANING_DAYS)


@lru_cache(maxsize=256)
def expected(platform: Platform, day: int) -> Floats:
    """Median use of each series on a day, by who knows who has an account by then."""
    share = (accounts(platform, day) + 1.0) / (np.bincount(platform.cluster, minlength=len(CLUSTERS)) + 1.0)
    own = 0.85 + 0.3 * uniforms(platform.seed, "cluster base", 0, _SERIES)
    weekend = _of_resource("weekend") if (day - FIRST_DAY) % 7 >= 5 else 1.0
    filled = 1.0 + _of_resource("filling") * since_cleaning_days(day) / CLEANING_DAYS
    asked = np.repeat(share, len(RESOURCES)) ** _of_resource("elasticity")
    capacity = float(np.prod([episode.factor for episode in platform.planted(MoreCapacity, day)]))
    return np.asarray(_of_resource("base") * own * asked * weekend * filled / capacity)


@lru_cache(maxsize=16)
def _innovations(seed: int, block: int) -> Floats:
    """(days, series): standard normal numbers of the days of a block."""
    return normals(seed, "cluster deviation", block, _BLOCK_DAYS * _SERIES).reshape(_BLOCK_DAYS, _SERIES)


@lru_cache(maxsize=256)
def deviation(platform: Platform, day: int) -> Floats:
    """What is left of the past in each series' use on a day, as a logarithm."""
    kept = _of_resource("kept")
    last = day // _BLOCK_DAYS
    blocks = range(last - _REMEMBERED_DAYS // _BLOCK_DAYS, last + 1)
    drawn = np.concatenate([_innovations(platform.seed, block) for block in blocks])
    newest = day - blocks.start * _BLOCK_DAYS
    remembered = drawn[newest - _REMEMBERED_DAYS + 1 : newest + 1][::-1]
    weights = kept[None] ** np.arange(_REMEMBERED_DAYS)[:, None]
    return np.asarray((weights * remembered).sum(axis=0) * _of_resource("spread") * np.sqrt(1.0 - kept**2))


def usage(platform: Platform, day: int) -> Floats:
    """Use of each series on a day, of at most all there is."""
    noise = _of_resource("noise") * normals(platform.seed, "cluster noise", day, _SERIES)
    return np.minimum(1.0, expected(platform, day) * np.exp(deviation(platform, day) + noise))


def foretold(platform: Platform, day: int, ahead: int, deviations: Floats) -> Floats:
    """(series, quantiles): use so many days after the evening of a day, by who knows the deviation of the evening.

    Args:
        deviations: of the quantiles, in standard deviations: 0 the median, 1.2816 that of 90 %.
    """
    left = _of_resource("kept") ** ahead
    spread = np.sqrt(_of_resource("spread") ** 2 * (1.0 - left**2) + _of_resource("noise") ** 2)
    logarithm = left * deviation(platform, day)
    return np.minimum(
        1.0,
        expected(platform, day + ahead)[:, None] * np.exp(logarithm[:, None] + spread[:, None] * deviations[None]),
    )


def cluster_usage(platform: Platform, day: int) -> pa.Table:
    """One row a cluster and resource: the mean share that was used on a day."""
    return pa.table(
        {
            "cluster": pa.array(np.repeat(CLUSTERS, len(RESOURCES))),
            "resource": pa.array([each.name for each in RESOURCES] * len(CLUSTERS)),
            "day_utc": repeated(instant(day, 0), _SERIES),
            "usage": pa.array(np.round(usage(platform, day), 4)),
            "user_count": pa.array(np.repeat(accounts(platform, day), len(RESOURCES)).astype(np.int32)),
            "days_to_cleaning": pa.array((CLEANING_DAYS - since_cleaning_days(day)).astype(np.int32)),
            "measured_utc": repeated(instant(day, 0) + timedelta(days=1), _SERIES),
        }
    )

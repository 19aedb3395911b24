"""The one status of a model, as a pure function of typed facts, and which warnings count towards it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Status = Literal["failing", "late", "degraded", "not evaluated", "healthy"]
Part = Literal["input quality", "volume", "drift of features", "drift of predictions", "performance"]
STATUSES: tuple[Status, ...] = get_args(Status)  # the worst first
PARTS: tuple[Part, ...] = get_args(Part)

DEFINITIONS: dict[Status, str] = {
    "failing": (
        "The newest run of the night's ingest, scoring or monitoring failed and none has succeeded since, or a critical"
        " alarm is open."
    ),
    "late": (
        "Nothing failed, but the night was not scored by the model's deadline: it is still missing, or it came late."
        " In a replay, where no clock runs: its features are published, it is not scored, and no run is in progress."
    ),
    "degraded": (
        "Scored, but a warning that counts is open. A single column beyond its limit (null rate, drift, error) counts"
        " from its second night on, or when more columns are beyond their limits at once than chance explains; every"
        " other warning counts at once."
    ),
    "not evaluated": (
        "Nothing is known to be wrong, but a part was not judged: the night is not scored; its input quality, volume"
        " or drift was not measured; or the newest night with mature labels was not judged. Not knowing tonight's own"
        " errors yet is normal; a model none of whose nights has matured is not evaluated."
    ),
    "healthy": (
        "Scored in time, every part judged (input quality, volume, drift of features and predictions, errors of the"
        " newest night with mature labels), and no warning that counts."
    ),
}

# Limits of these are a quantile of the model's own history, or one night's errors: a single one beyond its limit is
# expected now and then.
STATISTICAL = frozenset({"drift_psi", "drift_ks", "prediction_drift", "null_rate", "error_ratio", "interval_coverage"})
LASTING_NIGHTS = 2
_CHANCE = 0.01


@dataclass(frozen=True)
class Facts:
    """All that the status depends on.

    Attributes:
        scored: whether the night that can be expected by now is scored.
        overdue: it is not scored though its deadline has passed; came_late: it was scored after its deadline.
        run_failed: the newest run of a DAG for this night or a later one failed.
        critical: a critical alarm is open; warning: a warning that counts is.
        unjudged: parts without a judgement.
    """

    scored: bool
    overdue: bool
    came_late: bool
    run_failed: bool
    critical: bool
    warning: bool
    unjudged: frozenset[Part]


def status_of(facts: Facts) -> Status:
    """The first status that applies, the worst first; healthy only when the night is scored and nothing is open."""
    if facts.run_failed or facts.critical:
        return "failing"
    if facts.overdue or facts.came_late:
        return "late"
    if facts.warning:
        return "degraded"
    return "healthy" if facts.scored and not facts.unjudged else "not evaluated"


def more_than_chance(columns: int, quantile: float) -> int:
    """How many of so many columns have to lie beyond their quantile at once for chance to explain it in at most one
    night in a hundred.
    """
    share = 1 - quantile
    reached, beyond = 1.0, 0
    while reached > _CHANCE + 1e-9 and beyond <= columns:
        reached -= math.comb(columns, beyond) * share**beyond * quantile ** (columns - beyond)
        beyond += 1
    return max(beyond, 1)


def counts(check: str, nights: Iterable[int], columns: int, quantile: float) -> bool:
    """Whether warnings of one check make a model degraded.

    Args:
        nights: of each warning, how many nights it has lasted.
        columns: so many columns were judged by that check.
        quantile: of a column's own history that its limit is.
    """
    lasted = list(nights)
    if not lasted:
        return False
    if check not in STATISTICAL:
        return True
    return max(lasted) >= LASTING_NIGHTS or len(lasted) >= more_than_chance(max(columns, len(lasted)), quantile)

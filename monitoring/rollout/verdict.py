"""What the evidence after labels says of a challenger: harmful, harmless or undecided, in an operator's sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from monitoring.rollout.sequence import Look
from monitoring.wording import counted, figures, spaced

Finding = Literal["harmful", "harmless", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """`harmful`: the lower bound of harm exceeds the tolerance; `harmless`: the upper bound is below it.

    Attributes:
        look: the newest; None while no night has mature labels.
    """

    finding: Finding
    sentence: str
    look: Look | None
    segment: str | None = None


def judge(
    looks: Sequence[Look], *, tolerance: float, metric: str, unit: str = "", segment: str | None = None
) -> Verdict:
    """The verdict of the newest look.

    Args:
        looks: of `sequence.paired` or `unpaired.unpaired`, oldest first; may be empty.
        tolerance: harm that is put up with, in the loss's unit.
        metric: the mean loss as an operator calls it, for example MAE.
        unit: the loss's, empty where it has none.
        segment: the looks are of this segment alone.
    """
    if not looks:
        return Verdict("undecided", "No night of the rollout has mature labels yet.", None, segment)
    look = looks[-1]
    finding: Finding = "undecided"
    if look.lower > tolerance:
        finding = "harmful"
    elif look.upper < tolerance:
        finding = "harmless"
    begin = "After" if segment is None else f"In {segment}, after"
    sentence = (
        f"{begin} {counted(look.nights, 'night')} the challenger's {metric} is {_range(look, unit)} than the champion's"
        f"{_against(finding, look, tolerance)}."
    )
    return Verdict(finding, sentence, look, segment)


def judge_segments(
    looks: Mapping[str, Sequence[Look]], *, tolerance: float, metric: str, unit: str = ""
) -> tuple[Verdict, ...]:
    """The verdicts of `sequence.paired_segments`, harmful ones first, then by the size of what is known of the harm."""
    verdicts = [
        judge(of_segment, tolerance=tolerance, metric=metric, unit=unit, segment=segment)
        for segment, of_segment in looks.items()
    ]
    return tuple(sorted(verdicts, key=lambda verdict: (verdict.finding != "harmful", -_least_harm(verdict))))


def _least_harm(verdict: Verdict) -> float:
    return -math.inf if verdict.look is None else verdict.look.lower


def _range(look: Look, unit: str) -> str:
    """`0.4 to 1.1 minutes higher`, `between 0.3 minutes lower and 1.1 minutes higher`."""
    if not (math.isfinite(look.lower) and math.isfinite(look.upper)):
        return _amount(look.harm, unit)
    if look.lower <= 0.0 <= look.upper and (look.lower or look.upper):
        return f"between {_amount(look.lower, unit)} and {_amount(look.upper, unit)}"
    near, far = sorted((look.lower, look.upper), key=abs)
    return _amount(far, unit) if near == far else f"{figures(abs(near))} to {_amount(far, unit)}"


def _amount(harm: float, unit: str) -> str:
    """A difference in words: `1.1 minutes higher`; 0 is neither."""
    if harm == 0.0:
        return f"0{spaced(unit)} higher"
    return f"{figures(abs(harm))}{spaced(unit)} {'higher' if harm > 0 else 'lower'}"


def _against(finding: Finding, look: Look, tolerance: float) -> str:
    if not (math.isfinite(look.lower) and math.isfinite(look.upper)):
        return " so far, too few nights to bound it"
    if finding == "harmful":
        return f", more than the {figures(tolerance)} tolerated"
    if finding == "harmless":
        return f", within the {figures(tolerance)} tolerated" if look.upper > 0.0 else ""
    return f"; whether that is more than the {figures(tolerance)} tolerated, further nights must tell"

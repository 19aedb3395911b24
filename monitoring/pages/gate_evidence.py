"""What the gate measured of a version, as tables: for the approval form, the model card and the page Retraining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from config.catalog.model import ModelEntry
from monitoring.pages.page import Column, Table
from monitoring.wording import NOTHING, counted, figures, percent
from training.registry.decision import Check

SEGMENTS_SHOWN = 10
# What is reported, and lets nothing pass or fail.
_REPORTED = ("coverage", "champion")
_NAMES = {
    "nights": "test nights",
    "schema": "columns of the catalog",
    "finite": "predictions",
    "latency": "milliseconds a row",
    "leakage": "knowledge of the future",
    "coverage": "outcomes inside the interval",
    "champion": "the champion",
    "segments_too_small": "segments too small to judge",
}
_ERRORS = (
    Column("challenger", "challenger", "number"),
    Column("incumbent", "incumbent", "number"),
    Column("improvement", "improvement", "change"),
)
_IMPROVEMENTS = (
    Column("output", "output"),
    Column("metric", "metric"),
    *_ERRORS,
    Column("bound", "lower bound", "change"),
    Column("needed", "needed"),
    Column("result", "result", "status"),
)
_SEGMENTS = (
    Column("segment", "segment"),
    Column("output", "output"),
    Column("rows", "rows", "number"),
    *_ERRORS,
    Column("bound", "error ratio, lower bound", "number"),
    Column("needed", "allowed", "number"),
    Column("result", "result", "status"),
)
_OTHERS = (
    Column("check", "check"),
    Column("met", "what was met"),
    Column("needed", "what is needed"),
    Column("result", "result", "status"),
)


def improvements_table(name: str, checks: Sequence[Check], incumbent: str, rows: int, nights: int) -> Table:
    """Each output's error beside the incumbent's, and whether the improvement is proven."""
    caption = f"Challenger against {incumbent}: {rows:,} rows of {nights} nights that neither model was fitted on."
    judged = [check for check in checks if check.name == "improvement"]
    return Table(name, caption, _IMPROVEMENTS, [_errors(check) for check in judged], stacked=True)


def incumbent_words(entry: ModelEntry, incumbent: str) -> str:
    """A decision's incumbent; a baseline as what it says for this model's outputs."""
    if incumbent != f"baseline {entry.gate.baseline}":
        return incumbent
    words = {output.baseline_words(entry.gate.baseline) for output in entry.outputs.values()}
    return words.pop() if len(words) == 1 else "the baseline"


def segments_table(name: str, checks: Sequence[Check]) -> Table:
    """Segments by how much the challenger is worse there, the worst first, at most ten of them."""
    judged = [check for check in checks if check.name == "segment"]
    judged.sort(key=lambda c: (c.passed is not False, c.improvement if c.improvement is not None else float("inf")))
    shown = judged[:SEGMENTS_SHOWN]
    caption = f"The worst {len(shown)} of {len(judged)} segments. Error ratio: challenger over incumbent."
    rows = [_errors(check) | {"segment": check.segment, "rows": check.rows} for check in shown]
    return Table(name, caption, _SEGMENTS, rows, folded=True, empty="No segments were judged.", stacked=True)


def other_checks_table(name: str, checks: Sequence[Check]) -> Table:
    """Everything else that was looked at, with the value met and the value needed."""
    rows = [
        {
            "check": _NAMES.get(check.name, check.name) + (f", {check.output}" if check.output else ""),
            "met": _met(check),
            "needed": _needed(check),
            "result": _result(check),
        }
        for check in checks
        if check.name not in ("improvement", "segment")
    ]
    return Table(name, "What else the gate checked.", _OTHERS, rows, empty="Nothing else was checked.", stacked=True)


def _met(check: Check) -> str:
    """The value met in words; a check without a value tells by its note."""
    value, note = check.challenger, f" ({check.note})" if check.note else ""
    if check.name == "leakage" and check.passed:
        return f"no leakage found: {check.note}" if check.note else "no leakage found"
    if check.name == "finite" and check.passed:
        return f"every prediction of {counted(check.rows or 0, 'row')} is a number"
    if check.name == "coverage" and value is not None:
        return f"{percent(value)} of outcomes{note}"
    return check.note or NOTHING if value is None or check.name == "leakage" else f"{figures(value, 4)}{note}"


def _needed(check: Check) -> str:
    if check.name == "leakage":
        return "no differing cell"
    if check.needed is None:
        return NOTHING
    needed = percent(check.needed) if check.name == "coverage" else figures(check.needed, 4)
    return {"nights": f"at least {needed}", "latency": f"at most {needed}"}.get(check.name, needed)


def _errors(check: Check) -> dict[str, Any]:
    row = {name: getattr(check, name) for name in ("output", "metric", "challenger", "improvement", "bound", "needed")}
    told = {"needed": needed_improvement(check.needed)} if check.name == "improvement" else {}
    return row | {"incumbent": check.incumbent, "result": _result(check)} | told


def needed_improvement(needed: float | None) -> str:
    """What the lower bound of an improvement has to reach, in words: nobody reads −20 % as a permission."""
    if needed is None:
        return NOTHING
    if not needed:
        return "not worse"
    return f"{percent(needed)} better" if needed > 0 else f"at most {percent(-needed)} worse"


def _result(check: Check) -> str:
    if check.passed is None:
        return "reported" if check.name in _REPORTED else "not evaluated"
    return "passed" if check.passed else "failed"

"""When to ask for a retraining: a pure function of what was measured and of the catalog, so that a year can be replayed
in seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from config.calendar import ONE_DAY
from config.catalog.policy import Retrain
from serving.metrics import metric_named

Trigger = Literal["performance", "drift", "calendar", "none"]
# Part of the last mature nights that must have been judged: two nights out of fourteen say little about the fourteen.
LEAST_JUDGED = 0.5


@dataclass(frozen=True)
class DriftedColumn:
    """A column beyond its limit.

    Attributes:
        statistic: as people write it: PSI, KS.
    """

    column: str
    statistic: str
    value: float
    limit: float


@dataclass(frozen=True)
class DriftNight:
    """Share of a night's columns beyond their limit, in [0, 1]; None: not evaluated, and `reason` says why.

    Attributes:
        worst: the column that exceeds its limit most; None where none does.
    """

    night: date
    share: float | None
    columns: int = 0
    reason: str | None = None
    worst: DriftedColumn | None = None


@dataclass(frozen=True)
class OutputNight:
    """Error of one output, and the baseline's, on one mature night; None: not evaluated.

    Attributes:
        metric: the gate's: mae, rmse, brier, log_loss.
        version: the version that scored the night.
        rows: rows with a label.
    """

    night: date
    output: str
    metric: str
    version: int
    error: float | None
    baseline: float | None
    rows: int


@dataclass(frozen=True)
class History:
    """What is known of a model up to some night."""

    drift: Sequence[DriftNight] = ()
    performance: Sequence[OutputNight] = ()


@dataclass(frozen=True)
class RetrainDecision:
    """Whether to ask for a retraining.

    Attributes:
        trigger: what asks, the gravest where several do; none: nothing does, or the cooldown holds it back.
        reason: one sentence with the numbers.
        evidence: every trigger's numbers, JSON-able.
    """

    requested: bool
    trigger: Trigger
    reason: str
    evidence: dict[str, Any]


@dataclass(frozen=True)
class _Finding:
    """What one trigger says: `due` is None where it could not be evaluated."""

    due: bool | None
    text: str
    numbers: dict[str, Any]


def decide(
    history: History,
    retrain: Retrain,
    *,
    as_of: date,
    last_training_as_of: date | None,
    gate_ratios: Mapping[str, float],
    champion_version: int | None,
    newest_night: date,
    challenger_version: int | None = None,
) -> RetrainDecision:
    """The decision of night `as_of`.

    A retraining is asked for when errors over the baseline's in the last mature nights exceed the ratio at the gate by
    more than `performance.worse_by`, when the share of drifted columns reaches `drift.share`, or when `every` has
    passed since the last training. What was not evaluated never asks. Within `cooldown` of the last training's as-of
    date nothing asks. While a rollout goes on, errors and drift do not ask: the version that takes over may mend both.

    Args:
        history: nights after `as_of` are not looked at.
        last_training_as_of: as-of date of the last training before `as_of`, whatever its gate decided; None: none is
            known.
        gate_ratios: by output: error over baseline of the champion at its gate.
        champion_version: the version that scored `as_of`; only nights that it scored are held against its gate.
        newest_night: the newest scored night; no other may ask.
        challenger_version: the version that takes over step by step now; None: none does.
    """
    findings: dict[Trigger, _Finding] = {
        "performance": _performance(history, retrain, as_of, gate_ratios, champion_version),
        "drift": _drift(history, retrain, as_of),
        "calendar": _calendar(retrain, as_of, last_training_as_of),
    }
    would: list[Trigger] = [name for name, finding in findings.items() if finding.due]
    due = [name for name in would if challenger_version is None or name == "calendar"]
    quiet_until = last_training_as_of + retrain.cooldown if last_training_as_of else None
    cooling = quiet_until is not None and as_of < quiet_until
    evidence: dict[str, Any] = {"as_of": as_of.isoformat(), "champion_version": champion_version}
    evidence |= {
        name: {"due": finding.due, "says": finding.text, **finding.numbers} for name, finding in findings.items()
    }
    evidence["cooldown"] = {
        "last_training_as_of": last_training_as_of.isoformat() if last_training_as_of else None,
        "days": retrain.cooldown // ONE_DAY,
        "until": quiet_until.isoformat() if quiet_until else None,
        "holds_back": bool(cooling and due),
    }
    if challenger_version is not None:
        evidence["rollout"] = {"challenger_version": challenger_version, "holds_back": due != would}
    said = "; ".join(findings[name].text for name in (due or would or findings))
    if as_of != newest_night:
        return RetrainDecision(
            False,
            "none",
            f"{as_of} is not the newest scored night ({newest_night} is), so it asks for nothing; {said}",
            evidence,
        )
    if not due and would:
        held = f"the rollout of version {challenger_version} goes on, during which only a person or the calendar asks"
        return RetrainDecision(False, "none", f"{held}, or else: {said}", evidence)
    if not due:
        return RetrainDecision(False, "none", said, evidence)
    if cooling:
        held = (
            f"the cooldown of {retrain.cooldown // ONE_DAY} days since the training as of {last_training_as_of} lasts"
            f" until {quiet_until}"
        )
        return RetrainDecision(False, "none", f"{held}, or else: {said}", evidence)
    return RetrainDecision(True, due[0], said, evidence)


def _drift(history: History, retrain: Retrain, as_of: date) -> _Finding:
    nights = [night for night in history.drift if night.night == as_of]
    allowed = retrain.drift.share
    if not nights or nights[-1].share is None:
        why = (nights[-1].reason if nights else None) or "no drift was measured in this night"
        return _Finding(None, f"drift not evaluated: {why}", {"share": None, "threshold": allowed})
    night = nights[-1]
    share = night.share
    assert share is not None
    due = share >= allowed
    verb = "reaches" if due else "lies below"
    worst = night.worst
    # The run that a request starts is noted "requested by " and this.
    named = f"drift of {worst.column} ({worst.statistic} {worst.value:.2f})" if due and worst else "drift"
    text = f"{named}: {share:.0%} of {night.columns} columns beyond their limit {verb} {allowed:.0%}"
    numbers = {
        "share": share,
        "threshold": allowed,
        "columns": night.columns,
        "reason": night.reason,
        "worst": worst and dataclasses.asdict(worst),
    }
    return _Finding(due, text, numbers)


def _performance(
    history: History, retrain: Retrain, as_of: date, gate_ratios: Mapping[str, float], version: int | None
) -> _Finding:
    policy = retrain.performance
    known = [n for n in history.performance if n.night <= as_of and n.version == version]
    nights = sorted({n.night for n in known})[-policy.nights :]
    numbers: dict[str, Any] = {
        "nights": len(nights),
        "needed": policy.nights,
        "worse_by": policy.worse_by,
        "outputs": {},
    }
    if len(nights) < policy.nights:
        return _Finding(
            None,
            f"performance not evaluated: {len(nights)} of {policy.nights} mature nights of version {version}",
            numbers,
        )
    worse: list[str] = []
    fine: list[str] = []
    unjudged: list[str] = []
    for output in sorted({n.output for n in known}):
        at_gate = gate_ratios.get(output)
        judged = [
            n
            for n in known
            if n.output == output and n.night in nights and n.error is not None and n.baseline is not None and n.rows
        ]
        if at_gate is None:
            unjudged.append(f"the gate left no ratio for {output}")
            continue
        if len(judged) < LEAST_JUDGED * policy.nights:
            unjudged.append(f"{output} was judged in {len(judged)} of {len(nights)} nights")
            continue
        own = [(n.error, n.rows) for n in judged if n.error is not None]
        base = [(n.baseline, n.rows) for n in judged if n.baseline is not None]
        ratio = metric_named(judged[0].metric).pooled_ratio(own, base)
        if ratio is None:
            unjudged.append(f"the baseline of {output} made no error")
            continue
        bound = at_gate * (1 + policy.worse_by)
        rows = sum(n.rows for n in judged)
        numbers["outputs"][output] = {
            "metric": judged[0].metric,
            "ratio": round(ratio, 6),
            "at_gate": round(at_gate, 6),
            "bound": round(bound, 6),
            "rows": rows,
            "nights_judged": len(judged),
            "first": judged[0].night.isoformat(),
            "last": judged[-1].night.isoformat(),
        }
        text = (
            f"{output} {judged[0].metric} over the baseline's {ratio:.3f} in {len(judged)} nights, {at_gate:.3f} at the"
            f" gate, {bound:.3f} allowed"
        )
        (worse if ratio > bound else fine).append(text)
    if worse:
        return _Finding(True, "performance: " + ", ".join(worse), numbers)
    if not fine:
        return _Finding(None, "performance not evaluated: " + (", ".join(unjudged) or "no output was judged"), numbers)
    return _Finding(False, "performance: " + ", ".join(fine + unjudged), numbers)


def _calendar(retrain: Retrain, as_of: date, last_training_as_of: date | None) -> _Finding:
    if retrain.every is None:
        return _Finding(False, "calendar: no interval is set", {"every_days": None})
    days = retrain.every // ONE_DAY
    if last_training_as_of is None:
        return _Finding(
            True,
            f"calendar: no training is on record, one is due every {days} days",
            {"every_days": days, "due_on": None},
        )
    due_on = last_training_as_of + retrain.every
    if as_of >= due_on:
        text = (
            f"calendar: {(as_of - last_training_as_of).days} days since the training as of {last_training_as_of}, one"
            f" is due every {days}"
        )
    else:
        text = f"calendar: next training due {due_on}"
    return _Finding(as_of >= due_on, text, {"every_days": days, "due_on": due_on.isoformat()})

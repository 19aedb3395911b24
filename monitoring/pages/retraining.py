"""Retraining: what was asked for and why, what it led to, what it gained; and the forms of the people who answer for
it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any

from config.calendar import Interval
from lake.assignment import CHAMPION
from lake.lake import Lake
from lake.ledger import Promotion
from lake.promotions import stored_promotions
from lake.publication_queries import newest_nights
from monitoring.alerting.actions import Action, read_actions
from monitoring.alerting.alarms import Alarm, action_fingerprint, open_alarms
from monitoring.alerting.lifecycle import Gain, Led, gains, requests_with_outcome, waiting_for_approval
from monitoring.alerting.runs import FAILED, Waiting, read_waiting
from monitoring.matured import Pooled
from monitoring.pages.approval_form import asked_by
from monitoring.pages.gate_evidence import (
    improvements_table,
    incumbent_words,
    other_checks_table,
    segments_table,
)
from monitoring.pages.page import Column, Context, Page, Table, read_period, shortened
from monitoring.pages.story import known_from
from monitoring.retraining_requests import RequestRecord
from monitoring.wording import counted, per_hundred, percent
from training.registry.records import DecisionRecord

TEMPLATE = "retraining.html.jinja"
NIGHTS_SHOWN = 90
ACTIONS_SHOWN, ALL_ACTIONS_SHOWN = 20, 1_000
_LONGEST_NUMBER_NAMES = 6


def page(context: Context, *, query: Mapping[str, str]) -> Page:
    """Requests of a period and what they led to, what waits for a person, open alarms, and the forms."""
    chosen = query.get("model", "").strip()
    models = (context.model(chosen).name,) if chosen else context.models
    lake = context.lake
    newest = _newest_night(lake, models)
    period = _period(query, newest, context)
    led = requests_with_outcome(lake, models, period) if period else []
    lines = _by_model(stored_promotions(lake, models))
    shown = [p for own in lines.values() for p in own if period is None or p.effective_from >= period.start]
    asked_for = [outcome.promotion for outcome in led if outcome.promotion is not None]
    gained = gains(lake, list({(p.model, p.sequence): p for p in [*shown, *asked_for]}.values()), lines)
    asked = {waiting.model: waiting for waiting in read_waiting(lake)}
    shown_waiting = [
        _waiting(context, decision, asked[decision.model])
        for decision in waiting_for_approval(lake, models)
        if decision.model in asked
    ]
    subjects = [*models, *(_datasets(context, models))]
    alarms = open_alarms(lake, subjects, now=context.now)
    limit = ALL_ACTIONS_SHOWN if query.get("actions") == "all" else ACTIONS_SHOWN
    seen = {*context.models, *context.datasets}
    # What was refused may name anything; of what there is, only what one may see is shown.
    hidden = {*(m.name for m in lake.catalog.models), *(d.name for d in lake.catalog.datasets)} - seen
    actions = [
        action for action in read_actions(lake, subject=chosen or None, limit=limit + 1) if action.subject not in hidden
    ]
    values = {
        "models": [(name, lake.model(name).title) for name in context.models],
        "chosen": chosen,
        "period": period,
        "newest": newest,
        "waiting": shown_waiting,
        "alarm_choice": [(a.fingerprint, _alarm_name(a), a.fingerprint == query.get("alarm")) for a in alarms],
        "silenced": any(a.silenced_until for a in alarms),
        "silence_until": _silence_default(alarms),
        "former": {
            name: sorted({p.version for p in own} - {_reigning(own)})
            for name, own in lines.items()
            if len({p.version for p in own}) > 1
        },
        "more_actions": context.url("retraining", **_kept(query), actions="all") if len(actions) > limit else "",
        "back": context.url("retraining", **_kept(query)),
    }
    tables = (
        _requests_table(context, led, gained),
        _alarms_table(context, alarms, chosen),
        _promotions_table(context, shown, gained),
        _actions_table(actions[:limit]),
        *(table for one in shown_waiting for table in one["tables"]),
    )
    return Page("Retraining", TEMPLATE, values, tables=tables)


def _kept(query: Mapping[str, str]) -> dict[str, str | None]:
    """What an address keeps when it leads back to this page."""
    return {"model": query.get("model") or None, "from_": query.get("from") or None, "to": query.get("to") or None}


# ---- what is shown -----------------------------------------------------------------------------------------------


def _newest_night(lake: Lake, models: Iterable[str]) -> date | None:
    """The newest night whose features are all published, of the data set that is furthest."""
    entries = [lake.model(name) for name in models]
    tables = {entry.name: [table.name for table in lake.feature_tables(entry).values()] for entry in entries}
    known = newest_nights(lake, sorted({name for names in tables.values() for name in names}))
    nights = [min(known[name] for name in names) for names in tables.values() if all(name in known for name in names)]
    return max(nights, default=None)


def _period(query: Mapping[str, str], newest: date | None, context: Context) -> Interval | None:
    """The period of the address, 90 nights by default; None before the first night."""
    if newest is None and not query.get("from") and not query.get("to"):
        return None
    return read_period(query.get("from"), query.get("to"), newest=newest or context.now.date(), nights=NIGHTS_SHOWN)


def _datasets(context: Context, models: Iterable[str]) -> list[str]:
    catalog = context.lake.catalog
    read = {dataset.name for name in models for dataset in catalog.datasets_of(catalog.model(name))}
    return sorted(read & set(context.datasets))


def _by_model(promotions: Iterable[Promotion]) -> dict[str, list[Promotion]]:
    by_model: dict[str, list[Promotion]] = {}
    for promotion in promotions:
        by_model.setdefault(promotion.model, []).append(promotion)
    return by_model


def _reigning(lines: Sequence[Promotion]) -> int | None:
    newest = max(lines, key=lambda p: (p.effective_from, p.sequence), default=None)
    return newest.version if newest else None


_REQUESTS = (
    Column("as_of", "as of", "date"),
    Column("model", "model", link="model_url"),
    Column("by", "requested by"),
    Column("why", "why"),
    Column("numbers", "evidence"),
    Column("state", "outcome", "status"),
    Column("run", "training run", link="run_url"),
    Column("gate", "gate"),
    Column("word", "approval"),
    Column("version", "version", "number", link="version_url"),
    Column("effective_from", "scores from", "date"),
    Column("gain", "gain on later labels"),
)


def _requests_table(context: Context, led: Sequence[Led], gained: Mapping[tuple[str, int], Sequence[Gain]]) -> Table:
    rows = [_request_row(context, outcome, gained) for outcome in led]
    return Table(
        "requests",
        "Every request of the period and its outcome, newest first.",
        _REQUESTS,
        rows,
        empty="No retraining was requested.",
        stacked=True,
    )


def _request_row(context: Context, led: Led, gained: Mapping[tuple[str, int], Sequence[Gain]]) -> dict[str, Any]:
    request, promotion, run = led.request, led.promotion, led.run
    entry = context.lake.model(request.model)
    judged = promotion or led.decision
    version = judged.version if judged else None
    return {
        "as_of": request.as_of,
        "model": entry.title,
        "model_url": context.url("models", request.model, to=request.as_of),
        "by": "the policy" if request.actor == "policy" else request.by,
        "why": request.reason,
        "numbers": evidence_text(request.evidence),
        "state": led.state,
        "run": _run_text(led),
        "run_url": context.dag_url(run.dag_id, run.run_id) if run else _asked_run_url(context, request),
        "gate": _gate_text(led.decision),
        "word": _answer_text(led),
        "version": version,
        "version_url": context.url("embedded", request.model, "model_cards", f"{version}.html") if version else "",
        "effective_from": promotion.effective_from if promotion else None,
        "gain": gain_text(context.lake, promotion, gained.get((promotion.model, promotion.sequence), ()))
        if promotion
        else "",
    }


def _asked_run_url(context: Context, request: RequestRecord) -> str:
    """Of a run that was asked for and is not on record yet."""
    run_id = request.evidence.get("dag_run_id")
    return context.dag_url(f"{request.model}_train", str(run_id)) if run_id else ""


def _run_text(led: Led) -> str:
    run = led.run
    if run is None:
        return "none on record" if led.decision is None else ""
    failed = (
        f": {(run.error or '').strip().splitlines()[0]}" if run.state == FAILED and (run.error or "").strip() else ""
    )
    return f"{run.state}{failed}"


def _gate_text(decision: DecisionRecord | None) -> str:
    """The verdict with its reasons."""
    if decision is None:
        return ""
    words = {"promote": "passed", "refuse": "refused", "not_evaluated": "not evaluated"}
    said = " ".join(reason.text for reason in decision.reasons)
    return f"{words.get(decision.verdict, decision.verdict)}, against {decision.incumbent}" + (
        f": {said}" if said else ""
    )


def _answer_text(led: Led) -> str:
    answer = led.answer
    if answer is None:
        unasked = "" if led.asks else "not required"
        return "waiting for approval" if led.state == "waiting" else unasked
    if answer.answer == "lapsed":
        return f"nobody answered by {answer.answered_at:%Y-%m-%d %H:%M} UTC"
    return f"{answer.answer} by {answer.by}: {answer.reason}"


def evidence_text(evidence: Mapping[str, Any]) -> str:
    """The numbers of a request as short clauses; whatever is not there is left out."""
    known = evidence.get("policy") if evidence.get("trigger") == "person" else evidence
    if "dag_run_id" in evidence:
        return ""
    if not isinstance(known, Mapping):
        return "the policy had not decided for that night"
    parts = []
    drift = known.get("drift")
    if isinstance(drift, Mapping) and _is_number(drift.get("share")):
        limit = f", limit {percent(drift['threshold'])}" if _is_number(drift.get("threshold")) else ""
        parts.append(f"{percent(drift['share'])} of columns drifted{limit}")
    performance = known.get("performance")
    outputs = performance.get("outputs") if isinstance(performance, Mapping) else None
    for name, numbers in list(outputs.items())[:_LONGEST_NUMBER_NAMES] if isinstance(outputs, Mapping) else ():
        if isinstance(numbers, Mapping) and _is_number(numbers.get("ratio")):
            rest = [
                f"{percent(numbers[key])} {word}"
                for key, word in (("at_gate", "at the gate"), ("bound", "allowed"))
                if _is_number(numbers.get(key))
            ]
            parts.append(
                f"{name} {numbers.get('metric', 'error')} {percent(numbers['ratio'])} of the baseline's"
                + (f" ({', '.join(rest)})" if rest else "")
            )
    calendar = known.get("calendar")
    if isinstance(calendar, Mapping) and calendar.get("due_on"):
        parts.append(f"calendar: due {calendar['due_on']}")
    return "; ".join(parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# ---- gain --------------------------------------------------------------------------------------------------------


def gain_text(lake: Lake, promotion: Promotion, gains: Sequence[Gain]) -> str:
    """What a promotion gained on labels that came later, output by output; or when that will be known."""
    if not any(gain.after for gain in gains):
        first = promotion.effective_from
        return (
            f"not known yet: labels of its first night, {first}, mature on {known_from(lake, promotion.model, first)}"
        )
    return "; ".join(_gain_clause(gain, len(gains) > 1) for gain in gains)


def _gain_clause(gain: Gain, named: bool) -> str:
    label = f"{gain.output}: " if named else ""
    if gain.after is None:
        return f"{label}not judged yet"
    now = f"{gain.metric} over the baseline's {_pooled_text(gain.after)}"
    if gain.before is None:
        return f"{label}{now}; no earlier version to compare with"
    improvement = gain.improvement
    if improvement is None:
        return f"{label}{now}; before {_pooled_text(gain.before)}"
    direction = "less" if improvement > 0 else "more"
    verdict = f"{percent(abs(improvement))} {direction} error" if abs(improvement) >= 0.0005 else "no difference"
    sure = "" if _apart(gain.after, gain.before) else ", within the variation between nights"
    return f"{label}{verdict}{sure}: {now}; before {_pooled_text(gain.before)}"


def _pooled_text(pooled: Pooled) -> str:
    between = (
        f" ({per_hundred(pooled.lower)} to {per_hundred(pooled.upper)})"
        if pooled.lower is not None and pooled.upper is not None
        else ""
    )
    return f"{percent(pooled.ratio)}{between} in {counted(pooled.nights, 'night')}, {counted(pooled.rows, 'row')}"


def _apart(one: Pooled, other: Pooled) -> bool:
    if one.lower is None or one.upper is None or other.lower is None or other.upper is None:
        return False
    return one.upper < other.lower or other.upper < one.lower


# ---- what waits --------------------------------------------------------------------------------------------------


def _waiting(context: Context, decision: DecisionRecord, asked: Waiting) -> dict[str, Any]:
    """A promotion that waits for a person, with the gate's evidence."""
    name = f"evidence_{decision.model}_{decision.version}"
    checks = decision.checks
    return {
        "model": decision.model,
        "title": context.lake.model(decision.model).title,
        "version": decision.version,
        "as_of": decision.as_of,
        "says": _gate_text(decision),
        "asked_at": asked.asked_at,
        "until": asked.until,
        "asked_by": asked_by(context.lake, decision.model, decision.as_of),
        "digest": decision.evidence_digest,
        "card": context.url("embedded", decision.model, "model_cards", f"{decision.version}.html"),
        "tables": (
            improvements_table(
                name,
                checks,
                incumbent_words(context.lake.model(decision.model), decision.incumbent),
                decision.rows,
                decision.nights,
            ),
            segments_table(f"{name}_segments", checks),
            other_checks_table(f"{name}_checks", checks),
        ),
    }


# ---- alarms ------------------------------------------------------------------------------------------------------

_ALARMS = (
    Column("subject", "model or data set", link="subject_url"),
    Column("severity", "severity", "status"),
    Column("check", "check"),
    Column("column", "column"),
    Column("segment", "segment"),
    Column("value", "value", "number"),
    Column("threshold", "limit", "number"),
    Column("since", "since", "date"),
    Column("nights", "nights", "number"),
    Column("state", "state", link="answer_url"),
    Column("reason", "what it says"),
    Column("fingerprint", "fingerprint"),
)


def _alarms_table(context: Context, alarms: Sequence[Alarm], chosen: str) -> Table:
    rows = [
        {
            "subject": alarm.subject,
            "subject_url": context.url("models", alarm.subject)
            if alarm.subject in context.models
            else context.url("data", alarm.subject),
            "severity": alarm.severity,
            "check": alarm.check,
            "column": alarm.column,
            "segment": alarm.segment,
            "value": alarm.value,
            "threshold": alarm.threshold,
            "since": alarm.since,
            "nights": alarm.nights,
            "state": _alarm_state(alarm),
            "answer_url": f"{context.url('retraining', model=chosen or None, alarm=alarm.fingerprint)}#answer"
            if context.viewer.may("operator")
            else "",
            "reason": alarm.reason,
            "fingerprint": alarm.fingerprint,
        }
        for alarm in alarms
    ]
    return Table(
        "alarms",
        "Open alarms: critical first, then those nobody has answered.",
        _ALARMS,
        rows,
        empty="No alarm is open.",
        stacked=True,
    )


def _alarm_state(alarm: Alarm) -> str:
    said = []
    if alarm.acknowledged is not None:
        said.append(f"acknowledged by {alarm.acknowledged.by}: {alarm.acknowledged.reason}")
    if alarm.silenced_until is not None:
        said.append(f"silenced until {alarm.silenced_until}")
    return "; ".join(said) or "open"


def _alarm_name(alarm: Alarm) -> str:
    role = "" if alarm.role in ("", CHAMPION) else alarm.role
    parts = [alarm.subject, role, alarm.check.replace("_", " "), alarm.column, alarm.segment]
    return shortened(" · ".join(part for part in parts if part), 120).strip("'\"")


def _silence_default(alarms: Sequence[Alarm]) -> date | None:
    """A week after the newest night with an alarm."""
    newest = max((alarm.data_date for alarm in alarms), default=None)
    return newest + timedelta(days=7) if newest else None


# ---- ledger and audit --------------------------------------------------------------------------------------------

_PROMOTIONS = (
    Column("effective_from", "scores from", "date"),
    Column("model", "model", link="model_url"),
    Column("version", "version", "number", link="version_url"),
    Column("kind", "kind"),
    Column("by", "by"),
    Column("decided_at", "decided at", "date"),
    Column("reason", "reason"),
    Column("gain", "gain on later labels"),
)


def _promotions_table(
    context: Context, promotions: Sequence[Promotion], gained: Mapping[tuple[str, int], Sequence[Gain]]
) -> Table:
    rows = [
        {
            "effective_from": p.effective_from,
            "model": context.lake.model(p.model).title,
            "model_url": context.url("models", p.model),
            "version": p.version,
            "version_url": context.url("embedded", p.model, "model_cards", f"{p.version}.html"),
            "kind": p.kind,
            "by": p.by,
            "decided_at": p.decided_at,
            "reason": p.reason,
            "gain": gain_text(context.lake, p, gained.get((p.model, p.sequence), ())),
        }
        for p in sorted(promotions, key=lambda p: (p.effective_from, p.sequence), reverse=True)
    ]
    return Table(
        "promotions",
        "Promotions and rollbacks that took effect in this period.",
        _PROMOTIONS,
        rows,
        folded=True,
        empty="No version was promoted or rolled back.",
        stacked=True,
    )


_ACTIONS = (
    Column("at", "at", "date"),
    Column("by", "by"),
    Column("role", "role"),
    Column("action", "action"),
    Column("about", "about"),
    Column("until", "until", "date"),
    Column("reason", "reason"),
    Column("outcome", "outcome"),
)


def _actions_table(actions: Sequence[Action]) -> Table:
    rows = [
        {
            "at": a.at_utc,
            "by": a.by,
            "role": a.role,
            "action": a.action.replace("_", " "),
            "about": action_fingerprint(a),
            "until": a.until,
            "reason": a.reason,
            "outcome": a.outcome,
        }
        for a in actions
    ]
    caption = "What people did through these pages, newest first; refused attempts included."
    return Table("actions", caption, _ACTIONS, rows, empty="Nobody has done anything yet.", stacked=True)


__all__ = ["evidence_text", "gain_text", "page"]

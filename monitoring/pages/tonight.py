"""Tonight: one row a model, worst first, and above them the one sentence that says how the night is."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from config.catalog.policy import WATCH_MINUTES
from monitoring.alerting.deliveries import (
    Delivery,
    evidence_text,
    guardrails_text,
    next_decision,
    running_deliveries,
    share_text,
    step_text,
)
from monitoring.alerting.rules import ModelNight, duration_text
from monitoring.alerting.runs import ENDED, FAILED, read_runs
from monitoring.alerting.standing import Cause, Scored, Standing, alarms_text, headline, standings
from monitoring.alerting.status import DEFINITIONS, STATUSES
from monitoring.pages.page import Column, Context, Page, Table
from monitoring.wording import instant

TEMPLATE = "tonight.html.jinja"
_CAUSES_SHOWN = 6


def page(context: Context, *, query: Mapping[str, str]) -> Page:
    """The landing page."""
    shown = standings(context.lake, context.models, context.now)
    rows = [_row(context, standing) for standing in shown]
    table = Table("tonight", _CAPTION, _COLUMNS, rows, empty="There is no model you may see.", stacked=True)
    rollouts = _rollouts_table(context)
    waiting = sum(s.approvals for s in shown)
    tally = [(status, sum(s.status == status for s in shown)) for status in STATUSES]
    nights = sorted({s.night.scored for s in shown if s.night.scored})
    return Page(
        "Tonight",
        TEMPLATE,
        {
            "headline": headline(shown),
            "tally": [(status, count) for status, count in tally if count],
            "definitions": [(status, DEFINITIONS[status]) for status in STATUSES],
            "nights": nights,
            "waiting": waiting,
            "troubled": [_trouble(context, s) for s in shown if s.status != "healthy"],
            "trainings": [_failed_training(context, s, s.training) for s in shown if s.training is not None],
            "passing": sum(_open(s) for s in shown if s.status == "healthy"),
            "watch": _watch_problem(context),
            "rollouts": rollouts if rollouts.rows else None,
        },
        tables=(table, rollouts),
    )


_CAPTION = (
    "Every model, worst first. Errors are those of the version's last matured nights, as a share of the baseline's"
    " (95 % interval), beside what the gate promised."
)


def _watch_problem(context: Context) -> dict[str, str] | None:
    """What is wrong with the DAG that tells people what is late and what failed; None where it looks as it should, and
    where it has never looked.
    """
    ended = read_runs(context.lake, kinds=["watch"], states=ENDED, newest_first_limit=1)
    if not ended:
        return None
    [newest] = ended
    at = newest.ended_at
    if at is None:
        return None
    if newest.state == FAILED:
        said = (newest.error or "its log says why").partition("\n")[0]
        text = (
            f"The watch failed at {instant(at)}: {said}. What is late, failed or alarming since then has"
            " been told to nobody. It tries again every {WATCH_MINUTES} minutes."
        )
        return {"text": text, "url": context.dag_url(newest.dag_id, newest.run_id, newest.failed_task)}
    since = context.now - at
    if since < 3 * timedelta(minutes=WATCH_MINUTES):
        return None
    text = (
        f"The watch has not looked for {duration_text(since)}. What is late, failed or alarming since then has been"
        " told to nobody. See whether it is paused, or waits for a worker."
    )
    return {"text": text, "url": context.dag_url(newest.dag_id)}


def _trouble(context: Context, standing: Standing) -> dict[str, Any]:
    shown = standing.causes[:_CAUSES_SHOWN]
    return {
        "title": standing.entry.title,
        "url": _model_url(context, standing),
        "status": standing.status,
        "causes": [_shown_cause(context, standing, cause) for cause in shown],
        "more": len(standing.causes) - len(shown),
    }


def _failed_training(context: Context, standing: Standing, training: Cause) -> dict[str, str]:
    told = _shown_cause(context, standing, training)
    return told | {"title": standing.entry.title, "model_url": _model_url(context, standing)}


def _shown_cause(context: Context, standing: Standing, cause: Cause) -> dict[str, str]:
    """A cause with the page that says more of it."""
    night, entry = standing.night.scored, standing.entry
    if cause.run is not None:
        return {
            "text": cause.text,
            "url": context.dag_url(cause.run.dag_id, cause.run.run_id, cause.run.failed_task),
            "leads_to": "run",
        }
    if cause.table and cause.dataset in context.datasets:
        return {
            "text": cause.text,
            "url": context.url("data", cause.dataset, table=cause.table, night=night),
            "leads_to": "rows",
        }
    if cause.drift and night is not None:
        return {
            "text": cause.text,
            "url": context.url("models", entry.name, "nights", night),
            "leads_to": "drift report",
        }
    return {"text": cause.text, "url": "", "leads_to": ""}


def _model_url(context: Context, standing: Standing) -> str:
    return context.url("models", standing.entry.name)


_COLUMNS = (
    Column("model", "model", link="model_url"),
    Column("status", "status", "status"),
    Column("cause", "cause"),
    Column("night", "data date", "date", link="night_url"),
    Column("version", "version", "number"),
    Column("rows", "rows", "number"),
    Column("scored", "scored, UTC"),
    Column("quality", "input quality", "percent"),
    Column("drift", "drifted features"),
    Column("performance", "errors on matured labels"),
    Column("approvals", "approvals", "number", link="approvals_url"),
    Column("requests", "requests", "number", link="requests_url"),
    Column("alarms", "alarms", link="alarms_url"),
)


def _row(context: Context, standing: Standing) -> dict[str, Any]:
    name, night = standing.entry.name, standing.night.scored
    retraining = context.url("retraining", model=name)
    return {
        "model": standing.entry.title,
        "model_url": _model_url(context, standing),
        "status": standing.status,
        "cause": _cause_text(standing),
        "night": night,
        "night_url": context.url("models", name, "nights", night) if night else "",
        "version": standing.scored.version if standing.scored else None,
        "rows": standing.scored.rows if standing.scored else None,
        "scored": _scored_text(standing.scored, standing.night),
        "quality": standing.quality,
        "drift": standing.drift,
        "performance": "; ".join(standing.performance),
        "errors": standing.performance,
        "approvals": standing.approvals,
        "approvals_url": f"{retraining}#waiting" if standing.approvals else "",
        "requests": standing.requests,
        "requests_url": f"{retraining}#requests" if standing.requests else "",
        "alarms": alarms_text(standing.alarms),
        "alarms_url": f"{retraining}#alarms" if standing.alarms else "",
    }


def _cause_text(standing: Standing) -> str:
    """The worst cause, and how many more there are."""
    if not standing.causes:
        return ""
    worst, *others = standing.causes
    return f"{worst.text} (+{len(others)})" if others else worst.text


def _scored_text(scored: Scored | None, night: ModelNight) -> str:
    """When the newest night was scored, and how late against its deadline."""
    if scored is None:
        return "never"
    at, late = scored.first_at.strftime("%m-%d %H:%M"), night.lateness
    if late is None or night.data_date is None or scored.data_date < night.data_date:
        return f"{at}; overdue" if late is not None and late.late else at
    if late.due_at is None:
        return at  # a replay, where no clock runs
    if late.late_by is not None:
        return f"{at}, {duration_text(late.late_by)} late"
    return f"{at}, {duration_text(late.due_at - scored.first_at)} before its deadline"


def _open(standing: Standing) -> int:
    return sum(1 for a in standing.alarms if a.acknowledged is None and a.silenced_until is None)


# ---- rollouts ------------------------------------------------------------------------------------------------------

_ROLLOUT_COLUMNS = (
    Column("model", "model", link="model_url"),
    Column("version", "version", "number"),
    Column("strategy", "strategy"),
    Column("step", "step"),
    Column("share", "serves"),
    Column("nights", "nights", "number"),
    Column("guardrails", "guardrails"),
    Column("evidence", "after labels"),
    Column("decision", "next decision"),
)


def _rollouts_table(context: Context) -> Table:
    rows = [_rollout_row(context, one) for one in running_deliveries(context.lake, context.models).values()]
    caption = "Versions that take over step by step, each beside its champion."
    return Table("rollouts", caption, _ROLLOUT_COLUMNS, rows, empty="No rollout goes on.", stacked=True)


def _rollout_row(context: Context, delivery: Delivery) -> dict[str, Any]:
    return {
        "model": delivery.entry.title,
        "model_url": f"{context.url('models', delivery.entry.name)}#delivery",
        "version": delivery.rollout.version,
        "strategy": delivery.strategy,
        "step": step_text(delivery),
        "share": share_text(delivery),
        "nights": delivery.nights,
        "guardrails": guardrails_text(delivery),
        "evidence": evidence_text(delivery),
        "decision": next_decision(delivery),
    }

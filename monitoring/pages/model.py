"""Model: what changed over a period, and does it matter. One chart on one axis, then what to look at first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

import numpy as np

from config.calendar import ONE_DAY, Interval
from config.catalog.model import ModelEntry
from lake.assignment import CHALLENGER, CHAMPION
from lake.ledger import Promotion
from lake.promotions import stored_promotions
from monitoring.alerting.standing import alarms_text, standings
from monitoring.importance import read_importances
from monitoring.pages.model_axis import Mark, Tenure
from monitoring.pages.model_chart import MOST_FEATURES, short_name, time_lines
from monitoring.pages.model_compare import SORTS, compared, comparison_presets, comparison_table
from monitoring.pages.model_delivery import Section, delivery_section
from monitoring.pages.model_history import (
    History,
    ScoredNight,
    inputs_of,
    known_nights,
    read_averages,
    read_history,
    read_scored,
    read_segments,
)
from monitoring.pages.model_tables import (
    drift_table,
    features_table,
    nights_table,
    ranked_features,
    rest_table,
    segment_tables,
    versions_table,
)
from monitoring.pages.page import Column, Context, NotFound, Page, Table, read_period
from monitoring.pages.run_links import run_url, runs_on_record
from monitoring.performance import LABEL_SHARE
from monitoring.retraining_requests import RequestRecord, read_requests_of
from monitoring.wording import label_unit
from training.registry.decision import read_decisions
from training.registry.records import DecisionRecord, read_decisions_of, read_promises

TEMPLATE = "model.html.jinja"
_NIGHTS, _LEAST_NIGHTS = 90, 7
_CONTEXT_NIGHTS = 60  # that the chart shows at least while two periods are compared
_LONGEST_GAP = 730  # nights from the one period to the other that are still drawn on one axis
_LENGTHS = (30, 90, 365)
_CAUSES = 3


def _why_not_scored(context: Context, entry: ModelEntry) -> str:
    decisions = read_decisions(context.lake, entry.name)
    if decisions and decisions[-1].verdict != "promote":
        said = " ".join(str(reason) for reason in decisions[-1].reasons)
        return (
            f"{entry.name} has not scored a night yet: the gate's verdict on version {decisions[-1].version}, as of "
            f"{decisions[-1].as_of}, is {decisions[-1].verdict}. {said} Change {entry.name}.yaml or its features, and "
            "train it again."
        )
    return (
        f"{entry.name} has not scored a night yet. Run the first one: `make run ONLY={entry.dataset}`, or trigger the "
        f"ingest DAG of {entry.dataset}."
    )


def page(context: Context, *, query: Mapping[str, str], model: str) -> Page:
    """A model over the period `from` to `to`, compared with `compare_from` to `compare_to`; `sort` orders the
    comparison, `rollout` is the number of the rollout that is shown.

    Raises:
        NotFound: there is no such model or rollout, or it has not scored a night.
        BadAddress: a date, the order or the rollout cannot be read.
    """
    entry = context.model(model)
    lake = context.lake
    known = known_nights(lake, entry.name)
    if known is None:
        raise NotFound(_why_not_scored(context, entry))
    first_night, newest = known
    period = read_period(query.get("from"), query.get("to"), newest=newest, nights=_NIGHTS)
    if not query.get("from") and first_night <= period.last:  # no empty months before the first night
        period = Interval(
            max(period.start, min(first_night, period.last - timedelta(days=_LEAST_NIGHTS - 1))), period.end
        )
    asked = query.get("compare_from") or query.get("compare_to")
    presets = comparison_presets(newest, promotions := stored_promotions(lake, [entry.name]))
    if asked:
        earlier = read_period(
            query.get("compare_from"),
            query.get("compare_to"),
            newest=period.start - ONE_DAY,
            nights=len(period),
            names=("compare_from", "compare_to"),
        )
        later = period
    else:
        _, later, earlier = comparison_presets(period.last, ())[0]
    drawn = _drawn(period, earlier, first_night) if asked else period
    history = read_history(lake, entry, drawn, role=_role(promotions))
    decisions = read_decisions_of(lake, [entry.name])
    nights_there = [night for night in history.nights if night in history.scored]
    values: dict[str, Any] = {
        "entry": entry,
        "first_night": first_night,
        "newest": newest,
        "period": period,
        "drawn": drawn,
        "earlier": earlier,
        "later": later,
        "asked": bool(asked),
        "sort": query.get("sort") or "effect",
        "sorts": SORTS,
        "owner_url": entry.owner_url if entry.owner_url.startswith(("http://", "https://", "mailto:")) else "",
        "other_models": [(name, context.url("models", name, **_kept(query))) for name in context.models],
        "lengths": [
            (nights, context.url("models", entry.name, from_=newest - timedelta(days=nights - 1), to=newest))
            for nights in _LENGTHS
        ],
        "presets": [(name, _compare_url(context, entry, a, b, query)) for name, a, b in presets],
        "sort_urls": [
            (name, said, context.url("models", entry.name, **{**_kept(query), "sort": name}))
            for name, said in SORTS.items()
        ],
        "standing": _standing(context, entry),
        "newest_facts": _newest_facts(context, entry, newest),
        "nights_there": len(nights_there),
    }
    section = delivery_section(context, entry, asked=query.get("rollout"))
    values["delivery"] = section.values
    if not nights_there and not history.lines:
        values |= {
            "nothing": (
                f"No night from {drawn.start} to {drawn.last} was scored. There are nights from {first_night} to"
                f" {newest}."
            )
        }
        values["there_url"] = context.url(
            "models", entry.name, from_=max(first_night, newest - timedelta(days=_NIGHTS - 1)), to=newest
        )
        tables = (versions_table(context, entry, promotions, decisions, newest),)
        return Page(
            entry.title,
            TEMPLATE,
            values | {"tables": {t.name: t for t in tables}, "segments": [], "chart": None},
            (*tables, *section.tables),
            section.charts,
        )
    return _filled(context, history, period, earlier, later, promotions, decisions, values, query, newest, section)


def _filled(
    context: Context,
    history: History,
    period: Interval,
    earlier: Interval,
    later: Interval,
    promotions: Sequence[Promotion],
    decisions: Sequence[DecisionRecord],
    values: dict[str, Any],
    query: Mapping[str, str],
    newest: date,
    section: Section,
) -> Page:
    """The page of a period with nights."""
    lake, entry = context.lake, history.entry
    mature_until = _mature_until(history)
    in_force = _version_of(history, period)
    importances = read_importances(
        lake.settings, entry, in_force.version if in_force else None, in_force.artifact_digest if in_force else None
    )
    ranked = ranked_features(lake, history, period, importances)
    by_drift = _worst_first(history)
    requests = read_requests_of(lake, [entry.name], history.interval, requested_only=True)
    versions = {scored.version for scored in history.scored.values()}
    chart = time_lines(
        history,
        _marks(history, promotions, requests),
        _tenures(history),
        read_promises(lake, {entry.name: versions}).get(entry.name, {}),
        by_drift[:MOST_FEATURES],
        periods=[("B", later), ("A", earlier)] if values["asked"] else [],
        mature_until=mature_until,
        unit=label_unit(lake, entry),
        links={
            night.isoformat(): context.url("models", entry.name, "nights", night)
            for night in history.nights
            if night in history.scored
        },
    )
    role = _role(promotions)
    before, after = (read_averages(lake, entry.name, interval, role=role) for interval in (earlier, later))
    differences = compared(before, after)
    losses = read_segments(lake, entry, period, role=role)
    segments = segment_tables(entry, losses, period, label_unit(lake, entry))
    rest = rest_table(history, by_drift[MOST_FEATURES:])
    tables = [
        features_table(ranked, importances),
        *segments,
        comparison_table(lake, entry, differences, earlier, later, values["sort"]),
        versions_table(context, entry, promotions, decisions, newest),
        nights_table(context, history, mature_until),
        _happened(context, entry, history, promotions, requests),
        *([rest] if rest else []),
    ]
    if query.get("table") == "drift":  # one row a feature and night: made only for who downloads it
        tables.append(drift_table(history))
    values |= {
        "tables": {table.name: table for table in tables},
        "segments": segments,
        "chart": chart,
        "nothing": "",
        "mature_until": mature_until,
        "summary": _summary(history, by_drift),
        "why_no_segments": "" if segments else _why_no_segments(history, period),
        "drift_csv": context.url("models", entry.name, **{**_kept(query), "format": "csv", "table": "drift"}),
    }
    return Page(entry.title, TEMPLATE, values, (*tables, *section.tables), (chart, *section.charts))


def _role(promotions: Sequence[Promotion]) -> str:
    """Whose nights the page shows: of a model without any champion, those of the version that runs along."""
    return CHAMPION if promotions else CHALLENGER


def _kept(query: Mapping[str, str]) -> dict[str, str]:
    """The period of an address, to be kept in another's."""
    return {name: query[name] for name in ("from", "to", "compare_from", "compare_to", "sort") if query.get(name)}


def _compare_url(
    context: Context, entry: ModelEntry, later: Interval, earlier: Interval, query: Mapping[str, str]
) -> str:
    return context.url(
        "models",
        entry.name,
        from_=later.start,
        to=later.last,
        compare_from=earlier.start,
        compare_to=earlier.last,
        sort=query.get("sort") or None,
    )


def _drawn(period: Interval, earlier: Interval, first_night: date) -> Interval:
    """Both periods and some nights before them, where they lie near enough to each other."""
    start, end = min(period.start, earlier.start), max(period.end, earlier.end)
    if (end - start).days > max(_LONGEST_GAP, len(period)):
        return period
    return Interval(max(min(start, end - timedelta(days=_CONTEXT_NIGHTS)), min(first_night, start)), end)


def _mature_until(history: History) -> date | None:
    """The newest night whose labels were judged."""
    judged = np.flatnonzero(history.line(LABEL_SHARE).known)
    return history.nights[int(judged[-1])] if len(judged) else None


def _version_of(history: History, period: Interval) -> ScoredNight | None:
    """What scored the newest night of a period."""
    return next(
        (history.scored[night] for night in reversed(history.nights) if night in history.scored and night in period),
        None,
    )


def _worst_first(history: History) -> list[str]:
    """Features by the mean of their drift over its limit, largest first; those never judged last."""
    means = {}
    for name, line in history.drift.items():
        there = line.ratio[np.isfinite(line.ratio)]
        means[name] = float(there.mean()) if len(there) else -1.0
    return sorted(means, key=lambda name: (-means[name], name))


def _marks(history: History, promotions: Sequence[Promotion], requests: Sequence[RequestRecord]) -> list[Mark]:
    marks = []
    for line in promotions:
        if line.effective_from in history.interval:
            word, short = ("rollback to", "↩ v") if line.kind == "rollback" else ("promoted:", "v")
            marks.append(
                Mark(
                    line.effective_from,
                    line.kind,
                    f"{short}{line.version}",
                    f"{word} version {line.version}, by {line.by}",
                )
            )
    for request in requests:
        marks.append(Mark(request.as_of, "request", "", f"retraining requested by {request.by} ({request.trigger})"))
    return sorted(marks, key=lambda mark: (mark.night, mark.kind))


def _tenures(history: History) -> list[Tenure]:
    """Runs of nights that one version scored."""
    tenures: list[Tenure] = []
    for night in history.nights:
        scored = history.scored.get(night)
        if scored is None:
            continue
        if tenures and tenures[-1].version == scored.version:
            tenures[-1] = Tenure(scored.version, tenures[-1].first, night)
        else:
            tenures.append(Tenure(scored.version, night, night))
    return tenures


def _happened(
    context: Context,
    entry: ModelEntry,
    history: History,
    promotions: Sequence[Promotion],
    requests: Sequence[RequestRecord],
) -> Table:
    """The chart's marks as a table."""
    rows = [
        {
            "night": line.effective_from,
            "what": line.kind,
            "version": line.version,
            "by": line.by,
            "reason": line.reason,
            "url": None,
        }
        for line in promotions
        if line.effective_from in history.interval
    ]
    address = context.url("retraining", model=entry.name)
    rows += [
        {"night": r.as_of, "what": "request", "version": None, "by": r.by, "reason": r.reason, "url": address}
        for r in requests
    ]
    rows.sort(key=lambda row: (row["night"], row["what"]), reverse=True)
    columns = (
        Column("night", "night", "date"),
        Column("what", "what", link="url"),
        Column("version", "version", "number"),
        Column("by", "by"),
        Column("reason", "reason"),
    )
    caption = f"Promotions, rollbacks and retraining requests, {history.interval.start} to {history.interval.last}"
    return Table("events", caption, columns, rows, folded=True, empty="Nothing was promoted, rolled back or requested.")


def _summary(history: History, by_drift: Sequence[str]) -> str:
    """The chart's facts in a sentence or two."""
    said = []
    if by_drift:
        beyond = [name for name in by_drift if (history.drift[name].ratio > 1).any()]
        worst = history.drift[by_drift[0]].ratio
        there = worst[np.isfinite(worst)]
        if len(there):
            night = history.nights[int(np.nanargmax(worst))]
            said.append(
                f"{len(beyond)} of {len(by_drift)} features lay beyond their drift limit in some night; most of all "
                f"{short_name(by_drift[0])}, {there.mean():.2g} times its limit on average, {there.max():.2g} times on "
                f"{night}."
            )
    for name, output in history.entry.outputs.items():
        line, base = history.line(output.gate, name), history.line(f"{output.gate}_baseline", name)
        both = np.isfinite(line.value) & np.isfinite(base.value)
        if both.any():
            lost = int((line.value[both] >= base.value[both]).sum())
            judged = int(both.sum())
            said.append(
                f"{name} was no better than its baseline in {lost} of {judged} judged nights."
                if lost
                else f"{name} beat its baseline in all {judged} judged nights."
            )
    return " ".join(said)


def _why_no_segments(history: History, period: Interval) -> str:
    entry = history.entry
    if entry.gate.segments is None:
        return "Not evaluated: the catalog names no segment columns for this model (gate.segments)."
    inside = history.within(period)
    if not any(
        np.isfinite(history.line(output.gate, name).value[inside]).any() for name, output in entry.outputs.items()
    ):
        return "Not evaluated: no scored night of the period has mature labels yet."
    return (
        f"Not evaluated: the period's performance was measured before segments were. Run `{entry.name}_monitor` for its"
        " nights again."
    )


def _standing(context: Context, entry: ModelEntry) -> dict[str, Any]:
    """The model's word of tonight, its causes, and how many alarms are open, in the words of the Tonight page."""
    [standing] = standings(context.lake, [entry.name], context.now)
    said = [f"alarms: {alarms_text(standing.alarms)}"] if standing.alarms else []
    said += [standing.training.text.rstrip(".")] if standing.training else []
    said += [f"{standing.approvals} waiting for approval"] if standing.approvals else []
    said += [f"{standing.requests} retraining requested"] if standing.requests else []
    return {
        "status": standing.status,
        "causes": [cause.text.rstrip(".") for cause in standing.causes[:_CAUSES]],
        "more": max(len(standing.causes) - _CAUSES, 0),
        "said": ", ".join(said),
    }


def _newest_facts(context: Context, entry: ModelEntry, newest: date) -> dict[str, Any]:
    """What scored the newest night, from what: for links to run and data version."""
    night = read_scored(context.lake, entry.name, Interval.of(newest))[newest]
    inputs = inputs_of(context.lake, entry.name, newest)
    on_record = runs_on_record(context.lake, [entry.name], [night.run_id])
    shown = [
        {
            "table": str(i["table"]),
            "night": str(i["data_date"]),
            "version": int(i["version"]),
            "url": _input_url(context, str(i["table"]), str(i["data_date"])),
        }
        for i in inputs[:12]
    ]
    return {
        "night": night,
        "run_url": run_url(context, on_record, night.run_id, f"{entry.name}_score"),
        "inputs": shown,
        "more_inputs": max(len(inputs) - 12, 0),
    }


def _input_url(context: Context, table: str, night: str) -> str:
    """The Data page of an input's partition, empty where it is not of a data set this person may see."""
    dataset = table.partition("/")[0]
    return context.url("data", dataset, night=night) if dataset in context.datasets else ""

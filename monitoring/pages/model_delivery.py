"""The Model page's section on delivery: who took over from whom, by which steps, on what evidence, and the buttons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from config.calendar import ONE_DAY, Interval
from config.catalog.model import ModelEntry
from config.catalog.rollout import Stepwise
from lake.lake import Lake
from lake.metric_queries import Row, read_metrics_of
from lake.publication_queries import PublishedNight, published_nights
from lake.rollouts import ENDS, Rollout, RolloutLine, RolloutSnapshot
from lake.stored_rollouts import stored_rollouts
from monitoring.alerting.deliveries import (
    STRATEGIES,
    Delivery,
    delivery_of,
    evidence_text,
    guardrails_text,
    next_decision,
    share_text,
    step_text,
    steps_of,
)
from monitoring.pages.embedded import has_document
from monitoring.pages.model_axis import Axis, Mark, Stack, numbers, plain, points
from monitoring.pages.model_history import Floats
from monitoring.pages.page import BadAddress, Chart, Column, Context, NotFound, Table, shortened
from monitoring.rollout.checks import CHALLENGER_LOSS, CHAMPION_LOSS, GROUP, GUARDRAIL, HARM
from monitoring.wording import counted, label_unit, percent
from serving.predictions import predictions_table

_DOT = 4  # pixels


@dataclass(frozen=True)
class Section:
    """What the page shows of rollouts; `values` are the template's."""

    values: Mapping[str, Any]
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()


def delivery_section(context: Context, entry: ModelEntry, *, asked: str | None) -> Section:
    """The rollout of a model that the address asks for by its number, else the newest.

    Raises:
        BadAddress: the number is none. NotFound: the model has no such rollout.
    """
    snapshot = stored_rollouts(context.lake, [entry.name]).get(entry.name, RolloutSnapshot(entry.name, 0, ()))
    if not snapshot.all:
        said = f"No version of {entry.name} was delivered by a rollout yet. {_asks_for(entry)}"
        return Section({"none": said, "running": False})
    rollout = _asked_for(snapshot, asked)
    published, judged = _nights(context.lake, entry, rollout), _judged(context.lake, entry, rollout)
    newest = max((row["data_date"] for row in judged), default=None)
    delivery = delivery_of(entry, rollout, published, [row for row in judged if row["data_date"] == newest])
    chart = _chart(context, delivery, published, judged)
    tables = [_guardrails(delivery), _segments(delivery), _groups(delivery), _time_line(snapshot)]
    shown = tuple(table for table in tables if table is not None)
    values = {
        "none": "",
        "facts": _facts(delivery),
        "version": rollout.version,
        "running": rollout.running,
        "alone": delivery.alone,
        "strategy": delivery.strategy,
        "step": rollout.step + 1,
        "last_step": rollout.step + 1 == len(rollout.steps),
        "chart": chart,
        "tables": {table.name: table for table in shown},
        "others": [
            (f"version {r.version}, {r.started.effective_from}", _address(context, entry, r), r == rollout)
            for r in reversed(snapshot.all)
        ],
        "queued": snapshot.queued,
        "asks_for": _asks_for(entry),
        "card_url": _card_url(context, entry, rollout.version),
    }
    return Section(values, shown, (chart,) if chart else ())


def _asked_for(snapshot: RolloutSnapshot, asked: str | None) -> Rollout:
    if not asked:
        return snapshot.all[-1]
    if not asked.isdecimal():
        raise BadAddress(f"rollout is {shortened(asked)}, needs the number of one, such as 1.")
    numbered = {rollout.started.sequence: rollout for rollout in snapshot.all}
    if int(asked) not in numbered:
        raise NotFound(f"{snapshot.model} has no rollout {asked}. It has: {', '.join(map(str, numbered))}.")
    return numbered[int(asked)]


def _address(context: Context, entry: ModelEntry, rollout: Rollout) -> str:
    return f"{context.url('models', entry.name, rollout=rollout.started.sequence)}#delivery"


def _card_url(context: Context, entry: ModelEntry, version: int) -> str:
    """Address of the version's model card, empty where it has none. A card stays as it was when an approver read it:
    how the version fared afterwards stands here.
    """
    path = (entry.name, "model_cards", f"{version}.html")
    return context.url("embedded", *path) if has_document(context, "/".join(path)) else ""


def _asks_for(entry: ModelEntry) -> str:
    """What the catalog says of the next version, in a sentence."""
    block: Stepwise | None = entry.stepwise
    if block is None:
        return (
            f"{entry.name}.yaml asks for none (`rollout`: immediate): a version that passes the gate serves everything "
            "from the next night on."
        )
    name = STRATEGIES[block.strategy]
    sized = {
        "canary": lambda: f" of {', '.join(percent(share) for share in getattr(block, 'steps', ()))} of units",
        "rolling": lambda: f" by {block.by}",
        "ab_test": lambda: f" with {percent(getattr(block, 'share', 0.0))} of units",
    }.get(block.strategy, lambda: "")()
    nights = counted(block.nights, "night")
    how_long = f"up to {nights}" if block.strategy == "ab_test" else f"at least {nights} a step"
    return (
        f"{entry.name}.yaml asks for the strategy {name}{sized}, {how_long}, for the next version that passes the gate."
    )


def _facts(delivery: Delivery) -> list[tuple[str, str]]:
    rollout = delivery.rollout
    began = f"{rollout.started.effective_from}, by {rollout.started.by}"
    units = ", ".join(rollout.settings["unit"])
    facts = [("strategy", f"{delivery.strategy}, unit {units}"), ("began", began)]
    if not rollout.running:
        ended = f"{_WHAT[rollout.last.kind]} from {rollout.last.effective_from} on, by {_by(rollout.last)}"
        facts += [("nights", f"{delivery.nights} scored"), ("ended", ended), ("why", rollout.last.reason)]
        return [*facts, ("evidence", evidence_text(delivery))]
    return [
        *facts,
        ("nights", f"{delivery.nights} scored, {delivery.nights_in_step} of them in the step that holds"),
        ("now", f"{step_text(delivery)}, the challenger serves {share_text(delivery)}"),
        ("guardrails", guardrails_text(delivery)),
        ("evidence", evidence_text(delivery)),
        ("next", next_decision(delivery)),
    ]


# ---- what is read --------------------------------------------------------------------------------------------------


def _period(rollout: Rollout) -> Interval:
    """From its first night to the last whose labels may still tell of it."""
    first = rollout.started.effective_from
    last = date(9998, 12, 31) if rollout.running else rollout.last.effective_from
    return Interval(first, max(first, last) + ONE_DAY)


def _nights(lake: Lake, entry: ModelEntry, rollout: Rollout) -> dict[date, PublishedNight]:
    table = predictions_table(lake.settings, entry, lake.dataset(entry.dataset)).name
    return published_nights(lake, [table], _period(rollout)).get(table, {})


def _judged(lake: Lake, entry: ModelEntry, rollout: Rollout) -> list[Row]:
    """Metrics of the group `rollout` about its nights."""
    rows = read_metrics_of(lake, [entry.name], _period(rollout), segments=True, role=None)
    return [row for row in rows if row["source_table"] == f"{entry.name}/metrics/{GROUP}"]


# ---- the chart -----------------------------------------------------------------------------------------------------


def _chart(
    context: Context, delivery: Delivery, published: Mapping[date, PublishedNight], judged: Sequence[Row]
) -> Chart | None:
    """Served share, both arms' errors and the bounds of the harm on one axis; None before the first night."""
    if delivery.newest is None:
        return None
    entry, rollout = delivery.entry, delivery.rollout
    nights = tuple(Interval.closed(rollout.started.effective_from, delivery.newest))
    stack = Stack(Axis.of(nights), _marks(rollout, nights))
    _share(stack, delivery, published, nights)
    unit = label_unit(context.lake, entry)
    for output in entry.outputs:
        _arms(stack, entry, output, judged, nights, unit)
        _harm(stack, entry, output, judged, nights, unit)
    links = {night.isoformat(): context.url("models", entry.name, "nights", night) for night in published}
    return Chart(
        "delivery",
        f"Version {rollout.version} beside the champion, night by night",
        stack.option(),
        _described(delivery),
        stack.top,
        links,
    )


def _described(delivery: Delivery) -> str:
    return (
        f"{delivery.strategy.capitalize()} of version {delivery.rollout.version}: "
        f"{counted(delivery.nights, 'night')} scored, {step_text(delivery)}. {evidence_text(delivery)}"
    )


def _marks(rollout: Rollout, nights: Sequence[date]) -> list[Mark]:
    marks = []
    for line in rollout.lines:
        if line.kind == "held" or line.effective_from > nights[-1]:
            continue
        back = line.kind in ("rolled_back", "returned", "abandoned")
        short = "" if back or line.kind == "finished" else str(line.step + 1)
        marks.append(Mark(line.effective_from, "rollback" if back else "promotion", short, _WHAT[line.kind]))
    return marks


def _values(rows: Sequence[Row], nights: Sequence[date], check: str, output: str, field: str = "value") -> Floats:
    """Of each night, NaN where there is none."""
    known = {
        row["about_date"]: row[field]
        for row in rows
        if (row["check"], row["column"], row["segment"]) == (check, output, "") and row[field] is not None
    }
    return np.array([known.get(night, np.nan) for night in nights], dtype=np.float64)


def _share(stack: Stack, delivery: Delivery, published: Mapping[date, PublishedNight], nights: Sequence[date]) -> None:
    steps = delivery.rollout.steps
    known = steps_of(delivery.rollout, published)
    # A step that nobody is served in is 0, a night that the challenger did not score a gap.
    shares = [np.nan if (step := known.get(night)) is None else steps[step].share for night in nights]
    series = {
        "type": "line",
        "step": "middle",
        "symbol": "circle",
        "symbolSize": _DOT,
        "name": "served by the challenger",
        "data": numbers(np.array(shares, dtype=np.float64)),
        "itemStyle": {"color": "var:--series-1"},
        "areaStyle": {"opacity": 0.2},
        "tooltip": {"format": "percent"},
    }
    y_axis = {"type": "value", "min": 0, "max": 1, "interval": 0.5, "axisLabel": {"format": "percent"}}
    stack.grid("Share that the challenger serves", 60, y_axis, [series])


def _unit_said(entry: ModelEntry, output: str, unit: str) -> tuple[str, str]:
    """What is compared, and its unit; of a rooted metric the loss under the root."""
    declared = entry.outputs[output]
    if declared.metric.rooted:
        return "mean squared error", ""
    return declared.metric.title, declared.metric_unit(unit)


def _small(*said: str) -> str:
    return f"{{small|{', '.join(plain(text) for text in said if text)}}}"


def _arms(
    stack: Stack, entry: ModelEntry, output: str, judged: Sequence[Row], nights: Sequence[date], unit: str
) -> None:
    metric, said_unit = _unit_said(entry, output, unit)
    arms = ((CHALLENGER_LOSS, "challenger", "var:--series-1"), (CHAMPION_LOSS, "champion", "var:--series-2"))
    series: list[dict[str, Any]] = [
        {
            "type": "line",
            "symbol": "circle",
            "symbolSize": _DOT,
            "name": arm,
            "data": points(_values(judged, nights, check, output), _DOT),
            "itemStyle": {"color": colour},
            "lineStyle": {"width": 2, "type": "solid" if arm == "challenger" else "dashed"},
        }
        for check, arm, colour in arms
    ]
    more = (
        f"{{1|challenger}}   {{2|champion}}   {{small|{plain(said_unit)}{', ' if said_unit else ''}smaller is better}}"
    )
    stack.grid(f"{output}: {metric} of both", 120, {"type": "value", "scale": True}, series, more=more, dates=True)


def _harm(
    stack: Stack, entry: ModelEntry, output: str, judged: Sequence[Row], nights: Sequence[date], unit: str
) -> None:
    """The confidence sequence of the harm, and the tolerance that it is held against."""
    _, said_unit = _unit_said(entry, output, unit)
    value, lower, upper, tolerance = (
        _values(judged, nights, HARM, output, field) for field in ("value", "lower", "upper", "threshold")
    )
    base = {"type": "line", "symbol": "none", "connectNulls": False}
    hidden = {"silent": True, "lineStyle": {"opacity": 0}, "tooltip": {"show": False}, "stack": f"harm {output}"}
    bound = {"itemStyle": {"color": "var:--series-1"}, "lineStyle": {"width": 1}}
    series: list[dict[str, Any]] = [
        {
            **base,
            "symbol": "circle",
            "symbolSize": _DOT,
            "name": "harm",
            "data": points(value, _DOT),
            "itemStyle": {"color": "var:--series-1"},
            "lineStyle": {"width": 2},
            "z": 4,
        },
        {**base, **hidden, "name": "lower", "data": numbers(lower), "stackStrategy": "all"},
        {
            **base,
            **hidden,
            "name": "band",
            "data": numbers(upper - lower),
            "areaStyle": {"color": "var:--band", "opacity": 0.8},
            "stackStrategy": "all",
        },
        {**base, **bound, "name": "lower bound", "data": numbers(lower)},
        {**base, **bound, "name": "upper bound", "data": numbers(upper)},
        {
            **base,
            "name": "tolerance",
            "data": numbers(tolerance),
            "itemStyle": {"color": "var:--series-5"},
            "lineStyle": {"type": "dashed", "width": 2},
        },
    ]
    more = f"{{1|harm with its bounds}}   {{5|tolerance}}   {_small(said_unit, 'below 0 is better')}"
    stack.grid(f"{output}: harm so far", 120, {"type": "value"}, series, more=more, dates=True)


# ---- tables --------------------------------------------------------------------------------------------------------

_WHAT = {
    "queued": "waits",
    "dropped": "no longer waits",
    "started": "started",
    "advanced": "next step",
    "held": "stays",
    "returned": "night goes back to the champion",
    "finished": "became champion",
    "rolled_back": "rolled back",
    "abandoned": "abandoned",
}


def _time_line(snapshot: RolloutSnapshot) -> Table:
    """Every line of the ledger, the newest first."""
    columns = (
        Column("effective_from", "from", "date"),
        Column("what", "what"),
        Column("version", "version", "number"),
        Column("step", "step"),
        Column("by", "by"),
        Column("night", "decided by night", "date"),
        Column("decided_at", "at", "date"),
        Column("reason", "reason"),
    )
    rows = [
        {
            "effective_from": line.effective_from,
            "what": _WHAT[line.kind],
            "version": line.version,
            "step": _step_of(line),
            "by": _by(line),
            "night": line.night,
            "decided_at": line.decided_at,
            "reason": line.reason,
        }
        for line in reversed(snapshot.lines)
    ]
    caption = "The ledger of rollouts, the newest line first"
    return Table("rollout_lines", caption, columns, rows, folded=True, stacked=True)


def _by(line: RolloutLine) -> str:
    return line.by if line.night is None else f"the monitoring of {line.night}"


def _step_of(line: RolloutLine) -> str:
    return "" if line.kind in (*ENDS, "queued", "dropped") else str(line.step + 1)


def _guardrails(delivery: Delivery) -> Table | None:
    if delivery.alone:
        return None
    columns = (
        Column("guardrail", "guardrail"),
        Column("output", "output"),
        Column("status", "status", "status"),
        Column("value", "value", "number"),
        Column("limit", "limit", "number"),
        Column("reason", "reason"),
    )
    rows = [
        {
            "guardrail": row["check"].removeprefix(GUARDRAIL).replace("_", " "),
            "output": row["column"],
            "status": "breached" if row["status"] == "failing" else row["status"].replace("_", " "),
            "value": row["value"],
            "limit": row["threshold"],
            "reason": row["reason"],
        }
        for row in sorted(
            delivery.guardrails, key=lambda row: (row["status"] != "failing", row["column"], row["check"])
        )
    ]
    night = max((row["data_date"] for row in delivery.guardrails), default=None)
    caption = f"Guardrails on the night {night}, before its labels" if night else "Guardrails, before labels"
    empty = "Not evaluated: no night of the rollout was judged yet."
    return Table("rollout_guardrails", caption, columns, rows, folded=True, empty=empty)


def _segments(delivery: Delivery) -> Table | None:
    rows = [row for row in delivery.judged if row["check"] == HARM and row["segment"]]
    if not rows:
        return None
    columns = (
        Column("output", "output"),
        Column("segment", "segment"),
        Column("harm", "harm", "number"),
        Column("lower", "at least", "number"),
        Column("upper", "at most", "number"),
        Column("tolerance", "tolerance", "number"),
        Column("nights", "nights", "number"),
        Column("status", "status", "status"),
    )
    listed = [
        {
            "output": row["column"],
            "segment": row["segment"],
            "harm": row["value"],
            "lower": row["lower"],
            "upper": row["upper"],
            "tolerance": row["threshold"],
            "nights": row["n"],
            "status": "harmful" if row["status"] == "failing" else row["status"].replace("_", " "),
        }
        for row in sorted(rows, key=lambda row: -(row["lower"] if row["lower"] is not None else float("-inf")))
    ]
    caption = "Harm by segment, the surest first; the bounds are corrected for the number of segments"
    return Table("rollout_segments", caption, columns, listed, folded=True)


def _groups(delivery: Delivery) -> Table | None:
    """Of a rolling rollout: each group with the step in which it changes over."""
    rollout = delivery.rollout
    if rollout.settings.get("by") is None or rollout.strategy != "rolling":
        return None
    rows: list[dict[str, Any]] = []
    share, known = 0.0, tuple[str, ...]()
    for number, step in enumerate(rollout.steps):
        added = ["all others"] if step.groups is None else [g for g in step.groups if g not in known]
        known = step.groups or known
        changed = (rollout.running and number <= rollout.step) or rollout.state == "finished"
        since = min((line.effective_from for line in rollout.lines if line.step >= number), default=None)
        rows.append(
            {
                "step": number + 1,
                "group": ", ".join(added),
                "rows": round(step.share - share, 6),
                "served_by": f"version {rollout.version}" if changed else "the champion",
                "since": since if changed else None,
            }
        )
        share = step.share
    columns = (
        Column("step", "step", "number"),
        Column("group", rollout.settings["by"]),
        Column("rows", "of rows at the start", "percent"),
        Column("served_by", "served by"),
        Column("since", "since", "date"),
    )
    return Table("rollout_groups", "Groups in the order in which they change over", columns, rows)

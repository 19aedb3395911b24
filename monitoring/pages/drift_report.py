"""Drift report of a night: three sentences, every column's test with its limit and how often it fired, and Evidently's
drawings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from typing import Any

from config.calendar import Interval
from config.catalog.model import ModelEntry
from lake.assignment import CHAMPION
from lake.lineage import Publication
from lake.metric_queries import Row, read_metrics_of
from lake.metrics import metrics_table
from lake.publication_queries import published_nights
from monitoring import drift
from monitoring.alerting.standing import standings
from monitoring.drift import MEAN, REFERENCE_MEAN
from monitoring.pages.embedded import MODEL_CARDS, NIGHT_REPORTS, SANDBOX, has_document
from monitoring.pages.page import Column, Context, NotFound, Page, Table, read_date, shortened
from monitoring.pages.story import (
    CHECKS,
    DRIFT_SHARE,
    FEATURE_DRIFT,
    NIGHTS,
    NULL_RATE,
    PREDICTION_DRIFT,
    VOLUME,
    drift_story,
    fired_by_check,
    known_from,
    times_limit,
)
from monitoring.references import VersionReference, references_of
from monitoring.wording import label_unit, named, unit_of
from serving.predictions import predictions_table

TEMPLATE = "drift_report.html.jinja"
_NIGHTS_AROUND = 14  # of the model page that is linked
_METHODS = {"psi": "PSI", "ks": "KS distance"}
_OF_THE_NIGHT = {DRIFT_SHARE: "features beyond their limit", VOLUME: "rows scored"}
_NOT_MEASURED = "The drift of this night has not been measured yet. Wait for the model's monitor run, or look at it."
_SHOWN = (
    Column("feature", "feature or prediction"),
    Column("status", "status", "status"),
    Column("test", "test"),
    Column("value", "value", "number"),
    Column("limit", "limit", "number"),
    Column("times_limit", "times its limit", "number"),
    Column("mean", "mean", "number"),
    Column("reference_mean", "mean in the reference", "number"),
    Column("unit", "unit"),
    Column("fired", f"nights beyond, of the last {NIGHTS} of its version"),
    Column("rows", "rows with a value", "number"),
    Column("reference_rows", "rows of the reference", "number"),
    Column("null_rate", "nulls", "percent"),
    Column("null_limit", "limit of nulls", "percent"),
    Column("null_status", "status of nulls", "status"),
    Column("kind", "kind"),
    Column("name", "column"),
    Column("reason", "reason"),
)
_ORDER = {"failing": 0, "warning": 1, "not_evaluated": 2, "ok": 3}


def page(context: Context, *, query: Mapping[str, str], model: str, night: str) -> Page:
    """The page of one model's data date.

    Raises:
        NotFound: there is no such model, or the night was not scored; the message says which nights were.
        BadAddress: `night` is not a date.
    """
    entry = context.model(model)
    day = read_date(night, "the night")
    scored_table = predictions_table(context.lake.settings, entry, context.lake.dataset(entry.dataset))
    drift_table = metrics_table(context.lake.settings, entry.name, drift.GROUP)
    nights = published_nights(context.lake, [scored_table.name])
    scored_nights = sorted(nights.get(scored_table.name, {}))
    if day is None or day not in scored_nights:
        raise NotFound(_no_such_night(entry, night, day, scored_nights))
    scored = context.lake.publications.current(scored_table, Interval.of(day))[day]
    measured = context.lake.publications.current(drift_table, Interval.of(day)).get(day)
    reference = references_of(context.lake, entry.name, {day: scored})[day][CHAMPION]
    rows = read_metrics_of(context.lake, [entry.name], Interval.of(day), by="data_date", checks=CHECKS)
    night_of = _Night(
        context,
        entry,
        day,
        reference,
        {(row["check"], row["column"]): row for row in rows},
        fired_by_check(context.lake, entry.name, day, reference.version),
    )
    position = scored_nights.index(day)
    [standing] = standings(context.lake, [entry.name], context.now, night=day)
    values = {
        "title": entry.title,
        "model": entry.name,
        "night": day,
        "story": drift_story(context.lake, entry.name, day),
        "standing": standing,
        "waits": _waits(context, entry, day) if position + 1 == len(scored_nights) else "",
        "previous": _link(context, entry, scored_nights[position - 1]) if position else None,
        "next": _link(context, entry, scored_nights[position + 1]) if position + 1 < len(scored_nights) else None,
        "facts": _facts(context, entry, day, scored, measured, reference),
        "reports": _reports(context, entry, day, reference),
        "sandbox": SANDBOX,
        "nights": NIGHTS,
    }
    return Page(
        f"Drift of {entry.name}, {day}",
        TEMPLATE,
        values,
        (night_of.columns(), night_of.notable(), night_of.alarms(), _inputs(scored)),
    )


def _no_such_night(entry: ModelEntry, asked: str, day: date | None, there: Sequence[date]) -> str:
    if not there:
        first = f"Run its first one: `make run`, or trigger `{entry.dataset}_ingest`."
        return f"there is no night {shortened(asked)} of {entry.name}: no night of it was scored yet. {first}"
    near = min(there, key=lambda found: abs(found - day)) if day else there[-1]
    return (
        f"there is no night {day or shortened(asked)} of {entry.name}: it was not scored. "
        f"Scored are {len(there)} nights, {there[0]} to {there[-1]}; the nearest is {near}."
    )


def _waits(context: Context, entry: ModelEntry, newest: date) -> str:
    """What Tonight says of a later night, which is expected and not scored; empty where this one is the newest."""
    [tonight] = standings(context.lake, [entry.name], context.now)
    expected = tonight.night.data_date
    if expected is None or expected <= newest or not tonight.causes:
        return ""
    return f"Tonight, where {expected} is expected, the model is {tonight.status}: {tonight.causes[0].text}"


def _link(context: Context, entry: ModelEntry, night: date) -> dict[str, Any]:
    return {"night": night, "url": context.url("models", entry.name, "nights", night)}


@dataclass(frozen=True)
class _Night:
    """The tables of one night."""

    context: Context
    entry: ModelEntry
    day: date
    reference: VersionReference
    rows: Mapping[tuple[str, str], Row]
    fired: Mapping[tuple[str, str], tuple[int, int]]

    def columns(self) -> Table:
        """One row a feature or output, the farthest beyond its limit first."""
        said = f"All features and predictions against {self.reference.described()}"
        return Table("drift", said, _SHOWN, self._columns, folded=True, empty=_NOT_MEASURED)

    def notable(self) -> Table:
        """Those that lie beyond a limit, of drift or of nulls, or could not be judged."""
        notable = [
            row
            for row in self._columns
            if {row["status"], row["null_status"]} & {"warning", "failing", "not_evaluated"}
        ]
        said = (
            f"Beyond a limit, or not evaluated: {len(notable)} of {len(self._columns)} features and predictions, the"
            " farthest beyond its limit first."
        )
        empty = "Every feature and prediction is within its limit." if self._columns else _NOT_MEASURED
        return Table("beyond", said, _SHOWN, notable, empty=empty)

    @cached_property
    def _columns(self) -> list[dict[str, Any]]:
        tested = [row for (check, _), row in self.rows.items() if check in FEATURE_DRIFT or check == PREDICTION_DRIFT]
        tested.sort(key=lambda row: (_ORDER[row["status"]], -(times_limit(row) or 0.0), row["column"]))
        return [self._column(row) for row in tested if row["column"]]

    def _column(self, row: Row) -> dict[str, Any]:
        name = row["column"]
        part = "predictions" if row["check"] == PREDICTION_DRIFT else "columns"
        profile: Mapping[str, Any] = self.reference.profile.get(part, {}).get(name, {})
        method = profile.get("method") or (
            self.entry.retrain.drift.method if part == "predictions" else row["check"].removeprefix("drift_")
        )
        nulls, mean, before = (self.rows.get((check, name), {}) for check in (NULL_RATE, MEAN, REFERENCE_MEAN))
        reasons = [found["reason"] for found in (row, mean, before) if found.get("reason")]
        times = times_limit(row)
        return {
            "feature": named(name),
            "kind": "prediction" if part == "predictions" else "feature",
            "status": row["status"],
            "test": _METHODS.get(method, method),
            "value": row["value"],
            "limit": row["threshold"],
            "times_limit": None if times is None or math.isinf(times) else times,
            "mean": mean.get("value"),
            "reference_mean": before.get("value"),
            "unit": self._unit(name) if mean else "",
            "null_rate": nulls.get("value"),
            "null_limit": nulls.get("threshold"),
            "null_status": nulls.get("status"),
            "rows": row["n"],
            "reference_rows": sum(profile["counts"]) if profile else before.get("n"),
            "fired": self._fired(row["check"], name),
            "reason": "; ".join(dict.fromkeys(reasons)),
            "name": name,
        }

    def _unit(self, name: str) -> str:
        output = self.entry.outputs.get(name)
        label = label_unit(self.context.lake, self.entry)
        own = {} if output is None else output.units(name, label, probability="probability")
        return own.get(name) or unit_of(self.context.lake, self.entry, name)

    def alarms(self) -> Table:
        """The checks of the night as a whole."""
        alarms: list[dict[str, Any]] = []
        for check, label in _OF_THE_NIGHT.items():
            row = self.rows.get((check, ""))
            if row is None:
                alarms.append(
                    {
                        "check": label,
                        "status": "not_evaluated",
                        "reason": "not measured yet",
                        "fired": self._fired(check, ""),
                    }
                )
                continue
            is_share = check == DRIFT_SHARE
            bounds = (
                f"{row['lower']:,.0f} to {row['upper']:,.0f}"
                if row["lower"] is not None and row["upper"] is not None
                else ""
            )
            limit = f"{100 * row['threshold']:g} %" if is_share and row["threshold"] is not None else bounds
            value = f"{100 * row['value']:.3g} %" if is_share and row["value"] is not None else row["value"]
            fired = self._fired(check, "")
            told = {
                "status": row["status"],
                "value": value,
                "limit": limit,
                "n": row["n"],
                "fired": fired,
                "reason": row["reason"],
            }
            alarms.append({"check": label, "times_limit": times_limit(row) if is_share else None} | told)
        shown = (
            Column("check", "alarm of the whole night"),
            Column("status", "status", "status"),
            Column("value", "value", "number"),
            Column("limit", "limit", "number"),
            Column("times_limit", "times its limit", "number"),
            Column("n", "judged", "number"),
            Column("fired", f"nights beyond, of the last {NIGHTS} of its version"),
            Column("reason", "reason"),
        )
        return Table(
            "night",
            "The whole night. The share of features beyond their limit can trigger a retraining.",
            shown,
            alarms,
        )

    def _fired(self, check: str, column: str) -> str:
        times, of = self.fired.get((check, column), (0, 0))
        return f"{times} of {of}" if of else "never judged"


def _facts(
    context: Context,
    entry: ModelEntry,
    day: date,
    scored: Publication,
    measured: Publication | None,
    reference: VersionReference,
) -> list[tuple[str, str, str]]:
    """Word, what it is, and an address or nothing."""
    period = {"from_": day - timedelta(days=_NIGHTS_AROUND), "to": day + timedelta(days=_NIGHTS_AROUND)}
    facts = [("model", f"{entry.title}, the nights around it", context.url("models", entry.name, **period))]
    card = context.url("embedded", entry.name, MODEL_CARDS, f"{reference.version}.html")
    has_card = has_document(context, f"{entry.name}/{MODEL_CARDS}/{reference.version}.html")
    facts.append(("scored by", reference.described(), card if has_card else ""))
    if reference.missing:
        facts.append(("reference", reference.missing, ""))
    elif reference.window > 1:
        facts.append(
            ("judged over", f"{reference.window} nights, {day - timedelta(days=reference.window - 1)} to {day}", "")
        )
    facts.append(
        (
            "scored",
            f"{scored.rows:,} rows in run {scored.run_id}",
            context.dag_url(f"{entry.name}_score", scored.run_id),
        )
    )
    facts.append(
        ("predictions", f"Delta version {scored.version} of {entry.name}/predictions, digest {scored.digest[:12]}", "")
    )
    if measured is None:
        facts.append(("measured", "not yet", context.dag_url(f"{entry.name}_monitor")))
    else:
        facts.append(
            ("measured", f"in run {measured.run_id}", context.dag_url(f"{entry.name}_monitor", measured.run_id))
        )
    return facts


def _inputs(scored: Publication) -> Table:
    """The data version: what the night's rows were made from."""
    rows = [
        {"table": item.table, "data_date": item.data_date, "version": item.version, "digest": item.digest}
        for item in sorted(scored.inputs, key=lambda item: (item.table, item.data_date))
    ]
    shown = (
        Column("table", "table"),
        Column("data_date", "data date", "date"),
        Column("version", "Delta version", "number"),
        Column("digest", "digest"),
    )
    return Table(
        "inputs", f"Data version: the {len(rows)} partitions this night was scored from.", shown, rows, folded=True
    )


def _reports(context: Context, entry: ModelEntry, day: date, reference: VersionReference) -> list[dict[str, Any]]:
    """Documents to embed: this night's drift, the performance of this night once it is judged, and the version's
    card.
    """
    judge = known_from(context.lake, entry.name, day)
    drawn, judged = (f"{entry.name}/{night}/{name}" for night, name in zip((day, judge), NIGHT_REPORTS, strict=True))
    card = f"{entry.name}/{MODEL_CARDS}/{reference.version}.html"
    wanted = [
        (drawn, "Drift, drawn by Evidently", True, "The monitor's task `report` writes it after `drift`."),
        (judged, f"Performance of this night, judged on {judge}", False, f"It is written once {judge} is monitored."),
        (card, f"Model card of version {reference.version}", False, "The training's task `explain` writes it."),
    ]
    reports = []
    for path, title, is_open, otherwise in wanted:
        there = has_document(context, path)
        url = context.url("embedded", *path.split("/")) if there else ""
        reports.append(
            {
                "title": title,
                "url": url,
                "open": is_open,
                "otherwise": otherwise,
                "sandbox": "" if MODEL_CARDS in path else SANDBOX,
            }
        )
    return reports

"""The Model page's tables: features by drift and importance, segments by their share of the loss, versions, nights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any
from urllib.parse import quote

import numpy as np

from config.calendar import ONE_DAY, Interval
from config.catalog.model import ModelEntry
from lake.lake import Lake
from lake.ledger import Promotion
from lake.rollouts import Rollout
from lake.storage import reports, version_key
from lake.stored_rollouts import stored_rollouts
from monitoring.alerting.deliveries import STRATEGIES
from monitoring.importance import Importances, read_document
from monitoring.pages.model_history import (
    DRIFT_SHARE,
    History,
    SegmentLoss,
    number,
    rounded,
)
from monitoring.pages.page import Column, Context, Table
from monitoring.pages.run_links import run_url, runs_on_record
from monitoring.performance import LABEL_SHARE
from training.registry.records import DecisionRecord

VERDICTS = {
    "promote": "passed the gate",
    "refuse": "refused by the gate",
    "not_evaluated": "the gate could not judge it",
}


# ---- features ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankedFeature:
    """One feature over a period; None where a number is not known."""

    name: str
    unit: str
    drift: float | None
    worst: float | None
    beyond: int
    judged: int
    importance: float | None
    null_rate: float | None
    worst_null_rate: float | None

    @property
    def product(self) -> float | None:
        """Drift times importance."""
        return None if self.drift is None or self.importance is None else self.drift * self.importance


def ranked_features(lake: Lake, history: History, interval: Interval, importances: Importances) -> list[RankedFeature]:
    """Drift times importance, largest first; where a factor is missing, by drift behind them."""
    inside = history.within(interval)
    declared = lake.catalog.feature_columns(history.entry)
    ranked = []
    for name in sorted({*history.drift, *history.nulls}):
        drift, nulls = history.drift.get(name), history.nulls.get(name)
        ratios = drift.ratio[inside] if drift else np.empty(0)
        ratios, rates = ratios[np.isfinite(ratios)], nulls.value[inside] if nulls else np.empty(0)
        rates = rates[np.isfinite(rates)]
        unit = (declared[name].unit or "") if name in declared else ""
        ranked.append(
            RankedFeature(
                name,
                unit,
                float(ratios.mean()) if len(ratios) else None,
                float(ratios.max()) if len(ratios) else None,
                int((ratios > 1).sum()),
                len(ratios),
                None if importances.missing else importances.shares.get(name),
                float(rates.mean()) if len(rates) else None,
                float(rates.max()) if len(rates) else None,
            )
        )
    return sorted(
        ranked,
        key=lambda f: (
            -(f.product if f.product is not None else -1.0),
            -(f.drift if f.drift is not None else -1.0),
            f.name,
        ),
    )


def features_table(ranked: Sequence[RankedFeature], importances: Importances) -> Table:
    """What to look at first: what moved and matters."""
    if importances.missing:
        caption = f"Features by drift. Importance is not evaluated: {importances.missing}."
    else:
        family = f" ({importances.family.replace('_', ' ')})" if importances.family else ""
        caption = (
            "Features by drift × importance. Drift is the mean over the period's nights of the value over its limit: "
            "above 1 it lies beyond. "
            f"Importance is the share of what version {importances.version} rests on, as its trainer{family} measured "
            "it, mean over the outputs."
        )
    columns = (
        Column("rank", "#", "number"),
        Column("feature", "feature"),
        Column("product", "product", "number"),
        Column("drift", "drift", "number"),
        Column("importance", "importance", "percent"),
        Column("worst", "worst night", "number"),
        Column("beyond", "nights beyond", "text"),
        Column("null_rate", "nulls", "percent"),
        Column("worst_null_rate", "most nulls", "percent"),
        Column("unit", "unit"),
    )
    rows = [
        {
            "rank": place,
            "feature": f.name,
            "product": rounded(f.product),
            "drift": rounded(f.drift),
            "importance": rounded(f.importance),
            "worst": rounded(f.worst),
            "beyond": f"{f.beyond} of {f.judged}" if f.judged else None,
            "null_rate": rounded(f.null_rate),
            "worst_null_rate": rounded(f.worst_null_rate),
            "unit": f.unit,
        }
        for place, f in enumerate(ranked, 1)
    ]
    return Table("features", caption, columns, rows, empty="No drift was measured in this period.")


def rest_table(history: History, not_drawn: Sequence[str]) -> Table | None:
    """The features that the heat map leaves out, None where it has them all."""
    if not not_drawn:
        return None
    columns = (
        Column("feature", "feature"),
        Column("drift", "mean / limit", "number"),
        Column("worst", "worst night / limit", "number"),
    )
    rows = []
    for name in not_drawn:
        ratio = history.drift[name].ratio
        there = ratio[np.isfinite(ratio)]
        rows.append(
            {
                "feature": name,
                "drift": rounded(float(there.mean())) if len(there) else None,
                "worst": rounded(float(there.max())) if len(there) else None,
            }
        )
    return Table("rest", f"{len(rows)} features that drifted less, not drawn above", columns, rows, folded=True)


def drift_table(history: History) -> Table:
    """Every value behind the heat map, for a spreadsheet."""
    columns = (
        Column("night", "night", "date"),
        Column("feature", "feature"),
        Column("value", "drift", "number"),
        Column("limit", "limit", "number"),
        Column("null_rate", "null rate", "percent"),
    )
    rows = []
    for name, line in history.drift.items():
        nulls = history.nulls.get(name)
        for position in np.flatnonzero(line.known):
            value, limit = line.value[position], line.threshold[position]
            share = nulls.value[position] if nulls else math.nan
            rows.append(
                {
                    "night": history.nights[position],
                    "feature": name,
                    "value": number(value),
                    "limit": number(limit),
                    "null_rate": number(share),
                }
            )
    return Table("drift", "Drift and null rate of every feature and night.", columns, rows)


# ---- segments ----------------------------------------------------------------------------------------------------


def segment_tables(entry: ModelEntry, losses: Sequence[SegmentLoss], period: Interval, unit: str) -> list[Table]:
    """One table for each output and segment column, the largest share of the loss first."""
    grouped: dict[tuple[str, str], list[SegmentLoss]] = {}
    for loss in losses:
        grouped.setdefault((loss.output, loss.column), []).append(loss)
    tables: list[Table] = []
    for (output, column), parts in grouped.items():
        gate = entry.outputs[output].gate
        total, rows = sum(p.loss for p in parts), sum(p.rows for p in parts)
        columns = (
            Column("segment", column),
            Column("loss_share", "of loss", "percent"),
            Column("row_share", "of rows", "percent"),
            Column("ratio", "ratio", "number"),
            Column("error", gate, "number"),
            Column("baseline", "baseline", "number"),
            Column("rows", "rows", "number"),
        )
        listed = [
            {
                "segment": part.value,
                "loss_share": rounded(part.loss / total) if total > 0 else None,
                "row_share": rounded(part.rows / rows),
                "ratio": rounded((part.loss / total) / (part.rows / rows)) if total > 0 else None,
                "error": rounded(part.error),
                "baseline": rounded(part.baseline),
                "rows": part.rows,
            }
            for part in parts
        ]
        caption = (
            f"{output} by {column}: share of the loss ({gate} × rows) beside the share of rows. Their ratio is above 1"
            " where it errs more than on average."
        )
        about: dict[str, Any] = {"model": entry.name, "output": output, "metric": gate, "segment_column": column}
        about |= {"from": period.start, "to": period.last, "unit": entry.outputs[output].metric_unit(unit)}
        tables.append(Table(f"segments_{output}_{column}", caption, columns, listed, same=about))
    return tables


# ---- versions and nights -----------------------------------------------------------------------------------------


def versions_table(
    context: Context,
    entry: ModelEntry,
    promotions: Sequence[Promotion],
    decisions: Sequence[DecisionRecord],
    newest: date | None,
) -> Table:
    """Every line of the ledger, the newest first, with what it was judged by and where it was trained."""
    judged = {decision.evidence_digest: decision for decision in decisions}
    ordered = sorted(promotions, key=lambda p: (p.effective_from, p.sequence))
    columns = (
        Column("version", "version", "number"),
        Column("effective_from", "from", "date"),
        Column("until", "to", "date"),
        Column("kind", "kind"),
        Column("by", "by"),
        Column("verdict", "gate"),
        Column("rollout", "rollout", link="rollout_url"),
        Column("trained_until", "trained as of", "date"),
        Column("card", "model card", link="card_url"),
        Column("run", "training run", link="run_url"),
        Column("mlflow", "MLflow", link="mlflow_url"),
        Column("reason", "reason"),
    )
    settings = context.lake.settings
    stored = stored_rollouts(context.lake, [entry.name]).get(entry.name)
    delivered = {(r.version, r.started.evidence_digest): r for r in stored.all} if stored else {}
    jobs = {
        digest: read_document(settings, version_key(entry.name, digest, "job.json"))
        for digest in {line.artifact_digest for line in ordered}
    }
    on_record = runs_on_record(
        context.lake, [entry.name], [str(job["run_id"]) for job in jobs.values() if job.get("run_id")]
    )
    rows = []
    for position, line in enumerate(ordered):
        following = ordered[position + 1].effective_from if position + 1 < len(ordered) else None
        decision = judged.get(line.evidence_digest)
        job = jobs[line.artifact_digest]
        rollout = delivered.get((line.version, line.evidence_digest))
        streamed = job.get("mlflow")
        trained_by, mlflow = job.get("run_id"), streamed.get("run_id") if isinstance(streamed, Mapping) else None
        has_card = reports(settings).exists(f"{entry.name}/model_cards/{line.version}.html")
        rows.append(
            {
                "version": line.version,
                "effective_from": line.effective_from,
                "until": _until(line, following, newest),
                "kind": line.kind,
                "by": line.by,
                "verdict": _verdict(decision),
                "rollout": None if rollout is None else _outcome(rollout),
                "rollout_url": None
                if rollout is None
                else f"{context.url('models', entry.name, rollout=rollout.started.sequence)}#delivery",
                "trained_until": line.trained_until,
                "card": "card" if has_card else None,
                "card_url": context.url("embedded", entry.name, "model_cards", f"{line.version}.html"),
                "run": str(trained_by) if trained_by else None,
                "run_url": run_url(context, on_record, str(trained_by), f"{entry.name}_train") if trained_by else None,
                "mlflow": "run" if mlflow and context.mlflow_url else None,
                "mlflow_url": f"{context.mlflow_url}/#/runs/{quote(str(mlflow), safe='')}"
                if mlflow and context.mlflow_url
                else None,
                "reason": line.reason,
            }
        )
    return Table("versions", "Versions, the newest first.", columns, rows[::-1], empty="No version was promoted yet.")


def _outcome(rollout: Rollout) -> str:
    """How a version took over, or did not."""
    ended = rollout.state.replace("_", " ")
    return f"{STRATEGIES[rollout.strategy]} from {rollout.started.effective_from} on, {ended}: {rollout.last.reason}"


def _until(line: Promotion, following: date | None, newest: date | None) -> str:
    """The last night that a line of the ledger is in force for; `following`: the first of the next line."""
    if following is not None:
        return str(following - ONE_DAY) if following > line.effective_from else "never scored"
    return "in force" if newest is None or line.effective_from <= newest + ONE_DAY else "to come"


def _verdict(decision: DecisionRecord | None) -> str:
    if decision is None:
        return "no decision is stored"
    said = " ".join(reason.text for reason in decision.reasons)
    return f"{VERDICTS[decision.verdict]}: {said}" if said else VERDICTS[decision.verdict]


def nights_table(context: Context, history: History, mature_until: date | None) -> Table:
    """Every scored or judged night of the period, the newest first."""
    entry = history.entry
    share, labels = history.line(DRIFT_SHARE), history.line(LABEL_SHARE)
    outputs = [
        (name, history.line(o.gate, name), history.line(f"{o.gate}_baseline", name))
        for name, o in entry.outputs.items()
    ]
    names = list(history.drift)
    ratios = (
        np.array([history.drift[name].ratio for name in names]) if names else np.full((1, len(history.nights)), np.nan)
    )
    with np.errstate(invalid="ignore"):
        filled = np.where(np.isfinite(ratios), ratios, -1.0)
    worst = filled.argmax(axis=0)
    columns = [
        Column("night", "night", "date", link="night_url"),
        Column("version", "version", "number"),
        Column("rows", "rows", "number"),
        Column("drift_share", "features beyond", "percent"),
        Column("worst", "worst feature"),
        Column("worst_ratio", "/ limit", "number"),
        Column("label_share", "labels", "percent"),
    ]
    for place, (name, output) in enumerate(entry.outputs.items()):
        columns += [
            Column(f"error_{place}", f"{name}: {output.gate}", "number"),
            Column(f"baseline_{place}", "baseline", "number"),
        ]
    columns.append(Column("state", "performance", "status"))
    rows = []
    for position in range(len(history.nights) - 1, -1, -1):
        night = history.nights[position]
        scored = history.scored.get(night)
        if scored is None and not labels.known[position]:
            continue
        waiting = scored is not None and not labels.known[position] and (mature_until is None or night > mature_until)
        unjudged = "not mature yet" if waiting else "not evaluated"
        known = any(np.isfinite(line.value[position]) for _, line, _ in outputs)
        top = filled[worst[position], position]
        row: dict[str, Any] = {
            "night": night,
            "night_url": context.url("models", entry.name, "nights", night),
            "version": scored.version if scored else None,
            "rows": scored.rows if scored else None,
            "drift_share": number(share.value[position]),
            "worst": names[worst[position]] if top >= 0 and names else None,
            "worst_ratio": number(top) if top >= 0 else None,
            "label_share": number(labels.value[position]),
            "state": "judged" if known else unjudged,
        }
        for place, (_, line, baseline) in enumerate(outputs):
            row |= {
                f"error_{place}": number(line.value[position]),
                f"baseline_{place}": number(baseline.value[position]),
            }
        rows.append(row)
    first, last = history.nights[0], history.nights[-1]
    return Table("nights", f"Night by night, {first} to {last}", tuple(columns), rows, folded=True)

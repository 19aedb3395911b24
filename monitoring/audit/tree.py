"""A trace as a tree of facts, for whoever shows it: a terminal, a page."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

from config.calendar import Interval
from lake.assignment import CHAMPION
from lake.lineage import Input
from monitoring.wording import exact

if TYPE_CHECKING:
    from monitoring.audit.trace import Trace, TracedPartition, TracedPrediction, TracedVersion, TracedView

Mood = Literal["plain", "good", "bad", "unsure"]


@dataclass(frozen=True)
class Target:
    """What a fact is about, for a link.

    Attributes:
        kind: what `name` names: a model, a table of the lake (`flights/features/origin_daily`), a run of Airflow, a run
            of MLflow.
        subject: the model or data set that a run belongs to.
        night: of a model or table.
    """

    kind: Literal["model", "table", "run", "training_run", "mlflow_run", "model_card", "retraining"]
    name: str
    subject: str = ""
    night: date | None = None


@dataclass(frozen=True)
class Fact:
    """One named value. `personal`: the catalog marks the column as personal data."""

    name: str
    value: Any
    target: Target | None = None
    personal: bool = False


@dataclass(frozen=True)
class Branch:
    """A part of the tree.

    Attributes:
        kind: the word the title begins with: prediction, published, features, model, gate decision.
        title: the rest of it. `personal`: values in the title that stem from columns with personal data, to be hidden
            by who shows it.
        warning: what is missing or out of date, None where nothing is.
        detail: long lists, which a terminal leaves out; the title says what they hold.
    """

    kind: str
    title: str
    facts: tuple[Fact, ...] = ()
    branches: tuple[Branch, ...] = ()
    mood: Mood = "plain"
    warning: str | None = None
    target: Target | None = None
    entity: tuple[Fact, ...] = ()
    detail: bool = False


def tree(traced: Trace, *, personal: Collection[str] = ()) -> Branch:
    """The whole trace: the prediction, and below it where it is published, its features, its model version and why that
    version was in force.

    Args:
        personal: columns whose values are marked as personal data, as the catalog names them.
    """
    p = traced.prediction
    facts = (Fact("target time", p.target_time_utc), *(Fact(name, value) for name, value in p.outputs.items()))
    state = f"replaced at {exact(p.superseded_at)}" if p.superseded_at else "current"
    published = Branch(
        "published",
        f"{p.partition.table} for {p.data_date}, {state}",
        _partition_facts(p.partition, p.model),
        _inputs(p.partition),
        mood="unsure" if p.superseded_at else "good",
        target=Target("model", p.model, night=p.data_date),
    )
    views = tuple(_view(view, personal) for view in traced.features)
    features = Branch("features", f"as known on {p.data_date}, input digest {p.input_digest}", (), views)
    return Branch(
        "prediction",
        f"{p.prediction_id} of {p.model}",
        facts,
        (published, _served(traced, personal), features, _version(p, traced.version), *_decision(traced)),
        target=Target("model", p.model),
        entity=tuple(Fact(name, value, personal=name in personal) for name, value in p.entity.items()),
    )


def _served(traced: Trace, personal: Collection[str]) -> Branch:
    """Whether it was used, and why."""
    p, why = traced.prediction, traced.service
    facts = [Fact("why", why.reason)]
    if why.rollout is not None:
        target = Target("retraining", p.model)
        facts += [Fact("rollout", f"line {why.rollout}", target), Fact("step", why.step), Fact("share", why.share)]
    facts += [Fact(f"unit {name}", value, personal=name in personal) for name, value in (why.unit or {}).items()]
    if why.position is not None:
        facts.append(Fact("position", why.position))
    return Branch(
        "served" if p.served else "not served", f"as {p.role}", tuple(facts), mood="good" if p.served else "plain"
    )


def _view(view: TracedView, personal: Collection[str]) -> Branch:
    entity = tuple(Fact(name, value, personal=name in personal) for name, value in view.entity.items())
    where = (
        f"partition {view.partition.data_date}" if view.partition else "no row of this entity within its time to live"
    )
    if view.expired:
        return Branch(view.view, "can no longer be read", entity=entity, warning=view.expired, mood="unsure")
    facts = tuple(Fact(name, value, personal=f"{view.view}__{name}" in personal) for name, value in view.values.items())
    if view.partition is None:
        return Branch(view.view, where, facts, entity=entity, mood="unsure")
    from_partition = Branch(
        "partition",
        f"{view.partition.table} {view.partition.data_date}",
        _partition_facts(view.partition, view.partition.table.partition("/")[0]),
        _inputs(view.partition),
        target=Target("table", view.partition.table, night=view.partition.data_date),
    )
    return Branch(
        view.view,
        where,
        facts,
        (from_partition,),
        entity=entity,
        target=Target("table", view.partition.table, night=view.partition.data_date),
    )


def _partition_facts(partition: TracedPartition, subject: str) -> tuple[Fact, ...]:
    return (
        Fact("version", f"{partition.version} of {partition.table}"),
        Fact("digest", partition.digest),
        Fact("run", partition.run_id, Target("run", partition.run_id, subject)),
        Fact("committed", partition.committed_at),
        Fact("code", partition.code_version),
        Fact("catalog", partition.catalog_digest),
    )


def _inputs(partition: TracedPartition) -> tuple[Branch, ...]:
    tables: dict[str, list[Input]] = {}
    for item in partition.computed_from:
        tables.setdefault(item.table, []).append(item)
    branches = []
    for table, items in tables.items():
        ordered = sorted(items, key=lambda item: item.data_date)
        days = [item.data_date for item in ordered]
        span = (
            f"{days[0]}..{days[-1]} ({len(days)} partitions)"
            if len(days) > 1
            else f"{days[0]} (digest {items[0].digest[:16]}…)"
        )
        title = f"{table} {span}, up to version {max(item.version for item in items)}"
        facts = (
            Fact(
                item.data_date.isoformat(),
                f"version {item.version}, digest {item.digest[:16]}…",
                Target("table", table, night=item.data_date),
            )
            for item in ordered
        )
        branches.append(Branch("computed from", title, tuple(facts), detail=True))
    return tuple(branches)


def _version(p: TracedPrediction, v: TracedVersion) -> Branch:
    facts = [Fact("artifact", v.artifact_digest), Fact("signature", v.signature), Fact("as of", v.as_of)]
    facts += [Fact("training set", v.training_digest), Fact("test set", v.test_digest)]
    for name, window in (v.windows or {}).items():
        facts.append(
            Fact(f"window {name}", Interval(date.fromisoformat(window["start"]), date.fromisoformat(window["end"])))
        )
    facts += [Fact("rows", v.rows), Fact("features at versions", v.pins), Fact("code", v.code_version)]
    facts.append(Fact("training run", v.run_id, Target("training_run", v.run_id, p.model) if v.run_id else None))
    facts.append(
        Fact("MLflow run", v.mlflow_run_id, Target("mlflow_run", v.mlflow_run_id) if v.mlflow_run_id else None)
    )
    facts.append(Fact("model card", f"version {v.version}", Target("model_card", str(v.version), p.model)))
    facts.append(Fact("files", v.folder))
    missing = f"missing: {', '.join(v.missing)}" if v.missing else None
    return Branch(
        "model",
        f"{p.model} version {v.version}, {v.family or 'family unknown'}",
        tuple(facts),
        warning=missing,
        target=Target("model", p.model),
    )


def _line(traced: Trace) -> Branch:
    """The ledger's line by which the version had its role in that night."""
    model, line = traced.prediction.model, traced.promotion or traced.rollout
    if line is None:
        what, role = ("promotion", "champion") if traced.prediction.role == CHAMPION else ("rollout", "challenger")
        return Branch(
            what, "unknown", warning=f"the ledger no longer has the line that made this version {role}", mood="unsure"
        )
    named = ["by", "decided_at", "trained_until", "evidence_digest"]
    kind, title = str(line["kind"]), f"in force from {line['effective_from']}"
    if traced.rollout:
        named += ["reason"]
        kind, title = "rollout", f"{kind.replace('_', ' ')}, line {line['sequence']}, {title}"
    facts = tuple(Fact(name.replace("_", " "), line[name]) for name in named)
    return Branch(kind, title, facts, target=Target("retraining", model))


def _decision(traced: Trace) -> tuple[Branch, ...]:
    model = traced.prediction.model
    promoted = _line(traced)
    if not traced.decision:
        return promoted, Branch(
            "gate decision", "unknown", warning="no gate decision is stored for this version", mood="unsure"
        )
    reasons = tuple(
        Fact("reason", reason["text"] if isinstance(reason, dict) else reason)
        for reason in traced.decision.get("reasons") or []
    )
    checks = []
    for check in traced.decision.get("checks") or []:
        word, mood = (
            _CHECKED[check.get("passed")] if check.get("passed") in (True, False) else ("not evaluated", "unsure")
        )
        said = {key: value for key, value in check.items() if value is not None and key not in {"name", "passed"}}
        checks.append(Branch(word, f"{check.get('name')} {exact(said)}".rstrip(), mood=mood))
    title = f"{traced.decision['verdict']} against {traced.decision.get('rival')}"
    return promoted, Branch("gate decision", title, reasons, tuple(checks), target=Target("retraining", model))


_CHECKED: Mapping[Any, tuple[str, Mood]] = {True: ("passed", "good"), False: ("failed", "bad")}

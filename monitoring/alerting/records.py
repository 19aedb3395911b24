"""What was asked for, judged, answered and promoted, read from SQL for many models at once: the pages' side of the
ledger and of the gate.

Delta holds the truth. A read first looks whether a table has commits that SQL lacks (an installation from before these
projections, a run that ended between the two writes), and projects them; where there are none that costs one `stat` a
table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from config.calendar import Interval
from lake.lake import Lake
from lake.ledger import Promotion
from lake.lineage import as_utc
from lake.projection import projections_table, sql_columns
from lake.promotions import project_promotions, promotions_table, stored_promotions
from lake.tables import LakeTable
from monitoring import retraining_requests as requests
from monitoring.alerting.reading import has_table
from training.registry import approval, decision
from training.registry.approval import Approval
from training.registry.decision import Check, Reason

# By database and table: the state of its Delta log that SQL was last seen to hold.
_projected: dict[tuple[str, str], int] = {}


@dataclass(frozen=True)
class RequestRecord:
    """One decision of the policy, or one request of a person.

    Attributes:
        as_of: the night it is about.
        actor: policy or person; by: the person's name, or `policy`.
        requested: whether a training was asked for; the policy's other nights are on record, too.
        trigger: performance, drift, calendar, person, none.
        evidence: every trigger's numbers.
    """

    model: str
    as_of: date
    actor: str
    by: str
    requested: bool
    trigger: str
    reason: str
    evidence: Mapping[str, Any]


@dataclass(frozen=True)
class DecisionRecord:
    """The gate's decision on a version, without the evidence that `read_evidence` gives.

    Attributes:
        as_of: the night whose knowledge the version was trained and judged on.
        judgement: counts the decisions on one version, the last one is in force.
        rival: what it was compared with, in words.
    """

    model: str
    as_of: date
    version: int
    judgement: int
    verdict: str
    rival: str
    nights: int
    rows: int
    reasons: tuple[Reason, ...]
    checks: tuple[Check, ...]
    evidence_digest: str


def read_promotions(lake: Lake, models: Collection[str]) -> list[Promotion]:
    """The ledgers' lines of those models, by model and sequence."""
    _bring_up(lake, models, "promotions", project_promotions)
    return stored_promotions(lake, models)


def read_requests_of(
    lake: Lake, models: Collection[str], interval: Interval | None = None, *, requested_only: bool = False
) -> list[RequestRecord]:
    """Decisions of the policy and requests of persons about the nights of a period (None: all), by night, model,
    actor.
    """
    _bring_up(lake, models, "requests", requests.project_requests)
    table = _table(lake, requests.SQL_TABLE, requests.requests_table(lake, ""))
    where = [table.c.requested.is_(True)] if requested_only else []
    rows = _rows(lake, table, "requests", models, interval, where, ("actor", "by", "reason"))
    return [
        RequestRecord(
            _model(row),
            row["data_date"],
            row["actor"],
            row["by"],
            row["requested"],
            row["trigger"],
            row["reason"],
            json.loads(row["evidence"]),
        )
        for row in rows
    ]


def read_decisions_of(lake: Lake, models: Collection[str], interval: Interval | None = None) -> list[DecisionRecord]:
    """The gate's decisions on versions trained as of the nights of a period (None: all), by night, model, version,
    judgement.
    """
    _bring_up(lake, models, "decisions", decision.project_decisions)
    table = _table(lake, decision.SQL_TABLE, decision.decisions_table(lake, ""))
    rows = _rows(lake, table, "decisions", models, interval, [], ("version", "judgement"), without=("evidence",))
    return [
        DecisionRecord(
            model=_model(row),
            as_of=row["data_date"],
            reasons=tuple(Reason(**reason) for reason in json.loads(row["reasons"])),
            checks=tuple(Check(**check) for check in json.loads(row["checks"])),
            **{
                name: row[name]
                for name in ("version", "judgement", "verdict", "rival", "nights", "rows", "evidence_digest")
            },
        )
        for row in rows
    ]


def read_evidence(lake: Lake, evidence_digest: str) -> Mapping[str, Any] | None:
    """All that a decision rests on, None where no decision has that digest."""
    table = _table(lake, decision.SQL_TABLE, decision.decisions_table(lake, ""))
    if not has_table(lake, table.name):
        return None
    with lake.engine.connect() as connection:
        found = connection.execute(
            sa.select(table.c.evidence).where(table.c.evidence_digest == evidence_digest)
        ).scalar()
    document: Mapping[str, Any] | None = None if found is None else json.loads(found)
    return document


def read_gate_outputs(lake: Lake, versions: Mapping[str, int]) -> dict[str, Mapping[str, Any]]:
    """By model, of the version named: what the gate's newest judgement measured of each output: `metric`, `challenger`,
    `rival`, `baseline`.
    """
    _bring_up(lake, list(versions), "decisions", decision.project_decisions)
    table = _table(lake, decision.SQL_TABLE, decision.decisions_table(lake, ""))
    if not versions or not has_table(lake, table.name):
        return {}
    c = table.c
    wanted = sa.or_(
        *(sa.and_(c.source_table == f"{model}/decisions", c.version == version) for model, version in versions.items())
    )
    query = sa.select(c.source_table, c.evidence).where(wanted).order_by(c.data_date, c.judgement)
    with lake.engine.connect() as connection:
        newest = {_model(dict(row)): row["evidence"] for row in connection.execute(query).mappings()}
    return {model: json.loads(evidence).get("outputs", {}) for model, evidence in newest.items()}


def read_approvals_of(lake: Lake, models: Collection[str], interval: Interval | None = None) -> list[Approval]:
    """What people answered on versions trained as of the nights of a period (None: all), by night, model, order of the
    answers.
    """
    _bring_up(lake, models, "approvals", approval.project_approvals)
    table = _table(lake, approval.SQL_TABLE, approval.approvals_table(lake, ""))
    rows = _rows(lake, table, "approvals", models, interval, [], ("number",))
    names = ("version", "answer", "by", "reason", "evidence_digest", "run_id", "asking")
    return [
        Approval(
            _model(row),
            as_of=row["data_date"],
            answered_at=as_utc(row["answered_at"]),
            **{name: row[name] for name in names},
        )
        for row in rows
    ]


# ---- SQL -------------------------------------------------------------------------------------------------------


def _bring_up(lake: Lake, models: Collection[str], kind: str, project: Callable[[Lake, str], int]) -> None:
    """Project Delta tables whose log has changed since SQL was last seen to hold them; one that is not there is left
    alone.
    """
    changed: dict[str, tuple[tuple[str, str], int, Path]] = {}
    for model in models:
        log = lake.settings.lake / model / kind / "_delta_log"
        try:
            # Every commit adds a file to this folder. Looked at first: what is committed meanwhile is projected next
            # time, too.
            state = log.stat().st_mtime_ns
        except FileNotFoundError:
            continue
        key = (lake.settings.database_url, str(log))
        if _projected.get(key) != state:
            changed[model] = (key, state, log)
    known = _versions(lake, kind, list(changed)) if changed else {}
    for model, (key, state, log) in changed.items():
        # Opening a Delta table costs far more than listing its log.
        if known.get(model) != max((int(file.stem) for file in log.glob("*.json") if file.stem.isdigit()), default=-1):
            project(lake, model)
        _projected[key] = state


def _versions(lake: Lake, kind: str, models: Collection[str]) -> dict[str, int]:
    """By model: the Delta version that SQL holds. A projection is always of the whole table, and every line of a ledger
    is one version of it.
    """
    p, ledger = projections_table.c, promotions_table.c
    query = (
        sa.select(p.table_name, sa.func.max(p.version))
        .where(p.sql_table == kind, p.table_name.in_([f"{m}/{kind}" for m in models]))
        .group_by(p.table_name)
    )
    if kind == promotions_table.name:
        query = sa.select(ledger.model, sa.func.count()).where(ledger.model.in_(list(models))).group_by(ledger.model)
    with lake.engine.connect() as connection:
        inspector = sa.inspect(connection)
        if not (inspector.has_table(kind) and inspector.has_table(projections_table.name)):
            return {}
        return {str(name).partition("/")[0]: int(version) for name, version in connection.execute(query)}


def _table(lake: Lake, sql_table: str, table: LakeTable) -> sa.Table:
    return sql_columns(sql_table, table.schema)


def _rows(
    lake: Lake,
    table: sa.Table,
    kind: str,
    models: Collection[str],
    interval: Interval | None,
    where: Sequence[sa.ColumnElement[bool]],
    order: tuple[str, ...],
    without: tuple[str, ...] = (),
) -> list[Mapping[str, Any]]:
    if not has_table(lake, table.name):
        return []
    c = table.c
    query = sa.select(*(column for column in c if column.name not in without)).where(
        c.source_table.in_([f"{model}/{kind}" for model in models]), *where
    )
    if interval is not None:
        query = query.where(c.data_date >= interval.start, c.data_date < interval.end)
    with lake.engine.connect() as connection:
        return [
            dict(row)
            for row in connection.execute(
                query.order_by(c.data_date, c.source_table, *(c[name] for name in order))
            ).mappings()
        ]


def _model(row: Mapping[str, Any]) -> str:
    return str(row["source_table"]).rpartition("/")[0]

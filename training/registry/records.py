"""The gate's decisions and what people answered, from SQL: for many models at once, without a Delta table being opened.

Delta holds the truth. Whoever writes there projects to SQL, and the watch repairs what a killed run left; a read only
reads.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import sqlalchemy as sa

from config.calendar import Interval
from lake.lake import Lake
from lake.lineage import as_utc
from lake.projection import has_table, read_projected, sql_columns
from lake.tables import LakeTable
from training.registry import approval, decision
from training.registry.approval import Approval
from training.registry.decision import Check, Reason, promised_ratios


@dataclass(frozen=True)
class DecisionRecord:
    """The gate's decision on a version, without the evidence that `read_evidence` gives.

    Attributes:
        as_of: the night whose knowledge the version was trained and judged on.
        judgement: counts the decisions on one version, the last one is in force.
        incumbent: what it was judged against, in words.
    """

    model: str
    as_of: date
    version: int
    judgement: int
    verdict: str
    incumbent: str
    nights: int
    rows: int
    reasons: tuple[Reason, ...]
    checks: tuple[Check, ...]
    evidence_digest: str


def read_decisions_of(lake: Lake, models: Collection[str], interval: Interval | None = None) -> list[DecisionRecord]:
    """The gate's decisions on versions trained as of the nights of a period (None: all), by night, model, version,
    judgement.
    """
    tables = [f"{model}/decisions" for model in models]
    rows = read_projected(
        lake, _decisions(lake), tables, interval, order=("version", "judgement"), without=("evidence",)
    )
    return [
        DecisionRecord(
            model=_model(row["source_table"]),
            as_of=row["data_date"],
            incumbent=row["rival"],
            reasons=tuple(Reason(**reason) for reason in json.loads(row["reasons"])),
            checks=tuple(Check.of(check) for check in json.loads(row["checks"])),
            **{name: row[name] for name in ("version", "judgement", "verdict", "nights", "rows", "evidence_digest")},
        )
        for row in rows
    ]


def read_evidence(lake: Lake, evidence_digest: str) -> Mapping[str, Any] | None:
    """All that a decision rests on, None where no decision has that digest."""
    table = _decisions(lake)
    if not has_table(lake, table.name):
        return None
    query = sa.select(table.c.evidence).where(table.c.evidence_digest == evidence_digest)
    with lake.engine.connect() as connection:
        text = connection.execute(query).scalar()
    document: Mapping[str, Any] | None = None if text is None else json.loads(text)
    return document


def read_promises(lake: Lake, versions: Mapping[str, Collection[int]]) -> dict[str, dict[int, dict[str, float]]]:
    """By model, version and output: what the gate's newest judgement promises, as `promised_ratios` has it; only of the
    versions named.
    """
    table = _decisions(lake)
    if not versions or not has_table(lake, table.name):
        return {}
    c = table.c
    wanted = sa.or_(
        *(
            sa.and_(c.source_table == f"{model}/decisions", c.version.in_(sorted(of_model)))
            for model, of_model in versions.items()
        )
    )
    query = sa.select(c.source_table, c.version, c.evidence).where(wanted).order_by(c.data_date, c.judgement)
    promises: dict[str, dict[int, dict[str, float]]] = {}
    with lake.engine.connect() as connection:
        for row in connection.execute(query):
            promises.setdefault(_model(row.source_table), {})[row.version] = promised_ratios(json.loads(row.evidence))
    return promises


def read_approvals_of(lake: Lake, models: Collection[str], interval: Interval | None = None) -> list[Approval]:
    """What people answered on versions trained as of the nights of a period (None: all), by night, model, order of the
    answers.
    """
    table = _signed(approval.SQL_TABLE, approval.approvals_table(lake, ""))
    rows = read_projected(lake, table, [f"{model}/approvals" for model in models], interval, order=("number",))
    names = ("version", "answer", "by", "reason", "evidence_digest", "run_id", "asking")
    return [
        Approval(
            _model(row["source_table"]),
            as_of=row["data_date"],
            answered_at=as_utc(row["answered_at"]),
            **{name: row[name] for name in names},
        )
        for row in rows
    ]


def _decisions(lake: Lake) -> sa.Table:
    return _signed(decision.SQL_TABLE, decision.decisions_table(lake, ""))


def _signed(name: str, table: LakeTable) -> sa.Table:
    """Without the signatures: a database of before has no such column until its next projection, and who reads SQL
    verifies nothing.
    """
    return sql_columns(name, table.schema.remove(table.schema.get_field_index("signature")))


def _model(source_table: str) -> str:
    return source_table.rpartition("/")[0]

"""Retraining requests: one decision of the policy for each night, and what persons asked for, with evidence and
actor.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from config.calendar import ONE_DAY, Interval
from config.catalog.model import ModelEntry
from config.errors import NightfleetError, TransientError
from lake.assignment import CHAMPION, champion_in, scored_by
from lake.events import logged
from lake.lake import Lake, StageResult
from lake.lineage import Input
from lake.metrics import metrics_table
from lake.projection import project, read_projected, sql_columns
from lake.publish import StalePublish, publish
from lake.tables import LakeTable, named_table
from monitoring import drift, performance
from monitoring.policy import DriftedColumn, DriftNight, History, OutputNight, decide
from serving.predictions import predictions_table
from training.registry.decision import read_decisions

POLICY, PERSON = "policy", "person"
SQL_TABLE = "requests"
_ATTEMPTS = 5
_MAX_REASON = 400


class ReasonMissing(NightfleetError):
    """A person asked for a retraining without saying why."""


class NotRequested(NightfleetError):
    """A training was started by an event that no request on record explains."""


class RequestContested(TransientError):
    """Other requests of the same night were stored again and again while this one tried to."""


def requests_table(lake: Lake, model: str) -> LakeTable:
    """`<model>/requests`: partition T holds the policy's decision of night T (actor policy) and what persons asked for
    as of T (actor person).
    """
    columns = {
        "actor": "string",
        "by": "string",
        "requested": "boolean",
        "trigger": "string",
        "reason": "string",
        "evidence": "string",
    }
    return named_table(lake.settings, f"{model}/requests", columns, ("actor", "by", "reason"))


def project_requests(lake: Lake, model: str, *, anew: bool = False) -> int:
    """Bring the SQL table `requests` up to date with the model's; rows written."""
    return project(lake, requests_table(lake, model), SQL_TABLE, anew=anew)


def read_requests(lake: Lake, model: str) -> pa.Table:
    """All decisions and requests, sorted by `(data_date, actor, by, reason)`; of a night the policy's comes last.
    `evidence` is JSON.
    """
    return requests_table(lake, model).read()


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


def read_requests_of(
    lake: Lake, models: Collection[str], interval: Interval | None = None, *, requested_only: bool = False
) -> list[RequestRecord]:
    """From SQL, for many models at once: decisions of the policy and requests of persons about the nights of a period
    (None: all), by night, model, actor.
    """
    table = sql_columns(SQL_TABLE, requests_table(lake, "").schema)
    where = [table.c.requested.is_(True)] if requested_only else []
    order = ("actor", "by", "reason")
    rows = read_projected(lake, table, [f"{model}/requests" for model in models], interval, where=where, order=order)
    names = ("actor", "by", "requested", "trigger", "reason")
    return [
        RequestRecord(
            row["source_table"].rpartition("/")[0],
            row["data_date"],
            evidence=json.loads(row["evidence"]),
            **{name: row[name] for name in names},
        )
        for row in rows
    ]


def newest_decided(lake: Lake, model: str) -> date | None:
    """The newest night on which the policy decided, None before the first."""
    rows = read_requests(lake, model)
    newest: date | None = pc.max(rows.filter(pc.equal(rows["actor"], POLICY))["data_date"]).as_py()
    return newest


@logged("decide")
def decide_retraining(lake: Lake, model: str, data_date: date, *, run_id: str) -> StageResult:
    """Decide on a retraining after night `data_date`, and store the decision with its evidence.

    A night that is no longer the newest scored one keeps the decision it has, and so does one that asked already: the
    training that followed does not undo it.

    Returns:
        details: `requested`, `reason` (one sentence), `trigger`, `evidence`.
    Raises:
        PartitionNotReady: drift or performance of the night is not measured yet.
    """
    entry = lake.model(model)
    interval = Interval.of(data_date)
    inputs: list[Input] = []
    for group in (drift.GROUP, performance.GROUP):
        measured = lake.publications.require(
            metrics_table(lake.settings, model, group),
            interval,
            needed_by=f"The retraining decision of {model}",
            remedy=f"Run `{model}_monitor` for {data_date}: its tasks `drift` and `performance` come first.",
        )
        inputs.append(measured[data_date].as_input())
    scored = lake.publications.current(predictions_table(lake.settings, entry, lake.dataset(entry.dataset)))
    newest = max(scored)
    stored = [row for row in requests_table(lake, model).read([data_date]).to_pylist() if row["actor"] == POLICY]
    if stored and (stored[0]["requested"] or data_date != newest):
        project_requests(lake, model)
        return _result(model, data_date, stored[0], committed=0)
    champions = {day: champion_in(scored_by(day, publication.details)) for day, publication in scored.items()}
    versions = {day: champion.version for day, champion in champions.items() if champion is not None}
    version = versions.get(data_date)  # None: a refused version scored the night, and served nothing
    running = lake.rollouts(model).read().running
    decision = decide(
        read_history(lake, entry, data_date, versions),
        entry.retrain,
        as_of=data_date,
        last_training_as_of=last_training(lake, model, before=data_date),
        gate_ratios={} if version is None else performance.gate_ratios(lake, model).get(version, {}),
        champion_version=version,
        newest_night=newest,
        challenger_version=None if running is None or version is None else running.version,
    )
    row = {
        "actor": POLICY,
        "by": POLICY,
        "requested": decision.requested,
        "trigger": decision.trigger,
        "reason": decision.reason,
        "evidence": _text(decision.evidence),
        "data_date": data_date,
    }
    kept, committed = _store(lake, model, row, run_id=run_id, inputs=inputs)
    return _result(model, data_date, kept, committed=committed)


def request_retraining(lake: Lake, model: str, data_date: date, *, by: str, reason: str, run_id: str) -> dict[str, Any]:
    """Record that a person asks for a training as of `data_date`; no cooldown holds a person back. The same request
    again changes nothing.

    Returns:
        evidence: `trigger`, `by`, `reason`, `as_of`, and the numbers that the policy knew of that night, if any.
    Raises:
        ReasonMissing: `reason` says nothing, or is longer than 400 characters.
    """
    lake.model(model)
    reason = reason.replace("\0", "\ufffd").strip()  # SQL takes no NUL
    if not reason or len(reason) > _MAX_REASON:
        problem = "no reason" if not reason else f"a reason of {len(reason)} characters"
        raise ReasonMissing(
            f"the retraining of {model} as of {data_date} was asked for by {by} with {problem}. Say why in 1 to "
            f"{_MAX_REASON} characters."
        )
    policy = [row for row in requests_table(lake, model).read([data_date]).to_pylist() if row["actor"] == POLICY]
    known = json.loads(policy[0]["evidence"]) if policy else None
    evidence = {"trigger": PERSON, "by": by, "reason": reason, "as_of": data_date.isoformat(), "policy": known}
    row = {
        "actor": PERSON,
        "by": by,
        "requested": True,
        "trigger": PERSON,
        "reason": reason,
        "evidence": _text(evidence),
        "data_date": data_date,
    }
    kept, _ = _store(lake, model, row, run_id=run_id, inputs=[])
    document: dict[str, Any] = json.loads(kept["evidence"])
    return document


def check_requested(lake: Lake, model: str, data_date: date) -> None:
    """Whoever may post events can start the training DAG; only a request that is on record lets it train.

    Raises:
        NotRequested: neither the policy nor a person asked for a training as of that night.
    """
    rows = requests_table(lake, model).read([data_date]).to_pylist()
    if any(row["requested"] for row in rows):
        return
    said = f"the policy decided: {rows[0]['reason']}" if rows else "nothing is on record of that night"
    raise NotRequested(
        f"an asset event asked to train {model} as of {data_date}, but neither the policy nor a person did; {said}. "
        "Nothing was trained.\n"
        f"  If you want this training, ask for it on the page Retraining or trigger `{model}_train`, with a reason."
    )


# The training DAG records a run that a person started with this name.
record_manual_request = request_retraining


def last_training(lake: Lake, model: str, *, before: date) -> date | None:
    """As-of date of the last training before that night: judged, whatever the verdict, promoted, or asked for and
    perhaps still running.
    """
    known = [decision.as_of for decision in read_decisions(lake, model)]
    known += [promotion.trained_until for promotion in lake.ledger(model).read().promotions]
    requests = read_requests(lake, model)
    known += requests.filter(requests["requested"])["data_date"].to_pylist()
    return max((day for day in known if day < before), default=None)


def read_history(lake: Lake, entry: ModelEntry, as_of: date, versions: Mapping[date, int]) -> History:
    """What the policy looks at, from the metrics tables: the champion's; `versions` says which version that was in each
    night.
    """
    shares = _champions(metrics_table(lake.settings, entry.name, drift.GROUP).read([as_of])).to_pylist()
    drifts = [
        DriftNight(
            row["about_date"],
            row["value"],
            row["n"] or 0,
            row["reason"],
            _worst_column(entry, shares, row["about_date"]),
        )
        for row in shares
        if row["check"] == "drift_share"
    ]
    # A night becomes mature a few nights after it was scored; twice the nights asked for holds them all.
    nights = 2 * entry.retrain.performance.nights + 14
    window = Interval(as_of - timedelta(days=nights), as_of + ONE_DAY)
    checks = sorted({check for output in entry.outputs.values() for check in (output.gate, f"{output.gate}_baseline")})
    rows = _champions(metrics_table(lake.settings, entry.name, performance.GROUP).read(window))
    # Of all rows of a night: a part of them has numbers of its own.
    rows = rows.filter(
        pc.and_(pc.is_in(rows["check"], value_set=pa.array(checks, pa.string())), pc.equal(rows["segment"], ""))
    )
    measured = {(row["about_date"], row["column"], row["check"]): row for row in rows.to_pylist()}
    outputs = []
    for (night, name, check), row in sorted(measured.items()):
        if name not in entry.outputs or check != entry.outputs[name].gate or night not in versions:
            continue
        baseline = measured.get((night, name, f"{check}_baseline"), {}).get("value")
        outputs.append(OutputNight(night, name, check, versions[night], row["value"], baseline, row["n"] or 0))
    return History(drifts, outputs)


def _champions(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.equal(rows["role"], CHAMPION))


def _worst_column(entry: ModelEntry, rows: Sequence[Mapping[str, Any]], night: date) -> DriftedColumn | None:
    """The column that exceeds its limit most in that night."""
    method = entry.retrain.drift.method
    checks = (f"drift_{method}", "prediction_drift")
    beyond = [
        r
        for r in rows
        if r["about_date"] == night and r["check"] in checks and r["status"] == "warning" and not r["segment"]
    ]
    if not beyond:
        return None
    worst = min(beyond, key=lambda r: (-r["value"] / max(r["threshold"] or 0.0, 1e-9), r["column"]))
    return DriftedColumn(worst["column"], method.upper(), worst["value"], worst["threshold"] or 0.0)


def _store(
    lake: Lake, model: str, row: Mapping[str, Any], *, run_id: str, inputs: list[Input]
) -> tuple[dict[str, Any], int]:
    """Put a row into its partition beside the others there; returns the row that stands, and partitions committed (0 or
    1).
    """
    table = requests_table(lake, model)
    day: date = row["data_date"]
    interval = Interval.of(day)
    for _ in range(_ATTEMPTS):
        replaces = lake.publications.digests(table, interval)
        others = table.read([day]).to_pylist()
        same = [other for other in others if _stands_for(other, row)]
        if same and (row["actor"] == PERSON or same[0]["requested"]):
            project_requests(lake, model)
            return same[0], 0
        rows = pa.Table.from_pylist([*(other for other in others if other not in same), dict(row)], schema=table.schema)
        earlier = lake.publications.current(table, interval)
        # A person's request leaves the decision's inputs on record, and the other way round.
        kept = list(earlier[day].inputs) if day in earlier else []
        lineage = dataclasses.replace(
            lake.lineage(model, run_id), inputs={day: list(dict.fromkeys([*inputs, *(kept if not inputs else [])]))}
        )
        try:
            with lake.scratch("requests") as scratch:
                published = publish(
                    lake.publications, table, rows, interval, replaces=replaces, lineage=lineage, scratch=scratch
                )
        except StalePublish:
            continue  # another request of the night was stored in between: look again at what is there
        project_requests(lake, model)
        return dict(row), len(published.committed)
    raise RequestContested(
        f"the request on {model} as of {day} was not stored: {_ATTEMPTS} times another came first. Nothing is lost; "
        "clear the task."
    )


def _stands_for(other: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether both are the same request: the policy has one decision a night, a person one for each reason."""
    named = ("actor",) if row["actor"] == POLICY else ("actor", "by", "reason")
    return all(other[name] == row[name] for name in named)


def _result(model: str, data_date: date, row: Mapping[str, Any], *, committed: int) -> StageResult:
    details = {name: row[name] for name in ("requested", "reason", "trigger")} | {
        "evidence": json.loads(row["evidence"])
    }
    return StageResult("decide", model, str(data_date), 1, committed, details)


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)

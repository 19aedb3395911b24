"""A person's word on a promotion that passed the gate: what they answered, and that it was about this evidence.

Every answer is a row of `<model>/approvals`, a request that nobody answered in time is one, too. Only an approval with
a reason, of the evidence that is promoted, lets `promote` write to the ledger.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any, Literal

import pyarrow as pa

from config.calendar import Interval
from config.durations import format_duration
from config.errors import NightfleetError, TransientError
from lake.lake import Lake
from lake.projection import project
from lake.publish import StalePublish, publish
from lake.signature import authenticate, authenticated_by
from lake.tables import LakeTable, named_table
from training.registry.decision import Decision, decisions_table, read_decisions

APPROVE, REJECT = "Approve", "Reject"
SQL_TABLE = "approvals"
Answer = Literal["approved", "rejected", "lapsed"]
NOBODY = "nobody"
_ATTEMPTS = 5
log = logging.getLogger(__name__)


class DecisionNotFound(NightfleetError):
    """What a person is to decide on is not stored."""


class ReasonMissing(NightfleetError):
    """A person decided without saying why."""


class PromotionRejected(NightfleetError):
    """A person said no."""


class ApprovalLapsed(NightfleetError):
    """Nobody answered in time."""


class NotApproved(NightfleetError):
    """A promotion needs a person's approval, and has none of this evidence."""


class ApprovalContested(TransientError):
    """Other answers on the same model were stored again and again while this one tried to be."""


@dataclass(frozen=True)
class Approval:
    """One answer.

    Attributes:
        by: who answered, `nobody` where the request lapsed.
        answered_at: when, UTC; of a lapsed request when it lapsed.
        evidence_digest: of the decision that was shown.
        run_id: the training run that asked.
        asking: which asking of that run it answers; a task that is tried again asks the same, a cleared one anew.
        signature: over all of it, made when it was recorded; None in answers of before they were signed.
    """

    model: str
    version: int
    as_of: date
    answer: Answer
    by: str
    reason: str
    answered_at: datetime
    evidence_digest: str
    run_id: str
    asking: int = 0
    signature: str | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON, without the signature."""
        document = {**self.__dict__, "as_of": self.as_of.isoformat(), "answered_at": self.answered_at.isoformat()}
        del document["signature"]
        return document


def approvals_table(lake: Lake, model: str) -> LakeTable:
    """`<model>/approvals`: partition T holds the answers on versions trained as of T, in the order they came."""
    columns = {
        "number": "int64",
        "version": "int64",
        "answer": "string",
        "by": "string",
        "reason": "string",
        "answered_at": "timestamp",
        "evidence_digest": "string",
        "run_id": "string",
        "asking": "int64",
        "signature": "string",
    }
    return named_table(lake.settings, f"{model}/approvals", columns, ("number",), added={"signature": "NULL"})


def project_approvals(lake: Lake, model: str, *, anew: bool = False) -> int:
    """Bring the SQL table `approvals` up to date with the model's; rows written."""
    return project(lake, approvals_table(lake, model), SQL_TABLE, indexes=(("evidence_digest",),), anew=anew)


def read_approvals(lake: Lake, model: str, as_of: date | None = None) -> list[Approval]:
    """Every answer on the model, or on its versions of one as-of date; in order."""
    rows = approvals_table(lake, model).read(None if as_of is None else [as_of]).to_pylist()
    return [
        Approval(model, as_of=row.pop("data_date"), **{name: value for name, value in row.items() if name != "number"})
        for row in rows
    ]


def stored_decision(lake: Lake, model: str, evidence_digest: str) -> Decision:
    """The decision that a person is asked about.

    Raises:
        DecisionNotFound: no stored decision has that digest.
        DecisionDamaged: the stored decision was changed.
    """
    decision = next((d for d in read_decisions(lake, model) if d.evidence_digest == evidence_digest), None)
    if decision is None:
        raise DecisionNotFound(
            f"{model} has no stored decision with evidence {evidence_digest[:12]}…, so nobody can decide on it. Clear "
            "the gate's task."
        )
    return decision


# ---- the answer --------------------------------------------------------------------------------------------------


def answered(
    lake: Lake,
    model: str,
    decision: Mapping[str, Any],
    *,
    shown: str,
    option: str,
    by: str,
    reason: str,
    answered_at: datetime,
    run_id: str,
    asking: int = 0,
) -> dict[str, Any]:
    """Record a person's answer; the same one again writes nothing.

    Args:
        decision: the gate's decision as JSON.
        shown: evidence digest of the form that was answered.
        option: `Approve` or `Reject`.
    Returns:
        The approval as JSON.
    Raises:
        ReasonMissing: the answer has no reason. It does not count, and is not recorded.
        PromotionRejected: the answer is no; it is recorded.
        NotApproved: the answer is yes, to other evidence than the decision's; it is recorded.
    """
    if option not in {APPROVE, REJECT}:
        raise NotApproved(
            f"{by} answered {option!r} on {model} version {decision['version']}; known are {APPROVE} and {REJECT}. The "
            "champion stays. Clear this task."
        )
    if not reason.strip():
        raise ReasonMissing(
            f"{by} answered {option!r} on {model} version {decision['version']} without a reason, which does not "
            "count. The champion stays.\n"
            "  Clear this task to be asked again, and say why."
        )
    answer: Answer = "approved" if option == APPROVE else "rejected"
    as_of = date.fromisoformat(decision["as_of"])
    reason = reason.replace("\0", "\ufffd").strip()  # SQL takes no NUL
    given = Approval(
        model, decision["version"], as_of, answer, by, reason, answered_at.astimezone(UTC), shown, run_id, asking
    )
    _record(lake, given)
    return _concluded(lake, given, decision)


def answered_before(
    lake: Lake, model: str, decision: Mapping[str, Any], *, run_id: str, asking: int
) -> dict[str, Any] | None:
    """What was answered to the same asking, for a task that ended before it could say so; None where nothing was.

    Raises:
        as `answered` and `lapsed` did.
    """
    words = read_approvals(lake, model, date.fromisoformat(decision["as_of"]))
    same = [word for word in words if (word.version, word.run_id, word.asking) == (decision["version"], run_id, asking)]
    return _concluded(lake, same[-1], decision) if same else None


def _concluded(lake: Lake, given: Approval, decision: Mapping[str, Any]) -> dict[str, Any]:
    """How the asking ends: with the approval, or with the error that says why there is none."""
    if given.answer == "lapsed":
        raise ApprovalLapsed(
            f"the request to promote {given.model} version {given.version} lapsed: nobody answered within "
            f"{format_duration(lake.model(given.model).approval_timeout)}. The champion stays. Clear this task to ask "
            "again."
        )
    if given.answer == "rejected":
        raise PromotionRejected(
            f"{given.model} version {given.version} was rejected by {given.by}: {given.reason}. The champion stays. "
            "Clear this task to ask again."
        )
    _check_evidence(given, decision["evidence_digest"])
    log.info("%s version %s was approved by %s: %s", given.model, given.version, given.by, given.reason)
    return given.to_json()


def lapsed(
    lake: Lake, model: str, decision: Mapping[str, Any], *, shown: str, at: datetime, run_id: str, asking: int = 0
) -> dict[str, Any]:
    """Record that nobody answered in time.

    Raises:
        ApprovalLapsed: always.
    """
    as_of = date.fromisoformat(decision["as_of"])
    nothing = Approval(
        model, decision["version"], as_of, "lapsed", NOBODY, "", at.astimezone(UTC), shown, run_id, asking
    )
    _record(lake, nothing)
    return _concluded(lake, nothing, decision)


def approval_of(lake: Lake, decision: Decision, *, run_id: str) -> Approval:
    """The approval that lets a run promote on a decision: the last word on that version in that run.

    Raises:
        NotApproved: there is none, it is no approval, it is one of other evidence, or nobody gave it here.
        MissingSecret: there is no key to verify with.
    """
    words = [
        a
        for a in read_approvals(lake, decision.model, decision.as_of)
        if a.run_id == run_id and a.version == decision.version
    ]
    if not words:
        raise NotApproved(
            f"{decision.model} asks for a person's approval (`approval: required`), and run {run_id} has none for "
            f"version {decision.version}. "
            "Nothing was promoted. Clear the task `approve` to ask for it."
        )
    last = words[-1]
    if last.answer != "approved" or not last.reason:
        raise NotApproved(
            f"{decision.model} version {decision.version} was not approved: the last word in run {run_id} is "
            f"{last.answer}, by {last.by}"
            f"{': ' + last.reason if last.reason else ''}. Nothing was promoted. Clear the task `approve` to ask again."
        )
    if not _is_signed(lake, last):
        raise NotApproved(
            f"the approval of {decision.model} version {decision.version} in run {run_id}, by {last.by}, is not signed "
            "by this installation: it was given before answers were signed, or written by somebody else. Nothing was "
            "promoted.\n"
            "  Clear the task `approve` to ask for it."
        )
    _check_evidence(last, decision.evidence_digest)
    return last


def _is_signed(lake: Lake, approval: Approval) -> bool:
    return authenticated_by(lake.settings, _document(approval), approval.signature) is not None


def _document(approval: Approval) -> dict[str, Any]:
    return {"approval": approval.to_json()}


def _check_evidence(approval: Approval, evidence_digest: str) -> None:
    if approval.evidence_digest != evidence_digest:
        raise NotApproved(
            f"{approval.by} approved {approval.model} version {approval.version} on evidence "
            f"{approval.evidence_digest[:12]}…, the decision now is on evidence "
            f"{evidence_digest[:12]}…: it was judged again meanwhile. Nothing was promoted. Clear the task `approve` "
            "to ask on what is known now."
        )


def _record(lake: Lake, approval: Approval) -> None:
    """Add a row to its partition; one that is there already is not added again."""
    table, interval = approvals_table(lake, approval.model), Interval.of(approval.as_of)
    for _ in range(_ATTEMPTS):
        replaces = lake.publications.digests(table, interval)
        there = table.read([approval.as_of])
        if approval in read_approvals(lake, approval.model, approval.as_of):
            project_approvals(lake, approval.model)
            return
        row = {name: value for name, value in approval.__dict__.items() if name not in {"model", "as_of"}}
        row |= {"number": there.num_rows + 1, "data_date": approval.as_of}
        row["signature"] = authenticate(lake.settings, _document(approval))
        rows = pa.concat_tables([there, pa.Table.from_pylist([row], schema=table.schema)])
        decided = lake.publications.current(decisions_table(lake, approval.model), interval).get(approval.as_of)
        lineage = lake.lineage(approval.model, approval.run_id, answer=approval.answer, version=approval.version)
        lineage = replace(lineage, inputs={approval.as_of: [decided.as_input()] if decided else []})
        try:
            with lake.scratch("approval") as scratch:
                publish(lake.publications, table, rows, interval, replaces=replaces, lineage=lineage, scratch=scratch)
        except StalePublish:
            continue  # another answer was stored in between: look again at what is there
        project_approvals(lake, approval.model)
        return
    raise ApprovalContested(
        f"the answer of {approval.by} on {approval.model} version {approval.version} was not stored: {_ATTEMPTS} times "
        "another came first. Clear the task."
    )

"""A gate's decision on one version: typed, stored once with all it rests on, and found again by its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from config.calendar import Interval
from config.errors import NightfleetError, TransientError
from lake.lake import Lake
from lake.lineage import Input
from lake.projection import project
from lake.publish import StalePublish, publish
from lake.signature import authenticate, authenticated_by
from lake.tables import LakeTable, named_table

Verdict = Literal["promote", "refuse", "not_evaluated"]
ReasonCode = Literal[
    "better",
    "not_better",
    "segment_worse",
    "leakage",
    "schema",
    "not_finite",
    "latency",
    "too_few_nights",
    "nothing_to_tell",
    "as_stable",
]
SQL_TABLE = "decisions"
_FORMER_KEY = "rival"  # in evidence that was stored under another word: its bytes, which the ledger cites, stay
_ATTEMPTS = 5


class DecisionDamaged(NightfleetError):
    """A stored decision is not the one its digest names."""


class DecisionNotSigned(NightfleetError):
    """Nothing shows that this installation's gate made a decision."""


class JudgementContested(TransientError):
    """Other judgements of the same model were stored again and again while this one tried to."""


@dataclass(frozen=True)
class Reason:
    """Why the verdict is what it is: a code for programs and a sentence with the value met and the value needed."""

    code: ReasonCode
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: improvement, segment, segments_too_small, agreement, schema, finite, latency, leakage, nights, coverage,
            champion.
        challenger, incumbent: errors in the metric's unit; for a check without a metric, challenger is the value met.
        improvement: `1 - challenger / incumbent`.
        bound: improvement: what the improvement exceeds with the gate's confidence; segment: what the error ratio
            exceeds.
        needed: improvement: least bound that passes; elsewhere the largest value that does.
        passed: None where it was not evaluated, or is reported only.
    """

    name: str
    passed: bool | None
    output: str | None = None
    metric: str | None = None
    segment: str | None = None
    challenger: float | None = None
    incumbent: float | None = None
    improvement: float | None = None
    bound: float | None = None
    needed: float | None = None
    rows: int | None = None
    note: str | None = None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Check:
        """From its fields as JSON, also of one that was stored under the former word."""
        return cls(**_renamed(document))


@dataclass(frozen=True)
class Decision:
    """The gate's decision on one version.

    Attributes:
        as_of: the night whose knowledge the version was trained and judged on.
        incumbent: what it was compared with, in words: `champion version 3`, `baseline median`.
        incumbent_version: the champion's version, None against the baseline.
        nights, rows: of the test.
        evidence: everything the verdict rests on, verdict, reasons and checks included, as JSON.
        evidence_digest: SHA-256 of the evidence as canonical JSON; the ledger cites it.
        signature: over that digest, made when the gate stored it; None in decisions of before they were signed.
    """

    model: str
    version: int
    as_of: date
    verdict: Verdict
    reasons: tuple[Reason, ...]
    checks: tuple[Check, ...]
    incumbent: str
    incumbent_version: int | None
    nights: int
    rows: int
    evidence: Mapping[str, Any]
    evidence_digest: str
    signature: str | None = None

    @classmethod
    def of(cls, evidence: Mapping[str, Any], *, signature: str | None = None) -> Decision:
        """The decision that some evidence holds."""
        return cls(
            model=evidence["model"],
            version=evidence["version"],
            as_of=date.fromisoformat(evidence["as_of"]),
            verdict=evidence["verdict"],
            reasons=tuple(Reason(**reason) for reason in evidence["reasons"]),
            checks=tuple(Check.of(check) for check in evidence["checks"]),
            incumbent=incumbent_of(evidence)["name"],
            incumbent_version=incumbent_of(evidence)["version"],
            nights=len(evidence["test"]["nights"]),
            rows=evidence["test"]["rows"],
            evidence=evidence,
            evidence_digest=_digest(evidence),
            signature=signature,
        )

    def to_json(self) -> dict[str, Any]:
        """Small enough for XCom: verdict, reasons as sentences, and what names the evidence."""
        return {
            "model": self.model,
            "version": self.version,
            "as_of": self.as_of.isoformat(),
            "verdict": self.verdict,
            "reasons": [reason.text for reason in self.reasons],
            "incumbent": self.incumbent,
            "nights": self.nights,
            "rows": self.rows,
            "evidence_digest": self.evidence_digest,
        }


def incumbent_of(evidence: Mapping[str, Any]) -> Mapping[str, Any]:
    """Who a challenger was judged against, from a decision's evidence; decisions stored before say `rival`."""
    incumbent: Mapping[str, Any] = _renamed(evidence)["incumbent"]
    return incumbent


def promised_ratios(evidence: Mapping[str, Any]) -> dict[str, float]:
    """What a version promises: by output, its error over the baseline's on the gate's test nights. Times the baseline's
    error on a night it is what was promised of that night.
    """
    return {
        name: output["challenger"] / output["baseline"]
        for name, output in evidence.get("outputs", {}).items()
        if output.get("challenger") is not None and output.get("baseline")
    }


def _renamed(document: Mapping[str, Any]) -> dict[str, Any]:
    return {"incumbent" if key == _FORMER_KEY else key: value for key, value in document.items()}


def decisions_table(lake: Lake, model: str) -> LakeTable:
    """`<model>/decisions`: partition T holds the decisions on versions trained as of T; `evidence` is JSON, the other
    columns repeat parts of it.
    """
    columns = {
        "version": "int64",
        "judgement": "int64",
        "verdict": "string",
        "rival": "string",  # the incumbent: the column was named so when the first decisions were stored
        "nights": "int64",
        "rows": "int64",
        "reasons": "string",
        "checks": "string",
        "evidence": "string",
        "evidence_digest": "string",
        "signature": "string",
    }
    return named_table(
        lake.settings, f"{model}/decisions", columns, ("version", "judgement"), added={"signature": "NULL"}
    )


def is_signed(lake: Lake, decision: Decision) -> bool:
    """Whether this installation's gate made the decision, as far as its signature says.

    Raises:
        MissingSecret: there is no key to verify with.
    """
    return authenticated_by(lake.settings, _document(decision), decision.signature) is not None


def check_signed(lake: Lake, decision: Decision) -> None:
    """Take a decision for the gate's only by its signature: whoever writes to the lake can write a decision, too.

    Raises:
        DecisionNotSigned: it has none, or one over something else.
        MissingSecret: there is no key to verify with.
    """
    if not is_signed(lake, decision):
        raise DecisionNotSigned(
            f"the decision on {decision.model} version {decision.version} with evidence "
            f"{decision.evidence_digest[:12]}… is not signed by this installation's gate: it was made before decisions "
            "were signed, or written by somebody else. Nothing was promoted, the champion stays.\n"
            "  Clear the gate's task: it judges again, and signs."
        )


def _document(decision: Decision) -> dict[str, Any]:
    return {"decision": decision.evidence_digest, "model": decision.model}


def project_decisions(lake: Lake, model: str, *, anew: bool = False) -> int:
    """Bring the SQL table `decisions` up to date with the model's; rows written."""
    return project(lake, decisions_table(lake, model), SQL_TABLE, indexes=(("evidence_digest",),), anew=anew)


def read_decisions(lake: Lake, model: str) -> list[Decision]:
    """Every decision on the model, by as-of date, version and order of judgement.

    Raises:
        DecisionDamaged: one is not what its digest names.
    """
    return [decision for _, _, decision in stored_decisions(lake, model)]


def _canonical(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(document).encode()).hexdigest()


def stored_decisions(lake: Lake, model: str, as_of: date | None = None) -> list[tuple[date, int, Decision]]:
    """As-of date, number of the judgement, decision; in order."""
    table = decisions_table(lake, model)
    rows = table.read(None if as_of is None else [as_of]).to_pylist()
    decisions = []
    for row in rows:
        decision = Decision.of(json.loads(row["evidence"]), signature=row["signature"])
        if decision.evidence_digest != row["evidence_digest"]:
            raise DecisionDamaged(
                f"{table.name} holds a decision on version {row['version']} as of {row['data_date']} whose evidence "
                "has digest "
                f"{decision.evidence_digest[:12]}…, stored as {row['evidence_digest'][:12]}…: it was changed. Restore "
                "the table to an earlier Delta version."
            )
        decisions.append((row["data_date"], row["judgement"], decision))
    return decisions


def store_decision(lake: Lake, evidence: Mapping[str, Any], *, run_id: str, inputs: Sequence[Input]) -> Decision:
    """Sign the decision and add it to its partition; where another run stored the same judgement first, that one
    stands, if it is signed.

    Raises:
        MissingSecret: there is no key to sign with; nothing is stored.
    """
    decision = Decision.of(json.loads(_canonical(evidence)))
    decision = replace(decision, signature=authenticate(lake.settings, _document(decision)))
    model, as_of = decision.model, decision.as_of
    table = decisions_table(lake, model)
    interval = Interval.of(as_of)
    for _ in range(_ATTEMPTS):
        replaces = lake.publications.digests(table, interval)
        others = stored_decisions(lake, model, as_of)
        for _, _, other in others:
            if (
                other.version == decision.version
                and other.evidence["subject"] == evidence["subject"]
                and incumbent_of(other.evidence) == incumbent_of(evidence)
                and is_signed(lake, other)
            ):
                project_decisions(lake, model)
                return other
        number = max((n for _, n, other in others if other.version == decision.version), default=0) + 1
        kept = table.read([as_of])
        # The same evidence once more: its unsigned row goes, for a digest names one decision.
        kept = kept.filter(pc.field("evidence_digest") != decision.evidence_digest)
        row = {
            "version": decision.version,
            "judgement": number,
            "verdict": decision.verdict,
            "rival": decision.incumbent,
            "nights": decision.nights,
            "rows": decision.rows,
            "reasons": _text(evidence["reasons"]),
            "checks": _text(evidence["checks"]),
            "evidence": _canonical(evidence),
            "evidence_digest": decision.evidence_digest,
            "signature": decision.signature,
            "data_date": as_of,
        }
        rows = pa.concat_tables([kept, pa.Table.from_pylist([row], schema=table.schema)])
        lineage = replace(
            lake.lineage(model, run_id, verdict=decision.verdict, version=decision.version),
            inputs={as_of: list(inputs)},
        )
        try:
            with lake.scratch("gate") as scratch:
                publish(lake.publications, table, rows, interval, replaces=replaces, lineage=lineage, scratch=scratch)
        except StalePublish:
            continue  # another judgement was stored in between: look again at what is there
        project_decisions(lake, model)
        return decision
    raise JudgementContested(
        f"the decision on {model} version {decision.version} was not stored: {_ATTEMPTS} times another judgement came "
        "first. Nothing is lost; clear the task."
    )


def _text(document: Any) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)

"""What an approver is asked, in Airflow's form: the gate's evidence as it is stored, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from config.calendar import Interval
from config.durations import format_duration
from lake.lake import Lake
from monitoring.pages.gate_evidence import (
    improvements_table,
    incumbent_words,
    other_checks_table,
    segments_table,
)
from monitoring.pages.render import markdown_table, markdown_text
from monitoring.retraining_requests import PERSON, read_requests_of
from monitoring.wording import instant
from training.registry.approval import stored_decision


@dataclass(frozen=True)
class Form:
    """What a person is shown. `evidence_digest` goes with the answer: it is what they decided on."""

    subject: str
    body: str
    evidence_digest: str


def approval_form(
    lake: Lake, model: str, decision: Mapping[str, Any], *, model_card: str | None, asked_at: datetime
) -> Form:
    """The question with its evidence.

    Args:
        asked_at: since when it waits, aware; it lapses after the catalog's `approval_timeout`.
        decision: the gate's decision as JSON; only its digest is believed.
        model_card: where the version's model card lies, a link or a path; None where there is none.
    Raises:
        DecisionNotFound: no stored decision has that digest.
        DecisionDamaged: the stored decision was changed.
    """
    entry = lake.model(model)
    stored = stored_decision(lake, model, decision["evidence_digest"])
    newest = lake.ledger(model).read().newest
    champion = f"version {newest.version}, since {newest.effective_from}" if newest else "none yet"
    nights, incumbent = stored.evidence["test"]["nights"], incumbent_words(entry, stored.incumbent)
    tables = (
        improvements_table("improvements", stored.checks, incumbent, stored.rows, len(nights)),
        segments_table("segments", stored.checks),
        other_checks_table("checks", stored.checks),
    )
    reasons = markdown_text(" ".join(str(reason) for reason in stored.reasons))
    lines = [
        f"**The gate's verdict: {stored.verdict}.** {reasons}",
        "",
        f"- Model: {markdown_text(entry.title)} (`{model}`), version {stored.version}, trained on what was known on "
        f"{stored.as_of}",
        f"- Champion: {champion}. Judged against: {markdown_text(incumbent)}",
        f"- Asked for by: {markdown_text(asked_by(lake, model, stored.as_of))}",
        f"- Waiting since {instant(asked_at)}, until {instant(asked_at + entry.approval_timeout)}",
        f"- Test nights: {f'{nights[0]} to {nights[-1]}' if nights else 'none'}",
        f"- Model card: {_link(model_card)}",
        f"- Evidence: `{stored.evidence_digest}`",
        "",
        *(line for table in tables for line in (markdown_table(table), "")),
        f"**Approve**: version {stored.version} scores every night after your answer. **Reject**, or no answer within "
        f"{format_duration(entry.approval_timeout)}: the champion stays. Either way, give a reason: it is kept with"
        " your name.",
    ]
    return Form(
        f"{entry.title}: promote version {stored.version}, as of {stored.as_of}?",
        "\n".join(lines),
        stored.evidence_digest,
    )


def asked_by(lake: Lake, model: str, as_of: date) -> str:
    """Who asked for the training as of that night, and why; persons first."""
    requests = read_requests_of(lake, [model], Interval.of(as_of), requested_only=True)
    persons = [f"{request.by}: {request.reason}" for request in requests if request.actor == PERSON]
    policy = [f"the policy: {request.reason}" for request in requests if request.actor != PERSON]
    return "; ".join(persons + policy) or "nobody on record: the training was started in Airflow"


def _link(model_card: str | None) -> str:
    if not model_card:
        return "none"
    is_address = model_card.startswith(("http://", "https://", "/")) and " " not in model_card
    return f"[{model_card}]({model_card})" if is_address else f"`{model_card}`"

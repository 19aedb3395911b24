"""What a request for a retraining led to: run, judgement, a person's word, promotion, and what it gained on later
labels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal, get_args

from config.calendar import Interval
from lake.lake import Lake
from lake.ledger import Promotion
from lake.promotions import project_promotions, stored_promotions
from lake.stored_rollouts import project_rollouts
from monitoring.alerting.actions import DONE, read_actions
from monitoring.alerting.runs import ENDED, FAILED, Run, read_runs, read_waiting
from monitoring.matured import JudgedNight, Key, Pooled, judged_nights, pooled
from monitoring.retraining_requests import PERSON, RequestRecord, project_requests, read_requests_of
from training.registry.approval import Approval, project_approvals
from training.registry.decision import project_decisions
from training.registry.records import DecisionRecord, read_approvals_of, read_decisions_of

State = Literal[
    "asked", "training", "failed", "refused", "not evaluated", "waiting", "rejected", "lapsed", "passed", "promoted"
]
STATES: tuple[State, ...] = get_args(State)
# Nights on either side of a promotion that its gain is read from: four whole weeks.
GAIN_NIGHTS = 28
_MOST_ASKED = 200


@dataclass(frozen=True)
class Led:
    """A request with what came of it; None where it did not get that far."""

    request: RequestRecord
    run: Run | None = None
    decision: DecisionRecord | None = None
    answer: Approval | None = None
    promotion: Promotion | None = None
    asks: bool = False

    @property
    def state(self) -> State:
        """How far it got."""
        return state_of(self.run, self.decision, self.answer, self.promotion, asks=self.asks)


def state_of(
    run: Run | None,
    decision: DecisionRecord | None,
    answer: Approval | None,
    promotion: Promotion | None,
    *,
    asks: bool,
) -> State:
    """How far a request got; the furthest that is on record counts.

    Args:
        asks: whether the catalog asks for a person's approval.
    """
    if promotion is not None:
        return "promoted"
    if decision is not None and decision.verdict == "promote":
        if answer is not None and answer.answer in ("rejected", "lapsed"):
            return "rejected" if answer.answer == "rejected" else "lapsed"
        over = run is not None and run.state in ENDED
        if over and run is not None and run.state == FAILED:
            return "failed"
        # A run that is over without a promotion was a dry one.
        return "passed" if over or not asks or answer is not None else "waiting"
    if decision is not None:
        return "refused" if decision.verdict == "refuse" else "not evaluated"
    if run is None:
        return "asked"
    # An ended run without a judgement has failed, or its judgement is gone.
    return "failed" if run.state in ENDED else "training"


@dataclass(frozen=True)
class Gain:
    """Error over baseline of a version on the nights it scored, and of the one before it on its last ones.

    Attributes:
        metric: the gate's, of that output.
        after, before: None where no night is judged yet, or was.
        improvement: `1 - after / before`, None where either is missing.
    """

    output: str
    metric: str
    after: Pooled | None
    before: Pooled | None

    @property
    def improvement(self) -> float | None:
        """Share of the former error, over its baseline, that is gone."""
        return (
            None
            if self.after is None or self.before is None or not self.before.ratio
            else 1 - self.after.ratio / self.before.ratio
        )


def project_records(lake: Lake, models: Collection[str]) -> int:
    """Bring SQL up to date with those models' requests, decisions, answers, promotions and rollouts, where a run was
    killed between Delta and SQL or SQL is new; rows written.
    """
    kinds = (project_requests, project_decisions, project_approvals, project_promotions, project_rollouts)
    return sum(project(lake, model) for model in models for project in kinds)


def requests_with_outcome(lake: Lake, models: Collection[str], interval: Interval | None) -> list[Led]:
    """Every request about the nights of a period with what it led to, the newest first; a handful of queries for all
    models.
    """
    requests = read_requests_of(lake, models, interval, requested_only=True)
    requests += _just_asked(lake, models, interval, requests)
    if not requests:
        return []
    span = Interval.closed(min(r.as_of for r in requests), max(r.as_of for r in requests))
    runs = read_runs(lake, subjects=list(models), kinds=["train"], keys=span)
    decisions = read_decisions_of(lake, models, span)
    answers = read_approvals_of(lake, models, span)
    return led_to(lake, requests, runs, decisions, answers, stored_promotions(lake, models))


def _just_asked(
    lake: Lake, models: Collection[str], interval: Interval | None, known: Collection[RequestRecord]
) -> list[RequestRecord]:
    """What persons asked for through the pages, and the run that they started has not recorded yet."""
    recorded = {(request.model, request.as_of) for request in known if request.actor == PERSON}
    asked = []
    for action in read_actions(lake, actions=("request_retraining",), limit=_MOST_ASKED):
        if action.outcome != DONE or action.subject not in models or "as_of" not in action.details:
            continue
        as_of = date.fromisoformat(action.details["as_of"])
        if (action.subject, as_of) in recorded or (interval is not None and as_of not in interval):
            continue
        recorded.add((action.subject, as_of))
        evidence = {"trigger": PERSON, "dag_run_id": action.details["dag_run_id"]}
        asked.append(RequestRecord(action.subject, as_of, PERSON, action.by, True, PERSON, action.reason, evidence))
    return asked


def led_to(
    lake: Lake,
    requests: Iterable[RequestRecord],
    runs: Iterable[Run],
    decisions: Iterable[DecisionRecord],
    answers: Iterable[Approval],
    promotions: Iterable[Promotion],
) -> list[Led]:
    """Requests matched by model and as-of night with the last run, judgement, answer and promotion; those that share a
    night share them.
    """
    run_of = {(run.subject, run.partition_key): run for run in runs}
    decision_of = {(d.model, d.as_of): d for d in decisions}
    answer_of = {(a.model, a.evidence_digest): a for a in answers}
    promotion_of = {(p.model, p.evidence_digest): p for p in promotions if p.kind == "promotion"}
    outcomes = []
    for request in requests:
        decision = decision_of.get((request.model, request.as_of))
        digest = decision.evidence_digest if decision else ""
        outcomes.append(
            Led(
                request,
                run_of.get((request.model, request.as_of.isoformat())),
                decision,
                answer_of.get((request.model, digest)),
                promotion_of.get((request.model, digest)),
                asks=lake.model(request.model).approval == "required",
            )
        )
    return sorted(
        outcomes, key=lambda led: (led.request.as_of, led.request.actor != "person", led.request.model), reverse=True
    )


def waiting_for_approval(lake: Lake, models: Collection[str]) -> list[DecisionRecord]:
    """Promotions that wait for a person: passed by the gate, asked for by their run, neither answered nor promoted nor
    overtaken.
    """
    # Between the gate's word and Airflow's question there is nothing to answer yet.
    asked = {waiting.model for waiting in read_waiting(lake)}
    asking = [name for name in models if name in asked]
    if not asking:
        return []
    newest: dict[str, DecisionRecord] = {decision.model: decision for decision in read_decisions_of(lake, asking)}
    passed = [decision for decision in newest.values() if decision.verdict == "promote"]
    if not passed:
        return []
    answered = {(answer.model, answer.evidence_digest) for answer in read_approvals_of(lake, asking)}
    highest: dict[str, int] = {}
    promoted = set()
    for promotion in stored_promotions(lake, asking):
        promoted.add((promotion.model, promotion.evidence_digest))
        highest[promotion.model] = max(highest.get(promotion.model, 0), promotion.version)
    span = Interval.closed(min(d.as_of for d in passed), max(d.as_of for d in passed))
    state = {
        (run.subject, run.partition_key): run.state
        for run in read_runs(lake, subjects=asking, kinds=["train"], keys=span)
    }
    return [
        d
        for d in passed
        if (d.model, d.evidence_digest) not in answered | promoted
        and d.version > highest.get(d.model, 0)
        and state.get((d.model, d.as_of.isoformat())) not in ENDED
    ]


def gains(
    lake: Lake, promotions: Sequence[Promotion], ledger: Mapping[str, Sequence[Promotion]]
) -> dict[tuple[str, int], list[Gain]]:
    """By model and ledger sequence: the gain of each promotion, one an output; all in one query.

    Args:
        ledger: every line of those models, in order.
    """
    if not promotions:
        return {}
    reach = timedelta(days=3 * GAIN_NIGHTS)
    starts = [p.effective_from for p in promotions]
    models = sorted({p.model for p in promotions})
    nights = judged_nights(lake, models, Interval(min(starts) - reach, max(starts) + reach))
    by_version = {}
    for promotion in promotions:
        former = former_champion(ledger.get(promotion.model, ()), promotion)
        ended = next(
            (p.effective_from for p in ledger.get(promotion.model, ()) if p.sequence > promotion.sequence), None
        )
        by_version[(promotion.model, promotion.sequence)] = [
            _gain(lake, promotion, output, former, ended, nights) for output in lake.model(promotion.model).outputs
        ]
    return by_version


def former_champion(lines: Iterable[Promotion], promotion: Promotion) -> Promotion | None:
    """Who was champion until that promotion took effect."""
    before = [line for line in lines if line.sequence < promotion.sequence]
    return max(before, key=lambda line: (line.effective_from, line.sequence), default=None)


def _gain(
    lake: Lake,
    promotion: Promotion,
    output: str,
    former: Promotion | None,
    ended: date | None,
    nights: Mapping[Key, Sequence[JudgedNight]],
) -> Gain:
    metric = lake.model(promotion.model).outputs[output].metric
    known = nights.get((promotion.model, output), ())
    mine = [
        n
        for n in known
        if n.version == promotion.version and n.night >= promotion.effective_from and (ended is None or n.night < ended)
    ]
    theirs = [
        n for n in known if former is not None and n.version == former.version and n.night < promotion.effective_from
    ]
    after = pooled(mine[:GAIN_NIGHTS], metric) if mine else None
    before = pooled(theirs[-GAIN_NIGHTS:], metric) if theirs else None
    return Gain(output, metric.name, after, before)

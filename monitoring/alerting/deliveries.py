"""How rollouts stand, for pages, messages and Prometheus: the ledger and the newest evening, in an operator's words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from config.calendar import Interval
from config.catalog.model import ModelEntry
from lake.assignment import CHALLENGER
from lake.lake import Lake
from lake.metric_queries import Row, read_newest_nights
from lake.publication_queries import PublishedNight, published_nights
from lake.rollouts import Rollout, RolloutLine, RolloutSnapshot
from lake.stored_rollouts import stored_rollouts
from monitoring.rollout.checks import GROUP, GUARDRAIL, HARM
from monitoring.rollout.outlook import outlook, served
from serving.predictions import predictions_table
from training.registry.delivery import told

STRATEGIES = {
    "immediate": "immediate",
    "shadow": "shadow",
    "canary": "canary",
    "blue_green": "blue-green",
    "rolling": "rolling",
    "ab_test": "A/B test",
}
NOT_IN_SERVICE = "not in service"
_FOREVER = date(9999, 1, 1)


@dataclass(frozen=True)
class Delivery:
    """A rollout as people see it.

    Attributes:
        nights, nights_in_step: scored, in all and in the step that holds.
        newest: the last of them, None before the first.
        judged: metrics of the newest evening that judged it, segments' too; none before the first.
    """

    entry: ModelEntry
    rollout: Rollout
    nights: int
    nights_in_step: int
    newest: date | None
    judged: tuple[Row, ...]

    @property
    def alone(self) -> bool:
        """Whether there is no champion beside it: it scores and serves nothing."""
        return bool(self.rollout.settings.get("alone"))

    @property
    def served_share(self) -> float:
        """Share of the units, or, of groups, of the rows, that the challenger serves in the step that holds."""
        return self.rollout.steps[self.rollout.step].share if self.rollout.running else 0.0

    @property
    def strategy(self) -> str:
        """Its name for people."""
        return STRATEGIES[self.rollout.strategy]

    @property
    def harms(self) -> tuple[Row, ...]:
        """Bounds of the harm on all rows, one an output."""
        return tuple(row for row in self.judged if row["check"] == HARM and not row["segment"])

    @property
    def guardrails(self) -> tuple[Row, ...]:
        """What was looked at before labels."""
        return tuple(row for row in self.judged if row["check"].startswith(GUARDRAIL))


def running_deliveries(lake: Lake, models: Collection[str]) -> dict[str, Delivery]:
    """By model: the rollout that goes on, in the models' order; three queries for all of them."""
    stored = stored_rollouts(lake, models)
    going = {name: stored[name].running for name in models if name in stored}
    rollouts = {name: rollout for name, rollout in going.items() if rollout is not None}
    if not rollouts:
        return {}
    since = Interval(min(rollout.started.effective_from for rollout in rollouts.values()), _FOREVER)
    tables = {name: _table(lake, name) for name in rollouts}
    published = published_nights(lake, tables.values(), since)
    rows: dict[str, list[Row]] = {}
    for row in read_newest_nights(lake, list(rollouts), segments=True, role=CHALLENGER):
        if row["source_table"] == f"{row['subject']}/metrics/{GROUP}":
            rows.setdefault(row["subject"], []).append(row)
    return {
        name: delivery_of(lake.model(name), rollout, published.get(tables[name], {}), rows.get(name, ()))
        for name, rollout in rollouts.items()
    }


def delivery_of(
    entry: ModelEntry, rollout: Rollout, published: Mapping[date, PublishedNight], judged: Sequence[Row]
) -> Delivery:
    """A rollout with its nights and what its newest evening says.

    Args:
        published: nights of the model's predictions, those of the rollout among them.
        judged: metrics of its newest evening; of an evening before it began they are left out.
    """
    steps = {night: step for night, step in steps_of(rollout, published).items() if step is not None}
    own = [row for row in judged if row["data_date"] >= rollout.started.effective_from]
    in_step = sum(step == rollout.step for step in steps.values())
    return Delivery(entry, rollout, len(steps), in_step, max(steps, default=None), tuple(own))


def steps_of(rollout: Rollout, published: Mapping[date, PublishedNight]) -> dict[date, int | None]:
    """By night: the step that it was published with; None where the rollout's challenger did not score it."""
    steps: dict[date, int | None] = {}
    for night, publication in published.items():
        units = [a.units for a in publication.scored_by if a.role == CHALLENGER and a.units is not None]
        steps[night] = next((u.step for u in units if u.rollout == rollout.started.sequence), None)
    return steps


def _table(lake: Lake, model: str) -> str:
    entry = lake.model(model)
    return predictions_table(lake.settings, entry, lake.dataset(entry.dataset)).name


# ---- in words ------------------------------------------------------------------------------------------------------


def step_text(delivery: Delivery) -> str:
    """`step 2 of 4`; of a rollout that serves nothing, that it does."""
    if delivery.alone:
        return NOT_IN_SERVICE
    return f"step {delivery.rollout.step + 1} of {len(delivery.rollout.steps)}"


def share_text(delivery: Delivery) -> str:
    """Whom the challenger serves in the step that holds."""
    if delivery.alone or not delivery.rollout.running:
        return "nothing"
    return served(delivery.rollout, delivery.rollout.steps[delivery.rollout.step])


def guardrails_text(delivery: Delivery) -> str:
    """What the guardrails say on the newest evening, the breached ones in full."""
    if delivery.alone:
        return "none: there is no champion to compare with"
    rails = delivery.guardrails
    if not rails:
        return "not evaluated: no night of it was judged yet"
    breached = [row for row in rails if row["status"] == "failing"]
    unknown = sum(row["status"] == "not_evaluated" for row in rails)
    holding = f"{len(rails) - len(breached) - unknown} of {len(rails)} hold"
    holding += f", {unknown} not evaluated" if unknown else ""
    said = [str(row["reason"]) for row in breached if row["reason"]]
    return f"{len(breached)} breached: {' '.join(said)} {holding}." if breached else f"{holding}."


def evidence_text(delivery: Delivery) -> str:
    """What matured labels say of the harm, output by output, then of the segments where it is shown."""
    if delivery.alone:
        return "its errors stand on the model's page; there is no champion to compare with"
    several = len(delivery.entry.outputs) > 1
    said = [f"{row['column']}: {row['reason']}" if several else str(row["reason"]) for row in delivery.harms]
    said += [
        str(row["reason"])
        for row in delivery.judged
        if row["check"] == HARM and row["segment"] and row["status"] == "failing"
    ]
    return " ".join(said) or "not evaluated: no night of it has mature labels yet"


def next_decision(delivery: Delivery) -> str:
    """What happens next, and when."""
    return outlook(delivery.rollout, nights=delivery.nights, nights_in_step=delivery.nights_in_step)


# ---- what is told --------------------------------------------------------------------------------------------------


def news_of(snapshot: RolloutSnapshot, night: date) -> list[RolloutLine]:
    """What the summary of a night tells of rollouts: what its own evening did, and what persons, the gate or the
    scoring did that counts from it on. That an evening left a rollout where it was is no news.
    """
    own = (line for line in snapshot.lines if line.night == night and line.kind != "held")
    others = (line for line in snapshot.lines if line.night is None and line.effective_from == night)
    return sorted([*own, *others], key=lambda line: line.sequence)


def sentence_of(line: RolloutLine) -> str:
    """A line of the ledger with its reason, without the model's name, which stands above it."""
    return f"{told(line).removeprefix(f'{line.model}: ')}: {line.reason}"

"""Two rollouts of the generated year: one of store_demand goes on, one of parcel_duration ended with a new champion."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Any

import numpy as np

from config.calendar import ONE_DAY
from lake.assignment import CHALLENGER, CHAMPION, Assignment, Units
from lake.lake import Lake
from lake.metrics import METRIC_SCHEMA, Metric
from lake.rollouts import RolloutLine, RolloutSnapshot
from monitoring.rollout.checks import CHALLENGER_LOSS, CHAMPION_LOSS, GUARDRAIL, HARM

if TYPE_CHECKING:
    from tests.generated_year import Story

RUNNING, FINISHED = 6, 1  # by model's number
BLOCKS = {
    RUNNING: "rollout: {strategy: canary, unit: [store], steps: [0.05, 0.25, 0.5, 1.0], nights: 3}",
    FINISHED: "rollout: {strategy: rolling, unit: [parcel], by: depot, nights: 1}",
}
_MATURES_AFTER, _STEP_NIGHTS, _RUNNING_NIGHTS = 2, 3, 9


@dataclass(frozen=True)
class Planted:
    """One rollout: version and artifact of its challenger, positions of its first night and of the one after its last,
    and what the catalog said.
    """

    version: int
    digest: str
    first: int
    end: int
    settings: Mapping[str, Any]

    def step(self, night: int) -> int | None:
        """The step of a night, None outside."""
        if not self.first <= night < self.end:
            return None
        each = 1 if self.settings["strategy"] == "rolling" else _STEP_NIGHTS
        return min((night - self.first) // each, len(self.settings["steps"]) - 1)


def planted(story: Story, groups: Mapping[str, int], next_digest: str) -> Planted | None:
    """The rollout of a model; None for those that have none."""
    block = story.entry.stepwise
    if block is None:
        return None
    steps = block.planned(groups)
    settings = {**block.model_dump(mode="json", by_alias=True), "salt": "generated", "steps": steps}
    if story.number == RUNNING:
        return Planted(
            story.versions[-1].number + 1, next_digest, story.scored - _RUNNING_NIGHTS, story.scored, settings
        )
    newest = story.versions[-1]
    first = newest.from_night - len(steps)
    return Planted(newest.number, newest.digest, first, newest.from_night, settings) if first > 0 else None


def assignments(rollout: Planted, night: int, champion: Assignment) -> list[Assignment]:
    """Who scored a night of the model."""
    step = rollout.step(night)
    if step is None:
        return [champion]
    share, groups = rollout.settings["steps"][step]["share"], rollout.settings["steps"][step].get("groups")
    units = Units(
        1, step, "generated", tuple(rollout.settings["unit"]), rollout.settings.get("by"), groups and tuple(groups)
    )
    challenger = Assignment(CHALLENGER, rollout.version, rollout.digest, share, 1 + step, units)
    return [challenger, replace(champion, served_share=1.0 - share)]


def metric_tuples(story: Story, rollout: Planted, rows: np.ndarray[Any, np.dtype[np.int64]]) -> list[tuple[Any, ...]]:
    """Rows of the SQL table `metrics`: losses of both as they mature, bounds of the harm that narrow, guardrails."""
    source = f"{story.entry.name}/metrics/rollout"
    told = []
    for metric in _metrics(story, rollout, rows):
        values = (getattr(metric, field.name) for field in METRIC_SCHEMA)
        told.append((source, 1, *(value.isoformat() if isinstance(value, date) else value for value in values)))
    return told


def _metrics(story: Story, rollout: Planted, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[Metric]:
    random = np.random.default_rng([story.seed, story.number, 9])
    champion_version = story.champions[rollout.first]
    for name, output in story.entry.outputs.items():
        level = 0.15 if output.task == "event" else 18.0
        errors = level * random.normal(1, 0.06, rollout.end - rollout.first)
        harms = -0.03 * level + level * random.normal(0, 0.02, len(errors))
        tolerance = 0.02 * level
        for place, night in enumerate(range(rollout.first, rollout.end)):
            day = story.day(night)
            about: dict[str, Any] = {"reference": f"the rollout of version {rollout.version}", "column": name}
            for check, value, limit in (("finite", 0.0, 0.0), ("shift", 0.08, 0.21)):
                yield Metric(
                    story.entry.name, day, day, f"{GUARDRAIL}{check}", "ok", value=value, threshold=limit,
                    role=CHALLENGER, model_version=rollout.version, **about,
                )  # fmt: skip
            known = place - _MATURES_AFTER + 1
            if known < 1:
                said = "No night of the rollout has mature labels yet."
                yield Metric(
                    story.entry.name, day, day, HARM, "not_evaluated", reason=said, role=CHALLENGER,
                    model_version=rollout.version, **about,
                )  # fmt: skip
                continue
            judged = known - 1
            sides = (
                (CHAMPION_LOSS, CHAMPION, champion_version, errors[judged]),
                (CHALLENGER_LOSS, CHALLENGER, rollout.version, errors[judged] + harms[judged]),
            )
            for check, role, version, value in sides:
                yield Metric(
                    story.entry.name, story.day(night - _MATURES_AFTER), day, check, "ok", value=round(float(value), 6),
                    n=int(rows[night]), role=role, model_version=version, **about,
                )  # fmt: skip
            harm, width = float(harms[:known].mean()), 0.12 * level / known**0.5
            unit = " minutes" if level > 1 else ""
            bounds = f"between {-(harm - width):.3g}{unit} lower and {harm + width:.3g}{unit} higher"
            if harm + width <= 0:
                bounds = f"{-(harm + width):.2g} to {-(harm - width):.2g}{unit} lower"
            yield Metric(
                story.entry.name, day, day, HARM, "ok", value=round(harm, 6), lower=round(harm - width, 6),
                upper=round(harm + width, 6), threshold=tolerance, n=known, role=CHALLENGER,
                reason=f"After {known} nights the challenger's {output.metric.title} is {bounds} than the champion's.",
                model_version=rollout.version, **about,
            )  # fmt: skip


def write_ledger(lake: Lake, story: Story, rollout: Planted) -> None:
    """Its lines: started, a step after the other, and of the one that ended its end."""
    ledger = lake.rollouts(story.entry.name)
    snapshot: RolloutSnapshot = ledger.read()
    first = story.day(rollout.first)
    line = RolloutLine(
        story.entry.name,
        rollout.version,
        "started",
        first - ONE_DAY,
        first,
        datetime.combine(first, time(3), UTC),
        "gate",
        rollout.digest,
        f"evidence-{rollout.version}",
        "Every check passed on 14 days of test.",
        settings=json.dumps(dict(rollout.settings)),
    )
    snapshot = ledger.append(line, seen=snapshot)
    for night in range(rollout.first + 1, rollout.end + (story.number == FINISHED)):
        step, before = rollout.step(night), rollout.step(night - 1)
        if step == before:
            continue
        day = story.day(night)
        moved = replace(
            line,
            kind="advanced" if step is not None else "finished",
            step=step if step is not None else before or 0,
            night=day - ONE_DAY,
            effective_from=day,
            decided_at=datetime.combine(day, time(1), UTC),
            by=f"asset_triggered__{day - ONE_DAY}",
            reason="3 nights without harm. The challenger's MAE is lower than the champion's.",
            settings="",
        )
        snapshot = ledger.append(moved, seen=snapshot)

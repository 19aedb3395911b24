"""Rollouts of the toy: a champion, a challenger beside it, and nights scored one after the other."""

from __future__ import annotations

from datetime import UTC, date, datetime
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
from pydantic import TypeAdapter

from config.calendar import ONE_DAY, Interval
from config.catalog.rollout import AnyRollout, Stepwise
from lake.assignment import scored_by
from lake.lake import Lake
from lake.ledger import Promotion
from lake.rollouts import RolloutLine
from serving.predictions import predictions_table
from serving.projection import project_predictions
from serving.score import score
from tests.serving.scenario import FIRST_CHAMPION, MODEL, promote, publish_inputs, store_model
from training.registry.decision import Decision
from training.registry.delivery import _started

FIRST = FIRST_CHAMPION


def block(**settings: Any) -> Stepwise:
    """A model's `rollout` block."""
    parsed = TypeAdapter(AnyRollout).validate_python({"unit": ["vehicle"], **settings})
    return cast(Stepwise, parsed)


def champion_with_nights(lake: Lake, nights: int = 1) -> Lake:
    """Inputs of a few weeks, a champion, and its first nights scored."""
    publish_inputs(lake, Interval.closed(date(2024, 1, 20), date(2024, 2, 2)))
    promote(lake, 1)
    for number in range(nights):
        scored(lake, FIRST + number * ONE_DAY)
    return lake


def next_unscored(lake: Lake, *_: Any, **__: Any) -> date:
    """In the place of `effective_from`, which waits for the night after the newest features: here all are there."""
    newest = lake.publications.newest(predictions_table(lake.settings, lake.model(MODEL)))
    return newest.data_date + ONE_DAY if newest else FIRST


def scored(lake: Lake, night: date) -> None:
    """Score and publish one night."""
    score(lake, MODEL, Interval.of(night), run_id=f"score {night}")
    project_predictions(lake, MODEL, Interval.of(night), run_id=f"score {night}")


def begin(lake: Lake, version: int = 2, *, slope: float = 1.5, alone: bool = False, **settings: Any) -> RolloutLine:
    """Start the rollout of a stored version, as `deliver` does after the gate."""
    decision = cast(
        Decision,
        SimpleNamespace(model=MODEL, version=version, evidence_digest=f"evidence-{version}", reasons=["it is better"]),
    )
    promotion = Promotion(
        model=MODEL,
        version=version,
        trained_until=FIRST - ONE_DAY,
        effective_from=FIRST if alone else next_unscored(lake),
        decided_at=datetime(2024, 1, 22, tzinfo=UTC),
        by="gate",
        artifact_digest=store_model(lake, slope),
        evidence_digest=f"evidence-{version}",
    )
    return _started(lake, decision, promotion, block(**settings), lake.rollouts(MODEL).read(), alone=alone)


def rows_of(lake: Lake, night: date) -> pa.Table:
    """A night's predictions."""
    return predictions_table(lake.settings, lake.model(MODEL)).read([night])


def served_by_challenger(lake: Lake, night: date) -> set[str]:
    """Units that a night's challenger serves; checks that each entity is served once."""
    rows = rows_of(lake, night)
    times: dict[Any, int] = {}
    for row in rows.to_pylist():
        key = tuple(row[name] for name in lake.model(MODEL).entity)
        times[key] = times.get(key, 0) + row["served"]
    assert set(times.values()) <= {1}, f"{night}: an entity is not served exactly once"
    return {row["ride"] for row in rows.to_pylist() if row["role"] == "challenger" and row["served"]}


def shares(lake: Lake, nights: list[date]) -> list[float | None]:
    """Served share of the challenger by the plan that each night was published with."""
    table = predictions_table(lake.settings, lake.model(MODEL))
    published = lake.publications.current(table)
    return [
        next((a.served_share for a in scored_by(night, published[night].details) if a.role == "challenger"), None)
        for night in nights
    ]

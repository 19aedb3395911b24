"""A lake whose nights cost little: rows by a formula in the place of Feast's, so that much can happen to a rollout in a
test.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import lake.publish as publishing
import training.registry.delivery as delivery
from config.calendar import ONE_DAY, Interval
from lake.assignment import CHAMPION, Plan, scored_by
from lake.lake import Lake
from lake.ledger import NoChampion, Promotion
from lake.lineage import Input
from lake.tables import LakeTable
from serving.predictions import predictions_table
from serving.projection import project_predictions
from serving.score import rescore, score
from tests import toy
from tests.serving.rollout.scenario import FIRST, begin, next_unscored
from tests.serving.scenario import MODEL, promote, use_linear

STRATEGIES: list[dict[str, Any]] = [
    {"strategy": "shadow"},
    {"strategy": "canary", "steps": [0.3, 0.6, 1.0]},
    {"strategy": "blue_green"},
    {"strategy": "rolling", "by": "depot"},
    {"strategy": "ab_test", "unit": ["ride"]},
]


@dataclass
class Rows:
    """In the place of `retrieve`. `restated`: nights with other values; `meanwhile`: called once, as rows are read."""

    restated: set[date] = field(default_factory=set)
    meanwhile: Callable[[], None] | None = None

    def __call__(self, _lake: Lake, _model: str, interval: Interval, *, folder: Path) -> Retrieved:
        if self.meanwhile is not None:
            first, self.meanwhile = self.meanwhile, None
            first()
        return Retrieved(interval, frozenset(self.restated))


@dataclass(frozen=True)
class Retrieved:
    """Rows of an interval as `retrieve` gives them."""

    interval: Interval
    restated: frozenset[date]
    too_late = 0

    @property
    def rows(self) -> pa.Table:
        return pa.concat_tables([_night(day, day in self.restated) for day in self.interval])

    @property
    def schema(self) -> pa.Schema:
        return self.rows.schema

    @property
    def inputs(self) -> dict[date, list[Input]]:
        return {day: [Input("rides/values", day, f"{day in self.restated}", 0)] for day in self.interval}

    def reader(self) -> pa.RecordBatchReader:
        return self.rows.to_reader()


@functools.cache
def _night(day: date, restated: bool) -> pa.Table:
    rides = toy.generate(Interval.of(day + ONE_DAY), per_day=8).bookings.sort_by("ride")
    of_nobody = pc.equal(rides["ride"], rides["ride"][0])
    return pa.table(
        {
            "event_date": rides["event_date"],
            "ride": rides["ride"],
            "vehicle": rides["vehicle"],
            "depot": pc.if_else(of_nobody, pa.scalar(None, pa.string()), rides["depot"]),
            "target_time_utc": rides["start_utc"],
            "data_date": pa.repeat(pa.scalar(day, pa.date32()), rides.num_rows),
            "vehicle_daily__rides_7d": rides["ride"],
            "vehicle_daily__minutes_7d": pc.add(pc.cast(rides["ride"], pa.float64()), 10.0 if restated else 0.0),
        }
    )


def use_rows(monkeypatch: pytest.MonkeyPatch, rows: Rows | None = None) -> Rows:
    """Let scoring and rollouts read these rows, load the linear model, and ask neither files nor MLflow."""
    rows = rows or Rows()
    use_linear(monkeypatch)
    monkeypatch.setattr("serving.score.retrieve", rows)
    monkeypatch.setattr("serving.rollout.population.retrieve", rows)
    monkeypatch.setattr(delivery, "check_files_of", lambda *_: None)
    monkeypatch.setattr(delivery, "repair_alias", lambda *_: None)
    monkeypatch.setattr(delivery, "effective_from", next_unscored)
    return rows


@dataclass
class World:
    """A lake, what is done to it, and what was published in it first."""

    lake: Lake
    rows: Rows
    versions: Iterator[int] = field(default_factory=lambda: itertools.count(2))
    digests: dict[date, str] = field(default_factory=dict)
    plans: dict[date, Plan] = field(default_factory=dict)
    overtaken: set[date] = field(default_factory=set)  # nights that were committed by a plan which had just changed

    @property
    def table(self) -> LakeTable:
        return predictions_table(self.lake.settings, self.lake.model(MODEL))

    def do(self, name: str, *arguments: Any) -> None:
        """One thing that happens; what cannot happen now is refused and changes nothing."""
        with suppress(delivery.NoRollout, delivery.LastStep, delivery.TooFewUnits, NoChampion):
            getattr(self, name)(*arguments)

    def night(self) -> None:
        """The next night as the DAGs have it: what was left open is settled, then it is scored and projected."""
        delivery.settle(self.lake, MODEL, by="next run")
        self._score(Interval.of(next_unscored(self.lake)))

    def skip(self) -> None:
        """The next night is missed, the one after it is scored."""
        self._score(Interval.of(next_unscored(self.lake) + ONE_DAY))

    def back_fill(self) -> None:
        """Every night up to the newest again, those that were missed among them."""
        published = self.published()
        if published:
            self._score(Interval.closed(min(published), max(published)))

    def _score(self, interval: Interval) -> None:
        score(self.lake, MODEL, interval, run_id="score")
        project_predictions(self.lake, MODEL, interval, run_id="score")

    def start(self, strategy: int) -> None:
        """A version passes the gate; one that runs is superseded."""
        version = next(self.versions)
        alone = self.lake.ledger(MODEL).read().newest is None
        begin(self.lake, version, slope=1.0 + version / 8, alone=alone, **STRATEGIES[strategy])

    def promote(self) -> None:
        """A version takes over at once, in the place of one that is rolled out."""
        version, rollouts = next(self.versions), self.lake.rollouts(MODEL).read()
        if rollouts.running is not None:
            by_whom = cast(Promotion, SimpleNamespace(model=MODEL, version=version, by="gate"))
            delivery._superseded(self.lake, by_whom, rollouts.running, rollouts)
        promote(self.lake, version, next_unscored(self.lake), slope=1.0 + version / 8)

    def move(self, name: str) -> None:
        """A person's word."""
        getattr(delivery, name)(self.lake, MODEL, by="ada", reason="because")

    def meanwhile(self, name: str) -> None:
        """A person's word, while the next night is computed."""
        self.rows.meanwhile = lambda: self.do("move", name)
        self.night()

    def at_the_commit(self, name: str) -> None:
        """A person's word, at the moment in which the next night is committed."""
        commit = publishing._commit
        delivery.settle(self.lake, MODEL, by="next run")
        self.overtaken.add(next_unscored(self.lake))
        with pytest.MonkeyPatch.context() as patched:

            def late(*arguments: Any) -> None:
                patched.undo()
                self.do("move", name)
                commit(*arguments)

            patched.setattr(publishing, "_commit", late)
            self._score(Interval.of(next_unscored(self.lake)))

    def restate(self, back: int) -> None:
        """A scored night's features are rewritten, and it is scored again on purpose."""
        night = max(self.published(), default=FIRST) - timedelta(days=back)
        if night in self.published():
            self.rows.restated ^= {night}
            self.digests.pop(night, None)
            rescore(self.lake, MODEL, Interval.of(night), run_id="rescore")

    def published(self) -> set[date]:
        return set(self.lake.publications.current(self.table))

    def check(self) -> None:
        """Once an entity and night; the plan, the versions and the digests that the night was published with."""
        returned = {line.effective_from for line in self.lake.rollouts(MODEL).read().lines if line.kind == "returned"}
        for day, publication in self.lake.publications.current(self.table).items():
            if self.digests.get(day) == publication.digest:
                continue
            plan = scored_by(day, publication.details)
            before = self.plans.setdefault(day, plan)
            assert [(a.role, a.version) for a in plan] == [(a.role, a.version) for a in before]
            if day in returned:
                self.plans[day] = plan
            else:
                assert [(a.served_share, a.units) for a in plan] == [(a.served_share, a.units) for a in before]
                assert day not in self.digests, f"{day} was published with other rows"
            self.digests[day] = publication.digest
            _check_served_once(self.table.read([day]), champion=CHAMPION in {a.role for a in plan})


def _check_served_once(rows: pa.Table, *, champion: bool) -> None:
    """Each entity once where there is a champion, else never; every role has the same entities."""
    times = rows.group_by("ride").aggregate([("served", "sum"), ("served", "count")])
    assert set(times["served_sum"].to_pylist()) == {1 if champion else 0}
    assert len(set(times["served_count"].to_pylist())) == 1

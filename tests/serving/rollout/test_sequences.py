"""Whatever happens to rollouts, and in whatever order: each entity of a night is served once, and a night that is
published stays as it is.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st

import lake.publish as publishing
import training.registry.delivery as delivery
from config.calendar import ONE_DAY, Interval
from lake.lake import Lake
from lake.projection import project
from lake.signed_lines import SignedLines
from serving.predictions import predictions_table
from serving.projection import project_predictions, sql_name
from serving.score import rescore, score
from tests import toy
from tests.serving.rollout.world import STRATEGIES, World, use_rows
from tests.serving.scenario import MODEL, promote

MOVES = st.sampled_from(["advance", "hold", "finish", "roll_back"])
HAPPENS = st.one_of(
    st.just(("night",)),
    st.just(("night",)),
    st.tuples(st.just("start"), st.integers(0, len(STRATEGIES) - 1)),
    st.tuples(st.just("move"), MOVES),
    st.tuples(st.sampled_from(["meanwhile", "at_the_commit"]), MOVES),
    st.sampled_from([("skip",), ("back_fill",), ("promote",)]),
)
EVENTS = st.one_of(
    HAPPENS,
    st.tuples(st.just("kill"), st.integers(0, 3), st.booleans(), HAPPENS),
    st.tuples(st.just("restate"), st.integers(0, 2)),
)
BLUE_GREEN = [("start", 2), ("night",), ("move", "advance"), ("night",)]


@contextmanager
def cut_at(count: int, after: bool) -> Iterator[None]:
    """End at the so-manieth commit, of whatever kind, before it or after it: a line, a night's rows, SQL's."""
    commits = itertools.count()

    def cut(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            here = next(commits) == count
            if here and not after:
                raise KeyboardInterrupt
            result = function(*arguments, **named)
            if here:
                raise KeyboardInterrupt
            return result

        return call

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SignedLines, "append", cut(SignedLines.append))
        patched.setattr(publishing, "_commit", cut(publishing._commit))
        patched.setattr("serving.projection.project", cut(project))
        yield


def happen(world: World, event: tuple[Any, ...]) -> None:
    """One event; a cut one is taken up again by the next night."""
    if event[0] != "kill":
        world.do(*event)
        return
    _, count, after, (name, *arguments) = event
    with suppress(KeyboardInterrupt), cut_at(count, after):
        world.do(name, *arguments)
    world.rows.meanwhile = None


def check_afterwards(world: World, home: Path) -> None:
    """After the next run: SQL serves the same, everything scored again changes nothing, and another lake that has these
    ledgers alone gets the same digests at one go.
    """
    lake = world.lake
    delivery.settle(lake, MODEL, by="next run")
    assert delivery.settle(lake, MODEL, by="one more") == []
    published = sorted(world.published())
    if not published:
        return
    project_predictions(lake, MODEL, Interval.of(published[-1]), run_id="again")
    world.check()
    for stretch in stretches(published):
        assert score(lake, MODEL, stretch, run_id="again").committed == 0
        assert rescore(lake, MODEL, stretch, run_id="again").committed == 0
    query = f"SELECT prediction_id, served FROM {sql_name(MODEL)} WHERE superseded_at IS NULL"
    with lake.engine.connect() as connection:
        stored = sorted((row[0], bool(row[1])) for row in connection.execute(sa.text(query)))
    rows = world.table.read(published)
    assert stored == sorted(zip(rows["prediction_id"].to_pylist(), rows["served"].to_pylist(), strict=True))

    twin = Lake(lake.settings.model_copy(update={"home": home, "sql_url": ""}), lake.catalog)
    shutil.copytree(lake.settings.home, home, ignore=shutil.ignore_patterns("predictions", "*.db*"))
    nights = [night for night in published if night not in world.overtaken]
    for stretch in stretches(nights):
        score(twin, MODEL, stretch, run_id="bulk")
    again = twin.publications.current(predictions_table(twin.settings, twin.model(MODEL)))
    twin.engine.dispose()
    assert {day: p.digest for day, p in again.items()} == {day: world.digests[day] for day in nights}


def stretches(nights: list[date]) -> Iterator[Interval]:
    """Consecutive nights together."""
    for _, stretch in itertools.groupby(enumerate(nights), key=lambda one: one[1] - one[0] * ONE_DAY):
        days = [day for _, day in stretch]
        yield Interval.closed(days[0], days[-1])


@settings(max_examples=5)  # besides the examples; a search of 30 found nothing more
@given(st.booleans(), st.lists(EVENTS, min_size=2, max_size=8))
@example(True, [*BLUE_GREEN, ("kill", 1, False, ("move", "roll_back")), ("move", "roll_back")])
@example(True, [*BLUE_GREEN, ("kill", 1, True, ("move", "roll_back")), ("move", "advance"), ("night",)])
@example(True, [*BLUE_GREEN, ("meanwhile", "roll_back"), ("night",)])
@example(True, [*BLUE_GREEN, ("at_the_commit", "roll_back"), ("night",)])
@example(True, [("start", 1), ("night",), ("kill", 0, True, ("move", "finish")), ("skip",), ("back_fill",)])
@example(True, [("start", 1), ("at_the_commit", "finish"), ("night",), ("start", 3), ("meanwhile", "advance")])
@example(False, [("start", 0), ("night",), ("at_the_commit", "roll_back"), ("promote",), ("night",)])
def test_each_entity_is_served_once_and_what_is_published_stays(champion: bool, events: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        world = World(toy.toy_lake(Path(folder) / "lake"), use_rows(patched))
        if champion:
            promote(world.lake, 1)
            world.night()
        for event in events:
            happen(world, event)
            world.check()
        check_afterwards(world, Path(folder) / "twin")
        world.lake.engine.dispose()

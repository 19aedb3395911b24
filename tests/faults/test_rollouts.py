"""A rollout meets kills, races, broken challengers, restates and forged lines: every night is served once an entity, by
the plan of its own night, and is not late.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

import lake.publish as publishing
import lake.signed_lines as signed_lines
import serving.score as scoring
import training.registry.delivery as delivery
from config.calendar import ONE_DAY, Interval
from config.catalog.load import load_catalog
from config.settings import Settings
from lake import rollouts as rollouts_module
from lake.chain import LedgerCut, LedgerUntrusted
from lake.delta import write_data_file
from lake.lake import Lake
from lake.projection import project
from lake.signed_lines import LedgerConflict, SignedLines
from serving.score import score
from serving.signed import ModelMissing
from tests.serving.rollout.scenario import FIRST, begin, rows_of, served_by_challenger, shares
from tests.serving.rollout.world import World, use_rows
from tests.serving.scenario import MODEL, LinearPredictor, promote

NIGHTS = [FIRST + number * ONE_DAY for number in range(8)]
CANARY: dict[str, Any] = {"strategy": "canary", "unit": ["ride"], "steps": [0.5, 1.0]}


@pytest.fixture
def world(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> World:
    """A champion that has scored one night."""
    world = World(toy_lake, use_rows(monkeypatch))
    promote(toy_lake, 1)
    world.night()
    return world


def nights(world: World, count: int) -> None:
    """So many nights more; each is looked at."""
    for _ in range(count):
        world.night()
        world.check()


def kinds(world: World) -> list[str]:
    return [line.kind for line in world.lake.rollouts(MODEL).read().lines]


# ---- kill -9 -------------------------------------------------------------------------------------------------------

Point = tuple[str, int, str]  # what is committed, the so-manieth of its kind, and whether half of it or all is there
BLUE_GREEN: Sequence[tuple[Any, ...]] = (("start", 2), ("night",), ("move", "advance"), ("night",))
RUNNING: Sequence[tuple[Any, ...]] = (("start", 1), ("night",))


def die_at(point: Point) -> None:
    """Let this process kill itself there."""
    kind, number, how = point
    module = {"line": signed_lines, "rows": publishing}.get(kind)
    calls = iter(range(100))

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    patched = pytest.MonkeyPatch()
    if how == "half" and module is not None:  # its file is there, no commit names it
        patched.setattr(module, "sync_data_files", dying(module.sync_data_files))
    elif kind == "line":
        patched.setattr(SignedLines, "append", dying(SignedLines.append))
    elif kind == "rows":
        patched.setattr(publishing, "_commit", dying(publishing._commit))
    else:
        patched.setattr("serving.projection.project", dying(project))


def in_a_process(home: Path, folder: Path, event: tuple[Any, ...], point: Point) -> None:
    settings = Settings(home=home, catalogs=(folder,), duckdb_memory_gb=1.0)
    world = World(Lake(settings, load_catalog(settings)), use_rows(pytest.MonkeyPatch()))
    die_at(point)
    world.do(*event)


def copied(world: World, home: Path) -> World:
    shutil.copytree(world.lake.settings.home, home)
    return World(Lake(world.lake.settings.model_copy(update={"home": home}), world.lake.catalog), world.rows)


@pytest.mark.parametrize(
    ("before", "event", "points"),
    [
        ((), ("start", 1), [("line", 0, "half"), ("line", 0, "all")]),
        (RUNNING, ("move", "advance"), [("line", 0, "half"), ("line", 0, "all")]),
        (
            RUNNING,
            ("move", "finish"),
            [("line", 0, "half"), ("line", 0, "all"), ("line", 1, "half"), ("line", 1, "all")],
        ),
        (RUNNING, ("move", "roll_back"), [("line", 0, "half"), ("line", 0, "all")]),
        (
            BLUE_GREEN,
            ("move", "roll_back"),
            [
                *[("line", 0, "all"), ("rows", 0, "half"), ("rows", 0, "all")],
                *[("sql", 0, "all"), ("line", 1, "half"), ("line", 1, "all")],
            ],
        ),
    ],
    ids=["start", "step", "finish", "rollback", "blue-green return"],
)
def test_a_kill_at_each_commit_is_repaired_by_the_next_run(
    world: World, tmp_path: Path, before: Sequence[tuple[Any, ...]], event: tuple[Any, ...], points: list[Point]
) -> None:
    for earlier in before:
        world.do(*earlier)
    lines = len(kinds(world))
    undisturbed = copied(world, tmp_path / "undisturbed")
    undisturbed.do(*event)
    nights(undisturbed, 2)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    for number, point in enumerate(points):
        cut = copied(world, tmp_path / f"cut-{number}")
        process = processes.Process(
            target=in_a_process, args=(cut.lake.settings.home, cut.lake.settings.catalogs[0], event, point)
        )
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, point
        if len(kinds(cut)) == lines:
            cut.do(*event)  # nothing was decided: the task, or the person, does it again
        nights(cut, 2)
        assert delivery.settle(cut.lake, MODEL, by="one more") == []
        assert cut.digests == {day: undisturbed.digests[day] for day in cut.digests}, point
        assert cut.published() == undisturbed.published()
        assert kinds(cut) == kinds(undisturbed)
        assert [p.version for p in cut.lake.ledger(MODEL).read().promotions] == [
            p.version for p in undisturbed.lake.ledger(MODEL).read().promotions
        ]
        cut.lake.engine.dispose()
    undisturbed.lake.engine.dispose()


# ---- at once -------------------------------------------------------------------------------------------------------


def test_two_monitors_that_decide_at_once_write_one_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(world.lake, **CANARY)
    world.night()
    append = SignedLines.append

    def overtaken(self: SignedLines, *arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(SignedLines, "append", append)
        delivery.roll_back(world.lake, MODEL, by="the other", reason="harm", night=NIGHTS[1])
        return append(self, *arguments, **named)

    monkeypatch.setattr(SignedLines, "append", overtaken)
    with pytest.raises(LedgerConflict, match="changed while this decision was"):
        delivery.advance(world.lake, MODEL, by="monitor", reason="no harm", night=NIGHTS[1])
    retried = delivery.advance(world.lake, MODEL, by="monitor", reason="no harm", night=NIGHTS[1])
    assert (retried.kind, retried.by) == ("rolled_back", "the other")
    assert kinds(world) == ["started", "rolled_back"]


def test_a_rollback_while_the_night_is_scored_counts_for_that_night(world: World) -> None:
    begin(world.lake, **CANARY)
    world.night()
    world.meanwhile("roll_back")
    nights(world, 1)
    assert shares(world.lake, NIGHTS[:4]) == [None, 0.5, None, None]
    assert world.lake.rollouts(MODEL).read().lines[-1].effective_from == NIGHTS[2]


def test_a_rollback_in_the_moment_of_the_commit_leaves_the_night_its_plan(world: World) -> None:
    begin(world.lake, **CANARY)
    world.at_the_commit("roll_back")
    nights(world, 1)
    assert shares(world.lake, NIGHTS[:3]) == [None, 0.5, None]
    assert score(world.lake, MODEL, Interval.closed(NIGHTS[0], NIGHTS[2]), run_id="again").committed == 0


# ---- what is broken ------------------------------------------------------------------------------------------------


def _gone(folder: Path, _: pytest.MonkeyPatch) -> None:
    folder.rename(folder.with_name("gone"))


def _tampered(folder: Path, _: pytest.MonkeyPatch) -> None:
    (folder / "model" / "slope.txt").write_text("3")


def _predicts(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[pa.Table], pa.Table]) -> None:
    whole = LinearPredictor.predict
    monkeypatch.setattr(
        LinearPredictor,
        "predict",
        lambda self, batch: spoil(whole(self, batch)) if self.slope == 1.5 else whole(self, batch),
    )


def _nan(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _predicts(monkeypatch, lambda rows: rows.set_column(0, "ride_minutes", pa.array([float("nan")] * rows.num_rows)))


def _raises(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _predicts(monkeypatch, lambda rows: rows.select(["no such column"]))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_gone, "version 2 was promoted, but its files are not in"),
        (_tampered, "its bytes were changed"),
        (_nan, "ride_minutes"),
        (_raises, "no such column"),
    ],
    ids=["gone", "tampered", "nan", "raises"],
)
def test_a_challenger_that_cannot_score_its_third_night_is_rolled_back_and_the_night_is_not_late(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path, pytest.MonkeyPatch], None],
    said: str,
) -> None:
    line = begin(world.lake, **CANARY)
    nights(world, 2)
    spoil(world.lake.settings.artifacts / MODEL / line.artifact_digest, monkeypatch)
    scoring._loaded.cache_clear()  # as in a new process
    nights(world, 1)
    assert set(rows_of(world.lake, NIGHTS[3])["version"].to_pylist()) == {1}
    last = world.lake.rollouts(MODEL).read().lines[-1]
    assert (last.kind, last.effective_from) == ("rolled_back", NIGHTS[3])
    assert said in last.reason


def test_where_the_champions_files_are_gone_no_challenger_is_to_blame(world: World) -> None:
    begin(world.lake, **CANARY)
    folder = world.lake.settings.artifacts / MODEL
    folder.rename(folder.with_name("gone"))
    scoring._loaded.cache_clear()  # as in a new process
    with pytest.raises(ModelMissing, match="version 1 was promoted, but its files are not in"):
        world.night()
    assert kinds(world) == ["started"]
    folder.with_name("gone").rename(folder)
    nights(world, 1)
    assert shares(world.lake, NIGHTS[:2]) == [None, 0.5]


# ---- what is rewritten, and whose unit is nobody's ------------------------------------------------------------------


def test_a_restate_in_the_middle_changes_values_and_nobodys_version(world: World) -> None:
    begin(world.lake, **CANARY)
    nights(world, 1)
    world.move("advance")
    nights(world, 1)
    before = rows_of(world.lake, NIGHTS[1])
    inside = served_by_challenger(world.lake, NIGHTS[1])
    world.restate(1)
    world.check()
    after = rows_of(world.lake, NIGHTS[1])
    assert after["ride_minutes"] != before["ride_minutes"]
    assert served_by_challenger(world.lake, NIGHTS[1]) == inside
    assert shares(world.lake, NIGHTS[:3]) == [None, 0.5, 1.0]
    assert kinds(world) == ["started", "advanced"]


@pytest.mark.parametrize("unit", [["depot"], ["ride"], ["event_date", "ride", "vehicle"]])
def test_a_unit_that_is_null_or_of_high_cardinality_is_served_once(world: World, unit: list[str]) -> None:
    begin(world.lake, strategy="ab_test", unit=unit)
    nights(world, 2)
    if unit == ["depot"]:
        # The first ride's depot is null: a unit of its own, which stays with one version.
        rows = pa.concat_tables([rows_of(world.lake, night) for night in NIGHTS[1:3]]).to_pylist()
        first = min(row["ride"] for row in rows)
        assert len({row["role"] for row in rows if row["ride"] == first and row["served"]}) == 1


def test_a_back_fill_across_the_start_the_steps_and_the_rollback_equals_the_nights(world: World) -> None:
    nights(world, 1)
    begin(world.lake, **CANARY)
    nights(world, 2)
    world.move("advance")
    nights(world, 1)
    world.move("roll_back")
    nights(world, 1)
    shutil.rmtree(world.lake.settings.lake / MODEL / "predictions")
    assert score(world.lake, MODEL, Interval.closed(NIGHTS[0], NIGHTS[5]), run_id="bulk").committed == 6
    assert {day: p.digest for day, p in world.lake.publications.current(world.table).items()} == world.digests
    assert shares(world.lake, NIGHTS[:6]) == [None, None, 0.5, 0.5, 1.0, None]


# ---- forged lines --------------------------------------------------------------------------------------------------


def stored(world: World) -> list[dict[str, Any]]:
    table = DeltaTable(str(world.lake.settings.lake / MODEL / "rollouts"))
    rows = [pq.read_table(uri, schema=rollouts_module._SCHEMA) for uri in table.file_uris()]
    lines: list[dict[str, Any]] = pa.concat_tables(rows).sort_by("sequence").to_pylist()
    return lines


def write_to_lake(world: World, row: dict[str, Any]) -> None:
    """A line as somebody without the key writes it."""
    root = world.lake.settings.lake / MODEL / "rollouts"
    data = pa.Table.from_pylist([row], schema=rollouts_module._SCHEMA)
    file = write_data_file(root, rollouts_module._SCHEMA, data.to_batches(), {})
    DeltaTable(str(root)).create_write_transaction([file], mode="append", schema=rollouts_module._SCHEMA)


@pytest.mark.parametrize(
    "edit",
    [
        lambda row: row | {"sequence": 3, "signature": None},
        lambda row: row | {"sequence": 3, "kind": "finished"},
        lambda row: row | {"sequence": 3, "effective_from": date(2024, 1, 1)},
        lambda row: row | {"sequence": 3},
    ],
    ids=["unsigned", "another kind", "another night", "said twice"],
)
def test_a_forged_line_moves_no_rollout(world: World, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    begin(world.lake, **CANARY)
    world.move("advance")
    write_to_lake(world, edit(stored(world)[-1]))
    with pytest.raises(LedgerUntrusted, match="line 3"):
        world.night()
    assert max(world.published()) == NIGHTS[0]


def test_a_line_that_another_key_signed_moves_no_rollout(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as another:
        another.setenv("MODEL_SIGNING_KEY", "the-key-of-somebody-else-of-32-characters")
        begin(world.lake, **CANARY)
    with pytest.raises(LedgerUntrusted, match="line 1 .* signed with another key"):
        world.night()
    assert max(world.published()) == NIGHTS[0]


def test_a_ledger_without_its_last_lines_is_noticed(world: World) -> None:
    begin(world.lake, **CANARY)
    world.move("advance")
    first = stored(world)[0]
    root = world.lake.settings.lake / MODEL / "rollouts"
    shutil.rmtree(root)
    root.mkdir()
    DeltaTable.create(str(root), schema=rollouts_module._SCHEMA, configuration={"delta.appendOnly": "true"})
    write_to_lake(world, first)
    with pytest.raises(LedgerCut, match="has 1 lines, of the 2 that were seen"):
        world.night()
    world.lake.rollouts(MODEL).accept()
    nights(world, 1)
    assert shares(world.lake, NIGHTS[:2]) == [None, 0.5]

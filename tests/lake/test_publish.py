"""Publishing: one commit or none, never half; refusals that write nothing; many writers, kills, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from config.calendar import Interval
from config.catalog.load import Catalog
from config.settings import ROOT, Settings
from lake import publish as publish_module
from lake.lake import Lake
from lake.lineage import Input, Lineage
from lake.publish import (
    DiskFull,
    DuplicateKey,
    RowsNotSorted,
    RowsOutsideInterval,
    SchemaMismatch,
    StalePublish,
    WriterPanicked,
)
from tests.conftest import missing_service
from tests.lake.conftest import FIRST, Items, item_rows, item_table, reader_of

WEEK = Interval(FIRST, FIRST + timedelta(days=7))
NIGHT = Interval.of(FIRST)


def test_published_rows_are_read_back_sorted(items: Items) -> None:
    rows = item_rows(WEEK)
    shuffled = rows.take(pa.array(np.random.default_rng(1).permutation(rows.num_rows)))
    published = items.publish(shuffled, WEEK)
    assert published.committed == tuple(WEEK)
    assert published.rows == rows.num_rows
    assert items.table.read().equals(rows.cast(items.table.schema))


def test_the_same_rows_again_commit_nothing(items: Items) -> None:
    first = items.publish(item_rows(WEEK), WEEK)
    again = items.publish(
        item_rows(WEEK).select(["on", "at", "value", "label", "data_date", "item"]),
        WEEK,
        lineage=Lineage("another run", "x", "y"),
    )
    assert again.committed == ()
    assert again.publications == first.publications
    assert items.table.load_or_create().version() == 1


def test_only_the_nights_that_differ_are_replaced(items: Items) -> None:
    items.publish(item_rows(WEEK), WEEK)
    rows = item_rows(WEEK)
    changed = rows.set_column(
        2, "value", pa.array([v + 1 if n in (4, 20) else v for n, v in enumerate(rows["value"].to_pylist())])
    )
    published = items.publish(changed, WEEK)
    assert published.committed == (FIRST + timedelta(days=1), FIRST + timedelta(days=5))
    assert items.table.read().equals(changed.cast(items.table.schema))
    assert {p.version for p in published.publications.values()} == {1, 2}
    assert items.table.read(version=1).equals(rows.cast(items.table.schema)), (
        "the old version is still there for those who cite it"
    )


def test_a_stream_gives_the_same_digests_as_a_table(items: Items, items_at: Callable[..., Items]) -> None:
    rows = item_rows(WEEK).cast(items.table.schema)
    other = items_at("other")
    items.publish(rows, WEEK)
    other.publish(reader_of(rows.to_batches(max_chunksize=3), rows.schema), WEEK)
    assert items.digests(WEEK) == other.digests(WEEK)


def test_an_empty_night_is_published_and_has_no_file(items: Items) -> None:
    published = items.publish(item_rows(NIGHT), Interval(FIRST, FIRST + timedelta(days=2)))
    assert [p.rows for p in published.publications.values()] == [4, 0]
    assert len(items.table.files()) == 1
    assert items.publish(item_rows(NIGHT), Interval(FIRST, FIRST + timedelta(days=2))).committed == ()


def test_rows_may_be_taken_away_again(items: Items) -> None:
    items.publish(item_rows(NIGHT), NIGHT)
    items.publish(item_rows(NIGHT).slice(0, 0), NIGHT)
    assert items.table.read().num_rows == 0
    assert items.table.read(version=1).num_rows == 4


def test_a_commit_carries_run_code_catalog_and_inputs(items: Items) -> None:
    used = Input("things/other", FIRST, "d" * 64, 3)
    published = items.publish(item_rows(NIGHT), NIGHT, lineage=Lineage("r7", "c", "k", {FIRST: [used]}, {"note": "x"}))
    publication = published.publications[FIRST]
    assert (publication.run_id, publication.code_version, publication.catalog_digest) == ("r7", "c", "k")
    assert publication.inputs == (used,)
    assert publication.details == {"note": "x"}
    assert publication.as_input() == Input("things/raw/items", FIRST, publication.digest, 1)


# ---- refusals: each message, and nothing written ---------------------------------------------------------------


def _refused(items: Items, error: type[Exception], rows: Any, interval: Interval = NIGHT, **kwargs: Any) -> str:
    before = items.table.load()
    version = before.version() if before else None
    with pytest.raises(error) as caught:
        items.publish(rows, interval, **kwargs)
    after = items.table.load()
    assert (after.version() if after else None) == version, "something was committed"
    assert not list(items.lake.settings.scratch.glob("*")), "staging was left behind"
    return str(caught.value)


def test_a_missing_an_unknown_and_a_retyped_column_are_named_together(items: Items) -> None:
    rows = item_rows(NIGHT).drop_columns(["label"]).append_column("extra", pa.array([1] * 4))
    rows = rows.set_column(rows.column_names.index("value"), "value", rows["value"].cast(pa.float32()))
    message = _refused(items, SchemaMismatch, rows)
    assert "label is missing" in message
    assert "extra is not declared" in message
    assert "value is float, needs double" in message
    assert message.startswith("SchemaMismatch: things/raw/items:")
    assert "Nothing was written" in message


def test_a_null_where_none_may_be_is_refused(items: Items) -> None:
    rows = item_rows(NIGHT)
    rows = rows.set_column(5, "data_date", pa.array([FIRST, FIRST, FIRST, None], pa.date32()))
    assert "1 rows have no data_date, which must not be null" in _refused(items, SchemaMismatch, rows)


def test_rows_outside_the_interval_are_refused(items: Items) -> None:
    assert "4 rows have data_date 2024-01-02, outside 2024-01-01" in _refused(
        items, RowsOutsideInterval, item_rows(Interval(FIRST, FIRST + timedelta(days=2)))
    )


@pytest.mark.parametrize("chunk", [4, 1])
def test_two_rows_of_one_key_are_refused_also_across_batches(items: Items, chunk: int) -> None:
    rows = item_rows(NIGHT).set_column(0, "item", pa.array([0, 1, 1, 2])).cast(items.table.schema)
    message = _refused(items, DuplicateKey, reader_of(rows.to_batches(max_chunksize=chunk), rows.schema))
    assert "two rows share the key {'data_date': datetime.date(2024, 1, 1), 'item': 1}" in message


@pytest.mark.parametrize("chunk", [4, 1])
def test_a_stream_out_of_order_is_refused(items: Items, chunk: int) -> None:
    rows = item_rows(NIGHT).set_column(0, "item", pa.array([0, 2, 1, 3])).cast(items.table.schema)
    assert "not sorted by (data_date, item)" in _refused(
        items, RowsNotSorted, reader_of(rows.to_batches(max_chunksize=chunk), rows.schema)
    )


def test_a_late_publisher_is_told_that_somebody_was_there(items: Items) -> None:
    seen = items.digests(NIGHT)
    items.publish(item_rows(NIGHT, seed=2), NIGHT)
    message = _refused(items, StalePublish, item_rows(NIGHT, seed=3), replaces=seen)
    held = items.digests(NIGHT)[FIRST]
    assert held
    assert (
        f"things/raw/items for 2024-01-01 holds digest {held[:12]}…, but this run began when it held nothing" in message
    )
    assert "Clear the task" in message


def test_a_late_publisher_of_the_same_rows_is_content(items: Items) -> None:
    seen = items.digests(NIGHT)
    items.publish(item_rows(NIGHT), NIGHT)
    assert items.publish(item_rows(NIGHT), NIGHT, replaces=seen).committed == ()


# ---- two at once -----------------------------------------------------------------------------------------------


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> threading.Barrier:
    """Let two publishers reach their commit before either commits; the first round only."""
    barrier = threading.Barrier(2, timeout=30)
    met: set[int] = set()

    def waiting(*args: Any, **kwargs: Any) -> None:
        if threading.get_ident() not in met:
            met.add(threading.get_ident())
            barrier.wait()
        commit(*args, **kwargs)

    commit = publish_module._commit
    monkeypatch.setattr(publish_module, "_commit", waiting)
    return barrier


def _outcomes(*calls: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(call) for call in calls]
        return [future.exception() or future.result() for future in futures]


def test_two_publishers_of_equal_rows_end_in_one_commit(items: Items, together: threading.Barrier) -> None:
    items.table.load_or_create()
    outcomes = _outcomes(*[lambda: items.publish(item_rows(WEEK), WEEK, replaces=dict.fromkeys(WEEK))] * 2)
    assert sorted(len(outcome.committed) for outcome in outcomes) == [0, 7]
    assert outcomes[0].publications == outcomes[1].publications
    assert items.table.read().equals(item_rows(WEEK).cast(items.table.schema))


def test_of_two_publishers_of_different_rows_one_wins_whole(items: Items, together: threading.Barrier) -> None:
    items.table.load_or_create()
    outcomes = _outcomes(
        *[
            lambda seed=seed: items.publish(item_rows(WEEK, seed=seed), WEEK, replaces=dict.fromkeys(WEEK))
            for seed in (1, 2)
        ]
    )
    lost = [isinstance(outcome, StalePublish) for outcome in outcomes]
    assert sorted(lost) == [False, True], outcomes
    assert items.table.read().equals(item_rows(WEEK, seed=1 + lost.index(False)).cast(items.table.schema))


def test_publishers_of_different_nights_both_get_through(items: Items, together: threading.Barrier) -> None:
    items.table.load_or_create()
    nights = [Interval.of(FIRST), Interval.of(FIRST + timedelta(days=1))]
    outcomes = _outcomes(
        *[lambda night=night: items.publish(item_rows(night), night, replaces=dict.fromkeys(night)) for night in nights]
    )
    assert [outcome.committed for outcome in outcomes] == [tuple(night) for night in nights]
    assert items.table.read().num_rows == 8


# ---- kill -9 ---------------------------------------------------------------------------------------------------

KILLED = """
    import os, signal, sys
    from pathlib import Path
    import pyarrow.parquet as pq
    from config.catalog.load import Catalog
    from config.settings import Settings
    from lake import publish as module
    from lake.lake import Lake
    from lake.lineage import Publications
    from tests.lake.conftest import Items, item_rows, item_table
    from tests.lake.test_publish import WEEK

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    point, home = sys.argv[1], Path(sys.argv[2])
    settings = Settings(home=home)
    items = Items(Lake(settings, Catalog(datasets=(), models=())), item_table(settings))
    seen = items.digests(WEEK)
    if point == "while staging":
        pq.ParquetWriter.write_batch = die
    elif point == "before the commit":
        module._commit = die
    elif point == "while the files are written":
        write = module.write_data_file
        def half(root, schema, batches, partition):
            def cut():
                for batch in batches:
                    yield batch.slice(0, batch.num_rows // 2)
                    die()
            write(root, schema, cut(), partition)
        module.write_data_file = half
    elif point == "after the commit":
        write = module._commit
        def last(*args, **kwargs):
            write(*args, **kwargs)
            die()
        module._commit = last
    elif point == "while the index is brought up to date":
        write, current = module._commit, Publications.current
        def then(*args, **kwargs):
            write(*args, **kwargs)
            Publications.current = die
        module._commit = then
    items.publish(item_rows(WEEK, seed=2), WEEK, replaces=seen)
"""
POINTS = (
    "while staging",
    "before the commit",
    "while the files are written",
    "after the commit",
    "while the index is brought up to date",
)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("there_before", [False, True], ids=["anew", "replacing"])
def test_killed_anywhere_and_retried_the_digests_are_those_of_an_undisturbed_run(
    point: str, there_before: bool, items: Items, items_at: Callable[..., Items], tmp_path: Path
) -> None:
    undisturbed = items_at("undisturbed")
    undisturbed.publish(item_rows(WEEK, seed=2), WEEK)
    old = item_rows(WEEK, seed=1).cast(items.table.schema)
    if there_before:
        items.publish(old, WEEK)
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), point, str(items.lake.settings.home)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    new = item_rows(WEEK, seed=2).cast(items.table.schema)
    found = items.table.read()
    committed = point in POINTS[3:]
    assert found.equals(new if committed else old if there_before else new.slice(0, 0)), (
        "readers see the old rows or the new ones, never half"
    )
    retried = items.publish(item_rows(WEEK, seed=2), WEEK)
    assert len(retried.committed) == (0 if committed else 7)
    assert items.digests(WEEK) == undisturbed.digests(WEEK)
    assert items.table.read().equals(new)


# ---- a full disk -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        missing_service(f"a small tmpfs cannot be mounted here ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


# Random numbers do not compress: a row takes about 17 bytes, in staging and then in the table.
@pytest.mark.parametrize("count", [150_000, 75_000], ids=["while staging", "while committing"])
def test_a_full_disk_leaves_the_old_rows_and_a_retry_with_room_ends_well(
    small_disk: Path, tmp_path: Path, count: int
) -> None:
    settings = Settings(home=small_disk / "var", sql_url=f"sqlite:///{tmp_path / 'index.db'}")
    items = Items(Lake(settings, Catalog(datasets=(), models=())), item_table(settings))
    items.publish(item_rows(NIGHT), NIGHT)
    big = item_rows(NIGHT, count=count, seed=3)
    with pytest.raises(DiskFull, match=r"(?is)things/raw/items.*no space.*Make room"):
        items.publish(big, NIGHT)
    assert items.table.read().equals(item_rows(NIGHT).cast(items.table.schema))
    assert not list(settings.scratch.glob("*")), "staging was left behind, on a full disk"
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert items.publish(big, NIGHT).committed == (FIRST,)
    assert items.table.read().equals(big.cast(items.table.schema))


def test_checkpoints_are_written_as_the_log_grows(items: Items, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_module, "_CHECKPOINT_EVERY", 2)
    for number in range(5):
        night = Interval.of(FIRST + timedelta(days=number))
        items.publish(item_rows(night), night)
    assert list(Path(items.table.location.uri, "_delta_log").glob("*.checkpoint.parquet"))
    assert items.table.read().num_rows == 20


def test_a_panic_of_the_writer_is_an_error_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no `Exception`: a scheduler would take it for a killed process, and try the task again."""
    panic = type("PanicException", (BaseException,), {})

    def panicking(*_: Any, **__: Any) -> None:
        raise panic("called `Option::unwrap()` on a `None` value")

    settings = Settings(home=tmp_path / "var")
    items = Items(Lake(settings, Catalog(datasets=(), models=())), item_table(settings))
    monkeypatch.setattr(DeltaTable, "create_write_transaction", panicking)
    with pytest.raises(WriterPanicked, match=r"(?s)things/raw/items: .*unwrap.*No partition was changed.*clear"):
        items.publish(item_rows(NIGHT), NIGHT)

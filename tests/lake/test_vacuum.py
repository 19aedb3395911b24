from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from config.calendar import Interval
from lake.leftovers import SETTLED_SECONDS
from lake.vacuum import LogIncomplete, data_files, orphans, remove_orphans, superseded_files, writing
from tests.lake.conftest import FIRST, Items, item_rows, items  # noqa: F401 (a fixture)

TWO = Interval(FIRST, FIRST + timedelta(days=2))
NIGHT = Interval.of(FIRST)


def left_by_a_dead_try(items: Items, name: str = "0" * 64 + "-" + "1" * 32 + ".parquet") -> Path:  # noqa: F811
    path = Path(items.table.location.uri, f"data_date={FIRST}", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"rows that no commit names")
    long_ago = time.time() - SETTLED_SECONDS - 60
    os.utime(path, (long_ago, long_ago))
    return path


def test_every_file_a_commit_names_has_its_life(items: Items) -> None:  # noqa: F811
    items.publish(item_rows(TWO), TWO)
    items.publish(item_rows(NIGHT, seed=2), NIGHT)
    files = sorted(data_files(items.table.location).values(), key=lambda file: (file.data_date, file.added))
    assert [(file.data_date, file.added, file.removed) for file in files] == [
        (FIRST, 1, 2),
        (FIRST, 2, None),
        (FIRST + timedelta(days=1), 1, None),
    ]
    replaced = files[0]
    assert [replaced.serves(version) for version in (0, 1, 2)] == [False, True, False]
    assert replaced.removed_at is not None
    assert abs((replaced.removed_at - datetime.now(UTC)).total_seconds()) < 60
    now = datetime.now(UTC)
    assert superseded_files(items.table.location, now + timedelta(seconds=1)) == [replaced]
    assert superseded_files(items.table.location, now - timedelta(days=1)) == []


def test_the_next_run_of_a_partition_takes_what_dead_tries_left_there(items: Items) -> None:  # noqa: F811
    items.publish(item_rows(TWO), TWO)
    former = items.table.read([FIRST], 1)
    dead, attempt = left_by_a_dead_try(items), left_by_a_dead_try(items, "." + "2" * 32)
    items.publish(item_rows(NIGHT, seed=2), NIGHT)
    assert not dead.exists()
    assert not attempt.exists()
    assert items.table.read([FIRST], 1).equals(former), "what a commit replaced is no orphan"


@pytest.mark.parametrize("why", ["young", "written by another"])
def test_files_of_a_live_try_stay(items: Items, why: str) -> None:  # noqa: F811
    items.publish(item_rows(TWO), TWO)
    path = left_by_a_dead_try(items)
    if why == "young":
        os.utime(path)
        assert remove_orphans(items.table.location) == []
    else:
        with writing(items.table.location):
            assert remove_orphans(items.table.location) == []
    assert path.is_file()


def test_a_log_without_its_beginning_tells_nothing(items: Items) -> None:  # noqa: F811
    items.publish(item_rows(TWO), TWO)
    path = left_by_a_dead_try(items)
    items.table.location.commit_path(0).unlink()
    with pytest.raises(LogIncomplete, match=r"holds 1 commits, the newest is 1; all since 0 are needed"):
        orphans(items.table.location)
    assert path.is_file()

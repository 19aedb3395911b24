"""A power cut keeps what was synced and nothing else; a lake that went back, or lost a file, is never green."""

from __future__ import annotations

import os
import shutil
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from config.calendar import Interval
from lake.delta import PartitionDamaged, TableDamaged
from lake.projection import project, sql_columns
from tests.lake.conftest import FIRST, Items, item_rows, items  # noqa: F401 (a fixture)

NIGHT = Interval.of(FIRST)
NEXT = Interval.of(FIRST + timedelta(days=1))
TORN = {"empty": lambda whole: b"", "zeros": lambda whole: bytes(len(whole)), "cut off": lambda whole: whole[:-9]}


class PowerCut(BaseException):
    """The machine is off."""


class Disk:
    """Remembers what was synced, in order; `cut` leaves of the files below a folder only that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.synced: list[tuple[str, Path]] = []
        self.cut_after: int | None = None
        self._content: dict[int, bytes] = {}
        self._names: set[tuple[int, Path]] = set()
        self._one_at_a_time = threading.Lock()

    def fsync(self, descriptor: int) -> None:
        """What `os.fsync` promises: a file's bytes, or the names that lie in a folder."""
        with self._one_at_a_time:
            if self.cut_after is not None and len(self.synced) >= self.cut_after:
                raise PowerCut
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.is_dir():
                self._names = {name for name in self._names if name[1].parent != path}
                self._names |= {(child.stat().st_ino, child) for child in path.iterdir() if child.is_file()}
            else:
                self._content[path.stat().st_ino] = path.read_bytes()
            self.synced.append(("folder" if path.is_dir() else "file", path))

    def cut(self) -> None:
        """Take every name and every byte that no sync had reached."""
        for path in [path for path in self.folder.rglob("*") if path.is_file()]:
            inode = path.stat().st_ino
            if (inode, path) not in self._names:
                path.unlink()
            else:
                path.write_bytes(self._content.get(inode, b""))


@pytest.fixture
def disk(items: Items, monkeypatch: pytest.MonkeyPatch) -> Disk:  # noqa: F811 (the fixture)
    disk = Disk(items.lake.settings.lake)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    return disk


def test_what_publish_reported_outlasts_a_power_cut(items: Items, disk: Disk) -> None:  # noqa: F811
    items.publish(item_rows(NIGHT), NIGHT)
    disk.cut()
    assert items.table.read().equals(item_rows(NIGHT).cast(items.table.schema))
    assert items.publish(item_rows(NIGHT), NIGHT).committed == ()


def test_a_power_cut_at_any_sync_leaves_old_rows_or_new_ones(items: Items, disk: Disk) -> None:  # noqa: F811
    before, after = item_rows(NIGHT), item_rows(NIGHT, seed=2)
    items.publish(before, NIGHT)
    backup = items.lake.settings.home.with_name("backup")
    shutil.copytree(items.table.location.uri, backup)
    begun = len(disk.synced)
    items.publish(after, NIGHT)
    steps = len(disk.synced) - begun
    assert steps >= 4, "data file, its folder, the commit and its folder"
    for step in range(steps):
        shutil.rmtree(items.table.location.uri)
        shutil.copytree(backup, items.table.location.uri)
        assert items.digests(NIGHT) != {FIRST: None}
        disk.cut_after = None
        for path in sorted(Path(items.table.location.uri).rglob("*"), reverse=True):
            descriptor = os.open(path, os.O_RDONLY)
            disk.fsync(descriptor)
            os.close(descriptor)
        disk.cut_after = len(disk.synced) + step
        with pytest.raises(PowerCut):
            items.publish(after, NIGHT)
        disk.cut_after = None
        disk.cut()
        try:
            rows = items.table.read()
        except TableDamaged:
            items.table.location.commit_path(2).unlink()
            rows = items.table.read()
        assert rows.equals(before.cast(items.table.schema)) or rows.equals(after.cast(items.table.schema))
        items.publish(after, NIGHT)
        assert items.table.read().equals(after.cast(items.table.schema))


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_newest_commit_is_refused_by_name_and_the_index_follows_its_removal(items: Items, torn: str) -> None:  # noqa: F811
    items.publish(item_rows(NIGHT), NIGHT)
    items.publish(item_rows(NEXT), NEXT)
    commit = items.table.location.commit_path(2)
    commit.write_bytes(TORN[torn](commit.read_bytes()))
    with pytest.raises(TableDamaged, match=r"(?s)things/raw/items.*_delta_log.*away") as caught:
        items.publish(item_rows(NEXT), NEXT)
    assert "\n  " in str(caught.value), "it says what to do"
    commit.unlink()
    assert items.digests(NEXT) == {NEXT.start: None}
    assert items.publish(item_rows(NEXT), NEXT).committed == tuple(NEXT)


def test_a_version_number_that_comes_twice_is_indexed_and_projected(items: Items) -> None:  # noqa: F811
    items.publish(item_rows(NIGHT), NIGHT)
    backup = items.lake.settings.home.with_name("backup")
    shutil.copytree(items.table.location.uri, backup)
    items.publish(item_rows(NIGHT, seed=2), NIGHT)
    project(items.lake, items.table, "items", NIGHT)
    shutil.rmtree(items.table.location.uri)
    shutil.copytree(backup, items.table.location.uri)
    restored = items.digests(NIGHT)
    assert project(items.lake, items.table, "items", NIGHT) == 4, "SQL held a commit that is gone"
    items.publish(item_rows(NIGHT, seed=3), NIGHT)
    assert items.digests(NIGHT) != restored
    project(items.lake, items.table, "items", NIGHT)
    target = sql_columns("items", items.table.schema)
    with items.lake.engine.connect() as connection:
        values = sorted(row.value for row in connection.execute(target.select()))
    assert values == sorted(item_rows(NIGHT, seed=3)["value"].to_pylist())


@pytest.mark.parametrize("fault", ["flipped bit", "lost file"])
def test_a_damaged_partition_is_refused_by_name_and_made_again_by_its_producer(items: Items, fault: str) -> None:  # noqa: F811
    items.publish(item_rows(NIGHT), NIGHT)
    items.publish(item_rows(NEXT), NEXT)
    (uri,) = items.table.files(NIGHT)
    content = bytearray(Path(uri).read_bytes())
    Path(uri).unlink()
    if fault == "flipped bit":
        content[20] ^= 1
        Path(uri).write_bytes(content)
    with pytest.raises(PartitionDamaged) as caught:
        items.table.read(NIGHT)
    assert all(part in str(caught.value) for part in ("things/raw/items", f"data_date={FIRST}", uri, "Clear the task"))
    assert items.table.read(NEXT).num_rows == 4, "others are read"
    nobody = dict.fromkeys(NIGHT)
    assert items.publish(item_rows(NIGHT), NIGHT, replaces=nobody).committed == tuple(NIGHT)
    assert items.table.read(NIGHT).equals(item_rows(NIGHT).cast(items.table.schema))
    assert items.publish(item_rows(NIGHT), NIGHT).committed == ()


@pytest.mark.parametrize("fault", ["gone", "damaged"])
def test_without_its_checkpoint_a_table_is_read_from_its_commits(items: Items, fault: str) -> None:  # noqa: F811
    items.publish(item_rows(NIGHT), NIGHT)
    delta = items.table.load()
    assert delta is not None
    delta.create_checkpoint()
    (checkpoint,) = Path(items.table.location.uri, "_delta_log").glob("*.checkpoint.parquet")
    if fault == "gone":
        checkpoint.unlink()
    else:
        checkpoint.write_bytes(b"")
    assert items.table.read().num_rows == 4
    assert items.publish(item_rows(NEXT), NEXT).committed == tuple(NEXT)

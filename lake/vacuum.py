"""Data files that a Delta table no longer needs: those that no commit names, and those that later commits replaced."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from urllib.parse import unquote

from config.errors import NightfleetError
from lake.delta import TableLocation
from lake.leftovers import SETTLED_SECONDS, held, unheld

_LOG = "_delta_log"


class LogIncomplete(NightfleetError):
    """A table's log does not begin at its first commit, so that nobody can say which files a commit names."""


@dataclass(frozen=True)
class DataFile:
    """The life of one data file.

    Attributes:
        path: relative to the table.
        added: version of the commit that added it.
        removed: version of the commit that replaced it, None: it is current.
        removed_at: when that was.
    """

    path: str
    added: int
    removed: int | None = None
    removed_at: datetime | None = None

    @property
    def data_date(self) -> date | None:
        """Its partition, None in a table without partitions."""
        folder = self.path.partition("/")[0]
        return date.fromisoformat(folder.removeprefix("data_date=")) if folder.startswith("data_date=") else None

    def serves(self, version: int) -> bool:
        """Whether readers of the table at that version read it."""
        return self.added <= version and (self.removed is None or version < self.removed)


@contextmanager
def writing(location: TableLocation) -> Iterator[None]:
    """Say, while the block runs, that data files are written that no commit names yet: none of them is an orphan."""
    with held(Path(location.uri)):
        yield


def data_files(location: TableLocation) -> dict[str, DataFile]:
    """Every data file that a commit of the table names, by its path relative to the table.

    Raises:
        LogIncomplete: the log's first commits are gone.
    """
    files: dict[str, DataFile] = {}
    log = Path(location.uri) / _LOG
    versions = sorted(int(path.stem) for path in log.glob("*.json") if path.stem.isdigit())
    if versions != list(range(len(versions))):
        raise LogIncomplete(
            f"{location.uri}: the log holds {len(versions)} commits, the newest is {versions[-1]}; all since 0 are "
            "needed to know which files they name. Nothing of this table was removed.\n"
            "  Restore the missing commits from a backup, or leave the table as it is."
        )
    for version in versions:
        for line in location.commit_path(version).read_bytes().splitlines():
            action = json.loads(line) if line.strip() else {}
            if "add" in action:
                path = unquote(action["add"]["path"])
                files[path] = DataFile(path, version)
            elif "remove" in action:
                path = unquote(action["remove"]["path"])
                at = datetime.fromtimestamp((action["remove"].get("deletionTimestamp") or 0) / 1000, UTC)
                files[path] = DataFile(path, files[path].added if path in files else 0, version, at)
    return files


def orphans(location: TableLocation, folders: Iterable[Path] | None = None) -> list[Path]:
    """Data files, and attempts at them, that no commit names and nobody changed for an hour: a dead try left them.

    Args:
        folders: partitions to look into, None: all.
    Raises:
        LogIncomplete: as `data_files`.
    """
    root = Path(location.uri)
    within = [root, *root.glob("data_date=*")] if folders is None else folders
    before = time.time() - SETTLED_SECONDS
    settled = [path for folder in within for path in _settled(folder, before)]
    if not settled:
        return []
    named = data_files(location)
    return sorted(path for path in settled if path.relative_to(root).as_posix() not in named)


def _settled(folder: Path, before: float) -> Iterator[Path]:
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            is_data = entry.name.endswith(".parquet") or entry.name.startswith(".")
            if is_data and entry.is_file(follow_symlinks=False) and entry.stat().st_mtime <= before:
                yield Path(entry.path)


def remove_orphans(location: TableLocation, folders: Iterable[Path] | None = None) -> list[tuple[Path, int]]:
    """Remove what `orphans` finds, where no live try is writing to the table; returns what was, with its bytes."""
    if "://" in location.uri or not Path(location.uri, _LOG).is_dir():
        return []
    with unheld(Path(location.uri)) as nobody_writes:
        removed = [(path, path.stat().st_size) for path in orphans(location, folders)] if nobody_writes else []
        for path, _ in removed:
            path.unlink(missing_ok=True)
        return removed


def superseded_files(location: TableLocation, before: datetime) -> list[DataFile]:
    """Data files that a commit before that instant replaced and that still lie there, by path.

    Raises:
        LogIncomplete: as `data_files`.
    """
    files = data_files(location)
    return [
        file
        for _, file in sorted(files.items())
        if file.removed_at is not None and file.removed_at < before and Path(location.uri, file.path).is_file()
    ]

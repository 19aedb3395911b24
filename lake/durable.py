"""What a power cut must not take: bytes and names that are on the disk before something else counts on them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# A file system writes what waits at once to its journal together: 1,400 syncs took 0.2-0.4 s like this, and 1.7-3.6 s
# one after another (ext4 on a virtual disk).
_SYNCS_AT_ONCE = 16


def sync_path(path: Path) -> None:
    """Return when the file, or the list of what lies in the folder, would outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, so that they outlast a power cut."""
    missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync_path(path.parent)


def sync_paths(paths: Iterable[Path]) -> None:
    """Return when all those files and folders would outlast a power cut."""
    distinct = list(dict.fromkeys(paths))
    if len(distinct) <= 2:
        for path in distinct:
            sync_path(path)
        return
    with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:
        list(pool.map(sync_path, distinct))

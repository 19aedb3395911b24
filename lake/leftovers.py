"""What tries leave that ended without clearing up, told from what tries still work with.

A try holds a lock of the operating system on its folder, and loses it when its process ends, however it ends. A
leftover is what nobody holds *and* what nobody changed for an hour. The lock alone would take the folder of a try that
has just made it, or that works on another machine whose locks are not seen here; the age alone that of a slow one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

SETTLED_SECONDS = 3600.0
# A file system without such locks: the age alone decides there.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Say, while the block runs, that a live try works in the folder; several may at once."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)


@contextmanager
def unheld(path: Path) -> Iterator[bool]:
    """Whether no live try works in the folder; where none does, none begins while the block runs."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield True
    finally:
        os.close(descriptor)


@contextmanager
def try_folder(root: Path, prefix: str) -> Iterator[Path]:
    """A temporary folder of this try below `root`, readable to its owner alone and removed at the end. What dead tries
    left below `root` goes first.
    """
    root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root.iterdir())
    with TemporaryDirectory(dir=root, prefix=f"{prefix}-") as name, held(Path(name)):
        yield Path(name)


def newest_change(path: Path) -> float:
    """Seconds since the epoch at which a file, or anything in a folder, was changed last; links are not followed."""
    newest = path.lstat().st_mtime
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            with suppress(FileNotFoundError):  # its try has just removed it
                newest = max(newest, os.lstat(os.path.join(folder, name)).st_mtime)
    return newest


def is_leftover(path: Path, *, settled_seconds: float = SETTLED_SECONDS) -> bool:
    """Whether a try that is dead left that file or folder."""
    before = time.time() - settled_seconds
    try:
        # The cheap question first: most of what lies there is of this minute.
        if path.lstat().st_mtime > before:
            return False
        if path.is_symlink():
            return True
        with unheld(path) as dead:
            return dead and newest_change(path) <= before
    except FileNotFoundError:
        return False  # its try, or another cleaner, has just removed it


def leftovers(paths: Iterable[Path]) -> list[Path]:
    """Those of the paths that dead tries left, sorted."""
    return sorted(path for path in paths if is_leftover(path))


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove those of the paths that dead tries left."""
    for path in leftovers(paths):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all in it; nothing where somebody else has."""
    if path.is_dir() and not path.is_symlink():
        # Two cleaners may meet in one folder.
        shutil.rmtree(path, onerror=_unless_gone)
    else:
        path.unlink(missing_ok=True)


def _unless_gone(_function: object, _path: str, failure: tuple[type[BaseException], BaseException, object]) -> None:
    if not isinstance(failure[1], FileNotFoundError):
        raise failure[1]


def rotate(path: Path, *, largest_bytes: int) -> None:
    """Give a log that has grown so large another name, `<stem>-<UTC instant><suffix>`; whoever has it open goes on
    writing there. Of several processes at once one does it.
    """
    try:
        with unheld(path) as alone:
            if alone and path.stat().st_size >= largest_bytes:
                instant = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
                path.rename(path.with_name(f"{path.stem}-{instant}{path.suffix}"))
    except FileNotFoundError:
        return  # nothing is logged yet, or another process was faster

"""Folders that somebody else writes, a training container for example: their files are read without following a link,
and bounded in size.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from config.errors import NightfleetError

_COPY_BYTES = 4 * 2**20


class UnsafeFile(NightfleetError):
    """What a training left is a link, no regular file, or larger than it may be."""


LARGEST_DOCUMENT_BYTES = 64 * 2**20


LARGEST_FILE_BYTES = 16 * 2**30


_MOST_ENTRIES = 100_000


_DEEPEST = 16


_UNFOLLOWED = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_contained(folder: Path, name: str, *, at_most: int = LARGEST_DOCUMENT_BYTES) -> BinaryIO:
    """Open a file of a folder that somebody else writes, to read it: no link is followed on the way below `folder`.

    Args:
        name: relative to `folder`, parts divided by `/`.
        at_most: bytes that the file may have.
    Raises:
        FileNotFoundError: there is none.
        UnsafeFile: it is, or lies behind, a link, is no regular file, or is larger than `at_most`.
    """
    *parents, last = PurePosixPath(name).parts
    if not last or last in {"..", "/"} or any(part in {"..", "/"} for part in parents):
        raise UnsafeFile(f"{name!r} names nothing inside {folder}. Nothing was read.")
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for part in parents:
                inner = os.open(part, _UNFOLLOWED | os.O_DIRECTORY, dir_fd=opened)
                os.close(opened)
                opened = inner
            file = os.fdopen(os.open(last, _UNFOLLOWED, dir_fd=opened), "rb")
        finally:
            os.close(opened)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EMLINK):
            raise UnsafeFile(_unsafe(folder, name, "is, or lies behind, a link or no file")) from error
        raise
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size > at_most:
        file.close()
        what = f"has {status.st_size:,} bytes, at most {at_most:,} are taken"
        raise UnsafeFile(_unsafe(folder, name, what if stat.S_ISREG(status.st_mode) else "is no regular file"))
    return file


def copy_contained(folder: Path, name: str, target: Path, *, at_most: int = LARGEST_FILE_BYTES) -> None:
    """Copy a file out of a folder that somebody else writes, as `open_contained` opens it, into a new file.

    Raises:
        UnsafeFile: as `open_contained`, or it grew beyond `at_most` meanwhile; the new file is removed.
    """
    with open_contained(folder, name, at_most=at_most) as source, target.open("xb") as copied:
        left = at_most
        while chunk := source.read(min(_COPY_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                target.unlink()
                raise UnsafeFile(_unsafe(folder, name, f"grew beyond {at_most:,} bytes"))
            copied.write(chunk)


def check_contained(folder: Path) -> list[str]:
    """Names of all files below a folder that somebody else wrote, sorted, once each is what may be used.

    Whoever wrote there must have ended: what is checked may not change afterwards.

    Raises:
        UnsafeFile: a link, a pipe or a device lies there, a file is larger than its kind may be (a document in JSON
            64 MiB, any other 16 GiB), or there are too many.
    """
    names: list[str] = []
    entries = 0
    for path, folders, files, opened in os.fwalk(folder, follow_symlinks=False, onerror=_raise):
        inside = Path(path).relative_to(folder)
        entries += len(folders) + len(files)
        if entries > _MOST_ENTRIES or len(inside.parts) > _DEEPEST:
            raise UnsafeFile(_unsafe(folder, str(inside), "holds more files or folders than a training may leave"))
        for name in (*folders, *files):
            status = os.stat(name, dir_fd=opened, follow_symlinks=False)
            where = (inside / name).as_posix()
            if stat.S_ISDIR(status.st_mode):
                continue
            if not stat.S_ISREG(status.st_mode):
                raise UnsafeFile(_unsafe(folder, where, "is a link or no regular file"))
            at_most = LARGEST_DOCUMENT_BYTES if name.endswith((".json", ".jsonl")) else LARGEST_FILE_BYTES
            if status.st_size > at_most:
                raise UnsafeFile(_unsafe(folder, where, f"has {status.st_size:,} bytes, at most {at_most:,} are taken"))
            names.append(where)
    return sorted(names)


def _raise(error: OSError) -> None:
    raise error


def _unsafe(folder: Path, name: str, what: str) -> str:
    return (
        f"{folder / name} {what}. A trainer writes regular files alone: nothing of this job is used. "
        f"Look who wrote it, remove {folder.name}, and train again."
    )

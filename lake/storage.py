"""The one door to where state lies, beside `lake.delta`: model files and reports, and the locks around all state.

What may stand on other machines goes through here, and what goes through here asks for no more than an object store
has: no renaming of folders, no hard links, no times of change, no locks of files.

- **Tables** have a location, a URI and the options that open it (`lake.delta.table_location`). Only the commit of a
  Delta table makes rows appear.
- **Objects** (model files, reports) are bytes under a key (`ObjectStore`). One object appears whole or not at all. A
  folder is put file by file, and counts from the moment that the file named last lies there.
- **Locks** are SQL's: one of a transaction (`lock`), one that spans several (`advisory_lock`).

Where they lie is decided here and nowhere else. The local file system is the one back end today; another one is another
`pyarrow.fs.FileSystem` in `artifacts` and `reports`, other options in `lake.delta.table_location`.

What is of one machine alone stays a path of its settings: `scratch`, `jobs` (a trainer reads and writes them as files),
secrets, Feast's SQLite files, logs, and the cache of sources.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath

import sqlalchemy as sa
from pyarrow import fs

from config.errors import NightfleetError
from config.settings import Settings
from lake.durable import make_folder, sync_path

_COPY_BYTES = 4 * 2**20
_LOCK_TRY_SECONDS = 1.0
_LOCK_NOT_AVAILABLE = "55P03"  # Postgres' code of a lock that was waited for in vain


# ---- objects ---------------------------------------------------------------------------------------------------------


class LeadsOutside(NightfleetError):
    """A key names what lies outside of its store, or behind a link."""


class ObjectStore:
    """Bytes under keys (`<model>/<digest>/manifest.json`), on any file system that pyarrow knows.

    Names that begin with a dot are attempts at an object, and are never listed.

    Args:
        root: the folder that all keys lie below, in the file system's own words.
        cache: folder of this machine for copies of what lies elsewhere; not needed for the local file system.
        follow_links: False: an object behind a link of the local file system, which may lead anywhere, is refused.
    """

    def __init__(
        self, filesystem: fs.FileSystem, root: str, *, cache: Path | None = None, follow_links: bool = True
    ) -> None:
        self._filesystem, self._root = filesystem, root
        self._cache, self._follow_links = cache, follow_links

    def uri(self, key: str = "") -> str:
        """Where the object or the folder lies: a path on the local file system."""
        return f"{self._root}/{key}" if key else self._root

    def put(self, key: str, content: bytes | Path) -> str:
        """Make `content`, or that of a file of this machine, the object; readers see the old one or the new one. Of two
        at once the later one stays.

        Returns:
            Its URI.
        """
        target = self.uri(key)
        if not self._is_local:  # there an object appears when its stream is closed
            self._write(target, content)
            return target
        path = Path(target)
        make_folder(path.parent)
        attempt = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            self._write(str(attempt), content)
            sync_path(attempt)
            attempt.replace(path)
            sync_path(path.parent)
        finally:
            attempt.unlink(missing_ok=True)
        return target

    def _write(self, target: str, content: bytes | Path) -> None:
        with self._filesystem.open_output_stream(target, compression=None) as stream:
            if isinstance(content, bytes):
                stream.write(content)
            else:
                with content.open("rb") as source:
                    shutil.copyfileobj(source, stream, _COPY_BYTES)

    def put_folder(self, key: str, source: Path, *, last: str) -> None:
        """Put every file below `source`, file by file, the one named `last` after all others.

        A folder without that file is an attempt that did not end, and is put again. Two that put other bytes under one
        key must exclude each other by a lock.

        Raises:
            FileNotFoundError: `source` has no file `last`; nothing is put.
        """
        files = {path.relative_to(source).as_posix(): path for path in sorted(source.rglob("*")) if path.is_file()}
        if last not in files:
            raise FileNotFoundError(f"{source} has no {last}, which completes a folder. Nothing was put.")
        for name in [*(name for name in files if name != last), last]:
            self.put(f"{key}/{name}", files[name])

    def read(self, key: str, *, at_most: int | None = None) -> bytes:
        """The object's bytes, or so many from its beginning.

        Raises:
            FileNotFoundError: there is none.
            LeadsOutside: links are not followed, and one is in the way.
        """
        with self._filesystem.open_input_stream(self._inside(key), compression=None) as stream:
            return bytes(stream.read(at_most))

    def size(self, key: str) -> int | None:
        """How many bytes the object has, None where there is none.

        Raises:
            LeadsOutside: links are not followed, and one is in the way.
        """
        info = self._filesystem.get_file_info(self._inside(key))
        return int(info.size) if info.type == fs.FileType.File else None

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self.size(key) is not None

    def names(self, key: str = "") -> list[str]:
        """Names of what lies directly below, objects and folders, sorted; none where nothing does."""
        listed = self._filesystem.get_file_info(fs.FileSelector(self.uri(key), allow_not_found=True))
        return sorted(info.base_name for info in listed if not info.base_name.startswith("."))

    def keys(self, key: str = "") -> list[str]:
        """Keys of all objects below, sorted."""
        selector = fs.FileSelector(self.uri(key), allow_not_found=True, recursive=True)
        below = [
            str(PurePosixPath(info.path).relative_to(self._root))
            for info in self._filesystem.get_file_info(selector)
            if info.type == fs.FileType.File and not info.base_name.startswith(".")
        ]
        return sorted(below)

    def remove_folder(self, key: str) -> None:
        """Remove every object below; nothing where there is none.

        Raises:
            LeadsOutside: links are not followed, and one is in the way.
        """
        if self.keys(key):
            self._filesystem.delete_dir(self._inside(key))

    def bytes_below(self, key: str) -> int:
        """Bytes of all objects below."""
        selector = fs.FileSelector(self.uri(key), allow_not_found=True, recursive=True)
        return sum(info.size for info in self._filesystem.get_file_info(selector) if info.type == fs.FileType.File)

    def attempts(self) -> list[Path]:
        """Files of this machine that are attempts at objects: each gets its name within seconds, or is left behind."""
        if not self._is_local:
            return []
        return sorted(path for path in Path(self._root).rglob(".*") if path.is_file() and not path.is_symlink())

    def folder(self, key: str, *, last: str) -> Path:
        """A folder of this machine with the files of a folder that never changes once `last` lies in it.

        On the local file system it is the folder itself, whatever it holds. Elsewhere it is a copy, made once; of an
        attempt that did not end there is none, and the path leads nowhere.
        """
        if self._is_local:
            return Path(self.uri(key))
        if self._cache is None:
            raise ValueError(f"{self._root} is not on this machine, and there is no cache for copies of it")
        copy = self._cache / key
        if copy.is_dir() or not self.exists(f"{key}/{last}"):
            return copy
        attempt = copy.with_name(f".{copy.name}.{uuid.uuid4().hex}")
        try:
            for name in self.keys(key):
                path = attempt / name.removeprefix(f"{key}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.read(name))
            try:
                attempt.rename(copy)  # the cache is of this machine
            except OSError:
                if not copy.is_dir():  # else another process made the same copy first
                    raise
        finally:
            shutil.rmtree(attempt, ignore_errors=True)
        return copy

    def _inside(self, key: str) -> str:
        target = self.uri(key)
        if not self._is_local or self._follow_links:
            return target
        if os.path.realpath(target) != f"{os.path.realpath(self._root)}/{key}":
            raise LeadsOutside(f"{target} is, or lies behind, a link. Remove the link, and write the file again.")
        return target

    @property
    def _is_local(self) -> bool:
        return isinstance(self._filesystem, fs.LocalFileSystem)


def artifacts(settings: Settings) -> ObjectStore:
    """Model files, content-addressed: `<model>/<artifact digest>/…`."""
    return ObjectStore(fs.LocalFileSystem(), str(settings.artifacts), cache=settings.home / "cache" / "artifacts")


def reports(settings: Settings) -> ObjectStore:
    """HTML that people read: `<model>/<data date>/…`, `<model>/model_cards/…`, `data_docs/…`."""
    return ObjectStore(fs.LocalFileSystem(), str(settings.reports), follow_links=False)


# A version's files are complete when it lies there: it lists the digests of all that is loaded.
VERSION_COMPLETE = "manifest.json"


def version_key(model: str, artifact_digest: str, name: str = "") -> str:
    """Key of a version's files among the artifacts, or of the one with that name."""
    return f"{model}/{artifact_digest}/{name}".removesuffix("/")


def artifact_folder(settings: Settings, model: str, artifact_digest: str) -> Path:
    """A folder of this machine with the files of a version; it is not there where the version is not stored."""
    return artifacts(settings).folder(version_key(model, artifact_digest), last=VERSION_COMPLETE)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file of this machine a second place: the same bytes on disk where its file system can, else a copy.

    Raises:
        FileNotFoundError: `source` is not there.
        FileExistsError: `target` is.
    """
    try:
        os.link(source, target)
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError:  # another file system, or one without links
        with source.open("rb") as read, target.open("xb") as written:
            shutil.copyfileobj(read, written)


# ---- locks -----------------------------------------------------------------------------------------------------------


def lock(connection: sa.Connection, name: str) -> None:
    """Hold the writers' lock `name` until the transaction ends: one at a time; SQLite has one lock for all names."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_lock_number(name))))


@contextmanager
def advisory_lock(engine: sa.Engine, name: str) -> Iterator[None]:
    """Hold the lock `name` while the block runs, whatever is committed meanwhile: one at a time, others wait.

    Who holds it and dies gives it back: Postgres ends its session, the operating system its lock on SQLite's file. On
    SQLite it is a database of its own beside that of `engine`, which others may go on writing to. It cannot be taken
    twice: whoever holds it waits for itself.
    """
    if engine.dialect.name == "sqlite":
        with closing(_locked_file(f"{engine.url.database}.{name}.lock")):
            yield
        return
    with engine.connect() as pooled:
        connection = pooled.execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()  # closing it ends the session, and with it the lock, whatever else fails
        connection.exec_driver_sql(f"SET lock_timeout = '{_LOCK_TRY_SECONDS}s'")
        while not _locked_session(connection, name):
            pass  # between two tries Python sees to signals: a waiting task can be ended
        yield


def _locked_file(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_LOCK_TRY_SECONDS, isolation_level=None)
    while True:
        try:
            connection.execute("BEGIN EXCLUSIVE")
            return connection
        except sqlite3.OperationalError as error:
            # Between two tries Python sees to signals: a waiting task can be ended.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise


def _locked_session(connection: sa.Connection, name: str) -> bool:
    try:
        connection.execute(sa.select(sa.func.pg_advisory_lock(_lock_number(name))))
    except sa.exc.OperationalError as error:
        if getattr(error.orig, "pgcode", None) != _LOCK_NOT_AVAILABLE:
            raise
        return False
    return True


def _lock_number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)

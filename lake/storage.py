"""The one door to where state lies: Delta tables, model files and reports, and the locks around them.

What may stand on other machines goes through here, and what goes through here asks for no more than an object store
has: no renaming of folders, no hard links, no times of change, no locks of files.

- **Tables** have a location: a URI and the options that open it (`table_location`). Only the commit of a Delta table
  makes rows appear.
- **Objects** (model files, reports) are bytes under a key (`ObjectStore`). One object appears whole or not at all. A
  folder is put file by file, and counts from the moment that the file named last lies there.
- **Locks** are SQL's: one of a transaction (`lock`), one that spans several (`advisory_lock`).

Where they lie is decided here and nowhere else. The local file system is the one back end today; another one is another
`pyarrow.fs.FileSystem` in `artifacts` and `reports`, other options in `table_location`.

What is of one machine alone stays a path of its settings: `scratch`, `jobs` (a trainer reads and writes them as files),
secrets, Feast's SQLite files, logs, and the cache of sources.
"""

from __future__ import annotations

import errno
import functools
import glob
import hashlib
import json
import math
import os
import re
import shutil
import sqlite3
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import sqlalchemy as sa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction
from pyarrow import fs
from pyarrow import parquet as pq

from config.errors import NightfleetError
from config.settings import Settings
from lake.artifact import file_digest

_COPY_BYTES = 4 * 2**20
_LOCK_TRY_SECONDS = 1.0
_NAMED_AFTER_DIGEST = re.compile(r"([0-9a-f]{64})-[0-9a-f]{32}\.parquet")
_LOCK_NOT_AVAILABLE = "55P03"  # Postgres' code of a lock that was waited for in vain


class TableDamaged(NightfleetError):
    """A table's log cannot be read as it was written."""


class PartitionDamaged(NightfleetError):
    """A data file of a partition is missing, or does not hold the bytes that were published."""


# ---- what a power cut must not take ----------------------------------------------------------------------------------


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


# ---- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TableLocation:
    """Where a Delta table lies.

    Attributes:
        uri: an absolute path on the local file system, a URI elsewhere.
        options: what opens it there, in `deltalake`'s words; none for a path.
    """

    uri: str
    options: Mapping[str, str] = field(default_factory=dict, hash=False)

    def open(self, version: int | None = None) -> DeltaTable | None:
        """The table as of `version` (None: newest), or None when nothing was ever committed.

        Raises:
            TableDamaged: the log cannot be read, or its newest commit is not whole.
        """
        try:
            table = self._opened(version)
        except TableNotFoundError:
            return None
        if version is None:
            self._check_commit(table.version())
        return table

    def _opened(self, version: int | None) -> DeltaTable:
        options = dict(self.options) or None
        try:
            return DeltaTable(self.uri, version=version, storage_options=options)
        except TableNotFoundError:
            raise
        except (DeltaError, OSError) as error:
            if not self._without_damaged_checkpoint():
                raise self._damaged(error) from error
        try:
            return DeltaTable(self.uri, version=version, storage_options=options)
        except (DeltaError, OSError) as error:
            raise self._damaged(error) from error

    def commit_path(self, version: int) -> Path:
        """The file of a commit, where the table lies on the local file system."""
        return Path(self.uri) / "_delta_log" / f"{version:020}.json"

    def sync_commits(self, versions: Iterable[int]) -> None:
        """Return when those commits would outlast a power cut; elsewhere than on the local file system they do."""
        if "://" in self.uri:
            return
        for version in versions:
            path = self.commit_path(version)
            if path.is_file():  # an old one may stand in a checkpoint alone
                sync_path(path)
        sync_path(Path(self.uri) / "_delta_log")

    def _check_commit(self, version: int) -> None:
        """Delta takes a commit whose bytes a power cut took for one that changes nothing."""
        path = self.commit_path(version)
        if "://" in self.uri or not path.is_file():
            return
        if problem := _commit_problem(path.read_bytes()):
            raise TableDamaged(
                f"{self.uri}: its newest commit, version {version}, {problem}: {path}. A power cut took what was "
                "written last, or the file was changed. Nothing was read.\n"
                f"  Move that file away: the table is then what it was at version {version - 1}. Then clear the task "
                "that published last."
            )

    def _without_damaged_checkpoint(self) -> bool:
        """Set aside a checkpoint that is gone or cannot be read where the log is whole without it; whether one was."""
        log = Path(self.uri) / "_delta_log"
        if "://" in self.uri or not log.is_dir():
            return False
        versions = sorted(int(path.stem) for path in log.glob("*.json") if path.stem.isdigit())
        if not versions or versions != list(range(versions[-1] + 1)):
            return False
        damaged = [path for path in log.glob("*.checkpoint*.parquet") if not _is_parquet(path)]
        hint = log / "_last_checkpoint"
        named = _hinted_version(hint)
        if not damaged and (named is None or (log / f"{named:020}.checkpoint.parquet").is_file()):
            return False
        for path in damaged:
            path.replace(path.with_name(f"{path.name}.damaged"))
        hint.unlink(missing_ok=True)
        return True

    def _damaged(self, error: Exception) -> TableDamaged:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return TableDamaged(
            f"the Delta table at {self.uri} cannot be opened: {first}\n"
            f"  Look at the newest files in {self.uri}/_delta_log: move a newest commit that is not whole away, and "
            "the table is what it was before it; restore any other file from a backup. Then clear the task."
        )

    def create(self, schema: pa.Schema, **properties: Any) -> DeltaTable:
        """Create it empty; a table that somebody else created meanwhile is taken as it is.

        Args:
            properties: as `DeltaTable.create` takes them.
        """
        if "://" not in self.uri:
            make_folder(Path(self.uri))
        options = dict(self.options) or None
        table = DeltaTable.create(self.uri, schema=schema, mode="ignore", storage_options=options, **properties)
        if "://" not in self.uri:
            sync_path(Path(self.uri))
            self.sync_commits([0])
        return table


def table_location(settings: Settings, name: str = "") -> TableLocation:
    """Where the Delta table `name` lies, for example `flights/valid/outcomes`; of the empty name the lake itself."""
    return TableLocation(str(settings.lake / name))


def sql_path(path: str | Path) -> str:
    """A path or URI as the SQL literal that DuckDB writes it to; to read it, `literal_path` or `read_parquet`."""
    return "'" + str(path).replace("'", "''") + "'"


def literal_path(path: str | Path) -> str:
    """A path of a file to read as the SQL literal of just that file: DuckDB takes names for patterns."""
    return sql_path(glob.escape(str(path)))


def read_parquet(paths: Iterable[str | Path], *, partitioned: bool = False) -> str:
    """DuckDB's `read_parquet(...)` of those files, as SQL; at least one.

    Args:
        partitioned: they are files of a Delta table: columns may have come later, and `data_date` stands in the path.
    """
    options = "hive_partitioning=false"  # on its own, DuckDB takes columns from folders called `name=value`
    if partitioned:
        options = "union_by_name=true, hive_partitioning=true, hive_types_autocast=false"
    return f"read_parquet([{', '.join(literal_path(path) for path in paths)}], {options})"


def _commit_problem(content: bytes) -> str | None:
    """What is missing in a commit's file, None where it is whole."""
    if not content.strip(b"\0 \n"):
        return "is empty"
    try:
        actions = [json.loads(line) for line in content.splitlines() if line.strip()]
    except ValueError:
        return "is cut off"
    commit = next((action["commitInfo"] for action in actions if "commitInfo" in action), None)
    if commit is None:
        return "does not say what it is"
    announced = json.loads(commit.get("nightfleet", "{}")).get("files")
    added = sum("add" in action for action in actions)
    if announced is not None and announced != added:
        return f"adds {added} of {announced} files"
    return None


def _is_parquet(path: Path) -> bool:
    try:
        pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return False
    return True


def _hinted_version(hint: Path) -> int | None:
    try:
        return int(json.loads(hint.read_text(encoding="utf-8"))["version"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError):
        return -1  # of no checkpoint


def write_data_file(
    root: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], partition: Mapping[str, str]
) -> AddAction:
    """Write rows as a data file of the table below `root` that outlasts a power cut, for a commit to name.

    Its name holds the SHA-256 of its bytes, so that whoever reads it knows what it must hold.

    Args:
        schema: columns of the file, without those of the partition.
    """
    folder = root.joinpath(*(f"{name}={value}" for name, value in partition.items()))
    make_folder(folder)
    attempt = folder / f".{uuid.uuid4().hex}"
    # Decimal fractions hardly repeat: dictionaries of them would cost memory and save nothing.
    repeating = [field.name for field in schema if not pa.types.is_floating(field.type)]
    rows = 0
    try:
        with pq.ParquetWriter(attempt, schema, compression="snappy", use_dictionary=repeating) as writer:
            for batch in batches:
                rows += batch.num_rows
                writer.write_batch(batch.cast(schema))
        sync_path(attempt)
        path = folder / f"{file_digest(attempt)}-{uuid.uuid4().hex}.parquet"
        attempt.replace(path)
    finally:
        attempt.unlink(missing_ok=True)
    sync_path(folder)
    state = path.stat()
    return AddAction(
        path=path.relative_to(root).as_posix(),
        size=state.st_size,
        partition_values=partition,
        modification_time=state.st_mtime_ns // 1_000_000,
        data_change=True,
        stats=json.dumps({"numRecords": rows, **_statistics(pq.read_metadata(path))}),
    )


def _statistics(metadata: pq.FileMetaData) -> dict[str, dict[str, Any]]:
    """Bounds and nulls of each column as a Delta commit has them: readers leave out files by them."""
    lowest: dict[str, Any] = {}
    highest: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for number in range(metadata.num_columns):
        columns = [metadata.row_group(group).column(number) for group in range(metadata.num_row_groups)]
        known = [column.statistics for column in columns if column.statistics is not None]
        if len(known) < len(columns) or not all(each.has_null_count for each in known):
            continue
        name = metadata.schema.column(number).path
        if "." in name:
            continue  # a part of a nested column
        nulls[name] = sum(each.null_count for each in known)
        bounded = [each for each in known if each.has_min_max]
        # A row group of nulls alone has no bounds, and needs none.
        if bounded and all(each.has_min_max or each.num_values == 0 for each in known):
            low, high = min(each.min for each in bounded), max(each.max for each in bounded)
            if _has_bound(low):
                lowest[name] = _as_json(low)
            if _has_bound(high):
                highest[name] = _as_json(high)
    return {"minValues": lowest, "maxValues": highest, "nullCount": nulls}


def _has_bound(value: Any) -> bool:
    """Whether a commit's JSON holds such a value; a column without bounds is read, not left out."""
    return isinstance(value, bool | int | str | date) or (isinstance(value, float) and math.isfinite(value))


def _as_json(value: bool | float | str | date) -> bool | float | str:
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
    return value.isoformat() if isinstance(value, date) else value


def file_sizes(table: DeltaTable) -> dict[str, int]:
    """Bytes of each data file of a table, by its name, as its commits have them."""
    added = pa.table(table.get_add_actions(flatten=True))
    return {
        PurePosixPath(path).name: size
        for path, size in zip(added["path"].to_pylist(), added["size_bytes"].to_pylist(), strict=True)
    }


def file_problem(uri: str, size: int | None) -> str | None:
    """What is wrong with a data file, None where nothing is: its bytes are read once per process and change.

    Args:
        size: bytes that it must have, None: unknown.
    """
    if "://" in uri:
        return None  # an object store checks what it gives out
    try:
        state = os.stat(uri)
    except FileNotFoundError:
        return "is missing"
    if size is not None and state.st_size != size:
        return f"has {state.st_size} bytes, and was published with {size}"
    named = _NAMED_AFTER_DIGEST.fullmatch(PurePosixPath(uri).name)
    if named and _digest_of(uri, state.st_ino, state.st_size, state.st_mtime_ns) != named[1]:
        return "holds other bytes than were published"
    return None


@functools.lru_cache(maxsize=100_000)
def _digest_of(path: str, _inode: int, _bytes: int, _changed_ns: int) -> str:
    return file_digest(Path(path))


def check_files(uris: Iterable[str], sizes: Mapping[str, int]) -> None:
    """Compare data files of a Delta table with what was published.

    Raises:
        PartitionDamaged: one is missing, or holds other bytes; names table, partition and file.
    """
    for uri in uris:
        path = PurePosixPath(uri)
        problem = file_problem(uri, sizes.get(path.name))
        if problem:
            raise PartitionDamaged(
                f"{path.parent.parent}, partition {path.parent.name}: {uri} {problem}. Nothing of it was used.\n"
                "  Clear the task that publishes this partition (ingest, validate, transform or score of that data "
                "date): it writes the same rows again."
            )


# ---- objects ---------------------------------------------------------------------------------------------------------


class LeadsOutside(NightfleetError):
    """A key names what lies outside of its store, or behind a link."""


class UnsafeFile(NightfleetError):
    """What a training left is a link, no regular file, or larger than it may be."""


# What a folder that somebody else writes may hold at most.
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

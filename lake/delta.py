"""The log and the data files of a Delta table: where it lies, what its files must hold, what is wrong with them."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction
from pyarrow import parquet as pq

from config.errors import NightfleetError
from config.settings import Settings
from lake.artifact import file_digest
from lake.durable import make_folder, sync_path, sync_paths

_NAMED_AFTER_DIGEST = re.compile(r"([0-9a-f]{64})-[0-9a-f]{32}\.parquet")


class TableDamaged(NightfleetError):
    """A table's log cannot be read as it was written."""


class PartitionDamaged(NightfleetError):
    """A data file of a partition is missing, or does not hold the bytes that were published."""


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
    """Write rows as a data file of the table below `root`; `sync_data_files` must follow before a commit names it.

    Its name holds the SHA-256 of its bytes, so that whoever reads it knows what it must hold.

    Args:
        schema: columns of the file, without those of the partition.
    """
    folder = root.joinpath(*(f"{name}={value}" for name, value in partition.items()))
    folder.mkdir(parents=True, exist_ok=True)
    attempt = folder / f".{uuid.uuid4().hex}"
    # Decimal fractions hardly repeat: dictionaries of them would cost memory and save nothing.
    repeating = [field.name for field in schema if not pa.types.is_floating(field.type)]
    rows = 0
    try:
        with pq.ParquetWriter(attempt, schema, compression="snappy", use_dictionary=repeating) as writer:
            for batch in batches:
                rows += batch.num_rows
                writer.write_batch(batch.cast(schema))
        path = folder / f"{file_digest(attempt)}-{uuid.uuid4().hex}.parquet"
        attempt.replace(path)
    finally:
        attempt.unlink(missing_ok=True)
    state = path.stat()
    return AddAction(
        path=path.relative_to(root).as_posix(),
        size=state.st_size,
        partition_values=partition,
        modification_time=state.st_mtime_ns // 1_000_000,
        data_change=True,
        stats=json.dumps({"numRecords": rows, **_statistics(pq.read_metadata(path))}),
    )


def sync_data_files(root: Path, added: Iterable[AddAction]) -> None:
    """Return when those files, and the folders they lie in, would outlast a power cut."""
    files = [root / action.path for action in added]
    sync_paths([*files, *(file.parent for file in files), root])


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

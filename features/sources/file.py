"""Files: CSV or Parquet; a path, a folder's glob, a member of a zip or gzip archive, or of an installed package."""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import importlib.util
import io
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb

from config.catalog.data import ColumnType, FileSource, Lookup
from features.sources.columns import check_names, check_types, literal, quoted, stage_text, typed_relation
from features.sources.errors import SourceMissing, SourceUnreadable
from lake.artifact import file_digest
from lake.duck import literal_path, read_parquet, sql_path

_MEMBER = "!"


@dataclass(frozen=True)
class FoundFiles:
    """What a uri resolved to: files as they lie on disk, and the member asked for where they are zip archives."""

    label: str
    paths: tuple[Path, ...]
    member: str | None

    def digest(self) -> str:
        """SHA-256 of the files' names and bytes, and of the member's name."""
        parts = [f"{path.name}\0{file_digest(path)}" for path in self.paths]
        return hashlib.sha256("\0".join([*parts, self.member or ""]).encode()).hexdigest()


def is_dated(uri: str) -> bool:
    """Whether each night has a file of its own."""
    return "{data_date}" in uri


def find(uri: str, root: Path, night: date | None, label: str) -> FoundFiles:
    """Resolve a uri to files.

    Args:
        uri: `path`, `folder/*.csv`, `archive.zip`, `archive.zip!member.csv`, or `package:<module>/<path>`.
        root: where relative paths start.
        night: what `{data_date}` stands for.
    Raises:
        SourceMissing: nothing is there; the message names the resolved path.
    """
    location, _, member = uri.replace("{data_date}", night.isoformat() if night else "{data_date}").partition(_MEMBER)
    if location.startswith("package:"):
        module, _, inner = location.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(module)  # the package itself is never imported
        folders = list(spec.submodule_search_locations or ()) if spec else []
        if not folders:
            raise SourceMissing(
                f"{label} is in the package {module!r}, which is not installed. Add it to requirements.in and install "
                "it."
            )
        root, location = Path(folders[0]), inner
    pattern = root / location
    names = [str(pattern)]
    if glob.has_magic(location):
        # Only what the catalog says is a pattern, never the folder it starts at.
        start = "" if Path(location).is_absolute() else f"{glob.escape(str(root))}/"
        matching = sorted(glob.glob(f"{start}{location}", recursive=True))
        # A file of that very name, which as a pattern it does not match (`q[1].csv`), is meant by its name.
        names = names if pattern.is_file() and str(pattern) not in matching else matching
    paths = tuple(path for path in map(Path, names) if path.is_file())
    if not paths:
        when = f" for data date {night}" if night else ""
        raise SourceMissing(
            f"{label}{when}: no file at {pattern}.\n"
            f"  Deliver the file, or correct `uri` in the catalog (it says {uri!r})."
        )
    return FoundFiles(label, paths, member or None)


def stage(
    connection: duckdb.DuckDBPyConnection,
    source: FileSource | Lookup,
    found: FoundFiles,
    columns: Mapping[str, ColumnType],
    folder: Path,
    target: Path,
) -> None:
    """Write the files' rows to one Parquet file `target` with exactly the declared columns.

    Args:
        folder: for what has to be unpacked.
    Raises:
        SourceUnreadable: an archive or file is truncated, ragged, or not of its format.
        SourceSchemaMismatch: a column is undeclared, missing or retyped.
    """
    files = [
        unpacked
        for number, path in enumerate(found.paths)
        for unpacked in _unpack(path, found, folder / f"unpacked-{number}")
    ]
    try:
        if source.format == "parquet":
            _stage_parquet(connection, found.label, files, columns, target)
        else:
            _stage_csv(connection, found.label, files, columns, source.null_values, target)
    except (
        duckdb.IOException,
        duckdb.InvalidInputException,
        UnicodeDecodeError,
        EOFError,
        zlib.error,
        gzip.BadGzipFile,
        csv.Error,
    ) as error:
        where = (
            found.paths[0] if len(found.paths) == 1 else f"one of {len(found.paths)} files, {found.paths[0]} the first"
        )
        reason = str(error).split("Possible fixes")[0].strip()
        raise SourceUnreadable(
            f"{found.label} cannot be read as {source.format} ({where}):\n  {reason}\n"
            "  Nothing was written. Deliver the whole file again."
        ) from error


def _unpack(path: Path, found: FoundFiles, folder: Path) -> list[Path]:
    if path.suffix != ".zip":
        return [path]
    try:
        with zipfile.ZipFile(path) as archive:
            files = [info.filename for info in archive.infolist() if not info.is_dir()]
            if found.member is None and len(files) != 1:
                listed = ", ".join(files[:10])
                raise SourceMissing(
                    f"{found.label}: {path} holds {len(files)} files ({listed}). Name one in the uri: "
                    f"{path.name}{_MEMBER}<member>."
                )
            name = found.member or files[0]
            if name not in files:
                raise SourceMissing(
                    f"{found.label}: {path} has no member {name!r}. It holds: {', '.join(files[:10]) or 'nothing'}."
                )
            folder.mkdir(parents=True)
            target = folder / Path(name).name  # the base name alone: a member's path must not leave the folder
            with archive.open(name) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
            return [target]
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise SourceUnreadable(
            f"{found.label} cannot be unpacked ({path}): {error}\n"
            "  The archive is truncated or damaged. Nothing was written. Deliver the whole file again."
        ) from error


def _header(path: Path) -> list[str]:
    with path.open("rb") as stored:
        plain = gzip.GzipFile(fileobj=stored) if path.suffix == ".gz" else stored
        with io.TextIOWrapper(plain, encoding="utf-8-sig", newline="") as text:
            return next(csv.reader(text), [])


def _stage_csv(
    connection: duckdb.DuckDBPyConnection,
    label: str,
    files: Sequence[Path],
    columns: Mapping[str, ColumnType],
    null_values: Sequence[str],
    target: Path,
) -> None:
    arms = []
    for path in files:
        header = _header(path)
        if not header:
            raise SourceUnreadable(
                f"{label} has no header ({path}). Nothing was written. Deliver it again; a night without rows is a "
                "header alone."
            )
        check_names(f"{label} ({path})", header, columns)
        arms.append(f"({', '.join(literal(name) for name in header)})")
    nulls = ", ".join(literal(value) for value in null_values)
    # Every column as text, in the file's own order: types are checked afterwards, and never guessed from a sample.
    by_header: dict[str, list[Path]] = {}
    for path, arm in zip(files, arms, strict=True):
        by_header.setdefault(arm, []).append(path)
    ordered = ", ".join(quoted(name) for name in columns)
    selects = []
    for same_header in by_header.values():
        header = _header(same_header[0])
        spec = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in header)
        listed = ", ".join(literal_path(path) for path in same_header)
        options = (
            f"header=true, auto_detect=false, hive_partitioning=false, columns={{{spec}}}, delim=',', "
            f"quote='\"', escape='\"', nullstr=[{nulls}]"
        )
        selects.append(f"SELECT {ordered} FROM read_csv([{listed}], {options})")  # noqa: S608 (quoted)
    stage_text(connection, label, f"({' UNION ALL '.join(selects)})", columns, target)


def _stage_parquet(
    connection: duckdb.DuckDBPyConnection,
    label: str,
    files: Sequence[Path],
    columns: Mapping[str, ColumnType],
    target: Path,
) -> None:
    selects = []
    for path in files:
        relation = read_parquet([path])
        described = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()  # noqa: S608 (quoted path)
        check_types(f"{label} ({path})", {str(row[0]): str(row[1]) for row in described}, columns)
        selects.append(typed_relation(relation, columns))
    connection.execute(f"COPY ({' UNION ALL '.join(selects)}) TO {sql_path(target)} (FORMAT parquet)")

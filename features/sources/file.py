"""Files: CSV, Parquet, JSON lines, Excel; a path, a folder's glob, a member of a zip or gzip, or of a package."""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import hashlib
import importlib.util
import io
import uuid
import zipfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import BinaryIO

import duckdb
import pyarrow as pa

from config.catalog.source import FileSource, Lookup, SourceColumn
from config.errors import NightfleetError
from config.masking import cause, library_text
from features.sources.bucket import fetch, is_remote
from features.sources.columns import (
    Difference,
    Matched,
    Rows,
    check_types,
    match_names,
    mismatch,
    null_where_absent,
    stage_rows,
)
from features.sources.errors import SourceMissing, SourceRefused, SourceUnreadable, is_of_machine
from features.sources.meter import Meter
from features.sources.proposals import guess_csv
from features.sources.values import literal, quoted
from features.sources.workbook import write_texts
from lake.artifact import file_digest
from lake.contained import UnsafeFile, open_contained
from lake.duck import literal_path, read_parquet

_MEMBER = "!"
_ENCRYPTED = 0x1  # a bit of a member's flags
_PACKINGS = {
    zipfile.ZIP_STORED: "Store",
    zipfile.ZIP_DEFLATED: "Deflate",
    zipfile.ZIP_BZIP2: "BZip2",
    zipfile.ZIP_LZMA: "LZMA",
}
_OTHER_PACKINGS = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd", 99: "AES encryption"}
_ANY_BYTES = 2**62  # `Meter` counts them
_CHUNK_BYTES = 1 << 20
# A text that no file holds: to DuckDB nothing is null, the catalog's texts are compared afterwards.
_NO_TEXT = "\ufdd0nf__no_text\ufdd0"


@dataclass(frozen=True)
class FoundFiles:
    """What a uri resolved to: files as they lie on disk, and the member asked for where they are zip archives.

    Attributes:
        folder: the folder that the catalog itself names; below it others deliver, and no link is followed. None for
            files of a package, which its installer may have linked.
        addresses: of copies, where they come from.
    """

    label: str
    paths: tuple[Path, ...]
    member: str | None
    folder: Path | None
    addresses: Mapping[Path, str] = field(default_factory=dict)

    def name_of(self, path: Path) -> str:
        """What people call a file."""
        return self.addresses.get(path, str(path))

    def digest(self) -> str:
        """SHA-256 of the files' names and bytes, and of the member's name."""
        parts = [f"{path.name}\0{file_digest(path)}" for path in self.paths]
        return hashlib.sha256("\0".join([*parts, self.member or ""]).encode()).hexdigest()


def is_dated(uri: str) -> bool:
    """Whether each night has a file of its own."""
    return "{data_date}" in uri


def find(uri: str, root: Path, night: date | None, label: str, *, folder: Path, meter: Meter) -> FoundFiles:
    """Resolve a uri to files; objects of a store are copied.

    Args:
        uri: `path`, `folder/*.csv`, `archive.zip`, `archive.zip!member.csv`, `package:<module>/<path>`, or the URL of
            an object, or of a pattern of them.
        root: where relative paths start.
        night: what `{data_date}` stands for.
        folder: for copies; meter: counts their bytes.
    Raises:
        SourceUnavailable, SourceTooLarge: of a store, as `features.sources.bucket.fetch`.
        SourceMissing: nothing is there; the message names the resolved path.
        SourceRefused: a file is, or lies behind, a link below the folder that the catalog names.
    """
    location, _, member = uri.replace("{data_date}", night.isoformat() if night else "{data_date}").partition(_MEMBER)
    if is_remote(location):
        copies = fetch(location, folder / f"objects-{uuid.uuid4().hex}", meter)
        return FoundFiles(label, tuple(copies), member or None, None, copies)
    packaged = location.startswith("package:")
    if packaged:
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
    named = None if packaged else _catalogs_folder(root, location)
    for path in paths if named else ():
        _refuse_links(label, named, path)
    return FoundFiles(label, paths, member or None, named)


def _catalogs_folder(root: Path, location: str) -> Path:
    """What of a uri's path the catalog spells out: the folder of a file, the folder that a pattern starts at."""
    parts = Path(location).parts[:-1]
    plain = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return root.joinpath(*parts[:plain])


def _refuse_links(label: str, folder: Path | None, path: Path) -> None:
    assert folder is not None  # the caller saw to it
    inside = path.relative_to(folder)
    for link in (path, *(folder / parent for parent in inside.parents if parent != Path())):
        if link.is_symlink():
            raise _link_refused(label, link)


def _link_refused(label: str, path: Path) -> SourceRefused:
    return SourceRefused(
        f"{label}: {path} is a link or no regular file, and may lead anywhere: it was not opened. Nothing was "
        "written.\n  Deliver the file itself, or name the folder it lies in in the catalog's `uri`."
    )


def stage(
    connection: duckdb.DuckDBPyConnection,
    source: FileSource | Lookup,
    found: FoundFiles,
    columns: Mapping[str, SourceColumn],
    folder: Path,
    target: Path,
    meter: Meter,
    *,
    personal: Collection[str] = (),
) -> tuple[Difference, ...]:
    """Write the files' rows to one Parquet file `target` with exactly the declared columns.

    Returns:
        Columns that the files have and the catalog does not, or the other way round, of which it says `warn`.

    Args:
        folder: for what has to be unpacked.
        personal: columns whose values no message shows.
    Raises:
        SourceUnreadable: an archive or file is truncated, ragged, or not of its format.
        SourceTooLarge: it exceeds one of its limits.
        SourceRefused: a file is a link, or became one.
        SourceSchemaMismatch: a column is undeclared, missing or retyped.
    """
    with ExitStack() as stack:
        files: list[_File] = []
        try:
            for number, path in enumerate(found.paths):
                files.append(_opened(stack, path, found, folder / f"unpacked-{number}", meter))
            with meter.interrupting(connection):
                if source.format == "xlsx":
                    files = [
                        _as_texts(file, source, folder / f"sheet-{number}.parquet", meter, columns)
                        for number, file in enumerate(files)
                    ]
                if source.format in ("parquet", "xlsx"):
                    return _stage_parquet(connection, files, source, columns, target, meter, personal)
                if source.format == "jsonl":
                    return _stage_lines(connection, files, source, columns, target, meter, personal)
                files = [
                    _readable(file, source, folder / f"readable-{number}", meter) for number, file in enumerate(files)
                ]
                return _stage_csv(connection, files, source, columns, target, meter, personal)
        except NightfleetError:
            raise
        except Exception as error:
            if is_of_machine(error) or isinstance(error, duckdb.OutOfMemoryException):
                raise
            where = (
                found.name_of(found.paths[0])
                if len(found.paths) == 1
                else f"one of {len(found.paths)} files, {found.name_of(found.paths[0])} the first"
            )
            reason = library_text(error, personal=bool(personal)).split("Possible fixes")[0].strip()
            for opened in files:
                reason = reason.replace(str(opened.path), opened.name)
            encoded = isinstance(error, UnicodeError) or "unicode" in str(error).lower()
            remedy = (
                f"Declare its `encoding`, for example cp1252 (it is read as {source.encoding or 'utf-8'}), or deliver"
            )
            raise SourceUnreadable(
                f"{found.label} cannot be read as {source.format} ({where}):\n  {reason}\n"
                f"  Nothing was written. {remedy if encoded else 'Deliver'} the whole file again."
            ) from cause(error, personal=bool(personal))


@dataclass(frozen=True)
class _File:
    """One file as it is read: `path` is what readers open, `name` what people call it."""

    path: Path
    name: str


def _opened(stack: ExitStack, path: Path, files: FoundFiles, folder: Path, meter: Meter) -> _File:
    """Open a file for good, so that nobody can put another one in its place, and unpack it where it is packed."""
    try:
        stored: BinaryIO = (
            path.open("rb")
            if files.folder is None
            else open_contained(files.folder.resolve(), path.relative_to(files.folder).as_posix(), at_most=_ANY_BYTES)
        )
    except UnsafeFile as error:
        raise _link_refused(files.label, path) from error
    stack.enter_context(stored)
    packed_bytes = stored.seek(0, io.SEEK_END)
    stored.seek(0)
    if path.suffix == ".zip":
        folder.mkdir(parents=True)
        return _File(_unzipped(stored, path, files, folder, meter), files.name_of(path))
    if path.suffix == ".gz":
        folder.mkdir(parents=True)
        target = folder / (path.stem or "unpacked")
        with gzip.GzipFile(fileobj=stored) as packed, target.open("wb") as file:
            meter.copy(packed, file, packed_bytes)
        return _File(target, files.name_of(path))
    meter.take("max_bytes", packed_bytes)
    return _File(Path(f"/proc/self/fd/{stored.fileno()}"), files.name_of(path))


def _unzipped(stored: BinaryIO, path: Path, found: FoundFiles, folder: Path, meter: Meter) -> Path:
    with zipfile.ZipFile(stored) as archive:
        meter.check("max_zip_members", len(archive.infolist()))
        files = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        listed = ", ".join(list(files)[:10])
        if found.member is None and len(files) != 1:
            raise SourceMissing(
                f"{found.label}: {path} holds {len(files)} files ({listed}). Name one in the uri: "
                f"{path.name}{_MEMBER}<member>."
            )
        name = found.member or next(iter(files))
        if name not in files:
            raise SourceMissing(f"{found.label}: {path} has no member {name!r}. It holds: {listed or 'nothing'}.")
        _refuse_packing(found.label, path, files[name])
        target = folder / Path(name).name  # the base name alone: a member's path must not leave the folder
        with archive.open(name) as packed, target.open("wb") as file:
            meter.copy(packed, file, files[name].compress_size)
        return target


def _refuse_packing(label: str, path: Path, member: zipfile.ZipInfo) -> None:
    """Say what to do about a member that the standard library cannot unpack."""
    if member.flag_bits & _ENCRYPTED:
        problem, remedy = "is packed with a password", "without one"
    elif member.compress_type not in _PACKINGS:
        method = _OTHER_PACKINGS.get(member.compress_type, f"method {member.compress_type}")
        problem, remedy = f"is packed with {method}", f"with one of {', '.join(_PACKINGS.values())}"
    else:
        return
    raise SourceUnreadable(
        f"{label}: member {member.filename!r} of {path} {problem}. Nothing was written.\n"
        f"  Pack it again {remedy} (`zip` does), or deliver the file itself."
    )


def _as_texts(
    file: _File,
    source: FileSource | Lookup,
    target: Path,
    meter: Meter,
    columns: Mapping[str, SourceColumn] | None = None,
) -> _File:
    """A workbook's sheet as Parquet."""
    dates = None
    if columns is not None:
        declared = {name: column for name, column in columns.items() if column.type == "date"}
        dates = {own.lower() for name, column in declared.items() for own in (name, *(column.renamed_from or ()))}
    sheet = source.sheet if isinstance(source, FileSource) else None
    target.parent.mkdir(parents=True, exist_ok=True)
    write_texts(file.path, file.name, target, meter, sheet=sheet, skip_rows=source.skip_lines or 0, dates=dates)
    return _File(target, file.name)


def _readable(file: _File, source: FileSource | Lookup, folder: Path, meter: Meter) -> _File:
    """The file in UTF-8 and with one kind of line end, as DuckDB reads it; itself where it is so already."""
    encoding, quote = source.encoding or "utf-8", '"' if source.quote is None else source.quote
    foreign = codecs.lookup(encoding).name not in ("utf-8", "ascii")
    if not foreign and not _mixes_line_ends(file.path):
        return file
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "readable.csv"
    decoder = codecs.getincrementaldecoder(encoding if foreign else "latin-1")()
    quoted_cell, held = False, ""
    with file.path.open("rb") as stored, target.open("wb") as written:
        while chunk := stored.read(_CHUNK_BYTES):
            meter.in_time()
            text = held + decoder.decode(chunk)
            held = "\r" if text.endswith("\r") else ""  # its line feed may come with the next chunk
            text, quoted_cell = _one_line_end(text.removesuffix("\r") if held else text, quote, inside=quoted_cell)
            # What is no foreign encoding passes through byte by byte: whether it is UTF-8 is DuckDB's to say.
            written.write(text.encode("utf-8" if foreign else "latin-1"))
        decoder.decode(b"", final=True)
        written.write(b"\n" if held and not quoted_cell else held.encode())
    return _File(target, file.name)


def _mixes_line_ends(path: Path) -> bool:
    feeds = returns = pairs = 0
    last = b""
    with path.open("rb") as stored:
        while chunk := stored.read(_CHUNK_BYTES):
            feeds, returns = feeds + chunk.count(b"\n"), returns + chunk.count(b"\r")
            pairs += chunk.count(b"\r\n") + (last == b"\r" and chunk.startswith(b"\n"))
            last = chunk[-1:]
    return len({kind for kind, lines in (("lf", feeds - pairs), ("cr", returns - pairs), ("crlf", pairs)) if lines}) > 1


def _one_line_end(text: str, quote: str, *, inside: bool) -> tuple[str, bool]:
    """The text with line feeds alone outside quotes, and whether it ends inside of them."""
    parts = text.split(quote) if quote else [text]
    for number in range(int(inside), len(parts), 2):
        parts[number] = parts[number].replace("\r\n", "\n").replace("\r", "\n")
    return quote.join(parts), inside ^ (len(parts) % 2 == 0)


def _header(file: _File, source: FileSource | Lookup, meter: Meter) -> list[str]:
    at_most = meter.limits.max_header_bytes
    with file.path.open("rb") as stored:
        begin = stored.read(at_most + 1)
    cut = len(begin) > at_most
    text = codecs.getincrementaldecoder("utf-8-sig")().decode(begin, final=not cut)
    lines = io.StringIO(text, newline="")
    for _ in range(source.skip_lines or 0):
        lines.readline()
    quote = '"' if source.quote is None else source.quote
    delimiter = source.delimiter or ","
    if len(delimiter) > 1:  # the csv module knows single characters alone
        line = lines.readline().rstrip("\r\n")
        header = [name.strip(quote or None) for name in line.split(delimiter)] if line else []
    else:
        quoting = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
        header = next(csv.reader(lines, delimiter=delimiter, **quoting), [])
    if cut and lines.tell() == len(text):
        meter.check("max_header_bytes", len(begin))
    return header


def _stage_csv(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[_File],
    source: FileSource | Lookup,
    columns: Mapping[str, SourceColumn],
    target: Path,
    meter: Meter,
    personal: Collection[str],
) -> tuple[Difference, ...]:
    label = meter.label
    by_header: dict[tuple[str, ...], list[_File]] = {}
    matches: dict[tuple[str, ...], Matched] = {}
    for file in files:
        header = tuple(_header(file, source, meter))
        if not header:
            raise SourceUnreadable(
                f"{label} has no header ({file.name}). Nothing was written. Deliver it again; a night without rows is "
                "a header alone."
            )
        if header not in matches:
            _check_delimiter(f"{label} ({file.name})", header, columns, source)
            matches[header] = match_names(
                f"{label} ({file.name})", header, columns, source.on_extra, personal=bool(personal)
            )
        by_header.setdefault(header, []).append(file)
    parts = []
    for header, same in by_header.items():
        matched = matches[header]
        # By position, under names of our own: what a file calls its columns may be no name in SQL, or one twice.
        numbered = Matched({name: f"nf__{header.index(found)}" for name, found in matched.names.items()})
        listed = [(file.name, numbered.relation(_csv_relation([file], source, len(header)))) for file in same]
        relation = listed[0][1] if len(same) == 1 else numbered.relation(_csv_relation(same, source, len(header)))
        parts.append(Rows(relation, dict.fromkeys(matched.names, "VARCHAR"), tuple(listed)))
    stage_rows(connection, meter, parts, columns, target, personal=personal)
    return tuple(difference for matched in matches.values() for difference in matched.differences)


def _check_delimiter(
    label: str, header: Sequence[str], columns: Mapping[str, SourceColumn], source: FileSource | Lookup
) -> None:
    """A header that is one name to us, and several to whoever wrote it."""
    for mark in (",", ";", "\t", "|"):
        if len(header) == 1 < len(columns) and header[0].count(mark) == len(columns) - 1:
            raise mismatch(
                label,
                [
                    f"its header is one name with {source.delimiter or ','!r} between names, and {len(columns)} with "
                    f"{mark!r}, as many as are declared. Declare `delimiter: {mark!r}`"
                ],
            )


def _csv_relation(files: Sequence[_File], source: FileSource | Lookup, width: int) -> str:
    # Every column as text: types are checked afterwards, and never guessed from a sample; so are nulls.
    spec = ", ".join(f"'nf__{number}': 'VARCHAR'" for number in range(width))
    quote = literal('"' if source.quote is None else source.quote)
    options = (
        f"header=true, auto_detect=false, hive_partitioning=false, columns={{{spec}}}, "
        f"delim={literal(source.delimiter or ',')}, quote={quote}, escape={quote}, nullstr=[{literal(_NO_TEXT)}], "
        f"compression='none', skip={source.skip_lines or 0}"
    )
    if source.max_line_bytes is not None:
        options += f", max_line_size={source.max_line_bytes}"
    return f"read_csv([{', '.join(literal_path(file.path) for file in files)}], {options})"


def _stage_parquet(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[_File],
    source: FileSource | Lookup,
    columns: Mapping[str, SourceColumn],
    target: Path,
    meter: Meter,
    personal: Collection[str],
) -> tuple[Difference, ...]:
    parts = []
    differences: list[Difference] = []
    for file in files:
        footer = f"SELECT coalesce(sum(num_rows), 0) FROM parquet_file_metadata({literal_path(file.path)})"  # noqa: S608 (quoted path)
        meter.take("max_rows", int(connection.execute(footer).fetchall()[0][0]))
        sizes = f"SELECT coalesce(sum(total_uncompressed_size), 0) FROM parquet_metadata({literal_path(file.path)})"  # noqa: S608 (quoted path)
        meter.take("max_bytes", int(connection.execute(sizes).fetchall()[0][0]))
        relation = read_parquet([file.path])
        described = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()  # noqa: S608 (quoted path)
        label, found = f"{meter.label} ({file.name})", {str(row[0]): str(row[1]) for row in described}
        matched = match_names(label, list(found), columns, source.on_extra, personal=bool(personal))
        types = {name: found[own] for name, own in matched.names.items()}
        check_types(label, types, columns)
        differences += matched.differences
        listed = matched.relation(relation)
        parts.append(Rows(listed, types, ((file.name, listed),)))
    stage_rows(connection, meter, parts, columns, target, personal=personal)
    return tuple(differences)


def _stage_lines(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[_File],
    source: FileSource | Lookup,
    columns: Mapping[str, SourceColumn],
    target: Path,
    meter: Meter,
    personal: Collection[str],
) -> tuple[Difference, ...]:
    """Records of JSON, one a line; their values are read as texts, as those of a CSV are."""
    parts = []
    differences: list[Difference] = []
    for file in files:
        objects, keys = _objects(connection, file, meter)
        label = f"{meter.label} ({file.name})"
        known = {own for name, column in columns.items() for own in (name, *(column.renamed_from or ()))}
        # Where other keys are there, one is renamed; where none is, the file has no record.
        strict = set(keys) - known and source.on_extra in (None, "refuse")
        declared = columns if strict else null_where_absent(columns)
        matched = match_names(label, keys, declared, source.on_extra, personal=bool(personal)) if keys else None
        differences += matched.differences if matched else ()
        names = matched.names if matched else {name: name for name in columns}
        texts = ", ".join(f"json ->> {literal(_json_path(own))} AS {quoted(name)}" for name, own in names.items())
        relation = f"(SELECT {texts} FROM {objects})"  # noqa: S608 (quoted names and paths)
        parts.append(Rows(relation, dict.fromkeys(names, "VARCHAR"), ((file.name, relation),)))
    stage_rows(connection, meter, parts, columns, target, personal=personal)
    return tuple(differences)


def _objects(connection: duckdb.DuckDBPyConnection, file: _File, meter: Meter) -> tuple[str, list[str]]:
    """SQL of a file's records as one column `json`, and the keys that any of them has."""
    options = "format='newline_delimited', compression='uncompressed', hive_partitioning=false"
    objects = f"read_json_objects([{literal_path(file.path)}], {options})"
    counts = f"SELECT count(*), count(*) FILTER (json_type(json) <> 'OBJECT') FROM {objects}"  # noqa: S608 (quoted path)
    rows, others = connection.execute(counts).fetchall()[0]
    meter.take("max_rows", rows)
    if others:
        raise SourceUnreadable(
            f"{meter.label}: {others} lines of {file.name} are JSON, but no objects. Nothing was written.\n"
            '  Each line is one record, as {"column": value}: deliver it so.'
        )
    keys = connection.execute(f"SELECT DISTINCT unnest(json_keys(json)) AS key FROM {objects} ORDER BY key")  # noqa: S608 (as above)
    return objects, [str(row[0]) for row in keys.fetchall()]


def _json_path(key: str) -> str:
    return '$."' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


def first_rows(
    connection: duckdb.DuckDBPyConnection,
    source: FileSource,
    files: FoundFiles,
    folder: Path,
    meter: Meter,
    *,
    rows: int,
) -> tuple[FileSource, pa.Table]:
    """The first rows of the first file, under its own names, those of a CSV as texts.

    Returns:
        The source, with what it does not say of a CSV as it seems to be: `encoding`, `delimiter`, `skip_lines`.
    Raises:
        SourceUnreadable: it has no header.
    """
    with ExitStack() as stack:
        file = _opened(stack, files.paths[0], files, folder / "unpacked", meter)
        if source.format == "xlsx":
            file = _as_texts(file, source, folder / "sheet.parquet", meter)
        if source.format in ("parquet", "xlsx"):
            relation = read_parquet([file.path])
            return source, connection.sql(f"SELECT * FROM {relation} LIMIT {rows}").to_arrow_table()  # noqa: S608 (quoted path)
        if source.format == "jsonl":
            objects, keys = _objects(connection, file, meter)
            texts = ", ".join(f"json ->> {literal(_json_path(key))} AS {quoted(key)}" for key in keys) or "NULL"
            return source, connection.sql(f"SELECT {texts} FROM {objects} LIMIT {rows}").to_arrow_table()  # noqa: S608 (quoted)
        with file.path.open("rb") as stored:
            begin = stored.read(_CHUNK_BYTES)
        guessed = {key: value for key, value in guess_csv(begin).items() if getattr(source, key) is None}
        source = source.model_copy(update=guessed)
        file = _readable(file, source, folder / "readable", meter)
        header = _header(file, source, meter)
        if not header:
            raise SourceUnreadable(f"{files.label} has no header ({file.name}).")
        relation = _csv_relation([file], source, len(header))
        table = connection.sql(f"SELECT * FROM {relation} LIMIT {rows}").to_arrow_table()  # noqa: S608 (quoted path)
        return source, table.rename_columns(header)

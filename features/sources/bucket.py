"""Files in object storage, by URL: copied to this machine before they are read, within the source's limits.

`s3://`, `gs://` and `abfs://`, as pyarrow opens them; `?region=…`, `?endpoint_override=…&scheme=http` and the like
follow the path. Credentials come from the environment, as each store's own tools read them, never from the URL.
"""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from config.errors import NightfleetError
from features.sources.errors import SourceMissing, SourceRefused, SourceUnavailable
from features.sources.meter import Meter

_SCHEMES = ("s3", "gs", "abfs", "abfss")
_CHUNK_BYTES = 1 << 20


def is_remote(location: str) -> bool:
    """Whether a source's uri, without its member, lies in object storage."""
    return "://" in location


def fetch(location: str, folder: Path, meter: Meter) -> dict[Path, str]:
    """Copy an object, or all that a pattern names, into a folder; the copies in the order of their keys, with the
    address of each.

    Raises:
        SourceRefused: an address of another kind, or with a password in it, or one that the store does not let in.
        SourceMissing: nothing is there.
        SourceUnavailable: the store does not answer.
        SourceTooLarge: it exceeds a limit.
    """
    parts = urlsplit(location)
    # Azure's addresses begin with the container: abfs://container@account…
    signed_in = parts.password is not None or (parts.username is not None and not parts.scheme.startswith("abfs"))
    if parts.scheme not in _SCHEMES or signed_in:
        raise SourceRefused(
            f"{meter.label}: an address is one of {', '.join(f'{scheme}://…' for scheme in _SCHEMES)}, without a user "
            "or a password in it. Nothing was read.\n"
            "  Correct `uri` in the catalog; credentials come from the environment."
        )
    copies: dict[Path, str] = {}
    try:
        store, key = _opened(location)
        for number, found in enumerate(_matching(store, key)):
            copy = folder / str(number) / PurePosixPath(found.path).name
            copy.parent.mkdir(parents=True)
            with store.open_input_stream(found.path, compression=None) as stored, copy.open("wb") as file:
                while chunk := stored.read(_CHUNK_BYTES):
                    meter.take("max_bytes", len(chunk))
                    file.write(chunk)
            copies[copy] = f"{parts.scheme}://{found.path}"
    except NightfleetError:
        raise
    except pa.ArrowInvalid as error:
        raise SourceRefused(f"{meter.label}: {location} cannot be opened: {error}. Correct `uri`.") from error
    except PermissionError as error:
        raise _not_let_in(location, meter, error) from error
    except OSError as error:
        if "ACCESS_DENIED" in str(error) or "403" in str(error):
            raise _not_let_in(location, meter, error) from error
        raise SourceUnavailable(
            f"{meter.label}: {location} could not be read: {error}. Nothing was written. It is tried again."
        ) from error
    if not copies:
        raise SourceMissing(
            f"{meter.label}: nothing is at {location}.\n  Deliver the object, or correct `uri` in the catalog."
        )
    return copies


def _not_let_in(location: str, meter: Meter, error: OSError) -> SourceRefused:
    return SourceRefused(
        f"{meter.label}: the store does not let us read {location}: {error}. Nothing was written.\n"
        "  Give the environment of the workers credentials that may list and read it."
    )


def _opened(location: str) -> tuple[fs.FileSystem, str]:
    """The store, and the key or pattern in it. What looks like a pattern is no part of an address to pyarrow."""
    address, mark, options = location.rpartition("?") if "=" in location.rpartition("?")[2] else (location, "", "")
    scheme, _, path = address.partition("://")
    bucket, _, key = path.partition("/")
    store, root = fs.FileSystem.from_uri(f"{scheme}://{bucket}{mark}{options}")
    return store, f"{root.rstrip('/')}/{key}"


def _matching(store: fs.FileSystem, key: str) -> Iterator[fs.FileInfo]:
    info = store.get_file_info(key)
    if info.type == fs.FileType.File:
        yield info
        return
    if not glob.has_magic(key):
        return
    parts = key.split("/")
    plain = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    deep = len(parts) > plain + 1
    selector = fs.FileSelector("/".join(parts[:plain]), recursive=deep, allow_not_found=True)
    pattern = re.compile("".join(_of_part(part, last=number == len(parts) - 1) for number, part in enumerate(parts)))
    files = (each for each in store.get_file_info(selector) if each.type == fs.FileType.File)
    yield from sorted((each for each in files if pattern.fullmatch(each.path)), key=lambda each: each.path)


def _of_part(part: str, *, last: bool) -> str:
    """A regular expression of one part of a pattern, with the slash behind it; `**` stands for any folders."""
    if part == "**":
        return ".*" if last else "(?:[^/]+/)*"
    spelled = fnmatch.translate(part).removeprefix("(?s:").removesuffix(r")\Z")
    return spelled.replace(".*", "[^/]*") + ("" if last else "/")

"""What can be wrong with a source."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from config.errors import NightfleetError, TransientError
from config.masking import cause, library_text

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE})


class SourceMissing(NightfleetError):
    """No file is where the catalog says."""


class SourceUnreadable(NightfleetError):
    """A source is there, but truncated, ragged or not of its format."""


class SourceTooLarge(NightfleetError):
    """A source sends more bytes, rows or pages, or takes longer, than its limits allow."""


class SourceSqlReachesOutside(NightfleetError):
    """The SQL that shapes a source reads a file, or what else it is not given."""


class SourceSchemaMismatch(NightfleetError):
    """A source has other columns, or values of other types, than the catalog declares."""


class SourceUnavailable(TransientError):
    """A database or server does not answer, or answers with an error that may pass."""


class SourceRefused(NightfleetError):
    """A database or server answers, and refuses: retrying would not help."""


def is_of_machine(error: Exception) -> bool:
    """Whether a disk of this machine is full or fails: no fault of a source."""
    if isinstance(error, duckdb.IOException):
        return "No space left" in str(error) or "could not write" in str(error).lower()
    return isinstance(error, OSError) and error.errno in _NO_ROOM


@contextmanager
def failures_named(label: str, *, personal: bool) -> Iterator[None]:
    """The one boundary around the reading of a source: what a library raises inside becomes an error of ours.

    Args:
        label: which source.
        personal: whether the words of a library may quote personal data, and are hidden.
    Raises:
        SourceTooLarge: DuckDB may not take as much memory as its rows need.
        SourceUnavailable: a disk of this machine has no room, or fails.
        SourceUnreadable: all else that is no error of ours already.
    """
    try:
        yield
    except NightfleetError:
        raise
    except duckdb.OutOfMemoryException as error:
        raise SourceTooLarge(
            f"{label} needs more memory than DuckDB may take: {error}\n"
            "  Nothing was written. Raise NIGHTFLEET_DUCKDB_MEMORY_GB, or have it delivered in smaller row groups."
        ) from error
    except Exception as error:
        if is_of_machine(error):
            raise SourceUnavailable(
                f"{label} was not read, since a disk of this machine fails: {error}\n"
                "  Nothing was written. Make room on it, then clear the task."
            ) from error
        raise SourceUnreadable(
            f"{label} cannot be read: {type(error).__name__}: {library_text(error, personal=personal)}\n"
            "  Nothing was written. Correct what it delivers, or its entry in the catalog."
        ) from cause(error, personal=personal)

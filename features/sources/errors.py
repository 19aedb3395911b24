"""What can be wrong with a source."""

from __future__ import annotations

from config.errors import NightfleetError, TransientError


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

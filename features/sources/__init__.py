"""Where rows come from: files, SQL queries, HTTP. One file a kind; `read_source` reads any of them."""

from features.sources.errors import (
    SourceMissing,
    SourceRefused,
    SourceSchemaMismatch,
    SourceSqlReachesOutside,
    SourceTooLarge,
    SourceUnavailable,
    SourceUnreadable,
)
from features.sources.read import SourceRead, is_dated, read_source

__all__ = [
    "SourceMissing",
    "SourceRead",
    "SourceRefused",
    "SourceSchemaMismatch",
    "SourceSqlReachesOutside",
    "SourceTooLarge",
    "SourceUnavailable",
    "SourceUnreadable",
    "is_dated",
    "read_source",
]

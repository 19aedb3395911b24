"""What a message may say of a value: nothing where the catalog marks its column as personal data.

Logs, errors, pages and reports are read by more people than the lake is. Whatever prints a value asks here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

HIDDEN = "(hidden: personal data)"


def shown(value: object, *, personal: bool) -> str:
    """A value for a message: as Python spells it, or hidden."""
    return HIDDEN if personal else repr(value)


def shown_row(row: Mapping[str, Any], personal: Collection[str]) -> dict[str, Any]:
    """A row for a message, its personal columns hidden."""
    return {name: HIDDEN if name in personal and value is not None else value for name, value in row.items()}


def library_text(error: BaseException, *, personal: bool) -> str:
    """What a library says of rows that may hold personal data: its words quote values, so its kind alone."""
    if personal:
        return f"{type(error).__name__} (its text is hidden: it may quote personal data)"
    return str(error)


def cause(error: BaseException, *, personal: bool) -> BaseException | None:
    """What an error is raised from: a traceback prints its cause, too."""
    return None if personal else error

"""Model."""

from __future__ import annotations

from collections.abc import Mapping

from monitoring.pages.page import Context, Page


def page(context: Context, *, query: Mapping[str, str], **parts: str) -> Page:
    """The page."""
    return Page("Model", "message.html.jinja", {"message": str(parts)})

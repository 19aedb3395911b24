"""What the forms of the pages do: each action with the role it needs, recorded whatever came of it."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import Request

from monitoring.pages.page import Context, NotAllowed, NotFound, Page, Role, shortened

ROLE_OF: dict[str, Role] = {}


async def perform(request: Request, context: Context, action: str, form: Mapping[str, str], *, own_form: bool) -> str | Page:
    """Do it; returns the sentence that says what was done, or a page to show."""
    if action not in ROLE_OF:
        raise NotFound(f"there is no action {shortened(action)}.")
    raise NotAllowed("not yet")

"""Tonight: one row a model, worst first."""

from __future__ import annotations

from collections.abc import Mapping

from monitoring.pages.page import Column, Context, Page, Table

TEMPLATE = "tonight.html.jinja"


def page(context: Context, *, query: Mapping[str, str]) -> Page:
    """The landing page."""
    rows = [{"model": name, "model_url": context.url("models", name)} for name in context.models]
    table = Table("tonight", "Every model, worst first.", (Column("model", "model", link="model_url"),), rows)
    return Page("Tonight", TEMPLATE, tables=(table,))

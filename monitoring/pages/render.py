"""Pages to HTML: Jinja with escaping always on, and one way to show each kind of value."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from monitoring.pages.page import Column, Context, Page, Table
from monitoring.wording import instant, shown

FOLDER = Path(__file__).parent
STATIC = {
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "echarts.min.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


# Of the cells of a kind of column.
_LONG_WORD = 18  # characters: a longer one may be broken, else it alone would make its column wide
_CLASSES = {"number": "right", "percent": "right", "change": "right", "date": "date", "status": "state"}


@functools.cache
def static_digest(name: str) -> str:
    """First digits of a static file's SHA-256: stands in its address, so that it may be cached for good."""
    return hashlib.sha256((FOLDER / "static" / name).read_bytes()).hexdigest()[:12]


@functools.cache
def environment() -> jinja2.Environment:
    """Jinja with our templates, everything escaped, an unknown name an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shown": shown,
        "cell": shown_cell,
        "cell_class": lambda kind: _CLASSES.get(kind, "text"),
        "embedded_json": embedded_json,
        "has_long_word": lambda text: any(len(word) > _LONG_WORD for word in str(text).split()),
        "instant": instant,
    }
    environment.globals["static_digest"] = static_digest
    return environment


def render(page: Page, context: Context, *, path: str = "", query: str = "") -> str:
    """The page as one HTML document.

    Args:
        path, query: of the address it was asked by; the CSV links keep them.
    """
    template = environment().get_template(page.template)
    return template.render(
        {**page.values, "page": page, "context": context, "viewer": context.viewer, "path": path, "query": query}
    )


def login_page(login_url: str) -> str:
    """What somebody sees who is not logged in."""
    return environment().get_template("login.html.jinja").render({"login_url": login_url})


def embedded_json(document: Any) -> Markup:
    """JSON that may stand inside a `<script type="application/json">`: nothing in it can end the element."""
    text = json.dumps(_finite(document), separators=(",", ":"), allow_nan=False, default=str)
    return Markup(  # noqa: S704 (made safe here)
        text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").replace("\u2028", "\\u2028")
    )


def _finite(value: Any) -> Any:
    """Without NaN and infinities, which JSON does not have: a chart shows a gap."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def shown_cell(row: Mapping[str, Any], column: Column) -> str:
    """One cell of a table as text."""
    value = row.get(column.key)
    return str(value).replace("_", " ") if column.kind == "status" and value else shown(value, column.kind)


def markdown_table(table: Table) -> str:
    """A table in Markdown, its caption above it; what failed in bold."""
    if not table.rows:
        return table.empty
    lines = [table.caption, "", _markdown_row(column.label for column in table.columns)]
    lines.append(_markdown_row("---:" if _CLASSES.get(column.kind) == "right" else "---" for column in table.columns))
    for row in table.rows:
        cells = [markdown_text(shown_cell(row, column)) for column in table.columns]
        lines.append(_markdown_row("**failed**" if cell == "failed" else cell for cell in cells))
    return "\n".join(lines)


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown_text(value: str) -> str:
    """Text that came from data, so that it cannot pose as a table's border, a link or markup."""
    for mark in "\\|`*_[]<>":
        value = value.replace(mark, f"\\{mark}")
    return " ".join(value.split())

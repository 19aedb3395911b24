"""Documents that are whole in themselves, kept as files: no script of ours, nothing loaded, every value escaped, equal
bytes for equal input.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from monitoring.pages.render import FOLDER, environment

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@functools.cache
def style() -> str:
    """The tokens and the base of the pages' stylesheet, for what lies inside `.document` alone: another tool's part of
    the page keeps its looks.
    """
    shared, _, _ = (FOLDER / "static" / "style.css").read_text(encoding="utf-8").partition("/* ==== pages ==== */")
    tokens, dark, base = shared.partition(":root.dark { color-scheme: dark; }\n")
    if not dark:
        raise ValueError("static/style.css has no line that ends its tokens")
    inside = base.replace("\nbody {", "\n& { color-scheme: light dark;").replace("body, main {", "&, main {")
    alone = "body:has(> .document:only-child) { margin: 0; background: var(--page); color-scheme: light dark; }"
    return f"{tokens}{alone}\n.document {{\n{inside}}}\n"


@dataclass(frozen=True)
class Document:
    """Two parts, so that another tool's document can take them in."""

    head: str
    body: str

    def whole(self) -> str:
        """By itself."""
        about = '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">'
        head = f"<head>\n{about}\n{self.head}</head>"
        return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n<body>\n{self.body}\n</body>\n</html>\n'


def document(
    template: str, values: Mapping[str, Any], *, title: str, policy: str = POLICY, stamp: str = ""
) -> Document:
    """A template of ours with its values.

    Args:
        policy: what a browser may load and run.
        stamp: names what the document was made from, empty for none.
    """
    head = Markup('<meta http-equiv="Content-Security-Policy" content="{}">\n<title>{}</title>\n').format(policy, title)
    named = Markup('<meta name="nightfleet-report" content="{}">\n').format(stamp) if stamp else Markup("")
    # The stylesheet is ours: nothing in it comes from data.
    styled = Markup(f"<style>\n{style()}</style>\n")  # noqa: S704
    body = environment().get_template(template).render(values)
    return Document(str(named + head + styled), f'<div class="document">\n{body}\n</div>')

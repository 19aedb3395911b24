"""Documents that are whole in themselves: the pages' own tokens, nothing loaded, text that stays text."""

from __future__ import annotations

import re

from monitoring.pages.document import document, style
from monitoring.pages.page import Column, Table
from monitoring.pages.render import FOLDER

HOSTILE = "</title><script>alert(1)</script>"
COLOUR = re.compile(r"#[0-9a-fA-F]{3,8}\b")


def report(title: str) -> str:
    rows = [{"check": HOSTILE, "value": 0.51234}]
    table = Table("beyond", HOSTILE, (Column("check", "check"), Column("value", "value", "number")), rows)
    values = {"title": title, "facts": [title], "message": title, "notes": [title], "alarming": table, "every": table}
    return document("report.html.jinja", values, title=title, stamp="s").whole()


def test_a_document_is_whole_escaped_and_the_same_for_the_same_input() -> None:
    text = report(HOSTILE)
    assert text == report(HOSTILE)
    assert "<script" not in text
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport"')
    assert "&lt;meta" not in text
    assert "csv" not in text.split("</style>")[1], "a file has no address to download from"
    assert not re.search(r"(?:src|href)=|url\(|@import", text)
    assert '<meta name="nightfleet-report" content="s">' in text
    assert "<td " in text
    assert "0.5123" in text


def test_rules_hold_inside_the_document_alone() -> None:
    tokens, _, inside = style().partition(".document {")
    assert not re.search(r"^(?!:root|body:has)[a-z.*][^{}]*\{", tokens, re.MULTILINE), (
        "the rest of the page is not ours"
    )
    assert inside.count("{") + 1 == inside.count("}")


def test_a_colour_is_written_once_as_a_token_for_day_and_night() -> None:
    tokens, _, rules = (FOLDER / "static" / "style.css").read_text().partition(":root.dark")
    for line in tokens.splitlines():
        if COLOUR.search(line):
            assert len(COLOUR.findall(line)) == 2 * line.count("light-dark("), (
                f"{line} names a colour outside of a pair"
            )
    assert set(COLOUR.findall(rules)) <= {"#fff"}, "paper is white, every other colour has a name: use its token"
    for path in [FOLDER / "model_card.py", FOLDER / "reports.py", *(FOLDER / "templates").glob("*.jinja")]:
        assert "<style" not in path.read_text(), f"{path.name} has rules of its own. They belong to style.css."

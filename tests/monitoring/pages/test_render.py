"""Values from data stay text wherever they stand."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake.lake import Lake
from monitoring.pages.page import Chart, Column, Context, Page, Table, Viewer
from monitoring.pages.render import (
    STATIC,
    embedded_json,
    login_page,
    render,
    shown_cell,
    static_digest,
)

HOSTILE = [
    "<script>alert('x')</script>",
    '" onmouseover="alert(1)',
    "</script><b>",
    "{{ 7 * 7 }}",
    "two\nlines",
    "&amp;",
    "x" * 10_000,
    "\u2028",
]


def rendered(lake: Lake, page: Page, **changed: Any) -> str:
    context = Context(
        lake, Viewer("ada", "viewer"), datetime(2024, 3, 1, tzinfo=UTC), ("ride_minutes",), ("rides",), **changed
    )
    return render(page, context, path="/nightfleet/", query="a=1")


class _Elements(HTMLParser):
    """Names and attributes of all elements, and the text outside scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_cells_of_lists_and_states() -> None:
    assert shown_cell({"a": ["x", 2.5]}, Column("a", "A")) == "x, 2.5"
    assert shown_cell({"a": []}, Column("a", "A")) == "–"
    assert shown_cell({"a": "not_evaluated"}, Column("a", "A", "status")) == "not evaluated"
    assert shown_cell({}, Column("a", "A")) == "–"


@pytest.mark.parametrize("text", HOSTILE)
def test_values_from_data_stay_text_in_tables_captions_and_charts(toy_lake: Lake, text: str) -> None:
    columns = (Column("a", text), Column("b", "b", "status"), Column("c", "c", link="url"))
    table = Table("t", text, columns, [{"a": text, "b": text, "c": text, "url": "/nightfleet/x"}])
    folded = Table("f", text, columns, [{"a": [text], "b": None, "c": None}], folded=True)
    chart = Chart(
        "c", text, {"series": [{"name": text, "data": [float("nan"), 1.0]}]}, text, links={text: "/nightfleet/y"}
    )
    template = "frame.html.jinja"
    page = Page(text, template, {"message": text}, (table, folded), (chart,))
    html = _with_template(
        toy_lake,
        page,
        template,
        "{% block main %}{{ message }}{{ ui.table(page.tables[0]) }}{{ ui.table(page.tables[1]) }}{{ "
        "ui.chart(page.charts[0]) }}{% endblock %}",
    )
    plain = _with_template(
        toy_lake,
        Page(
            "plain",
            template,
            {"message": "plain"},
            (Table("t", "plain", columns, [{"a": "p", "b": "p", "c": "p", "url": "/u"}]), folded),
            (chart,),
        ),
        template,
        "{% block main %}{% endblock %}",
    )
    assert "onmouseover" not in _Elements(html).attributes
    assert _Elements(html).names.count("script") == _Elements(plain).names.count("script") + 1, (
        "the chart's own data, and nothing else"
    )
    assert "49" not in _Elements(html).text or text != "{{ 7 * 7 }}"
    if "<" not in text:
        assert text in _Elements(html).text
    data = html.split('id="chart-c-data">')[1].split("</script>")[0]
    assert json.loads(data)["option"]["series"][0] == {"name": text, "data": [None, 1.0]}
    assert json.loads(data)["links"] == {text: "/nightfleet/y"}


def _with_template(lake: Lake, page: Page, name: str, body: str) -> str:
    """The page in a template of the test's own that extends the real one."""
    import jinja2

    from monitoring.pages import render as module

    environment = module.environment()
    loader = environment.loader
    assert loader is not None
    environment.loader = jinja2.ChoiceLoader(
        [jinja2.DictLoader({name: "{% extends 'base.html.jinja' %}" + body}), loader]
    )
    environment.cache.clear() if environment.cache else None
    try:
        return rendered(lake, page)
    finally:
        environment.loader = loader
        environment.cache.clear() if environment.cache else None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    )
)
def test_embedded_json_is_json_and_cannot_end_its_element(document: Any) -> None:
    text = str(embedded_json(document))
    assert not set("<>&") & set(text)
    json.loads(text)


def test_pages_hold_no_script_or_style_of_their_own(toy_lake: Lake) -> None:
    html = rendered(toy_lake, Page("t", "message.html.jinja", {"message": "m"}), notice="done")
    found = _Elements(html)
    assert "style" not in found.attributes
    assert "style" not in found.names
    assert not {name for name in found.attributes if name.startswith("on")}
    assert "done" in found.text


def test_csv_links_keep_the_address(toy_lake: Lake) -> None:
    page = Page("t", "tonight_like.html.jinja", {}, (Table("t", "c", (Column("a", "A"),), [{"a": 1}]),))
    html = _with_template(toy_lake, page, page.template, "{% block main %}{{ ui.table(page.tables[0]) }}{% endblock %}")
    assert 'href="/nightfleet/?a=1&amp;format=csv&amp;table=t"' in html


def test_an_empty_table_says_so_and_offers_no_csv(toy_lake: Lake) -> None:
    page = Page("t", "empty.html.jinja", {}, (Table("t", "c", (Column("a", "A"),), [], empty="No night yet."),))
    html = _with_template(toy_lake, page, page.template, "{% block main %}{{ ui.table(page.tables[0]) }}{% endblock %}")
    assert "No night yet." in html
    assert "format=csv" not in html


def test_static_files_are_named_by_their_bytes(toy_lake: Lake) -> None:
    assert all(len(static_digest(name)) == 12 for name in STATIC)
    assert f"style.css?{static_digest('style.css')}" in rendered(
        toy_lake, Page("t", "message.html.jinja", {"message": ""})
    )


def test_the_login_page_leads_to_the_login() -> None:
    assert 'href="/auth?next=%2F&amp;x=%22"' in login_page("/auth?next=%2F&x=%22")

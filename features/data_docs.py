"""GX's own data docs of the validated nights, as pages that open without a network.

Below `<reports>/data_docs/`: `static/` (what the pages load), `<dataset>/index.html`, `<dataset>/suites/<suite>.html`
(what is expected), `<dataset>/<interval>/<suite>.html` (how the rows met it). GX's renderers make the pages; its site
builder is not used, because it rewrites the whole site each time.
"""

from __future__ import annotations

import copy
import functools
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.calendar import Interval
from config.settings import Settings
from features.expectations import Suite, gx_suite
from lake.storage import ObjectStore, reports

SITE = "data_docs"
STATIC = Path(__file__).with_name("data_docs_static")
_EXTERNAL = re.compile(r'<link\b[^>]*href="https?://[^>]*>|<script\b[^>]*src="https?://[^>]*>\s*</script>')
_FOOTER = re.compile(r"<footer>.*?</footer>", re.DOTALL)
_LOGO = re.compile(r'<img\s+class="NO-CACHE"[^>]*/>')
_FAVICON = re.compile(r'<link rel="shortcut icon"[^>]*/>')
_REMOTE_BACKGROUND = re.compile(r"url\('https?://[^']*'\)")
_HOME = re.compile(r'href="(?:\.\./)*index\.html"')
_SUITE = re.compile(r'href="(?:\.\./)*expectations/[^"]*"')
_LOCAL = """
    <link rel="stylesheet" href="{up}static/css/bootstrap-table.min.css">
    <link rel="stylesheet" href="{up}static/css/bootstrap.min.css">
    <link rel="stylesheet" href="{up}static/css/fontawesome.min.css">
    <link rel="stylesheet" href="{up}static/css/solid.min.css">
    <script src="{up}static/js/jquery.min.js"></script>
    <script src="{up}static/js/bootstrap.bundle.min.js"></script>
    <script src="{up}static/js/bootstrap-table.min.js"></script>
"""


def write_data_docs(
    settings: Settings, dataset: str, interval: Interval, suites: Mapping[str, Suite], results: Mapping[str, Any]
) -> Path:
    """Write the pages of a validated interval, and the index anew.

    Args:
        suites: each suite's JSON, by its name.
        results: GX's ExpectationSuiteValidationResult of each suite, by its name.
    Returns:
        the index page of the interval's data set.
    """
    from great_expectations.render.renderer import ValidationResultsPageRenderer

    store = reports(settings)
    _install(store)
    view, renderer = _view(), ValidationResultsPageRenderer()
    folder = f"{SITE}/{dataset}/{interval}"
    summary = []
    for name, result in results.items():
        result.meta["run_id"] = {"run_name": str(interval)}
        page = view.render(renderer.render(_with_text(result)), show_how_to_buttons=False)
        page = _SUITE.sub(f'href="../suites/{_file(name)}.html"', page)
        _put(store, f"{folder}/{_file(name)}.html", offline(page, up="../../", title=f"{name}, {interval}"))
        counts = result.statistics
        summary.append(
            {"suite": name, "broken": counts["unsuccessful_expectations"], "of": counts["evaluated_expectations"]}
        )
    _put(store, f"{folder}/summary.json", json.dumps(summary, indent=1))
    for name, suite in suites.items():
        _write_suite(store, f"{SITE}/{dataset}/suites", name, suite)
    return Path(_put(store, f"{SITE}/{dataset}/index.html", _index(store, dataset)))


def _with_text(result: Any) -> Any:
    """A copy of a result whose values from data are escaped: GX writes them into its pages as they are."""
    escaped = copy.deepcopy(result)
    for outcome in escaped.results:
        outcome.result = _escaped(outcome.result)
        outcome.exception_info = _escaped(outcome.exception_info)
    return escaped


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, Mapping):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, (list, tuple, set)) else value


def offline(page: str, *, up: str, title: str) -> str:
    """The page without anything it would load from elsewhere; `up` leads from it to the folder that holds `static/`."""
    page = _EXTERNAL.sub("", page)
    page = _FOOTER.sub("", page)
    page = _FAVICON.sub("", page)
    page = _REMOTE_BACKGROUND.sub("none", page)
    page = _LOGO.sub("Great Expectations", page)
    page = _HOME.sub(f'href="{up.removesuffix("../")}index.html"', page)
    page = page.replace(
        "<title>Data documentation compiled by Great Expectations</title>", f"<title>{html.escape(title)}</title>", 1
    )
    return page.replace("<style>", _LOCAL.format(up=up) + "<style>", 1)


def _file(suite: str) -> str:
    return suite.replace(" ", "_")


def _install(store: ObjectStore) -> None:
    """Put the static files once; those of another content are replaced."""
    target = f"{SITE}/static"
    mark = "\n".join(
        f"{p.relative_to(STATIC).as_posix()} {p.stat().st_size}" for p in sorted(STATIC.rglob("*")) if p.is_file()
    )
    if _text(store, f"{target}/files.txt") == mark:
        return
    for path in sorted(path for path in STATIC.rglob("*") if path.is_file()):
        store.put(f"{target}/{path.relative_to(STATIC).as_posix()}", path)
    _put(store, f"{target}/files.txt", mark)


def _put(store: ObjectStore, key: str, text: str) -> str:
    return store.put(key, text.encode())


def _text(store: ObjectStore, key: str) -> str | None:
    return store.read(key).decode() if store.exists(key) else None


def _write_suite(store: ObjectStore, folder: str, name: str, suite: Suite) -> None:
    text = json.dumps(suite, sort_keys=True, indent=1)
    stored = f"{folder}/{_file(name)}.json"
    if _text(store, stored) == text:
        return
    from great_expectations.render.renderer import ExpectationSuitePageRenderer

    page = _view().render(ExpectationSuitePageRenderer().render(gx_suite(suite)))
    _put(store, f"{folder}/{_file(name)}.html", offline(page, up="../../", title=f"Suite {name}"))
    _put(store, stored, text)


@functools.cache
def _view() -> Any:
    # Kept, because it compiles its templates anew each time it is made.
    from great_expectations.render.view import DefaultJinjaPageView

    return DefaultJinjaPageView()


def _index(store: ObjectStore, dataset: str) -> str:
    folder = f"{SITE}/{dataset}"
    rows, columns = [], 1
    for name in reversed(store.names(folder)):
        summary = _text(store, f"{folder}/{name}/summary.json")
        if summary is None:
            continue  # `suites`
        night = html.escape(name)
        entries = json.loads(summary)
        columns = max(columns, len(entries))
        cells = []
        for entry in entries:
            name, target = (
                html.escape(entry["suite"].removeprefix(f"{dataset}.")),
                html.escape(f"{_file(entry['suite'])}.html"),
            )
            broken = entry["broken"]
            colour, verdict = ("warning", f"{broken} of {entry['of']} broken") if broken else ("success", "all hold")
            cells.append(
                f'<td><a href="{night}/{target}">{name}</a> <span class="badge badge-{colour}">{verdict}</span></td>'
            )
        rows.append(f"<tr><th>{night}</th>{''.join(cells)}</tr>")
    suites = ", ".join(
        f'<a href="suites/{html.escape(name)}">'
        f"{html.escape(name.removesuffix('.html').replace('_by_night', ' by night'))}</a>"
        for name in store.names(f"{folder}/suites")
        if name.endswith(".html")
    )
    title = f"Data docs of {html.escape(dataset)}"
    head = f'<head><meta charset="UTF-8"><title>{title}</title>{_LOCAL.format(up="../")}</head>'
    table = (
        f'<table class="table table-sm"><thead><tr><th>Nights</th><th colspan="{columns}">What was'
        " found</th></tr></thead>"
    )
    body = (
        f"<h1>{title}</h1>\n<p>What is expected: {suites}.</p>\n{table}<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody></table>"
    )
    return f'<!DOCTYPE html>\n<html>{head}\n<body class="container-fluid p-4">{body}</body></html>\n'

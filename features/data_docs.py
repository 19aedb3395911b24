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
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.calendar import Interval
from config.settings import Settings
from features.expectations import Suite, gx_suite

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

    site = settings.reports / "data_docs"
    _install(site)
    view, renderer = _view(), ValidationResultsPageRenderer()
    folder = site / dataset / str(interval)
    summary = []
    for name, result in results.items():
        result.meta["run_id"] = {"run_name": str(interval)}
        page = view.render(renderer.render(_with_text(result)), show_how_to_buttons=False)
        page = _SUITE.sub(f'href="../suites/{_file(name)}.html"', page)
        _write(folder / f"{_file(name)}.html", offline(page, up="../../", title=f"{name}, {interval}"))
        counts = result.statistics
        summary.append(
            {"suite": name, "broken": counts["unsuccessful_expectations"], "of": counts["evaluated_expectations"]}
        )
    _write(folder / "summary.json", json.dumps(summary, indent=1))
    for name, suite in suites.items():
        _write_suite(site / dataset / "suites", name, suite)
    index = site / dataset / "index.html"
    _write(index, _index(site / dataset, dataset))
    return index


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


def _install(site: Path) -> None:
    """Copy the static files once; a folder of another content is replaced."""
    target = site / "static"
    mark = "\n".join(
        f"{p.relative_to(STATIC).as_posix()} {p.stat().st_size}" for p in sorted(STATIC.rglob("*")) if p.is_file()
    )
    if (target / "files.txt").is_file() and (target / "files.txt").read_text(encoding="utf-8") == mark:
        return
    site.mkdir(parents=True, exist_ok=True)
    shutil.copytree(STATIC, target, dirs_exist_ok=True)
    _write(target / "files.txt", mark)


def _write(path: Path, text: str) -> None:
    """Replace the file at once: a page may be open, and two runs may write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _write_suite(folder: Path, name: str, suite: Suite) -> None:
    text = json.dumps(suite, sort_keys=True, indent=1)
    stored = folder / f"{_file(name)}.json"
    if stored.is_file() and stored.read_text(encoding="utf-8") == text:
        return
    from great_expectations.render.renderer import ExpectationSuitePageRenderer

    page = _view().render(ExpectationSuitePageRenderer().render(gx_suite(suite)))
    _write(folder / f"{_file(name)}.html", offline(page, up="../../", title=f"Suite {name}"))
    _write(stored, text)


@functools.cache
def _view() -> Any:
    # Kept, because it compiles its templates anew each time it is made.
    from great_expectations.render.view import DefaultJinjaPageView

    return DefaultJinjaPageView()


def _index(folder: Path, dataset: str) -> str:
    rows, columns = [], 1
    for path in sorted(folder.glob("*/summary.json"), reverse=True):
        night = html.escape(path.parent.name)
        entries = json.loads(path.read_text(encoding="utf-8"))
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
        f'<a href="suites/{html.escape(path.name)}">{html.escape(path.stem.replace("_by_night", " by night"))}</a>'
        for path in sorted((folder / "suites").glob("*.html"))
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

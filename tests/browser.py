"""A real Chromium that may talk to one origin only, and what is asked of any page in it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright

from tests.conftest import missing_service

Theme = Literal["light", "dark"]
# Colours are the same at every width: the dark ones are looked at once.
LOOKS: tuple[tuple[int, Theme], ...] = ((390, "light"), (1440, "light"), (1440, "dark"))
# Chromium calls home for updates and field trials; in a container it has neither a sandbox nor a GPU.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
_ACCESSIBILITY = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], "resultTypes": ["violations"]}


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, driven by Playwright."""
    path = shutil.which("chromium")
    if path is None:
        missing_service("Chromium is not installed")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """One person's window. `problems` gathers errors of the console, scripts that fell over, and requests to anybody
    else.
    """

    context: BrowserContext
    page: Page
    origin: str
    problems: list[str] = field(default_factory=list)

    def open(self, path: str) -> Page:
        """Go to an address of the origin, and wait until its charts are drawn."""
        self.page.goto(f"{self.origin}{path}")
        drawn(self.page)
        return self.page


@contextmanager
def visit(browser: Browser, origin: str, *, width: int = 1440, theme: Theme = "light") -> Iterator[Visit]:
    """A window of its own: no cookies of another's, no request to another host."""
    height = 844 if width < 600 else 900
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, accept_downloads=True
    )
    context.add_init_script(f"try {{ localStorage.setItem('theme', '{theme}') }} catch {{}}")
    page = context.new_page()
    window = Visit(context, page, origin)

    def guard(route: Route) -> None:
        parts = urlsplit(route.request.url)
        if f"{parts.scheme}://{parts.netloc}" == origin:
            route.continue_()
        else:
            window.problems.append(f"a request to {route.request.url}")
            route.abort()

    context.route(lambda url: not url.startswith(("data:", "blob:", "about:")), guard)
    context.on(
        "console",
        lambda message: (
            window.problems.append(f"console: {message.text} ({message.location.get('url', '')})")
            if message.type == "error"
            else None
        ),
    )
    context.on("weberror", lambda error: window.problems.append(f"script: {error.error}"))
    try:
        yield window
    finally:
        context.close()


def drawn(frame: Any) -> None:
    """Wait until every chart of a page or frame is drawn."""
    frame.wait_for_load_state("load")
    frame.wait_for_function("document.querySelectorAll('[data-chart]:not([data-drawn])').length === 0")


def sideways(page: Page) -> list[str]:
    """What sticks out of the window to the right and makes the page scroll sideways; empty where nothing does."""
    wide: list[str] = page.evaluate("""() => {
            const width = document.documentElement.clientWidth;
            if (document.documentElement.scrollWidth <= width) return [];
            const clips = (e) => getComputedStyle(e).overflowX !== 'visible';
            const clipped = (e) => {
                for (let p = e.parentElement; p; p = p.parentElement) if (clips(p)) return true; return false; };
            return [...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > width
              + 1 && !clipped(e))
                .map((e) => `${e.tagName} ${e.className} ${e.textContent.trim().slice(0, 60)}`).slice(0, 5);
        }""")
    return wide


def violations(page: Page) -> list[str]:
    """What axe finds against WCAG 2.1 A and AA."""
    from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]

    results = Axe().run(page, options=_ACCESSIBILITY)
    return [
        f"{violation['id']}: {violation['help']}: {node['target']} {node['html'][:160]} {_why(node)}"
        for violation in results.response["violations"]
        for node in violation["nodes"][:4]
    ]


def _why(node: dict[str, Any]) -> str:
    contrasts = [check["data"] for check in node.get("any", []) if isinstance(check.get("data"), dict)]
    return ", ".join(
        f"{key} {data[key]}" for data in contrasts for key in ("fgColor", "bgColor", "contrastRatio") if key in data
    )


def shown_table(page: Any, name: str) -> list[list[str]]:
    """Header and rows of a table as a person reads them, by its name in the CSV link."""
    rows: list[list[str]] = page.evaluate(
        """(name) => {
            const link = [...document.querySelectorAll('a.csv')].find((a) =>
              new URL(a.href).searchParams.get('table') === name);
            let at = link;
            while (at && !at.querySelector('table')) at = at.parentElement;
            const after = [...at.querySelectorAll('table')].find((t) =>
              link.compareDocumentPosition(t) & Node.DOCUMENT_POSITION_FOLLOWING);
            return [...after.rows].map((row) => [...row.cells].map((cell) => cell.innerText.trim()));
        }""",
        name,
    )
    return rows


def table_names(page: Any) -> list[str]:
    """Tables that the page offers as CSV."""
    names: list[str] = page.evaluate(
        "[...document.querySelectorAll('a.csv')].map((a) => new URL(a.href).searchParams.get('table'))"
    )
    return names


def controls(page: Any) -> list[str]:
    """What a person can use: links, buttons, fields, handles of folded parts; those that are visible and enabled, in
    the document's order.
    """
    usable: list[str] = page.evaluate(_NAMED + "visible().map(named)")
    return usable


def tabbed_through(page: Page) -> list[str]:
    """What the Tab key reaches, in its order, from the top of the page until it leaves it."""
    page.evaluate("document.activeElement && document.activeElement.blur(); window.scrollTo(0, 0)")
    page.evaluate("document.body.tabIndex = -1; document.body.focus()")
    reached: list[str] = []
    nowhere = 0
    for _ in range(3_000):
        page.keyboard.press("Tab")
        name = page.evaluate(
            _NAMED
            + "document.activeElement === document.body || !document.activeElement ? '' : named(document.activeElement)"
        )
        # Within a frame the page itself has no focus for a stop; past its end it has none for good.
        nowhere = 0 if name else nowhere + 1
        if nowhere == 3 or (reached and name == reached[0]):
            break
        if not name:
            continue
        # A date's field is three stops: year, month, day.
        if not reached or name != reached[-1]:
            reached.append(name)
    return reached


_NAMED = """
const selector = 'a[href], button, input:not([type=hidden]), select, textarea, summary, iframe';
const visible = () => [...document.querySelectorAll(selector)].filter((e) =>
  !e.disabled && e.tabIndex >= 0 && e.checkVisibility({visibilityProperty: true}));
const words = (e) => (e.innerText || e.name || '').trim().slice(0, 40);
const named = (e) => `${e.tagName.toLowerCase()} ${[...document.querySelectorAll('*')].indexOf(e)} ${words(e)}`;
"""


def same_cell(shown: str, value: str) -> bool:
    """Whether a cell says what its value in the CSV is: numbers rounded, instants to the minute, words without
    underscores, a line for each part.
    """
    shown, value = " ".join(shown.split()), " ".join(value.split())
    if value == "":
        return shown in {"–", ""}
    try:
        number = float(value)
    except ValueError:
        pass
    else:
        cleaned = shown.replace(",", "")
        try:
            shown_number = float(cleaned.removesuffix("%")) / (100 if cleaned.endswith("%") else 1)
        except ValueError:
            return False
        return abs(shown_number - number) <= max(6e-3 if cleaned.endswith("%") else 1e-6, 1e-3 * abs(number))
    if re.fullmatch(r"\d{4}-\d\d-\d\dT.*", value):
        return shown == f"{value[:10]} {value[11:16]} UTC"
    spelled = {
        value,
        value.removeprefix("'"),
        value.replace("_", " "),
        value.replace("; ", ", "),
        value.replace("; ", " "),
        {"True": "yes", "False": "no"}.get(value, value),
    }
    return shown in spelled

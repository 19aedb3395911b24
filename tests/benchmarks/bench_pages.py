"""Load times of the pages on 365 nights × 16 models × 30 features: the server's answer, and a cold browser until charts
are drawn.

Everything runs on this machine: the server in a process of its own, Chromium beside it, no network between them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from playwright.sync_api import Browser

from tests import generated_year
from tests.browser import chromium, drawn, visit
from tests.pages_server import serving

NEWEST = generated_year.LAST
# Ten models of a request each would hide the slow one: these are the ones with the most to say.
PAGES = {
    "tonight": "/nightfleet/",
    "model, 90 nights": "/nightfleet/models/parcel_demand",
    "model, all 365 nights": (
        f"/nightfleet/models/parcel_demand?from={NEWEST.replace(day=31, month=12, year=NEWEST.year - 1)}&to={NEWEST}"
    ),
    "model, two periods": (
        "/nightfleet/models/store_duration?from=2025-11-01&to=2025-12-28&compare_from=2025-09-01&compare_to=2025-10-28"
    ),
    "drift report": f"/nightfleet/models/parcel_demand/nights/{NEWEST}",
    "retraining": "/nightfleet/retraining",
    "data": "/nightfleet/data/parcels",
    "data, a quarantined night": f"/nightfleet/data/parcels?table=plans&night={NEWEST}",
    "trace": f"/nightfleet/trace?id={generated_year.prediction_id('parcel_delay', NEWEST, 3)}",
}
SERVER_SECONDS = 0.2
LOADED_SECONDS = 1.0
REPEATS = 7
_WATCH = """
new MutationObserver(() => { window.charted = performance.now(); })
    .observe(document, {subtree: true, attributes: true, attributeFilter: ['data-drawn']});
"""


def run() -> list[dict[str, Any]]:
    """Three rows a page: the server's answer, the browser's load event, and the last chart drawn."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-pages-") as folder:
        home = Path(folder) / "var"
        begun = time.perf_counter()
        generated_year.fill(home)
        rows.append(
            {
                "what": "filling the year",
                "seconds": time.perf_counter() - begun,
                "against": "a minute",
                "ratio": (time.perf_counter() - begun) / 60,
            }
        )
        with serving(home) as origin, chromium() as browser:
            for name, path in PAGES.items():
                rows += _page(browser, origin, name, path)
    return rows


def _page(browser: Browser, origin: str, name: str, path: str) -> list[dict[str, Any]]:
    _answered(origin + path)  # imports and caches of the first request are not the page's
    answered = statistics.median(_answered(origin + path) for _ in range(REPEATS))
    loads = [_loaded(browser, origin, path) for _ in range(REPEATS)]
    loaded, charted = (statistics.median(pair[k] for pair in loads) for k in (0, 1))
    measured = (
        ("the server's answer", answered, SERVER_SECONDS),
        ("load event", loaded, LOADED_SECONDS),
        ("charts drawn", charted, LOADED_SECONDS),
    )
    return [
        {"what": f"{name}: {what}", "seconds": seconds, "against": f"{aim:g} s", "ratio": seconds / aim, "aim": "≤ 1"}
        for what, seconds, aim in measured
    ]


def _answered(address: str) -> float:
    begun = time.perf_counter()
    with urlopen(address, timeout=60) as answer:
        answer.read()
    return time.perf_counter() - begun


def _loaded(browser: Browser, origin: str, path: str) -> tuple[float, float]:
    """Seconds from the navigation's begin to the load event, and to the last chart; nothing is cached."""
    with visit(browser, origin) as window:
        window.context.add_init_script(_WATCH)
        window.page.goto(origin + path)
        drawn(window.page)
        charted = float(window.page.evaluate("window.charted ?? 0"))
        loaded = float(window.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
        return loaded / 1_000, max(charted, loaded) / 1_000

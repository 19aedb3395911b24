"""Every page on a generated season, as anybody reads it: both widths, both themes, the keyboard alone, the numbers as
CSV.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog

from tests import generated_year
from tests.browser import (
    LOOKS,
    Theme,
    chromium,
    controls,
    drawn,
    same_cell,
    shown_table,
    sideways,
    tabbed_through,
    table_names,
    violations,
    visit,
)
from tests.pages_server import serving

NIGHTS = 70
NEWEST = generated_year.LAST
PAGES = {
    "tonight": "/nightfleet/",
    "model": "/nightfleet/models/parcel_demand",
    "model, two periods": (
        "/nightfleet/models/store_duration?from=2025-12-01&to=2025-12-28&compare_from=2025-11-03&compare_to=2025-11-30"
    ),
    "a model in rollout": "/nightfleet/models/store_demand",
    "drift report": f"/nightfleet/models/parcel_demand/nights/{NEWEST}",
    "drift report of a quiet night": f"/nightfleet/models/bus_wear/nights/{NEWEST}",
    "retraining": "/nightfleet/retraining",
    "retraining of one model": "/nightfleet/retraining?model=store_duration",
    "data": "/nightfleet/data/parcels",
    "data of a night": f"/nightfleet/data/parcels?table=plans&night={NEWEST}",
    "trace": "/nightfleet/trace",
    "trace of a prediction": f"/nightfleet/trace?id={generated_year.prediction_id('parcel_delay', NEWEST, 3)}",
    "no such model": "/nightfleet/models/nothing",
    "no such period": "/nightfleet/models/parcel_demand?from=yesterday",
}
_REFUSED = {"no such model": 404, "no such period": 400}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("season") / "var"
    generated_year.fill(home, nights=NIGHTS)
    return home


@pytest.fixture(scope="module")
def origin(home: Path) -> Iterator[str]:
    """Address of the pages as an admin sees them: every form is there."""
    with serving(home, "admin") as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_a_page_fits_its_window_is_accessible_and_asks_nobody_else(
    browser: Browser, origin: str, name: str, width: int, theme: Theme
) -> None:
    with visit(browser, origin, width=width, theme=theme) as window:
        answer = window.page.goto(f"{origin}{PAGES[name]}")
        assert answer is not None
        assert answer.status == _REFUSED.get(name, 200), window.page.inner_text("body")
        drawn(window.page)
        assert window.page.evaluate("document.documentElement.classList.contains('dark')") == (theme == "dark")
        assert sideways(window.page) == []
        # A folded part is part of the page.
        window.page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true })")
        assert sideways(window.page) == []
        assert violations(window.page) == [], f"{name}, {width} px, {theme}"
        expected = [] if name not in _REFUSED else [p for p in window.problems if "Failed to load resource" in p][:1]
        assert window.problems == expected


@pytest.mark.parametrize("name", PAGES)
def test_every_control_is_reached_by_the_tab_key_in_the_order_of_the_page(
    browser: Browser, origin: str, name: str
) -> None:
    with visit(browser, origin) as window:
        page = window.open(PAGES[name])
        wanted = [control for control in controls(page) if not control.startswith("iframe")]
        reached = [control for control in tabbed_through(page) if control in set(wanted)]
        assert reached == wanted


@pytest.mark.parametrize("name", [name for name in PAGES if name not in _REFUSED])
def test_the_csv_of_a_table_holds_the_rows_that_are_shown(browser: Browser, origin: str, name: str) -> None:
    with visit(browser, origin) as window:
        page = window.open(PAGES[name])
        page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true })")
        for place, table in enumerate(table_names(page)):
            shown = shown_table(page, table)
            with page.expect_download() as waiting:
                page.locator("a.csv").nth(place).click()
            downloaded = waiting.value
            assert downloaded.suggested_filename == f"{table}.csv"
            rows = list(csv.reader(io.StringIO(Path(downloaded.path()).read_text(encoding="utf-8"), newline="")))
            # Of rows set aside the page shows fifty, the file has all.
            first_page = rows[: len(shown)] if table.startswith("quarantine") else rows
            assert len(first_page) == len(shown), table
            for seen, told in zip(shown[1:], first_page[1:], strict=True):
                if len(seen) < len(told):  # one cell tells what several columns hold
                    together = " ".join(" ".join(seen).split())
                    assert any(len(value) > 3 and " ".join(value.split()) in together for value in told), (
                        f"{name}, table {table}: {seen}, {told}"
                    )
                    continue
                different = [
                    (cell, value) for cell, value in zip(seen, told, strict=True) if not same_cell(cell, value)
                ]
                assert not different, f"{name}, table {table}"


def test_what_comes_from_data_is_text(browser: Browser, origin: str) -> None:
    dialogs: list[str] = []
    with visit(browser, origin) as window:

        def refuse(dialog: Dialog) -> None:
            dialogs.append(dialog.message)
            dialog.dismiss()

        window.page.on("dialog", refuse)
        hostile = [
            PAGES["model"],
            PAGES["data of a night"],
            PAGES["retraining"],
            "/nightfleet/models/%3Cscript%3Ealert(1)%3C%2Fscript%3E",
        ]
        seen = ""
        for path in hostile:
            seen += window.open(path).inner_text("body")
        assert "<script>alert('north')</script>" in seen
        assert "<script>alert('bad')</script>" in seen
        assert "<b>Refit</b> after the depot's move" in seen
    assert dialogs == []

"""Embedded documents: only those of the catalog's models and data sets, from their folders, without an origin, and with
data shown as text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pytest
from playwright.sync_api import Browser, Dialog, expect

from config.calendar import Interval
from features.validate import DataRejected, validate
from lake.lake import Lake
from lake.tables import valid_table
from monitoring.drift import drift
from monitoring.pages import embedded
from monitoring.pages.embedded import DRAWN, SANDBOX, STILL, document, has_document, suite_files
from monitoring.pages.page import BadAddress, Context, NotFound, Viewer
from monitoring.pages.reports import _column_pair, _evidently_drift, _Page, _whole, report
from monitoring.pages.story import known_from
from monitoring.performance import performance
from tests import toy
from tests.browser import chromium
from tests.features.test_validate import SOME, edit, lake_with
from tests.monitoring import scenario
from tests.monitoring.scenario import NIGHT
from tests.serving.scenario import MODEL

HOSTILE = '<script>window.owned=1;alert(1)</script><img src=x onerror="window.owned=1;alert(2)">\'"&'
PLAIN = "<!doctype html><html><body><p>fine</p></body></html>"


def noting(dialogs: list[str]) -> Callable[[Dialog], None]:
    """Keeps what a dialog says, and closes it: an open one would stop the page."""

    def note(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    return note


def context_of(lake: Lake) -> Context:
    return Context(
        lake=lake,
        viewer=Viewer("ann", "viewer"),
        now=datetime(2024, 2, 20, tzinfo=UTC),
        models=(MODEL,),
        datasets=("rides",),
    )


@pytest.fixture
def context(toy_lake: Lake) -> Context:
    """An empty lake with one of each kind of document."""
    reports = toy_lake.settings.reports
    for path in (
        f"{MODEL}/2024-02-15/drift.html",
        f"{MODEL}/2024-02-16/performance.html",
        f"{MODEL}/model_cards/3.html",
        "data_docs/rides/index.html",
        "data_docs/rides/suites/rides.bookings.html",
        "data_docs/rides/2024-01-01..2024-02-01/rides.outcomes_by_night.html",
    ):
        (reports / path).parent.mkdir(parents=True, exist_ok=True)
        (reports / path).write_text(PLAIN)
    return context_of(toy_lake)


# ---- addresses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "policy"),
    [
        (f"{MODEL}/2024-02-15/drift.html", DRAWN),
        (f"{MODEL}/2024-02-16/performance.html", DRAWN),
        (f"{MODEL}/model_cards/3.html", STILL),
        ("data_docs/rides/index.html", DRAWN),
        ("data_docs/rides/suites/rides.bookings.html", DRAWN),
        ("data_docs/rides/2024-01-01..2024-02-01/rides.outcomes_by_night.html", DRAWN),
    ],
)
def test_each_kind_is_served_under_its_own_policy(context: Context, path: str, policy: str) -> None:
    found = document(context, path)
    assert (found.content.decode(), found.media_type, found.policy) == (PLAIN, "text/html; charset=utf-8", policy)
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    assert rules["default-src"] == ["'none'"]
    assert "allow-same-origin" not in rules["sandbox"], (
        "with its origin a document could act as the person who reads it"
    )
    assert not {"connect-src", "frame-src", "worker-src", "object-src"} & set(rules), (
        "default-src 'none' covers what is not named"
    )
    assert rules["form-action"] == rules["base-uri"] == ["'none'"]


@pytest.mark.parametrize(
    ("path", "error", "says"),
    [
        ("", BadAddress, "a part of it is empty or a dot"),
        ("..", BadAddress, "a dot"),
        (f"{MODEL}/../nightfleet.db", BadAddress, "a dot"),
        (f"{MODEL}/./2024-02-15/drift.html", BadAddress, "a dot"),
        (f"{MODEL}//2024-02-15/drift.html", BadAddress, "empty"),
        (f"/{MODEL}/2024-02-15/drift.html", BadAddress, "empty"),
        (f"{MODEL}/2024-02-15/drift.html/", BadAddress, "empty"),
        (f"{MODEL}/2024-02-15/..%2f..%2fsecrets", BadAddress, "no percent"),
        (f"{MODEL}/2024-02-15/%2e%2e", BadAddress, "no percent"),
        (f"{MODEL}\\2024-02-15\\drift.html", BadAddress, "no backslash"),
        (f"{MODEL}/2024-02-15/drift.html\x00.png", BadAddress, "printable"),
        (f"{MODEL}/2024-02-15/drift.html\n", BadAddress, "printable"),
        ("a" * 10_000, BadAddress, "at most 400"),
        ("other/2024-02-15/drift.html", NotFound, f"There are: {MODEL}"),
        ("<script>/2024-02-15/drift.html", NotFound, "there is no model '<script>'"),
        (f"{MODEL}/2024-02-15", NotFound, "There are: <model>/<data date>/drift.html"),
        (f"{MODEL}/2024-02-30/drift.html", BadAddress, "not a valid data date"),
        (f"{MODEL}/20240215/drift.html", BadAddress, "data date"),
        (f"{MODEL}/2024-02-15/secrets.html", NotFound, "There are: drift.html, performance.html"),
        (f"{MODEL}/2024-02-17/drift.html", NotFound, "There are: 2024-02-15, 2024-02-16."),
        (f"{MODEL}/model_cards/4.html", NotFound, "There are: 3."),
        (f"{MODEL}/model_cards/../x", BadAddress, "a dot"),
        (f"{MODEL}/model_cards/x.html", BadAddress, "needs <version>.html"),
        (f"{MODEL}/model_cards/٣.html", BadAddress, "needs <version>.html"),
        ("data_docs/rides", NotFound, "There are: data_docs/<data set>/index.html"),
        ("data_docs/flights/index.html", NotFound, "there is no data set 'flights'"),
        ("data_docs/rides/summary.json", NotFound, "There is: index.html"),
        ("data_docs/static/css/bootstrap.min.css", NotFound, "no data set 'static'"),
        ("data_docs/rides/2024-01-01..x/rides.outcomes.html", BadAddress, "'x' is not a valid data date"),
        ("data_docs/rides/suites/rides.bookings.json", NotFound, "There are: rides.bookings.html"),
        ("data_docs/rides/2024-01-09/rides.outcomes.html", NotFound, "2024-01-01..2024-02-01"),
    ],
)
def test_anything_else_is_refused_and_says_what_there_is(
    context: Context, path: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=".*") as caught:
        document(context, path)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 1_000
    assert not has_document(context, path)


def test_a_model_that_the_person_may_not_see_is_not_there(context: Context) -> None:
    blind = Context(lake=context.lake, viewer=context.viewer, now=context.now, models=(), datasets=())
    for path in (f"{MODEL}/2024-02-15/drift.html", f"{MODEL}/model_cards/3.html", "data_docs/rides/index.html"):
        with pytest.raises(NotFound):
            document(blind, path)


@pytest.mark.parametrize("what", ["file", "folder", "model"])
def test_links_do_not_lead_out_of_the_folder(context: Context, tmp_path: Path, what: str) -> None:
    outside = tmp_path / "outside"
    (outside / "2024-02-15").mkdir(parents=True)
    (outside / "2024-02-15" / "drift.html").write_text("secret")
    model = context.lake.settings.reports / MODEL
    path = f"{MODEL}/2024-02-15/drift.html"
    old, new = {
        "file": (model / "2024-02-15" / "drift.html", outside / "2024-02-15" / "drift.html"),
        "folder": (model / "2024-02-15", outside / "2024-02-15"),
        "model": (model, outside),
    }[what]
    old.rename(tmp_path / "moved")
    old.symlink_to(new)
    with pytest.raises(NotFound, match="its path leads out of the folder of reports"):
        document(context, path)


def test_a_reports_folder_that_is_itself_a_link_is_fine(context: Context, tmp_path: Path) -> None:
    reports = context.lake.settings.reports
    reports.rename(tmp_path / "elsewhere")
    reports.symlink_to(tmp_path / "elsewhere")
    assert document(context, f"{MODEL}/2024-02-15/drift.html").content.decode() == PLAIN


def test_a_folder_or_a_giant_in_a_report_s_place_is_refused(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    path = context.lake.settings.reports / MODEL / "2024-02-15" / "drift.html"
    monkeypatch.setattr(embedded, "_LARGEST_BYTES", 10)
    with pytest.raises(NotFound, match="bytes, at most 10 are"):
        document(context, f"{MODEL}/2024-02-15/drift.html")
    path.unlink()
    path.mkdir()
    with pytest.raises(NotFound):
        document(context, f"{MODEL}/2024-02-15/drift.html")


# ---- in a real browser -----------------------------------------------------------------------------------------


@contextmanager
def served(context: Context) -> Iterator[str]:
    """The documents at /embedded/…, with a login's cookie, and at /frame/… a page that embeds them; what was asked
    without the cookie is refused.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, _, path = unquote(self.path).lstrip("/").partition("/")
            if kind == "frame":
                sandbox = "" if "model_cards" in path else SANDBOX
                body, policy = (
                    f'<iframe sandbox="{sandbox}" src="/embedded/{path}" width=1200 height=800></iframe>'.encode(),
                    "frame-src 'self'",
                )
            elif kind == "embedded":
                found = document(context, path)
                body, policy = found.content, found.policy
            else:
                body, policy = b"", "default-src 'none'"
            self.send_response(200)
            self.send_header("content-type", "text/html; charset=utf-8")
            self.send_header("content-security-policy", policy)
            self.send_header("set-cookie", "login=1; SameSite=Lax")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@contextmanager
def looked_at(browser: Browser, context: Context, path: str) -> Iterator[Any]:
    """The document in its frame; at the end: nothing of it ran that came from data, nothing was asked of anybody."""
    with served(context) as origin:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        dialogs: list[str] = []
        asked: list[str] = []
        page.on("dialog", noting(dialogs))
        page.on("request", lambda request: asked.append(request.url))
        try:
            page.goto(f"{origin}/frame/{path}")
            frame = page.frames[1]
            frame.wait_for_load_state("load")
            assert frame.evaluate("window.origin") == "null", (
                "a document with an origin could act as the person who reads it"
            )
            yield frame
            page.wait_for_load_state("networkidle")
            assert frame.evaluate("typeof window.owned") == "undefined", "a value from data ran as a script"
            assert (
                frame.evaluate("(() => { try { return document.cookie } catch { return 'refused' } })()") == "refused"
            )
            assert (
                frame.evaluate("(() => { try { return parent.document.title } catch { return 'refused' } })()")
                == "refused"
            )
            alone = browser.new_page()
            alone.on("dialog", noting(dialogs))
            alone.goto(f"{origin}/embedded/{path}")
            assert alone.evaluate("window.origin") == "null", "also opened alone"
            alone.close()
            assert dialogs == []
            assert {url for url in asked if not url.startswith(("data:", "blob:"))} <= {
                f"{origin}/frame/{path}",
                f"{origin}/embedded/{path}",
            }
        finally:
            page.close()


def put(lake: Lake, path: str, text: str) -> str:
    target = lake.settings.reports / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return path


def test_evidently_s_report_shows_a_hostile_carrier_as_text(toy_lake: Lake, browser: Browser) -> None:
    column = "schedule__carrier"
    profile = {"kind": "categorical", "categories": ["UA", HOSTILE], "method": "psi", "windows": 9}
    pair = _column_pair(
        column, pa.chunked_array([["UA", HOSTILE] * 20]), pa.chunked_array([["UA", HOSTILE, HOSTILE] * 9]), profile, []
    )
    assert pair is not None
    row: dict[str, Any] = {
        "check": "drift_psi",
        "column": column,
        "value": 0.4,
        "threshold": 0.3,
        "status": "warning",
        "reason": HOSTILE,
        "n": 3,
    }
    row |= {"about_date": NIGHT, "lower": None, "upper": None, "segment": f"carrier={HOSTILE}"}
    drawn = _evidently_drift({column: pair}, {column: profile}, {column: row}, 0.3, set())
    path = put(
        toy_lake,
        f"{MODEL}/{NIGHT}/drift.html",
        _whole(_Page(HOSTILE, [HOSTILE], [row], [HOSTILE]), HOSTILE, "stamp", drawn),
    )
    with looked_at(browser, context_of(toy_lake), path) as frame:
        assert frame.locator("h1").first.inner_text() == HOSTILE
        assert f"carrier={HOSTILE}" in frame.locator(".document").inner_text()
        frame.get_by_text("Dataset Drift").first.wait_for()  # Evidently's own script has drawn
        frame.locator("td", has_text=column).last.wait_for()
        frame.locator("tr:has(td:text-is('cat')) button, tr:has-text('cat') button").first.click()
        frame.get_by_text("<script>window.owned").or_(frame.get_by_text("&lt;script&gt;window.owned")).first.wait_for()


def test_the_performance_report_of_a_real_night_shows_a_hostile_segment_as_text(fresh: Lake, browser: Browser) -> None:
    bookings = valid_table(fresh.settings, fresh.dataset("rides"), "bookings")
    rows = bookings.read([NIGHT])
    depots = [HOSTILE if depot == "north" else depot for depot in rows["depot"].to_pylist()]
    toy.publish_rows(
        fresh,
        bookings,
        rows.set_column(rows.column_names.index("depot"), "depot", pa.array(depots)),
        Interval.of(NIGHT),
    )
    scenario.decide_gate(fresh)
    scenario.score_all(fresh)
    judge = known_from(fresh, MODEL, NIGHT)
    drift(fresh, MODEL, Interval.of(judge), run_id="t")
    performance(fresh, MODEL, Interval.of(judge), run_id="t")
    report(fresh, MODEL, Interval.of(judge), run_id="t")
    with looked_at(browser, context_of(fresh), f"{MODEL}/{judge}/performance.html") as frame:
        frame.get_by_text("numbers of this night").click()
        assert frame.get_by_role("cell", name=f"depot={HOSTILE}", exact=True).count() == 4, (
            "two outputs, and the baseline of each"
        )
        frame.locator("svg, .plotly, canvas").first.wait_for()


def test_data_docs_show_hostile_values_as_text_with_all_they_need_in_them(tmp_path: Path, browser: Browser) -> None:
    lake = lake_with(tmp_path, SOME)
    edit(lake, "bookings", SOME, lambda rows: [{**row, "depot": HOSTILE} if row["ride"] < 4 else row for row in rows])
    with suppress(DataRejected):  # too many bad rows: their page is what an analyst opens
        validate(lake, "rides", SOME, run_id="r")
    path = f"data_docs/rides/{SOME}/rides.bookings.html"
    with looked_at(browser, context_of(lake), path) as frame:
        assert HOSTILE in frame.locator("body").inner_text()
        # Style and script came along: the filter's button works, and the icons' font is there.
        assert frame.evaluate("getComputedStyle(document.querySelector('.btn')).borderRadius") != "0px"
        assert frame.evaluate("typeof window.jQuery") == "function"
        assert (
            frame.evaluate("document.fonts.load('900 16px \"Font Awesome 6 Free\"').then((found) => found.length)") == 1
        )
        rows = frame.locator("tr:visible")
        before = rows.count()
        frame.get_by_text("Failed Only").click()
        expect(rows).not_to_have_count(before)
    for other in ("data_docs/rides/index.html", "data_docs/rides/suites/rides.bookings.html"):
        with looked_at(browser, context_of(lake), other) as frame:
            assert frame.locator("a[href]:not([href^='#'])").count() == 0, "a link would be followed without the login"
    assert {name.name for name in (lake.settings.reports / "data_docs" / "rides" / "suites").glob("*.html")} == set(
        suite_files(lake.dataset("rides"))
    )


def test_a_page_that_does_not_escape_is_held_by_the_sandbox(toy_lake: Lake, browser: Browser) -> None:
    """The last line of defence: whatever runs in there has no login, no origin, and reaches nobody."""
    thief = """<script>
        window.results = [];
        const tried = (name, act) => {
            try { Promise.resolve(act()).then(() => results.push(name), () => 0) } catch {} };
        tried('cookie', () => document.cookie);
        tried('storage', () => localStorage.setItem('a', 'b'));
        tried('parent', () => parent.document.body.innerText);
        tried('fetch', () => fetch('/embedded/x', {credentials: 'include'}));
        tried('popup', () => { if (!window.open('/')) throw 0 });
        tried('top', () => { top.location = '/stolen' });
    </script><form action="/actions/x" method="post"><button>go</button></form>"""
    path = put(toy_lake, f"{MODEL}/{NIGHT}/drift.html", f"<!doctype html><html><body>{thief}</body></html>")
    with served(context_of(toy_lake)) as origin:
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(f"{request.method} {request.url}"))
        page.goto(f"{origin}/frame/{path}")
        page.frames[1].get_by_role("button").click()
        page.wait_for_load_state("networkidle")
        assert page.frames[1].evaluate("window.results") == []
        assert asked == [f"GET {origin}/frame/{path}", f"GET {origin}/embedded/{path}"]
        page.close()


def test_links_inside_a_frame_would_be_followed_without_the_login(toy_lake: Lake, browser: Browser) -> None:
    """Why the data docs' links are taken out: a browser sends no login with what a document without an origin asks
    for.
    """
    path = put(
        toy_lake,
        f"{MODEL}/{NIGHT}/drift.html",
        f'<!doctype html><html><body><a href="/embedded/{MODEL}/{NIGHT}/drift.html?again">on</a></body></html>',
    )
    with served(context_of(toy_lake)) as origin:
        page = browser.new_page()
        page.goto(f"{origin}/")
        with page.expect_request(f"{origin}/embedded/{path}") as embedded_document:
            page.goto(f"{origin}/frame/{path}")
        with page.expect_request(f"{origin}/embedded/{path}?again") as followed:
            page.frames[1].get_by_text("on").click()
        assert "cookie" in embedded_document.value.all_headers()
        assert "cookie" not in followed.value.all_headers()
        page.close()

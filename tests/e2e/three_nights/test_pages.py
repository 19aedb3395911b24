"""The pages inside a real Airflow after three nights, as viewer, operator and admin read and use them. The tests build
on one another, in order.

One night was clean, in one the rides took six times as long, and in one rows broke a rule and a scoring failed
(`tests/three_nights.py`).
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
import sqlalchemy as sa
from playwright.sync_api import Browser, FrameLocator, expect

from config.calendar import ONE_DAY
from monitoring.alerting.actions import read_actions
from monitoring.pages.page import Role
from tests.browser import LOOKS, Theme, Visit, chromium, drawn, sideways, violations, visit
from tests.three_nights import BROKEN_DEPOTS, CLEAN, DRIFTED, HOSTILE, WRONG, ThreeNights

ROLES: tuple[Role, ...] = get_args(Role)
PAGES = {
    "tonight": "",
    "model": "models/ride_minutes",
    "green model": "models/tour_minutes",
    "model without its newest night": "models/ride_delay",
    "drift report": f"models/ride_minutes/nights/{DRIFTED}",
    "retraining": "retraining",
    "data": "data/rides",
    "night with quarantined rows": f"data/rides?table=bookings&night={WRONG}",
    "trace": "trace",
}
_SECONDS = 300.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@contextmanager
def person(browser: Browser, nights: ThreeNights, role: Role, **window: Any) -> Iterator[Visit]:
    """Somebody who has logged in through Airflow's own form, and stands on Airflow's first page."""
    with visit(browser, nights.url, **window) as logged_in:
        page = logged_in.page
        page.goto(nights.url)
        page.fill("input[name=username]", role)
        page.fill("input[name=password]", nights.password(role))
        page.click("button[type=submit]")
        page.get_by_role("link", name="Models").wait_for()
        # Airflow's first page asks for its settings before anybody has logged in.
        logged_in.problems.clear()
        yield logged_in


@pytest.fixture(scope="module", params=ROLES)
def someone(request: pytest.FixtureRequest, browser: Browser, nights: ThreeNights) -> Iterator[tuple[Role, Visit]]:
    """Each role in turn: for what differs between them."""
    with person(browser, nights, request.param) as window:
        yield request.param, window


@pytest.fixture(scope="module")
def viewer(browser: Browser, nights: ThreeNights) -> Iterator[Visit]:
    """For what everybody reads alike: the role that may do least."""
    with person(browser, nights, "viewer") as window:
        yield window


@pytest.fixture(scope="module")
def admin(browser: Browser, nights: ThreeNights) -> Iterator[Visit]:
    with person(browser, nights, "admin") as window:
        yield window


@pytest.fixture(scope="module")
def operator(browser: Browser, nights: ThreeNights) -> Iterator[Visit]:
    with person(browser, nights, "operator") as window:
        yield window


def inside(window: Visit) -> FrameLocator:
    """The frame that Airflow shows our page in."""
    return window.page.frame_locator("iframe").first


def sql(nights: ThreeNights, text: str, **values: Any) -> list[Any]:
    with nights.lake.engine.connect() as connection:
        return list(connection.execute(sa.text(text), values))


def eventually(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not so after {_SECONDS:.0f} s"
        time.sleep(0.3)  # between two questions


# ---- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [*PAGES.values(), "static/page.js", "metrics", "embedded/ride_minutes/nothing", "nowhere"]
)
def test_nobody_reads_without_a_login(browser: Browser, nights: ThreeNights, path: str) -> None:
    with visit(browser, nights.url) as window:
        assert window.context.request.get(f"{nights.url}/nightfleet/{path}").status == 401
        for action in ("acknowledge", "rollback", "nothing"):
            assert (
                window.context.request.post(f"{nights.url}/nightfleet/actions/{action}", form={"reason": "x"}).status
                == 401
            )


def test_the_nav_entry_leads_to_tonight_and_its_address_outlives_a_reload_and_a_click(
    viewer: Visit, nights: ThreeNights
) -> None:
    page = viewer.page
    page.get_by_role("link", name="Models").click()
    expect(inside(viewer).locator("h1")).to_have_text("Tonight")
    assert page.url == f"{nights.url}/plugin/models/nightfleet/"
    expect(inside(viewer).locator(".who")).to_contain_text("viewer")
    inside(viewer).locator("a[href$='/models/ride_minutes']").first.click()
    expect(inside(viewer).locator("h1")).to_have_text("Duration of tomorrow's rides")
    page.wait_for_url("**/plugin/models/nightfleet/models/ride_minutes")
    page.go_back()
    expect(inside(viewer).locator("h1")).to_have_text("Tonight")
    # As pasted into a chat: the address alone leads there, in a reload too.
    page.goto(f"{nights.url}/plugin/models/nightfleet/models/ride_minutes?from={CLEAN}&to={WRONG}")
    page.reload()
    expect(inside(viewer).locator("h1")).to_have_text("Duration of tomorrow's rides")
    expect(inside(viewer).locator("input[name=from]")).to_have_value(str(CLEAN))
    assert viewer.problems == []


def test_tonight_names_each_model_by_one_word_worst_first_and_the_cause_of_a_bad_one(
    viewer: Visit, nights: ThreeNights
) -> None:
    page = viewer.open("/nightfleet/")
    answer = viewer.context.request.get(f"{nights.url}/nightfleet/?format=csv&table=tonight")
    rows = {row["model"]: row for row in csv.DictReader(io.StringIO(answer.text()))}
    assert [row["status"] for row in rows.values()] == ["failing", "failing", "healthy"]
    text = page.inner_text("main")
    assert "ArtifactMismatch" in text
    assert "its bytes were changed" in text
    assert f"drift since {DRIFTED:%m-%d}" in text
    assert "quarantined" in text
    for word in ("healthy", "degraded", "failing", "not evaluated", "late"):
        assert page.locator("details dt", has_text=word).count() == 1, "each word has its definition on the page"
    shown = page.locator("table tbody tr")
    assert shown.count() == 3
    green = shown.filter(has_text="Duration of tomorrow's tours")
    [[scored]] = sql(
        nights,
        "SELECT count(*) FROM predictions_tour_minutes WHERE data_date = :day AND superseded_at IS NULL",
        day=str(WRONG),
    )
    assert f"\t{scored}\t" in green.inner_text() or f"\n{scored}\n" in green.inner_text()
    assert str(WRONG) in green.inner_text()
    # The model whose scoring failed stands on the night before.
    assert str(DRIFTED) in shown.filter(has_text="ArtifactMismatch").inner_text()
    assert viewer.problems == []


def test_the_drift_report_says_what_moved_by_how_much_and_what_followed(viewer: Visit, nights: ThreeNights) -> None:
    page = viewer.open(f"/nightfleet/models/ride_minutes/nights/{DRIFTED}")
    said = page.inner_text("main")
    [[value, limit]] = sql(
        nights,
        "SELECT value, threshold FROM metrics WHERE subject='ride_minutes' AND about_date=:day AND "
        "\"check\"='drift_psi' AND \"column\" LIKE '%minutes_7d'",
        day=str(DRIFTED),
    )
    [[mean]] = sql(
        nights,
        "SELECT value FROM metrics WHERE subject='ride_minutes' AND about_date=:day AND \"check\"='mean' AND "
        "\"column\" LIKE '%minutes_7d'",
        day=str(DRIFTED),
    )
    for number in (value, limit, mean):
        assert f"{number:.3g}" in said, (number, said[:1500])
    assert "minutes_7d" in said
    assert "Predictions followed" in said
    # Evidently's own document, in a frame that has no origin: it draws, and it can reach nothing.
    report = page.frame_locator("iframe.report").first
    expect(report.get_by_text("Drift", exact=False).first).to_be_visible()
    assert page.locator("iframe.report").first.get_attribute("sandbox") == "allow-scripts"
    assert viewer.problems == []


def test_the_model_page_shows_versions_drift_and_errors_on_one_axis(viewer: Visit, nights: ThreeNights) -> None:
    page = viewer.open(f"/nightfleet/models/ride_minutes?from={CLEAN}&to={WRONG}")
    assert page.locator("[data-chart][data-drawn]").count() >= 1
    assert HOSTILE in page.inner_text("main"), "a vehicle's name is text"
    answer = viewer.context.request.get(
        f"{nights.url}/nightfleet/models/ride_minutes?from={CLEAN}&to={WRONG}&format=csv&table=features"
    )
    features = list(csv.DictReader(io.StringIO(answer.text())))
    assert {row["feature"] for row in features} == {"vehicle_daily__minutes_7d", "vehicle_daily__rides_7d"}
    assert features[0]["feature"] == "vehicle_daily__minutes_7d"
    assert viewer.problems == []


def test_quarantined_rows_are_browsed_with_rule_and_row(viewer: Visit, nights: ThreeNights) -> None:
    page = viewer.open(f"/nightfleet/data/rides?table=bookings&night={WRONG}")
    said = page.inner_text("main")
    assert "in_set(depot)" in said
    for depot in BROKEN_DEPOTS:
        assert depot in said
    assert page.title() != "hostile"
    assert viewer.problems == []


def test_a_prediction_is_traced_by_its_id_and_reproduced(viewer: Visit, nights: ThreeNights) -> None:
    [[prediction_id]] = sql(
        nights, "SELECT min(prediction_id) FROM predictions_tour_minutes WHERE data_date = :day", day=str(WRONG)
    )
    page = viewer.open("/nightfleet/trace")
    page.fill("input[name=id]", str(prediction_id))
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/trace?*id={prediction_id}*")
    assert str(prediction_id) in page.inner_text("main")
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true })")
    assert "tours/features/vehicle_daily" in page.inner_text("main")
    page.locator("form[action*='/actions/reproduce'] button").click()
    page.wait_for_load_state("load")
    assert "equal" in page.inner_text("main").lower() or "reproduced" in page.inner_text("main").lower(), (
        page.inner_text("main")[:800]
    )
    assert viewer.problems == []


# ---- who may do what -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_forms_are_there_for_those_who_may_send_them(someone: tuple[Role, Visit], name: str) -> None:
    role, window = someone
    page = window.open(f"/nightfleet/{PAGES[name]}")
    assert role in page.inner_text(".who")
    actions = {
        str(action).rsplit("/", 1)[1]
        for action in page.locator("form[method=post]").evaluate_all(
            "forms => forms.map(f => f.getAttribute('action'))"
        )
    }
    if role == "viewer":
        assert actions <= {"reproduce"}
    if role != "admin":
        assert not actions & {"approve", "reject", "rollback"}
    if name == "retraining" and role != "viewer":
        assert {"acknowledge", "request_retraining"} <= actions
    assert window.problems == []


def test_a_viewer_who_sends_a_form_all_the_same_is_refused_and_on_record(browser: Browser, nights: ThreeNights) -> None:
    with person(browser, nights, "viewer") as window:
        answer = window.context.request.post(
            f"{nights.url}/nightfleet/actions/rollback",
            form={"model": "tour_minutes", "reason": "because", "csrf_token": "made up"},
        )
        assert answer.status == 403
        newest = read_actions(nights.lake, limit=1)[0]
        assert (newest.by, newest.role, newest.action, newest.subject) == (
            "viewer",
            "viewer",
            "rollback",
            "tour_minutes",
        )
        assert newest.outcome.startswith("refused: ")


def test_an_operator_acknowledges_and_silences_an_alarm(operator: Visit, nights: ThreeNights) -> None:
    page = operator.open("/nightfleet/retraining")
    form = page.locator("form#answer")
    drifted = "[value^='ride_minutes:champion:'][value$='/drift_psi/vehicle_daily__minutes_7d/']"
    alarm = form.locator(f"select[name=fingerprint] option{drifted}").get_attribute("value")
    form.locator("select[name=fingerprint]").select_option(alarm)
    form.locator("[name=reason]").fill("the ring road is closed <b>")
    form.get_by_role("button", name="Acknowledge").click()
    expect(page.locator(".notice")).to_contain_text("Acknowledged")
    assert "the ring road is closed <b>" in page.inner_text("main")
    form.locator("select[name=fingerprint]").select_option(alarm)
    form.locator("[name=reason]").fill("until it opens")
    form.locator("[name=until]").fill(str(WRONG + 5 * ONE_DAY))
    form.get_by_role("button", name="Silence").click()
    expect(page.locator(".notice")).to_contain_text(f"Silenced until {WRONG + 5 * ONE_DAY}")
    kept = read_actions(nights.lake, subject="ride_minutes", limit=2)
    assert [(a.by, a.role, a.action, a.column, a.reason, a.outcome) for a in kept] == [
        ("operator", "operator", "silence", "vehicle_daily__minutes_7d", "until it opens", "done"),
        ("operator", "operator", "acknowledge", "vehicle_daily__minutes_7d", "the ring road is closed <b>", "done"),
    ]
    assert operator.problems == []


def test_an_operators_request_is_trained_waits_for_the_admin_and_is_rolled_back(
    operator: Visit, admin: Visit, nights: ThreeNights
) -> None:
    page = operator.open("/nightfleet/retraining?model=tour_minutes")
    form = page.locator("form[action$='/actions/request_retraining']")
    form.locator("select[name=model]").select_option("tour_minutes")
    form.locator("[name=reason]").fill("the timetable changes on Monday")
    form.get_by_role("button").click()
    expect(page.locator(".notice")).to_contain_text("Requested a training of tour_minutes")
    assert "the timetable changes on Monday" in page.inner_text("main")

    def waits() -> bool:
        return admin.open("/nightfleet/retraining").locator("form[action$='/actions/approve']").count() == 1

    eventually("the promotion waits on the admin's page", waits)
    page = admin.page
    assert operator.open("/nightfleet/retraining").locator("form[action$='/actions/approve']").count() == 0

    def approved() -> bool:
        approval = admin.open("/nightfleet/retraining").locator("form[action$='/actions/approve']")
        approval.locator("[name=reason]").fill("as good, and newer")
        with page.expect_navigation():  # the answer waits for the scheduler's heartbeat
            approval.get_by_role("button", name="Approve").click()
        # The gate's decision is there some seconds before Airflow asks what to do with it.
        return "Approved" in page.inner_text("main")

    eventually("Airflow takes the answer", approved)
    admin.problems.clear()
    rollouts = nights.lake.rollouts("tour_minutes")
    eventually("its rollout starts", lambda: rollouts.read().running is not None)

    page = admin.open("/nightfleet/models/tour_minutes")
    form = page.locator("form[action$='/actions/rollout_hold']")
    form.locator("[name=reason]").fill("Monday's timetable was called off")
    form.get_by_role("button", name="Roll back").click()
    expect(page.locator(".notice")).to_contain_text("ends, and the champion serves everything")
    eventually("the rollout is over", lambda: rollouts.read().running is None)
    last = rollouts.read().lines[-1]
    assert (last.kind, last.version, last.reason) == ("rolled_back", 2, "Monday's timetable was called off")
    assert [line.version for line in nights.lake.ledger("tour_minutes").read().promotions] == [1]
    kept = [
        (a.by, a.action, a.reason)
        for a in read_actions(nights.lake, subject="tour_minutes")
        if a.done and a.action != "reproduce"
    ]
    assert kept == [
        ("admin", "rollout_rollback", "Monday's timetable was called off"),
        ("admin", "approve", "as good, and newer"),
        ("operator", "request_retraining", "the timetable changes on Monday"),
    ]
    said = admin.open("/nightfleet/retraining?model=tour_minutes").inner_text("main")
    for words in ("Monday's timetable was called off", "as good, and newer", "the timetable changes on Monday"):
        assert words in said
    assert operator.problems == []
    assert admin.problems == []


# ---- looks -------------------------------------------------------------------------------------------------------


def test_dark_follows_airflows_own_switch(admin: Visit) -> None:
    page = admin.page
    page.goto(f"{admin.origin}/plugin/models")
    ours = inside(admin).locator("html")
    expect(inside(admin).locator("h1")).to_have_text("Tonight")
    expect(ours).not_to_have_class("dark")
    page.evaluate(
        "document.documentElement.classList.replace('light', 'dark') || document.documentElement.classList.add('dark')"
    )
    expect(ours).to_have_class("dark")
    page.evaluate("document.documentElement.classList.replace('dark', 'light')")
    expect(ours).not_to_have_class("dark")


@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_the_three_nights_fit_and_are_accessible(
    browser: Browser, nights: ThreeNights, width: int, theme: Theme
) -> None:
    with person(browser, nights, "admin", width=width, theme=theme) as window:
        for name, path in PAGES.items():
            page = window.open(f"/nightfleet/{path}")
            drawn(page)
            assert sideways(page) == [], name
            assert violations(page) == [], f"{name}, {width} px, {theme}"
        assert window.problems == []


def test_csv_downloads_work_inside_airflows_frame(admin: Visit, tmp_path: Path) -> None:
    admin.page.goto(f"{admin.origin}/plugin/models")
    with admin.page.expect_download() as waiting:
        inside(admin).locator("a.csv").first.click()
    assert waiting.value.suggested_filename == "tonight.csv"

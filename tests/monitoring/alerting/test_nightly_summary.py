"""The nightly summary: when a night is over, what is new in it, and that there is one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from config.calendar import ONE_DAY
from config.catalog.load import load_catalog
from config.settings import Channel
from lake.lake import Lake
from lake.publish import StalePublish
from monitoring.alerting.actions import Action, read_actions, record_action
from monitoring.alerting.alarms import acknowledge, silence
from monitoring.alerting.nightly_summary import (
    Finishing,
    conclude_night,
    data_status,
    due_summaries,
    entries_of,
    send_summary,
    watch,
)
from monitoring.alerting.outbox import NotDelivered, outbox_table
from monitoring.alerting.runs import Waiting, record_waiting
from tests import toy
from tests.monitoring.alerting.sinks import HttpSink, serving
from tests.monitoring.facts import metric, performance, publish_night, ran

DATASET, FIRST, SECOND = "rides", "ride_minutes", "ride_price"
T = date(2024, 3, 5)
NOW = datetime(2024, 3, 6, 12, tzinfo=UTC)
BASE = "https://airflow.example.com"
BY: dict[str, Any] = {"by": "ada", "role": "operator", "reason": "known"}
LIVE = toy.DATASET_YAML.replace(
    "replay: {from: 2024-01-01, to: 2024-12-31, first_night: 2024-03-01}", "start: 2024-01-01"
)


@pytest.fixture
def http() -> Iterator[HttpSink]:
    with serving(HttpSink()) as sink:
        yield sink


def two_models(
    folder: Path, http: HttpSink, monkeypatch: pytest.MonkeyPatch, *, dataset: str = toy.DATASET_YAML
) -> Lake:
    """A data set with two models, and a webhook that takes nightly summaries alone."""
    settings = toy.write_catalog(folder, dataset=dataset)
    second = toy.MODEL_YAML.replace("model: ride_minutes", f"model: {SECOND}").replace(
        "Duration of tomorrow's rides", "Price of <b>tomorrow's</b> rides"
    )
    (folder / "models" / f"{SECOND}.yaml").write_text(second, encoding="utf-8")
    monkeypatch.setenv("HOOK_URL", f"json://127.0.0.1:{http.port}/hook")
    hook = Channel(name="hook", kind="webhook", url_secret="hook_url", at_once=())
    return Lake(settings.model_copy(update={"notifications": (hook,)}), load_catalog(settings))


@pytest.fixture(params=["sqlite", "postgres"])
def lake(
    request: pytest.FixtureRequest, tmp_path: Path, http: HttpSink, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lake]:
    made = two_models(tmp_path, http, monkeypatch)
    if request.param == "postgres":
        made = Lake(made.settings.model_copy(update={"sql_url": request.getfixturevalue("postgres_url")}), made.catalog)
    yield made
    with made.engine.begin() as connection:
        for name in sa.inspect(connection).get_table_names():
            connection.execute(sa.text(f'DROP TABLE "{name}"'))
    made.engine.dispose()


def published(lake: Lake, night: date = T, at: datetime = NOW) -> None:
    publish_night(lake, f"{DATASET}/features/vehicle_daily", night, at)


def scored(lake: Lake, *models: str, night: date = T, at: datetime = NOW) -> None:
    for model in models or (FIRST, SECOND):
        publish_night(lake, f"{model}/predictions", night, at)


def monitored(
    lake: Lake, *models: str, night: date = T, state: str = "success", at: datetime = NOW, **given: Any
) -> None:
    for model in models or (FIRST, SECOND):
        ran(lake, model, "monitor", night, at, state, **given)


def judged(lake: Lake, night: date = T) -> None:
    """All that is measured in a night is well."""
    metric(lake, DATASET, night, {}, group="quality")
    for model in (FIRST, SECOND):
        metric(lake, model, night, {})
        performance(lake, model, night)


def whole_night(lake: Lake, night: date = T, at: datetime = NOW) -> None:
    """Published, scored, measured and monitored, both models."""
    published(lake, night, at)
    scored(lake, night=night, at=at)
    judged(lake, night)
    monitored(lake, night=night, at=at)


def due(lake: Lake, now: datetime = NOW, **given: Any) -> dict[date, list[str]]:
    return due_summaries(lake, now=now, **given)


def told(lake: Lake, http: HttpSink, now: datetime = NOW) -> list[str]:
    """What one watch sends."""
    before = len(http.taken)
    watch(lake, base_url=BASE, run_id="w", now=now)
    return [f"{body['title']}\n{body['message']}" for _, body in http.taken[before:]]


# ---- when ------------------------------------------------------------------------------------------------------


def test_a_night_is_over_when_every_model_s_monitor_run_has_ended(lake: Lake) -> None:
    assert due(lake) == {}
    published(lake)
    scored(lake)
    assert due(lake) == {}
    monitored(lake, FIRST)
    assert due(lake) == {}
    monitored(lake, SECOND, state="running")
    assert due(lake) == {}
    assert due(lake, finishing=Finishing(SECOND, T - ONE_DAY)) == {}
    assert due(lake, finishing=Finishing(SECOND, T)) == {T: [FIRST, SECOND]}
    monitored(lake, SECOND, state="failed", at=NOW + timedelta(minutes=1))
    assert due(lake, NOW + timedelta(minutes=2)) == {T: [FIRST, SECOND]}


def test_a_replayed_night_that_nobody_works_on_is_over(lake: Lake) -> None:
    scored(lake, night=T - ONE_DAY)
    published(lake)
    scored(lake, FIRST)
    monitored(lake, FIRST)
    ran(lake, SECOND, "score", T, NOW, "running")
    assert due(lake) == {}
    ran(lake, SECOND, "score", T, NOW + timedelta(minutes=1), "failed")
    assert due(lake) == {}  # the first is still on record as running
    assert due(lake, NOW + timedelta(days=2)) == {T: [FIRST, SECOND]}


def test_a_scored_night_that_nobody_monitors_is_over_after_a_while(lake: Lake) -> None:
    published(lake)
    scored(lake)
    monitored(lake, FIRST)
    assert due(lake, NOW + timedelta(minutes=29)) == {}
    assert due(lake, NOW + timedelta(minutes=31)) == {T: [FIRST, SECOND]}


def test_a_model_without_a_champion_holds_nobody_up(lake: Lake) -> None:
    published(lake)
    scored(lake, FIRST)
    monitored(lake, FIRST)
    assert due(lake) == {T: [FIRST]}


def test_a_back_fill_of_old_nights_sends_no_summary(lake: Lake) -> None:
    published(lake)
    scored(lake)
    monitored(lake, night=T - 3 * ONE_DAY)
    assert due(lake) == {}


def test_a_live_night_is_over_at_its_deadline(tmp_path: Path, http: HttpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = two_models(tmp_path, http, monkeypatch, dataset=LIVE)
    scored(lake, night=T - ONE_DAY)
    deadline = datetime(2024, 3, 6, 5, tzinfo=UTC)
    assert due(lake, deadline) == {}
    assert due(lake, deadline + timedelta(seconds=1)) == {T: [FIRST, SECOND]}
    [summary] = told(lake, http, deadline + timedelta(minutes=1))
    assert summary.startswith("Night of 2024-03-05: 2 late\n")
    assert "warning: late: 2024-03-05 was not scored at its deadline, 2024-03-06 05:00 UTC" in summary


# ---- once ------------------------------------------------------------------------------------------------------


def test_there_is_one_digest_a_night_however_many_tasks_send_it(lake: Lake, http: HttpSink) -> None:
    whole_night(lake)

    def work(number: int) -> None:
        own = Lake(lake.settings, lake.catalog)
        if number % 2:
            conclude_night(own, (FIRST, SECOND)[number // 2 % 2], T, base_url=BASE, run_id=f"r{number}", now=NOW)
        else:
            watch(own, base_url=BASE, run_id=f"w{number}", now=NOW)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert [body["title"] for _, body in http.taken] == ["Night of 2024-03-05: 2 healthy"]
    assert told(lake, http) == []


def test_two_tasks_that_compose_the_same_digest_write_it_once(lake: Lake) -> None:
    whole_night(lake)
    assert [send_summary(lake, T, [FIRST, SECOND], base_url=BASE, now=NOW) for _ in range(2)] == [1, 0]


def test_a_digest_whose_delivery_failed_is_sent_by_the_next_watch(lake: Lake, http: HttpSink) -> None:
    whole_night(lake)
    http.status = 500
    assert told(lake, http) == []
    http.status = 200
    assert len(told(lake, http, NOW + timedelta(minutes=10))) == 1


def test_a_digest_that_cannot_be_sent_makes_the_watch_fail_once(lake: Lake, http: HttpSink) -> None:
    whole_night(lake)
    http.status = 500
    at = NOW
    for _ in range(5):
        assert told(lake, http, at) == []
        at += timedelta(hours=3)
    with pytest.raises(NotDelivered, match="to the channel hook"):
        watch(lake, base_url=BASE, run_id="w", now=at)
    assert told(lake, http, at) == []


def test_models_that_come_to_the_same_date_later_have_a_digest_of_their_own(lake: Lake, http: HttpSink) -> None:
    published(lake)
    scored(lake, FIRST)
    monitored(lake, FIRST)
    assert len(told(lake, http)) == 1
    scored(lake, SECOND)
    monitored(lake, SECOND)
    [second] = told(lake, http)
    assert SECOND in second
    assert FIRST not in second
    with lake.engine.connect() as connection:
        assert sorted(connection.execute(sa.select(outbox_table.c.message_key)).scalars()) == [
            "nightly_summary/2024-03-05",
            "nightly_summary/2024-03-05/ride_price",
        ]


def test_a_channel_may_do_without(lake: Lake, http: HttpSink) -> None:
    quiet = lake.settings.notifications[0].model_copy(update={"nightly_summary": False})
    whole_night(lake)
    assert told(Lake(lake.settings.model_copy(update={"notifications": (quiet,)}), lake.catalog), http) == []


def test_where_nobody_is_told_the_outcome_says_so(lake: Lake) -> None:
    off = Lake(lake.settings.model_copy(update={"notifications": ()}), lake.catalog)
    whole_night(lake)
    assert watch(off, base_url=BASE, run_id="w", now=NOW)["told"]["state"].startswith(
        "notifications are off: no channel is configured"
    )
    assert not sa.inspect(lake.engine).has_table("notifications")


# ---- what ------------------------------------------------------------------------------------------------------


def test_it_groups_the_worst_first_and_leads_to_the_pages(lake: Lake, http: HttpSink) -> None:
    whole_night(lake)
    metric(lake, SECOND, T, {"x": "failing", "y": "failing"})
    [summary] = told(lake, http)
    assert lines_of(summary) == [
        "Night of 2024-03-05: 1 failing, 1 healthy",
        "FAILING: Price of <b>tomorrow's</b> rides (ride_price)",
        "- critical: drift_psi of x: too far",
        "- critical: drift_psi of y: too far",
        f"{BASE}/plugin/models/nightfleet/models/ride_price/nights/2024-03-05",
        "HEALTHY, all well: Duration of tomorrow's rides (ride_minutes)",
        f"All models: {BASE}/plugin/models/nightfleet/",
    ]


def lines_of(summary: str) -> list[str]:
    return [line.strip() for line in summary.splitlines() if line.strip()]


def test_the_next_night_tells_what_changed_only(lake: Lake, http: HttpSink) -> None:
    whole_night(lake)
    metric(lake, FIRST, T, {"w": "failing", "x": "failing", "y": "warning", "z": "warning"})
    told(lake, http)
    acknowledge(lake, f"{FIRST}/drift_psi/w/", **BY)
    silence(lake, f"{FIRST}/drift_psi/z/", until=T + ONE_DAY, **BY)
    tomorrow, later = T + ONE_DAY, NOW + ONE_DAY
    whole_night(lake, tomorrow, later)
    metric(lake, FIRST, tomorrow, {"w": "failing", "x": "failing", "y": "failing", "z": "failing"})
    metric(lake, DATASET, tomorrow, {"bookings": "warning"}, group="quality", check="bad_share")
    [summary] = told(lake, http, later)
    lines = lines_of(summary)
    assert "- critical: drift_psi of y: too far (since 2024-03-05, 2 nights)" in lines  # it became critical
    assert "Left out: 1 unchanged, 1 acknowledged, 1 silenced." in lines
    assert not [line for line in lines if " of w" in line or " of x" in line or " of z" in line]
    assert "DEGRADED: Rides of a small fleet (rides)" in lines
    whole_night(lake, T + 2 * ONE_DAY, later + ONE_DAY)
    metric(lake, FIRST, T + 2 * ONE_DAY, {"w": "ok", "x": "failing", "y": "ok", "z": "failing"})
    metric(lake, DATASET, T + 2 * ONE_DAY, {"bookings": "ok"}, group="quality", check="bad_share")
    lines = lines_of(told(lake, http, later + ONE_DAY)[0])
    cleared = [line for line in lines if line.startswith("- cleared")]
    assert cleared == ["- cleared: drift_psi of w", "- cleared: drift_psi of y", "- cleared: bad_share of bookings"]
    assert (
        "- critical: drift_psi of z: too far (since 2024-03-05, 3 nights)" in lines
    )  # it became critical while it was silenced
    assert "Left out: 1 unchanged." in lines


def test_a_night_with_nothing_new_is_told_too(lake: Lake, http: HttpSink) -> None:
    whole_night(lake)
    metric(lake, FIRST, T, {"x": "failing"})
    told(lake, http)
    whole_night(lake, T + ONE_DAY, NOW + ONE_DAY)
    metric(lake, FIRST, T + ONE_DAY, {"x": "failing"})
    [summary] = told(lake, http, NOW + ONE_DAY)
    assert lines_of(summary)[:3] == [
        "Night of 2024-03-06: 1 failing, 1 healthy",
        "FAILING, nothing new: Duration of tomorrow's rides (ride_minutes)",
        "HEALTHY, all well: Price of <b>tomorrow's</b> rides (ride_price)",
    ]


def test_a_failed_run_names_its_task_and_what_it_said(lake: Lake, http: HttpSink) -> None:
    published(lake)
    scored(lake)
    monitored(lake, FIRST)
    monitored(lake, SECOND, state="failed", failed_task="drift", error="PartitionNotReady: <b>none</b>\nRun it.")
    [summary] = told(lake, http)
    assert "- ride_price_monitor failed for 2024-03-05: drift said PartitionNotReady: <b>none</b>" in lines_of(summary)


def test_the_run_that_is_about_to_fail_is_told_as_failed(lake: Lake) -> None:
    whole_night(lake)
    monitored(lake, SECOND, state="running", at=NOW + timedelta(seconds=1))
    [worst, other] = entries_of(
        lake, T, [FIRST, SECOND], base_url=BASE, now=NOW, finishing=Finishing(SECOND, T, "drift")
    )
    assert (worst.subject, worst.status, worst.lines) == (
        SECOND,
        "failing",
        ("ride_price_monitor failed for 2024-03-05 in drift",),
    )
    assert other.status == "healthy"
    [_, well] = entries_of(lake, T, [FIRST, SECOND], base_url=BASE, now=NOW, finishing=Finishing(SECOND, T))
    assert (well.subject, well.status) == (SECOND, "healthy")


def test_a_request_that_waits_is_told_once(lake: Lake, http: HttpSink) -> None:
    whole_night(lake)
    record_waiting(lake, Waiting(FIRST, "r1", 0, f"{FIRST}_train", "promote version 3?", NOW, NOW + 7 * ONE_DAY))
    assert "- waiting for approval: promote version 3?" in lines_of(told(lake, http)[0])
    whole_night(lake, T + ONE_DAY, NOW + ONE_DAY)
    summary = told(lake, http, NOW + ONE_DAY)[0]
    assert "promote version 3" not in summary
    assert "Left out: 1 unchanged." in summary
    whole_night(lake, T + 8 * ONE_DAY, NOW + 8 * ONE_DAY)
    assert "cleared" not in told(lake, http, NOW + 8 * ONE_DAY)[0]


@pytest.mark.parametrize(
    ("failed", "severities", "status"),
    [
        (True, [], "failing"),
        (False, ["warning", "critical"], "failing"),
        (False, ["warning"], "degraded"),
        (False, [], "healthy"),
    ],
)
def test_one_status_for_a_data_set_s_night(failed: bool, severities: list[str], status: str) -> None:
    alarms: Any = [SimpleNamespace(severity=severity) for severity in severities]
    assert data_status([object()] if failed else [], alarms) == status  # type: ignore[list-item]  # only whether there is one


def test_what_chance_explains_is_not_told_until_it_lasts(lake: Lake, http: HttpSink) -> None:
    columns = {f"c{number}": "ok" for number in range(30)}
    whole_night(lake)
    metric(lake, FIRST, T, columns | {"c7": "warning"})
    assert lines_of(told(lake, http)[0])[0] == "Night of 2024-03-05: 2 healthy"
    whole_night(lake, T + ONE_DAY, NOW + ONE_DAY)
    metric(lake, FIRST, T + ONE_DAY, columns | {"c7": "warning"})
    lines = lines_of(told(lake, http, NOW + ONE_DAY)[0])
    assert lines[0] == "Night of 2024-03-06: 1 degraded, 1 healthy"
    assert "- warning: drift_psi of c7: too far (since 2024-03-05, 2 nights)" in lines


def test_hostile_values_begin_no_lines(lake: Lake, http: HttpSink) -> None:
    whole_night(lake)
    metric(lake, FIRST, T, {"x": "failing"}, reason="a\r\nFAILING: Everything\n\nhttp://evil.example " + "x" * 9_000)
    [summary] = told(lake, http)
    assert sum(line.startswith("FAILING") for line in summary.splitlines()) == 1
    assert len(summary) < 2_000


# ---- what the watch does besides -------------------------------------------------------------------------------


def test_the_watch_judges_the_rules_of_every_model_and_repairs_the_actions(lake: Lake) -> None:
    whole_night(lake)
    record_action(lake, Action(NOW, "ada", "admin", "rollback", FIRST))
    with lake.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM actions"))
    done = watch(lake, base_url=BASE, run_id="w", now=NOW)
    assert set(done["alerts"]) == {FIRST, SECOND}
    assert json.dumps(done)
    assert [action.action for action in read_actions(lake)] == ["rollback"]


def test_a_rule_that_two_judge_at_once_is_judged_again(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    from monitoring.alerting import nightly_summary as module

    real: Any = module.__dict__["judge_alerts"]
    tries: list[int] = []

    def contested(*arguments: Any, **named: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise StalePublish("another was first")
        return real(*arguments, **named)

    monkeypatch.setattr(module, "judge_alerts", contested)
    whole_night(lake)
    assert conclude_night(lake, FIRST, T, base_url=BASE, run_id="r", now=NOW)["alerts"]["alarms"] == []
    assert len(tries) == 2

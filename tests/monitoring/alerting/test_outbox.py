"""Notifications: what is told, to whom, once; on real local servers, whatever the values hold."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from config.calendar import ONE_DAY
from config.settings import Channel
from lake.lake import Lake
from monitoring.alerting import outbox
from monitoring.alerting.alarms import acknowledge, silence
from monitoring.alerting.outbox import (
    Message,
    NotDelivered,
    deliver,
    events,
    line_of,
    outbox_table,
    page_link,
    raise_given_up,
    state_text,
    tell,
)
from monitoring.alerting.runs import Waiting, end_waiting, record_run, record_waiting
from tests import toy
from tests.monitoring.alerting.sinks import HttpSink, SmtpSink, serving
from tests.monitoring.facts import metric, ran

MODEL = "ride_minutes"
T = date(2024, 3, 5)
NOW = datetime(2024, 3, 6, 12, tzinfo=UTC)
BASE = "https://airflow.example.com"
HOSTILE = (
    "<script>alert(1)</script>\r\nBcc: eve@example.com\n\n<!channel> <http://evil|here> *bold* \u202e\u2028 {{7*7}} "
    + "x" * 9_000
)


@pytest.fixture
def http() -> Iterator[HttpSink]:
    with serving(HttpSink()) as sink:
        yield sink


@pytest.fixture
def smtp() -> Iterator[SmtpSink]:
    with serving(SmtpSink()) as sink:
        yield sink


@pytest.fixture(params=["sqlite", "postgres"])
def lake(
    request: pytest.FixtureRequest, tmp_path: Path, http: HttpSink, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lake]:
    """A lake whose one channel is a webhook on a local server."""
    made = toy.toy_lake(tmp_path)
    if request.param == "postgres":
        made = Lake(made.settings.model_copy(update={"sql_url": request.getfixturevalue("postgres_url")}), made.catalog)
    monkeypatch.setenv("HOOK_URL", f"json://127.0.0.1:{http.port}/hook")
    yield with_channels(made, Channel(name="hook", kind="webhook", url_secret="hook_url"))
    with made.engine.begin() as connection:
        for name in sa.inspect(connection).get_table_names():
            connection.execute(sa.text(f'DROP TABLE "{name}"'))
    made.engine.dispose()


def with_channels(lake: Lake, *channels: Channel) -> Lake:
    return Lake(lake.settings.model_copy(update={"notifications": channels}), lake.catalog)


def told(lake: Lake, now: datetime = NOW) -> int:
    """One round, as a watch does it; messages delivered."""
    tell(lake, events(lake, base_url=BASE, now=now), now=now)
    return len(deliver(lake, now=now).sent)


# ---- what is told ----------------------------------------------------------------------------------------------


def test_a_critical_alarm_goes_at_once_and_once(lake: Lake, http: HttpSink) -> None:
    metric(lake, MODEL, T, {"x": "failing", "y": "warning"})
    assert [told(lake), told(lake), told(lake, NOW + ONE_DAY)] == [1, 0, 0]
    [(path, body)] = http.taken
    assert path == "/hook"
    assert body["title"] == "Critical: ride_minutes: critical: drift_psi of x: too far"
    assert (
        body["message"].splitlines()[1].strip()
        == f"{BASE}/plugin/models/nightfleet/models/ride_minutes/nights/2024-03-05"
    )
    metric(lake, MODEL, T + ONE_DAY, {"x": "failing"})
    assert told(lake) == 0  # the same alarm goes on
    metric(lake, MODEL, T + 2 * ONE_DAY, {"x": "ok"})
    metric(lake, MODEL, T + 3 * ONE_DAY, {"x": "failing"})
    assert told(lake) == 1  # it cleared, and is another one


def test_an_alarm_that_becomes_critical_is_told_then(lake: Lake, http: HttpSink) -> None:
    metric(lake, MODEL, T, {"x": "warning"})
    assert told(lake) == 0
    metric(lake, MODEL, T + ONE_DAY, {"x": "failing"})
    assert told(lake) == 1
    assert "(since 2024-03-05, 2 nights)" in http.taken[0][1]["message"]


@pytest.mark.parametrize("answer", ["acknowledge", "silence"])
def test_what_somebody_knows_of_is_not_told(lake: Lake, answer: str) -> None:
    metric(lake, MODEL, T, {"x": "failing"})
    by: dict[str, Any] = {"by": "ada", "role": "operator", "reason": "known"}
    name = f"{MODEL}/drift_psi/x/"
    acknowledge(lake, name, **by) if answer == "acknowledge" else silence(lake, name, until=T, **by)
    assert told(lake) == 0


def test_alarms_that_come_together_are_one_message(lake: Lake, http: HttpSink) -> None:
    metric(lake, MODEL, T, {f"x{number:02}": "failing" for number in range(25)})
    metric(lake, "rides", T, {"bookings": "failing"}, group="quality", check="bad_share")
    assert told(lake) == 2
    model, data = sorted((body for _, body in http.taken), key=lambda body: len(body["title"]))
    assert data["title"] == "Critical: rides: critical: bad_share of bookings: too far"
    assert f"{BASE}/plugin/models/nightfleet/data/rides?night=2024-03-05" in data["message"]
    assert model["title"] == "Critical: ride_minutes: 25 things to look at"
    assert model["message"].endswith("… and 5 more")


def test_channels_take_the_levels_they_ask_for(lake: Lake, http: HttpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_URL", f"json://127.0.0.1:{http.port}/all")
    everything = Channel(name="all", kind="webhook", url_secret="all_url", at_once=("critical", "warning", "request"))
    nothing = Channel(name="nothing", kind="webhook", url_secret="all_url", at_once=())
    lake = with_channels(lake, *lake.settings.notifications, everything, nothing)
    metric(lake, MODEL, T, {"x": "warning"})
    ran(lake, MODEL, "score", T, NOW, "failed", failed_task="score", error="NoChampion: <b>none</b>\nTrain one.")
    record_waiting(lake, Waiting(MODEL, "r1", 0, f"{MODEL}_train", "promote version 3?", NOW, NOW + ONE_DAY))
    assert told(lake) == 2
    assert {path: body["message"].count(BASE) for path, body in http.taken} == {"/all": 3, "/hook": 1}
    [everything_told] = [body["message"] for path, body in http.taken if path == "/all"]
    assert "ride_minutes_score failed for 2024-03-05: score said NoChampion: <b>none</b>\n" in everything_told
    assert f"{BASE}/dags/ride_minutes_score/runs/score%202024-03-05" in everything_told
    assert "a promotion is waiting for approval: promote version 3?" in everything_told


def test_a_run_that_is_cleared_and_fails_again_is_told_again_and_an_old_failure_never(lake: Lake) -> None:
    lake = with_channels(lake, lake.settings.notifications[0].model_copy(update={"at_once": ("warning",)}))
    run = ran(lake, MODEL, "score", T, NOW, "failed")
    ran(lake, MODEL, "monitor", T, NOW - timedelta(days=2), "failed")
    assert [told(lake), told(lake)] == [1, 0]
    later = NOW + timedelta(hours=1)
    record_run(lake, type(run)(**run.__dict__ | {"ended_at": later}), at=later)
    assert told(lake, later) == 1


def test_who_has_answered_is_not_asked_again(lake: Lake) -> None:
    record_waiting(lake, Waiting(MODEL, "r1", 0, f"{MODEL}_train", "answered", NOW, NOW + ONE_DAY))
    end_waiting(lake, MODEL, "r1", 0)
    record_waiting(lake, Waiting(MODEL, "r2", 0, f"{MODEL}_train", "too late", NOW - ONE_DAY, NOW))
    ended = ran(lake, MODEL, "train", T, NOW, "failed")
    record_waiting(lake, Waiting(MODEL, ended.run_id, 0, f"{MODEL}_train", "marked failed by hand", NOW, NOW + ONE_DAY))
    assert [event.level for event in events(lake, base_url=BASE, now=NOW)] == ["warning"]


# ---- once ------------------------------------------------------------------------------------------------------


def test_however_many_tasks_tell_at_once_it_is_one_message(lake: Lake, http: HttpSink) -> None:
    metric(lake, MODEL, T, {"x": "failing"})

    def work(_: int) -> int:
        return told(Lake(lake.settings, lake.catalog))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(8))) == 1
    assert len(http.taken) == 1


def test_of_two_that_take_the_same_message_one_sends_it(lake: Lake, http: HttpSink) -> None:
    metric(lake, MODEL, T, {"x": "failing"})
    tell(lake, events(lake, base_url=BASE, now=NOW), now=NOW)
    sent: list[str] = []

    def another_meanwhile(url: str, message: Message) -> str | None:
        sent.append(message.key)
        deliver(lake, now=NOW, send=lambda _url, other: sent.append(other.key))
        return None

    [row] = outbox._waiting_messages(lake, ["hook"], NOW)
    deliver(lake, now=NOW, send=another_meanwhile)
    assert not outbox._claimed(lake, row, NOW)  # it was seen waiting, and taken since
    assert len(sent) == 1


def test_a_message_whose_sender_was_killed_is_sent_by_another_later(lake: Lake, http: HttpSink) -> None:
    metric(lake, MODEL, T, {"x": "failing"})
    tell(lake, events(lake, base_url=BASE, now=NOW), now=NOW)

    def killed(_url: str, _message: Message) -> str | None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deliver(lake, now=NOW, send=killed)
    assert deliver(lake, now=NOW + timedelta(minutes=9)).sent == ()
    assert len(deliver(lake, now=NOW + timedelta(minutes=11)).sent) == 1
    assert len(http.taken) == 1


def test_a_failed_delivery_is_tried_again_per_channel_and_given_up_visibly(
    lake: Lake, http: HttpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEAD_URL", "json://127.0.0.1:1/nobody")
    lake = with_channels(
        lake, *lake.settings.notifications, Channel(name="dead", kind="webhook", url_secret="dead_url")
    )
    metric(lake, MODEL, T, {"x": "failing"})
    tell(lake, events(lake, base_url=BASE, now=NOW), now=NOW)
    first = deliver(lake, now=NOW)
    assert (len(first.sent), len(first.failed)) == (1, 1)
    at, outcomes = NOW, []
    for minutes in (4, 1, 10, 20, 40, 80, 999):
        at += timedelta(minutes=minutes)
        done = deliver(lake, now=at)
        outcomes.append((len(done.failed), len(done.given_up)))
    assert outcomes == [(0, 0), (1, 0), (1, 0), (1, 0), (1, 0), (0, 1), (0, 0)]
    assert len(http.taken) == 1
    with pytest.raises(
        NotDelivered,
        match=(r"1 messages were given up after 6 attempts each, .* to the channel dead: .*(refused|[Cc]onnection)"),
    ):
        raise_given_up(lake)
    raise_given_up(lake)  # once


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_that_refuses_has_not_been_told(lake: Lake, http: HttpSink, status: int) -> None:
    metric(lake, MODEL, T, {"x": "failing"})
    http.status = status
    assert told(lake) == 0
    http.status = 200
    assert told(lake, NOW + timedelta(minutes=5)) == 1


# ---- channels --------------------------------------------------------------------------------------------------


def test_it_is_said_who_is_told_or_that_nobody_is(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_text(lake.settings) == "notifications go to hook (webhook)"
    assert state_text(with_channels(lake).settings).startswith(
        "notifications are off: no channel is configured. Name one under `notifications`"
    )
    monkeypatch.delenv("HOOK_URL")
    assert "which cannot be reached: MissingSecret: hook_url is not set. Export HOOK_URL" in state_text(lake.settings)
    monkeypatch.setenv("HOOK_URL", "mailto://user:hidden-word@example.com")
    text = state_text(lake.settings)
    assert "holds a URL that begins with mailto://, a channel of kind webhook needs json:// or" in text
    assert "hidden-word" not in text


def test_without_its_secret_a_message_waits(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    metric(lake, MODEL, T, {"x": "failing"})
    monkeypatch.delenv("HOOK_URL")
    assert told(lake) == 0
    with lake.engine.connect() as connection:
        [row] = connection.execute(sa.select(outbox_table)).all()
    assert row.state == "pending"
    assert row.error.startswith("MissingSecret: hook_url is not set")


def test_slack_shows_values_as_text(lake: Lake, http: HttpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    from apprise.plugins.slack import NotifySlack

    monkeypatch.setattr(NotifySlack, "webhook_url", f"http://127.0.0.1:{http.port}/services")
    monkeypatch.setenv("CHAT_URL", "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#ops")
    lake = with_channels(lake, Channel(name="chat", kind="slack", url_secret="chat_url"))
    metric(lake, MODEL, T, {"x": "failing"}, reason=HOSTILE)
    assert told(lake) == 1
    [(path, body)] = http.taken
    assert path == "/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
    text = str(body)
    assert "&lt;script&gt;" in text
    assert "&lt;!channel&gt;" in text
    assert "<!channel>" not in text
    assert "<http://evil|here>" not in text
    assert len(text) < 3_000


def test_mail_has_the_headers_we_gave_it_and_no_others(
    lake: Lake, smtp: SmtpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAIL_URL", f"mailto://127.0.0.1:{smtp.port}?from=nightfleet@example.com&to=ops@example.com")
    lake = with_channels(lake, Channel(name="mail", kind="email", url_secret="mail_url"))
    metric(lake, MODEL, T, {"x": "failing"}, reason=HOSTILE)
    assert told(lake) == 1
    [mail] = smtp.taken
    assert mail["To"] == "ops@example.com"
    assert mail["Bcc"] is None
    assert "\n" not in mail["Subject"]
    assert mail["Subject"].startswith(
        "Critical: ride_minutes: critical: drift_psi of x: <script>alert(1)</script> Bcc: eve@example.com"
    )
    bodies = {part.get_content_type(): part.get_content() for part in mail.walk() if not part.is_multipart()}
    if "text/html" in bodies:
        assert "<script>" not in bodies["text/html"]
        assert "&lt;script&gt;" in bodies["text/html"]
    assert any(page_link(BASE, "models", MODEL, "nights", "2024-03-05") in body for body in bodies.values())


def test_a_sender_that_breaks_is_a_failed_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    import apprise

    def broken(*_: Any, **__: Any) -> bool:
        raise RuntimeError("odd")

    monkeypatch.setattr(apprise.Apprise, "notify", broken)
    assert outbox.send_by_apprise("json://127.0.0.1:1/x", Message("k", "t", "b")) == "RuntimeError: odd"
    assert (
        outbox.send_by_apprise("pigeon://x", Message("k", "t", "b")) == "Apprise does not understand the channel's URL"
    )


def test_a_line_is_one_line() -> None:
    assert line_of("a\r\nb\u2028c\0d\u202ee  f") == "a b c d e f"
    assert line_of("x" * 600) == "x" * 499 + "…"


def test_addresses_are_quoted() -> None:
    assert page_link(BASE) == f"{BASE}/plugin/models/nightfleet/"
    assert (
        page_link(BASE, "models", "a/b?", model="<x>&y")
        == f"{BASE}/plugin/models/nightfleet/models/a%2Fb%3F?model=%3Cx%3E%26y"
    )

"""Telling people: an outbox in SQL, filled once for each thing that happened, emptied by Apprise to the profile's
channels.

What is to be told is claimed, by a key, in the transaction that writes the message: however often a task is tried
again, or runs twice at once, there is one message. A message is claimed once more before it is sent. One that was not
delivered is tried again later, and at last given up, visibly. Only a process that is killed between a server's answer
and the note of it makes a message come twice: better than never.
"""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import sqlalchemy as sa

from config.calendar import Interval
from config.errors import NightfleetError
from config.settings import Channel, Level, MissingSecret, Settings, secret
from lake.assignment import CHAMPION
from lake.lake import Lake
from lake.metric_queries import METRICS, fetch, these
from lake.storage import lock
from lake.stored_rollouts import stored_rollouts
from monitoring.alerting.alarms import Alarm, open_alarms
from monitoring.alerting.deliveries import sentence_of
from monitoring.alerting.rules import shortened
from monitoring.alerting.runs import FAILED, Run, read_runs, read_waiting
from monitoring.alerting.status import STATISTICAL, counts

# The pages, inside Airflow's UI: the address opens them with the menu around, and asks for a login where there is none.
PAGES = "/plugin/models/nightfleet"
MOST_ATTEMPTS = 6
_FIRST_WAIT = timedelta(minutes=5)
_LOST_AFTER = timedelta(minutes=10)
_FAILURES_OF = timedelta(days=1)
_LONGEST_TITLE, _LONGEST_LINE, _MOST_LINES = 150, 500, 20
_SCHEMES: Mapping[str, tuple[str, ...]] = {
    "slack": ("slack", "https"),
    "email": ("mailto", "mailtos"),
    "webhook": ("json", "jsons", "form", "forms", "xml", "xmls"),
}
log = logging.getLogger(__name__)

_metadata = sa.MetaData()
outbox_table = sa.Table(
    "notifications",
    _metadata,
    sa.Column("message_key", sa.String, primary_key=True),
    sa.Column("channel", sa.String, primary_key=True),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("claimed_at", sa.DateTime(timezone=True)),
    sa.Column("next_try_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("sent_at", sa.DateTime(timezone=True)),
    sa.Column("error", sa.Text),
    sa.Index("ix_notifications_state", "state", "next_try_at"),
)
told_table = sa.Table(
    "notified",
    _metadata,
    sa.Column("event_key", sa.String, primary_key=True),
    sa.Column("channel", sa.String, primary_key=True),
    sa.Column("message_key", sa.String, nullable=False),
)
State = Literal["pending", "sending", "sent", "given_up", "given_up_told"]


class NotDelivered(NightfleetError):
    """Messages that no attempt brought to their channel, and that are given up."""


@dataclass(frozen=True)
class Event:
    """One thing that somebody may want to be told of.

    Attributes:
        key: names it; it is told once. former_key: by which it may have been told before alarms had role and version.
        subject: data set or model; events of one subject that come together are one message.
        text: one line, of plain text.
        link: where a person looks next.
    """

    key: str
    level: Level
    subject: str
    text: str
    link: str
    former_key: str | None = None

    @property
    def keys(self) -> set[str]:
        """Every key by which it may have been told."""
        return {self.key} | ({self.former_key} if self.former_key else set())


@dataclass(frozen=True)
class Message:
    """What is sent: plain text, which each channel escapes for itself."""

    key: str
    title: str
    body: str


@dataclass(frozen=True)
class Delivery:
    """What came of a try at the outbox: message keys with their channels."""

    sent: tuple[str, ...]
    failed: tuple[str, ...]
    given_up: tuple[str, ...]


# Sends a message to an Apprise URL; returns why it was not delivered, None when it was.
Send = Callable[[str, Message], str | None]


# ---- what is worth telling -------------------------------------------------------------------------------------


def events(lake: Lake, *, base_url: str, now: datetime) -> list[Event]:
    """Runs that failed within the last day, open alarms that nobody has acknowledged or silenced, promotions that wait
    for an approval, rollouts that were rolled back within the last day.

    A late night is an alarm, too: that of the rule `late`.
    """
    subjects = [*(dataset.name for dataset in lake.catalog.datasets), *(model.name for model in lake.catalog.models)]
    due = [_failure(run, base_url) for run in _failed_runs(lake, now)]
    alarms = worth_telling(lake, open_alarms(lake, subjects, now=now))
    due += [_alarm(lake, alarm, base_url) for alarm in alarms if not (alarm.acknowledged or alarm.silenced_until)]
    for waiting in read_waiting(lake, now=now):
        key = _key("approval", waiting.model, waiting.run_id, str(waiting.asking))
        text = f"a promotion is waiting for approval: {waiting.title}"
        due.append(
            Event(key, "request", waiting.model, line_of(text), page_link(base_url, "retraining", model=waiting.model))
        )
    return due + _rollbacks(lake, base_url, now)


def _rollbacks(lake: Lake, base_url: str, now: datetime) -> list[Event]:
    """Of rollouts: the challenger harmed, or its files were damaged, or a person decided so. Critical: a version that
    had passed the gate was taken back, and somebody should know why before the next one.
    """
    stored = stored_rollouts(lake, [model.name for model in lake.catalog.models])
    lines = (line for snapshot in stored.values() for line in snapshot.lines if line.kind == "rolled_back")
    return [
        Event(
            _key("rollback", line.model, str(line.sequence)),
            "critical",
            line.model,
            line_of(sentence_of(line)),
            page_link(base_url, "models", line.model) + "#delivery",
        )
        for line in lines
        if now - line.decided_at < _FAILURES_OF
    ]


def worth_telling(lake: Lake, alarms: Sequence[Alarm]) -> list[Alarm]:
    """Without the warnings that chance explains: a column beyond a limit that it passes now and then, on its first
    night (see `alerting.status`).
    """
    models = {model.name: model for model in lake.catalog.models}
    by_check: dict[tuple[str, str, str], list[Alarm]] = {}
    for alarm in alarms:
        if alarm.severity == "warning" and alarm.check in STATISTICAL and alarm.subject in models:
            by_check.setdefault((alarm.subject, alarm.check, alarm.role), []).append(alarm)
    left_out: set[str] = set()
    for (subject, check, role), some in by_check.items():
        judged = _judged_columns(lake, subject, check, role, max(alarm.data_date for alarm in some))
        if not counts(check, [alarm.nights for alarm in some], judged, models[subject].retrain.drift.limit_quantile):
            left_out |= {alarm.fingerprint for alarm in some}
    return [alarm for alarm in alarms if alarm.fingerprint not in left_out]


def _judged_columns(lake: Lake, subject: str, check: str, role: str, night: date) -> int:
    same = these([subject], judged=Interval.of(night), checks=[check], role=role or CHAMPION)
    [(judged,)] = fetch(lake, sa.select(sa.func.count()).where(*same, METRICS.c.status != "not_evaluated"))
    return int(judged)


def _failed_runs(lake: Lake, now: datetime) -> list[Run]:
    return [
        run
        for run in read_runs(lake, states=[FAILED], newest_first_limit=200)
        if run.ended_at and now - run.ended_at < _FAILURES_OF
    ]


def _failure(run: Run, base_url: str) -> Event:
    # Cleared and failed again is another failure: it ended at another time.
    key = _key("failure", run.dag_id, run.run_id, str(run.ended_at))
    link = f"{base_url}/dags/{quote(run.dag_id, safe='')}/runs/{quote(run.run_id, safe='')}"
    return Event(key, "warning", run.subject, failure_line(run), link)


def _alarm(lake: Lake, alarm: Alarm, base_url: str) -> Event:
    key, former = (
        _key("alarm", fingerprint, str(alarm.since), alarm.severity)
        for fingerprint in (alarm.fingerprint, alarm.former_fingerprint)
    )
    return Event(key, alarm.severity, alarm.subject, alarm_line(alarm), alarm_link(lake, alarm, base_url), former)


def alarm_link(lake: Lake, alarm: Alarm, base_url: str) -> str:
    """The page on which an alarm is understood: a night of a model, the model, or the data set."""
    if any(dataset.name == alarm.subject for dataset in lake.catalog.datasets):
        return page_link(base_url, "data", alarm.subject, night=alarm.data_date.isoformat())
    if alarm.check.startswith(("drift", "prediction_drift", "null_rate", "volume")):
        return page_link(base_url, "models", alarm.subject, "nights", alarm.data_date.isoformat())
    return page_link(base_url, "models", alarm.subject)


def failure_line(run: Run) -> str:
    """A failed run in one line."""
    night = f" for {run.partition_key}" if run.partition_key else ""
    where = f" in {run.failed_task}" if run.failed_task else ""
    said = f": {run.failed_task} said {shortened(run.error)}" if run.failed_task and run.error else where
    return line_of(f"{run.dag_id} failed{night}{said}")


def alarm_line(alarm: Alarm) -> str:
    """An alarm in one line."""
    where = "".join((f" of {alarm.column}" if alarm.column else "", f" where {alarm.segment}" if alarm.segment else ""))
    lasts = f" (since {alarm.since}, {alarm.nights} nights)" if alarm.nights > 1 else ""
    who = "" if alarm.role in ("", CHAMPION) else f"{alarm.role} version {alarm.model_version}, "
    return line_of(f"{alarm.severity}: {who}{alarm.check}{where}: {alarm.reason or 'no reason was given'}{lasts}")


def page_link(base_url: str, *parts: str, **query: str) -> str:
    """Absolute address of a page of ours."""
    path = "".join(f"/{quote(part, safe='')}" for part in parts)
    asked = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
    return f"{base_url}{PAGES}{path or '/'}" + (f"?{asked}" if asked else "")


def line_of(text: str, longest: int = _LONGEST_LINE) -> str:
    """One line of bounded length: what came from data can begin no line, no header and no mark-up of its own making."""
    shown = "".join(" " if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} else char for char in text)
    line = " ".join(shown.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _key(*parts: str) -> str:
    return f"{parts[0]}/" + hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]


# ---- the outbox ------------------------------------------------------------------------------------------------


def state_text(settings: Settings) -> str:
    """One sentence: who is told, or that nobody is and how to change it. A channel whose secret is missing is named."""
    if not settings.notifications:
        return (
            "notifications are off: no channel is configured. Name one under `notifications` in config/profiles/"
            + f"{settings.profile}.yaml."
        )
    parts = []
    for channel in settings.notifications:
        url, problem = _address(settings, channel)
        parts.append(
            f"{channel.name} ({channel.kind})" + (f", which cannot be reached: {problem}" if url is None else "")
        )
    return "notifications go to " + ", ".join(parts)


def tell(lake: Lake, events: Sequence[Event], *, now: datetime) -> int:
    """Put what has not been told yet into the outbox, for each channel that wants that level at once; returns messages
    written.
    """
    written = 0
    with writing(lake) as connection:
        for channel in lake.settings.notifications:
            wanted = [event for event in events if event.level in channel.at_once]
            t = told_table.c
            known = set(
                connection.execute(
                    sa.select(t.event_key).where(
                        t.channel == channel.name,
                        t.event_key.in_([key for event in wanted for key in event.keys]),
                    )
                ).scalars()
            )
            new = {event.key: event for event in wanted if known.isdisjoint(event.keys)}
            by_subject: dict[str, list[Event]] = {}
            for event in new.values():
                by_subject.setdefault(event.subject, []).append(event)
            for subject, some in by_subject.items():
                message = _message(lake, subject, some)
                put(connection, message, channel.name, now)
                connection.execute(
                    told_table.insert(),
                    [{"event_key": e.key, "channel": channel.name, "message_key": message.key} for e in some],
                )
                written += 1
    return written


def _message(lake: Lake, subject: str, some: Sequence[Event]) -> Message:
    worst = next(
        (level for level in ("critical", "warning", "request") if any(event.level == level for event in some)),
        "request",
    )
    title = {"critical": "Critical", "warning": "Warning", "request": "Waiting for you"}[worst]
    shown = some[0].text if len(some) == 1 else f"{len(some)} things to look at"
    lines = [f"{line_of(event.text)}\n  {event.link}" for event in some[:_MOST_LINES]]
    lines += [f"… and {len(some) - _MOST_LINES} more"] if len(some) > _MOST_LINES else []
    # Sorts before `nightly_summary`: of messages that come together it is sent first.
    key = _key("at_once", *sorted(event.key for event in some))
    return Message(key, line_of(f"{title}: {subject or 'Nightfleet'}: {shown}", _LONGEST_TITLE), "\n".join(lines))


def put(connection: sa.Connection, message: Message, channel: str, now: datetime) -> None:
    """Write a message into the outbox; one with that key and channel must not be there yet."""
    row = {
        "message_key": message.key,
        "channel": channel,
        "title": message.title,
        "body": message.body,
        "state": "pending",
        "attempts": 0,
    }
    connection.execute(outbox_table.insert().values(**row, created_at=now, next_try_at=now))


def deliver(lake: Lake, *, now: datetime, send: Send | None = None) -> Delivery:
    """Send what waits in the outbox, each message once; what fails is tried again after 5 minutes, then twice as long
    each time, and given up after the sixth try.
    """
    send = send or send_by_apprise
    channels = {channel.name: channel for channel in lake.settings.notifications}
    sent, failed, given_up = [], [], []
    for row in _waiting_messages(lake, channels, now):
        if not _claimed(lake, row, now):
            continue  # another task has it
        name = f"{row.message_key} to {row.channel}"
        url, problem = _address(lake.settings, channels[row.channel])
        error = problem if url is None else send(url, Message(row.message_key, row.title, row.body))
        attempts = row.attempts + 1
        if error is None:
            _note(lake, row, state="sent", sent_at=now, error=None)
            sent.append(name)
        elif attempts >= MOST_ATTEMPTS:
            _note(lake, row, state="given_up", error=line_of(error))
            given_up.append(name)
            log.error("%s was given up after %s tries: %s", name, attempts, line_of(error))
        else:
            _note(lake, row, state="pending", error=line_of(error), next_try_at=now + _FIRST_WAIT * 2 ** (attempts - 1))
            failed.append(name)
            log.warning("%s was not delivered, try %s of %s: %s", name, attempts, MOST_ATTEMPTS, line_of(error))
    return Delivery(tuple(sent), tuple(failed), tuple(given_up))


def raise_given_up(lake: Lake) -> None:
    """Say once of each message that was given up that it was.

    Raises:
        NotDelivered: there are such, of which nobody has been told.
    """
    c = outbox_table.c
    with writing(lake) as connection:
        rows = connection.execute(sa.select(outbox_table).where(c.state == "given_up").order_by(c.created_at)).all()
        connection.execute(outbox_table.update().where(c.state == "given_up").values(state="given_up_told"))
    if rows:
        last = rows[-1]
        raise NotDelivered(
            f"{len(rows)} messages were given up after {MOST_ATTEMPTS} attempts each, the last, {last.title!r}, to the "
            f"channel {last.channel}: {last.error}\n"
            f"  Check that the secret of {last.channel} holds the right Apprise URL and that its server answers. "
            "They are not sent again; the pages show everything."
        )


def _waiting_messages(lake: Lake, channels: Collection[str], now: datetime) -> list[sa.Row[tuple[object, ...]]]:
    c = outbox_table.c
    with lake.engine.connect() as connection:
        if not sa.inspect(connection).has_table(outbox_table.name):
            return []
        lost = sa.and_(c.state == "sending", c.claimed_at < now - _LOST_AFTER)
        due = sa.or_(sa.and_(c.state == "pending", c.next_try_at <= now), lost)
        query = (
            sa.select(outbox_table)
            .where(due, c.channel.in_(list(channels)))
            .order_by(c.created_at, c.message_key, c.channel)
        )
        return list(connection.execute(query))


def _claimed(lake: Lake, row: sa.Row[tuple[object, ...]], now: datetime) -> bool:
    """Whether this process may send the message: of several that try, one."""
    c = outbox_table.c
    seen = sa.and_(
        c.message_key == row.message_key, c.channel == row.channel, c.state == row.state, c.attempts == row.attempts
    )
    with lake.engine.begin() as connection:
        done = connection.execute(
            outbox_table.update().where(seen).values(state="sending", claimed_at=now, attempts=row.attempts + 1)
        )
        return done.rowcount == 1


def _note(lake: Lake, row: sa.Row[tuple[object, ...]], **values: object) -> None:
    c = outbox_table.c
    with lake.engine.begin() as connection:
        connection.execute(
            outbox_table.update().where(c.message_key == row.message_key, c.channel == row.channel).values(**values)
        )


@contextmanager
def writing(lake: Lake, more: sa.MetaData | None = None) -> Iterator[sa.Connection]:
    """A transaction that alone fills the outbox, on a database that has its tables, and those of `more`."""
    with lake.engine.connect() as connection, connection.begin():
        lock(connection, "notifications")
        for metadata in (_metadata, more):
            if metadata is not None:
                metadata.create_all(connection, checkfirst=True)
        yield connection


# ---- sending ---------------------------------------------------------------------------------------------------


def _address(settings: Settings, channel: Channel) -> tuple[str | None, str | None]:
    """The channel's Apprise URL, or why there is none; the URL itself is never shown."""
    try:
        url = secret(settings, channel.url_secret)
    except MissingSecret as error:
        return None, str(error)
    scheme = urlsplit(url).scheme
    if scheme not in _SCHEMES[channel.kind]:
        needed = " or ".join(f"{name}://" for name in _SCHEMES[channel.kind])
        return (
            None,
            f"the secret {channel.url_secret} holds a URL that begins with {scheme or 'nothing'}://, a channel of "
            f"kind {channel.kind} needs {needed}",
        )
    return url, None


def send_by_apprise(url: str, message: Message) -> str | None:
    """Send as plain text, which Apprise escapes as the channel needs; returns why it failed."""
    import apprise  # heavy, and needed where something is sent only

    sender = apprise.Apprise(asset=apprise.AppriseAsset(app_id="Nightfleet", app_desc="Nightfleet", app_url=""))
    if not sender.add(url):
        return "Apprise does not understand the channel's URL"
    capture: Any = apprise.LogCapture  # has no types
    with capture(level=logging.WARNING, fmt="%(message)s") as captured:
        try:
            delivered = sender.notify(title=message.title, body=message.body, body_format=apprise.NotifyFormat.TEXT)
        except Exception as error:  # noqa: BLE001 (a sender of one of a hundred services may raise anything; the message is kept and tried again)
            return f"{type(error).__name__}: {error}"
        said = captured.getvalue()
    return None if delivered else line_of(said) or "the server did not take it"

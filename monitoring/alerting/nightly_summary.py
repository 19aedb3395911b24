"""The nightly summary: all models of a data date by status, worst first, with what is new; and what the end of each
night and the watch do about alarms.

It is due when every model of its data date has ended its monitor run, whatever came of it, or its deadline has
passed. It tells what changed since the last summary of each model; what is silenced, or acknowledged and unchanged, is
left out and counted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from config.calendar import Interval
from config.catalog.policy import LateNight
from lake.lake import Lake
from lake.publish import StalePublish
from lake.stored_rollouts import stored_rollouts
from monitoring.alerting.actions import project_actions
from monitoring.alerting.alarms import Alarm, fingerprint_parts, open_alarms
from monitoring.alerting.deliveries import news_of, sentence_of
from monitoring.alerting.lifecycle import project_records
from monitoring.alerting.outbox import (
    Message,
    alarm_line,
    deliver,
    events,
    failure_line,
    line_of,
    page_link,
    put,
    raise_given_up,
    state_text,
    tell,
    worth_telling,
    writing,
)
from monitoring.alerting.rules import ModelNight, judge_alerts, model_nights
from monitoring.alerting.runs import ENDED, FAILED, RUNNING, Run, Waiting, read_runs, read_waiting
from monitoring.alerting.standing import standings
from monitoring.alerting.status import STATUSES, Status

_MOST_LINES = 8
_LOOKED_BACK = 400
_UNMONITORED_AFTER = timedelta(minutes=30)
_ATTEMPTS = 5
# A request that waits stands among a model's alarms, so that it is told once; no check has that name.
_APPROVAL = "?approval/"
log = logging.getLogger(__name__)

_metadata = sa.MetaData()
summaries_table = sa.Table(
    "digests",
    _metadata,
    sa.Column("digest_key", sa.String, primary_key=True),
    sa.Column("data_date", sa.Date, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    # By subject: its open alarms, fingerprint to severity, as they were told or left out.
    sa.Column("alarms", sa.Text, nullable=False),
    sa.Index("ix_digests_date", "data_date"),
)


@dataclass(frozen=True)
class Entry:
    """What the nightly summary says of one model or data set.

    Attributes:
        lines: what is new, each one line.
        unchanged, acknowledged, silenced: alarms, and requests that wait, that are left out.
        alarms: what people know of now, fingerprint to severity, and requests that wait.
    """

    subject: str
    title: str
    status: Status
    lines: tuple[str, ...]
    link: str
    unchanged: int = 0
    acknowledged: int = 0
    silenced: int = 0
    alarms: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What was told: messages written, delivered, still waiting, given up."""

    written: int
    sent: int
    failed: int
    given_up: int
    state: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON document."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Finishing:
    """The monitor run that is about to end, still on record as running; `failed_task`: the first of its tasks that
    failed.
    """

    model: str
    data_date: date
    failed_task: str | None = None


# ---- what the DAGs call ----------------------------------------------------------------------------------------


def conclude_night(
    lake: Lake,
    model: str,
    data_date: date,
    *,
    base_url: str,
    run_id: str,
    failed_task: str | None = None,
    now: datetime | None = None,
) -> dict[str, Any]:
    """The end of a model's night: judge its alert rules, tell what goes at once, and send the nightly summary where
    this was the last model.

    Args:
        base_url: address of Airflow's UI, for links.
        failed_task: a task of the night's monitor run that failed before this, None where none did.
        now: aware; None: now.
    Returns:
        `alerts` (what the rules say) and `told` (see `Outcome`).
    """
    now = now or datetime.now(UTC)
    project_records(lake, [model])
    judged = _judged(lake, model, data_date, run_id=run_id, now=now)
    told = tell_all(lake, base_url=base_url, now=now, finishing=Finishing(model, data_date, failed_task))
    return {"alerts": judged, "told": told.to_json()}


def watch(lake: Lake, *, base_url: str, run_id: str, now: datetime | None = None) -> dict[str, Any]:
    """What nobody else would notice: a night that is late or failed, an unsent message, a request that waits, a
    projection left behind.

    Raises:
        NotDelivered: messages were given up since the last watch.
    """
    now = now or datetime.now(UTC)
    project_actions(lake)
    project_records(lake, [model.name for model in lake.catalog.models])
    nights = model_nights(lake, [model.name for model in lake.catalog.models], now=now)
    judged = {}
    for name, night in nights.items():
        if night.data_date is not None:
            judged[name] = _judged(lake, name, night.data_date, run_id=run_id, now=now)
    told = tell_all(lake, base_url=base_url, now=now)
    if lake.settings.notifications:
        raise_given_up(lake)
    return {"alerts": judged, "told": told.to_json()}


def _judged(lake: Lake, model: str, data_date: date, *, run_id: str, now: datetime) -> dict[str, Any]:
    for attempt in range(_ATTEMPTS):
        try:
            return judge_alerts(lake, model, data_date, run_id=run_id, now=now).details
        except StalePublish:
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def tell_all(lake: Lake, *, base_url: str, now: datetime, finishing: Finishing | None = None) -> Outcome:
    """Fill the outbox with what happened and with nightly summaries that are due, then empty it.

    Args:
        finishing: the monitor run that asks.
    """
    base_url = lake.settings.public_url or base_url.rstrip("/")
    state = state_text(lake.settings)
    log.info(state)
    if not lake.settings.notifications:
        return Outcome(0, 0, 0, 0, state)
    written = tell(lake, events(lake, base_url=base_url, now=now), now=now)
    for data_date, models in due_summaries(lake, now=now, finishing=finishing).items():
        written += send_summary(lake, data_date, models, base_url=base_url, now=now, finishing=finishing)
    done = deliver(lake, now=now)
    log.info(
        "%s messages written, %s delivered, %s to be tried again, %s given up",
        written,
        len(done.sent),
        len(done.failed),
        len(done.given_up),
    )
    return Outcome(written, len(done.sent), len(done.failed), len(done.given_up), state)


# ---- when it is due ----------------------------------------------------------------------------------------------


def due_summaries(lake: Lake, *, now: datetime, finishing: Finishing | None = None) -> dict[date, list[str]]:
    """By data date: models whose night of that date is over, of data dates on which every model is; not those that a
    summary has told of already.

    Only the night that is expected of a data set has a summary: a back-fill of old nights sends none.
    """
    nights = {
        name: night
        for name, night in model_nights(lake, [m.name for m in lake.catalog.models], now=now).items()
        if night.data_date
    }
    groups: dict[date, list[str]] = {}
    for name, night in nights.items():
        assert night.data_date is not None
        if night.lateness is None or night.lateness.expected:
            groups.setdefault(night.data_date, []).append(name)
    due = {}
    for data_date, models in groups.items():
        told = _told_of(lake, data_date)
        rest = [name for name in models if name not in told]
        if rest and all(_is_over(lake, nights[name], data_date, now, finishing) for name in rest):
            due[data_date] = rest
    return due


def _is_over(lake: Lake, night: ModelNight, data_date: date, now: datetime, finishing: Finishing | None) -> bool:
    if finishing is not None and (finishing.model, finishing.data_date) == (night.model, data_date):
        return True
    runs = read_runs(lake, subjects=[night.model], kinds=["monitor"], keys=Interval.of(data_date))
    if runs and runs[-1].state in ENDED:
        return True
    if night.lateness and night.lateness.due_at and now > night.lateness.due_at:
        return True
    if night.lateness and night.lateness.late:
        return True
    # Scored, and nobody judges it: its DAG is paused, or the run was lost.
    watched = any(run.state == RUNNING for run in runs)
    return bool(night.scored_at and not watched and now - night.scored_at > _UNMONITORED_AFTER)


def _told_of(lake: Lake, data_date: date) -> set[str]:
    """Subjects that a summary of that data date has told of."""
    with lake.engine.connect() as connection:
        if not sa.inspect(connection).has_table(summaries_table.name):
            return set()
        told = connection.execute(
            sa.select(summaries_table.c.alarms).where(summaries_table.c.data_date == data_date)
        ).scalars()
        return {subject for text in told for subject in json.loads(text)}


# ---- what it says ----------------------------------------------------------------------------------------------


def send_summary(
    lake: Lake,
    data_date: date,
    models: Sequence[str],
    *,
    base_url: str,
    now: datetime,
    finishing: Finishing | None = None,
) -> int:
    """Put the nightly summary of those models into the outbox, once, whoever else is about to; returns messages
    written.
    """
    channels = [channel.name for channel in lake.settings.notifications if channel.nightly_summary]
    if not channels:
        return 0
    entries = entries_of(lake, data_date, models, base_url=base_url, now=now, finishing=finishing)
    alarms = json.dumps({entry.subject: dict(entry.alarms) for entry in entries})
    with writing(lake, _metadata) as connection:
        query = sa.select(summaries_table.c.alarms).where(summaries_table.c.data_date == data_date)
        told = {subject for text in connection.execute(query).scalars() for subject in json.loads(text)}
        if told & set(models):
            return 0  # another task was first
        # A data set that came to the same data date at another time has a night, and a summary, of its own.
        key = f"nightly_summary/{data_date}" + (f"/{'+'.join(sorted(models))}" if told else "")
        message = compose(key, data_date, entries, base_url=base_url)
        connection.execute(
            summaries_table.insert().values(digest_key=key, data_date=data_date, created_at=now, alarms=alarms)
        )
        for channel in channels:
            put(connection, message, channel, now)
    return len(channels)


def entries_of(
    lake: Lake,
    data_date: date,
    models: Collection[str],
    *,
    base_url: str,
    now: datetime,
    finishing: Finishing | None = None,
) -> list[Entry]:
    """What is to be said of each of those models and of their data sets, worst first."""
    read = (dataset.name for name in models for dataset in lake.catalog.datasets_of(lake.model(name)))
    datasets = list(dict.fromkeys(read))
    before = _before(lake, [*models, *datasets])
    alarms: dict[str, list[Alarm]] = {}
    for alarm in worth_telling(lake, open_alarms(lake, [*models, *datasets], now=now)):
        alarms.setdefault(alarm.subject, []).append(alarm)
    runs = [
        _as_it_ends(run, data_date, finishing)
        for run in read_runs(lake, subjects=[*models, *datasets], keys=Interval.of(data_date))
    ]
    nights = model_nights(lake, models, now=now, data_date=data_date)
    waiting = read_waiting(lake, now=now)
    statuses = {standing.entry.name: standing.status for standing in standings(lake, list(models), now)}
    news = {name: news_of(rollouts, data_date) for name, rollouts in stored_rollouts(lake, list(models)).items()}
    entries = []
    for name in [*models, *datasets]:
        is_model = name in nights
        failed = _failed(run for run in runs if run.subject == name)
        status = statuses[name] if is_model else data_status(failed, alarms.get(name, ()))
        page = (
            page_link(base_url, "models", name, "nights", str(data_date))
            if is_model
            else page_link(base_url, "data", name, night=str(data_date))
        )
        entries.append(
            _entry(
                name,
                lake.model(name).title if is_model else lake.dataset(name).title,
                "failing" if any(run.kind != "train" for run in failed) else status,
                failed,
                _late_line(lake, nights[name], alarms.get(name, ())) if is_model else None,
                alarms.get(name, []),
                [asked for asked in waiting if asked.model == name],
                before.get(name, {}),
                page,
                [line_of(f"rollout: {sentence_of(line)}") for line in news.get(name, ())],
            )
        )
    # A data set is named only where there is something to say of it: its nights are the models' nights.
    entries = [entry for entry in entries if entry.subject in nights or entry.lines or entry.status != "healthy"]
    return sorted(entries, key=lambda entry: (STATUSES.index(entry.status), entry.subject))


def _as_it_ends(run: Run, data_date: date, finishing: Finishing | None) -> Run:
    """The run that asks as it will be on record: failed where a task of it has failed."""
    same = (
        finishing is not None
        and (run.subject, run.kind, run.partition_key) == (finishing.model, "monitor", str(data_date))
        and run.state == RUNNING
    )
    if finishing is None or not same or finishing.failed_task is None:
        return run
    said = run.error if run.failed_task == finishing.failed_task else None
    return replace(run, state=FAILED, failed_task=finishing.failed_task, error=said)


def data_status(failed: Collection[Run], alarms: Collection[Alarm]) -> Status:
    """One status for a data set's night, as for a model's: failing where a run failed or an alarm is critical, degraded
    where one warns.
    """
    if failed or any(alarm.severity == "critical" for alarm in alarms):
        return "failing"
    return "degraded" if alarms else "healthy"


def _failed(runs: Any) -> list[Run]:
    """Of each DAG the newest run of the night, where that failed."""
    newest: dict[str, Run] = {}
    for run in runs:
        newest[run.dag_id] = run
    return [run for run in newest.values() if run.state == FAILED]


def _late_line(lake: Lake, night: ModelNight, alarms: Collection[Alarm]) -> str | None:
    """That the night is late, where no alarm of its own says so."""
    rules = {rule.name for rule in lake.model(night.model).alerts if isinstance(rule, LateNight)}
    told = any(alarm.check in rules for alarm in alarms)
    return line_of(f"late: {night.lateness.reason}") if night.lateness and night.lateness.late and not told else None


def _entry(
    name: str,
    title: str,
    status: Status,
    failed: Sequence[Run],
    late: str | None,
    alarms: Sequence[Alarm],
    waiting: Sequence[Waiting],
    before: Mapping[str, str],
    link: str,
    news: Sequence[str],
) -> Entry:
    lines = [failure_line(run) for run in failed] + ([late] if late else []) + list(news)
    left_out = dict.fromkeys(("unchanged", "acknowledged", "silenced"), 0)
    known: dict[str, str] = {}
    for alarm in alarms:
        told = before.get(alarm.fingerprint, before.get(alarm.former_fingerprint))
        if alarm.silenced_until:
            left_out["silenced"] += 1
            # Nobody was told what became of it meanwhile: that is news when the silence is over.
            known |= {alarm.fingerprint: told} if told else {}
            continue
        known[alarm.fingerprint] = alarm.severity
        if told == alarm.severity:
            left_out["acknowledged" if alarm.acknowledged else "unchanged"] += 1
        else:
            lines.append(alarm_line(alarm))
    is_open = {text for alarm in alarms for text in (alarm.fingerprint, alarm.former_fingerprint)}
    cleared = sorted(
        fingerprint for fingerprint in before if fingerprint not in is_open and not fingerprint.startswith(_APPROVAL)
    )
    lines += [line_of(f"cleared: {_named(fingerprint)}") for fingerprint in cleared]
    for asked in waiting:
        key = f"{_APPROVAL}{asked.run_id}/{asked.asking}"
        known[key] = "request"
        if key in before:
            left_out["unchanged"] += 1
        else:
            lines.append(line_of(f"waiting for approval: {asked.title}"))
    return Entry(name, title, status, tuple(lines), link, alarms=known, **left_out)


def _named(fingerprint: str) -> str:
    _, check, column, segment, *_ = fingerprint_parts(fingerprint)
    return check + (f" of {column}" if column else "") + (f" where {segment}" if segment else "")


def _before(lake: Lake, subjects: Collection[str]) -> dict[str, dict[str, str]]:
    """Each subject's open alarms as its last summary knew them."""
    before: dict[str, dict[str, str]] = {}
    with lake.engine.connect() as connection:
        if not sa.inspect(connection).has_table(summaries_table.name):
            return {}
        query = (
            sa.select(summaries_table.c.alarms)
            .order_by(summaries_table.c.created_at.desc(), summaries_table.c.data_date.desc())
            .limit(_LOOKED_BACK)
        )
        for text in connection.execute(query).scalars():
            for subject, alarms in json.loads(text).items():
                if subject in subjects and subject not in before:
                    before[subject] = alarms
            if len(before) == len(set(subjects)):
                break
    return before


def compose(key: str, data_date: date, entries: Sequence[Entry], *, base_url: str) -> Message:
    """The nightly summary as plain text."""
    counts = [(status, sum(entry.status == status for entry in entries)) for status in STATUSES]
    title = line_of(
        f"Night of {data_date}: " + ", ".join(f"{count} {status}" for status, count in counts if count), 150
    )
    parts = []
    for status in STATUSES:
        group = [entry for entry in entries if entry.status == status]
        quiet = [entry for entry in group if not entry.lines]
        for entry in (entry for entry in group if entry.lines):
            lines = [f"  - {line}" for line in entry.lines[:_MOST_LINES]]
            lines += [f"  … and {len(entry.lines) - _MOST_LINES} more"] if len(entry.lines) > _MOST_LINES else []
            parts.append(
                "\n".join([f"{status.upper()}: {line_of(entry.title)} ({entry.subject})", *lines, f"  {entry.link}"])
            )
        if quiet:
            said = "nothing new" if status != "healthy" else "all well"
            parts.append(
                f"{status.upper()}, {said}: "
                + ", ".join(f"{line_of(entry.title)} ({entry.subject})" for entry in quiet)
            )
    left_out = [
        (sum(getattr(entry, kind) for entry in entries), kind) for kind in ("unchanged", "acknowledged", "silenced")
    ]
    told = ", ".join(f"{count} {kind}" for count, kind in left_out if count)
    parts += [f"Left out: {told}."] if told else []
    parts.append(f"All models: {page_link(base_url)}")
    return Message(key, title, "\n\n".join(parts))

"""Open alarms: what the newest night of each group of metrics says is wrong, since when, and what people said of it.

An alarm's fingerprint is `(subject, check, column, segment)`. An acknowledgement holds until the alarm clears, a
silence until its date. Read from the SQL table `metrics` by fingerprint and night, never whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from config.errors import NightfleetError
from lake.lake import Lake
from lake.metrics import METRIC_SCHEMA, SQL_TABLE
from lake.projection import projections_table, sql_columns
from monitoring.alerting.actions import DONE, Action, read_actions, record_action

Severity = Literal["warning", "critical"]
ACKNOWLEDGE, SILENCE, UNSILENCE = "acknowledge", "silence", "unsilence"
_SEVERITIES: Mapping[str, Severity] = {"warning": "warning", "failing": "critical"}
_WRONG = tuple(_SEVERITIES)
_LONGEST_REASON = 1_000
Fingerprint = tuple[str, str, str, str]


class AlarmNotOpen(NightfleetError):
    """A person meant an alarm that is not open, perhaps not any more."""


class ReasonMissing(NightfleetError):
    """A person acknowledged or silenced an alarm without saying why."""


class BadSilence(NightfleetError):
    """A silence that would be over before it began."""


@dataclass(frozen=True)
class Alarm:
    """One check of one column and segment that is not well in the newest night that judged it.

    Attributes:
        severity: critical where the metric is failing.
        about_date: the night judged; data_date: the night that judged it.
        since: the first night judged of the streak that lasts to now; nights: how many nights of it were not well. A
            night that could not be evaluated neither counts nor ends it.
        acknowledged: the acknowledgement that holds for this streak.
        silenced_until: last date of a silence that holds now: of data dates in a replay, else of the calendar in the
            data set's zone.
    """

    subject: str
    check: str
    column: str
    segment: str
    severity: Severity
    about_date: date
    data_date: date
    value: float | None
    threshold: float | None
    reason: str
    since: date
    nights: int
    acknowledged: Action | None = None
    silenced_until: date | None = None

    @property
    def fingerprint(self) -> str:
        """`subject/check/column/segment`: what is acknowledged and silenced. A slash within a column is `%2F`."""
        return fingerprint_text((self.subject, self.check, self.column, self.segment))


def fingerprint_text(parts: Fingerprint) -> str:
    """The four parts as one text, which `fingerprint_parts` takes apart again."""
    subject, check, column, segment = parts
    return "/".join((subject, check, column.replace("%", "%25").replace("/", "%2F"), segment))


def fingerprint_parts(text: str) -> Fingerprint:
    """Subject, check, column and segment of a fingerprint.

    Raises:
        AlarmNotOpen: it is none.
    """
    parts = text.split("/", 3)
    if len(parts) != 4 or not parts[0] or not parts[1]:
        raise AlarmNotOpen(
            f"{text[:200]!r} names no alarm: a fingerprint is subject/check/column/segment, of which the last two may "
            "be empty."
        )
    return parts[0], parts[1], parts[2].replace("%2F", "/").replace("%25", "%"), parts[3]


def open_alarms(
    lake: Lake, subjects: Collection[str], *, as_of: date | None = None, now: datetime | None = None
) -> list[Alarm]:
    """Alarms of those data sets and models, the critical first, then those nobody has acknowledged or silenced.

    Args:
        as_of: as they stood after that data date; None: after the newest. What people said of them is always today's.
        now: for silences of live data sets, aware; None: now.
    """
    if not subjects:
        return []
    with lake.engine.connect() as connection:
        inspector = sa.inspect(connection)
        if not (inspector.has_table(SQL_TABLE) and inspector.has_table(projections_table.name)):
            return []
        rows = _newest_rows(connection, subjects, as_of)
        streaks = _streaks(connection, rows)
    said = _said(lake, {row["subject"] for row in rows.values()})
    today = _today(lake, now or datetime.now(UTC))
    found = []
    for key, row in rows.items():
        since, nights = streaks[key]
        acknowledged, silenced_until = _standing(said.get(key, ()), since, today(key[0], row["data_date"]))
        numbers = {name: row[name] for name in ("about_date", "data_date", "value", "threshold")}
        found.append(
            Alarm(
                *key,
                severity=_SEVERITIES[row["status"]],
                reason=row["reason"] or "",
                since=since,
                nights=nights,
                acknowledged=acknowledged,
                silenced_until=silenced_until,
                **numbers,
            )
        )
    order = {name: position for position, name in enumerate(subjects)}
    quiet = {True: 1, False: 0}
    return sorted(
        found,
        key=lambda a: (
            a.severity != "critical",
            quiet[bool(a.acknowledged or a.silenced_until)],
            order[a.subject],
            a.check,
            a.column,
            a.segment,
        ),
    )


# ---- what people do with them ----------------------------------------------------------------------------------


def acknowledge(
    lake: Lake, fingerprint: str, *, by: str, role: str, reason: str, now: datetime | None = None
) -> Action:
    """Record that somebody knows of an open alarm; holds until it clears.

    Raises:
        AlarmNotOpen: no alarm of that fingerprint is open.
        ReasonMissing: `reason` says nothing, or is longer than 1,000 characters.
    """
    now = now or datetime.now(UTC)
    alarm = _open(lake, fingerprint, now)
    return record_action(lake, _on(alarm, ACKNOWLEDGE, by, role, _checked(reason, alarm), now))


def silence(
    lake: Lake, fingerprint: str, *, until: date, by: str, role: str, reason: str, now: datetime | None = None
) -> Action:
    """Record that an alarm is not to be told of up to and with `until`: a data date in a replay, else a date of the
    calendar.

    Raises:
        AlarmNotOpen, ReasonMissing: as in `acknowledge`.
        BadSilence: `until` lies before the present date, or more than a year after it.
    """
    now = now or datetime.now(UTC)
    alarm = _open(lake, fingerprint, now)
    present = _today(lake, now)(alarm.subject, alarm.data_date)
    if until < present or (until - present).days > 366:
        kind = "the newest data date" if _is_replay(lake, alarm.subject) else "today"
        raise BadSilence(
            f"{fingerprint} cannot be silenced until {until}: {kind} is {present}. Give a date from then to a year "
            "later."
        )
    return record_action(lake, _on(alarm, SILENCE, by, role, _checked(reason, alarm), now, until=until))


def unsilence(lake: Lake, fingerprint: str, *, by: str, role: str, reason: str, now: datetime | None = None) -> Action:
    """End an alarm's silence.

    Raises:
        AlarmNotOpen: no silenced alarm of that fingerprint is open.
        ReasonMissing: as in `acknowledge`.
    """
    now = now or datetime.now(UTC)
    alarm = _open(lake, fingerprint, now)
    if alarm.silenced_until is None:
        raise AlarmNotOpen(f"{fingerprint} is not silenced. There is nothing to end.")
    return record_action(lake, _on(alarm, UNSILENCE, by, role, _checked(reason, alarm), now))


def _open(lake: Lake, fingerprint: str, now: datetime) -> Alarm:
    subject = fingerprint_parts(fingerprint)[0]
    for alarm in open_alarms(lake, [subject], now=now):
        if alarm.fingerprint == fingerprint:
            return alarm
    raise AlarmNotOpen(
        f"no alarm {fingerprint[:200]!r} is open: it cleared, or never was. Look at the model's page again."
    )


def _checked(reason: str, alarm: Alarm) -> str:
    reason = reason.strip()
    if not reason or len(reason) > _LONGEST_REASON:
        problem = "without a reason" if not reason else f"with a reason of {len(reason)} characters"
        raise ReasonMissing(
            f"{alarm.fingerprint} was answered {problem}. Say why in 1 to {_LONGEST_REASON} characters."
        )
    return reason


def _on(alarm: Alarm, action: str, by: str, role: str, reason: str, now: datetime, until: date | None = None) -> Action:
    # The night, not the time, says which streak is meant: in a replay nights pass in seconds.
    details = {"about_date": alarm.about_date.isoformat(), "since": alarm.since.isoformat(), "severity": alarm.severity}
    names = {"subject": alarm.subject, "check": alarm.check, "column": alarm.column, "segment": alarm.segment}
    return Action(at_utc=now, by=by, role=role, action=action, until=until, reason=reason, details=details, **names)


def _said(lake: Lake, subjects: Iterable[str]) -> dict[Fingerprint, list[Action]]:
    """By alarm: what people said of it, the latest first."""
    found: dict[Fingerprint, list[Action]] = {}
    for subject in subjects:
        for action in read_actions(lake, subject=subject, actions=(ACKNOWLEDGE, SILENCE, UNSILENCE), limit=None):
            if action.outcome == DONE:
                found.setdefault((action.subject, action.check, action.column, action.segment), []).append(action)
    return found


def _standing(said: Iterable[Action], since: date, present: date) -> tuple[Action | None, date | None]:
    """The acknowledgement of the streak that began on `since`, and the last date of a silence that holds on
    `present`.
    """
    acknowledged: Action | None = None
    silence: Action | None = None
    for action in said:
        if action.action == ACKNOWLEDGE and acknowledged is None:
            about = action.details.get("about_date")
            acknowledged = action if about is not None and date.fromisoformat(about) >= since else None
        elif action.action in (SILENCE, UNSILENCE) and silence is None:
            silence = action
    until = silence.until if silence is not None and silence.action == SILENCE else None
    return acknowledged, until if until is not None and until >= present else None


def _is_replay(lake: Lake, subject: str) -> bool:
    names = {dataset.name for dataset in lake.catalog.datasets}
    return lake.dataset(subject if subject in names else lake.model(subject).dataset).replay is not None


def _today(lake: Lake, now: datetime) -> Any:
    """The present date of a subject: its newest data date in a replay, else the calendar's in the data set's zone."""
    datasets = {dataset.name: dataset for dataset in lake.catalog.datasets}
    of_models = {model.name: datasets[model.dataset] for model in lake.catalog.models}

    def today(subject: str, newest: date) -> date:
        dataset = datasets.get(subject) or of_models.get(subject)
        return newest if dataset is None or dataset.replay else now.astimezone(ZoneInfo(dataset.time_zone)).date()

    return today


# ---- SQL -------------------------------------------------------------------------------------------------------


def _metrics() -> sa.Table:
    return sql_columns(SQL_TABLE, METRIC_SCHEMA)


def _same(table: Any, parts: Fingerprint) -> sa.ColumnElement[bool]:
    return sa.and_(
        *(table.c[name] == part for name, part in zip(("subject", "check", "column", "segment"), parts, strict=True))
    )


def _newest_rows(
    connection: sa.Connection, subjects: Collection[str], as_of: date | None
) -> dict[Fingerprint, dict[str, Any]]:
    """Rows that are not well, of each group's newest projected night; of two about one fingerprint the later judged."""
    p, m = projections_table.c, _metrics()
    # Groups of a subject lie side by side in the projections' primary key, which knows empty nights, too.
    mine = sa.or_(
        *(
            sa.and_(p.table_name >= f"{name}/metrics/", p.table_name < f"{name}/metrics0")
            for name in dict.fromkeys(subjects)
        )
    )
    newest = sa.select(p.table_name, sa.func.max(p.data_date).label("newest")).where(p.sql_table == SQL_TABLE, mine)
    if as_of is not None:
        newest = newest.where(p.data_date <= as_of)
    groups = connection.execute(newest.group_by(p.table_name)).all()
    rows: dict[Fingerprint, dict[str, Any]] = {}
    for group in groups:
        query = (
            sa.select(m)
            .where(m.c.source_table == group.table_name, m.c.data_date == group.newest, m.c.status.in_(_WRONG))
            .order_by(m.c.about_date)
        )
        for row in connection.execute(query).mappings():
            rows[(row["subject"], row["check"], row["column"], row["segment"])] = dict(row)
    return rows


def _streaks(
    connection: sa.Connection, rows: Mapping[Fingerprint, Mapping[str, Any]]
) -> dict[Fingerprint, tuple[date, int]]:
    """By alarm: first night of its streak, and nights of it that were not well."""
    m = _metrics()
    # Made once: with hundreds of alarms, putting the statement together would take longer than the database does.
    names = ("subject", "check", "column", "segment")
    same = sa.and_(
        *(m.c[name] == sa.bindparam(f"its_{name}") for name in names),
        m.c.about_date <= sa.bindparam("about", type_=sa.Date()),
        m.c.data_date <= sa.bindparam("judged", type_=sa.Date()),
    )
    well = sa.select(sa.func.max(m.c.about_date)).where(same, m.c.status == "ok").correlate(None).scalar_subquery()
    streak = sa.select(sa.func.min(m.c.about_date), sa.func.count(sa.distinct(m.c.about_date))).where(
        same, m.c.status.in_(_WRONG), m.c.about_date > sa.func.coalesce(well, date(1, 1, 1))
    )
    found = {}
    for key, row in rows.items():
        named = {f"its_{name}": part for name, part in zip(names, key, strict=True)}
        since, nights = connection.execute(
            streak, named | {"about": row["about_date"], "judged": row["data_date"]}
        ).one()
        found[key] = (since or row["about_date"], nights or 1)
    return found

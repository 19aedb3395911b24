"""Open alarms: what the newest night of each group of metrics says is wrong, since when, and what people said of it.

An alarm's fingerprint is `(subject, check, column, segment, role, model_version)`: another version of a model is
another alarm. An acknowledgement holds until the alarm clears, a silence until its date; what people said before
fingerprints had role and version holds for the champion's alarms, whatever their version. Read from the SQL table
`metrics` by fingerprint and night, never whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from config.errors import NightfleetError
from lake.assignment import CHAMPION
from lake.lake import Lake
from lake.metric_queries import METRICS, read_newest_nights
from lake.stored_rollouts import stored_rollouts
from monitoring.alerting.actions import DONE, Action, read_actions, record_action
from monitoring.rollout.checks import GROUP

Severity = Literal["warning", "critical"]
ACKNOWLEDGE, SILENCE, UNSILENCE = "acknowledge", "silence", "unsilence"
_SEVERITIES: Mapping[str, Severity] = {"warning": "warning", "failing": "critical"}
_WRONG = tuple(_SEVERITIES)
_LONGEST_REASON = 1_000


class AlarmNotOpen(NightfleetError):
    """A person meant an alarm that is not open, perhaps not any more."""


class ReasonMissing(NightfleetError):
    """A person acknowledged or silenced an alarm without saying why."""


class BadSilence(NightfleetError):
    """A silence that would be over before it began."""


class Fingerprint(NamedTuple):
    """Names an alarm; `role` and `model_version` are empty and None where it is about no version of a model."""

    subject: str
    check: str
    column: str = ""
    segment: str = ""
    role: str = ""
    model_version: int | None = None

    def covers(self, alarm: Fingerprint) -> bool:
        """Whether what was said of this is meant of that alarm: the same; or, said before roles were recorded, the
        champion's.
        """
        return self == alarm or (self.role == "" and alarm.role in ("", CHAMPION) and self[:4] == alarm[:4])


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
    role: str = ""
    model_version: int | None = None

    @property
    def key(self) -> Fingerprint:
        """What is acknowledged and silenced."""
        return Fingerprint(self.subject, self.check, self.column, self.segment, self.role, self.model_version)

    @property
    def fingerprint(self) -> str:
        """`key` as text."""
        return fingerprint_text(self.key)

    @property
    def former_fingerprint(self) -> str:
        """The text by which it was known before roles were recorded; another version's alarm in another role has none
        but its own.
        """
        return fingerprint_text(Fingerprint(*self.key[:4])) if self.role in ("", CHAMPION) else self.fingerprint


def fingerprint_text(key: Fingerprint) -> str:
    """`subject/check/column/segment`, the subject followed by `:role:version` where it has them; `fingerprint_parts`
    takes it apart again. A slash within a column is `%2F`.
    """
    version = "" if key.model_version is None else key.model_version
    subject = f"{key.subject}:{key.role}:{version}" if key.role else key.subject
    return "/".join((subject, key.check, key.column.replace("%", "%25").replace("/", "%2F"), key.segment))


def fingerprint_parts(text: str) -> Fingerprint:
    """The fingerprint that a text names.

    Raises:
        AlarmNotOpen: it is none.
    """
    parts = text.split("/", 3)
    about = parts[0].split(":")
    whole = len(parts) == 4 and about[0] and parts[1]
    if not whole or len(about) not in (1, 3) or not (about[-1] == "" or len(about) == 1 or about[-1].isdecimal()):
        raise AlarmNotOpen(
            f"{text[:200]!r} names no alarm: a fingerprint is subject/check/column/segment, of which the last two may "
            "be empty, or subject:role:version/check/column/segment."
        )
    subject, role, version = about if len(about) == 3 else (about[0], "", "")
    column = parts[2].replace("%2F", "/").replace("%25", "%")
    return Fingerprint(subject, parts[1], column, parts[3], role, int(version) if version else None)


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
    rows = _newest_rows(lake, subjects, as_of)
    if not rows:
        return []
    with lake.engine.connect() as connection:
        streaks = _streaks(connection, rows)
    said = _said(lake, {key.subject for key in rows})
    today = _today(lake, now or datetime.now(UTC))
    alarms = []
    for key, row in rows.items():
        since, nights = streaks[key]
        about_it = [action for action in said.get(key[:4], ()) if _key(action).covers(key)]
        acknowledged, silenced_until = _standing(about_it, since, today(key.subject, row["data_date"]))
        numbers = {name: row[name] for name in ("about_date", "data_date", "value", "threshold")}
        alarms.append(
            Alarm(
                **key._asdict(),
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
        alarms,
        key=lambda a: (
            a.severity != "critical",
            quiet[bool(a.acknowledged or a.silenced_until)],
            order[a.subject],
            a.check,
            a.column,
            a.segment,
            a.role,
            a.model_version or 0,
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


def open_alarm(lake: Lake, fingerprint: str, *, now: datetime | None = None) -> Alarm | None:
    """The alarm of that fingerprint, None where it is not open.

    Raises:
        AlarmNotOpen: the text is no fingerprint.
    """
    key = fingerprint_parts(fingerprint)
    return next((alarm for alarm in open_alarms(lake, [key.subject], now=now) if key.covers(alarm.key)), None)


def _open(lake: Lake, fingerprint: str, now: datetime) -> Alarm:
    alarm = open_alarm(lake, fingerprint, now=now)
    if alarm is None:
        raise AlarmNotOpen(
            f"no alarm {fingerprint[:200]!r} is open: it cleared, or never was. Look at the model's page again."
        )
    return alarm


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
    named = alarm_names(alarm.key)
    return Action(at_utc=now, by=by, role=role, action=action, until=until, reason=reason, details=details, **named)


def alarm_names(key: Fingerprint) -> dict[str, Any]:
    """A fingerprint as the fields of an action: an action's `role` is the person's."""
    named = key._asdict()
    return named | {"model_role": named.pop("role")}


def _key(action: Action) -> Fingerprint:
    return Fingerprint(
        action.subject, action.check, action.column, action.segment, action.model_role, action.model_version
    )


def action_fingerprint(action: Action) -> str:
    """The alarm that an action was about, as text; its subject where it was about none."""
    return fingerprint_text(_key(action)) if action.check else action.subject


def _said(lake: Lake, subjects: Iterable[str]) -> dict[tuple[Any, ...], list[Action]]:
    """By subject, check, column and segment: what people said of it, the latest first."""
    said: dict[tuple[Any, ...], list[Action]] = {}
    for subject in subjects:
        for action in read_actions(lake, subject=subject, actions=(ACKNOWLEDGE, SILENCE, UNSILENCE), limit=None):
            if action.outcome == DONE:
                said.setdefault(_key(action)[:4], []).append(action)
    return said


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


def _newest_rows(lake: Lake, subjects: Collection[str], as_of: date | None) -> dict[Fingerprint, dict[str, Any]]:
    """Rows that are not well, of each group's newest projected night; of two about one fingerprint the later judged.
    Nobody judges a rollout that is over: what its last evening said is no alarm any more.
    """
    rows = read_newest_nights(lake, subjects, as_of=as_of, statuses=_WRONG, segments=True, role=None)
    of_rollouts = {row["subject"] for row in rows if _is_of_rollout(row)}
    stored = stored_rollouts(lake, of_rollouts) if of_rollouts else {}
    going = {name for name, snapshot in stored.items() if snapshot.running is not None}
    rows = [row for row in rows if row["subject"] in going or not _is_of_rollout(row)]
    return {
        Fingerprint(
            row["subject"], row["check"], row["column"], row["segment"], row["role"] or "", row["model_version"]
        ): dict(row)
        for row in rows
    }


def _is_of_rollout(row: Mapping[str, Any]) -> bool:
    return bool(row["source_table"] == f"{row['subject']}/metrics/{GROUP}")


def _streaks(
    connection: sa.Connection, rows: Mapping[Fingerprint, Mapping[str, Any]]
) -> dict[Fingerprint, tuple[date, int]]:
    """By alarm: first night of its streak, and nights of it that were not well."""
    m = METRICS.c
    # Made once: with hundreds of alarms, putting the statement together would take longer than the database does.
    names = ("subject", "check", "column", "segment")
    same = sa.and_(
        *(m[name] == sa.bindparam(f"its_{name}") for name in names),
        m.role.is_not_distinct_from(sa.bindparam("its_role", type_=sa.Text())),
        m.model_version.is_not_distinct_from(sa.bindparam("its_version", type_=sa.BigInteger())),
        m.about_date <= sa.bindparam("about", type_=sa.Date()),
        m.data_date <= sa.bindparam("judged", type_=sa.Date()),
    )
    well = sa.select(sa.func.max(m.about_date)).where(same, m.status == "ok").correlate(None).scalar_subquery()
    streak = sa.select(sa.func.min(m.about_date), sa.func.count(sa.distinct(m.about_date))).where(
        same, m.status.in_(_WRONG), m.about_date > sa.func.coalesce(well, date(1, 1, 1))
    )
    streaks = {}
    for key, row in rows.items():
        its = {f"its_{name}": part for name, part in zip(names, key[:4], strict=True)}
        its |= {"its_role": row["role"], "its_version": row["model_version"]}
        since, nights = connection.execute(streak, its | {"about": row["about_date"], "judged": row["data_date"]}).one()
        streaks[key] = (since or row["about_date"], nights or 1)
    return streaks

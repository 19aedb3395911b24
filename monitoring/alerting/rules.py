"""The alert rules of the catalog, judged each night into the metrics table (group `alerts`, checks named after the
rules).

So an alert has a fingerprint, and is acknowledged, silenced and shown like any other alarm. A rule that cannot be
judged says why.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from config.calendar import ONE_DAY, Interval, cutoff, data_date_of
from config.catalog.model import ModelEntry
from config.catalog.policy import AccuracyDrop, AlertRule, ConsecutiveFailures, LateNight
from lake.lake import Lake, StageResult
from lake.metric_queries import METRICS, fetch, these
from lake.metrics import Metric, Status, metrics_table, publish_metrics
from lake.publication_queries import newest_nights, published_nights
from lake.tables import feature_table
from monitoring import performance
from monitoring.alerting.runs import ENDED, FAILED, RUNNING, SUCCESS, Kind, Run, read_runs
from monitoring.wording import instant
from serving.predictions import predictions_table

GROUP = "alerts"
_STATUS: Mapping[str, Status] = {"warning": "warning", "critical": "failing"}
_KINDS: tuple[Kind, ...] = ("ingest", "score", "monitor", "train")
_FIRST_SHOWN = 300
_NIGHTS_LOOKED_AT, _RUNS_LOOKED_AT = 120, 50
_SETTLING = timedelta(minutes=5)
# A run that is on record as running for longer has been lost, with whoever would have said how it ended.
_FORGOTTEN = timedelta(days=1)


# ---- is a night late? ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lateness:
    """Whether a model's night is, or was, late.

    Attributes:
        due_at: the deadline as an instant, UTC; None in a replay, where no clock runs.
        late_by: how long after it the night was scored, or has not been scored until now; None where it is not late, or
            in a replay.
        reason: one sentence.
        expected: whether the night is expected of the model at all.
    """

    late: bool
    due_at: datetime | None
    late_by: timedelta | None
    reason: str
    expected: bool = True


def due_at(data_date: date, deadline: time, time_zone: str) -> datetime:
    """The deadline of night `data_date`: local time on the morning after, in UTC. An hour that the clocks skip counts
    as the one after it, of one that they repeat the first is meant.
    """
    return datetime.combine(data_date + ONE_DAY, deadline, tzinfo=ZoneInfo(time_zone)).astimezone(UTC)


def lateness(
    data_date: date,
    *,
    deadline: time,
    time_zone: str,
    replay: bool,
    now: datetime,
    published: bool,
    scored_at: datetime | None,
    running: bool,
    has_champion: bool = True,
) -> Lateness:
    """Whether the night `data_date` of a model is late.

    Live: scored after its deadline, or not scored though it has passed. In a replay: not scored though the data set's
        features of that night
    are published, and no run of the model is going on.

    Args:
        now: aware; looked at for live data sets only.
        published: whether the data set's features of that night are published.
        scored_at: when the night's predictions were first published, aware; None: not yet.
        running: whether a run of the model or of its data set is going on.
        has_champion: whether the model has a champion for that night; without one nothing can be late.
    """
    if not has_champion:
        return Lateness(
            False, None, None, f"{data_date} is not expected: the model has no champion for it", expected=False
        )
    if replay:
        if scored_at is not None:
            return Lateness(False, None, None, f"{data_date} is scored")
        if not published:
            return Lateness(False, None, None, f"the features of {data_date} are not published yet")
        if running:
            return Lateness(False, None, None, f"{data_date} is being worked on")
        return Lateness(
            True, None, None, f"{data_date} is not scored, though its features are published, and no run is going on"
        )
    due = due_at(data_date, deadline, time_zone)
    deadline_text = instant(due)  # in UTC, as every instant that may stand beside it
    by = (scored_at or now) - due
    if by <= timedelta(0):
        return Lateness(
            False,
            due,
            None,
            f"{data_date} was scored before its deadline, {deadline_text}"
            if scored_at
            else f"{data_date} is due at {deadline_text}",
        )
    if scored_at is not None:
        return Lateness(
            True, due, by, f"{data_date} was scored {duration_text(by)} after its deadline, {deadline_text}"
        )
    idle = "no run is going on" if published else "its features are not published"
    why = "a run is going on" if running else idle
    return Lateness(
        True, due, by, f"{data_date} is not scored, {duration_text(by)} after its deadline, {deadline_text}; {why}"
    )


def duration_text(length: timedelta) -> str:
    """A length of time as a person says it, to the minute, from two days on to the hour: 36 minutes, 2 h 36 min, 3 days
    4 h.
    """
    minutes = max(0, round(length.total_seconds() / 60))
    if minutes < 60:
        return f"{minutes} minute{'' if minutes == 1 else 's'}"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, hours = divmod(round(minutes / 60), 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


@dataclass(frozen=True)
class ModelNight:
    """Where a model stands.

    Attributes:
        data_date: the night that is expected of it: the newest that is over (live) or published (replay); None before
            the first.
        scored: its newest scored night; scored_at: when that was first published.
        running: kinds of its runs, and of its data set's, that are going on.
    """

    model: str
    data_date: date | None
    scored: date | None
    scored_at: datetime | None
    running: tuple[str, ...]
    lateness: Lateness | None


def model_nights(
    lake: Lake, models: Collection[str], *, now: datetime | None = None, data_date: date | None = None
) -> dict[str, ModelNight]:
    """Where each model stands; from SQL, but for the ledger of a model that has not scored the night.

    Args:
        now: aware; None: now.
        data_date: the night to judge; None: the one that is expected.
    """
    now = now or datetime.now(UTC)
    entries = {name: lake.model(name) for name in models}
    read_by = {name: lake.catalog.datasets_of(entry) for name, entry in entries.items()}
    datasets = {dataset.name: dataset for read in read_by.values() for dataset in read}
    features = {
        name: [feature_table(lake.settings, dataset, view).name for view in dataset.features]
        for name, dataset in datasets.items()
    }
    predictions = {
        name: predictions_table(lake.settings, entry, datasets[entry.dataset]).name for name, entry in entries.items()
    }
    newest = newest_nights(lake, [*predictions.values(), *(table for tables in features.values() for table in tables)])
    busy = _busy(lake, [*entries, *datasets], now)
    nights = {}
    for name, entry in entries.items():
        dataset = datasets[entry.dataset]
        known = [newest.get(table) for read in read_by[name] for table in features[read.name]]
        published_until = min((day for day in known if day), default=None) if all(known) else None
        expected = data_date or (published_until if dataset.replay else last_night(now, dataset.time_zone))
        scored = newest.get(predictions[name])
        running = tuple(
            dict.fromkeys(run.kind for run in busy if run.subject in (name, *(read.name for read in read_by[name])))
        )
        if expected is None:
            nights[name] = ModelNight(name, None, scored, None, running, None)
            continue
        scored_at = _first_committed(lake, predictions[name], expected) if scored and scored >= expected else None
        judged = lateness(
            expected,
            deadline=entry.deadline,
            time_zone=dataset.time_zone,
            replay=dataset.replay is not None,
            now=now,
            published=published_until is not None and published_until >= expected,
            scored_at=scored_at,
            running=bool(running),
            has_champion=scored is not None or _has_champion(lake, name, expected),
        )
        nights[name] = ModelNight(name, expected, scored, scored_at, running, judged)
    return nights


def last_night(now: datetime, time_zone: str) -> date:
    """The newest data date that is over at an instant: the greatest T with cutoff(T) <= now."""
    day = data_date_of(now, time_zone)
    return day if cutoff(day, time_zone) <= now else day - ONE_DAY


def _first_committed(lake: Lake, table: str, night: date) -> datetime | None:
    published = published_nights(lake, [table], Interval.of(night)).get(table, {})
    return published[night].first_at if night in published else None


def _has_champion(lake: Lake, model: str, night: date) -> bool:
    return any(p.effective_from <= night and p.trained_until <= night for p in lake.ledger(model).read().promotions)


def _busy(lake: Lake, subjects: Collection[str], now: datetime) -> list[Run]:
    """Runs that lead to scored nights and are going on: an ingest that has just ended well, too, since what it starts
    takes a moment to begin.
    """
    running = read_runs(lake, subjects=subjects, kinds=_KINDS[:2], states=[RUNNING])
    just_ended = read_runs(
        lake, subjects=subjects, kinds=_KINDS[:1], states=[SUCCESS], newest_first_limit=len(subjects)
    )
    return [
        *(run for run in running if run.started_at and now - run.started_at < _FORGOTTEN),
        *(run for run in just_ended if run.ended_at and timedelta(0) <= now - run.ended_at < _SETTLING),
    ]


# ---- the rules -------------------------------------------------------------------------------------------------


def judge_alerts(lake: Lake, model: str, data_date: date, *, run_id: str, now: datetime | None = None) -> StageResult:
    """Publish `<model>/metrics/alerts` of one night: a row for each rule and what it looks at, by the facts as they are
    now.

    Args:
        now: for deadlines of live data sets, aware; None: now.
    Returns:
        details: `alarms` (rule and reason of each that alarms), `not_evaluated` (the same of each that could not be
            judged).
    """
    now = now or datetime.now(UTC)
    entry = lake.model(model)
    interval = Interval.of(data_date)
    before = lake.publications.digests(metrics_table(lake.settings, model, GROUP), interval)
    judge = _Judge(lake, entry, data_date, now)
    rows = [row for rule in entry.alerts for row in judge.rows(rule)]
    measured = lake.publications.current(metrics_table(lake.settings, model, performance.GROUP), interval)
    inputs = {day: [publication.as_input()] for day, publication in measured.items()}
    published = publish_metrics(lake, model, GROUP, rows, interval, run_id=run_id, inputs=inputs, replaces=before)
    details = {
        "alarms": [
            f"{row.check} {row.column}".strip() + f": {row.reason}"
            for row in rows
            if row.status in ("warning", "failing")
        ],
        "not_evaluated": [
            f"{row.check} {row.column}".strip() + f": {row.reason}" for row in rows if row.status == "not_evaluated"
        ],
    }
    return StageResult("alerts", model, str(interval), published.rows, len(published.committed), details)


@dataclass(frozen=True)
class _Judge:
    lake: Lake
    entry: ModelEntry
    night: date
    now: datetime

    def rows(self, rule: AlertRule) -> list[Metric]:
        """At least one row, so that a rule is never silently absent."""
        if isinstance(rule, AccuracyDrop):
            return self._drops(rule)
        if isinstance(rule, ConsecutiveFailures):
            return [self._failures(rule, kind) for kind in _KINDS]
        return [self._late(rule)]

    def _row(self, rule: AlertRule, status: Status, *, about: date | None = None, **values: object) -> Metric:
        named: dict[str, object] = {
            "subject": self.entry.name,
            "about_date": about or self.night,
            "data_date": self.night,
            "check": rule.name,
        }
        return Metric(**named, status=status, **values)  # type: ignore[arg-type]  # each caller gives the fields' own types

    def _drops(self, rule: AccuracyDrop) -> list[Metric]:
        wanted = rule.outputs
        if wanted is None:
            deciding = tuple(name for name, output in self.entry.outputs.items() if rule.check in output.headlines)
            wanted = deciding if rule.check == "accuracy" else tuple(self.entry.outputs)
        if not wanted:
            why = (
                f"no output of the model decides between outcomes ({', '.join(self.entry.outputs)} is a number), so "
                "there is no accuracy"
            )
            return [self._row(rule, "not_evaluated", threshold=rule.by, reason=why)]
        return [row for output in wanted for row in self._drops_of(rule, output)]

    def _drops_of(self, rule: AccuracyDrop, output: str) -> list[Metric]:
        known = self._judged(rule.check, output)
        tonight = [row for row in known if row.data_date == self.night]
        if not tonight:
            why = f"{rule.check} of {output} was not measured by the night {self.night}"
            return [self._row(rule, "not_evaluated", column=output, threshold=rule.by, reason=why)]
        rows = []
        for row in tonight:
            said: dict[str, Any] = {"about": row.about_date, "column": output, "threshold": rule.by, "n": row.n}
            said |= {"role": row.role, "model_version": row.model_version}
            if row.value is None:
                rows.append(
                    self._row(
                        rule,
                        "not_evaluated",
                        reason=row.reason or f"{rule.check} of {row.about_date} has no value",
                        **said,
                    )
                )
                continue
            earlier = [other for other in known if other.about_date < row.about_date and other.value is not None]
            if not earlier:
                why = (
                    f"{row.about_date} is the first night whose {rule.check} of {output} is known ({row.value:.3f}):"
                    " there is none to compare it with"
                )
                rows.append(self._row(rule, "not_evaluated", reason=why, **said))
                continue
            last = max(earlier, key=lambda other: (other.about_date, other.data_date))
            few = next((one for one in (row, last) if (one.n or 0) < performance.LEAST_JUDGED_ROWS), None)
            if few is not None:
                why = (
                    f"{few.about_date} has {few.n or 0} row{'' if few.n == 1 else 's'} with a label: two nights are"
                    f" compared when each has at least {performance.LEAST_JUDGED_ROWS}"
                )
                rows.append(self._row(rule, "not_evaluated", reason=why, **said))
                continue
            # Rounded, so that 0.70 to 0.65 is a drop of 0.05.
            drop = round(last.value - row.value if rule.worse == "lower" else row.value - last.value, 9)
            verb = "fell" if rule.worse == "lower" else "rose"
            text = (
                f"{rule.check} of {output} {verb} from {last.value:.3f} on {last.about_date} to {row.value:.3f} on"
                f" {row.about_date}; {rule.by:g} is too much"
            )
            alarms = drop >= rule.by
            reference = f"{last.about_date}: {last.value:.6g}"
            rows.append(
                self._row(
                    rule,
                    _STATUS[rule.severity] if alarms else "ok",
                    value=drop,
                    reference=reference,
                    reason=text if alarms else None,
                    **said,
                )
            )
        return rows

    def _judged(self, check: str, output: str) -> list[sa.Row[Any]]:
        """Rows of that check of the champion's whole output in the nights up to this one, the latest first."""
        c = METRICS.c
        measured = f"{self.entry.name}/metrics/{performance.GROUP}"
        query = (
            sa.select(METRICS)
            .where(*these([self.entry.name], checks=[check], columns=[output]))
            .where(c.data_date <= self.night, c.source_table == measured)
        )
        return fetch(self.lake, query.order_by(c.about_date.desc(), c.data_date.desc()).limit(_NIGHTS_LOOKED_AT))

    def _failures(self, rule: ConsecutiveFailures, kind: Kind) -> Metric:
        read = [dataset.name for dataset in self.lake.catalog.datasets_of(self.entry)]
        subjects = read if kind == "ingest" else [self.entry.name]
        # Of several data sets the one that failed most often in a row: good runs of one do not excuse the other.
        failed, runs = max(
            (self._failed_in_a_row(subject, kind, rule) for subject in subjects), key=lambda counted: counted[0]
        )
        said: dict[str, Any] = {"column": kind, "value": float(failed), "threshold": float(rule.count), "n": len(runs)}
        if failed < rule.count:
            return self._row(rule, "ok", **said)
        last = runs[0]
        told = f": {last.failed_task} said {shortened(last.error)}" if last.failed_task and last.error else ""
        why = (
            f"the last {failed} runs of {last.dag_id} failed, the"
            f" newest{' for ' + last.partition_key if last.partition_key else ''}{told}"
        )
        return self._row(rule, _STATUS[rule.severity], reason=why, **said)

    def _failed_in_a_row(self, subject: str, kind: Kind, rule: ConsecutiveFailures) -> tuple[int, list[Run]]:
        """How many of the newest runs failed one after the other, and the runs that were looked at, newest first."""
        runs = read_runs(
            self.lake, subjects=[subject], kinds=[kind], states=ENDED, newest_first_limit=_RUNS_LOOKED_AT + rule.count
        )
        runs = [run for run in runs if run.partition_key is None or run.partition_key <= self.night.isoformat()]
        return next((place for place, run in enumerate(runs) if run.state != FAILED), len(runs)), runs

    def _late(self, rule: LateNight) -> Metric:
        night = model_nights(self.lake, [self.entry.name], now=self.now, data_date=self.night)[self.entry.name]
        known = night.lateness
        assert known is not None  # a night was named
        if not known.late:
            return self._row(rule, "ok")
        if known.late_by is None or known.due_at is None:
            return self._row(rule, _STATUS[rule.severity], reason=known.reason)
        if night.scored_at is not None:
            return self._row(
                rule, _STATUS[rule.severity], value=round(known.late_by.total_seconds() / 60, 1), reason=known.reason
            )
        # Without the minutes until now: the same fact must stay the same row, however often it is looked at.
        return self._row(
            rule, _STATUS[rule.severity], reason=f"{self.night} was not scored at its deadline, {instant(known.due_at)}"
        )


def shortened(text: str | None, longest: int = _FIRST_SHOWN) -> str:
    """The first line of a text, bounded."""
    first = (text or "").strip().splitlines()[:1]
    line = " ".join(" ".join(first).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"

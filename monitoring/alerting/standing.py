"""How every model stands tonight: one status and its causes, worst first, and the one sentence that says how the night
is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import Any

from config.calendar import ONE_DAY, Interval
from config.catalog.model import ModelEntry
from config.catalog.policy import ConsecutiveFailures, LateNight
from features.expectations import BAD_SHARE
from features.labels import newest_mature
from features.validate import SCORE
from lake.assignment import CHAMPION, champion_in
from lake.lake import Lake
from lake.metric_queries import Row, read_metrics_of
from lake.publication_queries import PublishedNight, published_nights
from monitoring.alerting.alarms import Alarm, open_alarms
from monitoring.alerting.lifecycle import Led, requests_with_outcome, waiting_for_approval
from monitoring.alerting.rules import ModelNight, model_nights
from monitoring.alerting.runs import ENDED, FAILED, Run, read_runs
from monitoring.alerting.status import STATISTICAL, STATUSES, Facts, Part, Status, counts, status_of
from monitoring.importance import Importances, read_importances
from monitoring.matured import JudgedNight, Key, LastNights, Pooled, ever_judged, last_judged, pooled
from monitoring.performance import ERROR_RATIO
from monitoring.wording import counted, figures, label_unit, named, per_hundred, percent, spaced
from serving.predictions import predictions_table
from training.registry.records import DecisionRecord, read_promises

OPEN_REQUEST_NIGHTS = 60
_FEATURE_DRIFT = ("drift_psi", "drift_ks")
_RUN_WORDS = {"ingest": "ingest", "score": "scoring", "monitor": "monitoring", "train": "training"}
_MOVED = 6  # rank of a column that is null or has drifted, of which one says little
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Cause:
    """Why a model is not healthy.

    Attributes:
        rank: what comes first, 0 the gravest; size: of those of a rank the largest comes first, the share that it
            concerns of what the model rests on (importance of its features, times the share of their rows).
        text: a clause with its numbers.
        shared: the same for every model that has it (a run of the data set, its tables).
        run: the DAG run that it comes from; dataset, table: where it comes from a table;
            drift: whether the night's drift report says more of it.
    """

    rank: int
    text: str
    size: float = 0.0
    shared: str = ""
    run: Run | None = None
    dataset: str = ""
    table: str = ""
    drift: bool = False


@dataclass(frozen=True)
class Scored:
    """The newest publication of a model's predictions."""

    data_date: date
    rows: int
    version: int | None
    first_at: datetime
    artifact_digest: str | None = None


@dataclass(frozen=True)
class Standing:
    """A model as people see it.

    Attributes:
        training: the newest training, where it failed. It stands beside the night's health, which it says nothing of.
    """

    entry: ModelEntry
    status: Status
    causes: tuple[Cause, ...]
    night: ModelNight
    scored: Scored | None = None
    quality: float | None = None
    drift: str = ""
    performance: tuple[str, ...] = ()
    approvals: int = 0
    requests: int = 0
    alarms: tuple[Alarm, ...] = ()
    training: Cause | None = None


# ---- what is read: a handful of queries for all models ------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    """Everything the page knows, by model or data set."""

    nights: Mapping[str, ModelNight]
    scored: Mapping[str, Scored]
    metrics: Mapping[str, Sequence[Row]]
    quality: Mapping[str, Sequence[Row]]
    errors: Mapping[Key, Sequence[JudgedNight]]
    ever_judged: Collection[str]
    judged: Mapping[str, Mapping[date, Sequence[Row]]]
    alarms: Mapping[str, Sequence[Alarm]]
    failed: Mapping[str, Sequence[Run]]
    trainings: Mapping[str, Run]
    promises: Mapping[str, Mapping[int, Mapping[str, float]]]
    waiting: Mapping[str, Sequence[DecisionRecord]]
    open_requests: Mapping[str, Sequence[Led]]


def _read(lake: Lake, models: Sequence[str], now: datetime, night: date | None) -> _Read:
    entries = {name: lake.model(name) for name in models}
    read_by = {name: {dataset.name for dataset in lake.catalog.datasets_of(e)} for name, e in entries.items()}
    datasets = sorted(set().union(*read_by.values()))
    nights = model_nights(lake, models, now=now, data_date=night)
    scored = _scored(
        lake,
        {
            name: (predictions_table(lake.settings, e, lake.dataset(e.dataset)).name, night or nights[name].scored)
            for name, e in entries.items()
        },
    )
    newest = {name: one.data_date for name, one in scored.items()}
    of_dataset = {
        name: max((newest[m] for m, read in read_by.items() if name in read and m in newest), default=None)
        for name in datasets
    }
    alarms = _by_subject(open_alarms(lake, [*models, *datasets], as_of=night, now=now), lambda a: a.subject)
    runs_since = Interval(min(newest.values()), date(9999, 1, 1)) if newest else None
    last_nights = {
        name: LastNights(one.version, one.data_date, entries[name].retrain.performance.nights)
        for name, one in scored.items()
        if one.version is not None
    }
    known = [night.data_date for night in nights.values() if night.data_date]
    recent = Interval(max(known) - timedelta(days=OPEN_REQUEST_NIGHTS), date(9999, 1, 1)) if known else None
    outcomes = requests_with_outcome(lake, models, recent)
    return _Read(
        nights=nights,
        scored=scored,
        metrics=_night_rows(lake, newest, segments=False),
        quality=_night_rows(lake, {name: day for name, day in of_dataset.items() if day}, checks=(SCORE, BAD_SHARE)),
        errors=last_judged(lake, last_nights),
        ever_judged=ever_judged(lake, list(newest)),
        judged=_judged(lake, entries, newest),
        alarms=alarms,
        failed=_failed_runs(lake, [*models, *datasets], Interval.of(night) if night else runs_since),
        trainings=_newest_trainings(lake, models, recent),
        promises=read_promises(lake, {name: [one.version] for name, one in scored.items() if one.version is not None}),
        waiting=_by_subject(waiting_for_approval(lake, models), lambda d: d.model),
        open_requests=_by_subject(
            (led for led in outcomes if led.state in ("asked", "training", "waiting")), lambda led: led.request.model
        ),
    )


def _by_subject(items: Iterable[Any], name: Any) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(name(item), []).append(item)
    return groups


def _scored(lake: Lake, wanted: Mapping[str, tuple[str, date | None]]) -> dict[str, Scored]:
    published: dict[str, Mapping[date, PublishedNight]] = {}
    for newest in sorted({day for _, day in wanted.values() if day is not None}):
        tables = [table for table, day in wanted.values() if day == newest]
        published |= published_nights(lake, tables, Interval.of(newest))
    scored = {}
    for name, (table, day) in wanted.items():
        if day is not None and day in published.get(table, {}):
            night = published[table][day]
            champion = champion_in(night.scored_by)
            version, digest = (champion.version, champion.artifact_digest) if champion else (None, None)
            scored[name] = Scored(day, night.rows, version, night.first_at, digest)
    return scored


def _night_rows(
    lake: Lake, nights: Mapping[str, date], *, checks: Collection[str] | None = None, segments: bool = True
) -> dict[str, list[Row]]:
    """Metrics judged in each subject's own night."""
    metrics: dict[str, list[Row]] = {name: [] for name in nights}
    for day in sorted(set(nights.values())):
        names = [name for name, own in nights.items() if own == day]
        for row in read_metrics_of(lake, names, Interval.of(day), by="data_date", checks=checks, segments=segments):
            metrics[row["subject"]].append(row)
    return metrics


def _judged(
    lake: Lake, entries: Mapping[str, ModelEntry], newest: Mapping[str, date]
) -> dict[str, dict[date, list[Row]]]:
    """By model: the judgements of the night whose labels are the newest to have matured."""
    due = {name: newest_mature(lake, name, day) for name, day in newest.items()}
    judged: dict[str, dict[date, list[Row]]] = {name: {day: []} for name, day in due.items()}
    gates = sorted({output.gate for name in due for output in entries[name].outputs.values()} | {ERROR_RATIO})
    outputs = sorted({output for name in due for output in entries[name].outputs})
    for day in sorted(set(due.values())):
        names = [name for name, own in due.items() if own == day]
        for row in read_metrics_of(lake, names, Interval.of(day), checks=gates, columns=outputs):
            judged[row["subject"]][day].append(row)
    return judged


def _failed_runs(lake: Lake, subjects: Sequence[str], keys: Interval | None) -> dict[str, list[Run]]:
    """By subject: runs of those nights that failed, none having succeeded since."""
    newest: dict[tuple[str, str | None], Run] = {}
    for run in read_runs(lake, subjects=subjects, kinds=["ingest", "score", "monitor"], keys=keys):
        newest[(run.dag_id, run.partition_key)] = run
    return _by_subject((run for run in newest.values() if run.state == FAILED), lambda run: run.subject)


def _newest_trainings(lake: Lake, models: Sequence[str], nights: Interval | None) -> dict[str, Run]:
    """By model: the run that ended last."""
    ended = read_runs(lake, subjects=models, kinds=["train"], states=ENDED, keys=nights)
    return {run.subject: run for run in sorted(ended, key=lambda run: run.ended_at or _NEVER)}


# ---- what it means -----------------------------------------------------------------------------------------------


def tables_read(lake: Lake, entry: ModelEntry) -> set[tuple[str, str]]:
    """Data set and name of every table that a model's input and labels come from."""
    own = {entry.label.table} | ({entry.spine.table} if entry.spine.table else set())
    read = {(view.dataset.name, table) for view in lake.catalog.views(entry) for table in view.declared.reads}
    return read | {(entry.dataset, table) for table in own}


def _table_of(column: str) -> str:
    return column.partition(".")[0]


class _Judge:
    """Facts, status and causes of one model."""

    def __init__(self, lake: Lake, entry: ModelEntry, read: _Read) -> None:
        self.lake, self.entry, self.read = lake, entry, read
        self.datasets = [dataset.name for dataset in lake.catalog.datasets_of(entry)]
        self.night = read.nights[entry.name]
        self.scored = read.scored.get(entry.name)
        self.metrics = read.metrics.get(entry.name, ())
        self.tables = tables_read(lake, entry)
        self.quality = [
            row for name in self.datasets for row in read.quality.get(name, ()) if self._reads(name, row["column"])
        ]
        inputs = [
            alarm for name in self.datasets for alarm in read.alarms.get(name, ()) if self._reads(name, alarm.column)
        ]
        # A version that only runs along says nothing of how the model stands.
        own = [alarm for alarm in read.alarms.get(entry.name, ()) if alarm.role in ("", CHAMPION)]
        self.alarms: list[Alarm] = [*own, *inputs]
        self.of_the_night = [alarm for alarm in self.alarms if not self._is_about_training(alarm)]
        self.failed = [run for name in (*self.datasets, entry.name) for run in read.failed.get(name, ())]
        day = self.scored.data_date.isoformat() if self.scored else ""
        self.failed = [run for run in self.failed if (run.partition_key or "") >= day]

    def _is_about_training(self, alarm: Alarm) -> bool:
        rules = {rule.name for rule in self.entry.alerts if isinstance(rule, ConsecutiveFailures)}
        return alarm.subject == self.entry.name and alarm.check in rules and alarm.column == "train"

    def _reads(self, dataset: str, column: str) -> bool:
        return (dataset, _table_of(column)) in self.tables

    def _shown_table(self, dataset: str, table: str) -> str:
        return table if dataset == self.entry.dataset else f"{dataset}.{table}"

    def standing(self) -> Standing:
        facts = self.facts()
        status = status_of(facts)
        causes = sorted(self._causes(facts), key=lambda cause: (cause.rank, -cause.size))
        return Standing(
            entry=self.entry,
            status=status,
            causes=tuple(causes) if status != "healthy" else (),
            night=self.night,
            scored=self.scored,
            quality=min(
                (row["value"] for row in self.quality if row["check"] == SCORE and row["value"] is not None),
                default=None,
            ),
            drift=self._drift_text(),
            performance=self._performance_text(),
            approvals=len(self.read.waiting.get(self.entry.name, ())),
            requests=len(self.read.open_requests.get(self.entry.name, ())),
            alarms=tuple(alarm for alarm in self.alarms if alarm.subject == self.entry.name),
            training=self._failed_training(),
        )

    def _failed_training(self) -> Cause | None:
        run = self.read.trainings.get(self.entry.name)
        return Cause(0, _failure_text(run), run=run) if run is not None and run.state == FAILED else None

    def facts(self) -> Facts:
        late = self.night.lateness
        expected, scored = self.night.data_date, self.scored.data_date if self.scored else None
        is_late = late is not None and late.late
        # The night before counts until the newest one is due: between midnight and the deadline nothing is wrong.
        enough = scored is not None and (
            expected is None or scored >= expected or (not is_late and scored >= expected - ONE_DAY)
        )
        missing = scored is None or (expected is not None and scored < expected)
        return Facts(
            scored=enough,
            overdue=is_late and missing,
            came_late=is_late and not missing,
            run_failed=bool(self.failed),
            critical=any(alarm.severity == "critical" for alarm in self.of_the_night),
            warning=any(self._counting().values()),
            unjudged=frozenset(self._unjudged()),
        )

    # -- parts

    def _unjudged(self) -> dict[Part, str]:
        """Parts without a judgement, and why."""
        unjudged: dict[Part, str] = {}
        scores = {(row["subject"], _table_of(row["column"])): row for row in self.quality if row["check"] == SCORE}
        for dataset, table in sorted(self.tables):
            row = scores.get((dataset, table))
            if row is None or row["value"] is None:
                why = row["reason"] if row and row["reason"] else "not validated in this night"
                unjudged["input quality"] = f"{self._shown_table(dataset, table)}: {why}"
                break
        rows = {(row["check"], row["column"]): row for row in self.metrics}
        not_run = "monitoring of the night is not done"
        for part, check in (("volume", "volume"), ("drift of features", "drift_share")):
            row = rows.get((check, ""))
            if row is None or row["status"] == "not_evaluated":
                unjudged[part] = row["reason"] if row and row["reason"] else not_run  # type: ignore[index]  # both are parts
        predictions = [row for row in self.metrics if row["check"] == "prediction_drift"]
        judged = [row for row in predictions if row["status"] != "not_evaluated"]
        if not judged:
            unjudged["drift of predictions"] = next((row["reason"] for row in predictions if row["reason"]), not_run)
        why = self._performance_missing()
        return unjudged | ({"performance": why} if why else {})

    def _performance_missing(self) -> str:
        """Why the newest mature night counts as not judged; empty where it was, for every output."""
        if self.scored is None:
            return "no night is scored"
        [(due, rows)] = self.read.judged[self.entry.name].items()
        newest = {(row["check"], row["column"]): row for row in rows}
        missing = []
        for name, output in self.entry.outputs.items():
            own, ratio = newest.get((output.gate, name)), newest.get((ERROR_RATIO, name))
            if own is None or own["value"] is None or ratio is None or ratio["status"] == "not_evaluated":
                row = own if own is not None and own["value"] is None else ratio
                missing.append(row["reason"] if row and row["reason"] else f"{output.gate} of {name} is missing")
        if not missing:
            return ""
        if not rows and self.entry.name not in self.read.ever_judged:
            return f"no night of it has matured so far; labels of {due} would be the newest"
        return f"night {due}: {missing[0]}"

    # -- warnings

    def _counting(self) -> dict[str, bool]:
        """By check with open warnings: whether they count. A late night is told by its own fact."""
        own_late = {rule.name for rule in self.entry.alerts if isinstance(rule, LateNight)}
        by_check: dict[str, list[Alarm]] = {}
        for alarm in self.of_the_night:
            if alarm.severity == "warning" and alarm.check not in own_late:
                by_check.setdefault(alarm.check, []).append(alarm)
        quantile = self.entry.retrain.drift.limit_quantile
        judged = {
            check: sum(1 for row in self.metrics if row["check"] == check and row["status"] != "not_evaluated")
            for check in STATISTICAL
        }
        return {
            check: counts(check, [a.nights for a in alarms], judged.get(check, 0), quantile)
            for check, alarms in by_check.items()
        }

    # -- causes

    def _causes(self, facts: Facts) -> Iterable[Cause]:
        for run in self.failed:
            yield Cause(0, _failure_text(run), shared=run.dag_id if run.subject in self.datasets else "", run=run)
        late = self.night.lateness
        if (facts.overdue or facts.came_late) and late is not None:
            yield Cause(2, late.reason)
        if self.scored is None and not facts.overdue:
            yield Cause(2, late.reason if late is not None else "no night is scored yet")
        counting = self._counting()
        alarms = [a for a in self.of_the_night if a.severity == "critical" or counting.get(a.check)]
        yield from self._null_causes([a for a in alarms if a.check == "null_rate"])
        yield from self._input_causes([a for a in alarms if a.subject in self.datasets])
        yield from self._drift_causes([a for a in alarms if a.check in (*_FEATURE_DRIFT, "drift_share")])
        yield from self._prediction_causes([a for a in alarms if a.check == "prediction_drift"])
        told = {"null_rate", "drift_share", "prediction_drift", *_FEATURE_DRIFT}
        for alarm in alarms:
            if alarm.subject == self.entry.name and alarm.check not in told:
                yield Cause(_rank(alarm), f"{_alarm_text(alarm)}{_since(alarm)}")
        unjudged = {} if self.scored is None else self._unjudged()
        for part, why in unjudged.items():
            yield Cause(9, f"{part} not evaluated: {why}")

    def _null_causes(self, alarms: Sequence[Alarm]) -> Iterable[Cause]:
        """One cause a feature view: what is missing, since when, how much of it."""
        for view, missing in _by_subject(alarms, lambda a: a.column.partition("__")[0]).items():
            shares = [a.value for a in missing if a.value is not None]
            since = min(a.since for a in missing)
            lasting = f" since {_short(since, missing[0].about_date)}" if since < missing[0].about_date else ""
            what = (
                f"{len(missing)} features"
                if len(missing) > 1
                else f"feature {missing[0].column.partition('__')[2] or missing[0].column}"
            )
            most = f"{_percent(max(shares, default=None))} of rows"
            amount = most if not shares or max(shares) - min(shares) < 0.05 else f"up to {most}"
            yield Cause(
                1 if any(a.severity == "critical" for a in missing) else _MOVED,
                f"{view.replace('_', ' ')} missing{lasting}: {what} null in {amount}",
                size=sum((a.value or 0.0) * self._importance(a.column) for a in missing),
                shared=f"null/{self.entry.dataset}/{view}",
                drift=True,
            )

    @cached_property
    def _importances(self) -> Importances:
        version, digest = (self.scored.version, self.scored.artifact_digest) if self.scored else (None, None)
        return read_importances(self.lake.settings, self.entry, version, digest)

    def _importance(self, feature: str) -> float:
        """The share of what the version rests on; of a version that does not say, every feature is worth the same."""
        if self._importances.missing:
            return 1 / len(self.lake.catalog.feature_columns(self.entry))
        return self._importances.shares.get(feature, 0.0)

    def _input_causes(self, alarms: Sequence[Alarm]) -> Iterable[Cause]:
        """One cause a table: how many of its rows were set aside and by which rule, or what else is wrong with it."""
        for (dataset, table), own in _by_subject(alarms, lambda a: (a.subject, _table_of(a.column))).items():
            shown = self._shown_table(dataset, table)
            bad = next((a for a in own if a.check == BAD_SHARE), None)
            rank = 1 if any(a.severity == "critical" for a in own) else 5
            rules = sorted((a for a in own if a.check not in (BAD_SHARE, SCORE)), key=lambda a: -(a.value or 0.0))
            named = f", mostly by rule {rules[0].check} of {rules[0].column}" if rules else ""
            if bad is not None:
                rows = f" ({bad.reason})" if bad.reason else ""
                text = f"{shown}: {_percent(bad.value)} of rows quarantined{rows}{named}{_since(bad)}"
            elif rules:
                text = f"{shown}: {_alarm_text(rules[0])}{_since(rules[0])}"
            else:
                text = f"{shown}: quality {_percent(own[0].value)}{_since(own[0])}"
            yield Cause(rank, text, shared=f"table/{dataset}/{table}", dataset=dataset, table=table)

    def _drift_causes(self, alarms: Sequence[Alarm]) -> Iterable[Cause]:
        columns = sorted(
            (a for a in alarms if a.check in _FEATURE_DRIFT),
            key=lambda a: -((a.value or 0.0) / max(a.threshold or 0.0, 1e-9)),
        )
        share = next((a for a in alarms if a.check == "drift_share"), None)
        if not columns and share is None:
            return
        judged = sum(1 for row in self.metrics if row["check"] in _FEATURE_DRIFT and row["status"] != "not_evaluated")
        beyond = [a for a in self.alarms if a.check in _FEATURE_DRIFT] or columns
        worst = columns[0] if columns else self._worst_column()
        told = f", worst {named(worst.column)} ({_statistic(worst)})" if worst is not None else ""
        since = share.since if share is not None else min(a.since for a in columns)
        lasting = f" since {_short(since, alarms[0].about_date)}" if since < alarms[0].about_date else ""
        yield Cause(
            1 if share is not None else _MOVED,
            f"drift{lasting}: {len(beyond)} of {judged} features beyond their limit{told}",
            size=sum(self._importance(a.column) for a in beyond),
            drift=True,
        )

    def _prediction_causes(self, alarms: Sequence[Alarm]) -> Iterable[Cause]:
        """One cause for all output columns together."""
        if not alarms:
            return
        worst = max(alarms, key=lambda a: (a.value or 0.0) / max(a.threshold or 0.0, 1e-9))
        since = min(a.since for a in alarms)
        lasting = f" since {_short(since, worst.about_date)}" if since < worst.about_date else ""
        rest = f" and {len(alarms) - 1} more" if len(alarms) > 1 else ""
        method = self.entry.retrain.drift.method.upper()
        limit = f", limit {figures(worst.threshold)}" if worst.threshold is not None else ""
        yield Cause(
            _MOVED + 1,
            f"predictions moved{lasting}: {worst.column}{rest} ({method} {figures(worst.value or 0.0)}{limit})",
            drift=True,
        )

    def _worst_column(self) -> Alarm | None:
        own = [a for a in self.alarms if a.check in _FEATURE_DRIFT]
        return max(own, key=lambda a: (a.value or 0.0) / max(a.threshold or 0.0, 1e-9)) if own else None

    # -- cells

    def _drift_text(self) -> str:
        judged = [row for row in self.metrics if row["check"] in _FEATURE_DRIFT and row["status"] != "not_evaluated"]
        unjudged = sum(1 for row in self.metrics if row["check"] in _FEATURE_DRIFT and row["status"] == "not_evaluated")
        if not judged:
            return "not evaluated"
        beyond = sum(1 for row in judged if row["status"] in ("warning", "failing"))
        text = f"{beyond} of {len(judged)}"
        moved = sum(
            1 for row in self.metrics if row["check"] == "prediction_drift" and row["status"] in ("warning", "failing")
        )
        return text + (", predictions too" if moved else "") + (f"; {unjudged} not evaluated" if unjudged else "")

    def _performance_text(self) -> tuple[str, ...]:
        """Errors of the last mature nights of the version that scored, beside what its gate measured."""
        if self.scored is None:
            return ("not evaluated",)
        promised = self.read.promises.get(self.entry.name, {}).get(self.scored.version or 0, {})
        parts = []
        gates = [output.gate for output in self.entry.outputs.values()]
        for name, output in self.entry.outputs.items():
            known = self.read.errors.get((self.entry.name, name), ())
            pool = pooled(known, output.metric)
            unit = output.metric_unit(label_unit(self.lake, self.entry))
            parts.append(
                _error_text(
                    name if gates.count(output.gate) > 1 else "",
                    output.metric.title,
                    pool,
                    unit,
                    promised.get(name),
                    self.scored.version,
                )
            )
        return tuple(parts)


def _error_text(
    name: str, metric: str, pool: Pooled | None, unit: str, promised: float | None, version: int | None
) -> str:
    label = f"{name}: " if name else ""
    if pool is None:
        return f"{label}no night of version {version} is judged yet"
    interval = (
        f" ({per_hundred(pool.lower)}–{per_hundred(pool.upper)})"
        if pool.lower is not None and pool.upper is not None
        else ""
    )
    promise = "nothing promised" if promised is None else f"promised {per_hundred(promised)}"
    return f"{label}{metric} {figures(pool.error)}{spaced(unit)}, {_percent(pool.ratio)}{interval}, {promise}"


# ---- words ----------------------------------------------------------------------------------------------------------


def _failure_text(run: Run) -> str:
    said = (run.error or "").strip().splitlines()
    where = f" in {run.failed_task}" if run.failed_task else ""
    why = f": {said[0]}" if said and said[0] else where
    return f"{_RUN_WORDS[run.kind]} of {run.partition_key} failed{why}"


def _percent(share: float | None) -> str:
    return "an unknown share" if share is None else percent(share)


def _rank(alarm: Alarm) -> int:
    """How grave an alarm of the model itself is as a cause."""
    if alarm.severity == "critical":
        return 1
    return 4 if alarm.check == "volume" else 8


def _short(day: date, beside: date) -> str:
    """Without the year where it is clear."""
    return day.strftime("%m-%d") if day.year == beside.year else day.isoformat()


def _since(alarm: Alarm) -> str:
    return f", since {_short(alarm.since, alarm.about_date)}" if alarm.nights > 1 else ""


def alarms_text(alarms: Collection[Alarm]) -> str:
    """How many alarms nobody has answered, and how many are acknowledged or silenced; each counts once."""
    silenced = sum(1 for a in alarms if a.silenced_until is not None)
    acknowledged = sum(1 for a in alarms if a.silenced_until is None and a.acknowledged is not None)
    tally = ((len(alarms) - silenced - acknowledged, "open"), (acknowledged, "acknowledged"), (silenced, "silenced"))
    return ", ".join(f"{count} {state}" for count, state in tally if count) or "none"


def _statistic(alarm: Alarm) -> str:
    name = alarm.check.removeprefix("drift_").upper()
    value = "?" if alarm.value is None else figures(alarm.value)
    return f"{name} {value}" + (f", limit {figures(alarm.threshold)}" if alarm.threshold is not None else "")


def _alarm_text(alarm: Alarm) -> str:
    about = f" of {named(alarm.column)}" if alarm.column else ""
    if alarm.check == ERROR_RATIO:
        return (
            f"errors grew: {named(alarm.column)}, {alarm.reason}"
            if alarm.reason
            else f"errors of {named(alarm.column)} grew"
        )
    if alarm.reason:
        return f"{alarm.check.replace('_', ' ')}{about}: {alarm.reason}"
    value = f" is {figures(alarm.value)}" if alarm.value is not None else ""
    return f"{alarm.check.replace('_', ' ')}{about}{value}" + (
        f", limit {figures(alarm.threshold)}" if alarm.threshold is not None else ""
    )


# ---- the page ----------------------------------------------------------------------------------------------------


def standings(lake: Lake, models: Sequence[str], now: datetime, *, night: date | None = None) -> list[Standing]:
    """Every model's standing, worst first, then by the gravity of its cause, then as in the catalog.

    Args:
        night: the data date that is judged, by its own runs and by what was measured up to it; None: the one that is
            expected of each model.
    """
    if not models:
        return []
    read = _read(lake, models, now, night)
    every = [_Judge(lake, lake.model(name), read).standing() for name in models]
    position = {name: number for number, name in enumerate(models)}
    return sorted(
        every,
        key=lambda s: (
            STATUSES.index(s.status),
            *((s.causes[0].rank, -s.causes[0].size) if s.causes else (99, 0.0)),
            position[s.entry.name],
        ),
    )


@dataclass(frozen=True)
class Headline:
    """The night in one sentence.

    Attributes:
        good: whether every model is healthy.
        cause: the worst cause; about: models that have it. Empty in a good night.
    """

    text: str
    good: bool
    cause: str = ""
    about: str = ""


def headline(models: Sequence[Standing]) -> Headline:
    """All is well; or how many are not, and the worst cause."""
    if not models:
        return Headline("There is no model you may see", False)
    if all(s.status == "healthy" for s in models):
        return Headline("The model is healthy" if len(models) == 1 else f"All {len(models)} models are healthy", True)
    tally = [(status, sum(s.status == status for s in models)) for status in STATUSES if status != "healthy"]
    (status, count), *others = [(status, count) for status, count in tally if count]
    many = f"{count} of {len(models)} models {status}" + "".join(f", {n} {other}" for other, n in others)
    text = f"The model is {status}" if len(models) == 1 else many
    worst = next(s for s in models if s.status != "healthy")
    cause = worst.causes[0] if worst.causes else Cause(99, worst.status)
    alike = [s for s in models if any(_same(c, cause) for c in s.causes)]
    more = f" and {counted(len(alike) - 1, 'more model')}" if len(alike) > 1 else ""
    return Headline(text, False, cause.text[0].upper() + cause.text[1:], f"{worst.entry.title}{more}")


def _same(one: Cause, other: Cause) -> bool:
    return bool(one.shared and one.shared == other.shared) or one.text == other.text

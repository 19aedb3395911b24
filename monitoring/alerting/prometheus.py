"""The chain's numbers for Prometheus, read from the indexed SQL projections when somebody scrapes: nothing is counted
in memory.

Each query asks for the newest night of a known table or subject, or for the runs of the last week: none reads a table
whole. Labels take their values from the catalog (models, data sets, tables, outputs) and from closed lists, never from
data. A number that is not there (nothing scored yet, a check that was not evaluated) has no sample: zero would say that
all is well.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from config.calendar import cutoff
from config.settings import Settings
from features.validate import SCORE
from lake.assignment import champion_in
from lake.lake import Lake
from lake.lineage import as_utc
from lake.metric_queries import Row, read_newest_nights
from lake.projection import has_table
from lake.publication_queries import newest_publications
from lake.storage import VERSION_COMPLETE, artifacts, version_key
from lake.tables import quarantine_table, valid_table
from monitoring.alerting.alarms import Alarm, open_alarms
from monitoring.alerting.deliveries import running_deliveries
from monitoring.alerting.rules import ModelNight
from monitoring.alerting.runs import KINDS, runs_table
from monitoring.alerting.standing import Standing, standings
from monitoring.alerting.status import STATUSES
from monitoring.performance import ERROR_RATIO

RUNS_WINDOW = timedelta(days=7)
RUN_STATES = ("running", "success", "failed")
SEVERITIES = ("critical", "warning")
ATTENTION = ("open", "acknowledged", "silenced")
_DRIFT_SHARE = "drift_share"


def scrape(lake: Lake, accept: str | None = None, *, now: datetime | None = None) -> tuple[bytes, str]:
    """All metrics as text, and its content type, in the format that the `Accept` header asks for.

    Args:
        now: aware; None: now. What lateness of live data sets and the window of runs are measured against.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ChainCollector(lake, now=now))
    encode, content_type = choose_encoder(accept or "")
    return encode(registry), content_type


class ChainCollector(Collector):
    """Asks the projections' database on each scrape."""

    def __init__(self, lake: Lake, *, now: datetime | None = None) -> None:
        self._lake = lake
        self._now = now

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering asks no database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The metrics, as of now."""
        lake, now = self._lake, self._now or datetime.now(UTC)
        known = standings(lake, [model.name for model in lake.catalog.models], now)
        yield from _standing(known)
        nights = {standing.entry.name: standing.night for standing in known}
        yield from _scored(lake, nights)
        yield from _data(lake)
        yield from _judged(lake)
        yield from _rollouts(lake)
        yield from _runs(lake, now)
        subjects = [*(m.name for m in lake.catalog.models), *(d.name for d in lake.catalog.datasets)]
        yield _alarms(subjects, open_alarms(lake, subjects, now=now))


# ---- models ----------------------------------------------------------------------------------------------------


def _standing(known: Sequence[Standing]) -> Iterator[Metric]:
    """What the page Tonight says, in the same words: see there for what each of them means."""
    status = GaugeMetricFamily(
        "nightfleet_model_status",
        "1 for the status that the model has on the page Tonight, 0 for the others.",
        labels=["model", "status"],
    )
    approvals = GaugeMetricFamily(
        "nightfleet_model_approvals_waiting",
        "Promotions of the model that wait for a person's answer.",
        labels=["model"],
    )
    requests = GaugeMetricFamily(
        "nightfleet_model_retraining_requests_open",
        "Retraining requests that have led to nothing yet.",
        labels=["model"],
    )
    for standing in sorted(known, key=lambda one: one.entry.name):
        name = standing.entry.name
        for word in STATUSES:
            status.add_metric([name, word], float(word == standing.status))
        approvals.add_metric([name], standing.approvals)
        requests.add_metric([name], standing.requests)
    yield from (status, approvals, requests)


def _scored(lake: Lake, nights: Mapping[str, ModelNight]) -> Iterator[Metric]:
    newest = newest_publications(lake, [f"{model.name}/predictions" for model in lake.catalog.models])
    night = GaugeMetricFamily(
        "nightfleet_model_scored_data_date_timestamp_seconds",
        "Cutoff of the newest data date that the model has scored: the end of that day in the data set's time zone.",
        labels=["model"],
    )
    at = GaugeMetricFamily(
        "nightfleet_model_scored_timestamp_seconds",
        "When the newest scored data date was published last.",
        labels=["model"],
    )
    rows = GaugeMetricFamily(
        "nightfleet_model_scored_rows", "Predictions of the newest scored data date.", labels=["model"]
    )
    late = GaugeMetricFamily(
        "nightfleet_model_lateness_seconds",
        "How long after the model's deadline its newest night was scored, or, where it is not, how long it is overdue. "
        "Live data sets only: "
        "a replay has no deadline.",
        labels=["model"],
    )
    version = GaugeMetricFamily(
        "nightfleet_model_scored_version",
        "Version that scored the newest data date as champion, by the model's own count.",
        labels=["model"],
    )
    training = GaugeMetricFamily(
        "nightfleet_model_training_seconds", "How long the training of that version took.", labels=["model"]
    )
    for model in lake.catalog.models:
        dataset = lake.dataset(model.dataset)
        published = newest.get(f"{model.name}/predictions")
        judged = nights[model.name].lateness
        if judged is not None and judged.due_at is not None:
            late.add_metric([model.name], judged.late_by.total_seconds() if judged.late_by else 0.0)
        if published is None:
            continue
        night.add_metric([model.name], cutoff(published.data_date, dataset.time_zone).timestamp())
        at.add_metric([model.name], published.newest_at.timestamp())
        rows.add_metric([model.name], published.rows)
        champion = champion_in(published.scored_by)
        if champion is not None:
            version.add_metric([model.name], champion.version)
            manifest = version_key(model.name, champion.artifact_digest, VERSION_COMPLETE)
            took = _training_seconds(lake.settings, manifest)
            if took is not None:
                training.add_metric([model.name], took)
    yield from (night, at, rows, late, version, training)


@lru_cache(maxsize=256)
def _training_seconds(settings: Settings, manifest_key: str) -> float | None:
    """From a version's manifest, whose folder is named by its content: read once."""
    try:
        seconds = json.loads(artifacts(settings).read(manifest_key)).get("seconds")
    except (OSError, ValueError):
        return None  # the files were archived: a number less, not a scrape less
    return float(seconds) if isinstance(seconds, int | float) else None


def _judged(lake: Lake) -> Iterator[Metric]:
    drift = GaugeMetricFamily(
        "nightfleet_model_drift_ratio",
        "Share of the model's columns beyond their drift limit in the newest monitored night, 0 to 1.",
        labels=["model"],
    )
    error = GaugeMetricFamily(
        "nightfleet_model_error_ratio",
        "Error of an output over that of the trivial baseline, on the newest night whose labels have matured; below 1 "
        "is better than the baseline.",
        labels=["model", "output"],
    )
    promised = GaugeMetricFamily(
        "nightfleet_model_error_ratio_limit",
        "Error ratio above which the model is worse than its champion's promise.",
        labels=["model", "output"],
    )
    names = {model.name: model for model in lake.catalog.models}
    for (subject, check, column), row in _newest_metrics(lake, names, (_DRIFT_SHARE, ERROR_RATIO)).items():
        if row["value"] is None:
            continue
        if check == _DRIFT_SHARE:
            drift.add_metric([subject], row["value"])
        elif column in names[subject].outputs:
            error.add_metric([subject, column], row["value"])
            if row["threshold"] is not None:
                promised.add_metric([subject, column], row["threshold"])
    yield from (drift, error, promised)


def _rollouts(lake: Lake) -> Iterator[Metric]:
    step = GaugeMetricFamily(
        "nightfleet_model_rollout_step",
        "Step that the model's running rollout is in, counted from 1; no sample where none runs.",
        labels=["model"],
    )
    share = GaugeMetricFamily(
        "nightfleet_model_rollout_served_ratio",
        "Share that the challenger serves in that step, 0 to 1.",
        labels=["model"],
    )
    harm = GaugeMetricFamily(
        "nightfleet_model_rollout_harm",
        "Error of the challenger less the champion's on the same rows, so far, in the unit of the loss: its mean, its "
        "bounds that hold on every night at once, and the tolerance that they are held against.",
        labels=["model", "output", "bound"],
    )
    for name, delivery in running_deliveries(lake, [model.name for model in lake.catalog.models]).items():
        step.add_metric([name], delivery.rollout.step + 1)
        share.add_metric([name], delivery.served_share)
        for row in delivery.harms:
            fields = {"mean": "value", "lower": "lower", "upper": "upper", "tolerance": "threshold"}
            for bound, field in fields.items():
                if row["column"] in delivery.entry.outputs and row[field] is not None:
                    harm.add_metric([name, row["column"], bound], row[field])
    yield from (step, share, harm)


# ---- data sets -------------------------------------------------------------------------------------------------


def _data(lake: Lake) -> Iterator[Metric]:
    night = GaugeMetricFamily(
        "nightfleet_table_data_date_timestamp_seconds",
        "Cutoff of the newest data date whose rows passed validation.",
        labels=["dataset", "table"],
    )
    rows = GaugeMetricFamily(
        "nightfleet_table_valid_rows",
        "Rows of the newest data date that passed validation.",
        labels=["dataset", "table"],
    )
    bad = GaugeMetricFamily(
        "nightfleet_table_quarantined_rows",
        "Rows of the newest data date that were set aside.",
        labels=["dataset", "table"],
    )
    quality = GaugeMetricFamily(
        "nightfleet_table_quality_ratio", "Quality score of the newest data date, 0 to 1.", labels=["dataset", "table"]
    )
    named = {
        (d.name, t): (valid_table(lake.settings, d, t).name, quarantine_table(lake.settings, d, t).name)
        for d in lake.catalog.datasets
        for t in d.tables
    }
    newest = newest_publications(lake, [name for pair in named.values() for name in pair])
    for (dataset, table), (valid, quarantine) in named.items():
        if valid in newest:
            rows.add_metric([dataset, table], newest[valid].rows - newest[valid].closed)
            night.add_metric(
                [dataset, table], cutoff(newest[valid].data_date, lake.dataset(dataset).time_zone).timestamp()
            )
        if quarantine in newest:
            bad.add_metric([dataset, table], newest[quarantine].rows)
    for (subject, _, column), row in _newest_metrics(lake, [d.name for d in lake.catalog.datasets], (SCORE,)).items():
        if row["value"] is not None and (subject, column) in named:
            quality.add_metric([subject, column], row["value"])
    yield from (night, rows, bad, quality)


# ---- runs and alarms -------------------------------------------------------------------------------------------


def _runs(lake: Lake, now: datetime) -> Iterator[Metric]:
    count = GaugeMetricFamily(
        "nightfleet_runs",
        f"DAG runs that started in the last {RUNS_WINDOW.days} days, by how they stand.",
        labels=["subject", "kind", "state"],
    )
    requests = GaugeMetricFamily(
        "nightfleet_retraining_requests",
        f"Retraining requests that started a training in the last {RUNS_WINDOW.days} days, by how its run stands.",
        labels=["model", "state"],
    )
    seconds = GaugeMetricFamily(
        "nightfleet_run_duration_seconds", "How long the newest ended DAG run took.", labels=["subject", "kind"]
    )
    ended = GaugeMetricFamily(
        "nightfleet_run_ended_timestamp_seconds", "When the newest ended DAG run ended.", labels=["subject", "kind"]
    )
    failed = GaugeMetricFamily(
        "nightfleet_run_failed", "Whether the newest ended DAG run failed: 1, else 0.", labels=["subject", "kind"]
    )
    subjects = {*(m.name for m in lake.catalog.models), *(d.name for d in lake.catalog.datasets), ""}
    if has_table(lake, runs_table.name):
        c = runs_table.c
        # Within the window only: bounded by the index on the start, however many years are on record.
        query = (
            sa.select(c.subject, c.kind, c.state, c.started_at, c.ended_at)
            .where(c.started_at >= now - RUNS_WINDOW)
            .order_by(c.started_at)
        )
        counted: Counter[tuple[str, str, str]] = Counter()
        newest: dict[tuple[str, str], Any] = {}
        with lake.engine.connect() as connection:
            runs = connection.execute(query).all()
        for row in runs:
            if row.subject not in subjects or row.kind not in KINDS:
                continue  # of a model that left the catalog
            counted[row.subject, row.kind, row.state if row.state in RUN_STATES else "running"] += 1
            if row.ended_at is not None:
                newest[row.subject, row.kind] = row
        for (subject, kind), row in newest.items():
            seconds.add_metric([subject, kind], (as_utc(row.ended_at) - as_utc(row.started_at)).total_seconds())
            ended.add_metric([subject, kind], as_utc(row.ended_at).timestamp())
            failed.add_metric([subject, kind], float(row.state == "failed"))
        for subject, kind in sorted({(subject, kind) for subject, kind, _ in counted}):
            for state in RUN_STATES:
                count.add_metric([subject, kind, state], counted[subject, kind, state])
        for model in lake.catalog.models:
            for state in RUN_STATES:
                requests.add_metric([model.name, state], counted[model.name, "train", state])
    yield from (count, requests, seconds, ended, failed)


def _alarms(subjects: Sequence[str], alarms: Sequence[Alarm]) -> Metric:
    gauge = GaugeMetricFamily(
        "nightfleet_alarms",
        "Alarms of the newest night, by severity, and by whether somebody has acknowledged or silenced them.",
        labels=["subject", "severity", "attention"],
    )
    counted: Counter[tuple[str, str, str]] = Counter()
    for alarm in alarms:
        counted[alarm.subject, alarm.severity, _attention(alarm)] += 1
    for subject in subjects:
        for severity in SEVERITIES:
            for attention in ATTENTION:
                gauge.add_metric([subject, severity, attention], counted[subject, severity, attention])
    return gauge


def _attention(alarm: Alarm) -> str:
    if alarm.silenced_until:
        return "silenced"
    return "acknowledged" if alarm.acknowledged else "open"


def _newest_metrics(lake: Lake, subjects: Collection[str], checks: Sequence[str]) -> dict[tuple[str, str, str], Row]:
    """By subject, check and column: the row of the newest night in its group; of several nights the last."""
    rows = read_newest_nights(lake, subjects, checks=checks)
    return {(row["subject"], row["check"], row["column"]): row for row in rows}

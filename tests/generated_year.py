"""A year of a fleet, made up: 16 models in four data sets, 365 nights, 30 features, for pages and their load times.

`python -m tests.generated_year HOME [--serve PORT] [--role operator]` fills HOME and, with a port, shows the pages from
it without Airflow. What pages read from SQL is inserted in bulk; the small tables that they read from Delta are
published as the stages do.

Planted, so that there is something to see, by model's number (0 to 15; four to a data set):
    0  a view's features are null in 31 % of rows since three nights      7  a promotion was rolled back
    2  a view drifts, more every night, since 40 nights; then predictions 9  the newest night was not scored
    5  errors grow since 45 nights; the gate refused the last challenger  12  its newest night, of a live data set, came
       late
    3  a promotion waits for a person's approval (the gate has passed it)
    1  its newest version took over by a rolling rollout      6  a canary goes on (tests/generated_rollouts.py)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import sqlalchemy as sa

from config.calendar import ONE_DAY, Interval, cutoff
from config.catalog.checks import check_name
from config.catalog.data import Dataset
from config.catalog.load import load_catalog
from config.catalog.model import ModelEntry
from config.catalog.output import OutputKind
from config.settings import Settings
from features.expectations import BAD_SHARE
from features.validate import SCORE
from lake.artifact import combined_digest
from lake.assignment import CHAMPION, Assignment, recorded
from lake.lake import Lake
from lake.lineage import Lineage, _commit_digest, _heads_table, _synced_table, publications_table
from lake.metrics import INDEXES, METRIC_SCHEMA, SQL_TABLE, metrics_table
from lake.projection import _metadata as projection_metadata
from lake.projection import _prepare, projections_table, sql_columns
from lake.publish import publish
from lake.signature import sign
from lake.tables import LakeTable, feature_table, quarantine_table, raw_table, valid_table
from monitoring.alerting.lifecycle import project_records
from monitoring.alerting.runs import _metadata as runs_metadata
from monitoring.alerting.runs import runs_table, waiting_table
from monitoring.drift import MEAN, REFERENCE_MEAN
from monitoring.performance import ERROR_RATIO, LABEL_SHARE
from serving.predictions import predictions_table
from serving.projection import sql_name
from tests.generated_rollouts import BLOCKS, Planted, assignments, metric_tuples, planted, write_ledger

Floats = npt.NDArray[np.float64]
NIGHTS = 365
LAST = date(2025, 12, 30)
NOW = datetime(2025, 12, 31, 10, tzinfo=UTC)  # what the pages take for the present
DATASETS = ("parcels", "stores", "turbines", "buses")
LIVE = "buses"  # the others are replays, which have no deadline
VIEWS = {
    "recent_daily": "What the {thing} did in the last seven days.",
    "place_daily": "What happened around it.",
    "weather_evening": "The weather at the cutoff.",
}
PER_VIEW = 10
MODELS_PER_DATASET = 4
# One value that a page must show as text, and one that is long.
SEGMENTS = (
    "north",
    "east",
    "south",
    "west",
    "<script>alert('north')</script>",
    'quoted "name" & more',
    "a depot with a rather long name that has to fold somewhere",
    "(null)",
)
SEGMENT_ROWS = (0.3, 0.2, 0.15, 0.1, 0.1, 0.08, 0.05, 0.02)
_THINGS = {"parcels": "parcel", "stores": "store", "turbines": "turbine", "buses": "bus"}
_ZONES = {"parcels": "Europe/Berlin", "stores": "America/New_York", "turbines": "UTC", "buses": "Europe/Berlin"}
_TARGETS = ("delay", "duration", "demand", "wear")
_CODE = "0123abcd+generated"


# ---- the catalog -----------------------------------------------------------------------------------------------


def _dataset_yaml(name: str, first: date, last: date) -> str:
    thing = _THINGS[name]
    views = []
    for number, (view, described) in enumerate(VIEWS.items()):
        columns = "\n".join(
            f"      {_feature(number, i)}: {{type: float64, unit: {_UNITS[(number + i) % len(_UNITS)]}, description: "
            f"number {i} of the view}}"
            for i in range(PER_VIEW)
        )
        views.append(
            f"  {view}:\n    description: {described.format(thing=thing)}\n    entities: [{thing}]\n"
            "    reads: [outcomes]\n"
            f"    lookback: 14 days\n    ttl: 3 days\n    columns:\n{columns}"
        )
    bounds = f"from: {first - timedelta(days=200)}, to: {last + timedelta(days=30)}, first_night: {first}"
    when = f"start: {first - timedelta(days=200)}" if name == LIVE else f"replay: {{{bounds}}}"
    return f"""
dataset: {name}
title: Generated {name}
owner: fleet-operations
owner_url: mailto:fleet-operations@example.com
licence: CC0-1.0
time_zone: {_ZONES[name]}
{when}
tables:
  plans:
    description: What is planned for the next day.
    source: {{kind: file, uri: source/plans.csv}}
    key: [event_date, {thing}]
    known_at: {{sql: "timezone('{_ZONES[name]}', CAST(event_date AS TIMESTAMP))"}}
    columns:
      event_date: {{type: date, nullable: false, description: the day}}
      {thing}: {{type: string, nullable: false, description: which {thing}}}
      depot: {{type: string, nullable: false, description: where it belongs}}
      due_utc: {{type: timestamp, nullable: false, description: when it is due}}
      weight_kg: {{type: float64, unit: kg, description: its weight}}
    checks:
      - {{rule: unique, columns: [event_date, {thing}]}}
      - {{rule: between, column: weight_kg, min: 0, max: 500}}
      - {{rule: row_count, weeks: 4}}
  outcomes:
    description: What came of it.
    source: {{kind: file, uri: source/outcomes.csv}}
    key: [event_date, {thing}]
    known_at: {{column: end_utc}}
    columns:
      event_date: {{type: date, nullable: false, description: the day}}
      {thing}: {{type: string, nullable: false, description: which {thing}}}
      end_utc: {{type: timestamp, nullable: false, description: when it ended}}
      minutes: {{type: float64, unit: minutes, description: how long it took}}
    checks:
      - {{rule: unique, columns: [event_date, {thing}]}}
      - {{rule: between, column: minutes, min: 0, max: 6000}}
      - {{rule: freshness, column: end_utc, max_age: 1 day}}
features:
{chr(10).join(views)}
"""


_UNITS = ("minutes", "km", "'°C'", "'%'", "hPa", "rides")
_WORDS = ("mean", "late_share", "count", "longest", "spread", "rate", "load", "wind", "pressure", "visibility")


def _feature(view: int, number: int) -> str:
    return f"{_WORDS[number]}_{('7d', 'near', 'now')[view]}"


def _model_yaml(name: str, dataset: str, number: int) -> str:
    thing, target = _THINGS[dataset], _TARGETS[number % MODELS_PER_DATASET]
    regression = f"  {target}_minutes: {{kind: regression, objective: median, interval: 0.8, gate: mae}}"
    binary = f"  {target}_probability: {{kind: binary, above: 30, gate: brier}}"
    outputs = "\n".join([regression, binary] if number % 2 == 0 else [regression] if number % 4 == 1 else [binary])
    return f"""
model: {name}
title: {target.capitalize()} of tomorrow's {dataset}
owner: fleet-operations
owner_url: mailto:fleet-operations@example.com
deadline: "06:00"
dataset: {dataset}
spine: {{table: plans, entity: [event_date, {thing}], target_time: due_utc}}
label: {{table: outcomes, column: minutes, matures_after: 1 day}}
features: [{", ".join(VIEWS)}]
outputs:
{outputs}
trainer: {{family: {"keras" if number % 5 == 4 else "xgboost"}, seed: 7, device: cpu}}
split: {{train: 90 days, validation: 14 days, test: 14 days, embargo: 1 day}}
gate: {{better_by: 0.0, min_days: 7, segments: {{columns: [depot], min_rows: 20, worst: 1.2}}, baseline: median}}
approval: {"required" if number == 3 else "none"}
{BLOCKS.get(number, "")}
retrain: {{every: 42 days, drift: {{method: psi, limit_quantile: 0.99, share: 0.3}},
  performance: {{worse_by: 0.1, nights: 14}}, cooldown: 7 days}}
"""


def settings_of(home: Path) -> Settings:
    """Settings of a generated installation."""
    return Settings(home=home, catalogs=(home,), duckdb_memory_gb=1.0)


def write_catalog(home: Path, first: date, last: date) -> Settings:
    """The catalog's 20 files below `home`, with one SQL file a view below `home/sql`."""
    for kind in ("datasets", "models"):
        (home / kind).mkdir(parents=True, exist_ok=True)
    for place, dataset in enumerate(DATASETS):
        (home / "datasets" / f"{dataset}.yaml").write_text(_dataset_yaml(dataset, first, last), encoding="utf-8")
        (home / "sql" / dataset).mkdir(parents=True, exist_ok=True)
        for view in VIEWS:
            (home / "sql" / dataset / f"{view}.sql").write_text("SELECT data_date FROM nights\n", encoding="utf-8")
        for i in range(MODELS_PER_DATASET):
            name = f"{_THINGS[dataset]}_{_TARGETS[i]}"
            (home / "models" / f"{name}.yaml").write_text(
                _model_yaml(name, dataset, place * MODELS_PER_DATASET + i), encoding="utf-8"
            )
    return settings_of(home)


# ---- what is planted ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """One promoted version: the position of the night it is in force from, and of the night it was trained as of."""

    number: int
    from_night: int
    as_of: int
    digest: str


@dataclass(frozen=True)
class Story:
    """What one model lives through; positions of nights count from 0."""

    entry: ModelEntry
    dataset: Dataset
    number: int
    nights: Sequence[date]
    versions: tuple[Version, ...]
    seed: int

    @property
    def random(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.number])

    @property
    def scored(self) -> int:
        """Nights that were scored, from the first."""
        return len(self.nights) - (1 if self.number == 9 else 0)

    @property
    def tenures(self) -> npt.NDArray[np.int64]:
        """Position in `versions` of the champion of every night."""
        return (
            np.searchsorted([v.from_night for v in self.versions], np.arange(len(self.nights)), side="right").astype(
                np.int64
            )
            - 1
        )

    @property
    def champions(self) -> list[int]:
        """Number of the champion of every night."""
        return [self.versions[int(place)].number for place in self.tenures]

    @property
    def rollout(self) -> Planted | None:
        """Its rollout, None for most."""
        groups = dict(zip(SEGMENTS, (round(1_000 * share) for share in SEGMENT_ROWS), strict=True))
        number = self.versions[-1].number + 1
        return planted(self, groups, combined_digest(_listed_files(self.entry.name, number)))

    def reference(self, night: int) -> str:
        """How the metrics table names what a night is compared with."""
        version = self.versions[int(self.tenures[night])]
        end = self.day(version.as_of)
        return f"version {version.number}, trained on {end - timedelta(days=120)} to {end - timedelta(days=30)}"

    def day(self, position: int) -> date:
        return self.nights[0] + timedelta(days=position)


def _stories(lake: Lake, nights: Sequence[date], seed: int) -> list[Story]:
    order = [f"{_THINGS[dataset]}_{target}" for dataset in DATASETS for target in _TARGETS]
    found = []
    for number, name in enumerate(order):
        entry = lake.model(name)
        random = np.random.default_rng([seed, number, 1])
        starts, at = [0], 0
        while (at := at + int(random.integers(38, 70))) < len(nights) - 10:
            if not (number == 5 and at > len(nights) - 60):
                starts.append(at)
        versions = tuple(
            Version(i + 1, start, start - 1, combined_digest(_listed_files(name, i + 1)))
            for i, start in enumerate(starts)
        )
        found.append(Story(entry, lake.dataset(entry.dataset), number, nights, versions, seed))
    return found


def _listed_files(model: str, version: int) -> dict[str, str]:
    return {"model/contract.json": _digest(model, version)}


def _digest(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


# ---- metrics -----------------------------------------------------------------------------------------------------


class _Rows:
    """Rows of the SQL table `metrics`, gathered column by column and night by night."""

    def __init__(
        self, source: str, subject: str, nights: Sequence[date], versions: Sequence[int] | None = None
    ) -> None:
        """`versions`: the champion's of each night; None: about no version."""
        self._head = (source, 1, subject)
        self._versions = versions
        self._days = [day.isoformat() for day in nights]
        self.rows: list[tuple[Any, ...]] = []

    def add(
        self,
        check: str,
        values: Floats,
        *,
        column: str = "",
        segment: str = "",
        lower: Floats | None = None,
        upper: Floats | None = None,
        threshold: float | Floats | None = None,
        status: Sequence[str] | str = "ok",
        reason: Sequence[str | None] | None = None,
        n: npt.NDArray[np.int64] | int | None = None,
        reference: Sequence[str] | None = None,
        judged_after: int = 0,
        only: Sequence[int] | None = None,
    ) -> None:
        """One row a night; NaN is null. `judged_after`: nights until the labels were mature."""
        head, days = self._head, self._days
        for i in range(len(values)) if only is None else only:
            if i + judged_after >= len(days):
                continue
            self.rows.append(
                (
                    *head,
                    days[i],
                    check,
                    column,
                    segment,
                    _number(values[i]),
                    None if lower is None else _number(lower[i]),
                    None if upper is None else _number(upper[i]),
                    _number(threshold[i]) if isinstance(threshold, np.ndarray) else threshold,
                    status if isinstance(status, str) else status[i],
                    None if reason is None else reason[i],
                    int(n[i]) if isinstance(n, np.ndarray) else n,
                    None if reference is None else reference[i],
                    None if self._versions is None else CHAMPION,
                    None if self._versions is None else self._versions[i],
                    days[i + judged_after],
                )
            )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)


def _volumes(story: Story) -> npt.NDArray[np.int64]:
    position = np.arange(len(story.nights))
    week = 1 + 0.15 * np.sin(2 * np.pi * position / 7) + 0.1 * np.sin(2 * np.pi * position / 365)
    base = 600 + 90 * story.number
    return np.maximum(np.round(base * week * story.random.normal(1, 0.04, len(position))), 1).astype(np.int64)


def _drift_rows(story: Story) -> _Rows:
    entry, count = story.entry, story.scored
    rows = _Rows(f"{entry.name}/metrics/drift", entry.name, story.nights, story.champions)
    random = np.random.default_rng([story.seed, story.number, 2])
    position = np.arange(count)
    volume = _volumes(story)[:count]
    reference = [story.reference(i) for i in range(count)]
    since_promotion = position - np.asarray([story.versions[k].from_night for k in story.tenures[:count]])
    names = [f"{view}__{_feature(v, i)}" for v, view in enumerate(VIEWS) for i in range(PER_VIEW)]
    beyond = np.zeros(count, dtype=np.int64)
    worst: list[list[str]] = [[] for _ in range(count)]
    week = np.sin(2 * np.pi * position / 7)
    for number, name in enumerate(names):
        limit = 0.04 + 0.02 * (number % 5)
        value = limit * np.clip(0.4 + 0.12 * week + 0.002 * since_promotion + random.normal(0, 0.12, count), 0.02, None)
        value[random.integers(0, count, 3)] = limit * random.uniform(1.05, 1.6, 3)
        planted = np.zeros(count)
        if story.number == 2 and PER_VIEW <= number < 2 * PER_VIEW + 3:
            planted = np.clip((position - (count - 40)) / 40, 0, 1)
            value = value + limit * 6 * planted
        statuses = np.where(value > limit, "warning", "ok").tolist()
        for i in np.flatnonzero(value > limit):
            beyond[i] += 1
            worst[i].append(name)
        rows.add("drift_psi", value, column=name, threshold=limit, status=statuses, n=volume, reference=reference)
        center, spread = 10.0 * (number % 7) + 3, 1.0 + number % 4
        mean = center + spread * (0.3 * week + random.normal(0, 0.15, count) + 4 * planted)
        rows.add(MEAN, mean, column=name, n=volume, reference=reference)
        rows.add(REFERENCE_MEAN, np.full(count, center), column=name, n=54_000, reference=reference)
        nulls = np.clip(random.normal(0.01, 0.004, count), 0, None)
        nulls[random.integers(0, count, 2)] = random.uniform(0.06, 0.2, 2)
        if story.number == 0 and 2 * PER_VIEW <= number < 2 * PER_VIEW + 3:
            nulls[-3:] = 0.31 + 0.001 * number
        rows.add(
            "null_rate",
            nulls,
            column=name,
            threshold=0.05,
            status=np.where(nulls > 0.05, "warning", "ok").tolist(),
            n=volume,
            reference=reference,
        )
    share = beyond / len(names)
    allowed = entry.retrain.drift.share
    said = [
        f"{beyond[i]} of {len(names)} columns lie beyond their limit"
        + (f": {', '.join(worst[i][:3])}" if worst[i] else "")
        for i in range(count)
    ]
    rows.add(
        "drift_share",
        share,
        threshold=allowed,
        status=np.where(share >= allowed, "failing", "ok").tolist(),
        reason=said,
        n=len(names),
        reference=reference,
    )
    for name in entry.output_columns:
        value = 0.08 * np.clip(0.4 + random.normal(0, 0.12, count), 0.02, None)
        if story.number == 2:
            value[-20:] += 0.2
        rows.add(
            "prediction_drift",
            value,
            column=name,
            threshold=0.08,
            status=np.where(value > 0.08, "warning", "ok").tolist(),
            n=volume,
            reference=reference,
        )
        usual = 0.3 if name.endswith("probability") else 20.0
        rows.add(MEAN, usual * random.normal(1, 0.05, count), column=name, n=volume, reference=reference)
        rows.add(REFERENCE_MEAN, np.full(count, usual), column=name, n=8_400, reference=reference)
    low, high = np.full(count, 0.6 * volume.mean()), np.full(count, 1.5 * volume.mean())
    rows.add("volume", volume.astype(np.float64), lower=low, upper=high, n=volume, reference=reference)
    return rows


def _performance_rows(story: Story) -> _Rows:
    entry, count = story.entry, story.scored - 2
    rows = _Rows(f"{entry.name}/metrics/performance", entry.name, story.nights, story.champions)
    random = np.random.default_rng([story.seed, story.number, 3])
    position = np.arange(count)
    volume = _volumes(story)[:count]
    labelled = np.round(volume * random.uniform(0.94, 0.99, count)).astype(np.int64)
    reference = [story.reference(i) for i in range(count)]
    shared: dict[str, Any] = {"reference": reference, "judged_after": 2}
    share = labelled / volume
    missing = [f"the label of {volume[i] - labelled[i]:,} of {volume[i]:,} rows never came" for i in range(count)]
    rows.add(LABEL_SHARE, share, threshold=0.5, reason=missing, n=volume, **shared)
    worse = np.clip((position - (count - 45)) / 25, 0, 1) * 0.5 if story.number == 5 else np.zeros(count)
    season = 1 + 0.1 * np.sin(2 * np.pi * position / 7) + 0.15 * np.sin(2 * np.pi * position / 365)
    for name, output in entry.outputs.items():
        _output_rows(rows, name, output, random, season, worse, labelled, shared)
    return rows


def _output_rows(
    rows: _Rows,
    name: str,
    output: OutputKind,
    random: np.random.Generator,
    season: Floats,
    worse: Floats,
    labelled: npt.NDArray[np.int64],
    shared: dict[str, Any],
) -> None:
    count = len(season)
    binary = output.task == "event"
    level = 0.15 if binary else 18.0
    noise = random.normal(1, 0.05, count)
    baseline = level * 1.2 * season * noise
    error = level * season * noise * random.normal(1, 0.03, count) * (1 + worse)
    half = error * 1.2 / np.sqrt(labelled)

    def measured(check: str, values: Floats, width: Floats | None = None, **more: Any) -> None:
        bounds: dict[str, Any] = {} if width is None else {"lower": values - width, "upper": values + width}
        rows.add(check, values, column=name, n=labelled, **bounds, **shared, **more)

    measured(output.gate, error, half)
    measured(f"{output.gate}_baseline", baseline)
    if binary:
        measured("log_loss", 3 * error, 3 * half)
        measured("bias", random.normal(0, 0.01, count), np.full(count, 0.01))
        measured("accuracy", np.clip(0.86 - 0.4 * worse + random.normal(0, 0.01, count), 0, 1), np.full(count, 0.02))
        measured("auc", np.clip(0.78 - 0.3 * worse + random.normal(0, 0.01, count), 0.5, 1))
    else:
        measured("rmse", 1.4 * error, 1.4 * half)
        measured("bias", random.normal(0, 1, count), np.full(count, 1.0))
        coverage = np.clip(0.8 - 0.3 * worse + random.normal(0, 0.02, count), 0, 1)
        low = coverage + 0.02 < 0.7
        reason = [
            f"the interval should hold 80% of outcomes, it held {coverage[i]:.0%}" if low[i] else None
            for i in range(count)
        ]
        measured(
            "interval_coverage",
            coverage,
            np.full(count, 0.02),
            threshold=0.8,
            status=np.where(low, "warning", "ok").tolist(),
            reason=reason,
        )
    ratio, bound = error / baseline, round(1 / 1.2 * 1.1 * 1.05, 6)
    said = [
        f"{output.gate} over the baseline's is {ratio[i]:.3f} in this night, it was {1 / 1.2:.3f} at the gate"
        if ratio[i] > bound
        else None
        for i in range(count)
    ]
    measured(ERROR_RATIO, ratio, threshold=bound, status=np.where(ratio > bound, "warning", "ok").tolist(), reason=said)
    for k, (value, part) in enumerate(zip(SEGMENTS, SEGMENT_ROWS, strict=True)):
        n = np.maximum(np.round(labelled * part), 1).astype(np.int64)
        own = error * (0.8 + 0.1 * k) * random.normal(1, 0.06, count)
        width = own * 1.2 / np.sqrt(n)
        rows.add(
            output.gate, own, column=name, segment=f"depot={value}", lower=own - width, upper=own + width, n=n, **shared
        )
        rows.add(
            f"{output.gate}_baseline", baseline * (0.8 + 0.1 * k), column=name, segment=f"depot={value}", n=n, **shared
        )


@dataclass(frozen=True)
class Bad:
    """Bad rows of a data set's tables, by table and night."""

    counts: Mapping[str, npt.NDArray[np.int64]]
    rows: Mapping[str, npt.NDArray[np.int64]]


def _bad_rows(dataset: Dataset, place: int, count: int, seed: int) -> Bad:
    random = np.random.default_rng([seed, place, 4])
    week = 1 + 0.15 * np.sin(2 * np.pi * np.arange(count) / 7)
    rows = {
        table: np.round((1200 + 300 * place) * week * random.normal(1, 0.03, count)).astype(np.int64)
        for table in dataset.tables
    }
    counts = {}
    for table in dataset.tables:
        bad = np.where(random.random(count) < 0.04, random.integers(1, 40, count), 0)
        bad[-1 - place] = 60 if table == "plans" else 0
        counts[table] = bad.astype(np.int64)
    return Bad(counts, rows)


def _quality_rows(dataset: Dataset, bad: Bad, nights: Sequence[date]) -> _Rows:
    rows = _Rows(f"{dataset.name}/metrics/quality", dataset.name, nights)
    for table, entry in dataset.tables.items():
        volume, broken = bad.rows[table], bad.counts[table]
        warn, stop = entry.quality.warn_share, entry.quality.stop_share
        share = broken / volume
        for number, rule in enumerate(entry.row_rules):
            values = share if number == 1 else np.zeros(len(share))
            statuses = np.where(values > stop, "failing", np.where(values > warn, "warning", "ok")).tolist()
            said = [f"{broken[i]} of {volume[i]} rows" if values[i] else None for i in range(len(share))]
            rows.add(
                check_name(rule),
                values,
                column=f"{table}.{getattr(rule, 'column', '')}".rstrip("."),
                threshold=warn,
                status=statuses,
                reason=said,
                n=volume,
            )
        rows.add(
            BAD_SHARE,
            share,
            column=table,
            threshold=warn,
            status=np.where(share > warn, "warning", "ok").tolist(),
            n=volume,
        )
        for judged in entry.table_rules:
            rows.add(check_name(judged), np.ones(len(share)), column=table, threshold=2.0, n=volume)
        score = 1 - share
        rows.add(
            SCORE,
            score,
            column=table,
            threshold=1 - warn,
            status=np.where(score >= 1 - warn, "ok", "warning").tolist(),
            n=volume,
        )
    return rows


# ---- publications ------------------------------------------------------------------------------------------------


def _committed(story_zone: str, day: date, hours: float) -> str:
    at = cutoff(day, story_zone) + timedelta(hours=hours)
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def _publication(
    table: str,
    day: date,
    version: int,
    count: int,
    zone: str,
    hours: float,
    run_id: str,
    details: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
) -> tuple[Any, ...]:
    digest = _digest(table, day, version)
    at = _committed(zone, day, hours)
    return (
        table,
        day.isoformat(),
        version,
        digest,
        count,
        run_id,
        _CODE,
        _digest(table.split("/")[0]),
        at,
        json.dumps(list(inputs)),
        json.dumps(details),
    )


def _input(table: str, day: date, version: int) -> dict[str, Any]:
    return {"table": table, "data_date": day.isoformat(), "digest": _digest(table, day, version), "version": version}


def _dataset_publications(
    lake: Lake, dataset: Dataset, place: int, bad: Bad, nights: Sequence[date], seed: int
) -> Iterator[tuple[LakeTable, list[tuple[Any, ...]]]]:
    random = np.random.default_rng([seed, place, 5])
    late, again = random.random(len(nights)) < 0.02, random.random(len(nights)) < 0.015
    hours = np.where(late, 7.5, 0.4) + random.uniform(0, 0.3, len(nights))
    if place == 3:
        hours[-1] = 8.2
    chains: list[tuple[LakeTable, float, Any]] = []
    for table in dataset.tables:
        chains.append((raw_table(lake.settings, dataset, table), 0.0, bad.rows[table]))
        chains.append((valid_table(lake.settings, dataset, table), 0.02, bad.rows[table] - bad.counts[table]))
    chains += [
        (feature_table(lake.settings, dataset, view), 0.05, np.full(len(nights), 400)) for view in dataset.features
    ]
    chains.append((metrics_table(lake.settings, dataset.name, "quality"), 0.03, np.full(len(nights), 14)))
    for target, more, counts in chains:
        rows = []
        for i, day in enumerate(nights):
            run_id = f"scheduled__{day}"
            rows.append(
                _publication(
                    target.name, day, i + 1, int(counts[i]), dataset.time_zone, float(hours[i]) + more, run_id, {}, []
                )
            )
            if again[i] and not target.name.startswith(f"{dataset.name}/raw"):
                rows.append(
                    _publication(
                        target.name,
                        day,
                        len(nights) + i + 1,
                        int(counts[i]),
                        dataset.time_zone,
                        30.0 + more,
                        f"restate__{day}",
                        {},
                        [],
                    )
                )
        yield target, rows


def _model_publications(lake: Lake, story: Story) -> Iterator[tuple[LakeTable, list[tuple[Any, ...]]]]:
    entry, dataset = story.entry, story.dataset
    table = predictions_table(lake.settings, entry, dataset)
    volume, tenures = _volumes(story), story.tenures
    random = np.random.default_rng([story.seed, story.number, 6])
    hours = np.where(random.random(len(story.nights)) < 0.02, 8.0, 0.9) + random.uniform(0, 0.2, len(story.nights))
    if story.number == 12:
        hours[-1] = 8.6
    rollout = story.rollout
    rows = []
    for i in range(story.scored):
        version = story.versions[int(tenures[i])]
        day = story.nights[i].isoformat()
        champion = Assignment(CHAMPION, version.number, version.digest, 1.0, version.number)
        plan = [champion] if rollout is None else assignments(rollout, i, champion)
        details = {"ledger_version": version.number, "assignments": recorded([(Interval.of(story.nights[i]), plan)])}
        inputs = [_input(f"{dataset.name}/features/{view}", story.nights[i], i + 1) for view in entry.features]
        rows.append(
            _publication(
                table.name,
                story.nights[i],
                i + 1,
                int(volume[i]),
                dataset.time_zone,
                float(hours[i]),
                f"asset_triggered__{day}",
                details,
                inputs,
            )
        )
    yield table, rows
    judged = range(story.scored)
    groups = [("drift", 128, judged), ("performance", 44, judged)]
    groups += [("rollout", 12, range(rollout.first, rollout.end))] if rollout else []
    for group, size, of_group in groups:
        table = metrics_table(lake.settings, entry.name, group)
        yield (
            table,
            [
                _publication(
                    table.name,
                    story.nights[i],
                    i + 1,
                    size,
                    dataset.time_zone,
                    float(hours[i]) + 0.1,
                    f"asset_triggered__{story.nights[i]}",
                    {},
                    [],
                )
                for i in of_group
            ],
        )


def _insert(
    connection: sa.Connection, table: sa.Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> None:
    quote = connection.dialect.identifier_preparer.quote
    statement = (
        f"INSERT INTO {quote(table.name)} ({', '.join(map(quote, columns))}) VALUES ({', '.join('?' * len(columns))})"
    )
    connection.exec_driver_sql(statement, list(rows)) if rows else None


def _index(lake: Lake, connection: sa.Connection, table: LakeTable, rows: Sequence[tuple[Any, ...]]) -> None:
    """Publications of a table whose Delta log holds none of them: the index is marked as up to date with it."""
    delta = table.load_or_create()
    columns = [c.name for c in publications_table.c if c.name not in {"inputs", "details"}] + ["inputs", "details"]
    _insert(connection, publications_table, columns, rows)
    delta_id = str(delta.metadata().id)
    head = {"table_name": table.name, "version": delta.version()}
    connection.execute(_synced_table.insert(), head | {"delta_id": delta_id})
    connection.execute(_heads_table.insert(), head | {"commit_digest": _commit_digest(delta.history(1)[0])})
    sql_table = (
        SQL_TABLE
        if "/metrics/" in table.name
        else sql_name(table.name.split("/")[0])
        if table.name.endswith("/predictions")
        else None
    )
    if sql_table:
        newest = {row[1]: row for row in rows}
        named = ["sql_table", "table_name", "data_date", "delta_id", "version", "digest", "row_count", "projected_at"]
        _insert(
            connection,
            projections_table,
            named,
            [(sql_table, table.name, day, delta_id, r[2], r[3], r[4], r[8]) for day, r in newest.items()],
        )


# ---- the small tables that pages read from Delta --------------------------------------------------------------------


def _whole_table(
    lake: Lake, table: LakeTable, rows: Sequence[Mapping[str, Any]], interval: Interval, subject: str
) -> None:
    found = pa.Table.from_pylist([dict(row) for row in rows], schema=table.schema)
    with lake.scratch("year") as scratch:
        publish(
            lake.publications,
            table,
            found,
            interval,
            replaces=dict.fromkeys(interval),
            lineage=lake.lineage(subject, "generated"),
            scratch=scratch,
        )


def _quarantine(lake: Lake, dataset: Dataset, bad: Bad, nights: Sequence[date]) -> None:
    thing = _THINGS[dataset.name]
    for table, counts in bad.counts.items():
        target = quarantine_table(lake.settings, dataset, table)
        rows = []
        for i in np.flatnonzero(counts):
            day = nights[int(i)]
            instant = cutoff(day, dataset.time_zone)
            for k in range(int(counts[i])):
                own: dict[str, Any] = {
                    "event_date": day,
                    thing: "<script>alert('bad')</script>" if k == 0 else f"{thing}-{k}",
                }
                own |= (
                    {"depot": "north", "due_utc": instant, "weight_kg": -5.0 - k}
                    if table == "plans"
                    else {"end_utc": instant, "minutes": 9_000.0 + k}
                )
                broken = f"between({'weight_kg' if table == 'plans' else 'minutes'})" + (
                    f"; unique(event_date, {thing})" if k % 9 == 8 else ""
                )
                rows.append(
                    own
                    | {
                        "known_at_utc": instant,
                        "revision": 0,
                        "row_number": k + 1,
                        "broken_rules": broken,
                        "data_date": day,
                    }
                )
        _whole_table(lake, target, rows, Interval(nights[0], nights[-1] + ONE_DAY), dataset.name)


def _requests(lake: Lake, story: Story) -> None:
    from monitoring.retraining_requests import PERSON, POLICY, requests_table

    asked = {v.as_of for v in story.versions[1:]}
    rows = []
    for i in range(story.scored):
        trigger = "none"
        if (
            i in asked
            or (story.number == 5 and i == story.scored - 12)
            or (story.number == 2 and i == story.scored - 5)
        ):
            trigger = "performance" if story.number == 5 else "drift" if story.number == 2 else "calendar"
        reason = {
            "none": "drift: 3% of 30 columns beyond their limit lies below 30%; calendar: next training due later",
            "calendar": "calendar: 42 days since the last training, one is due every 42",
            "drift": "drift: 43% of 30 columns beyond their limit reaches 30%",
            "performance": "performance: mae over the baseline's 1.162 in 14 nights, 0.833 at the gate, 0.917 allowed",
        }[trigger]
        evidence: dict[str, Any] = {
            "trigger": trigger,
            "drift": {"share": 0.43 if trigger == "drift" else 0.03, "threshold": 0.3},
            "as_of": story.nights[i].isoformat(),
        }
        rows.append(
            {
                "actor": POLICY,
                "by": POLICY,
                "requested": trigger != "none",
                "trigger": trigger,
                "reason": reason,
                "evidence": json.dumps(evidence),
            }
        )
        rows[-1]["data_date"] = story.nights[i]
    if story.number % 3 == 0:
        day = story.nights[story.scored - 20]
        words = "<b>Refit</b> after the depot's move, please; 'north' & \"south\" changed places"
        evidence = {"policy": None, "trigger": PERSON, "by": "ana", "reason": words, "as_of": day.isoformat()}
        rows.append(
            {
                "actor": PERSON,
                "by": "ana",
                "requested": True,
                "trigger": PERSON,
                "reason": words,
                "evidence": json.dumps(evidence),
                "data_date": day,
            }
        )
    _whole_table(
        lake,
        requests_table(lake, story.entry.name),
        rows,
        Interval(story.nights[0], story.nights[story.scored - 1] + ONE_DAY),
        story.entry.name,
    )


_UNMEASURED: dict[str, Any] = dict.fromkeys(
    ("output", "metric", "segment", "challenger", "incumbent", "improvement", "bound", "needed", "rows", "note")
)


def _evidence(story: Story, version: int, as_of: date, verdict: str, incumbent: int | None) -> dict[str, Any]:
    good = verdict == "promote"
    checks: list[dict[str, Any]] = []
    outputs: dict[str, Any] = {}
    for name, output in story.entry.outputs.items():
        base = 0.18 if output.task == "event" else 21.6
        own = base / 1.2 * (1 if good else 1.3)
        beaten = base / 1.2 * 1.06 if incumbent else base
        improvement = 1 - own / beaten
        outputs[name] = {"metric": output.gate, "challenger": own, "baseline": base, "incumbent": beaten}
        told = {
            "output": name,
            "metric": output.gate,
            "challenger": own,
            "incumbent": beaten,
            "improvement": improvement,
        }
        checks.append(
            {"name": "improvement", "passed": good, **told, "bound": improvement - 0.03, "needed": 0.0, "rows": 9_000}
        )
        for segment in SEGMENTS[:5]:
            checks.append(
                {
                    "name": "segment",
                    "passed": True,
                    **told,
                    "segment": f"depot={segment}",
                    "bound": own / beaten,
                    "needed": 1.2,
                    "rows": 900,
                }
            )
    checks.append(
        {
            "name": "latency",
            "passed": True,
            "challenger": 0.02,
            "needed": 5.0,
            "metric": "milliseconds_per_row",
            "rows": 9_000,
        }
    )
    checks.append(
        {
            "name": "leakage",
            "passed": True,
            "challenger": 0.0,
            "needed": 0.0,
            "note": "3 nights computed again on a lake cut off there: no cell differs",
        }
    )
    text = (
        "Better than its incumbent by more than 0 % with 95 % confidence."
        if good
        else "The error grew by 8 % against its incumbent; not to be worse was needed."
    )
    nights = [as_of - timedelta(days=k + 2) for k in range(14)][::-1]
    return {
        "model": story.entry.name,
        "version": version,
        "as_of": as_of.isoformat(),
        "verdict": verdict,
        "reasons": [{"code": "better" if good else "not_better", "text": text}],
        "checks": [_UNMEASURED | check for check in checks],
        "subject": {"artifact_digest": _digest(story.entry.name, version)},
        "incumbent": {
            "name": f"champion version {incumbent}" if incumbent else "baseline median",
            "version": incumbent,
            "artifact_digest": None,
            "unusable_champion": None,
        },
        "test": {"nights": [d.isoformat() for d in nights], "left_out": [], "rows": 9_000},
        "windows": {},
        "rules": {},
        "bootstrap": {"resampled": "days", "resamples": 1000, "seed": 7},
        "outputs": outputs,
    }


def _decisions(lake: Lake, story: Story) -> None:
    """The gate's decisions and the ledger's lines; of model 7 the newest promotion was rolled back."""
    from lake.ledger import Promotion
    from training.registry.decision import Decision, _canonical, _text, decisions_table

    documents = []
    for position, version in enumerate(story.versions):
        documents.append(_evidence(story, version.number, story.day(version.as_of), "promote", position or None))
    newest = story.versions[-1].number
    if story.number in {2, 5}:
        documents.append(
            _evidence(
                story, newest + 1, story.nights[story.scored - (12 if story.number == 5 else 5)], "refuse", newest
            )
        )
    if story.number == 3:
        documents.append(_evidence(story, newest + 1, story.nights[story.scored - 2], "promote", newest))
    table = decisions_table(lake, story.entry.name)
    rows: list[dict[str, Any]] = []
    for document in documents:
        decision = Decision.of(json.loads(_canonical(document)))
        row: dict[str, Any] = {
            "version": decision.version,
            "judgement": 1,
            "verdict": decision.verdict,
            "rival": decision.incumbent,
            "nights": decision.nights,
        }
        row |= {
            "rows": decision.rows,
            "reasons": _text(document["reasons"]),
            "checks": _text(document["checks"]),
            "evidence": _canonical(document),
        }
        rows.append(row | {"evidence_digest": decision.evidence_digest, "data_date": decision.as_of})
    for row in rows:
        _whole_table(lake, table, [row], Interval.of(row["data_date"]), story.entry.name)
    ledger = lake.ledger(story.entry.name)
    snapshot = ledger.read()
    promoted = [(v, rows[i]["evidence_digest"]) for i, v in enumerate(story.versions)]
    for version, evidence_digest in promoted:
        at = datetime.combine(story.day(version.as_of) + ONE_DAY, time(3), UTC)
        by = "olga" if story.entry.approval == "required" else "gate"
        snapshot = ledger.append(
            Promotion(
                story.entry.name,
                version.number,
                story.day(version.as_of),
                story.day(version.from_night),
                at,
                by,
                version.digest,
                evidence_digest,
            ),
            seen=snapshot,
        )
    if story.number == 7 and len(promoted) > 1:
        before, digest = promoted[-2]
        day = story.nights[-4]
        line = Promotion(
            story.entry.name,
            before.number,
            story.day(before.as_of),
            day,
            datetime.combine(day, time(2), UTC),
            "olga",
            before.digest,
            digest,
            "rollback",
            reason="depot south complained about the estimates",
        )
        ledger.append(line, seen=snapshot)


def _artifacts(lake: Lake, story: Story) -> None:
    """What pages read beside a version's files: what it rests on, and the reference's numbers."""
    random = np.random.default_rng([story.seed, story.number, 7])
    names = [f"{view}__{_feature(v, i)}" for v, view in enumerate(VIEWS) for i in range(PER_VIEW)]
    for version in story.versions:
        folder = lake.settings.artifacts / story.entry.name / version.digest
        folder.mkdir(parents=True, exist_ok=True)
        shares = random.dirichlet(np.full(len(names), 0.4))
        importances = {
            output: {name: round(float(s), 6) for name, s in zip(names, shares, strict=True)}
            for output in story.entry.outputs
        }
        (folder / "importances.json").write_text(json.dumps(importances))
        as_of = story.day(version.as_of)
        columns = {
            name: {
                "kind": "numeric",
                "edges": [0.0, 5.0, 10.0],
                "counts": [100, 200, 200, 100],
                "limit": 0.04 + 0.02 * (k % 5),
                "null_limit": 0.05,
            }
            for k, name in enumerate(names)
        }
        first, last = as_of - timedelta(days=120), as_of - timedelta(days=30)
        profile = {
            "format": 2,
            "method": "psi",
            "window_nights": 1,
            "nights": 90,
            "rows": 54_000,
            "first": str(first),
            "last": str(last),
            "columns": columns,
        }
        (folder / "reference.json").write_text(
            json.dumps(profile | {"volume": {"lower": 400, "upper": 2_000}, "predictions": {}})
        )
        (folder / "manifest.json").write_text(
            json.dumps(
                {
                    "family": story.entry.trainer.family,
                    "artifacts": _listed_files(story.entry.name, version.number),
                    "training_set_digest": _digest(version.digest),
                    "identity": version.digest,
                }
            )
        )
        (folder / "job.json").write_text(json.dumps({"identity": version.digest, "run_id": "generated"}))
        sign(lake.settings, folder, story.entry.name)


def _reports(lake: Lake, story: Story) -> None:
    page = (
        "<!doctype html><html lang=en><title>{title}</title><body><h1>{title}</h1><p id=said>still</p>"
        "<script>document.getElementById('said').textContent='drawn'</script>"
    )
    for day in story.nights[max(0, story.scored - 30) : story.scored]:
        folder = lake.settings.reports / story.entry.name / day.isoformat()
        folder.mkdir(parents=True, exist_ok=True)
        for group in ("drift", "performance"):
            (folder / f"{group}.html").write_text(
                page.format(title=f"{group.capitalize()} of {story.entry.name}, {day}"), encoding="utf-8"
            )
    cards = lake.settings.reports / story.entry.name / "model_cards"
    cards.mkdir(parents=True, exist_ok=True)
    for version in story.versions:
        (cards / f"{version.number}.html").write_text(
            page.format(title=f"Model card of version {version.number}"), encoding="utf-8"
        )


# ---- rows of predictions ---------------------------------------------------------------------------------------


def prediction_id(model: str, night: date, number: int) -> str:
    """Id of one of the 25 rows that each of the last 30 nights has in SQL."""
    return _digest(model, night, number)[:32]


def _predictions(lake: Lake, story: Story, connection: sa.Connection, *, nights: int = 30, rows: int = 25) -> None:
    """Some rows of the last nights, for looking one up; they cannot be reproduced."""
    entry, dataset = story.entry, story.dataset
    table = predictions_table(lake.settings, entry, dataset)
    target = sql_columns(sql_name(entry.name), table.schema, keep_replaced=True)
    _prepare(connection, target, ("prediction_id",), (("prediction_id",), ("data_date",)))
    random = np.random.default_rng([story.seed, story.number, 8])
    thing = _THINGS[dataset.name]
    found = []
    for i in range(max(0, story.scored - nights), story.scored):
        day, version = story.nights[i], story.versions[int(story.tenures[i])]
        due = (cutoff(day, dataset.time_zone) + timedelta(hours=9)).strftime("%Y-%m-%d %H:%M:%S.%f")
        for k in range(rows):
            row: dict[str, Any] = {
                "source_table": table.name,
                "delta_version": i + 1,
                "prediction_id": prediction_id(entry.name, day, k),
                "role": CHAMPION,
                "served": True,
            }
            row |= {
                "model": entry.name,
                "version": version.number,
                "artifact_digest": version.digest,
                "event_date": (day + ONE_DAY).isoformat(),
            }
            row |= {
                thing: f"{thing}-{k}",
                "target_time_utc": due,
                "input_digest": _digest(day, k)[:32],
                "data_date": day.isoformat(),
                "superseded_at": None,
            }
            value = float(random.normal(20, 6))
            for name in entry.output_columns:
                row[name] = (
                    min(max(value / 60, 0.0), 1.0)
                    if name.endswith("probability")
                    else value + {"r": 0, "s": 0}.get(name[-1], 0)
                )
            found.append(row)
    columns = [c.name for c in target.c]
    _insert(connection, target, columns, [tuple(row[c] for c in columns) for row in found])


# ---- what ran, and what people did ---------------------------------------------------------------------------------


def _waiting(story: Story) -> dict[str, Any]:
    """Row of the SQL table `waiting`: the run that asks a person, and does so for ever."""
    name, night = story.entry.name, story.nights[story.scored - 1]
    row = {
        "model": name,
        "run_id": f"asset_triggered__{night}",
        "asking": 0,
        "dag_id": f"{name}_train",
        "title": f"Promote {name}?",
    }
    return row | {"asked_at": cutoff(night, story.dataset.time_zone), "until": datetime(2200, 1, 1, tzinfo=UTC)}


def _runs(stories: Sequence[Story], nights: Sequence[date]) -> list[dict[str, Any]]:
    """Rows of the SQL table `runs`: every night of every DAG, the planted failures among them."""
    rows: list[dict[str, Any]] = []

    def add(
        subject: str,
        kind: str,
        day: date,
        zone: str,
        hours: float,
        minutes: float,
        note: str | None = None,
        error: str | None = None,
    ) -> None:
        begun = cutoff(day, zone) + timedelta(hours=hours)
        ended = begun + timedelta(minutes=minutes)
        row: dict[str, Any] = {
            "dag_id": f"{subject}_{kind}",
            "run_id": f"{'scheduled' if kind == 'ingest' else 'asset_triggered'}__{day}",
        }
        row |= {
            "subject": subject,
            "kind": kind,
            "partition_key": day.isoformat(),
            "state": "failed" if error else "success",
            "started_at": begun,
        }
        row |= {
            "ended_at": ended,
            "note": note,
            "failed_task": kind if error else None,
            "errors": json.dumps([[kind, error]]) if error else None,
        }
        rows.append(row | {"state_at": ended, "error_at": ended if error else None})

    for dataset in DATASETS:
        for day in nights:
            add(dataset, "ingest", day, _ZONES[dataset], 0.2, 9)
    for story in stories:
        name, zone = story.entry.name, story.dataset.time_zone
        for day in story.nights[: story.scored]:
            add(name, "score", day, zone, 0.8, 4)
            add(name, "monitor", day, zone, 0.95, 6)
        if story.scored < len(nights):
            why = (
                f"ArtifactMismatch: artifacts/{name}/model.ubj has digest b396cfa98e18…, the manifest says"
                " 0949f02a34e5…: its bytes were changed."
            )
            add(name, "score", nights[-1], zone, 0.8, 1, error=why)
        for version in story.versions:
            add(
                name,
                "train",
                story.day(version.as_of),
                zone,
                1.1,
                38,
                note="requested by calendar: 42 days since the last training",
            )
    return rows


def _actions(lake: Lake, stories: Sequence[Story]) -> None:
    """A year of acknowledgements, silences, requests and refusals; of the newest alarms one is acknowledged, one
    silenced.
    """
    from monitoring.alerting.actions import Action, actions_table, project_actions

    columns = [f"{view}__{_feature(v, i)}" for v, view in enumerate(VIEWS) for i in range(PER_VIEW)]
    done: list[Action] = []
    for story in stories:
        random = np.random.default_rng([story.seed, story.number, 9])
        for position in sorted(int(p) for p in random.integers(0, story.scored - 3, 4)):
            at = datetime.combine(story.nights[position] + ONE_DAY, time(7, 30 + story.number), UTC)
            kind = ("acknowledge", "silence", "request_retraining", "rollback")[position % 4]
            alarm = ("drift_psi", columns[position % len(columns)]) if kind in {"acknowledge", "silence"} else ("", "")
            until = story.nights[position] + timedelta(days=7) if kind == "silence" else None
            outcome = "refused: it needs the role admin, otto is operator" if kind == "rollback" else "done"
            who = ("olga", "ana", "<i>otto</i>")[position % 3]
            done.append(
                Action(
                    at,
                    who,
                    "operator",
                    kind,
                    story.entry.name,
                    *alarm,
                    until=until,
                    reason="known: the depot moved",
                    outcome=outcome,
                )
            )
    now = datetime.combine(stories[0].nights[-1] + ONE_DAY, time(7), UTC)
    drifting, gap = columns[PER_VIEW], columns[2 * PER_VIEW]
    done.append(
        Action(
            now,
            "olga",
            "operator",
            "acknowledge",
            stories[2].entry.name,
            "drift_psi",
            drifting,
            reason="the new depot; a refit is on its way",
        )
    )
    until = stories[0].nights[-1] + timedelta(days=5)
    done.append(
        Action(
            now,
            "ana",
            "operator",
            "silence",
            stories[0].entry.name,
            "null_rate",
            gap,
            until=until,
            reason="the station is being repaired",
        )
    )
    rows = [
        a.__dict__
        | {
            "action_id": _digest("action", k)[:32],
            "details": json.dumps({"about_date": str(a.at_utc.date() - ONE_DAY)}),
            "data_date": a.at_utc.date(),
        }
        for k, a in enumerate(done)
    ]
    whole = Interval.closed(min(row["data_date"] for row in rows), max(row["data_date"] for row in rows))
    table, lineage = actions_table(lake), Lineage(run_id="generated", code_version=_CODE, catalog_digest="")
    with lake.scratch("year") as scratch:
        found = pa.Table.from_pylist(rows, schema=table.schema)
        publish(lake.publications, table, found, whole, replaces=dict.fromkeys(whole), lineage=lineage, scratch=scratch)
    project_actions(lake, whole)


# ---- all of it ---------------------------------------------------------------------------------------------------


def fill(home: Path, *, nights: int = NIGHTS, last: date = LAST, seed: int = 7) -> Lake:
    """Fill an empty home with `nights` nights up to `last`; the same rows for the same arguments. SQLite only."""
    days = [last - timedelta(days=nights - 1 - k) for k in range(nights)]
    settings = write_catalog(home, days[0], last)
    lake = Lake(settings, load_catalog(settings))
    stories = _stories(lake, days, seed)
    assert lake.publications is not None  # makes its tables
    metrics = sql_columns(SQL_TABLE, METRIC_SCHEMA)
    columns = [c.name for c in metrics.c]
    bad = {dataset: _bad_rows(lake.dataset(dataset), place, nights, seed) for place, dataset in enumerate(DATASETS)}
    with lake.engine.connect() as connection, connection.begin():
        projection_metadata.create_all(connection, tables=[projections_table])
        _prepare(connection, metrics, (), INDEXES)
        for place, dataset in enumerate(DATASETS):
            _insert(connection, metrics, columns, _quality_rows(lake.dataset(dataset), bad[dataset], days).rows)
            for table, rows in _dataset_publications(lake, lake.dataset(dataset), place, bad[dataset], days, seed):
                _index(lake, connection, table, rows)
        for story in stories:
            _insert(connection, metrics, columns, _drift_rows(story).rows)
            _insert(connection, metrics, columns, _performance_rows(story).rows)
            if story.rollout is not None:
                _insert(connection, metrics, columns, metric_tuples(story, story.rollout, _volumes(story)))
            for table, rows in _model_publications(lake, story):
                _index(lake, connection, table, rows)
            _predictions(lake, story, connection)
        runs_metadata.create_all(connection)
        connection.execute(runs_table.insert(), _runs(stories, days))
        connection.execute(waiting_table.insert(), [_waiting(story) for story in stories if story.number == 3])
    _actions(lake, stories)
    for dataset in DATASETS:
        _quarantine(lake, lake.dataset(dataset), bad[dataset], days)
    for story in stories:
        _requests(lake, story)
        _decisions(lake, story)
        if story.rollout is not None:
            write_ledger(lake, story, story.rollout)
        _artifacts(lake, story)
        _reports(lake, story)
    project_records(lake, [story.entry.name for story in stories])
    with lake.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("ANALYZE")
    return lake


def main() -> None:
    """Fill a home, and show its pages where a port is given."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--nights", type=int, default=NIGHTS)
    parser.add_argument(
        "--serve", type=int, metavar="PORT", help="show the pages on this port of the loopback, without Airflow"
    )
    parser.add_argument("--role", choices=("viewer", "operator", "admin"), default="operator")
    chosen = parser.parse_args()
    home: Path = chosen.home.resolve()
    if not (home / "datasets").exists():
        fill(home, nights=chosen.nights)
    if chosen.serve:
        settings = settings_of(home)
        os.environ |= {
            "NIGHTFLEET_HOME": str(home),
            "NIGHTFLEET_CATALOGS": str(settings.catalogs[0]),
        }
        from tests.pages_server import serve

        serve(home, chosen.serve, chosen.role)


if __name__ == "__main__":
    main()

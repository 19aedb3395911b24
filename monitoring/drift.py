"""Drift: each scored night's features and predictions against the training window of each version that scored it."""

# ruff: noqa: S608 (names come from the typed catalog, quoted)
from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from config.calendar import ONE_DAY, Interval
from config.catalog.data import Dataset, FeatureColumn
from config.catalog.model import ModelEntry
from config.settings import Settings
from features.retrieval import Retrieval, retrieve, spine_table
from lake.assignment import CHAMPION, Assignment, scored_by
from lake.events import logged
from lake.lake import Lake, StageResult
from lake.lineage import Input, Publication
from lake.metrics import Metric, metrics_table, publish_metrics
from lake.signature import UntrustedModel
from lake.storage import artifacts, version_key
from lake.tables import LakeTable
from serving.predictions import predictions_table
from serving.signed import signed_files
from training.registry.reference import (
    READABLE_FORMATS,
    Counts,
    ExactSum,
    as_numbers,
    count_bins,
    exact_sum,
    is_averaged,
    is_categorical,
    window_values,
)

GROUP = "drift"
MEAN = "mean"
REFERENCE_MEAN = "reference_mean"


@dataclass(frozen=True)
class VersionReference:
    """The profile stored with a model version; `profile` is empty and `missing` says why where there is none.

    Attributes:
        version: MLflow's number.
        profile: as `training.registry.reference.build_reference` made it.
    """

    version: int
    artifact_digest: str
    profile: Mapping[str, Any]
    missing: str | None = None

    @property
    def window(self) -> int:
        """Nights that one judgement covers."""
        return int(self.profile.get("window_nights", 1))

    def described(self) -> str:
        """What numbers are compared with, for the metrics table."""
        if self.missing:
            return f"version {self.version}"
        return f"version {self.version}, trained on {self.profile['first']} to {self.profile['last']}"


def load_reference(settings: Settings, model: str, version: int, artifact_digest: str) -> VersionReference:
    """The reference profile beside a version's files, as it was signed; a version without one, or whose files are not
    as they were signed, is *not evaluated*, with the reason.

    Raises:
        MissingSecret: there is no key to verify with.
    """

    def without(why: str) -> VersionReference:
        return VersionReference(version, artifact_digest, {}, why)

    if not artifacts(settings).exists(version_key(model, artifact_digest, "reference.json")):
        return without(f"version {version} has no reference.json beside its files; register it again")
    try:
        with signed_files(settings, model, artifact_digest, documents_only=True) as folder:
            profile = json.loads((folder / "reference.json").read_bytes())
    except UntrustedModel as error:
        return without(f"reference.json of version {version} is not trusted: {str(error).splitlines()[0]}")
    except ValueError:
        return without(f"reference.json of version {version} is not JSON; register it again")
    if profile.get("format") not in READABLE_FORMATS:
        needed = " or ".join(map(str, READABLE_FORMATS))
        why = f"reference.json of version {version} has format {profile.get('format')}, needs {needed}; train it again"
        return without(why)
    return VersionReference(version, artifact_digest, profile)


References = Mapping[date, Mapping[str, VersionReference]]  # by night and role


def references_of(
    lake: Lake, model: str, scored: Mapping[date, Publication]
) -> dict[date, dict[str, VersionReference]]:
    """By night and role: the version that scored it, as the publication recorded it, with its reference."""
    loaded: dict[str, VersionReference] = {}

    def reference(assignment: Assignment) -> VersionReference:
        digest = assignment.artifact_digest
        if digest not in loaded:
            loaded[digest] = load_reference(lake.settings, model, assignment.version, digest)
        return loaded[digest]

    return {
        day: {assignment.role: reference(assignment) for assignment in scored_by(day, publication.details)}
        for day, publication in scored.items()
    }


@dataclass
class _Night:
    """Rows of one night, per (artifact digest, column) its rows per bin and its nulls, and the sum of each column of
    numbers.
    """

    rows: int = 0
    sums: dict[str, ExactSum] = field(default_factory=dict)
    counts: dict[tuple[str, str], Counts] = field(default_factory=dict)
    nulls: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(
        self, reference: VersionReference, profiles: Mapping[str, Mapping[str, Any]], rows: pa.RecordBatch | pa.Table
    ) -> None:
        """Count rows of this night into the bins of that version's profiles; columns that are not there are left
        out.
        """
        together = np.zeros(rows.num_rows, dtype=np.int64)
        for name, profile in profiles.items():
            if not _comparable(rows.schema, name, profile):
                continue
            counts, nulls = count_bins(rows.column(name), profile, together, 1)
            key = (reference.artifact_digest, name)
            self.counts[key] = self.counts[key] + counts[0] if key in self.counts else counts[0]
            self.nulls[key] = self.nulls.get(key, 0) + int(nulls[0])

    def add_sums(self, names: Iterable[str], rows: pa.RecordBatch | pa.Table) -> None:
        """Add up those columns of this night that are numbers; once a batch, whatever versions it is counted for."""
        for name in names:
            if name in rows.schema.names and _is_number(rows.schema.field(name).type):
                self.sums[name] = self.sums.get(name, ExactSum()) + exact_sum(as_numbers(rows.column(name)))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _comparable(schema: pa.Schema, name: str, profile: Mapping[str, Any]) -> bool:
    if name not in schema.names:
        return False
    kind = schema.field(name).type
    text: bool = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind)
    return bool(text == (profile["kind"] == "categorical"))


@logged("drift")
def drift(lake: Lake, model: str, interval: Interval, *, run_id: str) -> StageResult:
    """Publish `<model>/metrics/drift`: every column of every scored night against the reference of each version that
    scored it.

    Checks: `drift_psi` (or `drift_ks`), `null_rate` per feature; `prediction_drift` per output column; `volume` and
    `drift_share` of the night. A column beyond its own limit is a warning; a share of such columns at or above the
    catalog's is failing. What cannot be judged is `not_evaluated` with its reason.

    Two checks say by how much a column of numbers moved, in its own unit, and never alarm: `mean` over the rows of the
    window that have a finite value (`n` of them), and `reference_mean`, the same of the rows the version is compared
    with. Neither has a threshold.

    Raises:
        PartitionNotReady: a night is not scored yet.
    """
    entry = lake.model(model)
    dataset = lake.dataset(entry.dataset)
    before = lake.publications.digests(metrics_table(lake.settings, model, GROUP), interval)
    table = predictions_table(lake.settings, entry, dataset)
    lake.publications.require(
        table, interval, needed_by=f"Drift of {model}", remedy=f"Run `{model}_score` for it, then clear this task."
    )
    longest = max(entry.retrain.drift.window.days, 1)
    scored = lake.publications.current(table, interval.widened(longest - 1))
    references = references_of(lake, model, scored)
    reach = max(reference.window for day in interval for reference in references[day].values())
    if reach > longest:  # a version that was trained when the catalog said a longer window
        scored = lake.publications.current(table, interval.widened(reach - 1))
        references = references_of(lake, model, scored)
    features, inputs = _count_features(lake, entry, dataset, interval, scored, references)
    predictions = _count_predictions(lake, entry, table, interval, scored, references)
    rows: list[Metric] = []
    for day in interval:
        for role in references[day]:
            own = {night: versions[role] for night, versions in references.items() if role in versions}
            rows += _Judge(lake, entry, day, role, own, features, predictions[role]).metrics()
        for back in range(_longest_window(references[day])):
            if day - back * ONE_DAY in scored:
                inputs.setdefault(day, []).append(scored[day - back * ONE_DAY].as_input())
    unique = {day: list(dict.fromkeys(items)) for day, items in inputs.items() if day in interval}
    published = publish_metrics(lake, model, GROUP, rows, interval, run_id=run_id, inputs=unique, replaces=before)
    shares = {m.about_date.isoformat(): m for m in rows if m.check == "drift_share" and m.role == CHAMPION}
    details = {
        "nights": {
            day: {"drift_share": m.value, "threshold": m.threshold, "status": m.status, "reason": m.reason}
            for day, m in shares.items()
        },
        "statuses": {
            status: sum(m.status == status for m in rows) for status in ("ok", "warning", "failing", "not_evaluated")
        },
    }
    return StageResult("drift", model, str(interval), published.rows, len(published.committed), details)


# ---- counting --------------------------------------------------------------------------------------------------


def _longest_window(versions: Mapping[str, VersionReference]) -> int:
    return max(reference.window for reference in versions.values())


def _wanted(interval: Interval, references: References) -> dict[date, dict[str, VersionReference]]:
    """By night that must be counted: the versions whose bins it is counted in, by artifact digest."""
    wanted: dict[date, dict[str, VersionReference]] = {}
    for day in interval:
        for reference in references[day].values():
            for back in range(reference.window):
                wanted.setdefault(day - back * ONE_DAY, {})[reference.artifact_digest] = reference
    return wanted


def feature_profiles(lake: Lake, entry: ModelEntry, reference: VersionReference) -> dict[str, Mapping[str, Any]]:
    """Profiles of the features, calendar columns left out: they follow from the date alone."""
    declared = lake.catalog.feature_columns(entry)
    columns: Mapping[str, Mapping[str, Any]] = reference.profile.get("columns", {})
    return {name: profile for name, profile in columns.items() if not (name in declared and declared[name].calendar)}


def _count_features(
    lake: Lake,
    entry: ModelEntry,
    dataset: Dataset,
    interval: Interval,
    scored: Mapping[date, Publication],
    references: References,
) -> tuple[dict[date, _Night], dict[date, list[Input]]]:
    """Counts of every night that some window holds and that is published, and the partitions they come from."""
    wanted = _wanted(interval, references)
    first = first_available(lake, entry, Interval(min(wanted), interval.end), interval.start)
    whole = Interval(first, interval.end)
    with lake.scratch("drift") as folder:
        retrieval = retrieve(lake, entry.name, whole, folder=folder)
        nights = _count(lake, entry, retrieval, wanted, whole)
        read = dict(retrieval.inputs)
    for day in whole:
        if day not in scored or _same_inputs(lake, entry, scored[day].inputs, read[day]):
            continue
        # Rewritten since it was scored: what is judged are the features that were scored, at the versions of then.
        pins, spine_version = pinned_versions(lake, entry, scored[day].inputs)
        with lake.scratch("drift") as folder:
            then = retrieve(lake, entry.name, Interval.of(day), pins=pins, spine_version=spine_version, folder=folder)
            nights |= _count(lake, entry, then, wanted, Interval.of(day))
            read |= then.inputs
    inputs: dict[date, list[Input]] = {}
    for day in interval:
        for back in range(_longest_window(references[day])):
            inputs.setdefault(day, []).extend(read.get(day - back * ONE_DAY, []))
    return nights, inputs


def pinned_versions(lake: Lake, entry: ModelEntry, inputs: Iterable[Input]) -> tuple[dict[str, int], int | None]:
    """Delta version of each view, and of the spine's table, at which a night was scored.

    The highest version among a table's partitions: each of them was the newest of its night when the night was scored,
    so none was replaced between its own version and that one.
    """
    pins: dict[str, int] = {}
    for item in inputs:
        pins[item.table] = max(pins.get(item.table, 0), item.version)
    tables = lake.feature_tables(entry)
    views = {view: pins[table.name] for view, table in tables.items() if table.name in pins}
    spine = entry.spine.table
    return views, pins.get(f"{entry.dataset}/valid/{spine}") if spine else None


def _same_inputs(lake: Lake, entry: ModelEntry, then: Iterable[Input], now: Iterable[Input]) -> bool:
    prefixes = tuple(f"{dataset.name}/" for dataset in lake.catalog.datasets_of(entry))
    return {(i.table, i.data_date, i.digest) for i in then if i.table.startswith(prefixes)} == {
        (i.table, i.data_date, i.digest) for i in now
    }


def first_available(lake: Lake, entry: ModelEntry, whole: Interval, judged: date) -> date:
    """First night from which on every input of retrieval is published without a gap, at the latest `judged`."""
    tables = list(lake.feature_tables(entry).values())
    spine = spine_table(lake, entry)
    if spine is not None:
        tables.append(spine)
    first = whole.start
    if first == judged:
        return judged
    for table in tables:
        there = lake.publications.current(table, Interval(whole.start, judged))
        missing = [day for day in Interval(whole.start, judged) if day not in there]
        if missing:
            first = max(first, missing[-1] + ONE_DAY)
    return first


def _count(
    lake: Lake,
    entry: ModelEntry,
    retrieval: Retrieval,
    wanted: Mapping[date, Mapping[str, VersionReference]],
    nights: Interval,
) -> dict[date, _Night]:
    counted = {day: _Night() for day in nights}
    profiles: dict[str, dict[str, Mapping[str, Any]]] = {}
    for batch in retrieval.reader():
        for day, rows in _by_night(batch):
            counted[day].rows += rows.num_rows
            for digest, reference in wanted.get(day, {}).items():
                if digest not in profiles:
                    profiles[digest] = feature_profiles(lake, entry, reference)
                counted[day].add(reference, profiles[digest], rows)
            counted[day].add_sums(
                dict.fromkeys(name for digest in wanted.get(day, {}) for name in profiles[digest]), rows
            )
    return counted


def _by_night(batch: pa.RecordBatch) -> Iterator[tuple[date, pa.RecordBatch]]:
    """A batch sorted by data date, cut at each change of it."""
    dates = np.asarray(batch.column("data_date").cast(pa.int32()))
    bounds: npt.NDArray[np.int64] = np.concatenate([[0], np.flatnonzero(np.diff(dates)) + 1, [len(dates)]])
    for begin, end in itertools.pairwise(bounds):
        if end > begin:
            yield date(1970, 1, 1) + timedelta(days=int(dates[begin])), batch.slice(int(begin), int(end - begin))


def _count_predictions(
    lake: Lake,
    entry: ModelEntry,
    table: LakeTable,
    interval: Interval,
    scored: Mapping[date, Publication],
    references: References,
) -> dict[str, dict[date, _Night]]:
    """By role: counts of each night's predictions in that role."""
    wanted = _wanted(interval, references)
    roles = sorted({role for day in interval for role in references[day]})
    nights = {role: {day: _Night() for day in wanted if day in scored} for role in roles}
    outputs = sorted(
        {
            name
            for versions in references.values()
            for reference in versions.values()
            for name in reference.profile.get("predictions", {})
            if name in table.schema.names
        }
    )
    # A class is compared by its values, even where it is a number.
    texts = {name for name, kind in entry.drift_types.items() if is_categorical(kind)}
    columns = (f'CAST("{name}" AS VARCHAR) AS "{name}"' if name in texts else f'"{name}"' for name in outputs)
    listed = ", ".join(['"data_date"', *columns])
    with lake.duckdb() as connection:
        table.register(connection, "p", [day for day in wanted if day in scored])
        for role, counted in nights.items():
            query = connection.sql(f"SELECT {listed} FROM p WHERE role = ? ORDER BY data_date", params=[role])
            for batch in query.to_arrow_reader(65_536):
                for day, rows in _by_night(batch):
                    counted[day].rows += rows.num_rows
                    for reference in wanted[day].values():
                        counted[day].add(reference, reference.profile.get("predictions", {}), rows)
                    counted[day].add_sums(outputs, rows)
    return nights


# ---- judging ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judge:
    """Turns the counts of one night into metrics of one role; `references` and `predictions` are that role's."""

    lake: Lake
    entry: ModelEntry
    day: date
    role: str
    references: Mapping[date, VersionReference]
    features: Mapping[date, _Night]
    predictions: Mapping[date, _Night]

    @property
    def reference(self) -> VersionReference:
        return self.references[self.day]

    @cached_property
    def declared(self) -> Mapping[str, FeatureColumn]:
        return self.lake.catalog.feature_columns(self.entry)

    @property
    def window(self) -> list[date]:
        return [self.day - back * ONE_DAY for back in reversed(range(self.reference.window))]

    def metrics(self) -> list[Metric]:
        """All rows about the night."""
        method = self.reference.profile.get("method", self.entry.retrain.drift.method)
        problem = self._features_problem()
        profiles = feature_profiles(self.lake, self.entry, self.reference)
        drifts = [
            self._column(f"drift_{method}", name, profile, self.features, problem) for name, profile in profiles.items()
        ]
        nulls = [self._null_rate(name, profile, problem) for name, profile in profiles.items()]
        # Of a night with one row the mean is that row's value.
        shown = {name: p for name, p in profiles.items() if not (name in self.declared and self.declared[name].pii)}
        means = [m for name, profile in shown.items() for m in self._means(name, profile, self.features, problem)]
        problem = self._predictions_problem()
        outputs: Mapping[str, Mapping[str, Any]] = self.reference.profile.get("predictions", {})
        predicted = [
            self._column("prediction_drift", name, profile, self.predictions, problem)
            for name, profile in outputs.items()
        ]
        means += [m for name, profile in outputs.items() for m in self._means(name, profile, self.predictions, problem)]
        if not outputs:
            why = (
                self.reference.missing
                or f"version {self.reference.version} was stored without a profile of its predictions"
            )
            predicted = [self._metric("prediction_drift", status="not_evaluated", reason=why)]
        return [self._volume(), self._share(drifts), *drifts, *nulls, *predicted, *means]

    def _metric(self, check: str, **values: Any) -> Metric:
        return Metric(
            subject=self.entry.name,
            about_date=self.day,
            data_date=self.day,
            check=check,
            reference=self.reference.described(),
            role=self.role,
            model_version=self.reference.version,
            **values,
        )

    def _features_problem(self) -> str | None:
        if self.reference.missing:
            return self.reference.missing
        if not self.predictions[self.day].rows:
            return "nothing was scored in this night"
        there = [day for day in self.window if day in self.features]
        if len(there) < len(self.window):
            return f"the window needs {len(self.window)} nights of features, {len(there)} are published"
        return None

    def _predictions_problem(self) -> str | None:
        if self.reference.missing:
            return self.reference.missing
        if not self.predictions[self.day].rows:
            return "nothing was scored in this night"
        own = [
            day
            for day in self.window
            if day in self.references and self.references[day].artifact_digest == self.reference.artifact_digest
        ]
        if len(own) < len(self.window):
            return (
                f"the window needs {len(self.window)} nights scored by version {self.reference.version}, {len(own)} are"
                " there"
            )
        return None

    def _column(
        self, check: str, name: str, profile: Mapping[str, Any], nights: Mapping[date, _Night], problem: str | None
    ) -> Metric:
        """The statistic of one column over the window, against the version's own limit."""
        key = (self.reference.artifact_digest, name)
        if problem is None and any(key not in nights[day].counts for day in self.window if nights[day].rows):
            problem = "the catalog no longer has this column, or has it with another type"
        if problem is None and not sum(profile["counts"]):
            problem = "the column has no value in the training window"
        if problem is not None:
            return self._metric(check, column=name, threshold=profile["limit"], status="not_evaluated", reason=problem)
        counts = np.sum([nights[day].counts[key] for day in self.window if nights[day].rows], axis=0)
        present = int(counts.sum())
        if not present:
            return self._metric(
                check,
                column=name,
                threshold=profile["limit"],
                n=0,
                status="not_evaluated",
                reason="every value is null",
            )
        value = float(window_values(profile["method"], profile["counts"], counts, ordered=profile["kind"] == "numeric"))
        if profile["limit"] is None:
            why = f"the training window gives no limit: {profile['windows']} windows with values"
            return self._metric(check, column=name, value=value, n=present, status="not_evaluated", reason=why)
        status = "warning" if value > profile["limit"] else "ok"
        return self._metric(check, column=name, value=value, threshold=profile["limit"], n=present, status=status)

    def _means(
        self, name: str, profile: Mapping[str, Any], nights: Mapping[date, _Night], problem: str | None
    ) -> list[Metric]:
        """Mean of a column over the window, and of the rows it is compared with; nothing for a column that is no
        number.
        """
        if profile["kind"] != "numeric" or not self._is_number(name, nights):
            return []
        summed = sum((nights[day].sums.get(name, ExactSum()) for day in self.window if day in nights), ExactSum())
        if problem is not None:
            return [
                self._metric(check, column=name, status="not_evaluated", reason=problem)
                for check in (MEAN, REFERENCE_MEAN)
            ]
        return [self._mean(name, summed), self._reference_mean(name, profile)]

    def _is_number(self, name: str, nights: Mapping[date, _Night]) -> bool:
        """As the catalog says; of a column that it no longer has, as what was read says."""
        if name in self.declared:
            return is_averaged(self.declared[name].type)
        return is_averaged(self.entry.drift_types.get(name, "")) or any(
            name in nights[day].sums for day in self.window if day in nights
        )

    def _mean(self, name: str, summed: ExactSum) -> Metric:
        value = summed.mean()
        left_out = f"{summed.infinite:,} infinite values are left out" if summed.infinite else None
        if value is None:
            return self._metric(
                MEAN, column=name, n=0, status="not_evaluated", reason=left_out or "every value is null"
            )
        return self._metric(MEAN, column=name, value=value, n=summed.count, status="ok", reason=left_out)

    def _reference_mean(self, name: str, profile: Mapping[str, Any]) -> Metric:
        value, rows = profile.get("mean"), profile.get("mean_rows")
        if value is None:
            stored = "mean" in profile
            why = (
                "the column has no finite value in the training window"
                if stored
                else f"version {self.reference.version} was stored without means"
            )
            return self._metric(REFERENCE_MEAN, column=name, n=rows, status="not_evaluated", reason=why)
        return self._metric(REFERENCE_MEAN, column=name, value=value, n=rows, status="ok")

    def _null_rate(self, name: str, profile: Mapping[str, Any], problem: str | None) -> Metric:
        key = (self.reference.artifact_digest, name)
        if problem is None and any(
            key not in self.features[day].nulls for day in self.window if self.features[day].rows
        ):
            problem = "the catalog no longer has this column, or has it with another type"
        rows = 0 if problem else sum(self.features[day].rows for day in self.window)
        if problem is None and not rows:
            problem = "the window holds no row"
        if problem is not None:
            return self._metric(
                "null_rate", column=name, threshold=profile["null_limit"], status="not_evaluated", reason=problem
            )
        value = round(sum(self.features[day].nulls.get(key, 0) for day in self.window) / rows, 6)
        if profile["null_limit"] is None:
            return self._metric(
                "null_rate",
                column=name,
                value=value,
                n=rows,
                status="not_evaluated",
                reason="the training window gives no limit",
            )
        status = "warning" if value > profile["null_limit"] else "ok"
        return self._metric(
            "null_rate", column=name, value=value, threshold=profile["null_limit"], n=rows, status=status
        )

    def _volume(self) -> Metric:
        """Rows scored in the night itself; `lower` and `upper` are the bounds."""
        rows = self.predictions[self.day].rows
        bounds = self.reference.profile.get("volume", {})
        lower, upper = bounds.get("lower"), bounds.get("upper")
        if lower is None or upper is None:
            why = self.reference.missing or "the training window has too few nights for bounds"
            return self._metric("volume", value=float(rows), n=rows, status="not_evaluated", reason=why)
        status, reason = "ok", None
        if rows < lower or rows > upper:
            status = "failing" if rows == 0 else "warning"  # none is below a bound only where the bound is above 0
            reason = f"{rows:,} rows were scored; nights of the training window allow {lower:,} to {upper:,}"
        return self._metric(
            "volume", value=float(rows), lower=float(lower), upper=float(upper), n=rows, status=status, reason=reason
        )

    def _share(self, drifts: list[Metric]) -> Metric:
        """Share of the columns with a verdict that lie beyond their limit."""
        threshold = self.entry.retrain.drift.share
        judged = [m for m in drifts if m.status != "not_evaluated"]
        if not judged:
            why = self.reference.missing or (drifts[0].reason if drifts else "the reference has no column to compare")
            return self._metric("drift_share", threshold=threshold, n=0, status="not_evaluated", reason=why)
        beyond = sorted((m for m in judged if m.status == "warning"), key=lambda m: (-_excess(m), m.column))
        value = round(len(beyond) / len(judged), 6)
        named = [m.column for m in beyond[:3]] + ["…"] * (len(beyond) > 3)
        worst = f": {', '.join(named)}" if named else ""
        unjudged = f"; {len(drifts) - len(judged)} not evaluated" if len(judged) < len(drifts) else ""
        reason = f"{len(beyond)} of {len(judged)} columns lie beyond their limit{worst}{unjudged}"
        return self._metric(
            "drift_share",
            value=value,
            threshold=threshold,
            n=len(judged),
            status="failing" if value >= threshold else "ok",
            reason=reason,
        )


def _excess(metric: Metric) -> float:
    """How many times its limit a column's value is."""
    return (metric.value or 0.0) / max(metric.threshold or 0.0, 1e-9)

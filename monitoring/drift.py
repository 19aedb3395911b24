"""Drift: each scored night's features and predictions against the training window of each version that scored it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

import numpy as np

from config.calendar import ONE_DAY, Interval
from config.catalog.data import FeatureColumn
from config.catalog.model import ModelEntry
from lake.assignment import CHAMPION
from lake.events import logged
from lake.lake import Lake, StageResult
from lake.metrics import Metric, metrics_table, publish_metrics
from monitoring.drift_counts import NightCounts, count_features, count_predictions, longest_window
from monitoring.references import VersionReference, feature_profiles, references_of
from serving.predictions import predictions_table
from training.registry.reference import (
    ExactSum,
    is_averaged,
    window_values,
)

GROUP = "drift"
MEAN = "mean"
REFERENCE_MEAN = "reference_mean"
_NULL_DEVIATIONS = 3
_LEAST_ROWS_ALL_NULL = 20  # of fewer rows all may be null by chance


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
    features, inputs = count_features(lake, entry, dataset, interval, scored, references)
    predictions = count_predictions(lake, entry, table, interval, scored, references)
    rows: list[Metric] = []
    for day in interval:
        for role in references[day]:
            own = {night: versions[role] for night, versions in references.items() if role in versions}
            rows += _Judge(lake, entry, day, role, own, features, predictions[role]).metrics()
        for back in range(longest_window(references[day])):
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


def null_limit_of(usual: float, rows: int) -> float:
    """The share of nulls that so many rows may have: the training window's limit, and three standard deviations of what
    chance adds. A limit of zero still allows three rows.
    """
    spread = math.sqrt(max(usual, 1 / rows) * (1 - usual) / rows)
    return round(min(usual + _NULL_DEVIATIONS * spread, 1.0), 6)


# ---- judging ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judge:
    """Turns the counts of one night into metrics of one role; `references` and `predictions` are that role's."""

    lake: Lake
    entry: ModelEntry
    day: date
    role: str
    references: Mapping[date, VersionReference]
    features: Mapping[date, NightCounts]
    predictions: Mapping[date, NightCounts]

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
        self, check: str, name: str, profile: Mapping[str, Any], nights: Mapping[date, NightCounts], problem: str | None
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
        self, name: str, profile: Mapping[str, Any], nights: Mapping[date, NightCounts], problem: str | None
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

    def _is_number(self, name: str, nights: Mapping[date, NightCounts]) -> bool:
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
        limit = null_limit_of(profile["null_limit"], rows)
        if value == 1 and rows >= _LEAST_ROWS_ALL_NULL:
            why = f"null in every one of {rows:,} rows"
            return self._metric(
                "null_rate", column=name, value=value, threshold=limit, n=rows, status="failing", reason=why
            )
        status = "warning" if value > limit else "ok"
        return self._metric("null_rate", column=name, value=value, threshold=limit, n=rows, status=status)

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

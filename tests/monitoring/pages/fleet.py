"""A scored night of the toy whose numbers are all good, and ways to spoil one of them: what the landing page is tested
on.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

from config.calendar import ONE_DAY, Interval
from lake.lake import Lake
from lake.metrics import Metric, publish_metrics
from monitoring.pages.page import Context, Role, Viewer
from tests.monitoring.scenario import SCORED
from tests.serving.scenario import MODEL

DATASET = "rides"
NIGHT = SCORED.last
MATURE = NIGHT - 2 * ONE_DAY
NOW = datetime(2024, 2, 21, 7, tzinfo=UTC)
FEATURES = ("vehicle_daily__rides_7d", "vehicle_daily__minutes_7d")
OUTPUTS = {"ride_minutes": ("mae", 10.0), "long_probability": ("brier", 0.2)}
COLUMNS = ("ride_minutes", "ride_minutes_lower", "ride_minutes_upper", "long_probability")
REFERENCE = "version 1, trained on 2024-01-15 to 2024-02-09"
VERSION: dict[str, dict[str, Any]] = {
    MODEL: {"reference": REFERENCE, "role": "champion", "model_version": 1},
    DATASET: {},
}
Spoiled = Mapping[tuple[str, str], Mapping[str, Any]]


def context(lake: Lake, role: Role = "operator", now: datetime = NOW, **changed: Any) -> Context:
    given: dict[str, Any] = {"models": (MODEL,), "datasets": (DATASET,), "airflow_url": "", "csrf_token": "token"}
    return Context(lake, Viewer("anna", role), now, **given | changed)


def night(lake: Lake, day: date = NIGHT, spoiled: Spoiled | None = None, *, left_out: tuple[str, ...] = ()) -> None:
    """Drift, performance and quality of one night: good but for `spoiled`, by (check, column); checks `left_out` are
    not there.
    """
    _publish(lake, Interval.of(day), _judged(day, spoiled, left_out))


def nights(lake: Lake, spoiled: Spoiled | None = None, *, count: int = 6, left_out: tuple[str, ...] = ()) -> None:
    """Good nights up to the newest, which is spoiled; committed together, as a history is."""
    days = [NIGHT - timedelta(days=back) for back in range(count - 1, -1, -1)]
    judged = [_judged(day, spoiled if day == NIGHT else None, left_out if day == NIGHT else ()) for day in days]
    together = {key: [row for of_day in judged for row in of_day[key]] for key in judged[0]}
    _publish(lake, Interval(days[0], days[-1] + ONE_DAY), together)


def _publish(lake: Lake, interval: Interval, judged: Mapping[tuple[str, str], list[Metric]]) -> None:
    for (subject, group), rows in judged.items():
        publish_metrics(lake, subject, group, rows, interval, run_id="t")


def _judged(day: date, spoiled: Spoiled | None, left_out: tuple[str, ...]) -> dict[tuple[str, str], list[Metric]]:
    """Rows by subject and group."""
    changes = dict(spoiled or {})

    def row(subject: str, check: str, column: str = "", about: date = day, **values: Any) -> Metric:
        told: dict[str, Any] = (
            {"status": "ok", "n": 40} | VERSION[subject] | values | dict(changes.pop((check, column), {}))
        )
        return Metric(subject, about, day, check, column=column, **told)

    drift = [row(MODEL, "volume", value=40.0), row(MODEL, "drift_share", value=0.0, threshold=0.3, n=2)]
    drift += [row(MODEL, "drift_psi", name, value=0.1, threshold=0.2) for name in FEATURES]
    drift += [row(MODEL, "null_rate", name, value=0.0, threshold=0.05) for name in FEATURES]
    drift += [row(MODEL, "prediction_drift", name, value=0.1, threshold=0.2) for name in COLUMNS]
    about = day - 2 * ONE_DAY
    errors = []
    for name, (gate, level) in OUTPUTS.items():
        shifted = level * (1 + 0.01 * (about.day % 3))
        errors.append(row(MODEL, gate, name, about, value=0.8 * shifted, lower=0.7 * level, upper=0.9 * level))
        errors.append(row(MODEL, f"{gate}_baseline", name, about, value=level))
        errors.append(row(MODEL, "error_ratio", name, about, value=0.8, threshold=0.88))
    quality = [row(DATASET, "quality_score", table, value=1.0, threshold=0.99) for table in ("bookings", "outcomes")]
    quality += [row(DATASET, "bad_share", table, value=0.0, threshold=0.01) for table in ("bookings", "outcomes")]
    extra = [Metric(MODEL, day, day, check, column=column, **values) for (check, column), values in changes.items()]
    groups = {(MODEL, "drift"): drift + extra, (MODEL, "performance"): errors, (DATASET, "validate"): quality}
    return {key: [row for row in rows if row.check not in left_out] for key, rows in groups.items()}

"""When a model is retrained, and when somebody is told."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

from config.calendar import ONE_DAY
from config.catalog.base import Model, Name
from config.durations import Duration

# How often the DAG `watch` looks after late nights, failures and alarms.
WATCH_MINUTES = 10


class DriftPolicy(Model):
    """Drift alarms: a column's limit is the `limit_quantile` of the statistic over windows inside training; `share` of
    columns alarms.
    """

    method: Literal["psi", "ks"] = "psi"
    window: Duration = ONE_DAY
    limit_quantile: float = Field(0.99, gt=0.5, lt=1)
    share: float = Field(0.3, gt=0, le=1)


class PerformancePolicy(Model):
    """Alarm when error over baseline in the last mature `nights` exceeds the gate's ratio by `worse_by` (relative)."""

    worse_by: float = Field(0.1, gt=0)
    nights: int = Field(14, ge=1)


class Retrain(Model):
    """When to ask for a retraining."""

    every: Duration | None = None
    drift: DriftPolicy = DriftPolicy()
    performance: PerformancePolicy = PerformancePolicy()
    cooldown: Duration = timedelta(days=7)


AlertSeverity = Literal["warning", "critical"]


class AccuracyDrop(Model):
    """Alarm when a check of an output gets worse by `by` from one judged night to the next."""

    rule: Literal["accuracy_drop"]
    name: Name = "accuracy_drop"
    check: str = Field("accuracy", description="a check of the group `performance` that outputs have")
    outputs: tuple[Name, ...] | None = Field(
        None, description="None: every output that has the check; accuracy is a binary output's"
    )
    by: float = Field(0.05, gt=0, description="in the check's own unit")
    worse: Literal["lower", "higher"] = Field(
        "lower", description="which way is worse: an accuracy lower, an error higher"
    )
    severity: AlertSeverity = "critical"


class ConsecutiveFailures(Model):
    """Alarm when so many runs of one kind (ingest, score, monitor, train) failed one after the other, up to the
    newest.
    """

    rule: Literal["consecutive_failures"]
    name: Name = "consecutive_failures"
    count: int = Field(2, ge=1)
    severity: AlertSeverity = "critical"


class LateNight(Model):
    """Alarm when a night is not scored at the model's deadline."""

    rule: Literal["late"]
    name: Name = "late"
    severity: AlertSeverity = "warning"


AlertRule = Annotated[AccuracyDrop | ConsecutiveFailures | LateNight, Field(discriminator="rule")]

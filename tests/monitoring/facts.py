"""What alarms and digests rest on, put where stages would have put it: publications, runs, metrics."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from config.calendar import Interval
from features.labels import newest_mature
from lake.lake import Lake
from lake.lineage import publications_table
from lake.metrics import Metric, publish_metrics
from monitoring.alerting.runs import Kind, Run, record_run


def publish_night(lake: Lake, table: str, night: date, at: datetime) -> None:
    """A line of the index of publications, as a publish leaves it."""
    _ = lake.publications  # makes the table
    values = {
        "table_name": table,
        "data_date": night,
        "version": 1,
        "digest": "d",
        "row_count": 1,
        "run_id": "r",
        "committed_at": at,
    }
    with lake.engine.begin() as connection:
        connection.execute(
            publications_table.insert().values(
                **values, code_version="c", catalog_digest="c", inputs="[]", details="{}"
            )
        )


def ran(lake: Lake, subject: str, kind: Kind, night: date, at: datetime, state: str = "success", **given: Any) -> Run:
    """A run of that night on record, which ended when it began."""
    run = Run(
        f"{subject}_{kind}",
        f"{kind} {night} {at}",
        subject,
        kind,
        night.isoformat(),
        state,
        at,
        None if state == "running" else at,
        **given,
    )
    record_run(lake, run, at=at)
    return run


def metric(
    lake: Lake,
    subject: str,
    night: date,
    statuses: dict[str, str],
    group: str = "drift",
    check: str = "drift_psi",
    reason: str = "too far",
) -> None:
    """The night of a group: the status of each column, for example `{"x": "failing"}`, beside all that has to be judged
    in any night, which is well.
    """
    rows = [
        Metric(subject, night, night, check, status, column, value=0.4, threshold=0.3, reason=reason)  # type: ignore[arg-type]  # a value that the test varies
        for column, status in statuses.items()
    ]
    well = {
        "drift": ("volume/", "drift_share/", "prediction_drift/ride_minutes"),
        "quality": ("quality_score/bookings", "quality_score/outcomes"),
    }
    for name in well.get(group, ()):
        usual, column = name.split("/")
        rows.append(Metric(subject, night, night, usual, "ok", column, value=1.0))
    publish_metrics(lake, subject, group, rows, Interval.of(night), run_id="r")


def performance(lake: Lake, model: str, night: date) -> None:
    """Errors of every output of the night whose labels have matured by `night`."""
    about = newest_mature(lake, model, night)
    rows = [
        Metric(model, about, night, check, "ok", output, value=0.5, n=10)
        for output, declared in lake.model(model).outputs.items()
        for check in (declared.gate, "error_ratio")
    ]
    publish_metrics(lake, model, "performance", rows, Interval.of(night), run_id="r")

"""Notes on runs: why a retraining started, readable on the run itself."""

from __future__ import annotations

from typing import Any

import structlog
from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin


class RunNotes:
    """Runs in the scheduler; a task cannot note its own run."""

    @hookimpl  # type: ignore[untyped-decorator]  # airflow ships no types for it
    def on_dag_run_running(self, dag_run: Any, msg: str) -> None:
        """Write the reason of the consumed request onto a run that has no note yet."""
        if not dag_run.dag_id.endswith("_train") or dag_run.note:
            return
        reasons = [event.extra["reason"] for event in dag_run.consumed_asset_events if event.extra and "reason" in event.extra]
        reason = reasons[0] if reasons else (dag_run.conf or {}).get("reason")
        if reason:
            dag_run.note = f"requested by {reason}"[:900]
            structlog.get_logger(__name__).info("run noted", dag_id=dag_run.dag_id, run_id=dag_run.run_id, note=dag_run.note)


class NightfleetNotes(AirflowPlugin):  # type: ignore[misc]  # airflow ships no types for it
    """Registers the listener."""

    name = "nightfleet_notes"
    listeners = [RunNotes()]  # noqa: RUF012 (Airflow wants a list)

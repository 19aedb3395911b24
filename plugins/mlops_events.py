"""Binds to each task's log what night it is about, so that its lines can be followed from ingest to report."""

from __future__ import annotations

from typing import Any

import structlog
from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

from config.catalog.load import load_catalog


class TaskEvents:
    """Runs in the task's own process, before the task does."""

    @hookimpl  # type: ignore[untyped-decorator]  # airflow ships no types for it
    def on_task_instance_running(self, previous_state: Any, task_instance: Any) -> None:
        """Bind subject, data date and correlation id; run, DAG and task are bound by Airflow itself."""
        from lake.events import correlation_id, use_task_log

        use_task_log(structlog.get_logger("nightfleet.events"))
        context = task_instance.get_template_context()
        dag_run, params = context["dag_run"], context["params"]
        interval = "..".join(str(params[name]) for name in ("start", "end") if params.get(name))
        nights = dag_run.partition_key or interval
        by_form = dag_run.dag_id in {"rollback", "rollout"}
        subject = str(params.get("model") or "") if by_form else dag_run.dag_id.rpartition("_")[0]
        if not nights or not subject:
            return  # of a rollback, a rollout or a watch no one night is the cause
        structlog.contextvars.bind_contextvars(
            subject=subject, data_date=nights, correlation_id=correlation_id(load_catalog(), subject, nights)
        )


class NightfleetEvents(AirflowPlugin):  # type: ignore[misc]  # airflow ships no types for it
    """Registers the listener."""

    name = "nightfleet_events"
    listeners = [TaskEvents()]  # noqa: RUF012 (Airflow wants a list)

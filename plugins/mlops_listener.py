"""Notes on runs, and runs on record: why a training started is readable on the run itself, and what ran outlives
Airflow's own database.

Airflow calls this in the scheduler (and the api-server, when a person sets a state) with every change of a run, and in
a task's process when it fails. Nothing here may raise or keep the scheduler waiting: what a busy database does not take
within a second is kept, and written with a later event.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog
from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    import sqlalchemy as sa

    from monitoring.alerting.runs import Run

_SCHEDULER_SECONDS, _TASK_SECONDS = 1.0, 10.0
_PAUSE_SECONDS = 5.0
_MOST_KEPT = 10_000
log = structlog.get_logger(__name__)


class RunNotes:
    """Writes the reason of the consumed request onto a training run that has no note yet; a task cannot note its own
    run.
    """

    @hookimpl  # type: ignore[untyped-decorator]  # airflow ships no types for it
    def on_dag_run_running(self, dag_run: Any, msg: str) -> None:
        """The run starts."""
        if not dag_run.dag_id.endswith("_train") or dag_run.note:
            return
        reasons = [
            event.extra["reason"] for event in dag_run.consumed_asset_events if event.extra and "reason" in event.extra
        ]
        reason = reasons[0] if reasons else (dag_run.conf or {}).get("reason")
        if reason:
            dag_run.note = f"requested by {reason}"[:900]
            log.info("run noted", dag_id=dag_run.dag_id, run_id=dag_run.run_id, note=dag_run.note)


class RunRecords:
    """Stores every run of the catalog's DAGs in the SQL table `runs`."""

    def __init__(self) -> None:
        self._kept: deque[Callable[[sa.Engine], None]] = deque(maxlen=_MOST_KEPT)
        self._not_before = 0.0

    # Last of the listeners, so that the note is there.
    @hookimpl(trylast=True)  # type: ignore[untyped-decorator]  # airflow ships no types for it
    def on_dag_run_running(self, dag_run: Any, msg: str) -> None:
        """The run starts."""
        self._state(dag_run, "running")

    @hookimpl  # type: ignore[untyped-decorator]  # airflow ships no types for it
    def on_dag_run_success(self, dag_run: Any, msg: str) -> None:
        """The run ended well."""
        self._state(dag_run, "success")

    @hookimpl  # type: ignore[untyped-decorator]  # airflow ships no types for it
    def on_dag_run_failed(self, dag_run: Any, msg: str) -> None:
        """The run failed."""
        self._state(dag_run, "failed")

    @hookimpl  # type: ignore[untyped-decorator]  # airflow ships no types for it
    def on_task_instance_failed(self, previous_state: Any, task_instance: Any, error: Any) -> None:
        """A task failed, perhaps to be tried again."""
        try:
            self._failure(task_instance, error)
        except Exception as problem:  # noqa: BLE001 (a record that cannot be made must not end a task another way)
            log.warning(
                "a task's failure was not recorded", task_id=getattr(task_instance, "task_id", None), why=repr(problem)
            )

    def _state(self, dag_run: Any, state: str) -> None:
        from monitoring.alerting.runs import record_run

        try:
            run = described_run(dag_run, state)
            if run is not None:
                at = datetime.now(UTC)
                self._write(lambda engine: record_run(engine, run, at=at), _SCHEDULER_SECONDS)
        except Exception as problem:  # noqa: BLE001 (whatever is wrong here, the scheduler goes on)
            log.warning("a run was not recorded", dag_id=getattr(dag_run, "dag_id", None), why=repr(problem))

    def _failure(self, task_instance: Any, error: Any) -> None:
        from monitoring.alerting.runs import record_failure

        # In the task's own process; a scheduler or an api-server that ends a task hands over the row of its database.
        context = getattr(task_instance, "_ti_context_from_server", None)
        dag_run = context.dag_run if context is not None else getattr(task_instance, "dag_run", None)
        if dag_run is None:
            return
        run = described_run(dag_run, "running")
        if run is None:
            return
        at, task = datetime.now(UTC), task_instance.task_id
        seconds = _TASK_SECONDS if context is not None else _SCHEDULER_SECONDS
        # A task's process has no later event to wait for.
        self._write(
            lambda engine: record_failure(engine, run, task=task, error=error_text(error), at=at),
            seconds,
            last=context is not None,
        )

    def _write(self, write: Callable[[sa.Engine], None], seconds: float, *, last: bool = False) -> None:
        """Write this and what was kept before it, in order; keep it all for later where the database does not
        answer.
        """
        from config.settings import load_settings
        from monitoring.alerting.runs import impatient_engine

        self._kept.append(write)
        if time.monotonic() < self._not_before and not last:
            return
        try:
            settings = load_settings()
            settings.home.mkdir(parents=True, exist_ok=True)
            engine = impatient_engine(settings.database_url, seconds)
            while self._kept:
                self._kept[0](engine)
                self._kept.popleft()
        except Exception as problem:  # noqa: BLE001 (a locked or absent database; anything else would fail again later, visibly)
            self._not_before = time.monotonic() + _PAUSE_SECONDS
            log.warning("runs are kept to be recorded later", kept=len(self._kept), why=repr(problem)[:500])


def described_run(dag_run: Any, state: str) -> Run | None:
    """What is recorded of a run of Airflow's; None for a DAG that is not one of ours."""
    from monitoring.alerting.runs import FAILED, RUNNING, Run, described

    about = described(dag_run.dag_id, getattr(dag_run, "conf", None))
    if about is None:
        return None
    subject, kind = about
    note = None
    with contextlib.suppress(Exception):  # a run that is detached from its session cannot say
        note = dag_run.note
    return Run(
        dag_id=dag_run.dag_id,
        run_id=dag_run.run_id,
        subject=subject,
        kind=kind,
        partition_key=getattr(dag_run, "partition_key", None),
        state=state,
        started_at=dag_run.start_date or datetime.now(UTC),
        ended_at=None if state == RUNNING else (dag_run.end_date or datetime.now(UTC)),
        note=note,
        failed_task=first_failed_task(dag_run) if state == FAILED else None,
    )


def first_failed_task(dag_run: Any) -> str | None:
    """The task of a failed run that failed first, for good; None where Airflow's database does not say."""
    with contextlib.suppress(Exception):
        from sqlalchemy.orm import object_session

        session = object_session(dag_run)
        if session is not None:
            failed = dag_run.fetch_task_instances(
                dag_id=dag_run.dag_id, run_id=dag_run.run_id, state="failed", session=session
            )
            ended = sorted((ti.end_date or datetime.max.replace(tzinfo=UTC), ti.task_id) for ti in failed)
            return ended[0][1] if ended else None
    return None


def error_text(error: Any) -> str:
    """What a person reads of an error: its own words, with its kind where they do not begin with it."""
    if error is None:
        return "it ended without a message: killed, or out of memory"
    if isinstance(error, str):
        return error
    kind, text = type(error).__name__, str(error)
    if text.startswith(kind):
        return text
    return f"{kind}: {text}" if text else kind


class NightfleetRuns(AirflowPlugin):  # type: ignore[misc]  # airflow ships no types for it
    """Registers the listeners."""

    name = "nightfleet_runs"
    listeners = [RunRecords(), RunNotes()]  # noqa: RUF012 (Airflow wants a list)

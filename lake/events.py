"""What each stage did, as events with fields, bound together by the night that caused them.

A stage says when it began and how it ended: `stage`, `subject`, `data_date`, `run_id`, `correlation_id`, and at its end
`rows`, `committed` (partitions, 0 where they were there already) and `seconds`. The correlation id names the data set
and the night, so that ingest, scores, monitoring and trainings of one night share it, whichever run they belong to.
Every other line that is logged meanwhile carries it too.

In a task of Airflow events go to the task's log. Elsewhere they are lines of JSON in `<home>/logs/events.jsonl`: what a
person reads in a terminal stays as it is. A file that has grown large is renamed `events-<instant>.jsonl`. They are
not synced to the disk, on purpose: nothing is computed from them, and a power cut costs the last lines alone.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import date
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import structlog
from structlog.contextvars import bound_contextvars

from config.calendar import Interval
from config.catalog.load import Catalog
from lake.lake import Lake, StageResult
from lake.leftovers import rotate

EVENTS_FILE = "events.jsonl"
P = ParamSpec("P")
R = TypeVar("R")
_task_log: ContextVar[Any] = ContextVar("task_log", default=None)


def correlation_id(catalog: Catalog, subject: str, nights: str) -> str:
    """`<data set>/<data date>`, of an interval `<data set>/<first>..<last>`: the same for all that one night causes.

    Args:
        subject: a data set or a model; of one that the catalog does not have, its own name is used.
        nights: as text; a data date or an interval.
    """
    names = {dataset.name for dataset in catalog.datasets}
    of_model = {model.name: model.dataset for model in catalog.models}
    return f"{subject if subject in names else of_model.get(subject, subject)}/{nights}"


def use_task_log(log: Any) -> None:
    """From here on this process' events go to that structlog logger: the log of the Airflow task it runs."""
    _task_log.set(log)


@contextmanager
def stage_events(
    lake: Lake, stage: str, subject: str, *, nights: str | None = None, run_id: str | None = None
) -> Iterator[dict[str, Any]]:
    """Log begin and end, or failure, of what happens inside; yields a dictionary for more fields of the end.

    Args:
        nights: data date or interval, as text; None: that of the task, as it is bound already.
        run_id: None: as it is bound already.
    """
    fields: dict[str, Any] = {"stage": stage, "subject": subject}
    if nights is not None:
        fields |= {"data_date": nights, "correlation_id": correlation_id(lake.catalog, subject, nights)}
    if run_id is not None:
        fields["run_id"] = run_id
    with _logger(lake) as log, bound_contextvars(**fields):
        log.info("stage began")
        began = time.monotonic()
        told: dict[str, Any] = {}
        try:
            yield told
        except BaseException as error:
            problem = (str(error).splitlines() or [""])[0][:500]
            log.error(
                "stage failed", error=type(error).__name__, problem=problem, seconds=round(time.monotonic() - began, 3)
            )
            raise
        log.info("stage ended", **told, seconds=round(time.monotonic() - began, 3))


def logged(stage: str) -> Callable[[Callable[Concatenate[Lake, str, P], R]], Callable[Concatenate[Lake, str, P], R]]:
    """Decorate a stage `(lake, subject, nights, ..., run_id=...)`: its begin and end are events, with rows and
    partitions of its `StageResult`.
    """

    def decorate(function: Callable[Concatenate[Lake, str, P], R]) -> Callable[Concatenate[Lake, str, P], R]:
        @functools.wraps(function)
        def run(lake: Lake, subject: str, /, *arguments: P.args, **named: P.kwargs) -> R:
            given = arguments[0] if arguments else named.get("interval", named.get("data_date"))
            nights = str(given) if isinstance(given, Interval | date) else None
            run_id = named.get("run_id")
            with stage_events(
                lake, stage, subject, nights=nights, run_id=None if run_id is None else str(run_id)
            ) as told:
                result = function(lake, subject, *arguments, **named)
                if isinstance(result, StageResult):
                    told |= {"rows": result.rows, "committed": result.committed}
                return result

        return run

    return decorate


@contextmanager
def _logger(lake: Lake) -> Iterator[Any]:
    log = _task_log.get()
    if log is not None:
        yield log
        return
    path: Path = lake.settings.home / "logs" / EVENTS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    rotate(path, largest_bytes=lake.settings.log_file_mb * 2**20)
    # Opened for each stage, to append: processes share the file, and each event is one write.
    with path.open("a", encoding="utf-8", buffering=1) as file:
        yield structlog.wrap_logger(
            structlog.WriteLogger(file),
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(default=str),
            ],
            wrapper_class=structlog.BoundLogger,
            cache_logger_on_first_use=False,
        )

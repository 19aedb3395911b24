"""An executor whose workers are forked with the stages' libraries already imported, and whose scheduler rests while
nothing happens.

`AIRFLOW__CORE__EXECUTOR=mlops_executor.WarmLocalExecutor`. Importing only: nothing is computed, opened or connected
before the fork. `NIGHTFLEET_PRELOAD=none` switches it off; a changed library needs a restart of the scheduler.

The scheduler asks its database ten times a second whether there is something to do, so that no task waits. Each time
costs 20-30 ms, also when the answer never changes. Where the database is a file of this machine, the executor holds the
scheduler's loop up as long as nothing runs and nobody writes to that file, for four seconds at most.
"""

from __future__ import annotations

import importlib
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog
from airflow.executors.local_executor import LocalExecutor
from airflow.sdk.configuration import conf

from config.catalog.load import load_catalog
from config.settings import load_settings

_LIBRARIES = (
    "pandas",
    "pyarrow.parquet",
    "duckdb",
    "deltalake",
    "sqlalchemy.dialects.sqlite",
    "great_expectations",
    "feast",
    "mlflow",
    "evidently",
    "evidently.presets",
    "scipy.stats",
    "sklearn.metrics",
)
_STAGES = (
    "features.ingest",
    "features.validate",
    "features.transform",
    "features.materialize",
    "features.training_set",
    "serving.score",
    "serving.projection",
    "training.registry.job",
    "training.registry.runner",
    "training.registry.register",
    "training.registry.gate",
    "training.registry.promotion",
    "training.registry.approval",
    "training.registry.candidates",
    "monitoring.pages.model_card",
    "monitoring.drift",
    "monitoring.performance",
    "monitoring.pages.reports",
    "monitoring.retraining_requests",
)


# What the clock alone starts, a DAG's next run, comes as much later at most.
_LONGEST_REST_SECONDS = 4.0
_LOOK_SECONDS = 0.1


def preload() -> float:
    """Import what tasks of this catalog need, for each trainer that it names; returns seconds."""
    # Sets how TensorFlow computes, so it comes before every library; and the other processes that load this folder's
    # plugins do without it.
    from serving.predictors import FAMILIES, preloaded_libraries

    log = structlog.get_logger(__name__)
    began = time.monotonic()
    settings = load_settings()
    if settings.preload == "none":
        return 0.0
    named = {trainer.family for model in load_catalog(settings).models for trainer in model.trainers}
    # An unknown family is the training's error to show, as a missing library is the task's.
    families = sorted(named & set(FAMILIES))
    libraries = dict.fromkeys(library for family in families for library in preloaded_libraries(family))
    for name in (*_LIBRARIES, *libraries, *_STAGES):
        try:
            importlib.import_module(name)
        except ImportError as error:
            log.warning("not preloaded", library=name, error=str(error))
    seconds = time.monotonic() - began
    log.info("libraries preloaded", seconds=round(seconds, 1))
    return seconds


class WarmLocalExecutor(LocalExecutor):  # type: ignore[misc]  # airflow ships no types for it
    """LocalExecutor that imports before it forks, and rests while nothing happens."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)  # type: ignore[no-untyped-call]
        url = sa.make_url(conf.get("database", "sql_alchemy_conn"))
        of_one_machine = url.get_backend_name() == "sqlite" and url.database not in {None, "", ":memory:"}
        # A write lands in one of them, whichever way SQLite keeps its journal.
        self._database = (Path(str(url.database)), Path(f"{url.database}-wal")) if of_one_machine else ()
        self._seen = self._writes()

    def start(self) -> None:
        """Import, then fork the workers. Only the scheduler calls this."""
        preload()
        super().start()

    def heartbeat(self) -> None:
        """Rest where there is nothing to do, then what every executor does. The scheduler's loop calls this."""
        if not (self.running or self.queued_tasks or self.event_buffer):
            self._rest()
        super().heartbeat()
        self._seen = self._writes()

    def _rest(self) -> None:
        """Wait until somebody writes to the database. Whatever was written since the last round ends the wait at once:
        this round may have looked before it.
        """
        until = time.monotonic() + _LONGEST_REST_SECONDS
        while self._database and self._writes() == self._seen and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)

    def _writes(self) -> tuple[tuple[int, int], ...]:
        """What changes with every write to the database."""
        states = []
        for path in self._database:
            with suppress(FileNotFoundError):  # no journal at this moment
                state = path.stat()
                states.append((state.st_mtime_ns, state.st_size))
        return tuple(states)

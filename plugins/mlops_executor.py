"""An executor whose workers are forked with the stages' libraries already imported.

`AIRFLOW__CORE__EXECUTOR=mlops_executor.WarmLocalExecutor`. Importing only: nothing is computed, opened or connected
before the fork. `NIGHTFLEET_PRELOAD=none` switches it off; a changed library needs a restart of the scheduler.
"""

from __future__ import annotations

import importlib
import time

import structlog
from airflow.executors.local_executor import LocalExecutor

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
    """LocalExecutor that imports before it forks."""

    def start(self) -> None:
        """Import, then fork the workers. Only the scheduler calls this."""
        preload()
        super().start()

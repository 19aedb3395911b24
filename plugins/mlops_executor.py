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
# skops imports all of scikit-learn, to know its types.
_FAMILY_LIBRARIES = {
    "xgboost": "xgboost",
    **dict.fromkeys(("keras", "lstm"), "keras"),
    **dict.fromkeys(("random_forest", "linear", "logistic", "isolation_forest"), "skops.io"),
}


def preload() -> float:
    """Import what tasks of this catalog need; returns seconds."""
    log = structlog.get_logger(__name__)
    began = time.monotonic()
    settings = load_settings()
    if settings.preload == "none":
        return 0.0
    families = {model.trainer.family for model in load_catalog(settings).models}
    libraries = [*_LIBRARIES, *sorted(_FAMILY_LIBRARIES[f] for f in families if f in _FAMILY_LIBRARIES)]
    for name in ("serving.predictors", *libraries, *_STAGES):  # the first sets how TensorFlow computes
        try:
            importlib.import_module(name)
        except ImportError as error:  # a missing library is the task's error to show, not the scheduler's
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

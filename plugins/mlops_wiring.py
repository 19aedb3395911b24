"""What the four DAG files share: partition mapping, retries, names of assets, start dates. Light to import."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import (
    Asset,
    AssetAll,
    Param,
    PartitionedAssetTimetable,
    StartOfDayMapper,
)
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule
from mlops_timetable import KEY_FORMAT, NightlyTimetable

from config.calendar import ONE_DAY
from config.catalog.data import AirflowKnobs, Dataset
from config.catalog.model import ModelEntry
from config.errors import NightfleetError, TransientError

# Trying again cannot fix a rejected partition or a missing champion: only what may pass by itself is tried again.
RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        RetryRule(exception=TransientError, action=RetryAction.RETRY),
        RetryRule(exception=NightfleetError, action=RetryAction.FAIL, reason="the error's own text says what to do"),
    ]
)

INTERVAL_FORM = {
    "start": Param(
        None,
        type=["null", "string"],
        format="date",
        description="First data date. Leave both empty when a partition key is given.",
    ),
    "end": Param(None, type=["null", "string"], format="date", description="Last data date, included."),
}


def features_asset(dataset: str) -> Asset:
    """Emitted, keyed by data date, when a night's features are published and online."""
    return Asset(name=f"{dataset}/features", uri=f"nightfleet://{dataset}/features")


def features_of_all(datasets: Sequence[Dataset]) -> Asset | AssetAll:
    """The features of one night of several data sets: a night counts when all of them are published."""
    assets = [features_asset(dataset.name) for dataset in datasets]
    return assets[0] if len(assets) == 1 else AssetAll(*assets)


def predictions_asset(model: str) -> Asset:
    """Emitted, keyed by data date, when a night's predictions are published and in SQL."""
    return Asset(name=f"{model}/predictions", uri=f"nightfleet://{model}/predictions")


def retraining_asset(model: str) -> Asset:
    """Emitted, keyed by the as-of data date, with the evidence as extra, when somebody or something asks for a
    retraining.
    """
    return Asset(name=f"{model}/retraining", uri=f"nightfleet://{model}/retraining")


def on_asset(asset: Asset | AssetAll, time_zone: str) -> PartitionedAssetTimetable:
    """One run per partition key of the asset, or that all joined ones have; the mapper refuses keys that are no date
    and keeps the partition date.
    """
    # Airflow's default mapper accepts any text as a key, and drops the partition date.
    mapper = StartOfDayMapper(timezone=time_zone, input_format=KEY_FORMAT, output_format=KEY_FORMAT)
    return PartitionedAssetTimetable(assets=asset, default_partition_mapper=mapper)


def nightly(time_zone: str) -> NightlyTimetable:
    """The cutoff of each data date, for the day that has just ended. Airflow back-fills other hours wrongly."""
    return NightlyTimetable(time_zone)


def _midnight(day: date, time_zone: str) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(time_zone))


def first_midnight(dataset: Dataset) -> datetime:
    """start_date of the ingest DAG."""
    return _midnight(dataset.first_data_date, dataset.time_zone)


def last_midnight(dataset: Dataset) -> datetime | None:
    """end_date of a replay: without one, a run of today would start at once. None for a live data set."""
    return _midnight(dataset.replay.last + ONE_DAY, dataset.time_zone) if dataset.replay else None


def task_defaults(entry: Dataset | ModelEntry) -> dict[str, Any]:
    """default_args of a DAG, from the catalog."""
    knobs: AirflowKnobs = entry.airflow
    return {
        "owner": entry.owner,
        "retries": knobs.retries,
        "retry_delay": timedelta(seconds=5),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=10),
        "retry_policy": RETRY_POLICY,
        "pool": knobs.pool,
        "execution_timeout": timedelta(minutes=knobs.timeout_minutes),
    }


def training_pool(model: ModelEntry) -> dict[str, Any]:
    """Pool and slots of a training: one slot a GPU where GPUs are demanded, else one a GB of memory."""
    wanted = model.training
    if isinstance(wanted.gpus, int) and wanted.gpus > 0:
        return {"pool": "training_gpu", "pool_slots": wanted.gpus * wanted.workers}
    return {"pool": "training", "pool_slots": math.ceil(wanted.memory_gb * wanted.workers)}

"""How Feast materializes here: one query for the newest row of each entity, encoded and written by columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from feast.infra.common.materialization_job import MaterializationJob, MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.base import ComputeEngine
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel

from features.online_store import NewestWinsSqliteOnlineStore


class ColumnarComputeEngineConfig(FeastConfigBaseModel):  # type: ignore[misc]  # Feast ships no types
    """Configuration of the engine: it has none."""

    type: Literal["features.compute_engine.ColumnarComputeEngine", "nightfleet_stores.ColumnarComputeEngine"] = (
        "features.compute_engine.ColumnarComputeEngine"
    )


@dataclass
class Materialized(MaterializationJob):  # type: ignore[misc]  # Feast ships no types
    """A materialization that is done. `rows`: entities whose newest row lay in the window."""

    task: MaterializationTask
    rows: int

    def status(self) -> MaterializationJobStatus:
        """It ran to its end, or raised."""
        return MaterializationJobStatus.SUCCEEDED

    def error(self) -> BaseException | None:
        """None: errors are raised where they happen."""
        return None

    def should_be_retried(self) -> bool:
        """No; whoever runs the stage retries it."""
        return False

    def job_id(self) -> str:
        """View and window."""
        return f"{self.task.feature_view.name}-{self.task.start_time}-{self.task.end_time}"

    def url(self) -> str | None:
        """It has no page."""
        return None


class ColumnarComputeEngine(ComputeEngine):  # type: ignore[misc]  # Feast ships no types
    """Writes each view's window as one Arrow table."""

    def update(
        self,
        project: str,
        views_to_delete: Sequence[Any],
        views_to_keep: Sequence[Any],
        entities_to_delete: Any,
        entities_to_keep: Any,
    ) -> None:
        """Nothing to prepare."""

    def teardown_infra(self, project: str, fvs: Sequence[Any], entities: Sequence[Any]) -> None:
        """Nothing to take down."""

    def _materialize_one(self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any) -> Materialized:
        view = task.feature_view
        source = view.batch_source
        assert source is not None  # generated from the catalog, which gives every view one
        assert isinstance(self.online_store, NewestWinsSqliteOnlineStore)
        job = self.offline_store.pull_latest_from_table_or_query(
            config=self.repo_config,
            data_source=source,
            join_key_columns=[column.name for column in view.entity_columns],
            feature_name_columns=[feature.name for feature in view.features],
            timestamp_field=source.timestamp_field,
            created_timestamp_column=None,
            start_date=task.start_time,
            end_date=task.end_time,
        )
        return Materialized(task, self.online_store.write_columns(self.repo_config, view, job.to_arrow()))

"""Every DAG of the catalog: parsed, documented, chained, and refusing what it must refuse."""

from __future__ import annotations

from datetime import UTC, datetime, time
from typing import NamedTuple

import pytest

from config.calendar import BadInterval, Interval, requested_interval
from config.catalog.load import load_catalog
from config.errors import NightfleetError, TransientError

CATALOG = load_catalog()
DATASET_DAGS = [f"{d.name}_{kind}" for d in CATALOG.datasets for kind in ("ingest", "history")]
MODEL_DAGS = [f"{m.name}_{kind}" for m in CATALOG.models for kind in ("train", "score", "monitor")]


def test_every_file_parses_and_the_catalog_decides_what_there_is(dag_bag) -> None:
    assert not dag_bag.import_errors, f"{next(iter(dag_bag.import_errors.items()))}"
    assert sorted(dag_bag.dag_ids) == sorted(
        [*DATASET_DAGS, *MODEL_DAGS, "maintenance", "rollback", "rollout", "watch"]
    )


@pytest.mark.parametrize("dag_id", DATASET_DAGS + MODEL_DAGS)
def test_an_operator_finds_help_on_every_dag_and_task(dag_bag, dag_id) -> None:
    dag = dag_bag.dags[dag_id]
    for word in ("Reads", "Writes", "Rerun", "Fails"):
        assert word in (dag.doc_md or ""), (
            f"{dag_id}: the file's docstring must have a line on what it {word.lower()}; it is what the UI shows."
        )
    assert dag.tags, f"{dag_id} has no tags: set them in its DAG(...)."
    assert dag.owner_links, f"{dag_id} has no owner_links: set owner_url in the catalog."
    assert dag.max_active_runs == 1, f"{dag_id}: two runs of one partition must not run at once."
    for task in dag.tasks:
        assert task.doc_md or task.task_id == "wait_until_ready", (
            f"{dag_id}.{task.task_id} has no doc_md: say in one line what it does."
        )
        assert task.owner == dag.default_args["owner"] != "airflow"
        assert task.execution_timeout is not None
        assert task.retries == dag.default_args["retries"]


def test_runs_are_chained_by_partitioned_assets(dag_bag) -> None:
    for model in CATALOG.models:
        outlets = {asset.name for dag in dag_bag.dags.values() for task in dag.tasks for asset in task.outlets}
        for kind in ("score", "monitor", "train"):
            dag = dag_bag.dags[f"{model.name}_{kind}"]
            wanted = {dag.timetable.asset_condition.name}
            assert wanted <= outlets, f"{dag.dag_id} waits for {wanted - outlets}, which no task emits."


def test_history_starts_no_scoring(dag_bag) -> None:
    for dataset in CATALOG.datasets:
        assert not any(task.outlets for task in dag_bag.dags[f"{dataset.name}_history"].tasks)


def test_a_replay_keeps_quiet_about_today(dag_bag) -> None:
    for dataset in CATALOG.datasets:
        dag = dag_bag.dags[f"{dataset.name}_ingest"]
        if dataset.replay:
            assert dag.end_date is not None
            assert dag.end_date < datetime.now(UTC), (
                f"{dag.dag_id}: without an end date in the past one run of today would start at once."
            )


def test_a_dry_run_is_not_the_default(dag_bag) -> None:
    for model in CATALOG.models:
        params = dag_bag.dags[f"{model.name}_train"].params
        assert params["dry_run"] is False
        assert {"reason", "overrides", "dry_run"} <= set(params)


def test_a_key_that_is_no_date_is_refused(dag_bag) -> None:
    from mlops_wiring import features_asset, on_asset

    mapper = on_asset(features_asset("flights"), "America/New_York").default_partition_mapper
    assert mapper.input_format == "%Y-%m-%d"  # type: ignore[attr-defined]  # of this mapper alone


def test_a_run_without_a_key_says_how_to_give_one() -> None:
    with pytest.raises(BadInterval, match="Trigger it again with a partition key, YYYY-MM-DD"):
        requested_interval(None)
    with pytest.raises(BadInterval, match="only one end was given"):
        requested_interval(None, "2013-07-01", None)
    with pytest.raises(BadInterval, match="'2013-7-1' is not a valid data date"):
        requested_interval("2013-7-1")
    assert len(requested_interval(None, "2013-07-01", "2013-07-03")) == 3
    assert requested_interval("2013-07-01") == Interval.of(datetime(2013, 7, 1).date())


def test_only_what_may_pass_by_itself_is_tried_again() -> None:
    from airflow.sdk.definitions.retry_policy import RetryAction
    from mlops_wiring import RETRY_POLICY

    assert RETRY_POLICY.evaluate(NightfleetError("x"), 1, 3).action is RetryAction.FAIL
    assert RETRY_POLICY.evaluate(TransientError("x"), 1, 3).action is RetryAction.RETRY
    assert RETRY_POLICY.evaluate(ValueError("x"), 1, 3).action is RetryAction.DEFAULT


def test_a_live_night_waits_for_its_hour() -> None:
    from mlops_ready import ready_at

    assert ready_at("2013-07-01", "America/New_York", time(2)) == datetime(2013, 7, 2, 6, tzinfo=UTC)
    assert ready_at("2013-03-09", "America/New_York", time(4)) == datetime(
        2013, 3, 10, 8, tzinfo=UTC
    )  # the clocks went forward at 2


class Ended(NamedTuple):
    task_id: str
    state: str


def test_alarms_run_whatever_failed_and_do_not_make_the_run_green(dag_bag) -> None:
    from airflow.models.dagrun import DagRun

    for model in CATALOG.models:
        dag = dag_bag.dags[f"{model.name}_monitor"]
        alarms = dag.get_task("alarms")
        assert alarms.is_teardown, (
            "a last task that is no teardown decides the run's state alone: a failed night would be green."
        )
        assert not alarms.on_failure_fail_dagrun
        assert alarms.upstream_task_ids == {"report", "rollout", "request"}
        assert alarms.trigger_rule == "all_done_setup_success"
        every = [Ended(task.task_id, "success") for task in dag.tasks]
        decisive = DagRun()._tis_for_dagrun_state(dag=dag, tis=every)  # type: ignore[arg-type]  # only names and states are looked at
        assert {ti.task_id for ti in decisive} == {"report", "rollout", "request"}


def test_the_watch_looks_every_ten_minutes_and_never_at_what_it_missed(dag_bag) -> None:
    dag = dag_bag.dags["watch"]
    assert dag.timetable.expression == "*/10 * * * *"
    assert (dag.catchup, dag.max_active_runs) == (False, 1)
    [task] = dag.tasks
    assert task.retries == 2


@pytest.mark.parametrize(
    ("now", "first"), [("2026-03-04T09:00", "2026-03-08T11:30"), ("2026-03-08T11:31", "2026-03-08T11:30")]
)
def test_a_new_installation_is_not_cleaned_at_once(
    dag_bag, monkeypatch: pytest.MonkeyPatch, now: str, first: str
) -> None:
    """The second case: the scheduler looks a minute late."""
    from airflow.serialization.serialized_objects import DagSerialization
    from airflow.timetables.base import TimeRestriction

    dag = DagSerialization.from_dict(DagSerialization.to_dict(dag_bag.dags["maintenance"]))
    monkeypatch.setattr("airflow.timetables.trigger.utcnow", lambda: datetime.fromisoformat(f"{now}:00+00:00"))
    assert dag.start_date is None
    restriction = TimeRestriction(None, None, dag.catchup)
    wanted = dag.timetable.next_dagrun_info(last_automated_data_interval=None, restriction=restriction)
    assert wanted.run_after.isoformat() == f"{first}:00+00:00"


def test_scoring_waits_for_the_features_of_every_data_set_of_the_night() -> None:
    from airflow.assets.evaluation import AssetEvaluator
    from airflow.serialization.definitions.assets import SerializedAssetUniqueKey
    from airflow.serialization.encoders import ensure_serialized_asset
    from mlops_wiring import features_asset, features_of_all, on_asset
    from sqlalchemy.orm import Session

    assert features_of_all(CATALOG.datasets[:1]) == features_asset(CATALOG.datasets[0].name)
    first, second = CATALOG.datasets[:2]
    timetable = on_asset(features_of_all((first, second)), "America/New_York")
    condition = ensure_serialized_asset(timetable.asset_condition)
    keys = [
        SerializedAssetUniqueKey(name=asset.name, uri=asset.uri)
        for asset in (features_asset(first.name), features_asset(second.name))
    ]
    evaluator = AssetEvaluator(Session())  # asked for aliases alone, and there is none
    assert not evaluator.run(condition, statuses={keys[0]: True})
    assert not evaluator.run(condition, statuses={keys[1]: True})
    assert evaluator.run(condition, statuses=dict.fromkeys(keys, True))

"""Bring one data date of a data set from its sources to the online store.

Reads    the sources named in the catalog, for one data date (the partition key) or, in `<dataset>_history`, for an
         interval in bulk.
Writes   raw, valid, quarantine, features and quality metrics of that date, then Feast's online store.
Rerun    idempotent: nothing is committed while the rows are equal. `SourceChanged`: the source no longer holds what was
         published; the next night lands the difference as revisions, or `python -m cli restate` rewrites on purpose.
Fails    `DataRejected`: too many bad rows. Look at the quarantine and the data docs, fix the source, restate, clear.
         `PartitionNotReady`: run the nights it names first.
         `SourceMissing`, `SourceSchemaMismatch`: the owner of the source must act.
"""

from typing import Any

from airflow.sdk import DAG, Asset, task
from mlops_links import add_links
from mlops_ready import WaitUntilReady
from mlops_wiring import INTERVAL_FORM, features_asset, first_midnight, last_midnight, nightly, task_defaults

from config.catalog.load import load_catalog


@task(
    doc_md="Land the rows that became knowable in the night, as they are; late and corrected rows become revisions. "
    "Failed with `SourceSchemaMismatch` or `SourceMissing`: nothing was written. The source's owner must act; then "
    "clear this task."
)
def ingest(dataset_name: str, dag_run: Any = None, params: Any = None) -> dict[str, Any]:
    from config.calendar import requested_interval
    from features.ingest import ingest
    from lake.lake import open_lake

    days = requested_interval(dag_run.partition_key, params.get("start"), params.get("end"))
    return ingest(open_lake(), dataset_name, days, run_id=dag_run.run_id).to_json()


@task(
    doc_md="Move bad rows to quarantine with every rule they broke; stop the night when too many are bad. "
    "Failed with `DataRejected`: the link *Data of the night* shows rows and rules. Fix the source, restate the "
    "night, clear this task."
)
def validate(dataset_name: str, dag_run: Any = None, params: Any = None) -> dict[str, Any]:
    from config.calendar import requested_interval
    from features.validate import validate
    from lake.lake import open_lake

    days = requested_interval(dag_run.partition_key, params.get("start"), params.get("end"))
    return validate(open_lake(), dataset_name, days, run_id=dag_run.run_id).to_json()


@task(
    doc_md="Run the SQL of every feature view over what the night may know, and publish one partition per view. "
    "Failed with `PartitionNotReady`: run the nights it names, oldest first, then clear this task."
)
def transform(dataset_name: str, dag_run: Any = None, params: Any = None) -> dict[str, Any]:
    from config.calendar import requested_interval
    from features.transform import transform
    from lake.lake import open_lake

    days = requested_interval(dag_run.partition_key, params.get("start"), params.get("end"))
    return transform(open_lake(), dataset_name, days, run_id=dag_run.run_id).to_json()


def materialize(dataset_name: str, dag_run: Any = None, params: Any = None) -> dict[str, Any]:
    from config.calendar import requested_interval
    from features.materialize import materialize
    from lake.lake import open_lake

    days = requested_interval(dag_run.partition_key, params.get("start"), params.get("end"))
    return materialize(open_lake(), dataset_name, days, run_id=dag_run.run_id).to_json()


MATERIALIZE_DOC = (
    "Write the night's features to Feast's online store; an older value never replaces a newer one. "
    "Its success starts the scoring of every model of this data set (not in `_history`). Failed: clear it; nothing is "
    "lost."
)
WAIT_DOC = (
    "Wait for the hour from which the source is expected to be complete (`ready_after` in the catalog). "
    "It occupies no worker. Mark it as success to go on at once."
)

for dataset in load_catalog().datasets:
    with DAG(
        dag_id=f"{dataset.name}_ingest",
        dag_display_name=f"{dataset.title}: nightly ingest",
        description=f"{dataset.title}: one data date from source to features",
        schedule=nightly(dataset.time_zone),
        catchup=False,
        max_active_runs=1,
        doc_md=__doc__,
        tags=["ingest", dataset.name, *dataset.airflow.tags],
        owner_links={dataset.owner: dataset.owner_url},
        default_args=task_defaults(dataset),
        start_date=first_midnight(dataset),
        end_date=last_midnight(dataset),
    ) as nightly_dag:
        features: list[Asset] = [features_asset(dataset.name)]
        landed = ingest(dataset.name)
        if dataset.ready_after and not dataset.replay:
            (
                WaitUntilReady(
                    task_id="wait_until_ready",
                    doc_md=WAIT_DOC,
                    time_zone=dataset.time_zone,
                    ready_after=dataset.ready_after,
                )
                >> landed
            )
        (
            landed
            >> validate(dataset.name)
            >> transform(dataset.name)
            >> task(doc_md=MATERIALIZE_DOC, outlets=features)(materialize)(dataset.name)
        )
        add_links(nightly_dag)

    with DAG(
        dag_id=f"{dataset.name}_history",
        dag_display_name=f"{dataset.title}: history in bulk",
        description=f"{dataset.title}: an interval of data dates in one run; starts no scoring",
        schedule=None,
        catchup=False,
        max_active_runs=1,
        params=INTERVAL_FORM,
        doc_md=__doc__,
        tags=["history", dataset.name, *dataset.airflow.tags],
        owner_links={dataset.owner: dataset.owner_url},
        default_args=task_defaults(dataset),
    ) as history_dag:
        (
            ingest(dataset.name)
            >> validate(dataset.name)
            >> transform(dataset.name)
            >> task(doc_md=MATERIALIZE_DOC)(materialize)(dataset.name)
        )
        add_links(history_dag)

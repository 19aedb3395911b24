"""Score one data date of each model's entities with the champion of that night.

Reads    features of the data date, the ledger.
Writes   one partition of `predictions`: in the lake, then in SQL.
Rerun    idempotent: nothing is committed while the rows are equal. A scored night never changes by itself
         (`AlreadyScored`): after a restate, rewrite it on purpose with the form (first and last data date) or
         `python -m cli rescore MODEL START END`.
Fails    `NoChampion`: train and promote one for that date. `PartitionNotReady`: run the ingest DAG it names.
"""

from typing import Any

from airflow.sdk import DAG, Asset, task
from mlops_links import add_links
from mlops_wiring import INTERVAL_FORM, features_of_all, on_asset, predictions_asset, task_defaults

from config.catalog.load import load_catalog


@task(
    doc_md="Predict every entity of the night with that night's champion; memory does not grow with the rows. "
    "Failed with `NoChampion`: no version had been promoted by that night; train one. The link *Predictions* shows "
    "what was written."
)
def score(model_name: str, dag_run: Any = None, params: Any = None) -> dict[str, Any]:
    from config.calendar import requested_interval
    from lake.lake import open_lake
    from serving.score import rescore, score

    days = requested_interval(dag_run.partition_key, params["start"], params["end"])
    stage = score if dag_run.partition_key else rescore  # whoever fills in the form means to rewrite
    return stage(open_lake(), model_name, days, run_id=dag_run.run_id).to_json()


def publish(
    model_name: str, asset: Asset, dag_run: Any = None, params: Any = None, outlet_events: Any = None
) -> dict[str, Any]:
    from config.calendar import requested_interval
    from lake.lake import open_lake
    from serving.projection import project_predictions

    days = requested_interval(dag_run.partition_key, params["start"], params["end"])
    projected = project_predictions(open_lake(), model_name, days, run_id=dag_run.run_id)
    if not dag_run.partition_key:
        outlet_events[asset].add_partitions([day.isoformat() for day in days])
    return projected.to_json()


PUBLISH_DOC = (
    "Project the predictions to their SQL table, in one transaction with their digest. "
    "Its success starts the night's monitoring. Failed: clear it; nothing is lost."
)

catalog = load_catalog()
for model in catalog.models:
    datasets = catalog.datasets_of(model)
    with DAG(
        dag_id=f"{model.name}_score",
        dag_display_name=f"{model.title}: score",
        description=f"{model.title}: score one data date",
        schedule=on_asset(features_of_all(datasets), datasets[0].time_zone),
        catchup=False,
        max_active_runs=1,
        params=INTERVAL_FORM,
        doc_md=__doc__,
        tags=["score", *(dataset.name for dataset in datasets), *model.airflow.tags],
        owner_links={model.owner: model.owner_url},
        default_args=task_defaults(model),
    ) as dag:
        predictions = predictions_asset(model.name)
        project = task(doc_md=PUBLISH_DOC, outlets=[predictions])(publish)
        score(model.name) >> project(model.name, predictions)
        add_links(dag)

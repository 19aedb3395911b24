"""Check every model every ten minutes: what is late, what failed, what nobody has been told yet.

Reads    the index of publications, the recorded runs, the metrics, what people acknowledged and silenced.
Writes   each model's alert rules for its newest night (metrics, group `alerts`); messages to the profile's channels,
         each once.
Rerun    idempotent: the same facts give the same rows, and no message is sent twice.
Fails    `NotDelivered`: a channel refused a message six times; the text names the channel. Any other failure is a
         fault of this DAG: it is tried three times, the page Tonight says so, and the nights go on.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, task

from config.catalog.load import load_catalog
from config.catalog.policy import WATCH_MINUTES

catalog = load_catalog()
OWNERS = {model.owner: model.owner_url for model in catalog.models}


@task(
    doc_md=(
        "Judge the alert rules of every model, then tell the channels what is new: failures, late nights, alarms,"
        " requests that wait, nightly summaries that are due. Its log names who is told, if anybody. Failed: read the"
        " text; the next watch tries again."
    )
)
def watch(dag_run: Any = None) -> dict[str, Any]:
    from airflow.sdk.configuration import conf

    from lake.lake import open_lake
    from monitoring.alerting.nightly_summary import watch

    return watch(open_lake(), base_url=conf.get("api", "base_url", fallback=""), run_id=dag_run.run_id)


with DAG(
    dag_id="watch",
    dag_display_name="Watch all models",
    description=f"Late nights, failures, alarms, unsent messages: every {WATCH_MINUTES} minutes",
    schedule=f"*/{WATCH_MINUTES} * * * *",
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["watch"],
    owner_links=OWNERS,
    default_args={
        "owner": ", ".join(OWNERS),
        "retries": 2,
        "retry_delay": timedelta(seconds=30),
        "execution_timeout": timedelta(minutes=WATCH_MINUTES - 1),
    },
):
    watch()

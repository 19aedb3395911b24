"""Once a week: remove what dead tries left, and what is older than the settings `keep_…_days` say.

Reads    the lake's commits, the index of publications, the training sets of stored versions and of jobs.
Writes   nothing. Removes leftovers of dead tries; rows and data files that were replaced; folders of jobs; reports;
         logs. What a kept prediction or a stored model was computed from stays, whatever its age.
Rerun    idempotent, and safe beside nights and trainings. `python -m cli clean --dry-run` lists what the next run
         removes.
Fails    `CitationsUnreadable`: a stored version does not say what it was trained on; no data file was removed.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, task

from config.catalog.load import load_catalog

catalog = load_catalog()
OWNERS = {model.owner: model.owner_url for model in catalog.models}


@task(
    doc_md=(
        "Remove by declared ages, and return what went: by kind, how many and their bytes. Its log names tables that"
        " were left alone. Failed: read the text, mend, clear."
    )
)
def clean() -> dict[str, Any]:
    from lake.lake import open_lake
    from monitoring.audit.retention import clean as clean_up

    cleaning = clean_up(open_lake(), dry_run=False)
    for reason in cleaning.left_alone:
        print(f"left alone: {reason}")
    return {kind: {"count": count, "size": size} for kind, (count, size) in cleaning.totals().items()}


with DAG(
    dag_id="maintenance",
    dag_display_name="Clean up",
    description="Leftovers of dead tries, and what is older than the settings say: once a week",
    # No start date: a new installation would make up for last Sunday at once. Five minutes: none is missed meanwhile.
    schedule=CronTriggerTimetable("30 11 * * 0", timezone="UTC", run_immediately=timedelta(minutes=5)),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["maintenance"],
    owner_links=OWNERS,
    default_args={"owner": ", ".join(OWNERS), "retries": 1, "execution_timeout": timedelta(hours=2)},
):
    clean()

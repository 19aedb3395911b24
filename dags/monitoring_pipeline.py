"""Watch a model after each scored night, and request a retraining when the evidence calls for one.

Reads    the night's features and predictions, the champion's reference, labels that have matured by that night.
Writes   metrics (lake and SQL), HTML reports, one decision per night, perhaps a retraining request; while a version
         takes over step by step, the night's line of the ledger of rollouts.
Rerun    idempotent: nothing is committed while the numbers are equal. Only the newest published night may request.
Skipped  `request` is skipped on a quiet night; the log of `decide` gives the reason with its numbers.
Tells    `alarms` evaluates the alert rules, sends what cannot wait, and sends the nightly summary after the night's
         last model.
Fails    `PartitionNotReady`: score the night first. A check that cannot be computed does not fail: it says *not
         evaluated* and why.
"""

from collections.abc import Iterator
from typing import Any

from airflow.sdk import DAG, Asset, Metadata, task
from airflow.sdk.exceptions import AirflowSkipException
from mlops_links import add_links
from mlops_wiring import on_asset, predictions_asset, retraining_asset, task_defaults

from config.catalog.load import load_catalog


@task(
    doc_md="Compare the night's features and predictions with the champion's training window, column by column. "
    "An alarm does not fail this task: the link *Drift report* shows what moved, by how much, and whether it matters."
)
def drift(model_name: str, dag_run: Any = None) -> dict[str, Any]:
    from config.calendar import requested_interval
    from lake.lake import open_lake
    from monitoring.drift import drift

    return drift(open_lake(), model_name, requested_interval(dag_run.partition_key), run_id=dag_run.run_id).to_json()


@task(
    doc_md="Judge the predictions whose labels matured by this night, beside the trivial baseline. "
    "Too few labels are *not evaluated* with a reason, not a failure: the night is judged again when more have arrived."
)
def performance(model_name: str, dag_run: Any = None) -> dict[str, Any]:
    from config.calendar import requested_interval
    from lake.lake import open_lake
    from monitoring.performance import performance

    return performance(
        open_lake(), model_name, requested_interval(dag_run.partition_key), run_id=dag_run.run_id
    ).to_json()


@task(
    doc_md="Write the night's Evidently reports, self-contained HTML with the same numbers as the metrics table. "
    "Failed: no number is lost. Clear it; the pages are drawn again."
)
def report(model_name: str, dag_run: Any = None) -> dict[str, Any]:
    from config.calendar import requested_interval
    from lake.lake import open_lake
    from monitoring.pages.reports import report

    return report(open_lake(), model_name, requested_interval(dag_run.partition_key), run_id=dag_run.run_id).to_json()


@task(
    doc_md="Decide on retraining from the history of metrics: calendar, drift, performance, cooldown. "
    "Its log gives the reason with its numbers, even on a night without a request."
)
def decide(model_name: str, dag_run: Any = None) -> dict[str, Any]:
    from config.calendar import requested_interval
    from lake.lake import open_lake
    from monitoring.retraining_requests import decide_retraining

    return decide_retraining(
        open_lake(), model_name, requested_interval(dag_run.partition_key).start, run_id=dag_run.run_id
    ).to_json()


@task(
    doc_md="Judge the challenger of a rollout, before and after labels, and move it: to the next step, to its end, or "
    "back; its log gives the reason with its numbers. Without a rollout there is nothing to judge. Then MLflow's alias "
    "`champion` is brought in line with the ledger; an unreachable MLflow is only a warning: the ledger is the truth."
)
def rollout(model_name: str, dag_run: Any = None) -> dict[str, Any]:
    from dataclasses import asdict

    from config.calendar import requested_interval
    from lake.lake import open_lake
    from monitoring.rollout.stage import move_rollout
    from training.registry.promotion import repair_alias

    lake = open_lake()
    moved = move_rollout(lake, model_name, requested_interval(dag_run.partition_key), run_id=dag_run.run_id).to_json()
    print(*moved["details"]["told"] or ["no rollout goes on"], sep="\n")
    return moved | {"alias": asdict(repair_alias(lake, model_name))}


@task(
    doc_md=(
        "Judge the model's alert rules, tell the profile's channels what cannot wait, and send the nightly summary"
        " once its last model is done. It runs whether the tasks before it succeeded or not, and does not change the"
        " state of the run. Failed: no message is lost; the DAG `watch` sends it within 10 minutes."
    )
)
def alarms(model_name: str, dag_run: Any = None, ti: Any = None) -> dict[str, Any]:
    from airflow.sdk.configuration import conf

    from config.calendar import requested_interval
    from lake.lake import open_lake
    from monitoring.alerting.nightly_summary import conclude_night

    states = ti.get_task_states(dag_id=dag_run.dag_id, run_ids=[dag_run.run_id]).get(dag_run.run_id, {})
    failed = [task_id for task_id, state in states.items() if state == "failed"]
    night = requested_interval(dag_run.partition_key).start
    base_url = conf.get("api", "base_url", fallback="")
    return conclude_night(
        open_lake(),
        model_name,
        night,
        base_url=base_url,
        run_id=dag_run.run_id,
        failed_task=failed[0] if failed else None,
    )


def request(decision: Any, asset: Asset) -> Iterator[Metadata]:
    details = decision["details"]
    if not details["requested"]:
        raise AirflowSkipException(f"no retraining: {details['reason']}")
    yield Metadata(
        asset, extra={"reason": details["reason"], "trigger": details["trigger"], "evidence": details["evidence"]}
    )


REQUEST_DOC = (
    "Request the retraining, with the evidence. It starts the training DAG, whose run's note says why. Skipped on a"
    " night without a request."
)

catalog = load_catalog()
for model in catalog.models:
    with DAG(
        dag_id=f"{model.name}_monitor",
        dag_display_name=f"{model.title}: monitor",
        description=f"{model.title}: drift, performance, reports, retraining decision",
        schedule=on_asset(predictions_asset(model.name), catalog.dataset(model.dataset).time_zone),
        catchup=False,
        max_active_runs=1,
        doc_md=__doc__,
        tags=["monitor", model.dataset, *model.airflow.tags],
        owner_links={model.owner: model.owner_url},
        default_args=task_defaults(model),
    ) as dag:
        retraining = retraining_asset(model.name)
        measured = [drift(model.name), performance(model.name)]
        moved = rollout(model.name)
        measured[1] >> moved  # the labels that it judges by
        decided = decide(model.name)
        measured >> decided
        reported = report(model.name)
        measured >> reported
        requested = task(doc_md=REQUEST_DOC, outlets=[retraining])(request)(decided, retraining)
        # A teardown runs though what is before it failed, and does not make the run green for that.
        [reported, moved, requested] >> alarms(model.name).as_teardown()
        add_links(dag)

"""Train, register and judge a challenger on what was known in one night; let it take over when it passes the gate.

Reads    features, and labels that had matured by the data date in the partition key (the "as of" night).
Writes   a job folder, an MLflow run and version, a decision with its evidence, and, when it passes, a line of a
         ledger: of promotions, or of rollouts where the catalog says `rollout`.
Starts   by a retraining request: a drift or performance alarm, the calendar, or a person. The run's note says which.
Trains   one task per trainer, in a container where the profile or the catalog says so (`runner`). A training that was
         killed is retried and resumes from its checkpoint. Its container carries the task's labels; what an earlier
         try left behind is removed first.
Explains `explain` writes the model card, which changes no decision. The form of `approve` links to it; its file is in
         the folder `reports`.
Rerun    idempotent: the same training set gives the same version and the same decision; an equal training is not
         repeated unless `force` is set.
Asks     where the catalog says `approval: required`, `approve` waits for a person (Browse, Required Actions) once the
         challenger has passed the gate. An approval promotes from the next night on, however late it comes. A
         rejection, or no answer within `approval_timeout`, fails `approve` with who and why: the champion stays.
         Meanwhile the model's next training is queued; it is judged against whoever is champion by then.
Skipped  `promote` is skipped when the gate refused or could not judge: its log and the `gate` task say why. The
         champion stays. `run_along`, which a model with `refused_first` has, is skipped unless there is no champion
         and the gate refused: then the version scores, and serves nothing.
Fails    `NotRequested`: an asset event came that nobody is on record for: ask with a reason.
         `NotEnoughHistory`: load more nights.
         `EngineUnavailable`, `ImageMissing`, `GpuUnavailable`: each names the command that fixes it.
         `TrainingFailed`: out of memory, time or disk, or a refusal: the text says which limit to raise.
         `MlflowUnavailable`: start MLflow, clear the task; nothing is half-registered.
         `PromotionRejected`, `ApprovalLapsed`, `ReasonMissing`: clear `approve` to ask again.
         `TooFewUnits`: a share of the rollout would be nobody; the text says how many units it needs.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task
from airflow.sdk.exceptions import AirflowSkipException
from mlops_approval import PromotionApproval
from mlops_links import add_links
from mlops_training_operator import TrainingOperator
from mlops_wiring import on_asset, retraining_asset, task_defaults, training_pool

from config.catalog.load import load_catalog
from config.catalog.model import ModelEntry

FORM = {
    "reason": Param(
        None,
        type=["null", "string"],
        maxLength=400,
        description="Why you want this training. Required when a person starts it; recorded with the request.",
    ),
    "overrides": Param(
        {}, type="object", description='Trainer parameters to change for this run only, for example {"max_depth": 8}.'
    ),
    "force": Param(
        False,
        type="boolean",
        description="Train even if an equal training (same data, trainer, seed and code) has finished.",
    ),
    "dry_run": Param(
        False, type="boolean", description="Train and judge, but leave the ledger unchanged whatever the gate says."
    ),
}


@task(doc_md="Record who or what asked, then write the training set and a job for each candidate.")
def prepare(model_name: str, dag_run: Any = None, params: Any = None, triggering_asset_events: Any = None) -> list[str]:
    from config.calendar import requested_interval
    from lake.events import logged
    from lake.lake import open_lake
    from monitoring.retraining_requests import check_requested, record_manual_request
    from training.registry.job import prepare_jobs

    lake, as_of = open_lake(), requested_interval(dag_run.partition_key).start
    if triggering_asset_events:
        check_requested(lake, model_name, as_of)
    else:
        by = getattr(dag_run, "triggering_user_name", None) or "unknown"
        record_manual_request(lake, model_name, as_of, by=by, reason=params["reason"] or "", run_id=dag_run.run_id)
    jobs = logged("prepare")(prepare_jobs)(
        lake, model_name, as_of=as_of, run_id=dag_run.run_id, overrides=params["overrides"]
    )
    return [str(job_dir) for job_dir in jobs]


@task(
    doc_md=(
        "Take the candidate that is best on validation; store its bytes, signed, under their digest, and register a"
        " version in MLflow."
    )
)
def register(model_name: str, manifests: Any, dag_run: Any = None) -> dict[str, Any]:
    from lake.events import logged
    from lake.lake import open_lake
    from training.registry.candidates import register_best

    registered = logged("register")(register_best)(open_lake(), model_name, list(manifests), run_id=dag_run.run_id)
    for candidate in registered["candidates"]:
        print(
            f"{candidate['family']}: {candidate['error_of_baseline']:.4f} of the baseline's error on validation "
            f"({candidate['job']})"
        )
    return registered


@task(
    doc_md=(
        "Judge the challenger on nights neither model has seen, and audit the features for leaks. Decides, never"
        " promotes."
    )
)
def gate(model_name: str, registered: Any, dag_run: Any = None) -> dict[str, Any]:
    from lake.events import logged
    from lake.lake import open_lake
    from training.registry.gate import judge_registered

    decision = logged("gate")(judge_registered)(
        open_lake(), model_name, registered["job_dir"], registered, run_id=dag_run.run_id
    )
    print(f"{model_name} version {decision['version']}: {decision['verdict']}", *decision["reasons"], sep="\n")
    return decision


@task(
    doc_md=(
        "Explain the version on the judged nights: metrics, plots, Shapley values, segments, and the model card."
        " Changes no decision."
    )
)
def explain(model_name: str, registered: Any, decision: Any, dag_run: Any = None) -> dict[str, Any]:
    from lake.events import logged
    from lake.lake import open_lake
    from monitoring.pages.model_card import explain_registered

    return logged("explain")(explain_registered)(
        open_lake(), model_name, registered["job_dir"], registered, decision, run_id=dag_run.run_id
    )


@task(
    doc_md=(
        "Promote the challenger, or start its rollout, as the catalog says. Skipped when the gate did not pass the"
        " challenger."
    )
)
def promote(
    model_name: str, registered: Any, decision: Any, dag_run: Any = None, params: Any = None
) -> dict[str, Any] | None:
    from lake.events import logged
    from lake.lake import open_lake
    from training.registry.delivery import deliver_decided

    if decision["verdict"] != "promote":
        raise AirflowSkipException(f"not promoted, verdict {decision['verdict']}: " + " ".join(decision["reasons"]))
    if params["dry_run"]:
        raise AirflowSkipException("not promoted: this is a dry run. The gate would have passed the challenger.")
    return logged("promote")(deliver_decided)(open_lake(), model_name, registered, decision, by=dag_run.run_id)


@task(
    doc_md=(
        "Without a champion, let a version that the gate refused score every night and serve nothing, so that its"
        " errors can be seen. Skipped where the gate passed it, or where there is a champion."
    )
)
def run_along(
    model_name: str, registered: Any, decision: Any, dag_run: Any = None, params: Any = None
) -> dict[str, Any]:
    from lake.events import logged
    from lake.lake import open_lake
    from training.registry.delivery import deliver_decided

    if decision["verdict"] == "promote":
        raise AirflowSkipException("nothing runs along: the gate passed this version")
    if params["dry_run"]:
        raise AirflowSkipException("nothing runs along: this is a dry run")
    line = logged("run_along")(deliver_decided)(open_lake(), model_name, registered, decision, by=dag_run.run_id)
    if line is None:
        raise AirflowSkipException("nothing runs along: there is a champion")
    return line


def approve(model: ModelEntry, decision: Any) -> PromotionApproval:
    return PromotionApproval(
        task_id="approve",
        model_name=model.name,
        decision=decision,
        response_timeout=model.approval_timeout,
        doc_md=(
            "Wait for a person to approve or reject the promotion. Failed means: rejected, lapsed, or answered without"
            " a reason."
        ),
    )


catalog = load_catalog()
for model in catalog.models:
    with DAG(
        dag_id=f"{model.name}_train",
        dag_display_name=f"{model.title}: train",
        description=f"{model.title}: train, register, gate, promote",
        schedule=on_asset(retraining_asset(model.name), catalog.dataset(model.dataset).time_zone),
        catchup=False,
        max_active_runs=1,
        params=FORM,
        doc_md=__doc__,
        tags=["train", model.dataset, *model.airflow.tags],
        owner_links={model.owner: model.owner_url},
        default_args=task_defaults(model),
    ) as dag:
        train = TrainingOperator.partial(
            task_id="train",
            model_name=model.name,
            force="{{ params.force }}",
            execution_timeout=timedelta(
                minutes=model.training.timeout_minutes + 5
            ),  # the trainer's own limit comes first, with its sentence
            doc_md=(
                "Run the training, in a container or as a process; the log shows its progress, MLflow its curves (link"
                " *MLflow run*). One task per trainer."
            ),
            **training_pool(model),
        ).expand(job_dir=prepare(model.name))
        version = register(model.name, train.output)
        decided = gate(model.name, version)
        explained: Any = explain(model.name, version, decided)
        promoted = promote(model.name, version, decided)
        if model.stepwise is not None and model.stepwise.refused_first:
            run_along(model.name, version, decided)
        if model.approval == "required":
            explained >> approve(model, decided) >> promoted
        add_links(dag)

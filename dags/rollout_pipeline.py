"""Move a model's rollout: to its next step, not any further, to its end, or back. A person starts it, with a reason.

Reads    the model's two ledgers; to finish, the signature and every byte of the challenger's files.
Writes   a line of the ledger of rollouts with your name and reason; a finished one also makes the challenger champion.
         Nights that are already scored keep their versions, but for a blue-green rollout that goes back: there the
         newest night is served by the champion again, from what is stored.
Starts   only by hand: *Trigger*, choose model and action, say why.
Rerun    a run that was tried again finds its line and writes nothing. A cleared run is refused: it would act in the
         name of whoever triggered it, and nobody can tell who cleared it. Trigger a new one.
Fails    `NotAnApprover`: you are neither in the setting `approvers` nor, where it is empty, an admin.
         `ClearedRun`: the run was cleared.
         `NoRollout`: no rollout of the model goes on. `LastStep`: there is no further step; finish it.
         `RolloutMovedOn`: it is not in the step any more, or not of the version, that you named.
         `ModelFilesDamaged`: the challenger's files are gone, or are not those that were judged.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task
from mlops_links import add_links
from mlops_wiring import RETRY_POLICY

from config.catalog.load import load_catalog

catalog = load_catalog()
OWNERS = {model.owner: model.owner_url for model in catalog.models}


@task(
    doc_md=(
        "Write the line to the ledger of rollouts. Failed with `NoRollout`, `LastStep` or `RolloutMovedOn`: nothing was"
        " written; the text says how the rollout stands."
    )
)
def rollout(dag_run: Any = None, params: Any = None) -> dict[str, Any]:
    from mlops_approval import asked_by

    from lake.lake import open_lake
    from training.registry.delivery import act, line_json, told

    action, model, step = params["action"], params["model"], params["step"]
    by = asked_by(dag_run, f"{action} the rollout of {model}")
    line = act(
        open_lake(),
        model,
        action,
        by=by,
        reason=params["reason"],
        run_id=dag_run.run_id,
        version=params["version"],
        step=None if step is None else step - 1,
    )
    print(f"{told(line)}, by {line.by}: {line.reason}")
    return line_json(line)


with DAG(
    dag_id="rollout",
    dag_display_name="Move a rollout",
    description="Advance, hold, finish or roll back the rollout of a model",
    schedule=None,
    catchup=False,
    max_active_runs=1,
    params={
        "model": Param(
            type="string", enum=[model.name for model in catalog.models], description="The model whose rollout it is."
        ),
        "action": Param(
            type="string",
            enum=["advance", "hold", "finish", "rollback"],
            description="advance: to the next step; hold: stay in the step until a person goes on; finish: the "
            "challenger is champion; rollback: the champion serves everything.",
        ),
        "reason": Param(
            type="string", minLength=1, maxLength=1000, description="Why; kept in the ledger with your name."
        ),
        "version": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            description="The challenger you mean; empty: whichever takes over now.",
        ),
        "step": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            description="To advance: the number of the step that is to be left; empty: whichever holds.",
        ),
    },
    doc_md=__doc__,
    tags=["rollout"],
    owner_links=OWNERS,
    default_args={
        "owner": ", ".join(OWNERS),
        "retries": 2,
        "retry_delay": timedelta(seconds=5),
        "retry_policy": RETRY_POLICY,
        "execution_timeout": timedelta(minutes=10),
    },
) as dag:
    rollout()
    add_links(dag)

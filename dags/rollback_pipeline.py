"""End a model's rollout, else make a former champion the champion again. A person starts it, with a reason.

Reads    the model's ledger; the signature and every byte of the former champion's files.
Writes   a line of the ledger with your name and reason, then MLflow's alias. Nights that are already scored keep their
         champion.
Starts   only by hand: *Trigger*, choose the model, say why. Leave the version empty to restore the previous champion.
Rerun    trigger a new run; it goes back one champion further. A cleared run is refused: it would roll back in the name
         of whoever triggered it, and nobody can tell who cleared it.
Fails    `NotAnApprover`: you are neither in the setting `approvers` nor, where it is empty, an admin.
         `ClearedRun`: the run was cleared.
         `NothingToRollBackTo`: there is no such former champion.
         `ModelFilesDamaged`: its files are gone, or are not those that were judged.
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
        "Write the rollback to the ledger, then bring MLflow's alias in line. Failed with `NothingToRollBackTo`:"
        " nothing was written; the ledger names the versions that have been champion."
    )
)
def rollback(dag_run: Any = None, params: Any = None) -> dict[str, Any]:
    from mlops_approval import asked_by

    from lake.lake import open_lake
    from training.registry.delivery import line_json, told
    from training.registry.delivery import rollback as roll_back

    by = asked_by(dag_run, f"roll {params['model']} back")
    line = roll_back(
        open_lake(), params["model"], by=by, reason=params["reason"], version=params["version"], run_id=dag_run.run_id
    )
    print(f"{told(line)}, by {line.by}: {line.reason}")
    return line_json(line)


with DAG(
    dag_id="rollback",
    dag_display_name="Roll a model back",
    description="Make a former champion the champion again",
    schedule=None,
    catchup=False,
    max_active_runs=1,
    params={
        "model": Param(
            type="string", enum=[model.name for model in catalog.models], description="The model to roll back."
        ),
        "reason": Param(
            type="string", minLength=1, maxLength=1000, description="Why; kept in the ledger with your name."
        ),
        "version": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            description="The former champion to restore; empty: the previous one.",
        ),
    },
    doc_md=__doc__,
    tags=["rollback"],
    owner_links=OWNERS,
    default_args={
        "owner": ", ".join(OWNERS),
        "retries": 2,
        "retry_delay": timedelta(seconds=5),
        "retry_policy": RETRY_POLICY,
        "execution_timeout": timedelta(minutes=10),
    },
) as dag:
    rollback()
    add_links(dag)

"""What an operator reads on Airflow's own pages: each text is there, on every DAG and task that any catalog can
make.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from config.settings import ROOT
from tests import toy

# A live data set that waits for its hour, and a model that asks before it promotes: the tasks that the project's own
# catalog may lack.
LIVE = toy.DATASET_YAML.replace(
    "replay: {from: 2024-01-01, to: 2024-12-31, first_night: 2024-03-01}", 'start: 2024-01-01\nready_after: "02:00"'
)
ASKING = toy.MODEL_YAML + "approval: required\napproval_timeout: 3 days\n"


@pytest.fixture(scope="module")
def toy_bag(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from airflow.dag_processing.dagbag import DagBag

    settings = toy.write_catalog(tmp_path_factory.mktemp("help"), dataset=LIVE, model=ASKING)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in toy.environment(settings).items():
            environment.setenv(name, value)
        bag = DagBag(str(ROOT / "dags"))
    assert not bag.import_errors, bag.import_errors
    return bag


@pytest.fixture(params=["catalog", "toy"])
def dags(request: pytest.FixtureRequest) -> Any:
    bag = request.getfixturevalue("dag_bag" if request.param == "catalog" else "toy_bag")
    return list(bag.dags.values())


def test_each_dag_says_what_it_is(dags: Any) -> None:
    for dag in dags:
        missing = [word for word in ("Reads", "Writes", "Rerun", "Fails") if f"\n{word} " not in (dag.doc_md or "")]
        assert not missing, (
            f"{dag.dag_id}: doc_md has no line {missing[0]!r}. The docstring of {dag.fileloc} is what the UI shows: "
            "add it there."
        )
        for name in ("description", "dag_display_name", "tags"):
            assert getattr(dag, name), f"{dag.dag_id} has no {name}: set it in its DAG(...)."
        owners = {owner.strip() for task in dag.tasks for owner in task.owner.split(",")}
        assert owners <= set(dag.owner_links), (
            f"{dag.dag_id}: owner {min(owners - set(dag.owner_links))!r} has no link: set owner_links in its DAG(...)."
        )


def test_each_task_says_what_it_does(dags: Any) -> None:
    for dag in dags:
        for task in dag.tasks:
            assert len(task.doc_md or "") > 40, (
                f"{dag.dag_id}.{task.task_id} has no doc_md: say what it does, and what to do when it has failed."
            )
            assert (task.execution_timeout or timedelta(0)) > timedelta(0), (
                f"{dag.dag_id}.{task.task_id} may run for ever."
            )


def test_each_field_of_a_form_is_explained_and_filled_in(dags: Any) -> None:
    for dag in dags:
        for name in dag.params:
            param = dag.params.get_param(name)
            assert param.description, f"{dag.dag_id}: the form's field {name!r} has no description."
            # What only the person can know has no default; then the form must not be sent without it.
            wanted = param.has_value or "null" in param.schema["type"] or name in {"model", "action", "reason"}
            assert wanted, (
                f"{dag.dag_id}: the form's field {name!r} has no default, and is not one that must be filled in."
            )


def test_the_live_catalog_has_the_tasks_that_wait(toy_bag: Any) -> None:
    assert toy_bag.dags["rides_ingest"].has_task("wait_until_ready")
    assert toy_bag.dags["ride_minutes_train"].has_task("approve")

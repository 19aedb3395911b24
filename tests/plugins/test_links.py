"""Links from tasks to pages: each leads to what the task made, for plain, mapped and parked tasks alike."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from config.settings import load_settings

INSIDE = "/plugin/models/nightfleet"


class Task:
    """A task instance as its own process has it."""

    def __init__(
        self,
        dag_id: str,
        task_id: str,
        *,
        key: str | None = "2024-03-05",
        params: dict[str, Any] | None = None,
        result: Any = None,
    ) -> None:
        self.dag_id, self.task_id, self.map_index = dag_id, task_id, -1
        self._context = {"dag_run": SimpleNamespace(partition_key=key), "params": params or {}}
        self._result = result

    def get_template_context(self) -> dict[str, Any]:
        return self._context

    def xcom_pull(self, **_asked: Any) -> Any:
        return self._result


def links(dag_bag: Any, task: Task, operator: Any = None) -> dict[str, str]:
    found = dag_bag.dags[task.dag_id].get_task(task.task_id).operator_extra_links
    return {link.name: link.get_link(operator, ti_key=task) for link in found}


@pytest.mark.parametrize(
    ("dag_id", "task_id", "name", "address"),
    [
        ("flights_ingest", "validate", "Data of the night", "/data/flights?night=2024-03-05"),
        ("arrival_delay_score", "score", "Predictions", "/trace?model=arrival_delay&date=2024-03-05"),
        ("arrival_delay_score", "publish", "Tonight", "/"),
        ("arrival_delay_monitor", "drift", "Drift report", "/models/arrival_delay/nights/2024-03-05"),
        ("arrival_delay_monitor", "decide", "Retraining requests", "/retraining?model=arrival_delay"),
        ("arrival_delay_train", "gate", "Model", "/models/arrival_delay"),
    ],
)
def test_a_task_leads_to_its_page(dag_bag: Any, dag_id: str, task_id: str, name: str, address: str) -> None:
    assert links(dag_bag, Task(dag_id, task_id))[name] == INSIDE + address


def test_every_task_of_the_catalog_leads_somewhere(dag_bag: Any) -> None:
    for dag in dag_bag.dags.values():
        if dag.dag_id.rpartition("_")[2] not in {"ingest", "history", "score", "monitor", "train"}:
            continue
        for task in dag.tasks:
            if task.task_id in {"wait_until_ready"}:
                continue
            assert task.operator_extra_links, (
                f"{dag.dag_id}.{task.task_id} has no extra link: name it in plugins/mlops_links.py, LINKS."
            )
            names = [link.name for link in task.operator_extra_links]
            assert len(set(names)) == len(names)


def test_a_run_over_an_interval_leads_to_its_last_night(dag_bag: Any) -> None:
    task = Task("flights_history", "ingest", key=None, params={"start": "2024-03-01", "end": "2024-03-09"})
    assert links(dag_bag, task)["Data of the night"].endswith("/data/flights?night=2024-03-09")


def test_a_key_that_is_no_date_stays_one_part_of_the_address(dag_bag: Any) -> None:
    hostile = "../../x?y=<script>"
    assert links(dag_bag, Task("arrival_delay_monitor", "drift", key=hostile))["Drift report"].endswith(
        "/nights/..%2F..%2Fx%3Fy%3D%3Cscript%3E"
    )


def test_a_rollback_leads_to_the_model_of_its_form(dag_bag: Any) -> None:
    task = Task("rollback", "rollback", key=None, params={"model": "arrival_delay"})
    assert links(dag_bag, task)["Model"] == f"{INSIDE}/models/arrival_delay"


def test_a_run_without_a_night_has_no_drift_report(dag_bag: Any) -> None:
    assert links(dag_bag, Task("arrival_delay_monitor", "drift", key=None))["Drift report"] == ""


def test_airflow_below_a_path_keeps_it(dag_bag: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://example.com/airflow/")
    assert links(dag_bag, Task("arrival_delay_train", "gate"))["Model"] == f"/airflow{INSIDE}/models/arrival_delay"


def test_a_training_leads_to_its_run_in_mlflow(dag_bag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTFLEET_MLFLOW_TRACKING_URI", "http://mlflow.example:5000/")
    monkeypatch.setenv("NIGHTFLEET_HOME", str(tmp_path))
    jobs = load_settings().jobs / "arrival_delay"
    for folder in (jobs / "one", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(json.dumps({"mlflow": {"run_id": "abc"}}))
    train, named = Task("arrival_delay_train", "train"), "MLflow run"

    def address(folder: Path) -> str:
        operator = SimpleNamespace(model_name="arrival_delay", job_dir=str(folder))
        return links(dag_bag, train, operator)[named]

    assert address(jobs / "one") == "http://mlflow.example:5000/#/runs/abc"
    assert address(jobs / "gone") == ""
    assert address(tmp_path / "elsewhere") == ""
    register = Task("arrival_delay_train", "register", result={"mlflow_run_id": "def"})
    assert links(dag_bag, register)[named] == "http://mlflow.example:5000/#/runs/def"
    assert links(dag_bag, Task("arrival_delay_train", "register"))[named] == ""


def test_a_model_card_is_that_of_the_version(dag_bag: Any) -> None:
    explain = Task("arrival_delay_train", "explain", result={"version": 3})
    assert links(dag_bag, explain)["Model card"].endswith("/embedded/arrival_delay/model_cards/3.html")
    assert links(dag_bag, Task("arrival_delay_train", "explain"))["Model card"] == ""
    from mlops_approval import PromotionApproval

    card = PromotionApproval.operator_extra_links[0]
    approve = Task("arrival_delay_train", "approve")
    assert card.get_link(SimpleNamespace(decision={"version": 4}), ti_key=approve).endswith(
        "/arrival_delay/model_cards/4.html"
    )


def test_links_survive_what_airflow_stores_of_a_dag(dag_bag: Any) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    for dag in dag_bag.dags.values():
        restored = DagSerialization.from_dict(DagSerialization.to_dict(dag))
        for task in dag.tasks:
            assert sorted(restored.get_task(task.task_id).extra_links) == sorted(
                link.name for link in task.operator_extra_links
            )

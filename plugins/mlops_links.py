"""Links from a task to what it made: the night's page, the table's version, the run in MLflow, the model card.

A link is made in the task's own process when it ends, whatever the end, and kept as an XCom: the API server only reads
it. What a link is about is in the DAG's id, the run's partition key and the task's result, so that mapped tasks and
cleared ones need nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from airflow.sdk import DAG, BaseOperatorLink

# Airflow's page of the nav entry, then the inner address: the page opens inside the UI, with the menu around it.
_INSIDE = "/plugin/models/nightfleet"


def page_address(*parts: str, **query: str) -> str:
    """Address of one of our pages inside Airflow's UI, below the path that Airflow is served from."""
    from airflow.sdk.configuration import conf

    base = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
    path = base + _INSIDE + "".join(f"/{quote(part, safe='')}" for part in parts)
    given = {name: value for name, value in query.items() if value}
    return f"{path}?{urlencode(given)}" if given else path


def subject_of(dag_id: str) -> str:
    """The model or data set that a DAG of the catalog is about: `arrival_delay_score` is about `arrival_delay`."""
    return dag_id.rpartition("_")[0]


class _Link(BaseOperatorLink):  # type: ignore[misc]  # airflow ships no types for it
    """A link whose address is made from the task instance; an address that cannot be made is no link, and no error."""

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The address, empty where there is nothing to lead to. `ti_key` is the running task instance itself."""
        return self._address(operator, ti_key)

    def _address(self, operator: Any, ti: Any) -> str:
        raise NotImplementedError


def _night(ti: Any) -> str:
    """The run's data date; of an interval the last one; empty where the run has neither."""
    context = ti.get_template_context()
    key = context["dag_run"].partition_key
    return str(key or context["params"].get("end") or "")


def _subject(ti: Any) -> str:
    """What the task is about; of what a person does with a model, the model in its form."""
    by_form = ti.dag_id in LINKS  # their ids are no model's
    return str(ti.get_template_context()["params"]["model"]) if by_form else subject_of(ti.dag_id)


def _result(ti: Any) -> dict[str, Any]:
    result = ti.xcom_pull(
        task_ids=ti.task_id, key="return_value", map_indexes=ti.map_index if ti.map_index >= 0 else None
    )
    return result if isinstance(result, dict) else {}


class TonightLink(_Link):
    """All models of the night at a glance."""

    name = "Tonight"

    def _address(self, operator: Any, ti: Any) -> str:
        return page_address("")


class DriftReportLink(_Link):
    """What moved in the night, with Evidently's report."""

    name = "Drift report"

    def _address(self, operator: Any, ti: Any) -> str:
        night = _night(ti)
        return page_address("models", _subject(ti), "nights", night) if night else ""


class ModelLink(_Link):
    """The model's time lines."""

    name = "Model"

    def _address(self, operator: Any, ti: Any) -> str:
        return page_address("models", _subject(ti))


class RetrainingLink(_Link):
    """Requests for a retraining of the model, with their evidence and what came of them."""

    name = "Retraining requests"

    def _address(self, operator: Any, ti: Any) -> str:
        return page_address("retraining", model=_subject(ti))


class DataLink(_Link):
    """The night's partitions of the data set: rows, version, quality, quarantine."""

    name = "Data of the night"

    def _address(self, operator: Any, ti: Any) -> str:
        return page_address("data", _subject(ti), night=_night(ti))


class PredictionsLink(_Link):
    """The night's predictions, each of which leads to what it was computed from."""

    name = "Predictions"

    def _address(self, operator: Any, ti: Any) -> str:
        return page_address("trace", model=_subject(ti), date=_night(ti))


class MlflowRunLink(_Link):
    """The training's run in MLflow: of a registered version, else the one its job streams to."""

    name = "MLflow run"

    def _address(self, operator: Any, ti: Any) -> str:
        from config.settings import load_settings

        run_id = _result(ti).get("mlflow_run_id") or _job_run(operator)
        # MLflow finds the run's experiment by itself.
        return f"{load_settings().mlflow_browser_url}/#/runs/{quote(str(run_id), safe='')}" if run_id else ""


def _job_run(operator: Any) -> str | None:
    """The MLflow run of a job folder, None where the job has none, or the folder is gone."""
    job_dir = getattr(operator, "job_dir", None)
    if not isinstance(job_dir, str):
        return None  # a template that was never rendered: the task failed before it began
    from config.settings import load_settings
    from lake.contained import UnsafeFile, open_contained

    folder = Path(job_dir).resolve()  # it came by XCom, which people may edit
    if folder.parent != (load_settings().jobs / operator.model_name).resolve():
        return None
    try:
        with open_contained(folder, "job.json") as file:
            job = json.load(file)
    except (OSError, ValueError, UnsafeFile):
        return None
    return (job.get("mlflow") or {}).get("run_id")


class ModelCardLink(_Link):
    """The version's model card, as it was written before anybody decided."""

    name = "Model card"

    def _address(self, operator: Any, ti: Any) -> str:
        version = (getattr(operator, "decision", None) or _result(ti)).get("version")
        return page_address("embedded", _subject(ti), "model_cards", f"{version}.html") if version else ""


_MONITORED, _OF_DATA = (DriftReportLink, ModelLink), (DataLink,)
# By kind of DAG (the last part of its id), then by task.
LINKS: dict[str, dict[str, tuple[type[_Link], ...]]] = {
    "ingest": dict.fromkeys(("ingest", "validate", "transform", "materialize"), _OF_DATA),
    "history": dict.fromkeys(("ingest", "validate", "transform", "materialize"), _OF_DATA),
    "score": {"score": (PredictionsLink, ModelLink), "publish": (PredictionsLink, TonightLink)},
    "monitor": dict.fromkeys(("drift", "performance", "report"), _MONITORED)
    | {
        "decide": (DriftReportLink, RetrainingLink),
        "request": (RetrainingLink,),
        "rollout": (ModelLink,),
        "alarms": (TonightLink, DriftReportLink),
    },
    "train": {
        "prepare": (RetrainingLink,),
        "register": (MlflowRunLink, ModelLink),
        "gate": (RetrainingLink, ModelLink),
        "explain": (ModelCardLink,),
        "promote": (ModelLink, RetrainingLink),
        "run_along": (ModelLink,),
    },
    "rollback": {"rollback": (ModelLink, RetrainingLink)},
    "rollout": {"rollout": (ModelLink,)},
}


def add_links(dag: DAG) -> None:
    """Give each task of a DAG of the catalog its links; operators of our own bring theirs along."""
    for task_id, links in LINKS[dag.dag_id.rpartition("_")[2]].items():
        if dag.has_task(task_id):  # a model has some tasks only where its catalog entry asks for them
            dag.get_task(task_id).operator_extra_links = tuple(link() for link in links)

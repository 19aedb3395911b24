"""A search and a cross-validation in MLflow: every trial a run of its own below the model's, their history as one
page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import TypeAdapter

from config.catalog.trainer import Space
from serving.predictors.contract import read_json
from training.search.study import SEARCH_FILE

PAGE_FILE = "search.html"
_SPACE: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Space])
_PARENT_TAG = "mlflow.parentRunId"
_TRIAL_TAG = "trial"


def log_search(client: Any, mlflow_run: str, manifest: Mapping[str, Any], job_dir: Path) -> None:
    """Log what the manifest says of a search and of cross-validation; everything here may be done twice.

    Args:
        client: MLflow's, inside `answered`.
        mlflow_run: the model's run.
        job_dir: holds `search.json` where there was a search.
    """
    from mlflow.entities import Metric

    validated = manifest.get("cross_validation")
    if validated:
        metrics = [
            Metric(f"cross_validation/{name}/{kind}", validated[kind][name], 0, 0)
            for kind in ("mean", "std")
            for name in validated[kind]
        ]
        metrics += [
            Metric(f"fold/{name}", value, 0, fold["fold"])
            for fold in validated["folds"]
            for name, value in fold["metrics"].items()
        ]
        _in_parts(client, mlflow_run, metrics)
    if "search" not in manifest:
        return
    document = read_json(job_dir / SEARCH_FILE)
    there = _logged(client, mlflow_run)
    for trial in document["trials"]:
        _log_trial(client, mlflow_run, document, trial, there.get(str(trial["trial"])))
    with TemporaryDirectory(prefix="search-") as scratch:
        page = Path(scratch) / PAGE_FILE
        page.write_text(search_page(document), encoding="utf-8")
        client.log_artifact(mlflow_run, str(page))
    client.log_artifact(mlflow_run, str(job_dir / SEARCH_FILE))


def search_page(document: Mapping[str, Any]) -> str:
    """History and parallel coordinates of a `search.json` as one HTML page that loads nothing from elsewhere."""
    from optuna.visualization import plot_optimization_history, plot_parallel_coordinate

    study, metric = _study(document), document["summary"]["metric"]
    figures = [
        plot_optimization_history(study, target_name=metric),
        plot_parallel_coordinate(study, target_name=metric),
    ]
    parts = [
        figure.to_html(full_html=False, include_plotlyjs="inline" if index == 0 else False)
        for index, figure in enumerate(figures)
    ]
    title = f"{document['model']}: {len(document['trials'])} trials for the lowest {metric}"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _study(document: Mapping[str, Any]) -> Any:
    import optuna

    from training.search.samplers import distributions, stored_choice

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = distributions(_SPACE.validate_python(document["space"]))
    states = {
        "complete": optuna.trial.TrialState.COMPLETE,
        "pruned": optuna.trial.TrialState.PRUNED,
        "failed": optuna.trial.TrialState.FAIL,
    }
    study = optuna.create_study()
    study.add_trials(
        optuna.trial.create_trial(
            state=states[trial["state"]],
            value=trial["value"],
            params={name: stored_choice(value) for name, value in trial["params"].items()},
            distributions=space,
            intermediate_values={int(step): value for step, value in trial["curve"]},
        )
        for trial in document["trials"]
    )
    return study


def _logged(client: Any, mlflow_run: str) -> dict[str, str]:
    """Runs of trials that are there already, by the trial's number."""
    experiment = client.get_run(mlflow_run).info.experiment_id
    run_ids: dict[str, str] = {}
    token = None
    while True:
        runs = client.search_runs(
            [experiment], f"tags.`{_PARENT_TAG}` = '{mlflow_run}'", max_results=1000, page_token=token
        )
        run_ids |= {run.data.tags[_TRIAL_TAG]: run.info.run_id for run in runs if _TRIAL_TAG in run.data.tags}
        token = runs.token
        if not token:
            return run_ids


def _log_trial(
    client: Any, mlflow_run: str, document: Mapping[str, Any], trial: Mapping[str, Any], there: str | None
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    if there is None:
        experiment = client.get_run(mlflow_run).info.experiment_id
        tags = {_PARENT_TAG: mlflow_run, _TRIAL_TAG: str(trial["trial"])}
        there = str(client.create_run(experiment, run_name=f"trial {trial['trial']}", tags=tags).info.run_id)
    metric = document["summary"]["metric"]
    metrics = [Metric(f"trial/{metric}", trial["value"], 0, 0)] if trial["value"] is not None else []
    metrics += [Metric("trial/seconds", trial["seconds"], 0, 0)]
    metrics += [Metric(f"validated/{name}", value, 0, 0) for name, value in trial["metrics"].items()]
    metrics += [Metric("trial/curve", value, 0, int(step)) for step, value in trial["curve"]]
    best = trial["trial"] == document["summary"].get("best_trial")
    tags = {"state": trial["state"], "reason": trial["reason"], "best": str(best).lower(), "model": document["model"]}
    client.log_batch(
        there,
        params=[Param(name, str(value)) for name, value in trial["params"].items()],
        tags=[RunTag(name, value[:5000]) for name, value in tags.items()],
    )
    _in_parts(client, there, metrics)
    client.set_terminated(there, "FAILED" if trial["state"] == "failed" else "FINISHED")


def _in_parts(client: Any, mlflow_run: str, metrics: Sequence[Any]) -> None:
    for start in range(0, len(metrics), 1000):
        client.log_batch(mlflow_run, metrics=metrics[start : start + 1000])

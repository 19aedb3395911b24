"""Of several trainers the best on validation is registered; a tie is the model's own; the others stay to be compared in
MLflow.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

import mlflow
import pytest

from config.calendar import Interval
from config.catalog.trainer import Trainer
from lake.lake import Lake
from tests import toy
from training.job_file import read_job
from training.registry.candidates import register_best, validation_error
from training.registry.job import prepare_jobs
from training.registry.runner import run_job

AS_OF = date(2024, 2, 29)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, mlflow_server: str) -> tuple[Lake, list[Path]]:
    lake = toy.toy_lake(tmp_path_factory.mktemp("candidates"))
    entry = lake.catalog.models[0].model_copy(
        update={
            "candidates": (
                Trainer(family="xgboost", params={"n_estimators": 1, "learning_rate": 0.01}),
                Trainer(family="xgboost", seed=8),
            )
        }
    )
    lake = Lake(
        lake.settings.model_copy(update={"mlflow_tracking_uri": mlflow_server}),
        lake.catalog.model_copy(update={"models": (entry,)}),
    )
    toy.publish_valid(lake, Interval.closed(date(2024, 1, 1), AS_OF))
    toy.publish_features(lake, Interval.closed(date(2024, 1, 1), AS_OF))
    job_dirs = prepare_jobs(lake, "ride_minutes", as_of=AS_OF, run_id="run-1")
    for job_dir in job_dirs:
        run_job(lake, "ride_minutes", job_dir, say=lambda line: None)
    return lake, job_dirs


def test_each_trainer_has_a_job_of_its_own_and_one_training_set(trained: tuple[Lake, list[Path]]) -> None:
    lake, job_dirs = trained
    jobs = [read_job(job_dir) for job_dir in job_dirs]
    assert len({job["identity"] for job in jobs}) == 3
    assert len({job["training_set"]["digest"] for job in jobs}) == 1
    assert [job["seed"] for job in jobs] == [7, 7, 8]
    assert prepare_jobs(lake, "ride_minutes", as_of=AS_OF, run_id="run-1") == job_dirs
    assert all((job_dir / "manifest.json").is_file() for job_dir in job_dirs), "prepared again, finished trainings stay"
    assert len(prepare_jobs(lake, "ride_minutes", as_of=AS_OF, run_id="run-2", overrides={"max_depth": 2})) == 1


def test_the_best_on_validation_is_registered(trained: tuple[Lake, list[Path]]) -> None:
    lake, job_dirs = trained
    errors = [validation_error(lake, "ride_minutes", job_dir) for job_dir in job_dirs]
    assert errors[1] > errors[0]
    manifests = [str(job_dir / "manifest.json") for job_dir in job_dirs]
    registered = register_best(lake, "ride_minutes", manifests, run_id="run-1")
    assert registered["job_dir"] == str(job_dirs[errors.index(min(errors))])
    assert [candidate["error_of_baseline"] for candidate in registered["candidates"]] == errors
    assert register_best(lake, "ride_minutes", [manifests[1], manifests[1]], run_id="run-1")["job_dir"] == str(
        job_dirs[1]
    )
    client = mlflow.MlflowClient(tracking_uri=lake.settings.tracking_uri)
    loser = client.get_run(read_job(job_dirs[1])["mlflow"]["run_id"])
    assert loser.info.status == "FINISHED"
    assert "was better on validation" in loser.data.tags["not_chosen"]
    assert loser.data.metrics["validated/ride_minutes/mae"] > 0


def test_the_run_opened_for_an_equal_training_is_closed_and_names_the_version_s(
    trained: tuple[Lake, list[Path]],
) -> None:
    lake, job_dirs = trained
    first = register_best(lake, "ride_minutes", [str(job_dirs[0] / "manifest.json")], run_id="run-1")
    again = prepare_jobs(lake, "ride_minutes", as_of=AS_OF, run_id="run-again")[0]
    run_job(lake, "ride_minutes", again, say=lambda line: None)
    equal = register_best(lake, "ride_minutes", [str(again / "manifest.json")], run_id="run-again")
    assert equal["version"] == first["version"]
    spare = mlflow.MlflowClient(tracking_uri=lake.settings.tracking_uri).get_run(read_job(again)["mlflow"]["run_id"])
    assert (spare.info.status, spare.data.tags["same_as"]) == ("FINISHED", first["mlflow_run_id"])

"""The search: what it refuses, that a kill changes nothing, and what it leaves behind."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from config.catalog.trainer import Search, Trainer
from config.settings import ROOT, Settings
from tests.training.jobs import OUTPUTS, write_job
from training.__main__ import run
from training.progress import Progress
from training.registry.search_report import log_search, search_page
from training.registry.tracking import tracking_client
from training.rows import read_rows
from training.search import trials
from training.search.gp_sampler import GaussianProcessSampler, expected_improvement
from training.search.samplers import SeededSampler, chosen_params, distributions, grid, pruner_of, sampler_of
from training.search.study import Found, check_search, search
from training.trainers import BadParameter, TrainingDiverged, TrainingImpossible, validated_params

SPACE = {
    "max_depth": {"kind": "integer", "low": 2, "high": 6},
    "learning_rate": {"kind": "log_uniform", "low": 0.02, "high": 0.6},
    "subsample": {"kind": "uniform", "low": 0.5, "high": 1.0},
    "calibration": {"kind": "choice", "values": ["platt", "isotonic"]},
}
FEW_OUTPUTS = {"minutes": {"kind": "regression", "objective": "mean", "gate": "mae"}}
QUICK = {"n_estimators": 10, "early_stopping_rounds": 10, "threads": 1}


def searched_job(
    folder: Path,
    outputs: Any = FEW_OUTPUTS,
    family: str = "xgboost",
    params: Any = QUICK,
    trainer: Any = None,
    **asked: Any,
) -> Path:
    described = {"family": family, "device": "cpu", "search": {"space": SPACE, "trials": 7} | asked, **(trainer or {})}
    entry = {"outputs": outputs, "trainer": described, "training": {"checkpoint_minutes": 0.0}}
    columns = (
        ["minutes"] if outputs is FEW_OUTPUTS else ["minutes", "minutes_lower", "minutes_upper", "late_probability"]
    )
    return write_job(folder, family, params=params, entry=entry, output_columns=columns)


def searched(job_dir: Path, say: Any = lambda line: None, **more: Any) -> Found:
    """`search` as the trainer calls it."""
    job = json.loads((job_dir / "job.json").read_text())
    params = validated_params(job["entry"]["trainer"]["family"], job["params"])
    contract, splits, _ = read_rows(
        job, job["entry"]["trainer"]["family"], params, job_dir / "training_set.parquet", job_dir
    )
    progress = Progress(say_line=say)
    return search(
        job,
        contract,
        splits["train"],
        splits["validation"],
        job_dir,
        progress=progress,
        scratch=job_dir,
        checkpoint_seconds=0.0,
        **more,
    )


def told(job_dir: Path) -> list[dict[str, Any]]:
    """Every trial of `search.json`, without the seconds."""
    document = json.loads((job_dir / "search.json").read_text())
    return [{name: value for name, value in trial.items() if name != "seconds"} for trial in document["trials"]]


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (
            {"depth": {"kind": "integer", "low": 2, "high": 6}},
            r"names 'depth', but xgboost has no such parameter\. Known: n_estimators, max_depth",
        ),
        (
            {"max_depth": {"kind": "integer", "low": 0, "high": 6}},
            r"space\.max_depth holds 0, which the xgboost parameter does not take: .*than or equal to 1",
        ),
        (
            {"subsample": {"kind": "uniform", "low": 0.5, "high": 1.5}},
            r"search\.space\.subsample holds 1\.5, .*less than or equal to 1",
        ),
        ({"max_depth": {"kind": "uniform", "low": 2, "high": 6}}, r"search\.space\.max_depth holds 4\.47.*integer"),
        (
            {"calibration": {"kind": "choice", "values": ["platt", "magic"]}},
            r"search\.space\.calibration holds 'magic'",
        ),
    ],
)
def test_a_space_that_the_family_does_not_hold_is_refused_before_anything_runs(
    space: Any, said: str, tmp_path: Path
) -> None:
    trainer = {"family": "xgboost", "search": {"space": space}}
    with pytest.raises(BadParameter, match=said):
        check_search(Trainer.model_validate(trainer))
    job_dir = searched_job(tmp_path / "job", space=space)
    with pytest.raises(BadParameter, match=said):
        run(job_dir)
    assert not (job_dir / "study").exists()
    assert not (job_dir / "manifest.json").exists()


def test_a_form_cannot_set_what_is_searched() -> None:
    trainer = Trainer.model_validate({"family": "xgboost", "search": {"space": SPACE}})
    with pytest.raises(BadParameter, match=r"max_depth is searched, so the form cannot set it"):
        check_search(trainer, {"n_estimators": 5, "max_depth": 3})
    check_search(trainer, {"n_estimators": 5})
    check_search(Trainer(family="xgboost"), {"max_depth": 3})
    check_search(
        Trainer.model_validate(
            {"family": "keras", "search": {"space": {"hidden": {"kind": "choice", "values": [[8], [16, 8]]}}}}
        )
    )


@pytest.mark.parametrize("metric", ["minutes/r2", "minutes/brier", "mae", "late/mae"])
def test_a_metric_that_is_none_or_should_be_high_is_refused(metric: str, tmp_path: Path) -> None:
    job_dir = searched_job(tmp_path / "job", metric=metric)
    with pytest.raises(
        BadParameter, match=rf"search\.metric is '{metric}', .* Known: minutes/mae, minutes/rmse, minutes/mse"
    ):
        run(job_dir)


def test_one_container_alone_searches(tmp_path: Path) -> None:
    from training.trainers import Cluster

    with pytest.raises(
        TrainingImpossible, match=r"search and cross-validation run in one container. Set `training.workers: 1`"
    ):
        run(searched_job(tmp_path / "job"), Cluster(("a:1", "b:1"), 0))


# ---- samplers ----------------------------------------------------------------------------------------------------


def valley(params: dict[str, Any]) -> float:
    """Lowest at depth 5, rate 0.1, subsample 0.8, platt."""
    steep = (math.log(params["learning_rate"] / 0.1)) ** 2 + ((params["max_depth"] - 5) / 2) ** 2
    return float(steep + 10 * (params["subsample"] - 0.8) ** 2 + (params["calibration"] != "platt"))


def walked(
    asked: Search, count: int, study: optuna.Study | None = None, seed: int = 3
) -> list[tuple[dict[str, Any], float]]:
    """The study's path through the valley."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = study or optuna.create_study(sampler=sampler_of(asked, seed))
    while len(study.trials) < count:
        trial = study.ask(distributions(asked.space))
        study.tell(trial, valley(trial.params))
    return [(trial.params, float(trial.value or 0.0)) for trial in study.trials]


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe", "gp"])
def test_each_draw_follows_from_seed_and_number_alone(sampler: str) -> None:
    asked = Search.model_validate({"space": SPACE, "sampler": sampler, "trials": 16})
    whole = walked(asked, 12)
    storage = optuna.storages.InMemoryStorage()
    first = optuna.create_study(storage=storage, study_name="s", sampler=sampler_of(asked, 3))
    walked(asked, 7, first)
    again = optuna.load_study(
        storage=storage, study_name="s", sampler=sampler_of(asked, 3)
    )  # a new process has no state
    assert walked(asked, 12, again) == whole
    assert len({json.dumps(params) for params, _ in whole}) == 12, "points are repeated"
    if sampler != "grid":
        assert walked(asked, 3, seed=4) != whole[:3]


def test_the_gaussian_process_finds_what_chance_does_not() -> None:
    lowest = {}
    for sampler in ("random", "gp"):
        asked = Search.model_validate({"space": SPACE, "sampler": sampler, "trials": 16})
        lowest[sampler] = [min(value for _, value in walked(asked, 16, seed=seed)) for seed in (1, 2)]
    assert np.mean(lowest["gp"]) < 0.5 * np.mean(lowest["random"]), lowest


def test_the_gaussian_process_waits_for_something_to_learn_from_and_keeps_to_the_space() -> None:
    space = distributions(Search.model_validate({"space": SPACE}).space)
    study = optuna.create_study(sampler=SeededSampler(lambda seed: GaussianProcessSampler(space, seed), 1))
    for number in range(9):
        trial = study.ask(space)
        for name, distribution in space.items():
            assert distribution._contains(distribution.to_internal_repr(trial.params[name]))
        if number == 6:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)  # counts for nothing
        else:
            study.tell(trial, 5.0)  # all equal: nothing to learn, nothing to divide by


def test_expected_improvement() -> None:
    mean, deviation = np.array([0.0, 1.0, -1.0, 0.0]), np.array([1.0, 1.0, 1e-9, 1e-9])
    found = expected_improvement(mean, deviation, 0.0)
    assert found[0] == pytest.approx(1 / math.sqrt(2 * math.pi))  # the mean of the positive half of a normal variable
    assert found[1] == pytest.approx(0.0833, abs=1e-4)
    assert found[2] == pytest.approx(1.0)
    assert found[3] == pytest.approx(0.0, abs=1e-9)


def test_a_grid_has_every_choice_and_spreads_ranges_as_far_as_trials_reach() -> None:
    asked = Search.model_validate({"space": SPACE, "sampler": "grid", "trials": 60})
    points = grid(asked.space, 60)
    assert points["calibration"] == ["platt", "isotonic"]
    assert points["max_depth"] == [2, 4, 6]
    assert points["learning_rate"] == pytest.approx([0.02, math.sqrt(0.02 * 0.6), 0.6])
    assert points["subsample"] == pytest.approx([0.5, 0.75, 1.0])


def test_choices_of_lists_come_back_as_they_were() -> None:
    asked = Search.model_validate(
        {
            "space": {
                "hidden": {"kind": "choice", "values": [[8], [16, 8]]},
                "x": {"kind": "choice", "values": [1, True, None, "a"]},
            }
        }
    )
    stored = distributions(asked.space)["hidden"].choices  # type: ignore[attr-defined]
    assert chosen_params(asked.space, {"hidden": stored[1], "x": True}) == {"hidden": [16, 8], "x": True}
    assert chosen_params(asked.space, {"hidden": stored[0], "x": None}) == {"hidden": [8], "x": None}


@pytest.mark.parametrize("pruner", ["median", "hyperband", "asha"])
def test_a_pruner_gives_up_what_is_plainly_worse(pruner: str) -> None:
    asked = Search.model_validate({"space": SPACE, "pruner": pruner, "trials": 20})
    study = optuna.create_study(study_name="fixed", sampler=sampler_of(asked, 1), pruner=pruner_of(asked, 81))
    given_up = 0
    for number in range(20):
        trial = study.ask()
        for step in range(1, 82):
            trial.report(float(number), step)
            if trial.should_prune():
                given_up += 1
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, float(number))
    assert study.trials[0].state == optuna.trial.TrialState.COMPLETE
    assert given_up > 5


# ---- a kill changes nothing --------------------------------------------------------------------------------------

# At the end of the n-th fit, when its trial still runs; or when the n-th trial has ended, and the next has not been
# asked for.
_KILLED = """
import os, signal, sys
import training.search.study as search, training.search.trials as trials
from training.__main__ import main
owner, name = (trials, "fit_and_judge") if sys.argv[2] == "running" else (search._Log, "_say")
whole, begun = getattr(owner, name), []
def killed(*given):
    begun.append(1)
    try:
        return whole(*given)
    finally:
        if len(begun) == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, killed)
main([sys.argv[1]])
"""


@pytest.mark.parametrize(
    ("sampler", "pruner", "when", "number"),
    [
        ("tpe", "none", "running", 3),
        ("gp", "median", "running", 7),
        ("gp", "hyperband", "between", 9),
        ("tpe", "hyperband", "running", 9),
        ("random", "asha", "running", 9),
    ],
)
def test_a_study_that_goes_on_is_the_one_that_was_not_disturbed(
    sampler: str, pruner: str, when: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, disturbed = (
        searched_job(tmp_path / name, sampler=sampler, pruner=pruner, trials=12)
        for name in ("undisturbed", "disturbed")
    )
    searched(undisturbed)
    process = subprocess.run(
        [sys.executable, "-c", _KILLED, str(disturbed), when, str(number)], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == -signal.SIGKILL, process.stdout + process.stderr
    states = [
        trial.state.name
        for trial in optuna.load_study(study_name=None, storage=f"sqlite:///{disturbed}/study/study.db").trials
    ]
    ended = number - 1 if when == "running" else number
    assert states[ended:] == (["RUNNING"] if when == "running" else [])
    ran: list[int] = []
    whole = trials.run_trial

    def counted(task: Any, fit: Any, validation: Any, number: int, *rest: Any) -> Any:
        ran.append(number)
        return whole(task, fit, validation, number, *rest)

    monkeypatch.setattr(trials, "run_trial", counted)
    lines: list[str] = []
    found = searched(disturbed, lines.append)
    assert lines[0] == f"search: goes on, {ended} of 12 trials had ended"
    assert ran == list(range(ended + 1, 13)), "a trial was lost or repeated"
    assert told(disturbed) == told(undisturbed)
    assert sum(found.summary["trials"].values()) == 12
    ran.clear()
    assert searched(disturbed) == found  # killed after the search: nothing runs again
    assert ran == []


def test_trials_at_once_give_the_same_study_killed_or_not(tmp_path: Path) -> None:
    undisturbed, disturbed = (
        searched_job(tmp_path / name, sampler="random", parallel=2, trials=5) for name in ("undisturbed", "disturbed")
    )
    run(undisturbed)
    process = subprocess.Popen(
        [sys.executable, "-m", "training", str(disturbed)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("trial 3 of 5") or line.startswith("trial 4 of 5"):
            os.kill(process.pid, signal.SIGKILL)
            break
    process.communicate(timeout=60)  # ends only when the workers, who hold its standard output too, have ended
    run(disturbed)
    assert told(disturbed) == told(undisturbed)
    assert [trial["trial"] for trial in told(disturbed)] == [1, 2, 3, 4, 5]
    assert (
        json.loads((disturbed / "manifest.json").read_text())["artifacts"]
        == json.loads((undisturbed / "manifest.json").read_text())["artifacts"]
    )


def test_another_job_starts_anew(tmp_path: Path) -> None:
    job_dir = searched_job(tmp_path / "job", trials=2)
    searched(job_dir)
    job = json.loads((job_dir / "job.json").read_text())
    (job_dir / "job.json").write_text(json.dumps(job | {"identity": "another", "seed": 8}))
    lines: list[str] = []
    searched(job_dir, lines.append)
    assert lines[0].startswith("search: 2 trials of max_depth")
    assert json.loads((job_dir / "search.json").read_text())["identity"] == "another"


# ---- what it leaves ----------------------------------------------------------------------------------------------


def test_the_best_trial_is_trained_again_as_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job_dir = searched_job(tmp_path / "job", outputs=OUTPUTS, metric="late_probability/brier", trials=4)
    run(job_dir)
    manifest = json.loads((job_dir / "manifest.json").read_text())
    trials_told = told(job_dir)
    best = min(trials_told, key=lambda trial: trial["value"])
    assert manifest["search"] == {
        "sampler": "tpe",
        "pruner": "none",
        "metric": "late_probability/brier",
        "trials": {"complete": 4, "pruned": 0, "failed": 0},
        "stopped": "all trials",
        "best_trial": best["trial"],
        "best_value": best["value"],
    }
    assert {name: manifest["params"][name] for name in SPACE} == best["params"]
    assert manifest["metrics"]["late_probability/brier"] == best["value"], "the model is not the trial's"
    assert json.loads((job_dir / "model" / "contract.json").read_text())["params"] == manifest["params"]
    assert best["curve"][0][0] == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trial ")]
    assert lines[0].startswith(
        f"trial 1 of 4: late_probability/brier {trials_told[0]['value']:.5g} (the best so far), max_depth "
    )
    assert [step for step, _ in json.loads((job_dir / "curves.json").read_text())["search/best"]] == [1, 2, 3, 4]
    assert [path.name for path in (job_dir / "study").iterdir()] == ["study.db"]


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_trial_that_fails_is_told_and_the_search_goes_on(parallel: int, tmp_path: Path) -> None:
    space = {"residual_of": {"kind": "choice", "values": ["v__nothing", "v__x"]}}
    keras = {"hidden": [4], "epochs": 1, "threads": 1}
    asked = {"space": space, "sampler": "grid", "trials": 2, "parallel": parallel}
    job_dir = searched_job(tmp_path / "job", family="keras", params=keras, **asked)
    lines: list[str] = []
    found = searched(job_dir, lines.append)
    assert found.summary["trials"] == {"complete": 1, "pruned": 0, "failed": 1}
    assert found.params["residual_of"] == "v__x"
    (failed,) = [trial for trial in told(job_dir) if trial["state"] == "failed"]
    assert "residual_of names 'v__nothing', which is not a feature" in failed["reason"]
    assert any("failed: TrainingImpossible" in line for line in lines)


def test_when_all_trials_fail_it_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverged(*_: Any) -> Any:
        raise TrainingDiverged("the loss is nan in round 3.")

    monkeypatch.setattr(trials, "fit_and_judge", diverged)
    job_dir = searched_job(tmp_path / "job", trials=2)
    with pytest.raises(
        TrainingImpossible,
        match=r"none of the 2 trials of the search was completed\. The first: .*the loss is nan in round 3\.",
    ):
        searched(job_dir)
    assert [trial["state"] for trial in told(job_dir)] == ["failed", "failed"]


def test_no_trial_starts_after_its_time(tmp_path: Path) -> None:
    job_dir = searched_job(tmp_path / "job", timeout_minutes=1)
    ticks = iter([0.0, 0.0, 59.0, 61.0])
    lines: list[str] = []
    found = searched(job_dir, lines.append, clock=lambda: next(ticks))
    assert found.summary["trials"]["complete"] == 2
    assert found.summary["stopped"] == "time"
    assert "search: the time of 1 minutes is over, 5 trials were not started" in lines
    assert searched(job_dir).summary == found.summary  # and none after a kill


def test_with_cross_validation_a_trial_is_worth_the_mean_of_its_folds(tmp_path: Path) -> None:
    job_dir = searched_job(
        tmp_path / "job", trials=2, sampler="random", trainer={"cross_validation": {"folds": 2, "embargo": "1 day"}}
    )
    run(job_dir)
    manifest = json.loads((job_dir / "manifest.json").read_text())
    assert manifest["cross_validation"]["mean"]["minutes/mae"] == manifest["search"]["best_value"]
    assert len(manifest["cross_validation"]["folds"]) == 2
    assert [[step for step, _ in trial["curve"]] for trial in told(job_dir)] == [[1, 2], [1, 2]]


def test_every_trial_is_a_run_below_the_models_own_once(
    tmp_path: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:

    def lost(*_: Any) -> None:
        raise ConnectionError

    trainer = {"cross_validation": {"folds": 2, "embargo": "1 day"}}
    job_dir = searched_job(tmp_path / "job", trials=4, sampler="random", pruner="median", trainer=trainer)
    found = searched(job_dir)
    document = json.loads((job_dir / "search.json").read_text())
    document["trials"][3] |= {
        "state": "failed",
        "value": None,
        "reason": "TrainingDiverged: the loss is nan",
        "curve": [],
        "metrics": {},
    }
    (job_dir / "search.json").write_text(json.dumps(document))
    manifest = {"search": found.summary, "cross_validation": found.cross_validation}
    client = tracking_client(Settings(mlflow_tracking_uri=mlflow_server))
    experiment = client.create_experiment("search")
    parent = client.create_run(experiment, run_name="toy").info.run_id
    with monkeypatch.context() as patch:
        patch.setattr(client, "set_terminated", lost)
        with pytest.raises(ConnectionError):
            log_search(client, parent, manifest, job_dir)  # the first trial's run was made, and is not finished
    for _ in range(2):
        log_search(client, parent, manifest, job_dir)
    runs = {
        run.data.tags["trial"]: run
        for run in client.search_runs([experiment])
        if run.data.tags.get("mlflow.parentRunId") == parent
    }
    assert len(client.search_runs([experiment])) == 5
    assert set(runs) == {"1", "2", "3", "4"}
    for trial in document["trials"]:
        run_of_it = runs[str(trial["trial"])]
        assert run_of_it.data.params == {name: str(value) for name, value in trial["params"].items()}
        assert run_of_it.data.tags["state"] == trial["state"]
        assert run_of_it.info.status == ("FAILED" if trial["state"] == "failed" else "FINISHED")
        curve = client.get_metric_history(run_of_it.info.run_id, "trial/curve") if trial["curve"] else []
        assert [[point.step, point.value] for point in curve] == trial["curve"]
        if trial["value"] is not None:
            assert run_of_it.data.metrics["trial/minutes/mae"] == trial["value"]
    assert [trial for trial, run_of_it in runs.items() if run_of_it.data.tags["best"] == "true"] == [
        str(found.summary["best_trial"])
    ]
    metrics = client.get_run(parent).data.metrics
    assert metrics["cross_validation/minutes/mae/mean"] == found.summary["best_value"]
    assert [point.step for point in client.get_metric_history(parent, "fold/minutes/mae")] == [1, 2]
    assert {file.path for file in client.list_artifacts(parent)} == {"search.html", "search.json"}


def test_the_page_shows_every_trial_and_loads_nothing(tmp_path: Path) -> None:
    job_dir = searched_job(tmp_path / "job", trials=3, sampler="random")
    searched(job_dir)
    page = search_page(json.loads((job_dir / "search.json").read_text()))
    assert page.count('class="plotly-graph-div"') == 2
    assert '"type":"parcoords"' in page
    assert all(name in page for name in SPACE)
    assert "<link" not in page
    assert not re.search(r"<script[^>]*\bsrc=", page), "a page on a machine without a network shows nothing"

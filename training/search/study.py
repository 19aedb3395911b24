"""The search for trainer parameters, before the model itself is trained with the best of them.

The study lies in the job's folder, in a SQLite file that survives a kill at any moment. What was running then runs
again with the same number and parameters; what had ended stays. Each draw follows from the seed, the trial's number and
the trials that had ended, so a study that goes on is the one that was not disturbed.

Trials at once are asked for in batches: the next batch is drawn when all of the last have ended, which makes the result
the same each time. With a pruner it is not quite: whether a trial is given up depends on how far its neighbours have
come by then.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from config.catalog.trainer import ChoiceSpace, Search, Space, Trainer, UniformSpace
from serving.metrics import NAMES, metric_named
from serving.predictors import Contract
from serving.predictors.contract import write_json
from training.evaluate import evaluate
from training.progress import Progress
from training.search.trials import AtOnce, InTurn, Outcome, Runner, Task, Watch
from training.trainers import BadParameter, Floats, Rows, TrainingImpossible, family_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

STUDY_FOLDER = "study"
SEARCH_FILE = "search.json"
_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        params: of the best trial, all of them.
        summary: sampler, pruner, metric, number of trials by state, the best trial and its value.
        cross_validation: of the best trial, where trials were cross-validated.
    """

    params: dict[str, Any]
    summary: dict[str, Any]
    cross_validation: dict[str, Any] | None


def check_search(trainer: Trainer, overrides: Iterable[str] = ()) -> None:
    """Refuse a space that the family's parameters do not hold; a trainer without a search is fine.

    Args:
        overrides: names of parameters that a form has set.
    Raises:
        BadParameter: a parameter is unknown, set by the form too, or its space reaches values that the family refuses.
    """
    if trainer.search is None:
        return
    family = trainer.family
    kind = family_of(family).Params
    for name, space in trainer.search.space.items():
        if name not in kind.model_fields:
            raise BadParameter(
                f"search.space names {name!r}, but {family} has no such parameter. Known: "
                f"{', '.join(kind.model_fields)}."
            )
        if name in overrides:
            raise BadParameter(
                f"{name} is searched, so the form cannot set it. Leave it out of the form, or take it out of "
                "search.space."
            )
        for value in _probes(space):
            try:
                kind(**{**trainer.params, name: value})
            except ValidationError as error:
                problem = next((p for p in error.errors() if p["loc"][:1] == (name,)), error.errors()[0])
                raise BadParameter(
                    f"search.space.{name} holds {value!r}, which the {family} parameter does not take: "
                    f"{problem['msg']}. Fix the space."
                ) from error


def search(
    job: Mapping[str, Any],
    contract: Contract,
    fit: Rows,
    validation: Rows,
    job_dir: Path,
    *,
    progress: Progress,
    scratch: Path,
    checkpoint_seconds: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Run the search that the job's trainer asks for, or what is left of it; writes `search.json`.

    Args:
        contract: with the parameters that do not vary.
        fit, validation: what trials learn from, and are judged on; with cross-validation together cut into folds.
        job_dir: the study lies below it, and is only this job's: one of another identity is thrown away.
        progress: a line and a point for each trial.
        clock: seconds that only grow.
    Raises:
        BadParameter: the space does not fit the family, or the metric is none.
        TrainingImpossible: no trial succeeded.
    """
    import optuna

    from training.search.samplers import distributions, grid_size, pruner_of, sampler_of, settle

    trainer = Trainer.model_validate(job["entry"]["trainer"])
    asked = trainer.search
    assert asked is not None  # the caller has looked
    check_search(trainer)
    judged = [fit.label, validation.label] if trainer.cross_validation else [validation.label]
    metric = _metric(asked, contract, np.concatenate(judged))
    total = min(asked.trials, grid_size(asked.space, asked.trials)) if asked.sampler == "grid" else asked.trials
    parallel = min(asked.parallel, total)
    folder = job_dir / STUDY_FOLDER
    threads = contract.params.get("threads")
    task = Task(
        contract=contract,
        metric=metric,
        cross_validation=trainer.cross_validation,
        seed=job["seed"],
        device=trainer.device,
        checkpoint_seconds=checkpoint_seconds,
        folder=folder,
        scratch=scratch / "trials",
        threads=max(1, threads // parallel) if parallel > 1 and threads else None,
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    highest = {
        **contract.params,
        **{name: max(_probes(space)) for name, space in asked.space.items() if not isinstance(space, ChoiceSpace)},
    }
    study = _opened(folder, job["identity"], sampler_of(asked, job["seed"]), pruner_of(asked, task.last_step(highest)))
    settle(study)
    log = _Log(study, asked, task, total, progress)
    if study.trials:
        progress.line(f"search: goes on, {len(log.ended())} of {total} trials had ended")
        log.show()
    else:
        progress.line(
            f"search: {total} trials of {', '.join(asked.space)} by {asked.sampler}, pruner {asked.pruner}, for the "
            f"lowest {metric}"
        )
    spent = sum(trial.user_attrs["seconds"] for trial in log.ended()) / parallel
    limit = math.inf if asked.timeout_minutes is None else asked.timeout_minutes * 60.0
    started = clock()
    runner: Runner = AtOnce(task, fit, validation, parallel) if parallel > 1 else InTurn(task, fit, validation)
    try:
        while "stopped" not in study.user_attrs:
            trials = study.get_trials(deepcopy=False)
            batch = [
                _resumed(study, trial.number) for trial in trials if trial.state == optuna.trial.TrialState.RUNNING
            ]
            if not batch and len(trials) >= total:
                study.set_user_attr("stopped", "all trials")
            elif not batch and spent + clock() - started >= limit:
                progress.line(
                    f"search: the time of {asked.timeout_minutes:g} minutes is over, {total - len(trials)} trials were "
                    "not started"
                )
                study.set_user_attr("stopped", "time")
            else:
                # A batch is drawn whole before any of it runs: one that was cut short while it was drawn is drawn to
                # its end.
                wanted = (
                    len(trials)
                    if batch and len(trials) % parallel == 0
                    else min(total, (len(trials) // parallel + 1) * parallel)
                )
                batch += [study.ask() for _ in range(wanted - len(trials))]
                varied = {trial.number + 1: _drawn(trial, distributions(asked.space), asked.space) for trial in batch}
                watches = {trial.number + 1: log.watch(trial) for trial in batch}
                runner.run(varied, watches, log.tell)
    finally:
        if isinstance(runner, AtOnce):
            runner.close()
        shutil.rmtree(task.scratch, ignore_errors=True)
    return _found(job, task, asked, study, log, job_dir)


class _Log:
    """What happens to trials: into the study, into curves, and said in lines. Trials are numbered from 1 here."""

    def __init__(self, study: Study, asked: Search, task: Task, total: int, progress: Progress) -> None:
        self._study, self._asked, self._task, self._total, self._progress = study, asked, task, total, progress
        self._curves: dict[int, list[tuple[int, float]]] = {}

    def ended(self) -> list[FrozenTrial]:
        """Trials that are over, whatever came of them."""
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def best(self) -> FrozenTrial | None:
        """The complete trial with the lowest value, the first of equals."""
        complete = [trial for trial in self.ended() if trial.value is not None and trial.state.name == "COMPLETE"]
        return min(complete, key=lambda trial: (trial.value, trial.number), default=None)

    def show(self) -> None:
        """Draw the history of the trials that ended before a kill."""
        lowest = math.inf
        for trial in self.ended():
            if trial.state.name == "COMPLETE" and trial.value is not None:
                lowest = min(lowest, trial.value)
                self._progress.point("search/value", trial.number + 1, trial.value)
            self._progress.point("search/best", trial.number + 1, lowest)

    def watch(self, trial: Trial) -> Watch:
        """Takes the trial's curve, and asks the pruner."""
        curve = self._curves[trial.number] = []

        def watch(step: int, value: float) -> bool:
            curve.append((step, value))
            if self._asked.pruner == "none":
                return False
            trial.report(value, step)
            return trial.should_prune()

        return watch

    def tell(self, number: int, outcome: Outcome) -> None:
        """Put a trial's end into the study, then say it."""
        from optuna.trial import TrialState

        trial = _resumed(self._study, number - 1)
        curve = self._curves[number - 1]
        kept = {
            "seconds": outcome.seconds,
            "curve": curve,
            "metrics": outcome.metrics,
            "reason": outcome.reason,
            "cross_validation": outcome.cross_validation,
        }
        for name, value in kept.items():
            trial.set_user_attr(name, value)
        if outcome.state == "complete":
            self._study.tell(number - 1, outcome.value)
        else:
            self._study.tell(number - 1, state=TrialState.PRUNED if outcome.state == "pruned" else TrialState.FAIL)
        self._say(number, outcome)
        shutil.rmtree(self._task.folder / f"trial-{number}", ignore_errors=True)

    def _say(self, number: int, outcome: Outcome) -> None:
        best = self.best()
        values = ", ".join(
            f"{name} {_shown(value)}"
            for name, value in self._study.get_trials(deepcopy=False)[number - 1].params.items()
        )
        standing = f" (best {best.value:.5g}, trial {best.number + 1})" if best else ""
        match outcome.state:
            case "complete":
                standing = " (the best so far)" if best and best.number == number - 1 else standing
                came = f"{self._task.metric} {outcome.value:.5g}{standing}"
                self._progress.point("search/value", number, outcome.value)
            case "pruned":
                came = f"given up at step {self._curves[number - 1][-1][0]}{standing}"
            case _:
                came = f"failed: {outcome.reason}{standing}"
        if best and best.value is not None:
            self._progress.point("search/best", number, best.value)
        self._progress.line(f"trial {number} of {self._total}: {came}, {values}")


def _opened(folder: Path, identity: str, sampler: Any, pruner: Any) -> Study:
    """The job's study, found or made. Its name is fixed: Hyperband sorts trials by it."""
    import optuna

    file, again = folder / "study.db", folder / "study.again.db"
    if file.is_file() and identity not in optuna.get_all_study_names(f"sqlite:///{file}"):
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{file}", study_name=identity, sampler=sampler, pruner=pruner, load_if_exists=True
    )
    if all(trial.state.is_finished() for trial in study.trials):
        return study
    # What ran at the kill keeps its number and parameters, and nothing else: pruners note in a trial what it has
    # passed, also what it was just about to fail. A study forgets nothing, so it is copied.
    again.unlink(missing_ok=True)
    copy = optuna.create_study(storage=f"sqlite:///{again}", study_name=identity)
    for name, value in study.user_attrs.items():
        copy.set_user_attr(name, value)
    running = optuna.trial.TrialState.RUNNING
    for trial in study.trials:
        kept = (
            trial
            if trial.state.is_finished()
            else optuna.trial.create_trial(state=running, params=trial.params, distributions=trial.distributions)
        )
        copy.add_trial(kept)
    again.replace(file)
    return optuna.load_study(storage=f"sqlite:///{file}", study_name=identity, sampler=sampler, pruner=pruner)


def _resumed(study: Study, number: int) -> Trial:
    """A trial that was asked for, to go on with under its number."""
    import optuna

    return optuna.trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def _drawn(trial: Trial, space: Mapping[str, Any], catalog_space: Mapping[str, Space]) -> dict[str, Any]:
    """The trial's parameters as the trainer takes them; those it has already stay."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    from training.search.samplers import chosen_params

    drawn: dict[str, Any] = {}
    for name, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            drawn[name] = trial.suggest_categorical(name, distribution.choices)
        elif isinstance(distribution, IntDistribution):
            drawn[name] = trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step)
        else:
            drawn[name] = trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
    return chosen_params(catalog_space, drawn)


def _found(job: Mapping[str, Any], task: Task, asked: Search, study: Study, log: _Log, job_dir: Path) -> Found:
    from training.search.samplers import chosen_params

    trials = study.get_trials(deepcopy=False)
    best = log.best()
    counts = {
        state: sum(_STATES[trial.state.name] == state for trial in trials) for state in ("complete", "pruned", "failed")
    }
    summary = {
        "sampler": asked.sampler,
        "pruner": asked.pruner,
        "metric": task.metric,
        "trials": counts,
        "stopped": study.user_attrs["stopped"],
    }
    if best:
        summary |= {"best_trial": best.number + 1, "best_value": best.value}
    documents = [
        {
            "trial": trial.number + 1,
            "state": _STATES[trial.state.name],
            "params": chosen_params(asked.space, trial.params),
            "value": trial.value if trial.state.name == "COMPLETE" else None,
            **{name: trial.user_attrs[name] for name in ("seconds", "curve", "metrics", "reason")},
        }
        for trial in trials
    ]
    space = {name: one.model_dump(mode="json") for name, one in asked.space.items()}
    write_json(
        job_dir / SEARCH_FILE,
        {"model": job["model"], "identity": job["identity"], "space": space, "summary": summary, "trials": documents},
    )
    if best is None:
        reasons = [str(document["reason"]) for document in documents if document["reason"]]
        why = f"The first: {reasons[0]}" if reasons else "All were given up."
        raise TrainingImpossible(
            f"{job['model']}: none of the {len(trials)} trials of the search was completed. {why} Fix `trainer.search`."
        )
    return Found(task.params(chosen_params(asked.space, best.params)), summary, best.user_attrs["cross_validation"])


def _metric(asked: Search, contract: Contract, label: Floats) -> str:
    """The metric to lower.

    Raises:
        BadParameter: there is no such metric.
        TrainingImpossible: the labels tell nothing of it.
    """
    name, output = next(iter(contract.kinds.items()))
    metric = asked.metric or f"{name}/{output.gate}"
    trivial = contract.published(np.full((len(label), len(contract.raw_columns)), 0.5))
    errors = {name for name in NAMES if not metric_named(name).greater_is_better}
    known = [figure for figure in evaluate(contract.kinds, label, trivial) if figure.split("/")[1] in errors]
    if metric not in known:
        why = output.untold(label) if metric == f"{name}/{output.gate}" else None
        if why is not None:
            raise TrainingImpossible(
                f"{contract.model}: a search would lower {metric} of validation, where {why}: not evaluated. Widen "
                "`split.validation` until it holds both, or let the search cross-validate."
            )
        raise BadParameter(
            f"search.metric is {metric!r}, which is not a metric of {contract.model} to be minimised. Known: "
            f"{', '.join(known)}."
        )
    return metric


def _probes(space: Space) -> tuple[Any, ...]:
    """Values that show whether a parameter takes the whole space."""
    if isinstance(space, ChoiceSpace):
        return tuple(list(value) if isinstance(value, tuple) else value for value in space.values)
    if isinstance(space, UniformSpace):
        return (
            space.low,
            space.high,
            space.low + 0.618 * (space.high - space.low),
        )  # a whole number will not take a fraction
    if space.kind == "log_uniform":
        return (space.low, space.high, space.low * (space.high / space.low) ** 0.618)
    return (space.low, space.high)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

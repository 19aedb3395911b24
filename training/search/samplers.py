"""Which parameters a search tries next: Optuna's samplers and pruners as the catalog names them, each draw a function
of seed and trial.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from config.catalog.trainer import ChoiceSpace, IntegerSpace, LogUniformSpace, Search, Space

STARTUP_TRIALS = 5


class SeededSampler(BaseSampler):
    """Another sampler, made anew for every draw.

    Optuna's samplers carry a random state from draw to draw. A study that goes on after a kill has lost it, and would
    go another way. Here every draw follows from the study, the seed, the trial's number and what is drawn.

    Args:
        make: a sampler of a seed.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """As the sampler does."""
        self._of(trial, "").before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler does."""
        return self._of(trial, "").infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler does, from a state of this trial's own."""
        return self._of(trial, "").sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler does, from a state of this trial's and parameter's own."""
        return self._of(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

    def _of(self, trial: FrozenTrial, drawn: str) -> BaseSampler:
        digest = hashlib.sha256(json.dumps([self._seed, trial.number, drawn]).encode()).digest()
        return self._make(int.from_bytes(digest[:4], "big"))


def stored_choice(value: Any) -> Any:
    """A choice as a study holds it: a list of numbers, which it cannot hold, as JSON."""
    return json.dumps(list(value)) if isinstance(value, list | tuple) else value


def distributions(space: Mapping[str, Space]) -> dict[str, BaseDistribution]:
    """The catalog's spaces as Optuna's distributions."""
    return {name: _distribution(one) for name, one in space.items()}


def chosen_params(space: Mapping[str, Space], stored: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's parameters as a trainer takes them."""
    restored = dict(stored)
    for name, one in space.items():
        if isinstance(one, ChoiceSpace):
            restored[name] = next(
                value
                for value in one.values
                if stored_choice(value) == stored[name] and type(stored_choice(value)) is type(stored[name])
            )
    return {name: list(value) if isinstance(value, tuple) else value for name, value in restored.items()}


def sampler_of(asked: Search, seed: int) -> BaseSampler:
    """The sampler that the catalog names."""
    if asked.sampler == "grid":
        # Its seed orders the points, and must be the same in every trial.
        return SeededSampler(lambda _: GridSampler(grid(asked.space, asked.trials), seed=seed), seed)
    if asked.sampler == "random":
        return SeededSampler(lambda own: RandomSampler(seed=own), seed)
    if asked.sampler == "gp":
        from training.search.gp_sampler import GaussianProcessSampler

        return SeededSampler(lambda own: GaussianProcessSampler(distributions(asked.space), own), seed)
    return SeededSampler(lambda own: TPESampler(seed=own, n_startup_trials=STARTUP_TRIALS, multivariate=True), seed)


def pruner_of(asked: Search, resource: int) -> BasePruner:
    """The pruner that the catalog names.

    Args:
        resource: the last step a trial can report.
    """
    match asked.pruner:
        case "median":
            return MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=resource // 10)
        case "asha":
            return SuccessiveHalvingPruner(min_resource=max(1, resource // 27), reduction_factor=3)
        case "hyperband":
            return HyperbandPruner(min_resource=max(1, resource // 27), max_resource=resource, reduction_factor=3)
        case _:
            return NopPruner()


def settle(study: Study) -> None:
    """Let the pruner set itself up now.

    Hyperband does so when it is first asked, and until then takes all trials for those of one bracket: a study that
    goes on would not be the one that was not disturbed.
    """
    study.pruner.prune(study, create_trial(state=TrialState.RUNNING))


def grid(space: Mapping[str, Space], trials: int) -> dict[str, list[Any]]:
    """The points of a grid search, by parameter: every choice, and of each range as many values, evenly spread, as
    `trials` leaves room for.
    """
    choices = math.prod(len(one.values) for one in space.values() if isinstance(one, ChoiceSpace))
    ranges = sum(not isinstance(one, ChoiceSpace) for one in space.values())
    count = 2
    while ranges and choices * (count + 1) ** ranges <= trials:
        count += 1
    return {name: _points(one, count) for name, one in space.items()}


def grid_size(space: Mapping[str, Space], trials: int) -> int:
    """How many points `grid` has."""
    return math.prod(len(values) for values in grid(space, trials).values())


def _distribution(space: Space) -> BaseDistribution:
    if isinstance(space, ChoiceSpace):
        return CategoricalDistribution([stored_choice(value) for value in space.values])
    if isinstance(space, IntegerSpace):
        return IntDistribution(space.low, space.high - (space.high - space.low) % space.step, step=space.step)
    return FloatDistribution(space.low, space.high, log=isinstance(space, LogUniformSpace))


def _points(space: Space, count: int) -> list[Any]:
    if isinstance(space, ChoiceSpace):
        return [stored_choice(value) for value in space.values]
    if isinstance(space, IntegerSpace):
        values = range(space.low, space.high + 1, space.step)
        return sorted({values[round(index)] for index in np.linspace(0, len(values) - 1, min(count, len(values)))})
    if isinstance(space, LogUniformSpace):
        return [float(value) for value in np.clip(np.geomspace(space.low, space.high, count), space.low, space.high)]
    return [float(value) for value in np.linspace(space.low, space.high, count)]

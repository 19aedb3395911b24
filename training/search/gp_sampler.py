"""Bayesian optimisation by a Gaussian process: an Optuna sampler on scikit-learn's regressor (Optuna's own needs
torch).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

STARTUP_TRIALS = 5
_CANDIDATES = 2_048
_LOCAL_CANDIDATES = 512
# Standard deviations of the steps from the best point so far, in a cube whose edges are 1 long.
_LOCAL_STEPS = (0.02, 0.1)
# Below it a parameter's values count as equal, so that two values of an integer are never taken for one.
_SHORTEST_LENGTH = 0.01

Points = npt.NDArray[np.float64]


class GaussianProcessSampler(BaseSampler):
    """Proposes the point with the greatest expected improvement on the lowest value so far.

    The space becomes a cube: numbers on [0, 1], on a log scale where they have one, and choices as one coordinate each.
    A Matérn kernel has a length for each coordinate. Trials that still run count as if they gave the mean of those that
    have finished, so that trials at once are not all the same; pruned ones count with their last value.

    Args:
        space: all parameters; the first `STARTUP_TRIALS` points are random.
        seed: with equal finished trials the same seed proposes the same point.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], seed: int) -> None:
        self._space = dict(space)
        self._seed = seed
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All of it, as soon as there is enough to learn from."""
        return {} if len(_told(study)) < STARTUP_TRIALS else dict(self._space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """One value a parameter."""
        from threadpoolctl import threadpool_limits

        observations = _told(study)
        if not search_space or len(observations) < STARTUP_TRIALS:
            return {}
        values = np.array([value for _, value in observations])
        values = (values - values.mean()) / (values.std() or 1.0)
        points = [params for params, _ in observations]
        running = [
            t.params
            for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if t.number != trial.number and len(t.params) == len(self._space)
        ]
        cube = np.array([self._coordinates(params) for params in [*points, *running]])
        values = np.concatenate([values, np.zeros(len(running))])
        generator = np.random.default_rng(self._seed)
        best = points[int(np.argmin(values[: len(points)]))]
        candidates = self._candidates(generator, best)
        coordinates = np.array([self._coordinates(params) for params in candidates])
        with threadpool_limits(1):  # matrices of a few rows: threads would do nothing but wait for each other
            mean, deviation = _fitted(cube, values, self._seed).predict(coordinates, return_std=True)
        return candidates[int(np.argmax(expected_improvement(mean, deviation, float(values.min()))))]

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _candidates(self, generator: np.random.Generator, best: Mapping[str, Any]) -> list[dict[str, Any]]:
        anywhere = generator.random((_CANDIDATES, len(self._space)))
        candidates = [
            dict(zip(self._space, (_value(d, u) for d, u in zip(self._space.values(), row, strict=True)), strict=True))
            for row in anywhere
        ]
        centre = [_position(distribution, best[name]) for name, distribution in self._space.items()]
        for index, row in enumerate(generator.normal(size=(_LOCAL_CANDIDATES, len(self._space)))):
            step = _LOCAL_STEPS[index % len(_LOCAL_STEPS)]
            nearby: dict[str, Any] = {}
            for (name, distribution), middle, moved in zip(self._space.items(), centre, row, strict=True):
                # A choice has no neighbours: it stays, or now and then is any.
                if isinstance(distribution, CategoricalDistribution) and abs(moved) < 1.5:
                    nearby[name] = best[name]
                    continue
                position = generator.random() if math.isnan(middle) else middle + step * moved
                nearby[name] = _value(distribution, position)
            candidates.append(nearby)
        return candidates

    def _coordinates(self, params: Mapping[str, Any]) -> list[float]:
        row: list[float] = []
        for name, distribution in self._space.items():
            if isinstance(distribution, CategoricalDistribution):
                chosen = int(distribution.to_internal_repr(params[name]))
                row += [float(index == chosen) for index in range(len(distribution.choices))]
            else:
                row.append(_position(distribution, params[name]))
        return row


def expected_improvement(mean: Points, deviation: Points, lowest: float) -> Points:
    """How far below `lowest` a normal variable is expected to lie, counting 0 where it lies above; 0 without deviation
    or gain.
    """
    from scipy.stats import norm

    gain = lowest - mean
    safe = np.maximum(deviation, 1e-12)
    improvement: Points = gain * norm.cdf(gain / safe) + safe * norm.pdf(gain / safe)
    return np.maximum(improvement, 0.0)


def _told(study: Study) -> list[tuple[dict[str, Any], float]]:
    """Parameters and value of every trial that has one, in the order of their numbers."""
    observations = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        value = (
            trial.value if trial.state == TrialState.COMPLETE else trial.intermediate_values.get(trial.last_step or 0)
        )
        if value is not None and math.isfinite(value):
            observations.append((trial.params, value))
    return observations


def _fitted(cube: Points, values: Points, seed: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    lengths = Matern(np.full(cube.shape[1], 0.5), [(_SHORTEST_LENGTH, 10.0)] * cube.shape[1], nu=2.5)
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * lengths + WhiteKernel(1e-3, (1e-6, 1.0))
    model = GaussianProcessRegressor(kernel, n_restarts_optimizer=1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound: the parameter does not matter
        return model.fit(cube, values)


def _position(distribution: BaseDistribution, value: Any) -> float:
    """Where a number lies between its bounds, in [0, 1]; NaN for a choice."""
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        return math.nan
    low, high, at = (
        math.log(v) if distribution.log else float(v) for v in (distribution.low, distribution.high, value)
    )
    return (at - low) / ((high - low) or 1.0)


def _value(distribution: BaseDistribution, position: float) -> Any:
    """The value at a position, which may lie a little outside [0, 1]."""
    inside = min(1.0, max(0.0, position))
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[min(int(inside * len(distribution.choices)), len(distribution.choices) - 1)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = (math.log(v) if distribution.log else float(v) for v in (distribution.low, distribution.high))
    at = low + inside * (high - low)
    at = math.exp(at) if distribution.log else at
    if isinstance(distribution, IntDistribution):
        return min(
            distribution.high, distribution.low + distribution.step * round((at - distribution.low) / distribution.step)
        )
    return min(distribution.high, max(distribution.low, at))

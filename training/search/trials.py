"""The trials of a search, run here one after the other, or several at once in processes of their own."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import hashlib
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from config.catalog.trainer import CrossValidation
from config.errors import NightfleetError
from serving.predictors import Contract
from serving.predictors.brought import FamilyCode, bring, brought
from training.checkpoints import Checkpoints
from training.cross_validation import cross_validate, fit_and_judge
from training.progress import Progress
from training.rows import slices
from training.trainers import Rows, Run, TrainingImpossible, TrialPruned, family_of, validated_params

# So many points of a trial's curve are kept, and shown to the pruner, at most.
_POINTS = 50


@dataclass(frozen=True)
class Task:
    """What all trials of a search share; small enough to be sent to a process.

    Attributes:
        contract: with the parameters that do not vary.
        metric: `<output>/<metric>`, less is better.
        folder: where a trial's checkpoints lie.
        threads: how many each trial may use, where its family has such a parameter.
    """

    contract: Contract
    metric: str
    cross_validation: CrossValidation | None
    seed: int
    device: str
    checkpoint_seconds: float
    folder: Path
    scratch: Path
    threads: int | None

    def params(self, varied: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters of a trial.

        Raises:
            BadParameter: the family does not take them.
        """
        return validated_params(self.contract.family, {**self.contract.params, **varied})

    def last_step(self, highest: Mapping[str, Any]) -> int:
        """The last step a trial can report, when parameters are at most these."""
        if self.cross_validation:
            return self.cross_validation.folds
        rounds = family_of(self.contract.family).ROUNDS
        return 1 if rounds is None else int(highest[rounds])


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        state: complete, pruned or failed.
        value: of the metric; NaN unless complete.
        reason: why it failed.
        cross_validation: as `cross_validate` gives it.
    """

    state: str
    value: float = math.nan
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    cross_validation: dict[str, Any] | None = None
    seconds: float = 0.0


# Takes a step and a value of a trial's curve; says whether to give the trial up.
Watch = Callable[[int, float], bool]


class Runner(Protocol):
    """Runs a batch of trials; `ended` is told of each as it ends."""

    def run(
        self,
        batch: Mapping[int, Mapping[str, Any]],
        watches: Mapping[int, Watch],
        ended: Callable[[int, Outcome], None],
    ) -> None:
        """Run the trials, by number: their varied parameters, and who watches their curves."""


class TrialProgress(Progress):
    """Says nothing; hands the trial's one curve on, and raises TrialPruned when it is not worth finishing.

    The curve is the first that is seen of validation and belongs to the metric's output, or to a network of all
    outputs.
    """

    def __init__(self, output: str, every: int, watch: Watch) -> None:
        super().__init__(say_line=lambda line: None)
        self._output, self._every, self._watch = output, every, watch
        self._curve: str | None = None

    def point(self, metric: str, step: int, value: float) -> None:
        """Add a point to a curve.

        Raises:
            TrialPruned: give this trial up.
        """
        super().point(metric, step, value)
        if self._curve is None and metric.startswith((f"validation/{self._output}/", "validation/network/")):
            self._curve = metric
        if metric == self._curve and step % self._every == 0 and math.isfinite(value) and self._watch(step, value):
            raise TrialPruned


def run_trial(task: Task, fit: Rows, validation: Rows, number: int, varied: Mapping[str, Any], watch: Watch) -> Outcome:
    """Fit and judge one trial. It goes on from its own checkpoints if it was killed before."""
    started = time.monotonic()
    folder = task.folder / f"trial-{number}"
    scratch = task.scratch / f"trial-{number}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    outcome = Outcome("failed")
    try:
        outcome = _judged(task, fit, validation, folder, scratch, varied, watch)
        if not math.isfinite(outcome.value):
            outcome = Outcome("failed", reason=f"{task.metric} is {outcome.value}")
    except TrialPruned:
        outcome = Outcome("pruned")
    except NightfleetError as error:
        outcome = Outcome("failed", reason=str(error))
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        outcome = Outcome("failed", reason=f"{type(error).__name__}: {error}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return dataclasses.replace(outcome, seconds=round(time.monotonic() - started, 3))


def _judged(
    task: Task, fit: Rows, validation: Rows, folder: Path, scratch: Path, varied: Mapping[str, Any], watch: Watch
) -> Outcome:
    """The trial's metrics, on validation or over the folds.

    Raises:
        TrialPruned: `watch` gave it up.
    """
    params = task.params(varied)
    if task.threads is not None and "threads" in params:
        params["threads"] = task.threads
    contract = dataclasses.replace(task.contract, params=params)
    identity = hashlib.sha256(
        json.dumps([contract.training_set_digest, params, task.seed], sort_keys=True).encode()
    ).hexdigest()

    def checkpoints_of(name: str) -> Checkpoints:
        return Checkpoints(folder / name, identity, task.checkpoint_seconds)

    def after_fold(fold: int, metrics: list[dict[str, float]]) -> None:
        told = [of_fold[task.metric] for of_fold in metrics if task.metric in of_fold]
        if told and watch(fold, float(np.mean(told))):
            raise TrialPruned

    if not task.cross_validation:
        output, every = task.metric.split("/")[0], max(1, task.last_step(params) // _POINTS)
        run = Run(task.seed, task.device, TrialProgress(output, every, watch), checkpoints_of("fit"), scratch)
        metrics = fit_and_judge(contract, fit, validation, validation, scratch, run)
        return Outcome("complete", metrics[task.metric], "", metrics)
    quiet = Progress(say_line=lambda line: None)
    run = Run(task.seed, task.device, quiet, checkpoints_of("folds"), scratch)
    folds = cross_validate(
        task.cross_validation,
        contract,
        (fit, validation),
        run=run,
        checkpoints_of=checkpoints_of,
        after_fold=after_fold,
    )
    if task.metric not in folds["mean"]:
        count = len(folds["folds"])
        raise TrainingImpossible(f"the labels of none of {count} folds tell {task.metric}: not evaluated.")
    return Outcome("complete", folds["mean"][task.metric], "", folds["mean"], folds)


class InTurn:
    """Runs trials in this process."""

    def __init__(self, task: Task, fit: Rows, validation: Rows) -> None:
        self._task, self._fit, self._validation = task, fit, validation

    def run(
        self,
        batch: Mapping[int, Mapping[str, Any]],
        watches: Mapping[int, Watch],
        ended: Callable[[int, Outcome], None],
    ) -> None:
        """One after the other."""
        for number, varied in batch.items():
            ended(number, run_trial(self._task, self._fit, self._validation, number, varied, watches[number]))


class AtOnce:
    """Runs trials in worker processes, which end with this one however it ends.

    Args:
        count: workers, each with the rows as memory maps of files in the scratch folder.
    """

    def __init__(self, task: Task, fit: Rows, validation: Rows, count: int) -> None:
        self._task, self._count = task, count
        self._shared = task.scratch / "shared"
        self._shared.mkdir(parents=True)
        for name, rows in (("fit", fit), ("validation", validation)):
            _share(rows, self._shared / name)
        self._workers: list[_Worker] = []

    def run(
        self,
        batch: Mapping[int, Mapping[str, Any]],
        watches: Mapping[int, Watch],
        ended: Callable[[int, Outcome], None],
    ) -> None:
        """As many at once as there are workers; each takes the next trial as soon as it is free."""
        waiting = list(batch.items())
        self._workers = [worker if worker.alive else _Worker(self._task, self._shared) for worker in self._workers]
        while len(self._workers) < min(self._count, len(batch)):
            self._workers.append(_Worker(self._task, self._shared))
        busy: dict[Connection, tuple[_Worker, int]] = {}
        idle = list(self._workers)
        while waiting or busy:
            while waiting and idle:
                worker, (number, varied) = idle.pop(0), waiting.pop(0)
                worker.connection.send((number, dict(varied)))
                busy[worker.connection] = (worker, number)
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                worker, number = busy[ready]
                try:
                    kind, *content = ready.recv()
                except (EOFError, ConnectionError):
                    worker.process.join()
                    del busy[ready]
                    ended(
                        number,
                        Outcome(
                            "failed",
                            reason=(
                                f"its process ended with exit code {worker.process.exitcode} (-9: most likely out of"
                                " memory)"
                            ),
                        ),
                    )
                    worker = _Worker(self._task, self._shared)
                    self._workers = [one for one in self._workers if one.alive and one.connection is not ready] + [
                        worker
                    ]
                    idle.append(worker)
                    continue
                if kind == "point":
                    ready.send(watches[number](*content))
                    continue
                del busy[ready]
                idle.append(worker)
                if kind == "full":
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._task.scratch))
                ended(number, content[0])

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
            worker.connection.close()
        self._workers = []


class _Worker:
    def __init__(self, task: Task, shared: Path) -> None:
        context = get_context("spawn")  # a fork of a process with running threads may stand still for ever
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, task, shared, os.getpid(), brought()), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def alive(self) -> bool:
        return self.process.is_alive()


def _work(
    connection: Connection, task: Task, shared: Path, parent_pid: int, families: Mapping[str, FamilyCode]
) -> None:
    for code in families.values():
        bring(code)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
    if os.getppid() != parent_pid:
        return
    fit, validation = (_shared(shared / name) for name in ("fit", "validation"))

    def watch(step: int, value: float) -> bool:
        connection.send(("point", step, value))
        return bool(connection.recv())

    while True:
        try:
            number, varied = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            connection.send(("end", run_trial(task, fit, validation, number, varied, watch)))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            connection.send(("full",))


def _share(rows: Rows, folder: Path) -> None:
    folder.mkdir()
    matrix = np.lib.format.open_memmap(folder / "matrix.npy", "w+", np.float32, rows.matrix.shape)
    for some in slices(*rows.matrix.shape):
        matrix[some] = rows.matrix[some]
    np.save(folder / "label.npy", rows.label)
    np.save(folder / "nights.npy", rows.nights)
    (folder / "mapped").write_text(str(isinstance(rows.matrix, np.memmap)))


def _shared(folder: Path) -> Rows:
    matrix = np.load(folder / "matrix.npy", mmap_mode="r")
    if (folder / "mapped").read_text() != "True":
        # A map would be learned from slice by slice, with another result. The pages are shared all the same.
        matrix = matrix.view(np.ndarray)
    return Rows(matrix, np.load(folder / "label.npy"), np.load(folder / "nights.npy"))

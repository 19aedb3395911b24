"""Fitting a network on Keras: one loop for one process, several GPUs and several workers, which repeats itself and
resumes after a kill.

Everything random is a function of seed, epoch and step: the order of the rows, the dropout. So a fit that resumes from
a checkpoint ends in the bytes of the undisturbed one, which the `fit` of Keras does not.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from config.errors import TransientError
from serving.predictors.contract import Contract, Matrix, write_json
from serving.predictors.keras import DETAILS_FILE, NETWORK_FILE, Inputs, NetworkEncoding, compiled, decode
from training.trainers import Cluster, Fitted, Floats, NoGpu, Rows, Run, TrainingDiverged, truth_to_learn
from training.trainers.keras_network import (
    NetworkParams,
    importances,
    output_details,
    row_losses,
    save_network,
    targets,
)

STAGE = "network"
STATE_FILE = "state.npz"
_SAY_EVERY = 10
_CHUNK_ROWS = 65_536
_PLATEAU_FACTOR, _PLATEAU_LEAST = 0.5, 1e-4
_WAIT_FOR_WORKERS_SECONDS = 300

Arrays = list[npt.NDArray[Any]]


class WorkerLost(TransientError):
    """A data-parallel worker ended or cannot be reached; the next try resumes from the chief's checkpoint."""


@dataclass
class Course:
    """Where a fit stands: what early stopping and the falling learning rate know after `epoch` epochs."""

    learning_rate: float
    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    waited: int = 0
    plateau_loss: float = float("inf")
    plateau_waited: int = 0

    def take(self, validation_loss: float, patience: int) -> bool:
        """Count one more epoch; true where it is the best so far. The learning rate halves after a third of `patience`
        without a real step forward.
        """
        self.epoch += 1
        better = validation_loss < self.best_loss
        if better:
            self.best_epoch, self.best_loss, self.waited = self.epoch, validation_loss, 0
        else:
            self.waited += 1
        if validation_loss < self.plateau_loss - _PLATEAU_LEAST:
            self.plateau_loss, self.plateau_waited = validation_loss, 0
        else:
            self.plateau_waited += 1
            if self.plateau_waited >= max(1, patience // 3):
                self.learning_rate, self.plateau_waited = self.learning_rate * _PLATEAU_FACTOR, 0
        return better


def train_network(
    contract: Contract,
    fit: Rows,
    validation: Rows,
    folder: Path,
    *,
    chosen: NetworkParams,
    run: Run,
    encoding: NetworkEncoding,
    constants: Mapping[str, Any],
    build: Callable[[Any], Any],
    together: Mapping[str, Sequence[str]],
    chunk_rows: int,
) -> Fitted:
    """Fit the network that `build` makes and write it into `folder`, with calibration and interval widths from
    validation.

    Args:
        encoding, constants: what the network sees; the constants are written beside it.
        build: makes the untrained network of the `keras` module it is given; every layer has a name, every random one a
            seed.
        together: as in `importances`.
        chunk_rows: rows that are judged and predicted at once.
    Raises:
        NoGpu, TrainingImpossible, TrainingDiverged, WorkerLost: as their texts say; nothing usable is written.
    """
    for name, output in contract.kinds.items():
        if output.task == "event":
            truth_to_learn(contract, name, fit)  # refused before TensorFlow's seconds are spent
    import keras
    import tensorflow as tf

    used = _choose_device(tf, run.device)
    with suppress(RuntimeError):  # TensorFlow is in use in this process already and keeps the threads it has
        tf.config.threading.set_intra_op_parallelism_threads(chosen.threads)
        tf.config.threading.set_inter_op_parallelism_threads(chosen.threads)
    tf.config.experimental.enable_op_determinism()
    strategy = _strategy(tf, used, run)
    scale = float(np.std(fit.label - encoding.base(fit.matrix))) or 1.0
    with _lost_workers_told(tf, run.cluster):
        keras.utils.set_random_seed(run.seed)
        loop = _Loop(keras, tf, strategy, build, contract, chosen, run)
        splits = [
            _Split(encoding, rows, targets(contract, rows, encoding.base(rows.matrix), scale))
            for rows in (fit, validation)
        ]
        course, best = loop.fit(splits[0], splits[1], chunk_rows)
    fitted = Fitted(
        used,
        {STAGE: course.best_epoch},
        {},
        ("tensorflow", "keras", "numpy", "pyarrow"),
        {"replicas": strategy.num_replicas_in_sync},
    )
    if run.cluster is not None and run.cluster.index:
        return fitted
    network = build(keras)
    network.set_weights(best)
    forward = compiled(network)

    def raw_of(matrix: Matrix) -> Floats:
        parts = [
            np.asarray(forward(*encoding.inputs(matrix[start : start + chunk_rows])))
            for start in range(0, len(matrix), chunk_rows)
        ]
        return np.concatenate(parts).astype(np.float64)

    outputs = output_details(
        contract,
        validation.label,
        raw_of(validation.matrix),
        encoding.base(validation.matrix),
        scale,
        chosen.calibration,
    )
    details = {"encoding": constants, "label_scale": scale, "outputs": outputs}
    save_network(network, folder / NETWORK_FILE)
    write_json(folder / DETAILS_FILE, details)
    fitted.importances.update(
        importances(contract, validation, lambda m: decode(raw_of(m), encoding.base(m), details), run.seed, together)
    )
    fitted.details["parameters"] = int(network.count_params())
    return fitted


class _Split:
    """One split as the network sees it. Rows in memory are encoded once, those of a memory map whenever they are
    taken.
    """

    def __init__(self, encoding: NetworkEncoding, rows: Rows, wanted: Any) -> None:
        self._encoding, self._matrix, self._targets = encoding, rows.matrix, wanted
        self._inputs = None if isinstance(rows.matrix, np.memmap) else encoding.inputs(rows.matrix)

    def __len__(self) -> int:
        return len(self._targets)

    def take(self, rows: npt.NDArray[np.int64]) -> Inputs:
        """Inputs and, last, targets of the rows; both begin with the shape of `rows`."""
        if self._inputs is not None:
            return (*(part[rows] for part in self._inputs), self._targets[rows])
        inputs = self._encoding.inputs(np.asarray(self._matrix[rows.ravel()]))
        return (*(part.reshape(*rows.shape, *part.shape[1:]) for part in inputs), self._targets[rows])


class _Loop:
    """The network with its optimizer on every replica, learning one epoch after the other."""

    def __init__(
        self, keras: Any, tf: Any, strategy: Any, build: Any, contract: Contract, chosen: NetworkParams, run: Run
    ) -> None:
        self._keras, self._tf, self._strategy, self._chosen, self._run = keras, tf, strategy, chosen, run
        self._losses = row_losses(contract)
        self._replicas = strategy.num_replicas_in_sync
        self._workers, self._worker = (len(run.cluster.addresses), run.cluster.index) if run.cluster else (1, 0)
        self._local = self._replicas // self._workers
        with strategy.scope():
            self._network = build(keras)
            self._optimizer = keras.optimizers.Adam(chosen.learning_rate)
            self._optimizer.build(self._network.trainable_variables)
        self._sum = tf.function(self._sum_of_workers)
        self._generators = [layer.seed_generator for layer in self._network.layers if hasattr(layer, "seed_generator")]

    def fit(self, fit: _Split, validation: _Split, chunk_rows: int) -> tuple[Course, Arrays]:
        """Learn until the validation loss has not fallen for `patience` epochs; returns the course and the best epoch's
        weights.

        Raises:
            TrainingDiverged: a loss is not a number. The checkpoint of an epoch before it stays.
        """
        chosen, run = self._chosen, self._run
        course, best, finished = self._resumed()
        steps = _Steps(len(fit), min(chosen.batch_size, len(fit)), self._replicas, self._local, self._worker)
        judged = _Steps(
            len(validation),
            min(chunk_rows * self._replicas, len(validation)),
            self._replicas,
            self._local,
            self._worker,
        )
        learn, judge = self._compiled(steps.share, learning=True), self._compiled(judged.share, learning=False)
        in_order = np.arange(len(validation))
        while not finished and course.epoch < chosen.epochs and course.waited < chosen.patience:
            epoch = course.epoch + 1
            self._optimizer.learning_rate.assign(course.learning_rate)
            order = np.random.default_rng([run.seed, epoch]).permutation(len(fit))
            loss = self._epoch(learn, fit, steps, order, epoch)
            validation_loss = self._epoch(judge, validation, judged, in_order, epoch)
            if course.take(validation_loss, chosen.patience):
                best = self._network.get_weights()
            run.progress.point(f"train/{STAGE}/loss", epoch, loss)
            run.progress.point(f"validation/{STAGE}/loss", epoch, validation_loss)
            if epoch % _SAY_EVERY == 0:
                run.progress.line(
                    f"keras network: epoch {epoch} of {chosen.epochs}, validation loss {validation_loss:.5g}"
                )
            if self._worker == 0 and run.checkpoints.due():
                self._save(course, best, finished=False)
        if self._worker == 0 and not finished:
            self._save(course, best, finished=True)
        run.progress.line(
            f"keras network: best epoch {course.best_epoch} of {course.epoch}, validation loss {course.best_loss:.5g}"
        )
        return course, best

    def _epoch(self, function: Any, split: _Split, steps: _Steps, order: npt.NDArray[np.int64], epoch: int) -> float:
        """Mean loss of the rows, equal on every worker."""
        losses = []
        for first, rows, weights in steps.chunks(order):
            losses.append(
                np.asarray(
                    function.call(
                        (*split.take(np.maximum(rows, 0)), weights), np.int64((epoch - 1) * steps.count + first)
                    )
                )
            )
        each = self._summed(np.concatenate(losses))
        bad = np.flatnonzero(~np.isfinite(each))
        if len(bad):
            where = f"at step {bad[0] + 1} of {steps.count} the train" if function.learning else "the validation"
            kept = self._run.checkpoints.load(STAGE) if self._worker == 0 else None
            left = f" The checkpoint of epoch {kept.state['epoch']} is kept." if kept else ""
            raise TrainingDiverged(
                f"keras network: {where} loss is {each[bad[0]]} in epoch {epoch} of {self._chosen.epochs}. "
                f"Lower `learning_rate`, and look for extreme labels.{left}"
            )
        return float(np.sum(each * steps.sizes) / len(split))

    def _compiled(self, share: int, *, learning: bool) -> _Compiled:
        """A TensorFlow function that runs the steps of a chunk and gives the loss of each, summed over this worker's
        replicas.
        """
        keras, tf, strategy, network, optimizer = self._keras, self._tf, self._strategy, self._network, self._optimizer
        variables, first_replica, clip = (
            network.trainable_variables,
            self._worker * self._local,
            self._chosen.gradient_clip,
        )

        def loss_of(parts: Any, states: Any) -> Any:
            *inputs, wanted, weights = parts
            with keras.StatelessScope(state_mapping=states):
                raw = network(inputs if len(inputs) > 1 else inputs[0], training=learning)
            # The weights of a step sum to 1 over all replicas, and replicas' gradients are summed: the mean over the
            # whole batch.
            total = tf.reduce_sum(weights * self._losses(wanted, raw))
            return total + tf.add_n(network.losses) * tf.reduce_sum(weights) if network.losses else total

        def replica_step(parts: Any, number: Any) -> Any:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            start = (replica - first_replica) * share
            mine = [part[start : start + share] for part in parts]
            draw = number * self._replicas + tf.cast(replica, tf.int64)
            # Dropout is a function of seed, layer, step and replica, not of what was drawn before.
            states = [
                (generator.state, tf.stack([tf.constant(self._run.seed + i, tf.int64), draw]))
                for i, generator in enumerate(self._generators)
            ]
            if not learning:
                return loss_of(mine, states)
            with tf.GradientTape() as tape:
                loss = loss_of(mine, states)
            gradients = tape.gradient(loss, variables)
            if clip:
                context = tf.distribute.get_replica_context()
                whole = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients) if self._replicas > 1 else gradients
                gradients = [gradient / self._replicas for gradient in tf.clip_by_global_norm(whole, clip)[0]]
            optimizer.apply(gradients, variables)
            return loss

        def chunk(parts: Any, first: Any) -> Any:
            count = tf.shape(parts[-1])[0]
            losses = tf.TensorArray(tf.float32, size=count)
            for step in tf.range(count):
                losses_of_replicas = strategy.run(
                    replica_step, args=([part[step] for part in parts], first + tf.cast(step, tf.int64))
                )
                losses = losses.write(step, tf.add_n(strategy.experimental_local_results(losses_of_replicas)))
            return losses.stack()

        return _Compiled(tf.function(chunk, reduce_retracing=True), learning)

    def _summed(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The sum over all workers, equal to the last bit on each of them."""
        if self._workers == 1:
            return values
        return np.asarray(self._strategy.experimental_local_results(self._sum(self._tf.constant(values)))[0])

    def _sum_of_workers(self, value: Any) -> Any:
        tf = self._tf

        def reduced(value: Any) -> Any:
            context = tf.distribute.get_replica_context()
            first = context.replica_id_in_sync_group == self._worker * self._local
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.where(first, value, tf.zeros_like(value)))

        return self._strategy.run(reduced, args=(value,))

    def _resumed(self) -> tuple[Course, Arrays, bool]:
        """Course, best weights and whether the fit is complete, from the chief's checkpoint or from the beginning."""
        course, best, finished = Course(self._chosen.learning_rate), self._network.get_weights(), False
        saved = self._run.checkpoints.load(STAGE) if self._worker == 0 else None
        state: Arrays = [np.asarray(value) for value in (*self._network.weights, *self._optimizer.variables, *best)]
        told = np.zeros(9)
        if saved:
            with np.load(saved.folder / STATE_FILE, allow_pickle=False) as arrays:
                state = [arrays[f"arr_{index}"] for index in range(len(state))]
            told = np.array([1.0, float(saved.finished), *saved.state.values()])
        # Workers need not see the chief's folder: they are told what it found there, whole, over the network.
        told = self._summed(told if self._worker == 0 else np.zeros_like(told))
        if not told[0]:
            return course, best, False
        state = [self._summed(value if self._worker == 0 else np.zeros_like(value)) for value in state]
        course = Course(
            *(kind(value) for kind, value in zip((float, int, int, float, int, float, int), told[2:], strict=True))
        )
        finished = bool(told[1])
        variables = [*self._network.weights, *self._optimizer.variables]
        with self._strategy.scope():
            for variable, value in zip(variables, state, strict=False):
                variable.assign(value)
        if finished:
            self._run.progress.line(
                f"keras network: finished before at epoch {course.epoch}, taken from its checkpoint"
            )
        else:
            self._run.progress.line(f"keras network: resuming at epoch {course.epoch + 1} of {self._chosen.epochs}")
        return course, state[len(variables) :], finished

    def _save(self, course: Course, best: Arrays, *, finished: bool) -> None:
        arrays = [np.asarray(value) for value in (*self._network.weights, *self._optimizer.variables, *best)]

        def write(folder: Path) -> None:
            np.savez(folder / STATE_FILE, *arrays)

        self._run.checkpoints.save(STAGE, write, asdict(course), finished=finished)


@dataclass(frozen=True)
class _Compiled:
    call: Any
    learning: bool


class _Steps:
    """How an epoch's rows are cut into steps, and each step into equal shares of the replicas.

    Attributes:
        count: steps of an epoch.
        share: rows of one replica in one step.
        sizes: rows of each step.
    """

    def __init__(self, rows: int, batch: int, replicas: int, local: int, worker: int) -> None:
        self._rows, self._batch = rows, batch
        self.count = -(-rows // batch)
        self.share = -(-batch // replicas)
        self.sizes = np.full(self.count, batch)
        self.sizes[-1] = rows - batch * (self.count - 1)
        self._mine = slice(worker * local * self.share, (worker + 1) * local * self.share)
        self._padded = replicas * self.share

    def chunks(
        self, order: npt.NDArray[np.int64]
    ) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """First step, this worker's rows (steps, rows; -1 pads) and their weights, which sum to 1 over the replicas of
        a step.
        """
        at_once = max(1, _CHUNK_ROWS // self._batch)
        whole = np.full((self.count, self._padded), -1, dtype=np.int64)
        filled = np.full(self.count * self._batch, -1, dtype=np.int64)
        filled[: self._rows] = order
        whole[:, : self._batch] = filled.reshape(self.count, self._batch)
        for first in range(0, self.count, at_once):
            mine = whole[first : first + at_once, self._mine]
            sizes = self.sizes[first : first + at_once, None]
            yield first, mine, ((mine >= 0) / sizes).astype(np.float32)


def _choose_device(tf: Any, wanted: str) -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if wanted == "gpu" and not gpus:
        raise NoGpu(
            "trainer.device is gpu, but TensorFlow sees none. Set `device: auto` to train on the CPU, or run the job "
            "where a GPU is."
        )
    if wanted == "cpu" and gpus:
        tf.config.set_visible_devices([], "GPU")
    for gpu in gpus:
        with suppress(RuntimeError, ValueError):  # in use already, or not to be used
            tf.config.experimental.set_memory_growth(gpu, True)  # several trainings share a GPU
    return "gpu" if gpus and wanted != "cpu" else "cpu"


def _strategy(tf: Any, used: str, run: Run) -> Any:
    """Workers if there are several, else this process's GPUs if there are several, else the plain device."""
    if run.cluster is not None and len(run.cluster.addresses) > 1:
        return _joined(tf, run.cluster, run)
    devices = [device.name for device in tf.config.list_logical_devices("GPU" if used == "gpu" else "CPU")]
    return tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()


def _joined(tf: Any, cluster: Cluster, run: Run) -> Any:
    run.progress.line(
        f"keras network: worker {cluster.index} of {len(cluster.addresses)}, waits for {', '.join(cluster.addresses)}, "
        f"at most {_WAIT_FOR_WORKERS_SECONDS} s"
    )
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": list(cluster.addresses)}, "task": {"type": "worker", "index": cluster.index}}
    )
    # TensorFlow waits for the others without end and lets no Python run meanwhile: neither a timer nor SIGTERM. This
    # timer is outside of Python.
    faulthandler.dump_traceback_later(_WAIT_FOR_WORKERS_SECONDS, exit=True)
    on_term = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise WorkerLost(
            f"worker {cluster.index} cannot join the others at {cluster.addresses[cluster.index]}: "
            f"{error.message.strip()}. "
            "Give it an address of this machine with a free port, then start all workers again."
        ) from error
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGTERM, on_term)  # TensorFlow had put its own there, which only takes note


@contextmanager
def _lost_workers_told(tf: Any, cluster: Cluster | None) -> Iterator[None]:
    errors = tf.errors
    try:
        yield
    except (errors.UnavailableError, errors.AbortedError, errors.DeadlineExceededError, errors.CancelledError) as error:
        if cluster is None:
            raise
        others = [address for index, address in enumerate(cluster.addresses) if index != cluster.index]
        reason = next(
            (line for line in str(error.message).splitlines() if "aborted" in line or "peer" in line), error.message
        )
        raise WorkerLost(
            f"worker {cluster.index} lost another one ({', '.join(others)}): {reason.strip()}. Look at its log, then "
            "start all workers again; "
            "training resumes from the newest checkpoint."
        ) from error

"""Losses of every row of a test set, by output: of a challenger, of the incumbent, of the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from config.catalog.model import ModelEntry
from config.catalog.output import SCALE, OutputKind
from training.evaluate import judged_values
from training.registry.judged_set import GateEvidenceMissing

Floats = npt.NDArray[np.float64]

_BATCH_ROWS = 65_536


@dataclass
class _Losses:
    """Losses of every test row for one output, or, of a listwise metric, what it is judged by."""

    challenger: list[Floats]
    baseline: list[Floats]
    champion: list[Floats]


class ScoredRows:
    """Per-row losses of the test set; features and predictions are let go batch by batch."""

    def __init__(self, entry: ModelEntry, segments: Sequence[str]) -> None:
        self._entry = entry
        self._days: list[npt.NDArray[np.int64]] = []
        self._labels: list[Floats] = []
        self._losses = {name: _Losses([], [], []) for name in entry.outputs}
        self._segments: dict[str, list[pa.Array]] = {name: [] for name in segments}
        self._inside = dict.fromkeys(entry.outputs, 0)
        self._crossed = dict.fromkeys(entry.outputs, 0)
        self.rows = 0

    def add(
        self, batch: pa.RecordBatch, predicted: pa.Table, champion: pa.Table | None, constants: Mapping[str, Any]
    ) -> None:
        """Keep the losses of a batch; `constants` are those of `baseline_constants`."""
        self.rows += batch.num_rows
        self._days.append(batch["data_date"].cast(pa.int32()).cast(pa.int64()).to_numpy(zero_copy_only=False))
        label = batch["label"].to_numpy(zero_copy_only=False).astype(np.float64)
        self._labels.append(label)
        by_row, scale = self._by_row(batch), self._scale(batch)
        for column, values in self._segments.items():
            values.append(pc.fill_null(batch[column].cast(pa.string()), "(null)"))
        for name, output in self._entry.outputs.items():
            losses = self._losses[name]
            columns = judged_values(output, name, predicted)
            losses.challenger.append(_kept(output, label, output.judged(name, columns), scale))
            losses.baseline.append(_kept(output, label, output.baseline(constants[name], len(label), by_row), scale))
            if champion is not None:
                theirs = output.judged(name, judged_values(output, name, champion))
                losses.champion.append(_kept(output, label, theirs, scale))
            bounds = output.interval_bounds(name)
            if bounds is not None:
                lower, upper = columns[bounds[0]], columns[bounds[1]]
                self._inside[name] += int(((label >= lower) & (label <= upper)).sum())
                self._crossed[name] += int((lower > upper).sum())

    def _by_row(self, batch: pa.RecordBatch) -> Floats | None:
        """The baseline's value of each row where the gate has one that differs by row."""
        if self._entry.gate.naive_season is None:
            return None
        rows: Floats = batch["baseline"].cast(pa.float64()).to_numpy(zero_copy_only=False)
        return rows

    def _scale(self, batch: pa.RecordBatch) -> Floats | None:
        """The scale of each row's series where an output's gate needs it."""
        if not self._entry.scaled:
            return None
        if SCALE not in batch.schema.names:
            raise GateEvidenceMissing(
                f"The test set has no column {SCALE}, by which a gate of {self._entry.name} divides errors: it was "
                "made when the gate was another. Nothing was judged. Train again."
            )
        rows: Floats = batch[SCALE].to_numpy(zero_copy_only=False)
        return rows

    def coverage(self) -> dict[str, dict[str, Any]]:
        """Share of labels inside the interval, of each output that has one."""
        wanted = {name: output.interval_bounds(name) for name, output in self._entry.outputs.items()}
        return {
            name: {
                "wanted": bounds[2],
                "found": self._inside[name] / max(self.rows, 1),
                "crossed": self._crossed[name],
            }
            for name, bounds in wanted.items()
            if bounds is not None
        }

    def nights(self, nights: Sequence[date]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Mask of the rows of those nights, and for each of them its night's position."""
        wanted = np.array([(day - date(1970, 1, 1)).days for day in nights], dtype=np.int64)
        days = np.concatenate(self._days)
        mask = np.isin(days, wanted)
        return mask, np.searchsorted(wanted, days[mask])

    def judged_rows(self, nights: Sequence[date]) -> int:
        """Rows of those nights."""
        return int(self.nights(nights)[0].sum())

    def losses(self, output: str, mask: npt.NDArray[np.bool_]) -> RowLosses:
        """Losses of the masked rows."""
        losses, declared = self._losses[output], self._entry.outputs[output]
        of_all = sum(map(len, losses.champion)) == self.rows
        champion = np.concatenate(losses.champion)[mask] if of_all else np.empty(0)
        kept = (np.concatenate(losses.challenger)[mask], np.concatenate(losses.baseline)[mask], champion)
        if not declared.metric.listwise:
            return RowLosses(*kept)
        label = self.labels(mask)
        own, trivial, theirs = (declared.row_losses(label[: len(judged)], judged) for judged in kept)
        return RowLosses(own, trivial, theirs, judged=kept)

    def labels(self, mask: npt.NDArray[np.bool_]) -> Floats:
        """Labels of the masked rows."""
        labels: Floats = np.concatenate(self._labels)[mask]
        return labels

    def alike(self, output: OutputKind, mask: npt.NDArray[np.bool_]) -> bool:
        """Whether the masked rows all came out as one class; never so of a number."""
        if output.task == "number":
            return False
        truth = output.truth(self.labels(mask))
        return bool(len(truth) and truth.min() == truth.max())

    def told_apart(self, output: OutputKind, mask: npt.NDArray[np.bool_]) -> float:
        """The error below which two predictions of the masked labels are the same number: of a model of 32 bits."""
        if not output.metric.in_label_unit:
            return 0.0
        labels = np.concatenate(self._labels)[mask]
        return float(np.finfo(np.float32).eps * np.abs(labels).max(initial=0.0))

    def segment(self, column: str, mask: npt.NDArray[np.bool_]) -> tuple[list[str], npt.NDArray[np.int64]]:
        """Sorted values of the column among the masked rows, and each row's position in them."""
        encoded = pa.chunked_array(self._segments[column]).filter(pa.array(mask)).combine_chunks().dictionary_encode()
        values = encoded.dictionary.to_pylist()
        order = np.argsort(np.array(values, dtype=object))
        position = np.empty(len(values), dtype=np.int64)
        position[order] = np.arange(len(values))
        return [values[i] for i in order], position[encoded.indices.to_numpy()]


@dataclass(frozen=True)
class RowLosses:
    """Losses of one output, each (rows,); `champion` is empty where none predicted.

    Attributes:
        judged: of a listwise metric, what the challenger, the baseline and the champion said.
    """

    challenger: Floats
    baseline: Floats
    champion: Floats
    judged: tuple[Floats, Floats, Floats] | None = None


def _kept(output: OutputKind, label: Floats, judged: Floats, scale: Floats | None) -> Floats:
    """What is kept of a batch: its losses, or what they will be made of when all rows are there."""
    return judged if output.metric.listwise else output.row_losses(label, judged, scale)


def baseline_constants(entry: ModelEntry, training_path: Path) -> dict[str, Any]:
    """What a baseline predicts for every row of each output, from the training window's labels."""
    rows = pq.read_table(training_path, columns=["split", "label"])
    label = rows.filter(pc.equal(rows["split"], "train"))["label"].to_numpy().astype(np.float64)
    if not len(label):
        raise GateEvidenceMissing(
            f"{training_path} holds no row of split train, so there is no baseline to beat. Nothing was judged. Train "
            "again."
        )
    return {name: output.constant(label, entry.gate.baseline) for name, output in entry.outputs.items()}


def batches_of(path: Path, columns: set[str]) -> Iterator[pa.RecordBatch]:
    """Batches of a Parquet file with those of the columns that it has; none is empty."""
    file = pq.ParquetFile(path)
    wanted = [name for name in file.schema_arrow.names if name in columns]
    yield from (batch for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted) if batch.num_rows)


def nights_of(path: Path) -> list[date]:
    """Data dates of a Parquet file, sorted."""
    return sorted(pc.unique(pq.read_table(path, columns=["data_date"])["data_date"]).to_pylist())


def numbers(table: pa.Table, name: str) -> Floats:
    """A column as float64, (rows,)."""
    return np.asarray(table[name].to_numpy(), dtype=np.float64)


def sums_by_code(codes: npt.NDArray[np.int64], values: Floats, count: int) -> Floats:
    """Sum of the values of each code in [0, count), (count,)."""
    return np.bincount(codes, weights=values, minlength=count).astype(np.float64)


def pooled_error(output: OutputKind, sums: Floats, rows: int) -> float:
    """The metric of the gate over all rows, from sums of their losses."""
    return float(output.metric.of_mean(float(sums.sum()) / max(rows, 1)))


def plain_float(value: float) -> float:
    """JSON has no infinity: the largest number stands for it."""
    return float(np.clip(value, -np.finfo(np.float64).max, np.finfo(np.float64).max))

"""The rows of a training set, as the matrices that trainers take.

The file is read in batches, twice: once for counts, checks and vocabularies, once for the values. Matrices that would
take more than `MEMORY_SHARE` of the job's memory are memory maps of files in the scratch folder. Labels and nights stay
in memory, 12 bytes a row. XGBoost learns from a map without ever holding it whole; every other family copies it, and
needs `training.memory_gb` for its copy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.predictors.contract import FEATURE_TYPES, Contract, FeatureSpec, Matrix
from training.job_file import BadJob
from training.trainers import Floats, Rows, TrainingImpossible

# A fit needs the matrix once, its quantised copy, and room to work.
MEMORY_SHARE = 0.25
_SPLITS = ("train", "validation")
# From so many categories on, none of which comes twice, a feature names the row rather than something about it.
_LEAST_EXPLOSION = 100
_BATCH_BYTES = 4 * 2**20
_SLICE_BYTES = 16 * 2**20
_READ_BYTES = 2**16
_STEP = re.compile(r"_t\d+$")


def read_rows(
    job: dict[str, Any], family: str, params: dict[str, Any], path: Path, scratch: Path
) -> tuple[Contract, dict[str, Rows], Floats | None]:
    """Contract with the vocabularies of the training rows, both splits, and validation's row-wise baseline if there is
    one.

    Args:
        scratch: folder for the matrices that memory should not hold; it must outlive the rows.
    Raises:
        BadJob: the file lacks a column.
        TrainingImpossible: a feature has no fitting type or a value of its own in each row, a split has no rows, a
            label is not a finite number.
    """
    columns: dict[str, str] = job["feature_columns"]
    unfit = {name: kind for name, kind in columns.items() if kind not in FEATURE_TYPES}
    if unfit:
        name, kind = next(iter(unfit.items()))
        raise TrainingImpossible(
            f"{job['model']}: the feature {name!r} has type {kind}; a model takes {', '.join(FEATURE_TYPES)}. Derive a "
            "number from it in the view."
        )
    names = pq.read_schema(path).names
    missing = [name for name in (*columns, "label", "split", "data_date") if name not in names]
    if missing:
        raise BadJob(f"{path} lacks the columns {', '.join(missing)}. Prepare the job again.")
    counts, specs = _first_reading(job["model"], columns, path)
    contract = Contract(
        model=job["model"],
        family=family,
        features=specs,
        outputs=job["entry"]["outputs"],
        output_columns=tuple(job["output_columns"]),
        training_set_digest=job["training_set"]["digest"],
        as_of=job["as_of"],
        seed=job["seed"],
        params=params,
    )
    memory_bytes = job["entry"]["training"].get("memory_gb", math.inf) * 1e9
    mapped = sum(counts.values()) * len(columns) * 4 > MEMORY_SHARE * memory_bytes
    splits = {
        split: Rows(
            _matrix(count, len(columns), scratch / f"{split}.f32" if mapped else None),
            np.empty(count),
            np.empty(count, np.int32),
        )
        for split, count in counts.items()
    }
    baseline = _second_reading(contract, splits, path, ["baseline"] if "baseline" in names else [])
    pa.default_memory_pool().release_unused()  # a page a column, which Arrow would keep for the next reading
    return contract, splits, baseline


def batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """A Parquet file's rows in its order, in batches of bounded size however wide it is."""
    file = pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False)
    rows = min(65_536, max(1_024, _BATCH_BYTES // (8 * len(columns))))
    yield from file.iter_batches(batch_size=rows, columns=list(columns))


def slices(count: int, width: int) -> Iterator[slice]:
    """Slices of a matrix of that shape, of bounded size."""
    rows = max(1_024, _SLICE_BYTES // (4 * max(1, width)))
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def select(parts: Sequence[Rows], first: int, last: int, file: Path) -> Rows:
    """The rows of all parts with `first <= night <= last`, in their order; a memory map in `file` if one of the parts
    is one.
    """
    chosen = [(part.nights >= first) & (part.nights <= last) for part in parts]
    width = parts[0].matrix.shape[1]
    matrix = _matrix(
        sum(int(mask.sum()) for mask in chosen),
        width,
        file if any(isinstance(part.matrix, np.memmap) for part in parts) else None,
    )
    filled = 0
    for part, mask in zip(parts, chosen, strict=True):
        for some in slices(len(mask), width):
            kept = part.matrix[some][mask[some]]
            matrix[filled : filled + len(kept)] = kept
            filled += len(kept)
    label = np.concatenate([part.label[mask] for part, mask in zip(parts, chosen, strict=True)])
    return Rows(matrix, label, np.concatenate([part.nights[mask] for part, mask in zip(parts, chosen, strict=True)]))


def _first_reading(model: str, columns: dict[str, str], path: Path) -> tuple[dict[str, int], dict[str, FeatureSpec]]:
    counts, unfit = dict.fromkeys(_SPLITS, 0), set()
    met: dict[str, set[str | None]] = {name: set() for name, kind in columns.items() if kind == "string"}
    known = dict.fromkeys(met, 0)
    for batch in batches(path, ["split", "label", *met]):
        for split in _SPLITS:
            part = batch.filter(pc.equal(batch["split"], split))
            counts[split] += part.num_rows
            labels = part["label"]
            if labels.null_count or not np.isfinite(labels.to_numpy(zero_copy_only=False)).all():
                unfit.add(split)
            if split == "train":
                for name, values in met.items():
                    values.update(pc.unique(part[name]).to_pylist())
                    known[name] += part.num_rows - part[name].null_count
    for split, count in counts.items():
        if not count:
            raise TrainingImpossible(
                f"{model}: the training set has no {split} rows. Widen `split.{split}`, or train as of a later date."
            )
        if split in unfit:
            raise TrainingImpossible(
                f"{model}: {split} rows hold labels that are null, NaN or infinite. Let a check quarantine them, then "
                "prepare the job again."
            )
    _share_among_steps(met, known)
    categories = {name: _vocabulary(model, name, values, known[name]) for name, values in met.items()}
    return counts, {name: FeatureSpec(kind, categories.get(name)) for name, kind in columns.items()}


def _vocabulary(model: str, name: str, met: set[str | None], known: int) -> tuple[str, ...]:
    """The values of a category in training rows, sorted.

    Raises:
        TrainingImpossible: each of the `known` rows, those that have one, has a value of its own.
    """
    values = tuple(sorted(value for value in met if value is not None))
    if _LEAST_EXPLOSION <= len(values) == known:
        raise TrainingImpossible(
            f"{model}: the feature {name!r} has a value of its own in each of its {len(values)} training rows "
            f"({values[0]!r}, {values[1]!r}, ...): no value comes again, so nothing can be learned from it. Leave it "
            "out of the view, or derive a coarser feature there."
        )
    return values


def _share_among_steps(met: dict[str, set[str | None]], known: dict[str, int]) -> None:
    """Give the steps of one text feature, `<name>_t0` …, the same values: one that training met anywhere in a history
    is known everywhere in it.
    """
    steps: dict[str, list[str]] = {}
    for name in met:
        if _STEP.search(name):
            steps.setdefault(_STEP.sub("", name), []).append(name)
    for names in steps.values():
        met.update(dict.fromkeys(names, set().union(*(met[name] for name in names))))
        known.update(dict.fromkeys(names, sum(known[name] for name in names)))


def _second_reading(contract: Contract, splits: dict[str, Rows], path: Path, baseline: list[str]) -> Floats | None:
    filled = dict.fromkeys(splits, 0)
    trivial = np.full(len(splits["validation"].label), np.nan)
    given = False
    for batch in batches(path, [*contract.features, "label", "split", "data_date", *baseline]):
        for split, rows in splits.items():
            part = batch.filter(pc.equal(batch["split"], split))
            where = slice(filled[split], filled[split] + part.num_rows)
            filled[split] = where.stop
            rows.matrix[where] = contract.matrix(part)
            rows.label[where] = part["label"].to_numpy(zero_copy_only=False)
            rows.nights[where] = part["data_date"].cast(pa.int32()).to_numpy(zero_copy_only=False)
            if baseline and split == "validation":
                values = part["baseline"].cast(pa.float64())
                given = given or values.null_count < len(values)
                trivial[where] = values.to_numpy(zero_copy_only=False)
    return trivial if given else None


def _matrix(count: int, width: int, file: Path | None) -> Matrix:
    if file is None:
        return np.empty((count, width), np.float32)
    return np.memmap(file, np.float32, "w+", shape=(count, width))

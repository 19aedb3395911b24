"""The rows of a training set, as the matrices that trainers take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.predictors.contract import FEATURE_TYPES, Contract, FeatureSpec
from training.job_file import BadJob
from training.trainers import Floats, Rows, TrainingImpossible


def read_rows(job: dict[str, Any], family: str, params: dict[str, Any], path: Path) -> tuple[Contract, dict[str, Rows], Floats | None]:
    """Contract with the vocabularies of the training rows, both splits, and validation's row-wise baseline if there is one."""
    columns: dict[str, str] = job["feature_columns"]
    unfit = {name: kind for name, kind in columns.items() if kind not in FEATURE_TYPES}
    if unfit:
        name, kind = next(iter(unfit.items()))
        raise TrainingImpossible(
            f"{job['model']}: the feature {name!r} has type {kind}; a model takes {', '.join(FEATURE_TYPES)}. Derive a number from it in the view."
        )
    file = pq.ParquetFile(path)
    wanted = [*columns, "label", "split", "data_date", "baseline"]
    missing = [name for name in wanted if name not in file.schema_arrow.names and name != "baseline"]
    if missing:
        raise BadJob(f"{path} lacks the columns {', '.join(missing)}. Prepare the job again.")
    table = file.read([name for name in wanted if name in file.schema_arrow.names])
    parts = {split: table.filter(pc.equal(table["split"], split)) for split in ("train", "validation")}
    for split, part in parts.items():
        if not part.num_rows:
            raise TrainingImpossible(f"{job['model']}: the training set has no {split} rows. Widen `split.{split}`, or train as of a later date.")
        labels = part["label"]
        if labels.null_count or not np.isfinite(labels.to_numpy()).all():
            raise TrainingImpossible(
                f"{job['model']}: {split} rows hold labels that are null, NaN or infinite. Let a check quarantine them, then prepare the job again."
            )
    specs = {}
    for name, kind in columns.items():
        categories = tuple(sorted(v for v in pc.unique(parts["train"][name]).to_pylist() if v is not None)) if kind == "string" else None
        specs[name] = FeatureSpec(kind, categories)
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
    splits = {
        split: Rows(contract.matrix(part), part["label"].to_numpy().astype(np.float64), part["data_date"].cast(pa.int32()).to_numpy())
        for split, part in parts.items()
    }
    baseline = None
    if "baseline" in table.schema.names:
        values = pc.cast(parts["validation"]["baseline"], pa.float64())
        baseline = None if values.null_count == len(values) else values.to_numpy().astype(np.float64)
    return contract, splits, baseline

"""What the scikit-learn families share in training: what they refuse, how features become columns, and how a model
becomes bytes.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from config.catalog.output import Task
from serving.predictors.contract import Contract, Matrix
from serving.predictors.sklearn_model import column_origins
from training.trainers import Floats, NoGpu, Run, TrainingImpossible, normalised

LIBRARIES = ("scikit-learn", "skops", "numpy", "pyarrow")
# A standardised number is cut at so many deviations, as the neural networks' are: one absurd value is no absurd
# prediction.
_CUT_AT = 10.0
_FOLDS = 5
_SCHEMA = "schema.json"
_TARGET_TYPES: dict[Task, str] = {"number": "continuous", "event": "binary", "classes": "multiclass"}


def cpu_alone(family: str, contract: Contract, run: Run) -> str:
    """`cpu`: scikit-learn knows no other device, and one process.

    Raises:
        NoGpu: a GPU is demanded.
        TrainingImpossible: there is more than one worker.
    """
    if run.device == "gpu":
        raise NoGpu(
            f"trainer.device is gpu, but {family} is scikit-learn's, which trains only on the CPU. Set `device: "
            "auto`, or take a family that trains on GPUs."
        )
    if run.cluster and len(run.cluster.addresses) > 1:
        raise TrainingImpossible(
            f"{contract.model}: {family} trains in one process, the job has {len(run.cluster.addresses)} workers. "
            "Set `training.workers: 1`, or take a family with data parallelism."
        )
    return "cpu"


def tree_encoder(contract: Contract, task: Task, rows: int) -> Any:
    """For trees: numbers as they are, NaN included; a category becomes the mean target of its training rows, shrunk
    towards the whole mean; of classes one column for each, the share of rows that are of it.

    A training row's own number comes from the other folds, blocks of rows as they follow each other, so that it does
    not hold its own target.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.model_selection import KFold
    from sklearn.preprocessing import TargetEncoder

    numbers, categories = _kinds(contract)
    means = TargetEncoder(target_type=_TARGET_TYPES[task], cv=KFold(max(2, min(_FOLDS, rows))))
    return ColumnTransformer([("numbers", "passthrough", numbers), ("categories", means, categories)])


def summed_by_feature(contract: Contract, columns: Sequence[str], values: Any) -> dict[str, float]:
    """Values of encoded columns, summed by the feature behind each."""
    shares = dict.fromkeys(contract.features, 0.0)
    for feature, value in zip(columns, values, strict=True):
        shares[feature] += float(value)
    return shares


def linear_encoder(contract: Contract, max_categories: int) -> Any:
    """For sums: standardised numbers, missing ones at the median with a column that says so; a column for each
    category, the rarest sharing one.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

    numbers, categories = _kinds(contract)
    standardised = Pipeline(
        [
            ("impute", SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)),
            ("scale", StandardScaler()),
            (
                "cut",
                FunctionTransformer(
                    np.clip, kw_args={"a_min": -_CUT_AT, "a_max": _CUT_AT}, feature_names_out="one-to-one"
                ),
            ),
        ]
    )
    one_hot = OneHotEncoder(max_categories=max_categories, handle_unknown="infrequent_if_exist", sparse_output=False)
    return ColumnTransformer(
        [("numbers", standardised, numbers), ("categories", one_hot, categories)], sparse_threshold=0.0
    )


def _kinds(contract: Contract) -> tuple[list[int], list[int]]:
    """Positions of numbers, and of categories."""
    specs = list(enumerate(contract.features.values()))
    return [i for i, spec in specs if spec.categories is None], [i for i, spec in specs if spec.categories is not None]


def design(encoder: Any, matrix: Matrix, *, fit: bool = False) -> Floats:
    """Encoded rows as float64; `fit` learns the encoder's constants from them first."""
    return np.ascontiguousarray(encoder.fit_transform(matrix) if fit else encoder.transform(matrix), dtype=np.float64)


def linear_importances(contract: Contract, encoder: Any, coefficients: Floats, deviations: Floats) -> dict[str, float]:
    """Each feature's share of what the sum moves by: its columns' absolute coefficients times their deviations in
    training.

    Args:
        coefficients, deviations: a number for each column of the encoder.
    """
    shares = dict.fromkeys(contract.features, 0.0)
    columns = zip(column_origins(contract, encoder), np.abs(coefficients) * deviations, strict=True)
    for feature, share in columns:
        shares[feature] += float(share)
    return normalised(shares, contract)


def write_model(model: Any, path: Path) -> None:
    """Write a skops file whose bytes depend on the model alone.

    skops names its parts by memory addresses and stamps them with the time; padding between a tree's fields is whatever
    lay there before.
    """
    import skops.io

    addresses: dict[Any, int] = {}
    files: dict[str, str] = {}
    with (
        zipfile.ZipFile(io.BytesIO(skops.io.dumps(model))) as dumped,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as written,
    ):
        schema = _numbered(json.loads(dumped.read(_SCHEMA)), addresses, files)
        contents = {_SCHEMA: json.dumps(schema).encode()} | {
            files[name]: _unpadded(dumped.read(name)) for name in files
        }
        for name, content in sorted(contents.items()):
            written.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED, 1)


def _numbered(part: Any, addresses: dict[Any, int], files: dict[str, str]) -> Any:
    """The schema with numbers in the order of their first mention in the place of addresses."""
    if isinstance(part, list):
        return [_numbered(item, addresses, files) for item in part]
    if not isinstance(part, dict):
        return part
    numbered: dict[str, Any] = {}
    for key, value in part.items():
        if key == "__id__":
            # Whether two equal numbers or texts are one object differs between a model that was read and one that was
            # trained.
            address = (value, len(addresses)) if part.get("__loader__") == "JsonNode" else value
            numbered[key] = addresses.setdefault(address, len(addresses))
        elif key == "file" and "__loader__" in part:
            numbered[key] = files.setdefault(value, f"{len(files):06d}{Path(value).suffix}")
        else:
            numbered[key] = _numbered(value, addresses, files)
    return numbered


def _unpadded(content: bytes) -> bytes:
    """A `.npy` file with zeros between the fields of its records."""
    array: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    if array.dtype.names is None:
        return content
    clean = np.zeros(array.shape, array.dtype)
    for name in array.dtype.names:
        clean[name] = array[name]
    written = io.BytesIO()
    np.save(written, clean, allow_pickle=False)
    return written.getvalue()


def steps_of(total: int, steps: int) -> list[int]:
    """`total` in about so many equal steps: how many there are after each, the last being `total`."""
    size = max(1, math.ceil(total / steps))
    return [*range(size, total, size), total]

"""What a trained model takes and gives, and the matrix its features become; part of the training image."""

from __future__ import annotations

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from config.catalog.output import OutputKind, outputs_of
from config.errors import NightfleetError

CONTRACT_FILE = "contract.json"
FORMAT = 1

Matrix = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]

_ARROW_TYPES: dict[str, tuple[pa.DataType, ...]] = {
    "string": (pa.string(), pa.large_string()),
    "int32": (pa.int32(),),
    "int64": (pa.int64(),),
    "float64": (pa.float64(),),
    "boolean": (pa.bool_(),),
}
FEATURE_TYPES = tuple(_ARROW_TYPES)
NO_FEATURE = "none"


class BadFeatures(NightfleetError):
    """Rows lack a feature of the model, or hold it in another type."""


class BadModelFile(NightfleetError):
    """A model's file is verified, but does not say what this version of the code expects."""


class PredictionsNotFinite(NightfleetError):
    """A model predicted NaN or infinity."""


@dataclass(frozen=True)
class FeatureSpec:
    """One feature: its catalog type, and for a string the values met in training, sorted; any other value counts as
    missing.
    """

    type: str
    categories: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON document."""
        return (
            {"type": self.type} if self.categories is None else {"type": self.type, "categories": list(self.categories)}
        )


@dataclass(frozen=True)
class Contract:
    """The part of a model that needs no library: what goes in, what comes out, and what it was trained from.

    Attributes:
        features: by column name, in the order of the matrix.
        outputs: catalog entries of the outputs, as JSON.
        output_columns: columns of a prediction, in order.
    """

    model: str
    family: str
    features: Mapping[str, FeatureSpec]
    outputs: Mapping[str, Mapping[str, Any]]
    output_columns: tuple[str, ...]
    training_set_digest: str
    as_of: str
    seed: int
    params: Mapping[str, Any]

    @functools.cached_property
    def kinds(self) -> dict[str, OutputKind]:
        """The outputs as objects."""
        return outputs_of(self.outputs)

    @functools.cached_property
    def raw_columns(self) -> tuple[str, ...]:
        """Columns that a model computes, in order; what is published follows from them."""
        return tuple(column for name, output in self.kinds.items() for column in output.raw_columns(name))

    def published(self, scores: Scores) -> pa.Table:
        """The columns of a prediction, from what a model computed, (rows, raw columns)."""
        columns: dict[str, pa.Array] = {}
        start = 0
        for name, output in self.kinds.items():
            end = start + len(output.raw_columns(name))
            raw = np.asarray(scores[:, start:end], dtype=np.float64)
            columns |= {column: pa.array(values) for column, values in output.published(name, raw).items()}
            for column in output.feature_columns(name):
                position = pc.if_else(pc.less(columns[column], 0), None, columns[column])
                columns[column] = pc.fill_null(pa.array(list(self.features), pa.string()).take(position), NO_FEATURE)
            start = end
        return pa.table(columns)

    def write(self, folder: Path) -> None:
        """Write it as `contract.json`; equal contracts give equal bytes."""
        document = {
            "format": FORMAT,
            "model": self.model,
            "family": self.family,
            "features": {name: spec.to_json() for name, spec in self.features.items()},
            "outputs": {name: dict(output) for name, output in self.outputs.items()},
            "output_columns": list(self.output_columns),
            "training_set_digest": self.training_set_digest,
            "as_of": self.as_of,
            "seed": self.seed,
            "params": dict(self.params),
        }
        write_json(folder / CONTRACT_FILE, document)

    @classmethod
    def read(cls, folder: Path) -> Contract:
        """Read `contract.json`.

        Raises:
            BadModelFile: it is of another format.
        """
        document = read_json(folder / CONTRACT_FILE)
        if document.get("format") != FORMAT:
            raise BadModelFile(
                f"{folder / CONTRACT_FILE} has format {document.get('format')!r}, this code reads {FORMAT}. Train the "
                "model again."
            )
        features = {}
        for name, spec in document["features"].items():
            categories = spec.get("categories")
            features[name] = FeatureSpec(spec["type"], None if categories is None else tuple(categories))
        return cls(
            model=document["model"],
            family=document["family"],
            features=features,
            outputs=document["outputs"],
            output_columns=tuple(document["output_columns"]),
            training_set_digest=document["training_set_digest"],
            as_of=document["as_of"],
            seed=document["seed"],
            params=document["params"],
        )

    def matrix(self, rows: pa.RecordBatch | pa.Table) -> Matrix:
        """Features as float32 of shape (rows, features), C-contiguous.

        Strings become the index in `categories`; nulls, unknown categories, NaN and infinities become NaN.

        Raises:
            BadFeatures: a column is missing or of another type.
        """
        matrix = np.empty((rows.num_rows, len(self.features)), dtype=np.float32)
        names = set(rows.schema.names)
        for index, (name, spec) in enumerate(self.features.items()):
            if name not in names:
                missing = [n for n in self.features if n not in names]
                raise BadFeatures(
                    f"{self.model} needs the feature {name!r}, which the rows lack ({len(missing)} of "
                    f"{len(self.features)} are missing: "
                    f"{', '.join(missing[:5])}). Retrieve the features of the model's catalog entry, or train it again "
                    "on those that are there."
                )
            matrix[:, index] = _numbers(self.model, name, spec, rows.column(name))
        np.copyto(matrix, np.nan, where=np.isinf(matrix))
        return matrix


def _numbers(model: str, name: str, spec: FeatureSpec, column: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    allowed = _ARROW_TYPES.get(spec.type)
    if allowed is None:
        raise BadFeatures(
            f"{model}: the feature {name!r} has type {spec.type}; a model takes {', '.join(FEATURE_TYPES)}. Derive a "
            "number from it in the view."
        )
    if kind not in allowed:
        raise BadFeatures(
            f"{model}: the feature {name!r} is {kind}, the model was trained on {allowed[0]}. Cast it, or train the "
            "model again."
        )
    if spec.categories is not None:
        column = pc.index_in(column, value_set=pa.array(spec.categories, kind))
    if not pa.types.is_floating(column.type):
        column = pc.cast(column, pa.float64(), safe=False)
    with np.errstate(over="ignore"):  # beyond float32 it is infinite, and so missing
        numbers: npt.NDArray[Any] = (
            column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
        )
        return numbers.astype(np.float32)


class Predictor(ABC):
    """A loaded model. `predict` is the only way from features to predictions: the gate, the night and the analyst use
    it.
    """

    chunk_rows = 131_072

    def __init__(self, contract: Contract) -> None:
        self.contract = contract

    @property
    def feature_columns(self) -> dict[str, str]:
        """Name to catalog type of every column `predict` needs."""
        return {name: spec.type for name, spec in self.contract.features.items()}

    @property
    def output_columns(self) -> tuple[str, ...]:
        """Columns of a prediction, in order."""
        return self.contract.output_columns

    def predict(self, batch: pa.RecordBatch | pa.Table) -> pa.Table:
        """Predict every row.

        Args:
            batch: any number of rows, none included, with at least the columns of `feature_columns`; others are
                ignored.
        Returns:
            `output_columns`, row by row in the order given: numbers as float64 in the unit of the label, probabilities
            in [0, 1], a class as the label has it.
        Raises:
            BadFeatures: a column is missing or of another type.
            PredictionsNotFinite: the model predicted NaN or infinity.
        """
        scores = np.empty((batch.num_rows, len(self.contract.raw_columns)), dtype=np.float64)
        for start in range(0, batch.num_rows, self.chunk_rows):
            part = batch.slice(start, self.chunk_rows)
            scores[start : start + part.num_rows] = self.scores(self.contract.matrix(part))
        if not batch.num_rows:
            self.contract.matrix(batch)  # a wrong schema is an error whether or not there are rows
        finite = np.isfinite(scores).all(axis=0)
        if not finite.all():
            column = int(np.argmin(finite))
            bad = int((~np.isfinite(scores[:, column])).sum())
            name = self.contract.raw_columns[column]
            raise PredictionsNotFinite(
                f"{self.contract.model} predicted {bad} of {batch.num_rows} values of {name!r} as NaN or infinite. "
                "Nothing was written. Roll the model back, and look at the features of those rows."
            )
        return self.contract.published(scores)

    @abstractmethod
    def scores(self, matrix: Matrix) -> Scores:
        """What the model computes, float64 of shape (rows, `contract.raw_columns`), from `Contract.matrix`."""


def write_json(path: Path, document: Any) -> None:
    """Write JSON whose bytes depend on the content alone."""
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))

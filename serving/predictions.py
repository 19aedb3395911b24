"""The predictions table of a model: its columns, the identity of a row, and what a row must satisfy before anybody sees
it.

The bytes that are hashed are laid out here and nowhere else, so that an id made today is the id made by another version
of any library: SHA-256 over `header | cell | cell | …`, where the header is the SHA-256 of a JSON text that names
columns and kinds, and a cell is one byte (1: there is a value) followed by 8 little-endian bytes (numbers, dates as
days, instants as microseconds UTC) or the 32 bytes of the text's SHA-256. A null is a cell of zeros, every NaN is the
same NaN, and neither equals any text.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from config.catalog.data import Dataset
from config.catalog.load import load_catalog
from config.catalog.model import ModelEntry
from config.errors import NightfleetError
from config.settings import Settings
from lake.duck import confine, connect
from lake.migrations import PREDICTIONS
from lake.tables import LakeTable, named_table

DIGEST_DIGITS = 32
_Bytes = npt.NDArray[np.uint8]
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


class BadPredictions(NightfleetError):
    """A predictor returned a value that must not be published."""


class NotServedOnce(NightfleetError):
    """An entity of a night has no served prediction, or more than one."""


class FeatureMissing(NightfleetError):
    """A model version needs a feature that retrieval no longer gives."""


def predictions_table(settings: Settings, model: ModelEntry, dataset: Dataset | None = None) -> LakeTable:
    """`<model>/predictions`, key `(role, *entity)`; of an entity's rows in a night exactly one is `served`.
    `dataset` is the model's, read from the catalog of `settings` when left out.
    """
    dataset = dataset or load_catalog(settings).dataset(model.dataset)
    columns = {
        "prediction_id": "string",
        "role": "string",
        "model": "string",
        "version": "int64",
        "artifact_digest": "string",
    }
    columns |= entity_types(model, dataset)
    columns["target_time_utc"] = "timestamp"
    columns |= model.output_types
    columns["input_digest"] = "string"
    columns["served"] = "boolean"
    return named_table(settings, f"{model.name}/predictions", columns, ("role", *model.entity), PREDICTIONS)


def entity_types(model: ModelEntry, dataset: Dataset) -> dict[str, str]:
    """Catalog type of each entity column, in order."""
    columns = model.spine.columns(dataset.tables)
    return {name: columns[name].type for name in model.entity}


# ---- identity --------------------------------------------------------------------------------------------------


def input_digests(rows: pa.RecordBatch | pa.Table, columns: Iterable[str]) -> pa.Array:
    """Digest of each row's own feature values: 32 hexadecimal digits.

    Args:
        rows: n rows with at least `columns`.
        columns: names of the features the model version reads; they are part of what is hashed.
    Raises:
        FeatureMissing: a column is not there.
    """
    return _hex(_row_digests(rows, tuple(columns), {"what": "input"}))


def prediction_ids(
    rows: pa.RecordBatch | pa.Table, *, model: str, version: int, role: str, entity: Iterable[str]
) -> pa.Array:
    """`hash(model, version, role, entity key, data date, target time, input digest)` of each row: 32 hexadecimal
    digits.

    Args:
        rows: n rows with the entity columns, `data_date`, `target_time_utc` and `input_digest`.
    """
    columns = (*entity, "data_date", "target_time_utc", "input_digest")
    return _hex(_row_digests(rows, columns, {"what": "prediction", "model": model, "version": version, "role": role}))


def _row_digests(rows: pa.RecordBatch | pa.Table, columns: tuple[str, ...], about: Mapping[str, Any]) -> _Bytes:
    missing = [name for name in columns if name not in rows.schema.names]
    if missing:
        raise FeatureMissing(
            f"the model reads {missing[0]!r}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}, which "
            "retrieval does not give. "
            "The catalog no longer has a feature that this version was trained with: put it back, or train and promote "
            "a version without it."
        )
    cells = [_cells(_flat(rows.column(name))) for name in columns]
    header = json.dumps(
        {**about, "columns": [[name, kind] for name, (kind, _, _) in zip(columns, cells, strict=True)]}, sort_keys=True
    )
    widths = [1 + values.shape[1] for _, _, values in cells]
    packed = np.empty((rows.num_rows, 32 + sum(widths)), dtype=np.uint8)
    packed[:, :32] = _sha256(pa.array([header.encode()], pa.binary()))
    begin = 32
    for width, (_, valid, values) in zip(widths, cells, strict=True):
        packed[:, begin] = valid
        packed[:, begin + 1 : begin + width] = values
        begin += width
    offsets = np.arange(0, (rows.num_rows + 1) * packed.shape[1], packed.shape[1], dtype=np.int64)
    return _sha256(
        pa.Array.from_buffers(pa.large_binary(), rows.num_rows, [None, pa.py_buffer(offsets), pa.py_buffer(packed)])
    )


def _flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _cells(column: pa.Array) -> tuple[str, _Bytes, _Bytes]:
    """Kind, validity (n) and value bytes (n, 8 or 32) of a column."""
    valid = np.asarray(column.is_valid(), dtype=np.uint8)
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        # Few distinct texts as a rule: each is hashed once.
        encoded = column.fill_null("").dictionary_encode()
        digests = _sha256(encoded.dictionary.cast(pa.large_binary()))
        values = digests[np.asarray(encoded.indices)] if len(column) else np.empty((0, 32), np.uint8)
        values[valid == 0] = 0
        return "text", valid, values
    if pa.types.is_floating(kind):
        numbers = np.array(column.cast(pa.float64()).fill_null(0.0), dtype="<f8")
        numbers[np.isnan(numbers)] = np.nan
        return "float", valid, numbers.view(np.uint8).reshape(-1, 8)
    if pa.types.is_date32(kind):
        name, whole = "date", column.cast(pa.int32()).cast(pa.int64())
    elif pa.types.is_timestamp(kind):
        name, whole = "instant", column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    elif pa.types.is_boolean(kind):
        name, whole = "boolean", column.cast(pa.int64())
    elif pa.types.is_integer(kind):
        name, whole = "integer", column.cast(pa.int64())
    else:
        raise TypeError(f"no cell layout for {kind}; the catalog has no such column type")
    return name, valid, np.array(whole.fill_null(0), dtype="<i8").view(np.uint8).reshape(-1, 8)


_hashing = threading.Lock()


@functools.cache
def _hasher() -> duckdb.DuckDBPyConnection:
    connection = connect()
    confine(connection)
    return connection


def _sha256(blobs: pa.Array) -> _Bytes:
    """SHA-256 of each blob, as an (n, 32) array. DuckDB does it off Python's loop; the function is the standard one, so
    any library could.
    """
    with _hashing, _hasher().cursor() as connection:
        connection.register("blobs", pa.table({"b": blobs}))
        digests = connection.sql("SELECT unhex(sha256(b)) AS d FROM blobs").to_arrow_table()["d"].combine_chunks()
    if len(digests) == 0:
        return np.empty((0, 32), dtype=np.uint8)
    width = 8 if pa.types.is_large_binary(digests.type) else 4
    first = int(np.frombuffer(digests.buffers()[1], dtype=f"<i{width}")[digests.offset])
    return np.frombuffer(digests.buffers()[2], dtype=np.uint8, count=len(digests) * 32, offset=first).reshape(-1, 32)


def _hex(digests: _Bytes) -> pa.Array:
    """The first 16 bytes of each digest as 32 hexadecimal digits."""
    half = digests[:, : DIGEST_DIGITS // 2]
    text = np.empty((len(half), DIGEST_DIGITS), dtype=np.uint8)
    text[:, 0::2] = _HEX[half >> 4]
    text[:, 1::2] = _HEX[half & 15]
    offsets = np.arange(0, (len(half) + 1) * DIGEST_DIGITS, DIGEST_DIGITS, dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), len(half), [None, pa.py_buffer(offsets), pa.py_buffer(text)])


# ---- what may be published -------------------------------------------------------------------------------------


def check_outputs(model: ModelEntry, outputs: pa.Table, rows: int, *, version: int) -> None:
    """Refuse outputs that are not judged by finite numbers, one a row, and what the kind of an output does not allow.

    Raises:
        BadPredictions: names the output, how many rows, and the first value met.
    """

    def refuse(what: str) -> None:
        raise BadPredictions(
            f"{model.name} version {version}: {what}. Nothing was published.\n"
            f"  Look at the version's run in MLflow, and go back to the champion before it (`rollback {model.name}`) "
            "when the version is at fault."
        )

    missing = [name for name in model.output_columns if name not in outputs.column_names]
    if missing or outputs.num_rows != rows:
        refuse(
            f"predicted columns {outputs.column_names} of {outputs.num_rows} rows, needs {list(model.output_columns)} "
            f"of {rows} rows"
        )
    for name in model.judged_columns:
        _count(
            refuse,
            name,
            outputs[name],
            pc.invert(pc.fill_null(pc.is_finite(outputs[name].cast(pa.float64())), False)),
            "are not finite numbers",
        )
    for name, output in model.outputs.items():
        for defect in output.defects(name, outputs):
            _count(refuse, defect.column, outputs[defect.column], defect.bad, defect.what)


def check_served(model: ModelEntry, parts: Sequence[pa.Table], *, times: int = 1) -> None:
    """Refuse rows of the same entities, one part a role, in which an entity is not served that many times.

    Args:
        times: 0 in a night without a champion, where nothing is served.
    Raises:
        NotServedOnce: says how many entities, and of which night the first is.
    """
    counted = np.sum(
        [np.asarray(part["served"].to_numpy(zero_copy_only=False), dtype=np.int64) for part in parts], axis=0
    )
    wrong = np.flatnonzero(counted != times)
    if len(wrong):
        first = int(wrong[0])
        needed = "exactly once" if times else "never, as a night without a champion needs"
        raise NotServedOnce(
            f"{model.name}: {len(wrong)} of {len(counted)} entities are not served {needed}, the first "
            f"{int(counted[first])} times on {parts[0]['data_date'][first]}. Nothing was published. Fix the shares of "
            "the night's assignments."
        )


def _count(refuse: Any, name: str, values: pa.ChunkedArray, bad: pa.ChunkedArray, what: str) -> None:
    count = pc.sum(bad).as_py() or 0
    if count:
        first = values[pc.index(bad, True).as_py()].as_py()
        refuse(f"{count} of {len(values)} values of {name} {what}, the first is {first}")

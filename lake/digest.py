"""The digest of a partition's rows: equal digests mean equal rows, whatever the chunking or the file they came from."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Mapping

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake.duck import confine, connect


class RowsDigest:
    """SHA-256 over the columns of key-sorted rows, fed batch by batch.

    Each column has a hasher of its own (validity, then lengths and bytes, or fixed-width values), so that the result
    does not depend on where batches end. Null slots count as zero, every NaN as the same NaN.

    Args:
        added: columns that a table got later, with what a row of before holds in them (`LakeTable.added`): each is left
            out of the digest while it holds just that in every row.
    """

    def __init__(self, schema: pa.Schema, added: Mapping[str, str] | None = None) -> None:
        self._schema = schema
        self._hashers = [(hashlib.sha256(), hashlib.sha256(), hashlib.sha256()) for _ in schema]
        self._as_before = dict(added or {})
        self.rows = 0

    def update(self, batch: pa.RecordBatch, as_before: pa.RecordBatch | None = None) -> None:
        """Add rows; `batch` has the schema given at the start.

        Args:
            as_before: what `held_as_before` says of these rows, where it was asked already.
        """
        self.rows += batch.num_rows
        held = held_as_before(batch, self._as_before) if as_before is None else as_before
        if held is not None:
            self._as_before = {
                name: value for name, value in self._as_before.items() if pc.all(held[name], min_count=0).as_py()
            }
        for column, (validity, lengths, values) in zip(batch.columns, self._hashers, strict=True):
            validity.update(np.asarray(column.is_valid()).tobytes())
            kind = column.type
            if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                filled = column.fill_null("")
                lengths.update(np.asarray(pc.binary_length(filled)).astype("<i8").tobytes())
                values.update(_text_bytes(filled))
            elif pa.types.is_boolean(kind):
                values.update(np.asarray(column.fill_null(False)).tobytes())
            elif pa.types.is_floating(kind):
                numbers = np.array(column.fill_null(0.0), dtype="<f8")
                numbers[np.isnan(numbers)] = np.nan
                values.update(numbers.tobytes())
            else:
                integers = (
                    column.cast(pa.int32()).cast(pa.int64()) if pa.types.is_date32(kind) else column.cast(pa.int64())
                )
                values.update(np.asarray(integers.fill_null(0)).astype("<i8").tobytes())

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        counted = [
            (column, parts)
            for column, parts in zip(self._schema, self._hashers, strict=True)
            if column.name not in self._as_before
        ]
        whole = hashlib.sha256(json.dumps([[column.name, str(column.type)] for column, _ in counted]).encode())
        whole.update(str(self.rows).encode())
        for _, parts in counted:
            for part in parts:
                whole.update(part.digest())
        return whole.hexdigest()


_evaluating = threading.Lock()


@functools.cache
def _evaluator() -> duckdb.DuckDBPyConnection:
    connection = connect()
    confine(connection)
    return connection


def held_as_before(batch: pa.RecordBatch, added: Mapping[str, str]) -> pa.RecordBatch | None:
    """Whether each row holds in each added column the value of that SQL expression, over its other columns; None where
    there is no such column.
    """
    if not added:
        return None
    columns = ", ".join(f'"{name}" IS NOT DISTINCT FROM ({value}) AS "{name}"' for name, value in added.items())
    with _evaluating, _evaluator().cursor() as connection:
        connection.register("batch", pa.Table.from_batches([batch]))
        held = connection.sql(f"SELECT {columns} FROM batch").to_arrow_table()  # noqa: S608 (declared beside the table)
    return pa.RecordBatch.from_arrays([column.combine_chunks() for column in held.columns], names=held.column_names)


def _text_bytes(column: pa.Array) -> bytes:
    width = 8 if pa.types.is_large_string(column.type) else 4
    offsets, data = column.buffers()[1:3]
    if data is None:
        return b""
    bounds = np.frombuffer(offsets, dtype=f"<i{width}", count=len(column) + 1, offset=column.offset * width)
    return memoryview(data)[int(bounds[0]) : int(bounds[-1])].tobytes()


def rows_digest(table: pa.Table) -> str:
    """Digest of a table whose rows are sorted by key already."""
    digest = RowsDigest(table.schema)
    for batch in table.to_batches():
        digest.update(batch)
    return digest.hexdigest()

"""A query through SQLAlchemy, streamed in batches with a server-side cursor."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from config.calendar import ONE_DAY, cutoff
from config.catalog.data import ColumnType, SqlSource
from config.masking import cause, library_text, shown
from config.settings import Settings, secret
from features.sources.columns import check_names, mismatch
from features.sources.errors import SourceRefused, SourceUnavailable
from features.sources.meter import Meter
from lake.tables import ARROW_TYPES


def is_dated(source: SqlSource) -> bool:
    """Whether the query asks for one night at a time."""
    return bool({"start_utc", "end_utc"} & _parameters(source.query))


def _parameters(query: str) -> set[str]:
    return set(sa.text(query).compile().params)


def stage(
    settings: Settings,
    source: SqlSource,
    columns: Mapping[str, ColumnType],
    night: date | None,
    time_zone: str,
    target: Path,
    meter: Meter,
    *,
    personal: Collection[str] = (),
) -> None:
    """Write the query's rows to one Parquet file `target`, batch by batch: memory does not grow with the rows.

    Args:
        night: binds `:start_utc` to the cutoff of the night before and `:end_utc` to its own.
    Raises:
        SourceUnavailable: the server does not answer. SourceRefused: it refuses the query or the login.
        SourceTooLarge: the rows exceed one of the source's limits.
        SourceSchemaMismatch: a column is undeclared, missing or retyped.
    """
    label = meter.label
    query = sa.text(source.query)
    bounds: dict[str, Any] = (
        {"start_utc": cutoff(night - ONE_DAY, time_zone), "end_utc": cutoff(night, time_zone)} if night else {}
    )
    values = {name: value for name, value in bounds.items() if name in _parameters(source.query)}
    url = make_url(secret(settings, source.url_secret))
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    schema = pa.schema([pa.field(name, ARROW_TYPES[kind]) for name, kind in columns.items()])
    try:
        with engine.connect() as connection, pq.ParquetWriter(target, schema, compression="zstd") as writer:
            result = connection.execution_options(stream_results=True, yield_per=source.batch_rows).execute(
                query, values
            )
            names = list(result.keys())
            check_names(label, names, columns)
            done = 0
            for rows in result.partitions(source.batch_rows):
                by_name = dict(zip(names, zip(*rows, strict=True), strict=True))
                meter.take("max_rows", len(rows))
                batch = pa.table(
                    [
                        _column(label, name, by_name[name], kind, done, personal=name in personal)
                        for name, kind in columns.items()
                    ],
                    schema=schema,
                )
                meter.take("max_bytes", batch.nbytes)
                writer.write_table(batch)
                done += len(rows)
    except sa.exc.OperationalError as error:
        where = url.render_as_string(hide_password=True)
        raise SourceUnavailable(
            f"{label}: {where} did not answer the query: {error.orig}\n"
            "  Nothing was written. Check that the server is up, then clear the task."
        ) from error
    except sa.exc.DBAPIError as error:
        where = url.render_as_string(hide_password=True)
        raise SourceRefused(
            f"{label}: {where} refuses the query: "
            f"{library_text(error.orig or error, personal=bool(personal))}\n"
            "  Nothing was written. Correct `query` in the catalog, or the rights of its login."
        ) from cause(error, personal=bool(personal))
    finally:
        engine.dispose()


def _column(label: str, name: str, values: tuple[Any, ...], kind: ColumnType, done: int, *, personal: bool) -> pa.Array:
    try:
        return _converted(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        for number, value in enumerate(values):
            try:
                _converted((value,), kind)
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                problem = (
                    f"{name!r} is declared {kind}, but row {done + number + 1} has {shown(value, personal=personal)} "
                    f"({type(value).__name__})"
                )
                raise mismatch(label, [problem]) from cause(error, personal=personal)
        raise


def _converted(values: tuple[Any, ...], kind: ColumnType) -> pa.Array:
    wanted = ARROW_TYPES[kind]
    found = pa.array(values)
    if pa.types.is_null(found.type) or found.type == wanted:
        return found.cast(wanted)
    text = pa.types.is_string(found.type)
    number = pa.types.is_integer(found.type) or pa.types.is_floating(found.type) or pa.types.is_decimal(found.type)
    accepted = {
        "string": text,
        "int32": number,
        "int64": number,
        "float64": number,
        "boolean": pa.types.is_integer(found.type) and set(values) <= {0, 1, None},  # SQLite has no boolean
        "date": text,  # nor dates, nor timestamps: it hands out texts
        "timestamp": text or pa.types.is_timestamp(found.type),
    }[kind]
    if not accepted:
        raise TypeError(f"{found.type} is not {kind}")
    if text and kind == "timestamp":
        zoned = values[next(i for i, v in enumerate(values) if v is not None)][-6:]
        found = found.cast(wanted if zoned.endswith("Z") or "+" in zoned or zoned[0] == "-" else pa.timestamp("us"))
    return found.cast(wanted)

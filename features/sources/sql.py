"""A query through SQLAlchemy, streamed in batches with a server-side cursor."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from config.calendar import ONE_DAY, cutoff
from config.catalog.source import SourceColumn, SqlSource
from config.masking import cause, library_text, shown
from config.settings import Settings, secret
from features.sources.columns import (
    Difference,
    Rows,
    check_types,
    is_refusal,
    match_names,
    mismatch,
    refusal,
    typed,
)
from features.sources.errors import SourceRefused, SourceUnavailable
from features.sources.meter import Meter
from lake.tables import ARROW_TYPES

# Classes of SQLSTATE: connection, rolled back, out of resources, intervention of an operator, trouble of the system.
_PASSING_STATES = frozenset({"08", "40", "53", "57", "58"})
_SQLITE_PASSING = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM}
)


def is_dated(source: SqlSource) -> bool:
    """Whether the query asks for one night at a time."""
    return bool({"start_utc", "end_utc"} & _parameters(source.query))


def _parameters(query: str) -> set[str]:
    return set(sa.text(query).compile().params)


def stage(
    duck: duckdb.DuckDBPyConnection,
    settings: Settings,
    source: SqlSource,
    columns: Mapping[str, SourceColumn],
    night: date | None,
    time_zone: str,
    target: Path,
    meter: Meter,
    *,
    personal: Collection[str] = (),
) -> tuple[Difference, ...]:
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
    values = _bounds(source, night, time_zone)
    engine = _engine(label, source, settings)
    schema = pa.schema([pa.field(name, ARROW_TYPES[column.type]) for name, column in columns.items()])
    try:
        with (
            _refusals_named(label, engine.url, personal=bool(personal)),
            engine.connect() as connection,
            pq.ParquetWriter(target, schema, compression="zstd") as writer,
        ):
            result = connection.execution_options(stream_results=True, yield_per=source.batch_rows).execute(
                query, values
            )
            names = list(result.keys())
            matched = match_names(label, names, columns, source.on_extra)
            done = 0
            for rows in result.partitions(source.batch_rows):
                by_name = dict(zip(names, zip(*rows, strict=True), strict=True))
                meter.take("max_rows", len(rows))
                own = {name: by_name[own_name] for name, own_name in matched.names.items()}
                natural = _columns(label, own, columns, done, personal)
                if not own:
                    natural = pa.table({"nf__none": pa.nulls(len(rows))})
                batch = _typed(duck, label, natural, columns, done, personal).cast(schema)
                meter.take("max_bytes", batch.nbytes)
                writer.write_table(batch)
                done += len(rows)
        return matched.differences
    finally:
        engine.dispose()


def _engine(label: str, source: SqlSource, settings: Settings) -> sa.Engine:
    try:
        return sa.create_engine(make_url(secret(settings, source.url_secret)), poolclass=sa.NullPool)
    except (sa.exc.ArgumentError, ImportError, ValueError, TypeError) as error:
        # The words of the library may quote the url, and with it the password.
        raise SourceRefused(
            f"{label}: the secret {source.url_secret!r} is no SQLAlchemy URL whose driver is installed "
            f"({type(error).__name__}). Nothing was written.\n"
            "  Write it as postgresql+psycopg2://<user>:<password>@<host>/<database>, or install the driver that it "
            "names."
        ) from None


@contextmanager
def _refusals_named(label: str, url: sa.URL, *, personal: bool) -> Iterator[None]:
    """What SQLAlchemy raises, as an error of ours: one that may pass, or one that another try would meet again."""
    where = url.render_as_string(hide_password=True)
    try:
        yield
    except sa.exc.DBAPIError as error:
        personal = personal and error.statement is not None  # before the query there are no rows to quote
        said = library_text(error.orig or error, personal=personal)
        if _passes(error):
            raise SourceUnavailable(
                f"{label}: {where} did not answer the query: {said}\n"
                "  Nothing was written. Check that the server is up, then clear the task."
            ) from cause(error, personal=personal)
        raise SourceRefused(
            f"{label}: {where} refuses the query: {said}\n"
            "  Nothing was written. Correct `query` in the catalog, or the rights of its login."
        ) from cause(error, personal=personal)
    except (sa.exc.SQLAlchemyError, UnicodeError) as error:
        said = library_text(error, personal=personal)
        raise SourceRefused(
            f"{label}: {where} cannot be asked the query: {said}\n"
            "  Nothing was written. Correct `query` in the catalog: it is one SELECT, with no parameters but "
            ":start_utc and :end_utc."
        ) from cause(error, personal=personal)


def _passes(error: sa.exc.DBAPIError) -> bool:
    """Whether the server, not the query, is what failed. Drivers call both an OperationalError."""
    if error.connection_invalidated:
        return True
    if (sqlite_code := getattr(error.orig, "sqlite_errorcode", None)) is not None:
        return sqlite_code & 0xFF in _SQLITE_PASSING
    if (state := getattr(error.orig, "pgcode", None)) is not None:
        return str(state)[:2] in _PASSING_STATES
    # Neither says more where there is no connection yet. A wrong password stays wrong, a query was never sent.
    login = re.search(r"authentication failed|access denied|does not exist", str(error.orig), re.IGNORECASE)
    return isinstance(error, sa.exc.OperationalError) and error.statement is None and login is None


def _bounds(source: SqlSource, night: date | None, time_zone: str) -> dict[str, Any]:
    """What the query's parameters are for a night."""
    if night is None:
        return {}
    bounds = {"start_utc": cutoff(night - ONE_DAY, time_zone), "end_utc": cutoff(night, time_zone)}
    return {name: value for name, value in bounds.items() if name in _parameters(source.query)}


def first_rows(
    settings: Settings, source: SqlSource, night: date | None, time_zone: str, meter: Meter, *, rows: int
) -> pa.Table:
    """The query's first rows, under its own names; a column of values that no table holds as their texts.

    Raises:
        SourceUnavailable: the server does not answer. SourceRefused: it refuses the query or the login.
    """
    engine = _engine(meter.label, source, settings)
    try:
        with _refusals_named(meter.label, engine.url, personal=False), engine.connect() as connection:
            streaming = connection.execution_options(stream_results=True)
            result = streaming.execute(sa.text(source.query), _bounds(source, night, time_zone))
            names = list(result.keys())
            fetched = result.fetchmany(rows)
    finally:
        engine.dispose()
    columns = zip(*fetched, strict=True) if fetched else ((),) * len(names)
    return pa.Table.from_arrays([_natural(values) for values in columns], names=names)


def _natural(values: tuple[Any, ...]) -> pa.Array:
    try:
        if len({_kind(value) for value in values if value is not None}) > 1:
            raise TypeError
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError, UnicodeError):
        return pa.array([None if value is None else repr(value) for value in values], pa.string())


def _columns(
    label: str,
    rows: Mapping[str, tuple[Any, ...]],
    columns: Mapping[str, SourceColumn],
    done: int,
    personal: Collection[str],
) -> pa.Table:
    """One batch as the driver hands it out.

    Raises:
        SourceSchemaMismatch: a column holds values of several types, or of one that no column can have.
    """
    arrays, problems = {}, []
    for name, values in rows.items():
        try:
            kinds = [_kind(value) for value in values if value is not None]
            if len(set(kinds)) > 1:
                raise TypeError
            arrays[name] = pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError, UnicodeError):
            row, value = _odd(values)
            problems.append(
                f"{name!r} is declared {columns[name].type}, but row {done + row + 1} has "
                f"{shown(value, personal=name in personal)} ({type(value).__name__}), and other rows may have other "
                "types: cast it in `query`"
            )
    if problems:
        raise mismatch(label, problems)
    return pa.table(arrays)


def _kind(value: object) -> str:
    """What a column holds one of alone: Arrow would cut the time off a datetime that comes after a date."""
    if isinstance(value, datetime):
        return "instant" if value.tzinfo else "local time"
    return "number" if type(value) in (int, float, Decimal) else type(value).__name__


def _odd(values: tuple[Any, ...]) -> tuple[int, Any]:
    """Place and value of the first value that no column can hold, or that differs in type from those before."""
    first = None
    for row, value in enumerate(values):
        if value is None:
            continue
        first = first or _kind(value)
        try:
            pa.array([value])
        except (pa.ArrowException, TypeError, ValueError, OverflowError, UnicodeError):
            return row, value
        if _kind(value) != first:
            return row, value
    return next((row, value) for row, value in enumerate(values) if value is not None)


def _typed(
    connection: duckdb.DuckDBPyConnection,
    label: str,
    batch: pa.Table,
    columns: Mapping[str, SourceColumn],
    done: int,
    personal: Collection[str],
) -> pa.Table:
    connection.register("nf__batch", batch)
    try:
        described = connection.execute("DESCRIBE SELECT * FROM nf__batch").fetchall()
        types = {str(row[0]): str(row[1]) for row in described if str(row[0]) in columns}
        check_types(label, types, columns)
        rows = Rows("nf__batch", types)
        try:
            return connection.sql(typed(rows, columns)).to_arrow_table()
        except duckdb.InvalidInputException as error:
            if not is_refusal(error):
                raise
            raise refusal(connection, label, [rows], columns, personal, rows_before=done) from None
    finally:
        connection.unregister("nf__batch")

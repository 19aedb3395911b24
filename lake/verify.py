"""Whether a table still holds what was published: its log, the bytes of its files, the digest of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

import duckdb
import pyarrow as pa
import sqlalchemy as sa
from deltalake import DeltaTable

from config.errors import NightfleetError
from lake.delta import TableDamaged, TableLocation, file_problem, file_sizes
from lake.digest import RowsDigest
from lake.lake import Lake
from lake.projection import sql_columns
from lake.publish import by_date
from lake.tables import LakeTable

_BATCH_ROWS = 131_072
# Dates whose rows are sorted at once: what one of them breaks is read again date by date.
_DATES_AT_ONCE = 31


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written.

    Attributes:
        part: what was looked at, for example `lake` or `SQL`.
        place: table and data date, or the file, view or model.
        problem: what is wrong with it.
        remedy: the next step.
    """

    part: str
    place: str
    problem: str
    remedy: str


def verify_table(lake: Lake, table: LakeTable, *, remedy: str) -> Iterator[Damage]:
    """Compare every published partition with the bytes and the rows that are there.

    Files of whatever age are compared: their rows are read and their digest is computed anew, a month at a time.

    Args:
        remedy: how a partition of this table is made again; `{data_date}` stands for its date.
    """
    try:
        delta = table.load()
    except (NightfleetError, OSError) as error:
        yield Damage("lake", table.name, str(error), "Restore the table's log from a backup.")
        return
    if delta is None:
        return
    published = lake.publications.current(table, loaded=delta, as_of_version=delta.version())
    damaged = table.damaged(delta, list(published))
    for day, problem in damaged.items():
        yield Damage("lake", f"{table.name} {day}", problem, remedy.format(data_date=day))
    sound = sorted(set(published) - set(damaged))
    for begin in range(0, len(sound), _DATES_AT_ONCE):
        for day, rows in _digests(lake, table, delta, sound[begin : begin + _DATES_AT_ONCE]).items():
            wanted = published[day]
            if isinstance(rows, str):
                problem = f"its file cannot be read: {rows}"
            elif (rows.hexdigest(), rows.rows) == (wanted.digest, wanted.rows):
                continue
            else:
                problem = (
                    f"holds {rows.rows} rows of digest {rows.hexdigest()[:12]}…, published were {wanted.rows} of "
                    f"{wanted.digest[:12]}…"
                )
            yield Damage("lake", f"{table.name} {day}", problem, remedy.format(data_date=day))


def verify_files(location: TableLocation, name: str) -> Iterator[Damage]:
    """Compare the bytes of a table's files, whatever its rows mean, with what its log says of them."""
    try:
        delta = location.open()
    except TableDamaged as error:
        yield Damage("lake", name, str(error), "Restore the table's log from a backup.")
        return
    if delta is None:
        return
    sizes = file_sizes(delta)
    for uri in sorted(delta.file_uris()):
        problem = file_problem(uri, sizes.get(uri.rsplit("/", 1)[-1]))
        if problem:
            yield Damage("lake", name, f"{uri} {problem}", "Restore that file from a backup.")


def altered_dates(lake: Lake, table: LakeTable, sql_table: str, *, keep_replaced: bool = False) -> list[date]:
    """Data dates whose current rows in SQL have another digest than the rows that were published: somebody else wrote
    there. A table that lacks a column is not looked at; it is projected anew.
    """
    inspector = sa.inspect(lake.engine)
    if not inspector.has_table(sql_table):
        return []
    if set(table.schema.names) - {column["name"] for column in inspector.get_columns(sql_table)}:
        return []
    target = sql_columns(sql_table, table.schema, keep_replaced=keep_replaced)
    columns = [target.c[name] for name in table.schema.names]
    query = sa.select(*columns).where(target.c.source_table == table.name)
    if keep_replaced:
        query = query.where(target.c.superseded_at.is_(None))
    order = [(name, "ascending") for name in table.key]
    altered = []
    with lake.engine.connect() as connection:
        for day, publication in sorted(lake.publications.current(table).items()):
            rows = connection.execute(query.where(target.c.data_date == day)).fetchall()
            values = zip(*rows, strict=True) if rows else ([] for _ in columns)
            fields = zip(values, table.schema, strict=True)
            in_sql = pa.table([pa.array(column, field.type) for column, field in fields], schema=table.schema)
            digest = RowsDigest(table.schema, table.added)
            for batch in in_sql.sort_by(order).combine_chunks().to_batches():
                digest.update(batch)
            if digest.hexdigest() != publication.digest:
                altered.append(day)
    return altered


def _digests(lake: Lake, table: LakeTable, delta: DeltaTable, dates: Sequence[date]) -> dict[date, RowsDigest | str]:
    """Digest of the rows of each date, or why they cannot be read."""
    digests: dict[date, RowsDigest | str] = {}
    try:
        digests |= _read_digests(lake, table, delta, dates)
    except (duckdb.Error, pa.ArrowException) as error:
        if len(dates) == 1:
            return {dates[0]: (str(error).splitlines() or [type(error).__name__])[0]}
        for day in dates:
            digests |= _digests(lake, table, delta, [day])
    return digests


def _read_digests(lake: Lake, table: LakeTable, delta: DeltaTable, dates: Sequence[date]) -> dict[date, RowsDigest]:
    digests = {day: RowsDigest(table.schema, table.added) for day in dates}
    order = ", ".join(f'"{column}"' for column in ("data_date", *table.key))
    with lake.duckdb() as connection:
        table.register(connection, "t", dates, delta.version())
        for batch in connection.sql(f"SELECT * FROM t ORDER BY {order}").to_arrow_reader(_BATCH_ROWS):  # noqa: S608 (columns of the typed catalog)
            for day, rows in by_date(batch.cast(table.schema)):
                digests[day].update(rows)
    return digests

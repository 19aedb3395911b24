"""What the projections of a model's two ledgers to SQL have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from lake.lake import Lake
from lake.ledger import Promotion
from lake.lineage import as_utc
from lake.rollouts import RolloutLine
from lake.storage import lock

Line = Promotion | RolloutLine


def project_lines(
    lake: Lake, table: sa.Table, model: str, lines: Sequence[Line], read: Callable[[], Sequence[Line]]
) -> int:
    """Make SQL hold the model's lines; lines written, 0 when there was nothing to do.

    Args:
        lines: of the ledger as just read.
        read: reads them again, once SQL is locked.
    """
    with lake.engine.connect() as connection:
        # Without a lock first: the usual rerun finds nothing to do and should not wait for a writer.
        if sa.inspect(connection).has_table(table.name) and _stored(connection, table, (model,)) == _rows(lines):
            return 0
    with lake.engine.connect() as connection, connection.begin():
        lock(connection, f"projection:{table.name}")
        table.metadata.create_all(connection, checkfirst=True)
        # Read again under the lock: the ledger is only appended to, so what is read now is what SQL holds or newer.
        rows = _rows(read())
        connection.execute(table.delete().where(table.c.model == model))
        if rows:
            connection.execute(table.insert(), rows)
    return len(rows)


def stored_rows(lake: Lake, table: sa.Table, models: Collection[str]) -> list[dict[str, Any]]:
    """The lines of those models as SQL has them, by model and sequence."""
    with lake.engine.connect() as connection:
        return _stored(connection, table, models) if sa.inspect(connection).has_table(table.name) else []


def _stored(connection: sa.Connection, table: sa.Table, models: Collection[str]) -> list[dict[str, Any]]:
    c = table.c
    query = sa.select(table).where(c.model.in_(list(models))).order_by(c.model, c.sequence)
    rows = connection.execute(query).mappings()
    return [dict(row) | {"decided_at": as_utc(row["decided_at"])} for row in rows]


def _rows(lines: Sequence[Line]) -> list[dict[str, Any]]:
    ordered = sorted(lines, key=lambda line: line.sequence)
    return [replace(line, decided_at=as_utc(line.decided_at)).__dict__ for line in ordered]

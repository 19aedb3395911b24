"""The ledger's lines in SQL: a projection of every model's promotions, for pages that show many models at once."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from lake.lake import Lake
from lake.ledger import LedgerSnapshot, Promotion
from lake.lineage import as_utc
from lake.storage import lock

_metadata = sa.MetaData()
promotions_table = sa.Table(
    "promotions",
    _metadata,
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("trained_until", sa.Date, nullable=False),
    sa.Column("effective_from", sa.Date, nullable=False),
    sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("artifact_digest", sa.String, nullable=False),
    sa.Column("evidence_digest", sa.String, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)


def project_promotions(lake: Lake, model: str, *, seen: LedgerSnapshot | None = None) -> int:
    """Make SQL hold the model's ledger as it is; lines written, 0 when there was nothing to do. A ledger that was never
    written changes nothing.

    Args:
        seen: the ledger as just read; None: it is read here.
    """
    snapshot = seen or lake.ledger(model).read()
    if snapshot.delta_version < 0:
        return 0
    engine = lake.engine
    with engine.connect() as connection:
        # Without a lock first: the usual rerun finds nothing to do and should not wait for a writer.
        if sa.inspect(connection).has_table(promotions_table.name) and _stored(connection, (model,)) == _lines(
            snapshot
        ):
            return 0
    with engine.connect() as connection, connection.begin():
        lock(connection, f"projection:{promotions_table.name}")
        _metadata.create_all(connection, checkfirst=True)
        # Read again under the lock: the ledger is only appended to, so what is read now is what SQL holds or newer.
        lines = _lines(lake.ledger(model).read())
        connection.execute(promotions_table.delete().where(promotions_table.c.model == model))
        if lines:
            connection.execute(promotions_table.insert(), [line.__dict__ for line in lines])
    return len(lines)


def stored_promotions(lake: Lake, models: Collection[str]) -> list[Promotion]:
    """The lines of those models as SQL has them, by model and sequence."""
    with lake.engine.connect() as connection:
        return _stored(connection, models) if sa.inspect(connection).has_table(promotions_table.name) else []


def _stored(connection: sa.Connection, models: Collection[str]) -> list[Promotion]:
    c = promotions_table.c
    query = sa.select(promotions_table).where(c.model.in_(list(models))).order_by(c.model, c.sequence)
    return [_promotion(dict(row)) for row in connection.execute(query).mappings()]


def _promotion(row: dict[str, Any]) -> Promotion:
    return Promotion(**row | {"decided_at": as_utc(row["decided_at"])})


def _lines(snapshot: LedgerSnapshot) -> list[Promotion]:
    return [
        Promotion(**line.__dict__ | {"decided_at": as_utc(line.decided_at)})
        for line in sorted(snapshot.promotions, key=lambda p: p.sequence)
    ]

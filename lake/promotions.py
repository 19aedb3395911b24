"""The ledger's lines in SQL: a projection of every model's promotions, for pages that show many models at once."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from lake.lake import Lake
from lake.ledger import LedgerSnapshot, Promotion
from lake.ledger_lines import project_lines, stored_rows

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
    return project_lines(
        lake, promotions_table, model, snapshot.promotions, lambda: lake.ledger(model).read().promotions
    )


def stored_promotions(lake: Lake, models: Collection[str]) -> list[Promotion]:
    """The lines of those models as SQL has them, by model and sequence."""
    return [Promotion(**row) for row in stored_rows(lake, promotions_table, models)]

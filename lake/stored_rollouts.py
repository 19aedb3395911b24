"""The rollouts' lines in SQL: a projection of every model's rollouts, for pages that show many models at once."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from lake.lake import Lake
from lake.ledger_lines import project_lines, stored_rows
from lake.rollouts import RolloutLine, RolloutSnapshot

_metadata = sa.MetaData()
rollouts_table = sa.Table(
    "rollouts",
    _metadata,
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("night", sa.Date),
    sa.Column("trained_until", sa.Date, nullable=False),
    sa.Column("effective_from", sa.Date, nullable=False),
    sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("artifact_digest", sa.String, nullable=False),
    sa.Column("evidence_digest", sa.String, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("settings", sa.Text, nullable=False),
)


def project_rollouts(lake: Lake, model: str, *, seen: RolloutSnapshot | None = None) -> int:
    """As `lake.promotions.project_promotions`, of the model's rollouts."""
    snapshot = seen or lake.rollouts(model).read()
    if snapshot.delta_version < 0:
        return 0
    return project_lines(lake, rollouts_table, model, snapshot.lines, lambda: lake.rollouts(model).read().lines)


def stored_rollouts(lake: Lake, models: Collection[str]) -> dict[str, RolloutSnapshot]:
    """By model: its rollouts as SQL has them; models without any are left out."""
    lines: dict[str, list[RolloutLine]] = {}
    for row in stored_rows(lake, rollouts_table, models):
        lines.setdefault(row["model"], []).append(RolloutLine(**row))
    # The version is Delta's, which SQL does not know; nothing is appended after a snapshot of SQL.
    return {model: RolloutSnapshot(model, 0, tuple(some)) for model, some in lines.items()}

"""Columns that tables got after rows had been written without them, and what such a row holds in them.

The lake is not rewritten: there, a row reads so (`LakeTable.added`). In SQL the columns are added and filled when the
projections' database is opened, once. The values are SQL in words that DuckDB, SQLite and Postgres share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from lake.storage import lock

# Only champions were measured, and the version stood in `reference`: "version 3", or "version 3, trained on …".
METRICS = {
    "role": "CASE WHEN reference LIKE 'version %' THEN 'champion' END",
    "model_version": (
        "CASE WHEN reference LIKE 'version %' THEN CAST(rtrim(substr(reference, 9, 12), ', trained on') AS BIGINT) END"
    ),
}
# Only champions scored, and every row of theirs was used.
PREDICTIONS = {"served": "true"}
# What people said of an alarm named neither: it holds for the champion's alarms, whatever their version.
ACTIONS = {"model_role": "CAST(NULL AS VARCHAR)", "model_version": "CAST(NULL AS BIGINT)"}

_TYPES: Mapping[str, sa.types.TypeEngine[Any]] = {
    "role": sa.Text(),
    "model_role": sa.Text(),
    "model_version": sa.BigInteger(),
    "served": sa.Boolean(),
}


def is_former(engine: sa.Engine) -> bool:
    """Whether a former version wrote the projections' database, and no other has opened it since."""
    with engine.connect() as connection:
        return bool(_lacking(connection))


def migrate(engine: sa.Engine) -> None:
    """Add to the projections' tables the columns that they lack, filled; nothing where none lacks any."""
    with engine.connect() as connection, connection.begin():
        lock(connection, "migrate")
        quote = connection.dialect.identifier_preparer.quote
        for table, added in _lacking(connection).items():
            for column in added:
                kind = _TYPES[column].compile(connection.dialect)
                connection.execute(sa.text(f"ALTER TABLE {quote(table)} ADD COLUMN {quote(column)} {kind}"))
            filled = ", ".join(f"{quote(column)} = {value}" for column, value in added.items())
            connection.execute(sa.text(f"UPDATE {quote(table)} SET {filled}"))  # noqa: S608 (names and values from above)


def _lacking(connection: sa.Connection) -> dict[str, dict[str, str]]:
    """By table: the columns that it does not have yet."""
    inspector = sa.inspect(connection)
    wanted = {table: added for table in inspector.get_table_names() if (added := _added_to(table))}
    if not wanted:
        return {}
    there = {
        name: {column["name"] for column in columns}
        for (_, name), columns in inspector.get_multi_columns(filter_names=list(wanted)).items()
    }
    lacking = {
        table: {column: value for column, value in added.items() if column not in there[table]}
        for table, added in wanted.items()
    }
    return {table: added for table, added in lacking.items() if added}


def _added_to(table: str) -> Mapping[str, str]:
    if table.startswith("predictions_"):
        return PREDICTIONS
    return {"metrics": METRICS, "actions": ACTIONS}.get(table, {})

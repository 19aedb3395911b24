"""Finding a published prediction: by the beginning of its id, or by its night and entity; and what lies nearest to one
that is not there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from config.catalog.model import ModelEntry
from config.catalog.source import ColumnType
from config.errors import NightfleetError
from lake.assignment import CHAMPION
from lake.lake import Lake
from lake.lineage import as_utc
from lake.projection import sql_columns
from serving.predictions import DIGEST_DIGITS, entity_types, predictions_table
from serving.projection import sql_name

LEAST_DIGITS = 8
_HEX = frozenset("0123456789abcdef")


class NoPredictionId(NightfleetError):
    """A text that no prediction's id can begin with."""


class BadEntityValue(NightfleetError):
    """A text that is not a value of the entity column's type."""


@dataclass(frozen=True)
class Found:
    """One prediction's row, as SQL holds it.

    Attributes:
        value: the model's first output.
        role, served: the version's part in the night, and whether its prediction is the one that is used.
        superseded_at: when another row took its place, UTC; None while it is current.
    """

    prediction_id: str
    model: str
    version: int
    data_date: date
    entity: Mapping[str, Any]
    value: float | None
    superseded_at: datetime | None
    role: str = CHAMPION
    served: bool = True


def by_id(lake: Lake, text: str, models: Collection[str], *, limit: int = 10) -> list[Found]:
    """Predictions of those models whose id begins with `text`, one a different id, at most `limit`.

    Raises:
        NoPredictionId: the text has fewer than `LEAST_DIGITS` digits, more than an id, or others than 0-9a-f.
    """
    digits = text.strip().lower()
    if not (LEAST_DIGITS <= len(digits) <= DIGEST_DIGITS and set(digits) <= _HEX):
        raise NoPredictionId(
            f"an id has {DIGEST_DIGITS} digits 0-9a-f, of which the first {LEAST_DIGITS} or more are needed."
        )
    matches: list[Found] = []
    for model, table in _tables(lake, models).items():
        c = table.c
        # A range, not LIKE: both databases answer it from the index.
        named = (
            c.prediction_id == digits
            if len(digits) == DIGEST_DIGITS
            else sa.and_(c.prediction_id >= digits, c.prediction_id < digits + "g")
        )
        query = (
            _select(lake.model(model), table)
            .where(named)
            .order_by(c.prediction_id, c.superseded_at.is_not(None), c.superseded_at.desc())
        )
        seen: set[str] = set()
        for row in _rows(lake, model, query.limit(2 * limit)):
            if row.prediction_id not in seen:
                seen.add(row.prediction_id)
                matches.append(row)
    return matches[:limit]


def by_entity(
    lake: Lake, model: str, night: date, entity: Mapping[str, Any], *, limit: int = 50
) -> tuple[list[Found], int]:
    """Predictions of a night whose entity has those values, of every role, current ones first and of them those that
    are served, at most `limit`; and how many there are.
    """
    table = _tables(lake, [model]).get(model)
    if table is None:
        return [], 0
    where = [table.c.data_date == night, *(table.c[name].is_not_distinct_from(value) for name, value in entity.items())]
    entry = lake.model(model)
    query = (
        _select(entry, table)
        .where(*where)
        .order_by(
            table.c.superseded_at.is_not(None),
            *(table.c[name] for name in entry.entity),
            sa.desc(_served(table)),
            table.c.superseded_at,
        )
    )
    with lake.engine.connect() as connection:
        count = int(connection.execute(sa.select(sa.func.count()).select_from(table).where(*where)).scalar_one())
    return _rows(lake, model, query.limit(limit)), count


def nearest(lake: Lake, model: str, night: date, entity: Mapping[str, Any], *, limit: int = 8) -> list[Found]:
    """Current predictions of the night that share most of those values, the served ones first; among them those whose
    numbers lie closest.
    """
    table = _tables(lake, [model]).get(model)
    if table is None:
        return []
    entry = lake.model(model)
    shared = [sa.case((table.c[name].is_not_distinct_from(value), 1), else_=0) for name, value in entity.items()]
    numbers = [
        sa.func.abs(table.c[name] - value)
        for name, value in entity.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    order = [sa.desc(sum(shared[1:], shared[0]))] if shared else []
    query = _select(entry, table).where(table.c.data_date == night, table.c.superseded_at.is_(None))
    order = [sa.desc(_served(table)), *order]
    return _rows(lake, model, query.order_by(*order, *numbers, *(table.c[name] for name in entry.entity)).limit(limit))


def nights_around(lake: Lake, model: str, night: date) -> tuple[date | None, date | None]:
    """The last night up to `night`, and the first one after it, that hold predictions."""
    table = _tables(lake, [model]).get(model)
    if table is None:
        return None, None
    day = table.c.data_date
    with lake.engine.connect() as connection:
        before = connection.execute(sa.select(sa.func.max(day)).where(day <= night)).scalar()
        return before, connection.execute(sa.select(sa.func.min(day)).where(day > night)).scalar()


def newest(lake: Lake, models: Collection[str], *, each: int = 1) -> list[Found]:
    """Some current predictions of each model's newest night, the served ones first, to begin with."""
    listed: list[Found] = []
    for model, table in _tables(lake, models).items():
        day = table.c.data_date
        query = _select(lake.model(model), table).where(
            day == sa.select(sa.func.max(day)).scalar_subquery(), table.c.superseded_at.is_(None)
        )
        listed += _rows(lake, model, query.order_by(sa.desc(_served(table))).limit(each))
    return listed


def entity_value(name: str, kind: str, text: str) -> Any:
    """What a person wrote for an entity column, as a value of its type; an instant without a zone is UTC.

    Raises:
        BadEntityValue: it is none.
    """
    wanted: dict[ColumnType | str, str] = {
        "date": "a date such as 2013-07-01",
        "timestamp": "an instant as 2013-07-01T15:00, UTC",
        "float64": "a number",
        "boolean": "true or false",
    }
    try:
        return _parsed(kind, text)
    except (ValueError, OverflowError) as error:
        raise BadEntityValue(f"{name} is {text[:80]!r}, needs {wanted.get(kind, 'a whole number')}.") from error


def _parsed(kind: str, text: str) -> Any:
    if kind == "date":
        return date.fromisoformat(text)
    if kind == "timestamp":
        instant = datetime.fromisoformat(text)
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    if kind in {"int32", "int64"}:
        number, bits = int(text), 31 if kind == "int32" else 63
        if not -(2**bits) <= number < 2**bits:
            raise ValueError("the number does not fit the column")
        return number
    if kind == "float64":
        return float(text)
    if kind == "boolean":
        if text.lower() not in {"true", "false"}:
            raise ValueError("it is neither")
        return text.lower() == "true"
    if "\0" in text:
        raise ValueError("a text in a database has no NUL")
    return text


def _tables(lake: Lake, models: Collection[str]) -> dict[str, sa.Table]:
    """The SQL tables of those models' predictions that are there, with the columns the catalog gives them."""
    inspector = sa.inspect(lake.engine)
    there = set(inspector.get_table_names())
    tables = {}
    for model in models:
        if sql_name(model) in there:
            entry = lake.model(model)
            schema = predictions_table(lake.settings, entry, lake.dataset(entry.dataset)).schema
            # An output that the catalog got today is in the table from the next night on.
            columns = {column["name"] for column in inspector.get_columns(sql_name(model))}
            kept = pa.schema([field for field in schema if field.name in columns])
            tables[model] = sql_columns(sql_name(model), kept, keep_replaced=True)
    return tables


def _served(table: sa.Table) -> sa.ColumnElement[bool]:
    """Whether a row is the one that is used; a table from before there were challengers has the champion's alone."""
    return table.c.served if "served" in table.c else table.c.role == CHAMPION


def _select(entry: ModelEntry, table: sa.Table) -> sa.Select[Any]:
    c = table.c
    shown = next(iter(entry.outputs))
    value = c[shown] if shown in c else sa.null()
    entity = (c[name].label(f"entity_{number}") for number, name in enumerate(entry.entity))
    part = (c.role, _served(table).label("served"))
    return sa.select(c.prediction_id, c.version, c.data_date, c.superseded_at, value.label("value"), *part, *entity)


def _rows(lake: Lake, model: str, query: sa.Select[Any]) -> list[Found]:
    names = lake.model(model).entity
    with lake.engine.connect() as connection:
        rows = connection.execute(query).mappings().all()
    return [
        Found(
            row["prediction_id"],
            model,
            row["version"],
            row["data_date"],
            {name: _utc(row[f"entity_{number}"]) for number, name in enumerate(names)},
            row["value"],
            _utc(row["superseded_at"]),
            row["role"],
            bool(row["served"]),
        )
        for row in rows
    ]


def _utc(value: Any) -> Any:
    """SQLite gives instants back without their zone; all of ours are UTC."""
    if isinstance(value, datetime):
        return as_utc(value)
    return value


__all__ = [
    "BadEntityValue",
    "Found",
    "NoPredictionId",
    "by_entity",
    "by_id",
    "entity_types",
    "entity_value",
    "nearest",
    "newest",
    "nights_around",
]

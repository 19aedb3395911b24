"""Where a unit lies between 0 and 1: who is served by a challenger, from night to night and from step to step.

The position of a unit is the first 52 bits of a SHA-256, over 2^52: the first 13 hexadecimal digits of the digest, read
as a whole number. What is hashed are the bytes of the rollout's salt and of the unit's columns in the order of the
catalog, each as `<length>:<text>`, its length in bytes of UTF-8 in decimal. A whole number is written in decimal,
a date as `YYYY-MM-DD`, a timestamp as its microseconds since 1970 UTC, a boolean as `true` or `false`; a null is `-`,
without a length. So Postgres computes the same with `sha256`, and a unit that is in at 5 % is in at 25 %.
"""

from __future__ import annotations

import functools
import threading

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from config.errors import NightfleetError
from lake.assignment import CHALLENGER, Assignment, Plan
from lake.duck import confine, connect

_DIGITS = 13
_SCALE = float(16**_DIGITS)


class UnitMissing(NightfleetError):
    """A column that names units is not among the rows."""


def positions(rows: pa.Table, unit: tuple[str, ...], salt: str) -> npt.NDArray[np.float64]:
    """Position of each of n rows' unit in [0, 1), (n,).

    Raises:
        UnitMissing: a column of `unit` is not there.
    """
    hashed = rows.select(_there(rows, unit))
    texts = [f"'{len(salt.encode())}:' || ?", *(_text(name, hashed.schema.field(name).type) for name in unit)]
    query = f"SELECT CAST('0x' || substr(sha256({' || '.join(texts)}), 1, {_DIGITS}) AS BIGINT) AS position FROM hashed"  # noqa: S608 (declared columns, quoted)
    with _hashing, _hasher().cursor() as connection:
        connection.register("hashed", hashed)
        numbers = connection.execute(query, [salt]).fetchnumpy()["position"]
    found: npt.NDArray[np.float64] = np.asarray(numbers, dtype=np.float64) / _SCALE
    return found


def served_rows(plan: Plan, rows: pa.Table) -> dict[str, pa.Array]:
    """By role which of n rows it serves, booleans (n,): each row is served by one role, or, where the night has no
    champion, by none.

    Raises:
        UnitMissing: the plan names units or groups by a column that is not among the rows.
    """
    challenger = next((a for a in plan if a.role == CHALLENGER), None)
    if challenger is None:
        return {a.role: pa.repeat(a.served_share > 0, rows.num_rows) for a in plan}
    own = _own_rows(challenger, rows)
    return {a.role: own if a is challenger else pc.invert(own) for a in plan}


def _own_rows(challenger: Assignment, rows: pa.Table) -> pa.Array:
    units = challenger.units
    if units is not None and units.groups is not None and units.by is not None:
        column = rows[_there(rows, (units.by,))[0]].combine_chunks().cast(pa.string())
        return pc.fill_null(pc.is_in(column, value_set=pa.array(units.groups, pa.string())), False)
    if units is None or challenger.served_share in (0.0, 1.0):
        return pa.repeat(challenger.served_share > 0, rows.num_rows)
    return pa.array(positions(rows, units.unit, units.salt) < challenger.served_share)


def _there(rows: pa.Table, columns: tuple[str, ...]) -> list[str]:
    missing = [name for name in columns if name not in rows.schema.names]
    if missing:
        raise UnitMissing(
            f"the rollout names its units by {missing[0]!r}, which the night's rows do not have. Nothing was computed. "
            "End the rollout (`python -m cli rollout MODEL rollback`), or bring that column back."
        )
    return list(columns)


def _text(name: str, kind: pa.DataType) -> str:
    """SQL of a column's `<length>:<text>`."""
    quoted = '"' + name.replace('"', '""') + '"'
    text = f"CAST({quoted} AS VARCHAR)"
    if pa.types.is_timestamp(kind):
        text = f"CAST(epoch_us({quoted}) AS VARCHAR)"
    return f"coalesce(CAST(strlen({text}) AS VARCHAR) || ':' || {text}, '-')"


_hashing = threading.Lock()


@functools.cache
def _hasher() -> duckdb.DuckDBPyConnection:
    connection = connect()
    confine(connection)
    return connection

"""Worlds that are simulated, and whose truth is therefore known: a table's night from seed and date alone.

A world is a package or file here with `TABLES`, functions of (world, day) that give an Arrow table, an entry in
`config.catalog.simulation.WORLDS`, and one in `_WORLDS`. Whatever is random has an address (`draws.py`) instead of an
order, so that one night alone is the same as that night out of a year, in any process, and further vehicles or
users change no others' rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from config.catalog.simulation import WORLDS, Simulated
from config.catalog.source import SourceColumn
from features.sources.columns import Difference, match_names, mismatch
from features.sources.errors import SourceMissing
from features.sources.meter import Meter
from features.sources.simulation import fleet, platform, roads
from lake.tables import ARROW_TYPES

_TABLES: Mapping[str, Mapping[str, Callable[[Any, int], pa.Table]]] = {
    "fleet": fleet.TABLES,
    "roads": roads.TABLES,
    "platform": platform.TABLES,
}
_WORLDS: Mapping[str, Callable[[Simulated], Any]] = {
    "fleet": lambda shaped: fleet.Fleet(shaped.seed, shaped.vehicles, shaped.episodes),
    "roads": lambda shaped: roads.City(shaped.seed, shaped.blocks),
    "platform": lambda shaped: platform.Platform(shaped.seed, shaped.users, shaped.episodes),
}
# Rows that are drawn before they are handed on: memory grows with the size of the world, never with the nights.
_BLOCK_ROWS = 200_000


def night(simulated: Simulated, day: date) -> pa.Table:
    """The rows that a table's source delivers in a night.

    Raises:
        SourceMissing: the night lies before the world begins.
    """
    begins = WORLDS[simulated.world].begins
    if day < begins:
        raise SourceMissing(
            f"the simulated world {simulated.world} begins on {begins}; it has no {simulated.table} of {day}. "
            f"Let the data set begin on {begins} or later (`replay: from`)."
        )
    drawn = _WORLDS[simulated.world](simulated)
    return _TABLES[simulated.world][simulated.table](drawn, day.toordinal())


def stage(
    simulated: Simulated,
    columns: Mapping[str, SourceColumn],
    nights: Iterable[date],
    delivered: str,
    target: Path,
    meter: Meter,
) -> tuple[Difference, ...]:
    """Write the rows of several nights to one Parquet file `target`, in bounded memory.

    Args:
        columns: as declared, with the column `delivered`, which gets the night of each row.
    Raises:
        SourceMissing: a night lies before the world begins.
        SourceSchemaMismatch: the world's table has other columns or types than declared.
        SourceTooLarge: the rows exceed one of the source's limits.
    """
    schema = pa.schema([pa.field(name, ARROW_TYPES[column.type]) for name, column in columns.items()])
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for rows in _blocks(simulated, nights, delivered):
            match_names(meter.label, rows.column_names, columns)
            differing = [
                f"{name!r} is {rows.schema.field(name).type}, declared {column.type}"
                for name, column in columns.items()
                if rows.schema.field(name).type != ARROW_TYPES[column.type]
            ]
            if differing:
                raise mismatch(meter.label, differing)
            meter.take("max_rows", rows.num_rows)
            meter.take("max_bytes", rows.nbytes)
            writer.write_table(rows.select(schema.names))
    return ()


def _blocks(simulated: Simulated, nights: Iterable[date], delivered: str) -> Iterator[pa.Table]:
    """Tables of bounded size, with the night of each row in the column `delivered`."""
    held: list[pa.Table] = []
    for day in nights:
        rows = night(simulated, day)
        held.append(rows.append_column(delivered, pa.repeat(pa.scalar(day, pa.date32()), rows.num_rows)))
        if sum(each.num_rows for each in held) >= _BLOCK_ROWS:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)

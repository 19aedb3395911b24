"""Excel workbooks: a sheet's cells as texts, which are then read as those of any other source."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, time
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.sources.errors import SourceMissing, SourceUnreadable
from features.sources.meter import Meter

_BATCH_ROWS = 10_000


def write_texts(
    path: Path,
    name: str,
    target: Path,
    meter: Meter,
    *,
    sheet: str | None,
    skip_rows: int,
    dates: Collection[str] | None = None,
) -> None:
    """Write a sheet to a Parquet file of texts under its header's names; of formulas, the value that was computed last.

    Args:
        name: what people call the file.
        sheet: by name; None: the only one.
        skip_rows: before the header.
        dates: names of columns that hold dates, in small letters: to Excel a date is a midnight. None: every midnight
            is a date.
    Raises:
        SourceMissing: there is no such sheet, or none is named and there are several.
        SourceUnreadable: the sheet has no header, or a name of it twice or not at all.
        SourceTooLarge: it exceeds a limit.
    """
    import openpyxl

    with path.open("rb") as stored:
        with zipfile.ZipFile(stored) as archive:
            meter.check("max_zip_members", len(archive.infolist()))
            unpacked = sum(member.file_size for member in archive.infolist())
            meter.take("max_bytes", unpacked)
            meter.ratio(path.stat().st_size, unpacked)
        book = openpyxl.load_workbook(stored, read_only=True, data_only=True)
        rows = book[_chosen(book.sheetnames, name, sheet)].iter_rows(values_only=True)
        header = _header(next(islice(rows, skip_rows, None), ()), name)
        schema = pa.schema([(column, pa.string()) for column in header])
        with pq.ParquetWriter(target, schema) as writer:
            for batch in _batches(row for row in rows if any(cell is not None for cell in row)):
                meter.take("max_rows", len(batch))
                columns = [
                    _texts(batch, place, is_date=dates is None or column.lower() in dates)
                    for place, column in enumerate(header)
                ]
                writer.write_table(pa.table(columns, schema=schema))
        book.close()


def _chosen(sheets: Sequence[str], name: str, sheet: str | None) -> str:
    listed = ", ".join(map(repr, sheets))
    if sheet is None and len(sheets) != 1:
        raise SourceMissing(f"{name} has {len(sheets)} sheets ({listed}). Name one in the source's `sheet`.")
    if sheet is not None and sheet not in sheets:
        raise SourceMissing(f"{name} has no sheet {sheet!r}. It has: {listed}. Correct the source's `sheet`.")
    return sheet or sheets[0]


def _header(row: Sequence[Any], name: str) -> list[str]:
    """Names up to the last cell that is not empty."""
    filled = [place for place, cell in enumerate(row) if cell is not None]
    header = [_text(cell, is_date=True) for cell in row[: filled[-1] + 1]] if filled else []
    names = [column for column in header if column is not None]
    if not header or len(names) < len(header) or len(set(names)) < len(names):
        raise SourceUnreadable(
            f"{name}: its header is {header}, and needs a name of its own for each column. Nothing was written.\n"
            "  Say in `skip_lines` how many rows stand before the header, or deliver the sheet with one."
        )
    return names


def _batches(rows: Iterable[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    iterator = iter(rows)
    for first in iterator:
        yield list(chain([first], islice(iterator, _BATCH_ROWS - 1)))


def _texts(rows: Sequence[Sequence[Any]], place: int, *, is_date: bool) -> pa.Array:
    return pa.array([_text(row[place], is_date=is_date) if place < len(row) else None for row in rows], pa.string())


def _text(cell: Any, *, is_date: bool) -> str | None:
    """A cell as texts are written."""
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, datetime):
        return cell.date().isoformat() if is_date and cell.time() == time() else cell.isoformat()
    return str(cell)

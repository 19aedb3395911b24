"""Excel workbooks: read as any other source, and refused with what is there and what is needed."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from config.limits import SourceLimits
from features.sources import SourceMissing, SourceSchemaMismatch, SourceTooLarge, SourceUnreadable
from tests.features.sources.reading import meters, read

HEADER = ["meter", "at_utc", "litres", "pulses", "open", "billed_on"]
FIRST = ["a", "2024-03-04T10:00:00Z", 1.5, 3, True, date(2024, 3, 1)]


def workbook(
    folder: Path, rows: Sequence[Sequence[Any]], *, others: Sequence[str] = (), above: int = 0
) -> dict[str, Any]:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "meters"
    for row in [*[["a title"]] * above, *rows]:
        sheet.append(list(row))
    for other in others:
        book.create_sheet(other)
    book.save(folder / "readings.xlsx")
    return {"kind": "file", "uri": "readings.xlsx", "format": "xlsx"}


def test_every_type_arrives_as_declared(tmp_path: Path) -> None:
    second = ["b", datetime(2024, 3, 4), None, None, False]
    source = workbook(tmp_path, [HEADER, FIRST, second, []], above=2) | {"skip_lines": 2, "zone": "UTC"}
    rows = read(meters(tmp_path, source)).to_pylist()
    kept = [[row[name] for name in HEADER] for row in rows]
    assert kept == [
        ["a", datetime(2024, 3, 4, 10, tzinfo=UTC), 1.5, 3, True, date(2024, 3, 1)],
        ["b", datetime(2024, 3, 4, tzinfo=UTC), None, None, False, None],
    ], "a midnight is a date where one is declared, and an instant where that is"


def test_of_several_sheets_one_is_named(tmp_path: Path) -> None:
    source = workbook(tmp_path, [HEADER, FIRST], others=["notes"])
    with pytest.raises(SourceMissing, match=r"has 2 sheets \('meters', 'notes'\). Name one in the source's `sheet`"):
        read(meters(tmp_path, source))
    with pytest.raises(SourceMissing, match="has no sheet 'Meters'. It has: 'meters', 'notes'"):
        read(meters(tmp_path, source | {"sheet": "Meters"}))
    assert read(meters(tmp_path, source | {"sheet": "meters"})).num_rows == 1


@pytest.mark.parametrize("header", [[], ["meter", None, "litres"], ["meter", "meter"]])
def test_a_sheet_without_a_name_for_each_column_is_refused(tmp_path: Path, header: list[str | None]) -> None:
    with pytest.raises(SourceUnreadable, match="needs a name of its own for each column.*\n.*`skip_lines`"):
        read(meters(tmp_path, workbook(tmp_path, [header, FIRST])))


def test_a_value_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceSchemaMismatch, match=r"(?s)readings.xlsx.*pulses.*12_345"):
        read(meters(tmp_path, workbook(tmp_path, [HEADER, [*FIRST[:3], "12_345", *FIRST[4:]]])))


def test_what_is_no_workbook_is_unreadable(tmp_path: Path) -> None:
    source = workbook(tmp_path, [HEADER, FIRST])
    whole = (tmp_path / "readings.xlsx").read_bytes()
    for content in (b"", b"meter,at_utc\n", whole[: len(whole) // 2]):
        (tmp_path / "readings.xlsx").write_bytes(content)
        with pytest.raises(SourceUnreadable, match="cannot be read as xlsx"):
            read(meters(tmp_path, source))


def test_a_workbook_that_unpacks_to_too_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    source = workbook(tmp_path, [HEADER, FIRST])
    with zipfile.ZipFile(tmp_path / "readings.xlsx", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/media/image1.png", bytes(50_000_000))
    limits = SourceLimits(max_bytes=10_000_000).model_dump(exclude_unset=True)
    with pytest.raises(SourceTooLarge, match="more than 10,000,000 bytes"):
        read(meters(tmp_path, source | {"limits": limits}))

"""What the catalog marks as personal data is in no message: not of a source, not of a table, not of a segment."""

from __future__ import annotations

import traceback
from pathlib import Path

import pyarrow as pa
import pytest

from config.calendar import ONE_DAY, Interval
from config.catalog.base import BadCatalog
from config.errors import NightfleetError
from config.masking import HIDDEN
from features.ingest import SourceChanged, SourceSchemaMismatch, SourceUnreadable, ingest
from lake.lake import Lake
from lake.publish import DuplicateKey
from lake.tables import valid_table
from tests import toy

SECRET = "Planted Person"
NIGHT = Interval.of(toy.FIRST)
VEHICLE = "vehicle: {type: string, nullable: false, description: the vehicle}"
PERSONAL = toy.DATASET_YAML.replace(VEHICLE, VEHICLE.replace("}", ", pii: true}"))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return toy.toy_lake(tmp_path, source=Interval(toy.FIRST, toy.FIRST + 3 * ONE_DAY), dataset=PERSONAL)


def told(error: pytest.ExceptionInfo[NightfleetError]) -> str:
    """The message, and all that a log prints behind it."""
    return "".join(traceback.format_exception(error.value))


def rewritten(lake: Lake, old: str, new: str) -> None:
    path = lake.settings.home.parent / "source" / "bookings.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_value_of_another_type(lake: Lake) -> None:
    text = PERSONAL.replace("vehicle: {type: string", "vehicle: {type: int64").replace(
        "reads: [outcomes]", "reads: [bookings]"
    )
    lake = toy.toy_lake(lake.settings.home.parent, dataset=text, model=None)
    rewritten(lake, "v1", SECRET)
    with pytest.raises(SourceSchemaMismatch, match="vehicle.*declared int64") as refused:
        ingest(lake, "rides", NIGHT, run_id="t")
    assert HIDDEN in told(refused)
    assert SECRET not in told(refused)


def test_a_delivery_without_its_header(lake: Lake) -> None:
    rewritten(lake, '"v0"', f'"{SECRET}"')
    path = lake.settings.home.parent / "source" / "bookings.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(SourceSchemaMismatch, match="'vehicle' is missing") as refused:
        ingest(lake, "rides", NIGHT, run_id="t")
    assert HIDDEN in told(refused)
    assert SECRET not in told(refused)


def test_a_line_that_is_no_csv(lake: Lake) -> None:
    rewritten(lake, '"v1"', f"{SECRET},too,many,fields")
    with pytest.raises(SourceUnreadable) as refused:
        ingest(lake, "rides", NIGHT, run_id="t")
    assert SECRET not in told(refused)


def test_a_source_that_changed(lake: Lake) -> None:
    ingest(lake, "rides", NIGHT, run_id="t")
    path = lake.settings.home.parent / "source" / "bookings.csv"
    path.write_text(path.read_text().replace(',"v', f',"{SECRET} v').replace(f"{SECRET} vehicle", "vehicle"))
    assert SECRET in path.read_text()
    with pytest.raises(SourceChanged, match="rows differ") as refused:
        ingest(lake, "rides", NIGHT, run_id="again")
    assert HIDDEN in told(refused)
    assert SECRET not in told(refused)


def test_a_key_that_comes_twice(lake: Lake) -> None:
    from dataclasses import replace

    table = valid_table(lake.settings, lake.dataset("rides"), "bookings")
    rides = toy.generate(Interval.of(NIGHT.end))
    rows = toy.with_lake_columns(lake, "bookings", rides.bookings).slice(0, 1)
    rows = rows.set_column(rows.schema.get_field_index("vehicle"), "vehicle", pa.array([SECRET]))
    keyed = replace(table, key=("vehicle", *table.key))
    with pytest.raises(DuplicateKey, match="share the key") as refused:
        toy.publish_rows(lake, keyed, pa.concat_tables([rows, rows]), NIGHT)
    assert HIDDEN in told(refused)
    assert SECRET not in told(refused)


def test_a_segment_of_personal_data_is_refused_by_the_catalog(tmp_path: Path) -> None:
    model = toy.MODEL_YAML.replace("columns: [depot]", "columns: [vehicle]")
    toy.toy_lake(tmp_path, model=model)
    with pytest.raises(BadCatalog, match=r"gate\.segments\.columns = 'vehicle': is personal data"):
        toy.toy_lake(tmp_path, dataset=PERSONAL, model=model)

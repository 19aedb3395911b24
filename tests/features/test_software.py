"""Software projects: a static table dealt to nights by a hash, hours known when a project ends, a power law fitted to
what has ended.
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from config.calendar import Interval
from config.settings import ROOT
from features.transform import compute_view
from lake.artifact import file_digest
from lake.lake import Lake
from tests.features.replays import provenance, publish_history, replay_lake, source_rows

DATA = ROOT / "features" / "sources" / "data" / "promise_effort"
FIRST, LAST = date(2010, 1, 1), date(2010, 1, 16)
SPLIT = {"train": "4 days", "validation": "2 days", "test": "2 days", "embargo": "1 day"}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    made = replay_lake(tmp_path_factory.mktemp("software"), "software", first=FIRST, split=SPLIT)
    publish_history(made, "software", last=LAST)
    return made


@pytest.fixture(scope="module")
def sources(lake: Lake) -> Mapping[str, pa.Table]:
    return {table: source_rows(lake, "software", table) for table in ("specifications", "timesheets")}


def test_the_files_are_those_that_provenance_describes_and_convert_makes(tmp_path: Path) -> None:
    for name, (size, digest) in provenance(DATA).items():
        assert ((DATA / name).stat().st_size, file_digest(DATA / name)) == (size, digest), name
    spec = importlib.util.spec_from_file_location("convert", DATA / "convert.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.convert(DATA, tmp_path)
    for path in tmp_path.iterdir():
        # Another zlib packs the same text into other bytes.
        assert gzip.decompress(path.read_bytes()) == gzip.decompress((DATA / path.name).read_bytes()), path.name


def test_three_projects_a_night_in_an_order_that_says_nothing_of_them(sources: Mapping[str, pa.Table]) -> None:
    joined = sources["specifications"].join(sources["timesheets"].select(["project", "hours"]), "project")
    nights = pc.value_counts(joined["specified_on"])
    assert (joined.num_rows, len(nights)) == (499, 167)
    assert sorted(set(nights.field(1).to_pylist())) == [1, 3], "the last night has the one that is left"
    day = pc.cast(pc.cast(joined["specified_on"], pa.date32()), pa.int32()).to_numpy()
    for name in ("hours", "function_points"):
        assert abs(np.corrcoef(day, np.log(joined[name].to_numpy()))[0, 1]) < 0.09


def test_hours_are_known_as_many_nights_later_as_the_project_took_months(sources: Mapping[str, pa.Table]) -> None:
    sheets = sources["timesheets"]
    took = pc.days_between(sheets["specified_on"], pc.cast(sheets["ended_utc"], pa.date32())).to_numpy()
    assert (took.min(), np.median(took), took.max()) == (1, 7, 84)


def test_the_power_law_is_of_projects_that_have_ended(lake: Lake, sources: Mapping[str, pa.Table]) -> None:
    rows = compute_view(lake, "software", "specification", Interval.closed(FIRST, LAST)).to_pylist()
    sheets = sources["timesheets"]
    ended = pc.cast(sheets["ended_utc"], pa.date32())
    for night in (date(2010, 1, 3), date(2010, 1, 12), LAST):
        known = sheets.filter(pc.less_equal(ended, night))
        tonight = [row for row in rows if row["data_date"] == night]
        assert len(tonight) == 3
        said = [row["hours_by_size"] for row in tonight]
        if known.num_rows < 10:
            assert said == [None] * 3
            continue
        slope, intercept = np.polyfit(np.log(known["function_points"].to_numpy()), np.log(known["hours"].to_numpy()), 1)
        sizes = np.log([row["function_points"] for row in tonight])
        assert said == pytest.approx(np.exp(intercept + slope * sizes), rel=1e-4)

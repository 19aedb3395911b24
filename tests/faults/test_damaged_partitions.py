"""Raw rows are made again from an unchanged source alone."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from config.calendar import Interval
from features.ingest import ingest
from lake.delta import PartitionDamaged
from lake.tables import raw_table
from tests import toy

FIRST_TWO = Interval.closed(toy.FIRST, date(2024, 1, 2))
NIGHT = Interval.of(date(2024, 1, 2))


@pytest.mark.parametrize("source", ["unchanged", "changed"])
def test_a_lost_raw_partition_comes_back_from_an_unchanged_source(tmp_path: Path, source: str) -> None:
    lake = toy.toy_lake(tmp_path, source=Interval.closed(toy.FIRST, date(2024, 1, 5)))
    ingest(lake, "rides", FIRST_TWO, run_id="first")
    table = raw_table(lake.settings, lake.dataset("rides"), "bookings")
    rows = table.read(NIGHT)
    (uri,) = table.files(NIGHT)
    Path(uri).unlink()
    if source == "unchanged":
        assert ingest(lake, "rides", NIGHT, run_id="again").committed == 1
        assert table.read(NIGHT).equals(rows)
        assert ingest(lake, "rides", NIGHT, run_id="again").committed == 0
        return
    rides = toy.generate(Interval.closed(toy.FIRST, date(2024, 1, 5)), seed=2)
    toy.write_csv(tmp_path / "source" / "bookings.csv", rides.bookings)
    with pytest.raises(PartitionDamaged, match=r"(?s)rides/raw/bookings, partition 2024-01-02.*python -m cli restate"):
        ingest(lake, "rides", NIGHT, run_id="again")
    assert table.files(NIGHT) == [uri], "nothing was written"

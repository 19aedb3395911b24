from __future__ import annotations

from cli.summary import _incumbent, _ingested, _plain_table
from config.calendar import Interval
from lake.lake import Lake
from tests import toy


def test_a_baseline_is_named_by_what_it_says_of_the_output(toy_lake: Lake) -> None:
    model = toy_lake.model("ride_minutes")
    assert _incumbent(model, "ride_minutes", "baseline median") == "median of the training window"
    assert _incumbent(model, "long_probability", "baseline median") == "rate of the training window"
    assert _incumbent(model, "ride_minutes", "champion version 3") == "champion version 3"
    assert _incumbent(model, "an output of before", "baseline median") == "baseline median"


def test_a_data_set_that_was_not_begun_has_no_line(toy_lake: Lake) -> None:
    dataset, table = toy_lake.dataset("rides"), _plain_table("ingested", "1", "2", "3", "4", "5", "6")
    assert not _ingested(toy_lake, dataset, table)
    assert table.row_count == 0
    toy.publish_valid(toy_lake, Interval.of(toy.FIRST))
    assert _ingested(toy_lake, dataset, table)
    assert table.row_count == 2

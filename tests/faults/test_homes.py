"""A home whose name Delta's libraries would take for two is refused when settings are read; any other one works."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.calendar import Interval
from config.settings import BadSettings, load_settings
from lake.tables import feature_table
from tests import toy


@pytest.mark.parametrize("name", ["with space", "\u00fc", "a#b", "a%20b", "a?b", "a\\b", "a%b", "tab\there"])
def test_a_home_that_delta_would_lose_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadSettings, match="NIGHTFLEET_HOME"):
        load_settings(home=tmp_path / name / "var")


@pytest.mark.parametrize("name", ["[1]", "a*b", "it's", "a:b,c;d=e@f+g~h(i)&j$k!", "data_date=2024-01-01"])
def test_a_home_of_an_odd_name_that_is_taken_keeps_its_tables(tmp_path: Path, name: str) -> None:
    assert load_settings(home=tmp_path / name / "var").home == tmp_path / name / "var"
    lake, night = toy.toy_lake(tmp_path / name), Interval.of(toy.FIRST_NIGHT)
    for seed in (1, 2):
        toy.publish_features(lake, night, seed=seed)
    table = feature_table(lake.settings, lake.dataset("rides"), "vehicle_daily")
    rows = table.read(night)
    assert rows.num_rows == 6
    [publication] = lake.publications.current(table).values()
    assert publication.rows == 6
    assert rows["rides_7d"].to_pylist() == toy.vehicle_daily(lake, night, seed=2)["rides_7d"].to_pylist()

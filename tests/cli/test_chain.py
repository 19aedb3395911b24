from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path

import pytest

from cli.chain import NothingToReplay, make_plan, published_until, task_error
from config.calendar import Interval
from config.catalog import BadCatalog
from lake.lake import Lake
from tests import toy


def test_the_first_run_loads_all_history_up_to_the_night_before(toy_lake: Lake) -> None:
    plan = make_plan(toy_lake, 3, None)
    assert plan.history == {"rides": Interval(toy.FIRST, toy.FIRST_NIGHT)}
    assert plan.nights == tuple({"rides": toy.FIRST_NIGHT + timedelta(days=i)} for i in range(3))
    assert [(m.name, as_of) for m, as_of in plan.first_models(toy_lake.catalog)] == [("ride_minutes", toy.FIRST_NIGHT - timedelta(days=1))]


def test_a_night_may_be_chosen_inside_the_replay(toy_lake: Lake) -> None:
    chosen = date(2024, 5, 1)
    plan = make_plan(toy_lake, 1, chosen)
    assert plan.first_nights == {"rides": chosen}
    assert plan.history == {"rides": Interval(toy.FIRST, chosen)}


def test_a_night_outside_every_replay_leaves_each_its_own(toy_lake: Lake) -> None:
    assert make_plan(toy_lake, 1, date(1999, 1, 1)).first_nights == {"rides": toy.FIRST_NIGHT}


def test_one_data_set_may_be_chosen_alone(toy_lake: Lake) -> None:
    assert make_plan(toy_lake, 1, None, ["rides"]).first_nights == {"rides": toy.FIRST_NIGHT}
    with pytest.raises(BadCatalog, match="there is no data set 'boats'. Known: rides"):
        make_plan(toy_lake, 1, None, ["boats"])


def test_what_is_loaded_is_not_loaded_again(toy_lake: Lake) -> None:
    toy.publish_features(toy_lake, Interval(toy.FIRST, date(2024, 2, 1)))
    assert published_until(toy_lake, toy_lake.dataset("rides")) == date(2024, 1, 31)
    assert make_plan(toy_lake, 1, None).history == {"rides": Interval(date(2024, 2, 1), toy.FIRST_NIGHT)}
    toy.publish_features(toy_lake, Interval(date(2024, 2, 1), toy.FIRST_NIGHT))
    assert make_plan(toy_lake, 1, None).history == {}


def test_the_last_night_of_a_replay_is_the_last(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(make_plan(toy_lake, 5, toy.LAST).nights) == 1
    monkeypatch.setattr("cli.chain.monitored_until", lambda lake, dataset: toy.LAST)
    with pytest.raises(NothingToReplay, match="no replay has a night left to run(?s:.*)rides 2024-01-01 to 2024-12-31"):
        make_plan(toy_lake, 1, None)


def test_a_task_s_error_is_read_from_its_log(tmp_path: Path) -> None:
    log = tmp_path / "attempt=1.log"
    detail = [{"exc_type": "DataRejected", "exc_value": "DataRejected: rides/raw/bookings: too many"}, {"exc_type": "ValueError", "exc_value": "its cause"}]
    log.write_text(json.dumps({"event": "working"}) + "\n" + json.dumps({"event": "failed", "error_detail": detail}) + "\nnot json\n")
    assert task_error(log) == "DataRejected: rides/raw/bookings: too many"
    log.write_text(json.dumps({"error_detail": [{"exc_type": "KeyError", "exc_value": "'x'"}]}))
    assert task_error(log) == "KeyError: 'x'"
    assert "left no log" in task_error(tmp_path / "none.log")

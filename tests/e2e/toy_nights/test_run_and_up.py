"""`run` and `up` on a small catalog: retraining in the loop, failures on screen, the replay clock, Ctrl-C."""

from __future__ import annotations

from pathlib import Path

from config.calendar import ONE_DAY
from monitoring.retraining_requests import read_requests
from tests.e2e.conftest import Finished, User
from tests.e2e.toy_nights.conftest import BROKEN, LAST, Up
from training.registry.decision import read_decisions


def test_dates_outside_the_replay_are_refused_before_anything_starts(user: User, tmp_path: Path) -> None:
    elsewhere = User(user.settings.model_copy(update={"home": tmp_path / "var"}))
    refused = elsewhere.command("run", "--from", "1999-13-01", seconds=60)
    assert refused.code == 1
    assert "'1999-13-01' is not a valid data date" in refused.output
    assert not (elsewhere.settings.home / "airflow").exists()


def test_a_retraining_of_one_night_precedes_the_scoring_of_the_next(user: User, nights: Finished) -> None:
    days = [row["data_date"] for row in read_requests(user.lake, "ride_minutes").to_pylist() if row["requested"]]
    # What is asked for in the last night need not be through: the run ends there.
    requested = {day for day in days if day < BROKEN}
    assert requested, nights.output
    assert requested <= {decision.as_of for decision in read_decisions(user.lake, "ride_minutes")}
    promoted = user.lake.ledger("ride_minutes").read().champion_of(min(requested) + ONE_DAY)
    assert promoted.trained_until == min(requested), nights.output


def test_a_failed_task_shows_its_own_error_and_ends_the_run(nights: Finished) -> None:
    assert nights.code == 1
    assert "DataRejected" in nights.output
    assert "in_set(depot)" in nights.output
    assert "Its log:" in nights.output
    assert "Traceback" not in nights.output


def test_the_replay_clock_goes_on_where_the_run_ended_and_releases_the_nights(up: Up) -> None:
    log = up.log.read_text()
    released = [line for line in log.splitlines() if line.startswith("released rides")]
    assert released == [f"released rides {BROKEN}", f"released rides {LAST}"], log
    assert "history in bulk" not in log


def test_a_second_command_is_refused_and_an_interrupt_leaves_no_process(user: User, up: Up) -> None:
    second = user.command("run", seconds=60)
    assert second.code == 1
    assert "AlreadyRunning" in second.output
    assert up.end() == 130
    assert user.processes() == []

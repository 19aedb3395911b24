"""`run` and `up` on a small catalog: retraining in the loop, failures on screen, Ctrl-C."""

from __future__ import annotations

import signal
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from config.calendar import Interval
from tests import toy
from tests.e2e.conftest import User, interrupt, wait_for

# One view of seven vehicles says little about tomorrow's rides: a gate that lets a challenger be somewhat worse lets
# the chain go on.
LENIENT = toy.MODEL_YAML.replace("better_by: 0.0", "better_by: -0.9")
# A calendar of two nights makes a retraining due inside a run of three.
EAGER = LENIENT.replace("retrain: {every: 28 days, cooldown: 7 days}", "retrain: {every: 2 days, cooldown: 1 day}")


def _user(folder: Path, **catalog: Any) -> User:
    lake = toy.toy_lake(
        folder,
        model=catalog.pop("model", LENIENT),
        source=Interval(toy.FIRST, toy.FIRST_NIGHT + timedelta(days=10)),
        **catalog,
    )
    return User(lake.settings)


@pytest.fixture(scope="module")
def eager_user(tmp_path_factory: pytest.TempPathFactory) -> User:
    return _user(tmp_path_factory.mktemp("toy"), model=EAGER)


def test_a_retraining_of_one_night_precedes_the_scoring_of_the_next(eager_user: User) -> None:
    from monitoring.retraining_requests import read_requests
    from training.registry.gate import read_decisions

    done = eager_user.command("run", "--nights", "3")
    assert done.code == 0, done.output
    requested = [
        row for row in read_requests(eager_user.lake, "ride_minutes").to_pylist() if row["trigger"] == "calendar"
    ]
    assert requested, done.output
    judged = {decision.as_of for decision in read_decisions(eager_user.lake, "ride_minutes")}
    assert {row["data_date"] for row in requested} <= judged
    assert eager_user.processes() == []


def test_a_failed_task_shows_its_own_error_and_ends_the_run(tmp_path: Path) -> None:
    user = _user(tmp_path)
    (tmp_path / "source" / "outcomes.csv").unlink()
    failed = user.command("run", "--nights", "1")
    assert failed.code == 1
    assert "SourceMissing" in failed.output
    assert "outcomes.csv" in failed.output
    assert "Its log:" in failed.output
    assert "Traceback" not in failed.output
    assert user.processes() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    user = _user(tmp_path)
    log = tmp_path / "up.log"
    process = user.start("up", log=log)
    wait_for("Ctrl-C ends everything", log, process)
    second = user.command("run", seconds=60)
    assert second.code == 1
    assert "AlreadyRunning" in second.output
    assert interrupt(process, number) == 130
    assert user.processes() == []


def test_dates_outside_the_replay_are_refused_before_anything_starts(tmp_path: Path) -> None:
    user = _user(tmp_path)
    refused = user.command("run", "--from", "1999-13-01", seconds=60)
    assert refused.code == 1
    assert "'1999-13-01' is no data date" in refused.output
    assert not (user.settings.home / "airflow").exists()


def test_the_replay_clock_releases_nights(tmp_path: Path) -> None:
    user = _user(tmp_path)
    log = tmp_path / "up.log"
    process = user.start("up", "--replay", "1s", log=log)
    wait_for(f"released rides {date(2024, 3, 2)}", log, process, seconds=400)
    assert interrupt(process) == 130
    assert user.processes() == []
    released = [line for line in log.read_text().splitlines() if line.startswith("released rides")]
    assert released[:2] == ["released rides 2024-03-01", "released rides 2024-03-02"]

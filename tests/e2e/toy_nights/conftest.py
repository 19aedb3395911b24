"""One installation of a small catalog for all that `run` and `up` do: first three nights, then up with a replay clock.

`rides` retrains every second night, and its third night holds too many rows that break a rule; the promotions of
`tours`, its twin, wait for a person.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyarrow.compute as pc
import pytest

from config.calendar import ONE_DAY, Interval
from tests import toy
from tests.e2e.conftest import Finished, User, interrupt, wait_for
from tests.e2e.toy_nights.person import Person
from tests.three_nights import TOURS_YAML, of_tours

BROKEN = toy.FIRST_NIGHT + timedelta(days=2)
LAST = BROKEN + ONE_DAY
# A challenger may be somewhat worse: what the gate says is not the matter here. A calendar of two nights makes a
# retraining due inside a run of three.
LENIENT = toy.MODEL_YAML.replace("better_by: 0.0", "better_by: -0.9").replace("worst: 1.5", "worst: 9")
EAGER = LENIENT.replace("retrain: {every: 28 days, cooldown: 7 days}", "retrain: {every: 2 days, cooldown: 1 day}")
ASKING = of_tours(LENIENT) + "approval: required\n"


class ProcessUser(User):
    """Trains in processes, whether or not there is an engine."""

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"NIGHTFLEET_RUNNER": "process"}


@dataclass(frozen=True)
class Up:
    """`up`, running, with the person who reads its first lines."""

    process: subprocess.Popen[bytes]
    log: Path
    person: Person

    def end(self) -> int:
        """As Ctrl-C does; the exit code."""
        return interrupt(self.process)


def _until(text: str, last: object) -> str:
    return text.replace(f"to: {toy.LAST}", f"to: {last}")


@pytest.fixture(scope="package")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    """Catalog and sources; nothing runs yet."""
    folder = tmp_path_factory.mktemp("toy")
    whole = Interval(toy.FIRST, LAST + 3 * ONE_DAY)
    settings = toy.toy_lake(
        folder,
        dataset=_until(toy.DATASET_YAML, LAST),
        model=EAGER,
        sql={"tours/vehicle_daily.sql": toy.VIEW_SQL},
    ).settings
    (folder / "models" / "tour_minutes.yaml").write_text(ASKING)
    (folder / "datasets" / "tours.yaml").write_text(_until(TOURS_YAML, LAST))
    rides = toy.generate(whole)
    # Booked in the third night: for the day after it.
    broken = pc.equal(rides.bookings["event_date"], BROKEN + ONE_DAY)
    depots = pc.if_else(broken, "nowhere", rides.bookings["depot"])
    bookings = rides.bookings.set_column(rides.bookings.column_names.index("depot"), "depot", depots)
    for name, rows in {
        "bookings": bookings,
        "outcomes": rides.outcomes,
        "tours_bookings": rides.bookings,
        "tours_outcomes": rides.outcomes,
    }.items():
        toy.write_csv(folder / "source" / f"{name}.csv", rows)
    return ProcessUser(settings)


@pytest.fixture(scope="package")
def nights(user: User) -> Finished:
    """`run` of three nights, to its end in the third."""
    ended = user.command("run", "--nights", "3")
    assert user.processes() == []
    return ended


@pytest.fixture(scope="package")
def up(user: User, nights: Finished, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`up` with a replay clock, after the three nights; through with its replays."""
    log = tmp_path_factory.mktemp("up") / "up.log"
    process = user.start("up", "--replay", "1s", log=log)
    try:
        wait_for("the replays have ended", log, process)
        told = re.search(r"open\s+(http://[^/\s]+)/plugin/models\s+user admin, password (\S+)", log.read_text())
        assert told, log.read_text()
        yield Up(process, log, Person(told.group(1), told.group(2)))
    finally:
        if process.poll() is None:
            interrupt(process)


@pytest.fixture(scope="package")
def person(up: Up) -> Person:
    """The admin in front of Airflow, all replayed nights of `tours` ingested."""
    up.person.wait_run(f"replay__{LAST}", "success", "tours_ingest")
    return up.person

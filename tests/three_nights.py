"""Three nights of a small catalog in a real Airflow, for the tests that look at the pages: one clean, one drifting, one
gone wrong.

Two data sets, `rides` of tests/toy.py and `tours`, its twin, and three models: `ride_minutes` drifts in the second
night, since every ride takes six times as long; in the third its bookings hold rows that break a rule, and the scoring
of `ride_delay` fails, because its champion's files were changed on disk. `tour_minutes` stays green, since tours are
the same every day; its promotions wait for a person.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console

from cli.airflow_api import AirflowApi
from cli.chain import Chain, TaskFailed, make_plan
from cli.installation import Installation
from cli.run import running
from config.calendar import ONE_DAY, Interval
from config.catalog.load import load_catalog
from lake.lake import Lake
from tests import toy

CLEAN, DRIFTED, WRONG = (toy.FIRST_NIGHT + timedelta(days=n) for n in range(3))
HOSTILE = "<script>document.title='hostile'</script>"
BROKEN_DEPOTS = ("west", HOSTILE)
REASON = "the first of all, and better than the median"
_SECONDS = 600.0

# A challenger may be somewhat worse: what the gate says is not the matter here. Failures shall show at once, so there
# are no retries.
_LENIENT = (
    toy.MODEL_YAML.replace("better_by: 0.0", "better_by: -0.9")
    .replace("columns: [depot]", "columns: [depot, vehicle]")
    .replace("worst: 1.5", "worst: 9")
)


def of_tours(model: str) -> str:
    """The text of a model of rides, for their twin."""
    return model.replace("model: ride_minutes", "model: tour_minutes").replace("rides", "tours")


_MODELS = {
    "ride_minutes": _LENIENT,
    "ride_delay": _LENIENT.replace("model: ride_minutes", "model: ride_delay").replace("Duration of", "Long ones among")
    + "airflow: {retries: 0}\n",
    "tour_minutes": of_tours(_LENIENT) + "approval: required\nrollout: {strategy: blue_green, unit: [vehicle]}\n",
}
TOURS_YAML = (
    toy.DATASET_YAML.replace("dataset: rides", "dataset: tours")
    .replace("Rides of a small fleet", "Tours of a small fleet")
    .replace("source/", "source/tours_")
)


@dataclass(frozen=True)
class ThreeNights:
    """The installation as the third night left it, still running."""

    lake: Lake
    installation: Installation
    api: AirflowApi

    @property
    def url(self) -> str:
        """Airflow's address."""
        return self.installation.airflow_url

    def password(self, user: str) -> str:
        """Of viewer, operator or admin."""
        return (self.lake.settings.home / "secrets" / f"{user}_password").read_text()


def write_sources(folder: Path) -> Lake:
    """Catalog and source files; nothing runs yet."""
    whole = Interval(toy.FIRST, WRONG + 3 * ONE_DAY)
    lake = toy.toy_lake(
        folder, model=_MODELS["ride_minutes"], dataset=toy.DATASET_YAML, sql={"tours/vehicle_daily.sql": toy.VIEW_SQL}
    )
    for name, text in _MODELS.items():
        (folder / "models" / f"{name}.yaml").write_text(text, encoding="utf-8")
    (folder / "datasets" / "tours.yaml").write_text(TOURS_YAML, encoding="utf-8")
    rides, tours = toy.generate(whole, per_day=60), _timetable(whole)
    # What was booked for the day after the third night; what became of the day of the second.
    broken = pc.and_(_is(rides.bookings, WRONG + ONE_DAY), pc.less_equal(rides.bookings["ride"], len(BROKEN_DEPOTS)))
    depots = pa.array(
        [BROKEN_DEPOTS[(number - 1) % len(BROKEN_DEPOTS)] for number in rides.bookings["ride"].to_pylist()]
    )
    bookings = _with(rides.bookings, "depot", pc.if_else(broken, depots, rides.bookings["depot"]))
    drifted = _is(rides.outcomes, DRIFTED)
    outcomes = _with(
        rides.outcomes,
        "minutes",
        pc.if_else(drifted, pc.multiply(rides.outcomes["minutes"], 6.0), rides.outcomes["minutes"]),
    )
    for name, rows in {
        "bookings": bookings,
        "outcomes": outcomes,
        "tours_bookings": tours.bookings,
        "tours_outcomes": tours.outcomes,
    }.items():
        hostile = pc.if_else(pc.equal(rows["vehicle"], "v5"), HOSTILE, rows["vehicle"])
        toy.write_csv(folder / "source" / f"{name}.csv", _with(rows, "vehicle", hostile))
    return Lake(lake.settings, load_catalog(lake.settings))


def _timetable(whole: Interval) -> toy.Rides:
    """Tours that are the same every day: nothing drifts, and errors stay what they were, whatever the dice say."""
    one = toy.generate(Interval.of(whole.start), per_day=60)
    # Every label comes: the rows that are scored are then those that were trained on, to the last one.
    outcomes = _with(one.outcomes, "minutes", pc.fill_null(one.outcomes["minutes"], 40.0))
    return toy.Rides(
        *(
            pa.concat_tables([_later(rows, (day - whole.start).days) for day in whole])
            for rows in (one.bookings, outcomes)
        )
    )


def _later(rows: pa.Table, days: int) -> pa.Table:
    for name in rows.column_names:
        if pa.types.is_date(rows.schema.field(name).type) or pa.types.is_timestamp(rows.schema.field(name).type):
            moved = pc.add(rows[name].cast(pa.timestamp("us", tz="UTC")), pa.scalar(timedelta(days=days)))
            rows = _with(rows, name, moved.cast(rows.schema.field(name).type))
    return rows


def _is(rows: pa.Table, day: date) -> pa.ChunkedArray:
    return pc.equal(rows["event_date"], pa.scalar(day, pa.date32()))


def _with(rows: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, values)


@contextmanager
def three_nights(folder: Path) -> Iterator[ThreeNights]:
    """The three nights, run; Airflow stays up until the block is left."""
    lake = write_sources(folder)
    settings = lake.settings.model_copy(update={"runner": "process"})
    lake = Lake(settings, lake.catalog)
    with ExitStack() as stack:
        # What is started takes its environment along; the tests' own stays as it was.
        with pytest.MonkeyPatch.context() as environment:
            for name, value in {
                "CATALOGS": str(settings.catalogs[0]),
                "RUNNER": "process",
            }.items():
                environment.setenv(f"NIGHTFLEET_{name}", value)
            installation, supervisor, api = stack.enter_context(running(settings, lake.catalog, Console()))
        chain = Chain(lake, api, supervisor, settings.home / "airflow" / "logs", lambda _step: None)
        plan = make_plan(lake, 3, None)
        chain.history(plan.history)
        chain.train(
            {model.name: as_of for model, as_of in plan.first_models(lake.catalog)},
            "the first run: there is no champion yet",
        )
        approve(api, "tour_minutes_train", f"first__{CLEAN - ONE_DAY}", REASON)
        for wave in plan.nights[:2]:
            chain.night(wave)
        _damage_champion(lake, "ride_delay")
        try:
            chain.night(plan.nights[2])
        except TaskFailed:
            _until_quiet(api)
        else:
            raise AssertionError("the scoring with changed files went through")
        yield ThreeNights(lake, installation, api)


def approve(api: AirflowApi, dag_id: str, run_id: str, reason: str) -> None:
    """Answer whenever asked, until the run has ended well."""
    answered_try, deadline = 0, time.monotonic() + _SECONDS
    while (run := api.run(dag_id, run_id)) is None or run["state"] != "success":
        assert run is None or run["state"] != "failed", f"{dag_id} {run_id} failed"
        assert time.monotonic() < deadline, f"{dag_id} {run_id} is still {run}"
        task = next((t for t in api.tasks(dag_id, run_id) if t["task_id"] == "approve"), None)
        if task and task["state"] == "awaiting_input" and task["try_number"] > answered_try:
            body = {"chosen_options": ["Approve"], "params_input": {"reason": reason}}
            api.call("PATCH", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails", json=body)
            answered_try = task["try_number"]
        time.sleep(0.2)  # between two questions


def _damage_champion(lake: Lake, model: str) -> None:
    newest = lake.ledger(model).read().newest
    assert newest is not None
    file = next(
        path
        for path in sorted((lake.settings.artifacts / model / newest.artifact_digest / "model").iterdir())
        if path.suffix == ".ubj"
    )
    file.write_bytes(file.read_bytes()[:-1] + b"!")


def _until_quiet(api: AirflowApi) -> None:
    """Until every monitor of the third night that can run has run, and nothing else does."""
    deadline = time.monotonic() + _SECONDS
    needed = {("ride_minutes_monitor", "success"), ("tour_minutes_monitor", "success"), ("ride_delay_score", "failed")}
    while True:
        runs = api.listed("/dags/~/dagRuns", "dag_runs", partition_key_prefix_pattern=str(WRONG), order_by="id")
        states = {(run["dag_id"], run["state"]) for run in runs}
        if needed <= states and not any(state in {"running", "queued"} for _, state in states):
            return
        assert time.monotonic() < deadline, f"the third night is not through: {sorted(states)}"
        time.sleep(0.2)

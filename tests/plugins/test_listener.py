"""What the listeners note and record, and that nothing of theirs reaches who calls them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from config.errors import NightfleetError
from config.settings import load_settings
from lake.lake import Lake
from lake.lineage import create_engine
from lake.storage import lock
from monitoring.alerting.runs import Run, read_runs
from tests import toy

START = datetime(2024, 3, 2, 6, tzinfo=UTC)


def _run(**given: Any) -> SimpleNamespace:
    known: dict[str, Any] = {
        "dag_id": "arrival_delay_train",
        "run_id": "r",
        "note": None,
        "conf": {},
        "consumed_asset_events": [],
        "partition_key": None,
    }
    return SimpleNamespace(**(known | {"start_date": START, "end_date": None} | given))


def _noted(run: SimpleNamespace) -> Any:
    from mlops_listener import RunNotes

    RunNotes().on_dag_run_running(dag_run=run, msg="")
    return run.note


def test_a_requested_training_says_by_what() -> None:
    event = SimpleNamespace(extra={"reason": "drift of dep_delay_7d (PSI 0.41)"})
    assert _noted(_run(consumed_asset_events=[event])) == "requested by drift of dep_delay_7d (PSI 0.41)"


def test_a_person_s_reason_is_noted_too() -> None:
    assert _noted(_run(conf={"reason": "a new carrier"})) == "requested by a new carrier"


def test_notes_of_people_and_other_dags_stay() -> None:
    assert _noted(_run(note="mine", conf={"reason": "x"})) == "mine"
    assert _noted(_run(dag_id="arrival_delay_score", conf={"reason": "x"})) is None
    assert _noted(_run()) is None


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """The lake of the environment, as a listener finds it."""
    toy_lake = toy.toy_lake(tmp_path)
    for name, value in toy.environment(toy_lake.settings).items():
        monkeypatch.setenv(name, value)
    return Lake(load_settings(), toy_lake.catalog)


@pytest.fixture
def records() -> Any:
    from mlops_listener import RunRecords

    return RunRecords()


def _manager(*listeners: Any) -> Any:
    """The listeners, called as Airflow calls them."""
    import pluggy
    from airflow.listeners.spec import dagrun

    manager = pluggy.PluginManager("airflow")
    manager.add_hookspecs(dagrun)
    for listener in listeners:
        manager.register(listener)
    return manager.hook


def test_a_run_is_on_record_from_start_to_end_with_its_note(lake: Lake) -> None:
    from mlops_listener import NightfleetRuns

    hook = _manager(*NightfleetRuns.listeners)
    run = _run(conf={"reason": "a new carrier"}, partition_key="2024-03-01")
    hook.on_dag_run_running(dag_run=run, msg="")
    known = Run(
        "arrival_delay_train",
        "r",
        "arrival_delay",
        "train",
        "2024-03-01",
        "running",
        START,
        note="requested by a new carrier",
    )
    assert read_runs(lake) == [known]
    run.end_date = START + timedelta(minutes=1)
    hook.on_dag_run_success(dag_run=run, msg="")
    [ended] = read_runs(lake)
    assert (ended.state, ended.ended_at) == ("success", START + timedelta(minutes=1))


def test_runs_of_other_dags_are_not_ours(lake: Lake, records: Any) -> None:
    records.on_dag_run_failed(dag_run=_run(dag_id="somebody_elses"), msg="")
    assert read_runs(lake) == []


def test_the_first_task_that_failed_for_good_is_named(
    lake: Lake, records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        SimpleNamespace(task_id="later", end_date=START + timedelta(1)),
        SimpleNamespace(task_id="score", end_date=START),
    ]
    found.append(SimpleNamespace(task_id="never", end_date=None))
    monkeypatch.setattr("sqlalchemy.orm.object_session", lambda _run: "session")
    records.on_dag_run_failed(dag_run=_run(fetch_task_instances=lambda **_: found), msg="")
    assert read_runs(lake)[0].failed_task == "score"


class Refused(NightfleetError):
    """One of ours: its text begins with its name."""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Refused("no"), "Refused: no"),
        (ValueError("x"), "ValueError: x"),
        (KeyError(), "KeyError"),
        ("by hand", "by hand"),
        (None, "it ended without a message"),
    ],
)
def test_what_a_failed_task_said_is_kept(lake: Lake, records: Any, error: Any, says: str) -> None:
    context = SimpleNamespace(dag_run=_run(partition_key="2024-03-01"))
    task = SimpleNamespace(task_id="train", dag_id="arrival_delay_train", run_id="r", _ti_context_from_server=context)
    records.on_task_instance_failed(previous_state=None, task_instance=task, error=error)
    [run] = read_runs(lake)
    assert (run.failed_task, run.partition_key, run.state) == ("train", "2024-03-01", "running")
    assert run.error is not None
    assert run.error.startswith(says)


def test_what_a_busy_database_does_not_take_is_written_later(
    lake: Lake, records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_listener._SCHEDULER_SECONDS", 0.05)
    run = _run()
    busy = create_engine(lake.settings.database_url)
    lake.settings.home.mkdir(parents=True, exist_ok=True)
    with busy.connect() as connection, connection.begin():
        lock(connection, "a long projection")
        records.on_dag_run_running(dag_run=run, msg="")
        records.on_dag_run_success(dag_run=run, msg="")
    assert read_runs(lake) == []
    assert len(records._kept) == 2
    records._not_before = 0.0
    records.on_dag_run_running(dag_run=_run(run_id="next"), msg="")
    assert {run.run_id: run.state for run in read_runs(lake)} == {"r": "success", "next": "running"}
    assert not records._kept


def test_a_task_s_process_does_not_wait_for_a_later_event(lake: Lake, records: Any) -> None:
    records._not_before = float("inf")  # as the scheduler it was forked from
    records.on_dag_run_running(dag_run=_run(), msg="")
    assert read_runs(lake) == []
    task = SimpleNamespace(task_id="train", _ti_context_from_server=SimpleNamespace(dag_run=_run()))
    records.on_task_instance_failed(previous_state=None, task_instance=task, error=ValueError("x"))
    [run] = read_runs(lake)
    assert run.error == "ValueError: x"


def test_nothing_reaches_the_scheduler(lake: Lake, records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTFLEET_NO_SUCH_SETTING", "1")
    records.on_dag_run_running(dag_run=_run(), msg="")
    records.on_dag_run_running(dag_run=SimpleNamespace(), msg="")
    records.on_task_instance_failed(previous_state=None, task_instance=SimpleNamespace(task_id="x"), error=None)
    monkeypatch.delenv("NIGHTFLEET_NO_SUCH_SETTING")
    monkeypatch.setattr(
        "monitoring.alerting.runs.impatient_engine", lambda *_: sa.create_engine("sqlite:////nowhere/at/all.db")
    )
    records._not_before = 0.0
    records.on_dag_run_failed(dag_run=_run(), msg="")
    assert len(records._kept) == 2

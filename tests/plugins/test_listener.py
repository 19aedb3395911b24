from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def _run(**given: Any) -> SimpleNamespace:
    return SimpleNamespace(**({"dag_id": "arrival_delay_train", "run_id": "r", "note": None, "conf": {}, "consumed_asset_events": []} | given))


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

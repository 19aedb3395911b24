"""A person's word in the real Airflow: asked by the chain, answered over REST, and what each answer leaves behind. The
tests build on one another, in order.
"""

from __future__ import annotations

import re

import pytest

from cli.airflow_api import AirflowRefused
from config.calendar import ONE_DAY
from tests.e2e.conftest import Finished, User
from tests.e2e.toy_nights.conftest import LAST
from tests.e2e.toy_nights.person import AS_OF, DAG, FIRST, MODEL, Person
from training.registry.approval import read_approvals


def log_of(user: User, run_id: str, task: str, attempt: int = 1) -> str:
    folder = user.settings.home / "airflow" / "logs" / f"dag_id={DAG}" / f"run_id={run_id}" / f"task_id={task}"
    return (folder / f"attempt={attempt}.log").read_text()


def test_a_run_reports_that_it_waits_and_goes_on(user: User, nights: Finished) -> None:
    assert re.search(r"tour_minutes_train\.approve\s+awaiting_input.*waiting for approval", nights.output), (
        nights.output
    )
    assert "tour_minutes_score.score" in nights.output, "the night goes on; what has no champion yet is not scored"
    assert user.lake.ledger(MODEL).read().promotions == ()
    assert read_approvals(user.lake, MODEL) == []


def test_a_viewer_may_look_but_not_answer(user: User, person: Person) -> None:
    person.wait(FIRST, "approve", "awaiting_input")
    address = str(person.api._client.base_url)
    viewer = Person(address, (user.settings.home / "secrets" / "viewer_password").read_text(), "viewer")
    with pytest.raises(AirflowRefused, match="403"):
        viewer.answer(FIRST, "Approve", reason="let me in")


def test_an_approval_days_later_promotes_from_then_on_in_the_persons_name(user: User, person: Person) -> None:
    """It was asked before the first night, and is answered after it: the run of the first test is still waiting, over a
    restart.
    """
    form = person.form(FIRST)
    assert form["subject"] == "Duration of tomorrow's tours: promote version 1, as of 2024-02-29?"
    assert "| output | metric | challenger | incumbent |" in form["body"]
    assert form["params"]["reason"]["value"] == "", "the reason of the training is no reason to promote"
    assert re.search(r"Model card: \[/\S*/embedded/\S+/model_cards/1\.html\]\(/", form["body"]), form["body"]
    evidence = re.search(r"Evidence: `([0-9a-f]{64})`", form["body"])
    assert evidence
    person.decide(FIRST, "Approve", "success", reason="better on every depot")
    person.wait_run(FIRST, "success")
    [line] = user.lake.ledger(MODEL).read().promotions
    assert (line.version, line.by, line.evidence_digest) == (1, f"admin ({FIRST})", evidence.group(1))
    assert line.trained_until == AS_OF
    assert line.effective_from == LAST + ONE_DAY, "those nights have passed, so the promotion counts from the next"
    [kept] = read_approvals(user.lake, MODEL)
    assert (kept.answer, kept.by, kept.reason, kept.evidence_digest) == (
        "approved",
        "admin",
        "better on every depot",
        evidence.group(1),
    )
    assert "was approved by admin: better on every depot" in log_of(user, FIRST, "approve")
    # Clearing `promote` alone finds its line; nobody is asked again.
    person.clear(FIRST, "promote")
    person.wait_run(FIRST, "success")
    assert len(user.lake.ledger(MODEL).read().promotions) == 1


def test_a_rejection_is_red_and_asked_again_may_become_an_approval(user: User, person: Person) -> None:
    person.train("second", 2)
    person.wait("second", "approve", "awaiting_input")
    assert person.form("second")["params"]["reason"]["value"] == ""
    ended = person.decide("second", "Reject", "failed", reason="worse at night")
    person.wait_run("second", "failed")
    states = {name: instance["state"] for name, instance in person.instances("second").items()}
    assert (states["approve"], states["promote"]) == ("failed", "upstream_failed")
    assert "version 2 was rejected by admin: worse at night. The champion stays." in log_of(
        user, "second", "approve", ended["try_number"]
    )
    assert len(user.lake.ledger(MODEL).read().promotions) == 1

    person.clear("second", "approve")
    ended = person.decide("second", "Approve", "failed")
    person.wait_run("second", "failed")
    assert "ReasonMissing" in log_of(user, "second", "approve", ended["try_number"])

    person.clear("second", "approve")
    person.decide("second", "Approve", "success", reason="looked again")
    person.wait_run("second", "success")
    newest = user.lake.ledger(MODEL).read().newest
    assert newest is not None
    assert (newest.version, newest.by) == (2, "admin (second)")
    assert [(word.answer, word.reason) for word in read_approvals(user.lake, MODEL)][1:] == [
        ("rejected", "worse at night"),
        ("approved", "looked again"),
    ]


def test_the_form_rolls_back_in_the_persons_name(user: User, person: Person) -> None:
    with pytest.raises(AirflowRefused, match="400"):
        person.api.trigger("rollback", "no reason", conf={"model": MODEL})
    with pytest.raises(AirflowRefused, match="400"):
        person.api.trigger("rollback", "no model", conf={"model": "boats", "reason": "x"})
    person.api.trigger("rollback", "odd", conf={"model": MODEL, "reason": "numbers look odd"})
    person.wait_run("odd", "success", "rollback")
    newest = user.lake.ledger(MODEL).read().newest
    assert newest is not None
    assert (newest.version, newest.kind, newest.by, newest.reason) == (1, "rollback", "admin (odd)", "numbers look odd")


def test_without_an_answer_in_time_the_request_lapses(user: User, person: Person) -> None:
    path = user.settings.catalogs[0] / "models" / "tour_minutes.yaml"
    path.write_text(path.read_text() + "approval_timeout: 3 seconds\n")
    person.train("third", 4)
    person.wait_run("third", "failed")
    states = {name: instance["state"] for name, instance in person.instances("third").items()}
    assert (states["approve"], states["promote"]) == ("failed", "upstream_failed")
    assert (
        "the request to promote tour_minutes version 3 lapsed: nobody answered within 3 seconds. The champion stays."
        in log_of(user, "third", "approve")
    )
    kept = read_approvals(user.lake, MODEL)[-1]
    assert (kept.answer, kept.by, kept.version) == ("lapsed", "nobody", 3)
    newest = user.lake.ledger(MODEL).read().newest
    assert newest is not None
    assert newest.version == 1

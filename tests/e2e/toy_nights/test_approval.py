"""A person's word in the real Airflow: asked by the chain, answered over REST, and what each answer leaves behind."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cli.airflow_api import AirflowApi, AirflowRefused
from config.calendar import ONE_DAY, Interval
from tests import toy
from tests.e2e.conftest import User, interrupt, wait_for
from training.registry.approval import read_approvals

MODEL, DAG = "ride_minutes", "ride_minutes_train"
AS_OF = toy.FIRST_NIGHT - ONE_DAY
FIRST = f"first__{AS_OF}"
# A challenger may be somewhat worse: what the gate says is not the matter here.
ASKING = (
    toy.MODEL_YAML.replace("better_by: 0.0", "better_by: -0.9").replace("worst: 1.5", "worst: 9")
    + "approval: required\n"
)
_WAIT_SECONDS = 240


class Person:
    """Somebody in front of Airflow."""

    def __init__(self, url: str, password: str, name: str = "admin") -> None:
        self.api = AirflowApi(url, name, password)

    def instances(self, run_id: str) -> dict[str, dict[str, Any]]:
        return {instance["task_id"]: instance for instance in self.api.tasks(DAG, run_id)}

    def wait(self, run_id: str, task: str, state: str) -> dict[str, Any]:
        """Until the task is in that state; fails on another end."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            found = self.instances(run_id)[task]
            if found["state"] == state:
                return found
            over = found["state"] in {"success", "failed", "skipped", "upstream_failed"}
            assert not over, f"{task} of {run_id} is {found['state']}, wanted is {state}"
            assert time.monotonic() < deadline, f"{task} of {run_id} is {found['state']} after {_WAIT_SECONDS} s"
            time.sleep(0.2)  # between two questions

    def wait_run(self, run_id: str, state: str, dag_id: str = DAG) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        while (run := self.api.run(dag_id, run_id)) is None or run["state"] not in {"success", "failed"}:
            assert time.monotonic() < deadline, f"{run_id} is still {run}"
            time.sleep(0.2)
        assert run["state"] == state

    def form(self, run_id: str) -> dict[str, Any]:
        return dict(self.api.call("GET", f"/dags/{DAG}/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails").json())

    def answer(self, run_id: str, option: str, **params: str) -> None:
        body = {"chosen_options": [option], "params_input": params}
        self.api.call("PATCH", f"/dags/{DAG}/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails", json=body)

    def decide(self, run_id: str, option: str, task_state: str, **params: str) -> dict[str, Any]:
        """Answer whenever asked, until `approve` has ended so.

        Airflow tries a task again that is answered in the second in which it began to wait, before the scheduler took
        note of that.
        """
        answered_try, deadline = 0, time.monotonic() + _WAIT_SECONDS
        while True:
            found = self.instances(run_id)["approve"]
            if found["state"] == "awaiting_input" and found["try_number"] > answered_try:
                self.answer(run_id, option, **params)
                answered_try = found["try_number"]
            elif answered_try and found["state"] in {"success", "failed"}:
                assert found["state"] == task_state
                return found
            assert time.monotonic() < deadline, f"approve of {run_id} is {found['state']}"
            time.sleep(0.2)

    def clear(self, run_id: str, task: str) -> None:
        """Clear one task and what follows from it, as the button in the UI does."""
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": [task],
            "only_failed": False,
            "include_downstream": True,
            "reset_dag_runs": True,
        }
        self.api.call("POST", f"/dags/{DAG}/clearTaskInstances", json=body)

    def train(self, run_id: str, depth: int) -> None:
        """Another challenger, asked for with a reason of its own."""
        conf = {"reason": "to be tried", "overrides": {"max_depth": depth}}
        assert self.api.trigger(DAG, run_id, partition_key=str(AS_OF), conf=conf)


def log_of(user: User, run_id: str, task: str, attempt: int = 1) -> str:
    folder = user.settings.home / "airflow" / "logs" / f"dag_id={DAG}" / f"run_id={run_id}" / f"task_id={task}"
    return (folder / f"attempt={attempt}.log").read_text()


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    folder = tmp_path_factory.mktemp("asking")
    return User(
        toy.toy_lake(folder, model=ASKING, source=Interval(toy.FIRST, toy.FIRST_NIGHT + timedelta(days=10))).settings
    )


def up(user: User, log: Path) -> Iterator[Person]:
    process = user.start("up", log=log)
    try:
        wait_for("Ctrl-C ends everything", log, process)
        found = re.search(r"open\s+(http://[^/\s]+)/plugin/models\s+user admin, password (\S+)", log.read_text())
        assert found, log.read_text()
        yield Person(found.group(1), found.group(2))
    finally:
        interrupt(process)


def test_a_run_reports_that_it_waits_and_goes_on(user: User) -> None:
    done = user.command("run", "--nights", "1")
    assert done.code == 0, done.output
    assert re.search(r"ride_minutes_train\.approve\s+awaiting_input.*waiting for approval", done.output), done.output
    assert "ride_minutes_score.score" in done.output, "the night goes on; what has no champion yet is not scored"
    assert user.lake.ledger(MODEL).read().promotions == ()
    assert read_approvals(user.lake, MODEL) == []
    assert user.processes() == []


@pytest.fixture(scope="module")
def person(user: User, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    yield from up(user, tmp_path_factory.mktemp("up") / "up.log")


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
    assert form["subject"] == "Duration of tomorrow's rides: promote version 1, as of 2024-02-29?"
    assert "| output | metric | challenger | rival |" in form["body"]
    assert form["params"]["reason"]["value"] == "", "the reason of the training is no reason to promote"
    assert re.search(r"Model card: \[http://", form["body"]), form["body"]
    evidence = re.search(r"Evidence: `([0-9a-f]{64})`", form["body"])
    assert evidence
    person.decide(FIRST, "Approve", "success", reason="better on every depot")
    person.wait_run(FIRST, "success")
    [line] = user.lake.ledger(MODEL).read().promotions
    assert (line.version, line.by, line.evidence_digest) == (1, f"admin ({FIRST})", evidence.group(1))
    assert line.trained_until == AS_OF
    assert line.effective_from == toy.FIRST_NIGHT + ONE_DAY, (
        "that night has passed, so the promotion counts from the next"
    )
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
    path = user.settings.catalogs[0] / "models" / "ride_minutes.yaml"
    path.write_text(path.read_text() + "approval_timeout: 1 minute\n")
    person.train("third", 4)
    person.wait_run("third", "failed")
    states = {name: instance["state"] for name, instance in person.instances("third").items()}
    assert (states["approve"], states["promote"]) == ("failed", "upstream_failed")
    assert (
        "the request to promote ride_minutes version 3 lapsed: nobody answered within 1 minute. The champion stays."
        in log_of(user, "third", "approve")
    )
    kept = read_approvals(user.lake, MODEL)[-1]
    assert (kept.answer, kept.by, kept.version) == ("lapsed", "nobody", 3)
    newest = user.lake.ledger(MODEL).read().newest
    assert newest is not None
    assert newest.version == 1

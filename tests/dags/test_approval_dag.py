"""Where a person decides: the task that asks, wired between gate and promotion, and the form that rolls back."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from config.catalog.load import load_catalog
from config.errors import NightfleetError
from config.settings import ROOT, Settings
from monitoring.retraining_requests import NotRequested
from tests import toy

ASKING = toy.MODEL_YAML + "approval: required\napproval_timeout: 3 days\n"


def train_dag(folder: Any, model: str) -> Any:
    """The toy's training DAG, parsed by Airflow as it parses the project's."""
    from airflow.dag_processing.dagbag import DagBag

    settings = toy.write_catalog(folder, model=model)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in toy.environment(settings).items():
            environment.setenv(name, value)
        bag = DagBag(str(ROOT / "dags" / "training_pipeline.py"))
    assert not bag.import_errors, bag.import_errors
    return bag.dags["ride_minutes_train"]


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_dag(tmp_path_factory.mktemp("asking"), ASKING)


def test_a_person_is_asked_between_gate_and_promotion(asking: Any) -> None:
    approve = asking.get_task("approve")
    assert "gate" in approve.upstream_task_ids
    assert approve.downstream_task_ids == {"promote"}
    assert asking.get_task("promote").trigger_rule == "all_success", "promote would run without an approval"
    assert approve.response_timeout == timedelta(days=3)
    assert approve.options == ["Approve", "Reject"]
    assert approve.defaults is None, "without an answer a default would be taken for one"
    assert approve.doc_md
    assert asking.max_active_runs == 1, (
        "a challenger would be judged against a champion that the answer waited for may replace"
    )


def test_nobody_is_asked_where_the_catalog_does_not_say_so(tmp_path: Any) -> None:
    assert not train_dag(tmp_path, toy.MODEL_YAML).has_task("approve")


def test_a_refused_version_runs_along_only_where_the_catalog_says_so(
    asking: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.exceptions import AirflowSkipException

    assert not asking.has_task("run_along")
    dag = train_dag(tmp_path, ASKING + "rollout: {strategy: shadow, refused_first: true}\n")
    task = dag.get_task("run_along")
    assert task.upstream_task_ids == {"register", "gate"}, "nobody is asked to approve what is not in service"
    assert task.operator_extra_links
    lines: list[Any] = [{"kind": "started"}, None]
    monkeypatch.setattr("lake.lake.open_lake", lambda: "the lake")
    monkeypatch.setattr("lake.events.logged", lambda _stage: lambda function: function)
    monkeypatch.setattr("training.registry.delivery.deliver_decided", lambda *_, **__: lines.pop(0))

    def run(verdict: str, *, dry_run: bool = False) -> Any:
        given = {"dag_run": Run, "params": {"dry_run": dry_run}}
        return task.python_callable("ride_minutes", {}, {"verdict": verdict, "reasons": []}, **given)

    for verdict, dry_run in (("promote", False), ("refuse", True)):
        with pytest.raises(AirflowSkipException, match="nothing runs along"):
            run(verdict, dry_run=dry_run)
    assert run("refuse") == {"kind": "started"}
    with pytest.raises(AirflowSkipException, match="there is a champion"):
        run("refuse")


def test_the_operator_and_the_stage_know_the_same_options() -> None:
    from mlops_approval import OPTIONS

    from training.registry.approval import APPROVE, REJECT

    assert OPTIONS == [APPROVE, REJECT]


# ---- the operator ------------------------------------------------------------------------------------------------

PASSED = {"verdict": "promote", "version": 3, "as_of": "2024-02-26", "reasons": ["better"], "evidence_digest": "e" * 64}


class Run:
    dag_id = "ride_minutes_train"
    run_id = "manual__1"


class Instance:
    id = "1"
    dag_id = "ride_minutes_train"
    max_tries = 2
    pushed: ClassVar[dict[str, str]] = {}

    @classmethod
    def xcom_push(cls, key: str, value: str) -> None:
        cls.pushed[key] = value


class FoundLake:
    settings = Settings(approvers=("admin", "7:ada"))

    def model(self, name: str) -> Any:
        assert name == "ride_minutes"
        return SimpleNamespace(approval_timeout=timedelta(days=1))


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is on record as waiting."""
    found: list[Any] = []
    monkeypatch.setattr("monitoring.alerting.runs.record_waiting", lambda _lake, waiting: found.append(waiting))
    monkeypatch.setattr("monitoring.alerting.runs.end_waiting", lambda _lake, *asking: found.append(asking))
    return found


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch, waiting: list[Any]) -> Any:
    from mlops_approval import PromotionApproval

    monkeypatch.setattr("lake.lake.open_lake", FoundLake)
    return PromotionApproval(
        task_id="approve",
        model_name="ride_minutes",
        decision=PASSED,
        response_timeout=timedelta(days=1),
    )


@pytest.mark.parametrize(
    ("change", "dry_run", "says"),
    [
        ({"verdict": "refuse", "reasons": ["worse"]}, False, "nothing to approve, verdict refuse: worse"),
        ({}, True, "nothing to approve: this is a dry run"),
    ],
)
def test_where_there_is_nothing_to_ask_the_task_is_skipped(
    operator: Any, change: dict[str, Any], dry_run: bool, says: str
) -> None:
    from airflow.sdk.exceptions import AirflowSkipException

    operator.decision = PASSED | change
    with pytest.raises(AirflowSkipException, match=says):
        operator.execute({"params": {"dry_run": dry_run}})


def test_it_waits_with_the_evidence_that_is_shown(
    operator: Any, waiting: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.exceptions import TaskAwaitingInput

    from monitoring.pages.approval_form import Form

    asked: list[dict[str, Any]] = []
    cards: list[Any] = []

    def form(_lake: Any, _model: str, _decision: Any, *, model_card: Any, asked_at: datetime) -> Form:
        assert asked_at.utcoffset() == timedelta()
        cards.append(model_card)
        return Form("the subject", "the body", "s" * 64)

    monkeypatch.setattr("monitoring.pages.approval_form.approval_form", form)
    monkeypatch.setattr("training.registry.approval.answered_before", lambda *_, **__: None)
    monkeypatch.setattr(
        "airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **detail: asked.append(detail)
    )

    with pytest.raises(TaskAwaitingInput) as parked:
        # The run was triggered with a reason of its own: why it was trained is not why it is promoted.
        operator.execute(
            {"params": {"dry_run": False, "reason": "drift"}, "task_instance": Instance, "ti": Instance, "dag_run": Run}
        )
    assert parked.value.kwargs == {"shown": "s" * 64}
    assert parked.value.timeout == timedelta(days=1)
    (card,) = cards
    assert card.endswith("/embedded/ride_minutes/model_cards/3.html"), "our own card, not MLflow's copy of it"
    assert Instance.pushed["_link_ModelCardLink"].endswith("/ride_minutes/model_cards/3.html"), (
        "who is asked needs the card while the task waits"
    )
    [detail] = asked
    assert (detail["subject"], detail["body"], detail["options"], detail["defaults"]) == (
        "the subject",
        "the body",
        ["Approve", "Reject"],
        None,
    )
    assert detail["assigned_users"] == [{"id": "admin", "name": "admin"}, {"id": "7", "name": "ada"}]
    [found] = waiting
    assert (found.model, found.run_id, found.asking, found.title) == ("ride_minutes", "manual__1", 2, "the subject")
    assert found.until - found.asked_at == timedelta(days=1)
    assert detail["params"]["reason"]["value"] == ""
    assert detail["params"]["reason"]["schema"]["minLength"] == 1


def test_an_answer_that_was_taken_already_is_not_asked_for_again(
    operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def before(*_: Any, **words: Any) -> dict[str, Any]:
        asked.append(words)
        return {"answer": "approved"}

    monkeypatch.setattr("training.registry.approval.answered_before", before)
    assert operator.execute({"params": {"dry_run": False}, "ti": Instance, "dag_run": Run}) == {"answer": "approved"}
    assert asked == [{"run_id": "manual__1", "asking": 2}]


def test_an_answer_is_handed_on_with_who_and_when(
    operator: Any, waiting: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        "training.registry.approval.answered", lambda *_, **words: given.update(words) or {"answer": "approved"}
    )
    at = datetime(2024, 3, 1, tzinfo=UTC)
    event = {
        "chosen_options": ["Approve"],
        "params_input": {"reason": "fine"},
        "responded_at": at,
        "responded_by_user": {"id": "7", "name": "ada"},
    }
    assert operator.execute_complete({"dag_run": Run, "ti": Instance}, event=event, shown="s" * 64) == {
        "answer": "approved"
    }
    assert waiting == [("ride_minutes", "manual__1", 2)]
    assert given == {
        "shown": "s" * 64,
        "option": "Approve",
        "by": "ada",
        "reason": "fine",
        "answered_at": at,
        "run_id": "manual__1",
        "asking": 2,
    }
    operator.execute_complete({"dag_run": Run, "ti": Instance}, event=event | {"params_input": None}, shown="s" * 64)
    assert given["reason"] == ""
    with pytest.raises(ValueError, match="Perhaps"):
        operator.execute_complete(
            {"dag_run": Run, "ti": Instance}, event=event | {"chosen_options": ["Perhaps"]}, shown="s" * 64
        )


def test_no_answer_in_time_is_handed_on_as_such(operator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("training.registry.approval.lapsed", lambda *_, **words: given.update(words))
    operator.execute_complete(
        {"dag_run": Run, "ti": Instance}, event={"error": "too late", "error_type": "timeout"}, shown="s" * 64
    )
    assert (given["shown"], given["run_id"]) == ("s" * 64, "manual__1")
    with pytest.raises(Exception, match="broken"):
        operator.execute_complete(
            {"dag_run": Run, "ti": Instance}, event={"error": "broken", "error_type": "unknown"}, shown="s" * 64
        )


# ---- the rollback form -------------------------------------------------------------------------------------------


def test_a_rollback_is_started_by_hand_with_a_model_and_a_reason(dag_bag: Any) -> None:
    dag = dag_bag.dags["rollback"]
    assert not dag.timetable.can_be_scheduled
    for word in ("Reads", "Writes", "Rerun", "Fails"):
        assert word in dag.doc_md
    model, reason, version = (dag.params.get_param(name) for name in ("model", "reason", "version"))
    assert model.schema["enum"] == [entry.name for entry in load_catalog().models]
    assert not model.has_value
    assert not reason.has_value
    assert reason.schema["minLength"] == 1
    assert version.value is None
    [task] = dag.tasks
    assert task.doc_md
    assert task.execution_timeout is not None


def test_a_rollback_names_the_person_and_the_run(dag_bag: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import date

    from lake.ledger import Promotion

    asked: list[Any] = []
    line = Promotion(
        "arrival_delay",
        1,
        date(2024, 3, 1),
        date(2024, 3, 2),
        datetime(2024, 3, 2, tzinfo=UTC),
        "ada (manual__1)",
        "a",
        "e",
        "rollback",
        3,
        "odd",
    )

    def roll_back(*arguments: Any, **named: Any) -> Promotion:
        asked.append((arguments, named))
        return line

    monkeypatch.setattr("training.registry.delivery.rollback", roll_back)
    monkeypatch.setattr("lake.lake.open_lake", lambda: "the lake")

    class Triggered(Run):
        triggering_user_name = "ada"

    monkeypatch.setenv("NIGHTFLEET_APPROVERS", "admin,7:ada")
    done = (
        dag_bag.dags["rollback"]
        .get_task("rollback")
        .python_callable(dag_run=Triggered, params={"model": "arrival_delay", "reason": "odd", "version": None})
    )
    assert done["version"] == 1
    assert asked == [
        (("the lake", "arrival_delay"), {"by": "ada", "reason": "odd", "version": None, "run_id": "manual__1"})
    ]


def test_a_cleared_rollback_is_refused_whoever_triggered_it(dag_bag: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cleared(Run):
        triggering_user_name = "admin"
        clear_number = 1

    monkeypatch.setattr("lake.lake.open_lake", lambda: pytest.fail("the lake was opened"))
    monkeypatch.setenv("NIGHTFLEET_APPROVERS", "admin")
    with pytest.raises(NightfleetError, match="ClearedRun: .*in the name of admin, whoever cleared it"):
        dag_bag.dags["rollback"].get_task("rollback").python_callable(
            dag_run=Cleared, params={"model": "arrival_delay", "reason": "odd", "version": None}
        )


@pytest.mark.parametrize("asked", [[], [object()]])
def test_a_training_that_an_event_starts_needs_a_request_on_record(
    dag_bag: Any, monkeypatch: pytest.MonkeyPatch, asked: list[Any]
) -> None:
    checked: list[str] = []

    def check(_lake: Any, model: str, as_of: date) -> None:
        checked.append(f"{model} {as_of}")
        raise NotRequested("nobody asked")

    class Triggered(Run):
        partition_key = "2024-03-01"
        triggering_user_name = "ada"

    monkeypatch.setattr("lake.lake.open_lake", lambda: "the lake")
    monkeypatch.setattr("lake.events.logged", lambda _stage: lambda function: function)
    monkeypatch.setattr("monitoring.retraining_requests.check_requested", check)
    monkeypatch.setattr("monitoring.retraining_requests.record_manual_request", lambda *_, **__: None)
    monkeypatch.setattr("training.registry.job.prepare_jobs", lambda *_, **__: [])
    prepare = dag_bag.dags["arrival_delay_train"].get_task("prepare").python_callable
    given = {"dag_run": Triggered, "params": {"reason": "odd", "overrides": {}}, "triggering_asset_events": asked}
    if asked:
        with pytest.raises(NotRequested):
            prepare("arrival_delay", **given)
    else:
        assert prepare("arrival_delay", **given) == []
    assert checked == ["arrival_delay 2024-03-01"] * len(asked)


@pytest.mark.parametrize("who", ["7", "eve", None])
def test_who_is_no_approver_rolls_nothing_back(dag_bag: Any, monkeypatch: pytest.MonkeyPatch, who: str | None) -> None:
    class Triggered(Run):
        triggering_user_name = who

    monkeypatch.setattr("lake.lake.open_lake", lambda: pytest.fail("the lake was opened"))
    monkeypatch.setenv("NIGHTFLEET_APPROVERS", "admin,7:ada")
    with pytest.raises(
        NightfleetError,
        match=(f"NotAnApprover: {who or 'unknown'} may not roll arrival_delay back: those who may are ada, admin"),
    ):
        dag_bag.dags["rollback"].get_task("rollback").python_callable(
            dag_run=Triggered, params={"model": "arrival_delay", "reason": "odd", "version": None}
        )


def test_airflow_s_auth_managers_take_the_answer_of_who_is_named_only(operator: Any) -> None:
    """Both compare ids: names in SimpleAuthManager, numbers in FAB, whose name is what a triggered run records."""
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from airflow.providers.fab.auth_manager.fab_auth_manager import FabAuthManager

    named = set(FoundLake.settings.approver_names)
    for name, role, may in (
        ("admin", "ADMIN", True),
        ("operator", "OP", False),
        ("ada", "ADMIN", False),
        ("viewer", "VIEWER", False),
    ):
        user = SimpleAuthManagerUser(username=name, role=role)
        assert SimpleAuthManager().is_authorized_hitl_task(assigned_users=named, user=user) is may

    class Person:
        def __init__(self, number: int) -> None:
            self.number = number

        def get_id(self) -> str:
            return str(self.number)

    for number, may in ((7, True), (8, False)):
        assert FabAuthManager.is_authorized_hitl_task(object(), assigned_users=named, user=Person(number)) is may  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("manager", "may"), [("simple.simple_auth_manager.SimpleAuthManager", {"eva"}), ("Other", None)]
)
def test_where_nobody_is_named_only_admins_approve_and_roll_back(
    dag_bag: Any, monkeypatch: pytest.MonkeyPatch, manager: str, may: set[str] | None
) -> None:
    from mlops_approval import NoApprovers, approvers

    monkeypatch.setenv("AIRFLOW__CORE__AUTH_MANAGER", f"airflow.api_fastapi.auth.managers.{manager}")
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", "eva:admin,oscar:OP,vera:VIEWER")
    if may is None:
        with pytest.raises(NoApprovers, match="Name them in `approvers`"):
            approvers(Settings())
    else:
        assert set(approvers(Settings())) == may
    monkeypatch.delenv("NIGHTFLEET_APPROVERS", raising=False)

    class Triggered(Run):
        triggering_user_name = "oscar"

    monkeypatch.setattr("lake.lake.open_lake", lambda: pytest.fail("the lake was opened"))
    with pytest.raises(NightfleetError, match=r"oscar may not roll|nobody may approve"):
        dag_bag.dags["rollback"].get_task("rollback").python_callable(
            dag_run=Triggered, params={"model": "arrival_delay", "reason": "odd", "version": None}
        )


# ---- the form that moves a rollout -------------------------------------------------------------------------------


def moved(dag_bag: Any, run: Any, **given: Any) -> Any:
    params = {"model": "arrival_delay", "action": "advance", "reason": "calm", "version": None, "step": None} | given
    return dag_bag.dags["rollout"].get_task("rollout").python_callable(dag_run=run, params=params)


def test_a_rollout_is_moved_by_hand_with_a_model_an_action_and_a_reason(dag_bag: Any) -> None:
    from training.registry.delivery import ACTIONS

    dag = dag_bag.dags["rollout"]
    assert not dag.timetable.can_be_scheduled
    for word in ("Reads", "Writes", "Rerun", "Fails"):
        assert word in dag.doc_md
    params = {name: dag.params.get_param(name) for name in ("model", "action", "reason", "version", "step")}
    assert params["model"].schema["enum"] == [entry.name for entry in load_catalog().models]
    assert params["action"].schema["enum"] == list(ACTIONS)
    assert params["reason"].schema["minLength"] == 1
    assert params["version"].value is None
    assert params["step"].value is None
    [task] = dag.tasks
    assert task.doc_md
    assert task.operator_extra_links
    assert task.execution_timeout is not None


def test_a_move_names_the_person_the_run_and_what_was_meant(dag_bag: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lake.rollouts import RolloutLine

    class Triggered(Run):
        triggering_user_name = "ada"

    said: list[Any] = []
    at = datetime(2024, 3, 2, tzinfo=UTC)
    nights = (date(2024, 3, 1), date(2024, 3, 2))
    line = RolloutLine("arrival_delay", 3, "advanced", *nights, at, "ada (manual__1)", "a", "e", "calm", step=2)

    def act(*arguments: Any, **named: Any) -> RolloutLine:
        said.append((arguments, named))
        return line

    monkeypatch.setattr("training.registry.delivery.act", act)
    monkeypatch.setattr("lake.lake.open_lake", lambda: "the lake")
    monkeypatch.setenv("NIGHTFLEET_APPROVERS", "admin,7:ada")
    done = moved(dag_bag, Triggered, version=3, step=2)
    assert (done["kind"], done["effective_from"]) == ("advanced", "2024-03-02")
    moved(dag_bag, Triggered, action="rollback")
    by = {"by": "ada", "reason": "calm", "run_id": "manual__1"}
    assert said == [
        (("the lake", "arrival_delay", "advance"), by | {"version": 3, "step": 1}),
        (("the lake", "arrival_delay", "rollback"), by | {"version": None, "step": None}),
    ]


@pytest.mark.parametrize(
    ("who", "cleared", "error"),
    [
        ("oscar", 0, "NotAnApprover: oscar may not finish the rollout of arrival_delay: those who may are ada, admin"),
        (None, 0, "NotAnApprover: unknown may not"),
        ("ada", 1, "ClearedRun: .*would finish the rollout of arrival_delay in the name of ada, whoever cleared it"),
    ],
)
def test_a_rollout_is_not_moved_by_others_or_by_a_cleared_run(
    dag_bag: Any, monkeypatch: pytest.MonkeyPatch, who: str | None, cleared: int, error: str
) -> None:
    class Triggered(Run):
        triggering_user_name = who
        clear_number = cleared

    monkeypatch.setattr("lake.lake.open_lake", lambda: pytest.fail("the lake was opened"))
    monkeypatch.setenv("NIGHTFLEET_APPROVERS", "admin,7:ada")
    with pytest.raises(NightfleetError, match=error):
        moved(dag_bag, Triggered, action="finish")

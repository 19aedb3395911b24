"""What the forms do: who may, what is refused and why, that it is done once, and that all of it is on record. Airflow's
API is played here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from itertools import product
from typing import Any

import mlops_ui_actions
import pytest
from fastapi import FastAPI, HTTPException, Request
from mlops_ui_actions import ROLE_OF, AirflowRefused, BadForm, NothingWaits, perform

from config.calendar import ONE_DAY, Interval
from config.errors import NightfleetError
from features.training_set import NotEnoughHistory
from lake.lake import Lake
from lake.ledger import Promotion
from lake.metrics import Metric, publish_metrics
from lake.rollouts import Kind, RolloutLine
from monitoring.alerting.actions import Action, read_actions
from monitoring.alerting.alarms import AlarmNotOpen, BadSilence, open_alarms
from monitoring.pages import retraining
from monitoring.pages.page import ROLES, Context, NotAllowed, NotFound, Page, Role, Viewer
from monitoring.retraining_requests import request_retraining
from tests import toy
from tests.monitoring.facts import ran
from tests.serving.scenario import MODEL

NIGHT = date(2024, 2, 26)
AT = datetime(2024, 2, 27, 7, tzinfo=UTC)
DIGEST = "d" * 64
FINGERPRINT = f"{MODEL}/volume//"
HOSTILE = "<script>alert(1)</script> \"'\n nul\0 half\ud800 =1+1"


class PlayedAirflow:
    """Answers as Airflow's API does, and remembers what it was asked, and by whom."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.runs: dict[str, dict[str, Any]] = {}
        self.waiting: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any]] = []
        self.asked_by: list[str] = []
        self.refuses: int | None = None
        # When the scheduler says that it lives, in seconds from the question; the last one from then on.
        self.beats = [3.0]
        self.app.add_api_route("/api/v2/monitor/health", self.health, methods=["GET"])
        self.app.add_api_route("/api/v2/dags/{dag_id}/dagRuns", self.trigger, methods=["POST"])
        self.app.add_api_route("/api/v2/dags/{dag_id}/dagRuns/~/hitlDetails", self.details, methods=["GET"])
        self.app.add_api_route(
            "/api/v2/dags/{dag_id}/dagRuns/{run}/taskInstances/{task}/{index}/hitlDetails",
            self.answer,
            methods=["PATCH"],
        )

    def _check(self, request: Request) -> None:
        self.asked_by.append(request.headers.get("cookie", "") + request.headers.get("authorization", ""))
        if self.refuses == 500:
            raise RuntimeError("broken")
        if self.refuses:
            raise HTTPException(self.refuses, {"reason": "not for <you>"} if self.refuses == 400 else "not for you")

    async def trigger(self, request: Request, dag_id: str) -> dict[str, Any]:
        self._check(request)
        body: dict[str, Any] = await request.json()
        if body["dag_run_id"] in self.runs:
            raise HTTPException(409, "Unique constraint violation")
        self.runs[body["dag_run_id"]] = body | {"dag_id": dag_id}
        return body

    async def details(self, request: Request, dag_id: str) -> dict[str, Any]:
        self._check(request)
        assert request.query_params["response_received"] == "false"
        return {"hitl_details": [w for w in self.waiting if w["dag_id"] == dag_id], "total_entries": 1}

    async def answer(self, request: Request, dag_id: str, run: str, task: str, index: str) -> dict[str, Any]:
        self._check(request)
        self.answers.append(await request.json() | {"run": run, "task": task, "index": index, "dag_id": dag_id})
        return {}

    async def health(self) -> dict[str, Any]:
        assert not self.answers
        beat = self.beats.pop(0) if len(self.beats) > 1 else self.beats[0]
        return {"scheduler": {"latest_scheduler_heartbeat": (datetime.now(UTC) + timedelta(seconds=beat)).isoformat()}}

    def asks(self, digest: str = DIGEST, run: str = "first__2024-02-26", since: timedelta = timedelta(hours=1)) -> None:
        start = datetime.now(UTC) - since
        task = {"task_id": "approve", "dag_run_id": run, "map_index": -1, "start_date": start.isoformat()}
        self.waiting.append({"dag_id": f"{MODEL}_train", "body": f"- Evidence: `{digest}`", "task_instance": task})


@pytest.fixture(autouse=True)
def turnstile(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test does is not counted in another."""
    monkeypatch.setattr(mlops_ui_actions, "TURNSTILE", mlops_ui_actions.Turnstile())


@pytest.fixture
def lake(toy_lake: Lake) -> Lake:
    """Nights up to 2024-02-26 with features, the last with a warning."""
    nights = Interval(NIGHT - 45 * ONE_DAY, NIGHT + ONE_DAY)  # as many as a training needs, and one more
    toy.publish_valid(toy_lake, nights.widened(5))
    toy.publish_features(toy_lake, nights)
    said: dict[str, Any] = {"status": "warning", "value": 7.0, "threshold": 9.0, "reason": "too few rows"}
    publish_metrics(
        toy_lake, MODEL, "drift", [Metric(MODEL, NIGHT, NIGHT, "volume", **said)], Interval.of(NIGHT), run_id="t"
    )
    return toy_lake


@pytest.fixture
def airflow() -> PlayedAirflow:
    return PlayedAirflow()


def do(
    lake: Lake, airflow: PlayedAirflow | None, name: str, role: Any = "admin", *, own_form: Any = True, **form: str
) -> str | Page:
    context = Context(lake, Viewer("anna", role), datetime.now(UTC), (MODEL,), ("rides",), base="/nightfleet")
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": f"/nightfleet/actions/{name}",
        "scheme": "http",
        "server": ("airflow", 80),
    }
    scope |= {
        "query_string": b"",
        "client": ("127.0.0.1", 1),
        "headers": [(b"cookie", b"_token=anna's"), (b"host", b"airflow")],
        "root_path": "/nightfleet",
    }
    scope["nightfleet.airflow"] = airflow.app if airflow else None
    return asyncio.run(perform(Request(scope), context, name, form, own_form=own_form))


def last(lake: Lake) -> Action:
    return read_actions(lake)[0]


FORMS: Mapping[str, dict[str, str]] = {
    "acknowledge": {"fingerprint": FINGERPRINT, "reason": "known"},
    "silence": {"fingerprint": FINGERPRINT, "reason": "known", "until": "2024-03-05"},
    "unsilence": {"fingerprint": FINGERPRINT, "reason": "back"},
    "request_retraining": {"model": MODEL, "reason": "the depot moved"},
    "approve": {"model": MODEL, "reason": "better", "evidence_digest": DIGEST},
    "reject": {"model": MODEL, "reason": "too bold", "evidence_digest": DIGEST},
    "rollback": {"model": MODEL, "reason": "complaints"},
    "rollout_advance": {"model": MODEL, "reason": "no harm"},
    "rollout_hold": {"model": MODEL, "reason": "a holiday"},
    "rollout_finish": {"model": MODEL, "reason": "no harm"},
    "rollout_rollback": {"model": MODEL, "reason": "complaints"},
    "reproduce": {"id": "abc"},
}
MOVES = ("rollout_advance", "rollout_hold", "rollout_finish", "rollout_rollback")


# ---- who may -----------------------------------------------------------------------------------------------------


def test_each_action_has_a_role_and_a_form_here() -> None:
    assert set(ROLE_OF) == set(FORMS)
    assert {name for name, role in ROLE_OF.items() if role == "admin"} == {"approve", "reject", "rollback", *MOVES}
    assert [name for name, role in ROLE_OF.items() if role == "viewer"] == ["reproduce"], (
        "all that a viewer may do changes nothing"
    )


@pytest.mark.parametrize(
    ("name", "role"), [(n, r) for n, r in product(ROLE_OF, ROLES) if ROLES.index(r) < ROLES.index(ROLE_OF[n])]
)
def test_a_lesser_role_is_refused_and_that_is_on_record(
    lake: Lake, airflow: PlayedAirflow, name: str, role: Role
) -> None:
    airflow.asks()
    with pytest.raises(NotAllowed, match=f"needs role {ROLE_OF[name]}; you have {role}"):
        do(lake, airflow, name, role, **FORMS[name])
    assert (last(lake).by, last(lake).role, last(lake).action) == ("anna", role, name)
    assert last(lake).outcome.startswith("refused: NotAllowed")
    assert (airflow.asked_by, airflow.answers, airflow.runs) == ([], [], {})
    assert [a.acknowledged for a in open_alarms(lake, [MODEL])] == [None]


@pytest.mark.parametrize("name", sorted(ROLE_OF))
def test_a_foreign_form_does_nothing(lake: Lake, airflow: PlayedAirflow, name: str) -> None:
    with pytest.raises(NotAllowed, match="was not issued to you by these pages"):
        do(lake, airflow, name, own_form=False, **FORMS[name])
    assert airflow.asked_by == []
    assert last(lake).outcome.startswith("refused")


def test_a_person_may_send_thirty_forms_a_minute_and_others_are_not_held_up() -> None:
    turnstile, now = mlops_ui_actions.Turnstile(), datetime(2024, 3, 2, tzinfo=UTC)
    for second in range(30):
        turnstile.enter("anna", now + timedelta(seconds=second))
    with pytest.raises(mlops_ui_actions.TooManyActions, match="30 forms within a minute"):
        turnstile.enter("anna", now + timedelta(seconds=59))
    turnstile.enter("bert", now + timedelta(seconds=59))
    turnstile.enter("anna", now + timedelta(seconds=60))


def test_refusals_beyond_the_limits_leave_nothing_on_the_disk(
    lake: Lake, airflow: PlayedAirflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlops_ui_actions, "_MOST_REFUSALS_A_DAY", 2)
    monkeypatch.setattr(mlops_ui_actions, "_MOST_A_MINUTE", 4)
    said = []
    for _ in range(6):
        with pytest.raises(NightfleetError) as refused:
            do(lake, airflow, "rollback", "viewer", **FORMS["rollback"])
        said.append(type(refused.value).__name__)
    assert said == ["NotAllowed"] * 4 + ["TooManyActions"] * 2
    assert len(read_actions(lake)) == 2


def test_no_such_action(lake: Lake) -> None:
    with pytest.raises(NotFound, match="There are: acknowledge"):
        do(lake, None, "<script>")


@pytest.mark.parametrize("name", ["acknowledge", "silence", "unsilence"])
def test_an_alarm_of_what_one_may_not_see_is_not_there(lake: Lake, name: str) -> None:
    with pytest.raises(NotFound, match="'secret_model'"):
        do(lake, None, name, **FORMS[name] | {"fingerprint": "secret_model/volume//"})


@pytest.mark.parametrize("name", ["request_retraining", "approve", "reject", "rollback", *MOVES])
def test_a_model_one_may_not_see_is_not_there(lake: Lake, airflow: PlayedAirflow, name: str) -> None:
    with pytest.raises(NotFound):
        do(lake, airflow, name, **FORMS[name] | {"model": "secret_model"})
    assert airflow.asked_by == []


# ---- alarms ------------------------------------------------------------------------------------------------------


def test_acknowledged_with_name_time_and_reason_and_once(lake: Lake) -> None:
    said = do(lake, None, "acknowledge", "operator", **FORMS["acknowledge"])
    assert said == f"Acknowledged: volume of {MODEL}. It holds until the alarm clears."
    [alarm] = open_alarms(lake, [MODEL])
    assert alarm.acknowledged is not None
    assert (alarm.acknowledged.by, alarm.acknowledged.role, alarm.acknowledged.reason) == ("anna", "operator", "known")
    assert "already" in str(do(lake, None, "acknowledge", "operator", **FORMS["acknowledge"]))
    assert len(read_actions(lake)) == 1


def test_silenced_until_a_date_and_back(lake: Lake) -> None:
    assert "until 2024-03-05" in str(do(lake, None, "silence", "operator", **FORMS["silence"]))
    assert open_alarms(lake, [MODEL])[0].silenced_until == date(2024, 3, 5)
    assert "already" in str(do(lake, None, "silence", "operator", **FORMS["silence"]))
    assert "No longer silenced" in str(do(lake, None, "unsilence", "operator", **FORMS["unsilence"]))
    assert open_alarms(lake, [MODEL])[0].silenced_until is None
    assert [a.action for a in read_actions(lake)] == ["unsilence", "silence"]


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("acknowledge", {"reason": "  "}, BadForm),
        ("acknowledge", {"reason": "x" * 401}, BadForm),
        ("acknowledge", {"fingerprint": f"{MODEL}/volume/other/"}, AlarmNotOpen),
        ("acknowledge", {"fingerprint": "<script>"}, AlarmNotOpen),
        ("acknowledge", {"fingerprint": ""}, BadForm),
        ("silence", {"until": ""}, BadForm),
        ("silence", {"until": "next week"}, BadForm),
        ("silence", {"until": "2024-02-01"}, BadSilence),
        ("unsilence", {}, AlarmNotOpen),
    ],
)
def test_what_an_alarm_s_form_gets_wrong(
    lake: Lake, name: str, change: dict[str, str], error: type[NightfleetError]
) -> None:
    with pytest.raises(error):
        do(lake, None, name, "operator", **FORMS[name] | change)
    assert last(lake).outcome.startswith(f"refused: {error.__name__}")


# ---- retraining --------------------------------------------------------------------------------------------------


def test_a_retraining_is_asked_of_airflow_as_the_person(lake: Lake, airflow: PlayedAirflow) -> None:
    said = str(do(lake, airflow, "request_retraining", "operator", **FORMS["request_retraining"]))
    [(run_id, run)] = airflow.runs.items()
    assert run["dag_id"] == f"{MODEL}_train"
    assert (run["partition_key"], run["logical_date"], run["conf"]) == (
        "2024-02-26",
        None,
        {"reason": "the depot moved"},
    ), "as of the newest night"
    assert airflow.asked_by == ["_token=anna's"]
    assert said == f"Requested a training of {MODEL} as of 2024-02-26. Its run is {run_id}."
    assert (last(lake).subject, last(lake).reason, last(lake).outcome) == (MODEL, "the depot moved", "done")
    assert last(lake).details == {"as_of": "2024-02-26", "dag_run_id": run_id}


def test_a_night_has_one_training_at_a_time_whoever_asks_and_why(lake: Lake, airflow: PlayedAirflow) -> None:
    asked = FORMS["request_retraining"]
    do(lake, airflow, "request_retraining", **asked)
    for again in (asked, asked | {"reason": "another"}):
        said = str(do(lake, airflow, "request_retraining", **again))
        assert said == f"A training of {MODEL} as of {NIGHT} is already requested. Its run is asked__{NIGHT}__1."
    assert len(airflow.runs) == 1
    again_on_record = ["nothing done: it is already requested"] * 2
    assert [action.outcome for action in read_actions(lake)] == [*again_on_record, "done"]
    ran(lake, MODEL, "train", NIGHT, AT, state="running")
    assert "is already going on" in str(do(lake, airflow, "request_retraining", **asked))
    ran(lake, MODEL, "train", NIGHT, AT, state="failed")
    assert f"Its run is asked__{NIGHT}__2." in str(do(lake, airflow, "request_retraining", **asked))
    do(lake, airflow, "request_retraining", **asked | {"as_of": "2024-02-25"})
    assert len(airflow.runs) == 3


def test_what_was_asked_for_is_listed_at_once_with_its_run(lake: Lake, airflow: PlayedAirflow) -> None:
    do(lake, airflow, "request_retraining", **FORMS["request_retraining"])
    context = Context(lake, Viewer("anna", "operator"), AT, (MODEL,), ())
    [row] = retraining.page(context, query={}).table("requests").rows
    assert (row["by"], row["why"], row["state"]) == ("anna", "the depot moved", "asked")
    assert row["run_url"] == f"/dags/{MODEL}_train/runs/asked__{NIGHT}__1"
    request_retraining(lake, MODEL, NIGHT, by="anna", reason="the depot moved", run_id="r")
    assert len(retraining.page(context, query={}).table("requests").rows) == 1


def test_what_cannot_be_trained_is_refused_before_a_run_starts(lake: Lake, airflow: PlayedAirflow) -> None:
    early = str(NIGHT - 20 * ONE_DAY)
    with pytest.raises(NotEnoughHistory, match=r"needs the .* data dates"):
        do(lake, airflow, "request_retraining", **FORMS["request_retraining"] | {"as_of": early})
    assert airflow.runs == {}
    assert last(lake).outcome.startswith("refused: NotEnoughHistory")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"as_of": "2024-02-27"}, "newest night with its features is 2024-02-26"),
        ({"as_of": "x"}, "needs a date"),
        ({"reason": ""}, "missing"),
    ],
)
def test_what_the_form_gets_wrong_reaches_no_airflow(
    lake: Lake, airflow: PlayedAirflow, change: dict[str, str], words: str
) -> None:
    with pytest.raises(BadForm, match=words):
        do(lake, airflow, "request_retraining", **FORMS["request_retraining"] | change)
    assert airflow.runs == {}


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, NotAllowed),
        (403, NotAllowed),
        (400, AirflowRefused),
        (404, AirflowRefused),
        (422, AirflowRefused),
        (500, AirflowRefused),
    ],
)
def test_what_airflow_refuses_is_told_and_kept(
    lake: Lake, airflow: PlayedAirflow, status: int, error: type[NightfleetError]
) -> None:
    airflow.refuses = status
    with pytest.raises(error, match=r"Airflow .* start a training .*Nothing was done\."):
        do(lake, airflow, "request_retraining", **FORMS["request_retraining"])
    assert last(lake).outcome.startswith(f"refused: {error.__name__}: Airflow")


def test_without_an_airflow_it_says_so(lake: Lake) -> None:
    with pytest.raises(AirflowRefused, match="run without an Airflow"):
        do(lake, None, "request_retraining", **FORMS["request_retraining"])


def test_a_hostile_reason_is_kept_as_text(lake: Lake, airflow: PlayedAirflow) -> None:
    do(lake, airflow, "request_retraining", **FORMS["request_retraining"] | {"reason": HOSTILE})
    kept = HOSTILE.replace("\0", "\ufffd").replace("\ud800", "?")
    assert last(lake).reason == kept
    assert [run["conf"]["reason"] for run in airflow.runs.values()] == [kept]


# ---- approval ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "option"), [("approve", "Approve"), ("reject", "Reject")])
def test_an_answer_goes_to_the_question_with_that_evidence(
    lake: Lake, airflow: PlayedAirflow, name: str, option: str
) -> None:
    airflow.asks("e" * 64, run="another")
    airflow.asks()
    do(lake, airflow, name, **FORMS[name])
    [answer] = airflow.answers
    assert (answer["run"], answer["task"], answer["chosen_options"]) == ("first__2024-02-26", "approve", [option])
    assert answer["params_input"] == {"reason": FORMS[name]["reason"]}
    assert last(lake).details == {"evidence_digest": DIGEST, "dag_run_id": "first__2024-02-26"}


def test_an_answer_waits_until_the_scheduler_knows_of_the_question(lake: Lake, airflow: PlayedAirflow) -> None:
    """Airflow drops an answer that comes before."""
    airflow.asks(since=timedelta(seconds=2))
    airflow.beats = [-4.0, 0.5, 3.0]
    do(lake, airflow, "approve", **FORMS["approve"])
    assert (airflow.beats, len(airflow.answers)) == ([3.0], 1)


def test_an_answer_is_refused_where_no_scheduler_will_hear_it(
    lake: Lake, airflow: PlayedAirflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlops_ui_actions, "_LONGEST_UNNOTED", timedelta(seconds=1))
    airflow.asks(since=timedelta(seconds=2))
    airflow.beats = [-40.0]
    with pytest.raises(AirflowRefused, match="has not noted in 1 s"):
        do(lake, airflow, "approve", **FORMS["approve"])
    assert airflow.answers == []


@pytest.mark.parametrize("digest", ["e" * 64, "d", "d" * 63, ""])
def test_other_evidence_than_that_on_the_screen_is_not_answered(
    lake: Lake, airflow: PlayedAirflow, digest: str
) -> None:
    airflow.asks()
    with pytest.raises((NothingWaits, BadForm)):
        do(lake, airflow, "approve", **FORMS["approve"] | {"evidence_digest": digest})
    assert airflow.answers == []
    assert last(lake).outcome.startswith("refused")


# ---- rollback ----------------------------------------------------------------------------------------------------


def promote(lake: Lake, *versions: int) -> None:
    for number, version in enumerate(versions):
        ledger = lake.ledger(MODEL)
        day = NIGHT + timedelta(days=number)
        ledger.append(
            Promotion(MODEL, version, NIGHT, day, datetime.now(UTC), "run", f"a{version}", f"e{version}"),
            seen=ledger.read(),
        )


def test_a_rollback_is_a_run_of_its_dag(lake: Lake, airflow: PlayedAirflow) -> None:
    promote(lake, 1, 2)
    do(lake, airflow, "rollback", **FORMS["rollback"])
    assert "already" in str(do(lake, airflow, "rollback", **FORMS["rollback"]))
    [run] = airflow.runs.values()
    assert (run["dag_id"], run["partition_key"]) == ("rollback", None)
    assert run["conf"] == {"model": MODEL, "reason": "complaints", "version": None}
    assert len(read_actions(lake)) == 1
    promote(lake, 3)
    do(lake, airflow, "rollback", **FORMS["rollback"])
    assert len(airflow.runs) == 2, "after another promotion the same words are another request"


@pytest.mark.parametrize("version", ["2", "9", "-1", "1.5", "one", "٣", "<script>"])
def test_only_to_a_former_champion(lake: Lake, airflow: PlayedAirflow, version: str) -> None:
    promote(lake, 1, 2)
    with pytest.raises(BadForm):
        do(lake, airflow, "rollback", **FORMS["rollback"] | {"version": version})
    assert airflow.runs == {}


def test_only_an_approver_where_they_are_named(lake: Lake, airflow: PlayedAirflow) -> None:
    promote(lake, 1, 2)
    named = Lake(lake.settings.model_copy(update={"approvers": ("7:berta",)}), lake.catalog)
    with pytest.raises(NotAllowed, match="one of the approvers"):
        do(named, airflow, "rollback", **FORMS["rollback"])


# ---- rollout -----------------------------------------------------------------------------------------------------


def rollout_line(lake: Lake, kind: Kind = "started", **fields: Any) -> None:
    ledger = lake.rollouts(MODEL)
    settings = {"strategy": "canary", "salt": "s", "unit": [], "steps": [{"share": 0.5}, {"share": 1.0}]}
    told = {"settings": json.dumps(settings | fields.pop("settings", {})) if kind == "started" else ""} | fields
    line = RolloutLine(MODEL, 2, kind, NIGHT, NIGHT + ONE_DAY, datetime.now(UTC), "run", "a2", "e2", "better", **told)
    ledger.append(line, seen=ledger.read())


@pytest.mark.parametrize(
    ("name", "step", "says"),
    [
        ("rollout_advance", 1, "goes to step 2 of 2, from the next night on."),
        ("rollout_hold", None, "stays in step 1 of 2 until a person goes on; it may still be rolled back."),
        ("rollout_finish", None, "ends, and the version is champion from the next night on."),
        ("rollout_rollback", None, "ends, and the champion serves everything."),
    ],
)
def test_a_move_is_a_run_of_the_rollout_s_dag_and_says_what_was_meant(
    lake: Lake, airflow: PlayedAirflow, name: str, step: int | None, says: str
) -> None:
    rollout_line(lake)
    said = str(do(lake, airflow, name, **FORMS[name]))
    [(run_id, run)] = airflow.runs.items()
    assert said == f"The rollout of {MODEL} version 2 {says} Its run is {run_id}."
    assert (run["dag_id"], run["partition_key"]) == ("rollout", None)
    move = {"action": name.removeprefix("rollout_"), "version": 2, "step": step}
    assert run["conf"] == {**FORMS[name], **move}
    assert (last(lake).action, last(lake).subject, last(lake).outcome) == (name, MODEL, "done")
    assert last(lake).details == {"version": 2, "step": 1, "dag_run_id": run_id}
    assert "already" in str(do(lake, airflow, name, **FORMS[name]))
    assert (len(airflow.runs), len(read_actions(lake))) == (1, 1)
    rollout_line(lake, "held")
    do(lake, airflow, name, **FORMS[name])
    assert len(airflow.runs) == 2, "after another line of the ledger the same words are another request"


def test_nothing_moves_where_no_rollout_goes_on(lake: Lake, airflow: PlayedAirflow) -> None:
    for ended in (False, True):
        for name in MOVES:
            with pytest.raises(NothingWaits, match="has no rollout that goes on"):
                do(lake, airflow, name, **FORMS[name])
            assert (last(lake).action, last(lake).outcome[:22]) == (name, "refused: NothingWaits:")
        if not ended:
            rollout_line(lake)
            rollout_line(lake, "rolled_back")
    assert airflow.runs == {}


def test_a_page_that_shows_another_step_moves_nothing(lake: Lake, airflow: PlayedAirflow) -> None:
    rollout_line(lake)
    shown = FORMS["rollout_advance"] | {"version": "2", "step": "1"}
    rollout_line(lake, "advanced", step=1)
    with pytest.raises(NothingWaits, match="has moved on: version 2 is in step 2 of 2 now"):
        do(lake, airflow, "rollout_advance", **shown)
    with pytest.raises(NothingWaits, match="has moved on"):
        do(lake, airflow, "rollout_rollback", **FORMS["rollout_rollback"] | {"version": "1"})
    with pytest.raises(BadForm, match="is in its last step"):
        do(lake, airflow, "rollout_advance", **FORMS["rollout_advance"])
    with pytest.raises(BadForm, match="the step is 'two', needs a number"):
        do(lake, airflow, "rollout_advance", **shown | {"step": "two"})
    assert airflow.runs == {}


def test_who_runs_along_without_a_champion_does_not_become_one(lake: Lake, airflow: PlayedAirflow) -> None:
    rollout_line(lake, settings={"alone": True, "steps": [{"share": 0.0}]})
    with pytest.raises(BadForm, match="because the gate refused it"):
        do(lake, airflow, "rollout_finish", **FORMS["rollout_finish"])
    assert airflow.runs == {}


def test_only_an_approver_moves_a_rollout_where_they_are_named(lake: Lake, airflow: PlayedAirflow) -> None:
    rollout_line(lake)
    named = Lake(lake.settings.model_copy(update={"approvers": ("7:berta",)}), lake.catalog)
    for name in MOVES:
        with pytest.raises(NotAllowed, match=r"rollout needs one of the approvers \(berta\); you are anna"):
            do(named, airflow, name, **FORMS[name])
    assert airflow.runs == {}


def test_a_rollback_ends_a_rollout_though_there_is_no_former_champion(lake: Lake, airflow: PlayedAirflow) -> None:
    promote(lake, 1)
    rollout_line(lake)
    said = str(do(lake, airflow, "rollback", **FORMS["rollback"]))
    assert said.startswith(f"Rolling {MODEL} back to the champion: the rollout of version 2 ends")
    [run] = airflow.runs.values()
    assert run["dag_id"] == "rollback"
    with pytest.raises(BadForm, match="cannot be rolled back to version 7"):
        do(lake, airflow, "rollback", **FORMS["rollback"] | {"version": "7"})


# ---- the record --------------------------------------------------------------------------------------------------


def test_what_breaks_is_on_record_too(lake: Lake, airflow: PlayedAirflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_ui_actions.newest_nights", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        do(lake, airflow, "request_retraining", **FORMS["request_retraining"])
    assert last(lake).outcome == "failed: ZeroDivisionError"


def test_a_long_and_hostile_form_is_cut_not_refused_by_the_record(lake: Lake) -> None:
    with pytest.raises(NightfleetError):
        do(
            lake,
            None,
            "acknowledge",
            "operator",
            fingerprint="x" * 20_000,
            reason=HOSTILE * 500,
            **{f"f{i}": "y" * 5_000 for i in range(50)},
        )
    assert len(last(lake).reason) <= 4_000
    assert len(json.dumps(last(lake).details)) < 10_000

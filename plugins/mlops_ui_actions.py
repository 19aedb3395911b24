"""What the forms of the pages do: each action with the role it needs, recorded whatever came of it.

What Airflow has to do (a training, an answer to its question, a rollback, a move of a rollout) is asked of its own
REST API, in this process, as the person who acts: Airflow checks and logs it as if it had been done in its own pages,
and what it refuses is told in words.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import structlog
from fastapi import Request

from config.calendar import Interval
from config.errors import NightfleetError
from features.training_set import check_trainable
from lake.lake import Lake
from lake.publication_queries import newest_nights
from monitoring.alerting.actions import REFUSED, Action, record_action
from monitoring.alerting.alarms import (
    AlarmNotOpen,
    acknowledge,
    alarm_names,
    fingerprint_parts,
    open_alarm,
    silence,
    unsilence,
)
from monitoring.alerting.runs import ENDED, read_runs
from monitoring.pages.page import BadAddress, Context, NotAllowed, NotFound, Page, Role, read_date, shortened

LONGEST_REASON = 400
_LONGEST_FIELD = 1_000
_LONGEST_REFUSAL = 300
_MOST_A_MINUTE, _MOST_REFUSALS_A_DAY = 30, 200
_DOING = {
    "acknowledge": "Acknowledging an alarm",
    "silence": "Silencing an alarm",
    "unsilence": "Ending a silence",
    "approve": "Approving a promotion",
    "reject": "Rejecting a promotion",
    "rollback": "Rolling back",
    "rollout_advance": "Advancing a rollout",
    "rollout_hold": "Holding a rollout",
    "rollout_finish": "Finishing a rollout",
    "rollout_rollback": "Rolling back a rollout",
    "request_retraining": "Requesting a retraining",
    "reproduce": "Reproducing a prediction",
}
_APPROVE, _REJECT = "Approve", "Reject"  # as `training.registry.approval` knows them
# How long after its start a task is surely known to wait; from its wish to wait to the end of its process; how long its
# scheduler, which says every 5 s that it lives, is waited for.
_LONG_NOTED, _LONGEST_PARKING, _LONGEST_UNNOTED = timedelta(minutes=5), timedelta(seconds=1), timedelta(seconds=30)

_log = structlog.get_logger("nightfleet.pages")


class BadForm(NightfleetError):
    """A field of a form is missing, or is not what it has to be."""


class NothingWaits(NightfleetError):
    """An answer to a question that nobody asks, perhaps not any more."""


class TooManyActions(NightfleetError):
    """One person sends forms faster than anybody reads their answers."""


class AirflowRefused(NightfleetError):
    """Airflow did not do what it was asked."""


@dataclass(frozen=True)
class Outcome:
    """What an action did.

    Attributes:
        said: the sentence for the person, or a page to show.
        action: what is still to be recorded; None: it is on record.
    """

    said: str | Page
    action: Action | None = None


# ---- what is asked ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """One action that a person asks for: who, with what form."""

    request: Request
    context: Context
    name: str
    form: Mapping[str, str]

    def text(self, field_name: str, label: str, longest: int = LONGEST_REASON, *, needed: bool = True) -> str:
        """A field without spaces at its ends and without what no database takes.

        Raises:
            BadForm: it is missing though needed, or too long.
        """
        value = self.form.get(field_name, "").encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd").strip()
        if not value and needed:
            raise BadForm(f"{label} is missing. Nothing was done. Say it in 1 to {longest} characters.")
        if len(value) > longest:
            raise BadForm(
                f"{label} has {len(value):,} characters, at most {longest} fit. Nothing was done. Shorten it."
            )
        return value

    def reason(self) -> str:
        """Why; every action that changes something needs it."""
        return self.text("reason", "the reason")

    def model(self) -> str:
        """A model this person may see."""
        return self.context.model(self.text("model", "the model", _LONGEST_FIELD)).name

    def day(self, field_name: str, label: str) -> date | None:
        """A date, None where it was left empty."""
        try:
            return read_date(self.text(field_name, label, _LONGEST_FIELD, needed=False), label)
        except BadAddress as error:
            raise BadForm(f"{error.args[0]} Nothing was done.") from error

    def number(self, field_name: str, label: str, otherwise: str) -> int | None:
        """A whole number from 1 on, None where it was left empty.

        Args:
            otherwise: what is meant then.
        Raises:
            BadForm: it is no such number.
        """
        text = self.text(field_name, label, 20, needed=False)
        if text and not (text.isascii() and text.isdigit() and int(text) >= 1):
            raise BadForm(
                f"{label} is {shortened(text)}, needs a number, or nothing for {otherwise}. Nothing was done."
            )
        return int(text) if text else None

    def action(self, **told: Any) -> Action:
        """This action for the audit table."""
        viewer = self.context.viewer
        return Action(
            at_utc=self.context.now.astimezone(UTC), by=viewer.name, role=viewer.role, action=self.name, **told
        )

    def identity(self, *parts: object) -> str:
        """The same for the same action of the same person: what is sent twice is done once."""
        text = "\x1f".join(str(part) for part in (self.name, self.context.viewer.name, *parts))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _attempt(asked: Asked, outcome: str) -> Action:
    """An action that came to nothing, as far as its form can be understood."""
    form = {name: value for name, value in asked.form.items() if name not in {"csrf_token", "back"}}
    told: dict[str, Any] = {"subject": form.get("model", ""), "reason": form.get("reason", ""), "outcome": outcome}
    with suppress(AlarmNotOpen):
        told |= alarm_names(fingerprint_parts(form.get("fingerprint", "")))
    cut = {name[:100]: value[:200] for name, value in list(form.items())[:20] if name not in {"model", "reason"}}
    return asked.action(**told, details={"form": cut})


class Turnstile:
    """How often one person may act, counted in this process.

    Whoever is refused is recorded, and a record costs disk: of a person's refusals of one day only the first ones are.
    """

    def __init__(self) -> None:
        self._acted: dict[str, deque[datetime]] = {}
        self._refused: dict[tuple[str, date], int] = {}

    def enter(self, person: str, now: datetime) -> None:
        """Count an attempt.

        Raises:
            TooManyActions: it is more than the 30th within a minute; it is not counted.
        """
        acted = self._acted.setdefault(person, deque())
        while acted and now - acted[0] >= timedelta(minutes=1):
            acted.popleft()
        if len(acted) >= _MOST_A_MINUTE:
            raise TooManyActions(
                f"you have sent {len(acted)} forms within a minute, at most {_MOST_A_MINUTE} are taken. Nothing was "
                "done, and this is not on record. Wait a minute, and send it again."
            )
        acted.append(now)

    def records(self, person: str, now: datetime) -> bool:
        """Whether one more refusal of that person is kept."""
        self._refused = {key: count for key, count in self._refused.items() if key[1] == now.date()}
        count = self._refused[person, now.date()] = self._refused.get((person, now.date()), 0) + 1
        return count <= _MOST_REFUSALS_A_DAY


TURNSTILE = Turnstile()


async def perform(
    request: Request, context: Context, action: str, form: Mapping[str, str], *, own_form: bool
) -> str | Page:
    """Do it; returns the sentence that says what was done, or a page to show. Refused or done, it is in the audit
    table.

    Raises:
        NotFound: there is no such action, or not what it is about.
        NotAllowed: the role does not suffice, the form is not one of ours, or Airflow does not allow it.
        TooManyActions: the person sends more than 30 forms a minute.
        NightfleetError: the error's text says what is wrong, and that nothing was done.
    """
    if action not in ROLE_OF:
        raise NotFound(f"there is no action {shortened(action)}. There are: {', '.join(ROLE_OF)}.")
    asked = Asked(request, context, action, form)
    TURNSTILE.enter(context.viewer.name, context.now)
    try:
        if not own_form:
            raise NotAllowed(
                "this form was not issued to you by these pages, or it is older than twelve hours. Nothing was done. "
                "Open the page again and submit it from there."
            )
        if not context.viewer.may(ROLE_OF[action]):
            needed, has = ROLE_OF[action], context.viewer.role
            raise NotAllowed(
                f"{_DOING[action]} needs role {needed}; you have {has}. Nothing was done. Ask an admin of this Airflow."
            )
        done = await _DOES[action](asked)
    except NightfleetError as refusal:
        await _keep_refusal(asked, REFUSED + " ".join(str(refusal).split()))
        raise
    except Exception as error:
        await _keep_refusal(asked, f"failed: {type(error).__name__}")
        raise
    if done.action is not None:
        await asyncio.to_thread(record_action, context.lake, done.action)
    return done.said


async def _keep_refusal(asked: Asked, outcome: str) -> None:
    viewer, attempt = asked.context.viewer, _attempt(asked, outcome)
    if TURNSTILE.records(viewer.name, asked.context.now):
        await asyncio.to_thread(record_action, asked.context.lake, attempt)
    else:
        _log.warning("refusal not recorded", by=viewer.name, action=asked.name, outcome=attempt.outcome[:200])


# ---- alarms ----------------------------------------------------------------------------------------------------


def _alarm(asked: Asked) -> str:
    """Fingerprint of an alarm on something this person may see."""
    fingerprint = asked.text("fingerprint", "the alarm", 4 * _LONGEST_FIELD)
    subject = fingerprint_parts(fingerprint).subject
    if subject not in (*asked.context.models, *asked.context.datasets):
        raise NotFound(f"there is no model or data set {shortened(subject)} that you may see. Nothing was done.")
    return fingerprint


def _words(fingerprint: str) -> str:
    subject, check, column, segment, *_ = fingerprint_parts(fingerprint)
    return f"{check} of " + " ".join(part for part in (subject, column, segment) if part)


async def _acknowledge(asked: Asked) -> Outcome:
    fingerprint, lake, viewer = _alarm(asked), asked.context.lake, asked.context.viewer

    def do() -> str:
        reason = asked.reason()
        held = open_alarm(lake, fingerprint)
        if (
            held is not None
            and held.acknowledged is not None
            and (held.acknowledged.by, held.acknowledged.reason) == (viewer.name, reason)
        ):
            return f"You have already acknowledged {_words(fingerprint)}."
        acknowledge(lake, fingerprint, by=viewer.name, role=viewer.role, reason=reason)
        return f"Acknowledged: {_words(fingerprint)}. It holds until the alarm clears."

    return Outcome(await asyncio.to_thread(do))


async def _silence(asked: Asked) -> Outcome:
    fingerprint, lake, viewer = _alarm(asked), asked.context.lake, asked.context.viewer

    def do() -> str:
        until, reason = asked.day("until", "the last date of the silence"), asked.reason()
        if until is None:
            raise BadForm("the last date of the silence is missing. Nothing was done. Give a date as 2013-07-01.")
        held = open_alarm(lake, fingerprint)
        if held is not None and held.silenced_until == until:
            return f"{_words(fingerprint)} is already silenced until {until}."
        silence(lake, fingerprint, until=until, by=viewer.name, role=viewer.role, reason=reason)
        return f"Silenced until {until}: {_words(fingerprint)}. It stays on the pages; nobody is notified."

    return Outcome(await asyncio.to_thread(do))


async def _unsilence(asked: Asked) -> Outcome:
    fingerprint, viewer = _alarm(asked), asked.context.viewer
    told: dict[str, Any] = {"by": viewer.name, "role": viewer.role, "reason": asked.reason()}
    await asyncio.to_thread(lambda: unsilence(asked.context.lake, fingerprint, **told))
    return Outcome(f"No longer silenced: {_words(fingerprint)}.")


# ---- Airflow ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answered:
    """What Airflow answered."""

    status: int
    document: Any = field(default=None)

    def refused(self, what: str) -> NightfleetError:
        """Its refusal in words."""
        said = self.document.get("detail", self.document) if isinstance(self.document, dict) else self.document
        text = " ".join(str(said).split())[:_LONGEST_REFUSAL].rstrip(".")
        if self.status in (401, 403):
            return NotAllowed(f"Airflow does not let you {what}: {text}. Nothing was done.")
        return AirflowRefused(f"Airflow did not {what} (status {self.status}): {text}. Nothing was done.")


async def _airflow(
    asked: Asked,
    method: str,
    path: str,
    *,
    json: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
) -> Answered:
    """Ask the Airflow these pages are mounted in, with the person's own login. Only from the event loop: it is the one
    that answers.
    """
    request = asked.request
    app = request.scope.get("nightfleet.airflow")
    if app is None:
        raise AirflowRefused(
            "these pages run without an Airflow that could do this. Nothing was done. Open them inside Airflow's UI."
        )
    headers = {
        name: request.headers[name]
        for name in ("authorization", "cookie", "referer", "user-agent")
        if name in request.headers
    }
    # What breaks in Airflow comes back as status 500 here, as it would over the network.
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, client=request.client or ("127.0.0.1", 0))
    async with httpx.AsyncClient(
        transport=transport, base_url=f"{request.url.scheme}://{request.url.netloc}", timeout=60
    ) as client:
        address = f"{asked.context.airflow_url}/api/v2{path}"
        response = await client.request(
            method, address, json=json, params=params, headers=headers | {"accept": "application/json"}
        )
    is_json = response.headers.get("content-type", "").startswith("application/json")
    return Answered(response.status_code, response.json() if is_json else response.text)


async def _start(
    asked: Asked, dag_id: str, run_id: str, *, key: date | None, conf: Mapping[str, Any], what: str
) -> bool:
    """Start a run; False where there is one of that id already."""
    body = {
        "dag_run_id": run_id,
        "logical_date": None,
        "partition_key": key.isoformat() if key else None,
        "conf": dict(conf),
    }
    answered = await _airflow(asked, "POST", f"/dags/{quote(dag_id, safe='')}/dagRuns", json=body)
    if answered.status == 409:
        return False
    if answered.status != 200:
        raise answered.refused(what)
    return True


async def _request_retraining(asked: Asked) -> Outcome:
    model, reason, lake = asked.model(), asked.reason(), asked.context.lake
    entry = lake.model(model)
    tables = [table.name for table in lake.feature_tables(entry).values()]
    known = await asyncio.to_thread(newest_nights, lake, tables)
    missing = next((table for table in tables if table not in known), None)
    if missing is not None:
        raise BadForm(
            f"{missing} has no night yet, so {model} cannot be trained. Nothing was done. Run the ingest DAG of "
            f"{missing.partition('/')[0]} first."
        )
    newest = min(known.values())
    as_of = asked.day("as_of", "the as-of date") or newest
    if as_of > newest:
        raise BadForm(
            f"the as-of date is {as_of}, but the newest night with its features is {newest}. Nothing was done. Give "
            "that one, or an earlier one."
        )
    await asyncio.to_thread(check_trainable, lake, model, as_of)
    going_on, ended = await asyncio.to_thread(_trainings, lake, model, as_of)
    if going_on is not None:
        return _asked_again(asked, model, as_of, going_on, "is already going on")
    # One training of a night at a time, whoever asks for it and why: the id counts those that have ended.
    run_id = f"asked__{as_of}__{ended + 1}"
    new = await _start(
        asked, f"{model}_train", run_id, key=as_of, conf={"reason": reason}, what=f"start a training of {model}"
    )
    if not new:
        return _asked_again(asked, model, as_of, run_id, "is already requested")
    action = asked.action(
        subject=model,
        reason=reason,
        details={"as_of": as_of.isoformat(), "dag_run_id": run_id},
        action_id=hashlib.sha256(f"{model}/{run_id}".encode()).hexdigest()[:16],
    )
    return Outcome(f"Requested a training of {model} as of {as_of}. Its run is {run_id}.", action)


def _asked_again(asked: Asked, model: str, as_of: date, run_id: str, why: str) -> Outcome:
    """What nothing was done for is on record, too."""
    details = {"as_of": as_of.isoformat(), "dag_run_id": run_id}
    action = asked.action(subject=model, reason=asked.reason(), details=details, outcome=f"nothing done: it {why}")
    return Outcome(f"A training of {model} as of {as_of} {why}. Its run is {run_id}.", action)


def _trainings(lake: Lake, model: str, as_of: date) -> tuple[str | None, int]:
    """The run that trains a model as of a night now, None where none does; and how many such runs have ended."""
    runs = read_runs(lake, subjects=[model], kinds=["train"], keys=Interval.of(as_of))
    going_on = next((run.run_id for run in runs if run.state not in ENDED), None)
    return going_on, sum(run.state in ENDED for run in runs)


async def _noted(asked: Asked, task: Mapping[str, Any]) -> None:
    """Until the scheduler knows that the task waits.

    Airflow runs a task again that was answered before its scheduler took note of the wait, and then drops the answer
    and asks again (3.3: `upsert_hitl_detail` clears the response of the former try). A loop of the scheduler that
    began after the task was parked ends that.

    Raises:
        AirflowRefused: no such loop in 30 s.
    """
    began = datetime.now(UTC)
    if began - datetime.fromisoformat(task["start_date"]) > _LONG_NOTED:
        return
    while datetime.now(UTC) - began < _LONGEST_UNNOTED:
        health = await _airflow(asked, "GET", "/monitor/health")
        beat = health.document["scheduler"]["latest_scheduler_heartbeat"] if health.status == 200 else None
        if beat is not None and datetime.fromisoformat(beat) > began + _LONGEST_PARKING:
            return
        await asyncio.sleep(0.2)  # between two questions
    raise AirflowRefused(
        f"Airflow's scheduler has not noted in {_LONGEST_UNNOTED.seconds} s that this promotion waits. Nothing was "
        "done. Look whether the scheduler runs, and answer again."
    )


async def _answer(asked: Asked, option: str) -> Outcome:
    model, reason = asked.model(), asked.reason()
    digest = asked.text("evidence_digest", "the evidence", 64)
    dag = f"/dags/{quote(model, safe='')}_train/dagRuns"
    open_ones = await _airflow(
        asked, "GET", f"{dag}/~/hitlDetails", params={"response_received": "false", "limit": 100}
    )
    if open_ones.status != 200:
        raise open_ones.refused(f"say which promotions of {model} wait")
    # The evidence that was on the person's screen is the one that is answered: after another judgement the question is
    # another one.
    waiting = [
        detail["task_instance"]
        for detail in open_ones.document["hitl_details"]
        if detail["task_instance"]["task_id"] == "approve"
        and len(digest) == 64
        and digest in (detail.get("body") or "")
    ]
    if not waiting:
        raise NothingWaits(
            f"no promotion of {model} on evidence {digest[:12]}… is waiting for an answer: it was answered, it lapsed, "
            "or it was judged again. Nothing was done. Reload the page."
        )
    task = waiting[-1]
    await _noted(asked, task)
    path = f"{dag}/{quote(task['dag_run_id'], safe='')}/taskInstances/approve/{task['map_index']}/hitlDetails"
    answered = await _airflow(
        asked, "PATCH", path, json={"chosen_options": [option], "params_input": {"reason": reason}}
    )
    if answered.status == 409:
        raise NothingWaits(
            f"the promotion of {model} was answered by somebody else in between. Nothing was done. Look at the page "
            "again."
        )
    if answered.status != 200:
        raise answered.refused(f"{option.lower()} the promotion of {model}")
    said = (
        "Approved. The new version scores from the next night on."
        if option == _APPROVE
        else "Rejected. The champion stays."
    )
    details = {"evidence_digest": digest, "dag_run_id": task["dag_run_id"]}
    return Outcome(f"{model}: {said}", asked.action(subject=model, reason=reason, details=details))


async def _approve(asked: Asked) -> Outcome:
    return await _answer(asked, _APPROVE)


async def _reject(asked: Asked) -> Outcome:
    return await _answer(asked, _REJECT)


async def _rollback(asked: Asked) -> Outcome:
    model, reason, lake = asked.model(), asked.reason(), asked.context.lake
    version = asked.number("version", "the version", "the previous champion")
    _check_approver(asked)
    ledger = await asyncio.to_thread(lake.ledger(model).read)
    rollouts = await asyncio.to_thread(lake.rollouts(model).read)
    running = rollouts.running if version is None else None
    former = {p.version for p in ledger.promotions} - ({ledger.newest.version} if ledger.newest else set())
    if running is None and (not former or (version is not None and version not in former)):
        known = (
            f"former champions are {', '.join(map(str, sorted(former)))}" if former else "it has had no other champion"
        )
        raise BadForm(
            f"{model} cannot be rolled back{f' to version {version}' if version else ''}: {known}. Nothing was done."
        )
    # One more line in a ledger, and the same request is another one.
    identity = asked.identity(model, len(ledger.promotions), len(rollouts.lines), version, reason)
    run_id = f"asked__{model}__{identity}"
    conf = {"model": model, "reason": reason, "version": version}
    new = await _start(asked, "rollback", run_id, key=None, conf=conf, what=f"roll {model} back")
    action = asked.action(
        subject=model, reason=reason, details={"version": version, "dag_run_id": run_id}, action_id=identity
    )
    back_to = f"version {version}" if version else "the previous champion"
    if running is not None:
        back_to = f"the champion: the rollout of version {running.version} ends"
    said = (
        f"Rolling {model} back to {back_to}, from the next night on."
        if new
        else f"You have already asked to roll {model} back, with this reason."
    )
    return Outcome(f"{said} Its run is {run_id}.", action)


def _check_approver(asked: Asked) -> None:
    """Where approvers are named, only they decide which version serves; raises NotAllowed."""
    allowed = asked.context.lake.settings.approver_names.values()
    if allowed and asked.context.viewer.name not in allowed:
        raise NotAllowed(
            f"{_DOING[asked.name]} needs one of the approvers ({', '.join(sorted(allowed))}); you are "
            f"{asked.context.viewer.name}. Nothing was done."
        )


_MOVES = {
    "advance": "goes to step {next} of {steps}, from the next night on",
    "hold": "stays in step {step} of {steps} until a person goes on; it may still be rolled back",
    "finish": "ends, and the version is champion from the next night on",
    "rollback": "ends, and the champion serves everything",
}


async def _move_rollout(asked: Asked) -> Outcome:
    """Ask the DAG `rollout` for it. The run says which version in which step was meant: where the rollout has moved on
    by the time it runs, it writes nothing.
    """
    model, reason = asked.model(), asked.reason()
    action = asked.name.removeprefix("rollout_")
    wanted = asked.number("version", "the version", "the one that takes over now")
    left = asked.number("step", "the step", "the one that holds")
    _check_approver(asked)
    rollouts = await asyncio.to_thread(asked.context.lake.rollouts(model).read)
    running = rollouts.running
    if running is None:
        raise NothingWaits(f"{model} has no rollout that goes on. Nothing was done. Reload the page.")
    version, step = running.version, running.step + 1
    if wanted not in (None, version) or left not in (None, step):
        raise NothingWaits(
            f"the rollout of {model} has moved on: version {version} is in step {step} of {len(running.steps)} now. "
            "Nothing was done. Reload the page."
        )
    if action == "advance" and step == len(running.steps):
        raise BadForm(
            f"the rollout of {model} version {version} is in its last step. Nothing was done. Finish it, or roll it "
            "back."
        )
    if action == "finish" and running.settings.get("alone"):
        raise BadForm(
            f"{model} version {version} runs along without a champion because the gate refused it. Nothing was done. "
            "Train again: the first version that passes the gate becomes champion."
        )
    # One more line in the ledger, and the same request is another one.
    identity = asked.identity(model, len(rollouts.lines), reason)
    run_id = f"asked__{model}__{identity}"
    conf = {"model": model, "action": action, "reason": reason, "version": version}
    conf["step"] = step if action == "advance" else None
    what = f"{action} the rollout of {model}"
    new = await _start(asked, "rollout", run_id, key=None, conf=conf, what=what)
    details = {"version": version, "step": step, "dag_run_id": run_id}
    done = asked.action(subject=model, reason=reason, details=details, action_id=identity)
    will = _MOVES[action].format(step=step, next=step + 1, steps=len(running.steps))
    said = (
        f"The rollout of {model} version {version} {will}."
        if new
        else f"You have already asked to {what}, with this reason."
    )
    return Outcome(f"{said} Its run is {run_id}.", done)


# ---- trace -----------------------------------------------------------------------------------------------------


async def _reproduce(asked: Asked) -> Outcome:
    from monitoring.pages import trace

    page = await asyncio.to_thread(trace.reproduce_page, asked.context, asked.form)
    about = {name: value[:200] for name, value in asked.form.items() if name in {"id", "date"}}
    return Outcome(page, asked.action(subject=asked.form.get("model", ""), details=about))


_DOES: dict[str, Callable[[Asked], Awaitable[Outcome]]] = {
    "acknowledge": _acknowledge,
    "silence": _silence,
    "unsilence": _unsilence,
    "request_retraining": _request_retraining,
    "approve": _approve,
    "reject": _reject,
    "rollback": _rollback,
    **dict.fromkeys(("rollout_advance", "rollout_hold", "rollout_finish", "rollout_rollback"), _move_rollout),
    "reproduce": _reproduce,
}
ROLE_OF: dict[str, Role] = {
    "acknowledge": "operator",
    "silence": "operator",
    "unsilence": "operator",
    "request_retraining": "operator",
    "approve": "admin",
    "reject": "admin",
    "rollback": "admin",
    "rollout_advance": "admin",
    "rollout_hold": "admin",
    "rollout_finish": "admin",
    "rollout_rollback": "admin",
    "reproduce": "viewer",
}

__all__ = ["ROLE_OF", "AirflowRefused", "BadForm", "NothingWaits", "perform"]

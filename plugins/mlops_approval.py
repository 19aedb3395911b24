"""Waits for a person's word on a promotion: Airflow's human-in-the-loop form, filled with the gate's evidence.

The task waits in state `awaiting_input`: no process, no slot of a pool, no triggerer. A restart of Airflow changes
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.configuration import conf
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import AirflowSkipException, TaskAwaitingInput
from mlops_links import ModelCardLink, RetrainingLink, page_address

from config.errors import NightfleetError
from config.settings import Settings

# As `training.registry.approval` knows them, which is too heavy to import where a DAG is parsed.
OPTIONS = ["Approve", "Reject"]


class NoApprovers(NightfleetError):
    """Nobody is named who may approve and roll back, and a task cannot ask this Airflow who its admins are."""


class NotAnApprover(NightfleetError):
    """Somebody who may not decide which version is champion tried to."""


class ClearedRun(NightfleetError):
    """What a person had asked for was asked for once more, by somebody whom the run does not name."""


def approvers(settings: Settings) -> dict[str, str]:
    """Who may approve and roll back, the recorded name by Airflow's user id: those of the setting, else the admins.

    Raises:
        NoApprovers: there are none: the setting is empty, and the auth manager keeps its admins elsewhere.
    """
    if settings.approver_names:
        return settings.approver_names
    admins: list[str] = []
    if conf.get_mandatory_value("core", "auth_manager").endswith(".SimpleAuthManager"):
        listed = (entry.partition(":") for entry in conf.getlist("core", "simple_auth_manager_users"))
        admins = [user.strip() for user, _, role in listed if role.strip().upper() == "ADMIN"]
    if not admins:
        raise NoApprovers(
            "nobody may approve or roll back: the setting `approvers` is empty, and a task cannot read the admins of "
            "this Airflow's auth manager. Nothing was done. Name them in `approvers` (NIGHTFLEET_APPROVERS)."
        )
    return {admin: admin for admin in admins}


def asked_by(dag_run: Any, doing: str) -> str:
    """Whoever triggered a run that acts in that person's name.

    Args:
        doing: what the run does, after "may not": `roll arrival_delay back`.
    Raises:
        ClearedRun: the run was cleared. NotAnApprover: they may not. NoApprovers: as `approvers`.
    """
    from config.settings import load_settings

    by = getattr(dag_run, "triggering_user_name", None) or "unknown"
    if getattr(dag_run, "clear_number", 0):
        raise ClearedRun(
            f"this run was cleared, and would {doing} in the name of {by}, whoever cleared it. Nothing was written. "
            "Trigger a new run in your own name."
        )
    allowed = sorted(approvers(load_settings()).values())
    if by not in allowed:
        raise NotAnApprover(
            f"{by} may not {doing}: those who may are {', '.join(allowed)}. Nothing was written. Ask one of them to "
            "trigger this."
        )
    return by


class PromotionApproval(HITLOperator):  # type: ignore[misc]  # airflow ships no types for it
    """Green only when a person approved, with a reason, the evidence of this run's decision.

    Skipped where there is nothing to ask. Failed, with the sentence that says so, when it was rejected, when nobody
    answered in time, and when an answer had no reason. Cleared, it asks again.
    """

    template_fields: Sequence[str] = ("subject", "body", "decision")
    operator_extra_links = (ModelCardLink(), RetrainingLink())

    def __init__(self, *, model_name: str, decision: Any, response_timeout: timedelta, **kwargs: Any) -> None:
        # What is asked is known when the task runs; until then the form is empty.
        # An answer that comes before the scheduler knows that the task waits makes Airflow try again, and ask again: at
        # once, as a person sits there, however often the task was cleared before.
        kwargs |= {"retry_delay": timedelta(seconds=1), "retry_exponential_backoff": False}
        super().__init__(subject=f"Promote {model_name}?", options=OPTIONS, response_timeout=response_timeout, **kwargs)
        self.model_name = model_name
        self.decision = decision

    def execute(self, context: Any) -> Any:
        """Ask, then wait."""
        from lake.lake import open_lake
        from monitoring.alerting.runs import Waiting, record_waiting
        from monitoring.pages.approval_form import approval_form
        from training.registry.approval import answered_before

        if self.decision["verdict"] != "promote":
            raise AirflowSkipException(
                f"nothing to approve, verdict {self.decision['verdict']}: " + " ".join(self.decision["reasons"])
            )
        if context["params"]["dry_run"]:
            raise AirflowSkipException(
                "nothing to approve: this is a dry run. The gate would have passed the challenger."
            )
        lake, asking = open_lake(), {"run_id": context["dag_run"].run_id, "asking": _asking(context)}
        before = answered_before(lake, self.model_name, self.decision, **asking)
        if before is not None:
            return before  # the task was killed after it had taken the answer: nobody is asked twice
        # Nobody else's answer is taken, whatever Airflow's roles let them do.
        self.assigned_users = [{"id": user, "name": name} for user, name in approvers(lake.settings).items()]
        # Our own page with the card's file, as `explain` wrote it: MLflow's copy may be written by others.
        card = page_address("embedded", self.model_name, "model_cards", f"{self.decision['version']}.html")
        now = datetime.now(UTC)
        form = approval_form(lake, self.model_name, self.decision, model_card=card, asked_at=now)
        self.subject, self.body = form.subject, form.body
        # Here and not in the DAG: a parameter of the task would take the run's own `reason`, why it was trained, for
        # the answer's.
        self.params = ParamsDict(
            {"reason": Param("", type="string", minLength=1, maxLength=1000, description="Why; kept with your name.")}
        )
        for link in self.operator_extra_links:
            # Airflow keeps links when a task ends; who is asked needs them while it waits.
            context["ti"].xcom_push(key=link.xcom_key, value=link.get_link(self, ti_key=context["ti"]))
        until = now + lake.model(self.model_name).approval_timeout
        record_waiting(
            lake,
            Waiting(
                self.model_name,
                dag_id=context["dag_run"].dag_id,
                title=form.subject,
                asked_at=now,
                until=until,
                **asking,
            ),
        )
        try:
            return super().execute(context)
        except TaskAwaitingInput as parked:
            # What was shown goes with the answer: the decision may be another one by then.
            shown = {"shown": form.evidence_digest}
            raise TaskAwaitingInput(method_name="execute_complete", kwargs=shown, timeout=parked.timeout) from None

    def execute_complete(self, context: Any, event: Mapping[str, Any], shown: str = "") -> Any:
        """Record the answer, and end as it says."""
        from lake.lake import open_lake
        from monitoring.alerting.runs import end_waiting
        from training.registry.approval import answered, lapsed

        run_id, asking = context["dag_run"].run_id, _asking(context)
        end_waiting(open_lake(), self.model_name, run_id, asking)
        if event.get("error_type") == "timeout":
            return lapsed(
                open_lake(),
                self.model_name,
                self.decision,
                shown=shown,
                at=datetime.now(UTC),
                run_id=run_id,
                asking=asking,
            )
        if "error" in event:
            self.process_trigger_event_error(dict(event))
        self.validate_chosen_options(event["chosen_options"])
        user = event["responded_by_user"] or {}
        given = event["params_input"] or {}
        return answered(
            open_lake(),
            self.model_name,
            self.decision,
            shown=shown,
            option=event["chosen_options"][0] if event["chosen_options"] else "",
            by=str(user.get("name") or user.get("id") or "unknown"),
            reason=str(given.get("reason") or ""),
            answered_at=event["responded_at"],
            run_id=run_id,
            asking=asking,
        )


def _asking(context: Any) -> int:
    """The same number for every try of one asking: Airflow raises `max_tries` when a task is cleared, and only then."""
    return int(context["ti"].max_tries)

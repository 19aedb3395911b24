"""Who may do what on the pages: Airflow's own logins and roles, and proof that a form was ours.

Everybody who may read DAGs is a viewer. Who may change pools is an operator (Airflow's Op). Who may change roles is an
admin: the simple auth manager has no such permission, so there the role itself is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagDetails, PoolDetails
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.configuration import conf
from itsdangerous import BadData, URLSafeTimedSerializer

from monitoring.pages.page import Role, Viewer

_FORM_SECONDS = 12 * 3600
_NOTICE_SECONDS = 60


def viewer_of(user: Any) -> Viewer | None:
    """The person with their role on the pages, None where they may not even read DAGs."""
    manager = get_auth_manager()
    if not manager.is_authorized_dag(method="GET", user=user):
        return None
    return Viewer(str(user.get_name()), _role(manager, user))


def _role(manager: Any, user: Any) -> Role:
    if isinstance(manager, SimpleAuthManager):
        admin = str(user.role or "").upper() == "ADMIN"
    else:
        admin = bool(manager.is_authorized_custom_view(method="PUT", resource_name="Roles", user=user))
    if admin:
        return "admin"
    return (
        "operator"
        if manager.is_authorized_pool(method="PUT", details=PoolDetails(name="training"), user=user)
        else "viewer"
    )


def may_read(user: Any) -> Callable[[str], bool]:
    """Whether that person may read a DAG: what one does not see in Airflow one does not see here."""
    manager = get_auth_manager()
    return lambda dag_id: bool(manager.is_authorized_dag(method="GET", details=DagDetails(id=dag_id), user=user))


def _signer(purpose: str) -> URLSafeTimedSerializer:
    # Airflow's own secret of the API server: the same on every replica, and never empty there.
    return URLSafeTimedSerializer(conf.get_mandatory_value("api", "secret_key"), salt=f"nightfleet-{purpose}")


def form_token(user: Any) -> str:
    """What every form carries: names the person it was made for, and when."""
    return str(_signer("form").dumps(str(user.get_id())))


def is_own_form(user: Any, token: str) -> bool:
    """Whether the token was made for this person within the last twelve hours."""
    try:
        return bool(_signer("form").loads(token, max_age=_FORM_SECONDS) == str(user.get_id()))
    except BadData:
        return False


def signed_notice(text: str) -> str:
    """What an action did, to be shown on the next page: signed, so that no link can put words there."""
    return str(_signer("notice").dumps(text))


def notice_of(signed: str | None) -> str:
    """The text of a signed notice, empty where there is none, it is too old, or it is not ours."""
    try:
        return str(_signer("notice").loads(signed, max_age=_NOTICE_SECONDS)) if signed else ""
    except BadData:
        return ""

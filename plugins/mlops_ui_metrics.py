"""`/nightfleet/metrics`: for Prometheus, which shows a token of its own, and for anybody who may read the pages."""

from __future__ import annotations

import hmac
from collections.abc import Callable

from airflow.api_fastapi.core_api.security import bearer_scheme, get_user
from fastapi import HTTPException, Request, Response
from mlops_ui_access import viewer_of

from config.settings import MissingSecret, Settings, load_settings, secret
from lake.lake import Lake
from monitoring.alerting.prometheus import scrape

TOKEN = "metrics_token"  # noqa: S105 (the secret's name)


def is_metrics_token(settings: Settings, given: str) -> bool:
    """Whether that is the installation's token for metrics; compared in constant time. Without such a secret no token
    is.
    """
    try:
        wanted = secret(settings, TOKEN)
    except MissingSecret:
        return False
    return bool(wanted) and hmac.compare_digest(given.encode(), wanted.encode())


async def may_scrape(request: Request) -> None:
    """Let in who shows the token, or is logged in and may read DAGs.

    Raises:
        HTTPException: 401 without a login or with a wrong token, 403 for who may not read DAGs.
    """
    credentials = await bearer_scheme(request)
    if credentials is not None and is_metrics_token(load_settings(), credentials.credentials):
        return
    try:
        user = await get_user(request, None, credentials)
    except HTTPException as error:
        # A token that is neither ours nor Airflow's is a failed login like any other.
        raise HTTPException(401, "Not authenticated", headers={"www-authenticate": "Bearer"}) from error
    if viewer_of(user) is None:
        raise HTTPException(403, "You may not read the DAGs of this Airflow.")


def metrics_route(lake: Callable[[], Lake]) -> Callable[[Request], Response]:
    """The route's function: every metric, read now."""

    def metrics(request: Request) -> Response:
        content, content_type = scrape(lake(), request.headers.get("accept"))
        return Response(content, headers={"content-type": content_type})

    return metrics

"""`/nightfleet/metrics`: for Prometheus alone, which shows a token of its own. Every model is in it, whatever a person
may see.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from airflow.api_fastapi.core_api.security import bearer_scheme
from fastapi import HTTPException, Request, Response

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
    """Let in who shows the token; a login does not do, since rights to single DAGs hold back nothing here.

    Raises:
        HTTPException: 401 without the token.
    """
    credentials = await bearer_scheme(request)
    if credentials is None or not is_metrics_token(load_settings(), credentials.credentials):
        raise HTTPException(401, "Not authenticated", headers={"www-authenticate": "Bearer"})


def metrics_route(lake: Callable[[], Lake]) -> Callable[[Request], Response]:
    """The route's function: every metric, read now."""

    def metrics(request: Request) -> Response:
        content, content_type = scrape(lake(), request.headers.get("accept"))
        return Response(content, headers={"content-type": content_type})

    return metrics

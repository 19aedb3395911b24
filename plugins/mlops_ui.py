"""The pages of analyst and operator inside Airflow's UI: registered here, made in `mlops_ui_app` by the API server
alone.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow.plugins_manager import AirflowPlugin

PREFIX = "/nightfleet"
Scope = MutableMapping[str, Any]


class Pages:
    """The ASGI app, made on first use: its libraries take seconds to import, and only the API server needs them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._app: Any = None

    def app(self) -> Any:
        """The FastAPI app itself."""
        with self._lock:
            if self._app is None:
                from mlops_ui_app import make_app

                self._app = make_app()
            return self._app

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        """Serve, once the app is made; the server's loop goes on meanwhile."""
        app = self._app or await asyncio.to_thread(self.app)
        # Actions go through Airflow's own API, as the person who acts: that app is the one this one is mounted in.
        scope["nightfleet.airflow"] = scope.get("app")
        await app(scope, receive, send)


class NightfleetPages(AirflowPlugin):  # type: ignore[misc]  # airflow ships no types for it
    """Nav entry, tabs on DAG pages, and the app behind them."""

    name = "nightfleet_pages"
    external_views = [  # noqa: RUF012 (Airflow wants a list)
        {
            "name": "Models",
            "href": f"{PREFIX}/",
            "destination": "nav",
            "url_route": "models",
            "icon": f"{PREFIX}/static/icon.svg",
        },
        {"name": "Nightfleet", "href": f"{PREFIX}/dags/{{DAG_ID}}", "destination": "dag", "url_route": "nightfleet"},
    ]

    @functools.cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]  # read once, and only by the API server
        """Asked for by the API server as it starts; making the app begins there and then, beside the start."""
        pages = Pages()
        threading.Thread(target=pages.app, name="nightfleet pages", daemon=True).start()
        return [{"app": pages, "url_prefix": PREFIX, "name": "Nightfleet"}]

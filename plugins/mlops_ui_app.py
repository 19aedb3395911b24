"""The pages as a FastAPI app: addresses to page modules, logins, forms, headers. What a page says is made in
`monitoring.pages`.

Every route needs a login: a router has no route outside `_ROUTES` and the catch-all at its end, and both carry the same
dependency. A test walks them.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from datetime import UTC, datetime
from types import ModuleType
from typing import Annotated, Any
from urllib.parse import quote

import structlog
from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse
from mlops_ui_access import form_token, is_own_form, may_read, notice_of, signed_notice, viewer_of
from mlops_ui_metrics import may_scrape, metrics_route

from config.catalog.load import load_catalog
from config.errors import NightfleetError
from config.settings import load_settings
from lake.lake import Lake
from monitoring.pages.page import BadAddress, Context, NotAllowed, NotFound, Page, shortened, to_csv
from monitoring.pages.render import FOLDER, STATIC, render

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; frame-src "
    "'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
READ = ["GET", "HEAD"]
MOST_BODY_BYTES = 64 * 1024
_TOO_LARGE = f"The body has more than {MOST_BODY_BYTES:,} bytes, which no form of these pages has. Nothing was done."
NOTICE_COOKIE = "nightfleet_notice"
_STATUS: dict[type[NightfleetError], tuple[int, str]] = {
    NotFound: (404, "Not found"),
    BadAddress: (400, "This address cannot be read"),
    NotAllowed: (403, "Not allowed"),
}

# Address below the prefix: the page module, by name. Parts in braces and the query go to its function `page` as text.
PAGES = {
    "/": "tonight",
    "/models/{model}": "model",
    "/models/{model}/nights/{night}": "drift_report",
    "/retraining": "retraining",
    "/data/{dataset}": "data",
    "/trace": "trace",
}
_log = structlog.get_logger("nightfleet.pages")


class _Headers:
    """Sets the security headers on every answer that does not set its own."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in there),
                ]
            await send(message)

        await self._app(scope, receive, with_headers)


class BodyLimit:
    """Refuses a body larger than any form of ours before a byte of it is parsed, and whoever sent it."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        declared = next((value for name, value in scope.get("headers", ()) if name == b"content-length"), b"0")
        if not declared.isdigit() or int(declared) > MOST_BODY_BYTES:
            await JSONResponse({"detail": _TOO_LARGE}, 413, headers={"connection": "close"})(scope, receive, send)
            return
        taken = 0

        async def bounded() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MOST_BODY_BYTES:  # it came in chunks, or is longer than it said
                raise HTTPException(413, _TOO_LARGE, headers={"connection": "close"})
            return message

        await self._app(scope, bounded, send)


# Read-only or not, to the lake and what it was opened with.
_lakes: dict[bool, tuple[tuple[str, int], Lake]] = {}


def _lake(*, read_only: bool = True) -> Lake:
    """One lake as long as settings and catalog stay the same: its engine keeps connections. A page only reads; what a
    person does through a form writes.
    """
    settings = load_settings()
    catalog = load_catalog(settings)
    opened_with = (settings.model_dump_json(), id(catalog))
    if read_only in _lakes and _lakes[read_only][0] != opened_with:
        _lakes.pop(read_only)[1].engine.dispose()
    if read_only not in _lakes:
        _lakes[read_only] = opened_with, Lake(settings, catalog, read_only=read_only)
    return _lakes[read_only][1]


def context_of(request: Request, user: GetUserDep) -> Context:
    """The context of a request, for a person who may read DAGs."""
    viewer = viewer_of(user)
    if viewer is None:
        raise HTTPException(403, "You may not read the DAGs of this Airflow. Ask an admin for role Viewer.")
    lake, allowed = _lake(), may_read(user)
    mounted = request.scope["root_path"]
    return Context(
        lake=lake,
        viewer=viewer,
        now=datetime.now(UTC),
        models=tuple(m.name for m in lake.catalog.models if allowed(f"{m.name}_monitor")),
        datasets=tuple(d.name for d in lake.catalog.datasets if allowed(f"{d.name}_ingest")),
        base=mounted,
        airflow_url=mounted.removesuffix("/nightfleet"),
        mlflow_url=lake.settings.mlflow_browser_url,
        csrf_token=form_token(user),
        notice=notice_of(request.cookies.get(NOTICE_COOKIE)),
    )


ContextDep = Annotated[Context, Depends(context_of)]


def answer(request: Request, context: Context, page: Page, *, status: int = 200) -> Response:
    """The page as HTML, or one of its tables as CSV where the address says `format=csv`."""
    query = dict(request.query_params)
    if query.get("format") == "csv" and status == 200:
        table = page.table(query.get("table"))
        name = f"{table.name}.csv"
        return Response(
            to_csv(table, origin=str(request.base_url.replace(path="")).rstrip("/")),
            media_type="text/csv; charset=utf-8",
            headers={"content-disposition": f'attachment; filename="{name}"'},
        )
    kept = "&".join(f"{quote(k)}={quote(v)}" for k, v in query.items() if k not in {"format", "table"})
    response = HTMLResponse(render(page, context, path=request.url.path, query=kept), status_code=status)
    if context.notice:
        response.delete_cookie(NOTICE_COOKIE, path=context.base)
    return response


def _message(request: Request, context: Context, title: str, message: str, status: int) -> Response:
    return answer(request, context, Page(title, "message.html.jinja", {"message": message}), status=status)


def _page_route(module: ModuleType) -> Callable[..., Response]:
    def show(request: Request, context: ContextDep) -> Response:
        try:
            return answer(
                request, context, module.page(context, query=dict(request.query_params), **request.path_params)
            )
        except NightfleetError as error:
            status, title = _STATUS.get(type(error), (500, "This page cannot be shown"))
            return _message(request, context, title, str(error), status)

    return show


def _first_of(kind: str) -> Callable[..., Response]:
    def lead_on(request: Request, context: ContextDep) -> Response:
        names: tuple[str, ...] = getattr(context, kind)
        if not names:
            return _message(request, context, "Not found", f"There are no {kind} you may see.", 404)
        return RedirectResponse(context.url("models" if kind == "models" else "data", names[0]), status_code=307)

    return lead_on


def _of_dag(request: Request, dag_id: str, context: ContextDep) -> Response:
    """Where the tab on a DAG's page leads: to the model or data set that the DAG is about."""
    subject, _, kind = dag_id.rpartition("_")
    if dag_id in {"rollback", "rollout", "watch", "maintenance"}:
        return RedirectResponse(context.url(), status_code=307)
    if kind in {"ingest", "history"} and subject in context.datasets:
        return RedirectResponse(context.url("data", subject), status_code=307)
    if kind in {"score", "monitor"} and subject in context.models:
        return RedirectResponse(context.url("models", subject), status_code=307)
    if kind == "train" and subject in context.models:
        return RedirectResponse(context.url("retraining", model=subject), status_code=307)
    return _message(
        request,
        context,
        "Not found",
        f"The DAG {shortened(dag_id)} belongs to no model or data set you may see.",
        404,
    )


def _static(name: str, context: ContextDep) -> Response:
    if name not in STATIC:
        raise HTTPException(404, "no such file")
    # The address holds the file's digest, so it may be kept for good; a login is needed all the same.
    return FileResponse(
        FOLDER / "static" / name,
        media_type=STATIC[name],
        headers={"cache-control": "private, max-age=31536000, immutable"},
    )


def _embedded(request: Request, path: str, context: ContextDep) -> Response:
    from monitoring.pages.embedded import DRAWN, STILL, document, framed

    try:
        shown = document(context, path)
    except NightfleetError as error:
        status, title = _STATUS.get(type(error), (500, "This page cannot be shown"))
        return _message(request, context, title, str(error), status)
    opened_as = request.headers.get("sec-fetch-dest")
    if shown.policy == DRAWN and opened_as != "iframe":
        # Alone it could lead its window elsewhere: in a frame of ours it cannot, nor where its scripts do not run.
        shown = framed(request.url.path) if opened_as else replace(shown, policy=STILL)
    headers = {"content-security-policy": shown.policy, "vary": "sec-fetch-dest"}
    return Response(shown.content, media_type=shown.media_type, headers=headers)


async def _act(request: Request, action: str, user: GetUserDep, context: ContextDep) -> Response:
    """Do what a form asks, then lead back to the page it stood on, which says what was done."""
    from mlops_ui_actions import TooManyActions, perform

    context = replace(context, lake=_lake(read_only=False))
    form = {name: str(value) for name, value in (await request.form()).items()}
    back = form.get("back", "")
    if not back.startswith(f"{context.base}/"):
        back = context.url()
    try:
        said = await perform(request, context, action, form, own_form=is_own_form(user, form.get("csrf_token", "")))
    except NightfleetError as error:
        status, title = _STATUS.get(type(error), (409, "This was not done"))
        if isinstance(error, TooManyActions):
            status = 429
        return _message(request, context, title, str(error), status)
    if isinstance(said, Page):
        return answer(request, context, said)
    response = RedirectResponse(back, status_code=303)
    response.set_cookie(
        NOTICE_COOKIE,
        signed_notice(said),
        max_age=60,
        path=context.base,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


def _after_reproduction(context: ContextDep, id: str = "") -> Response:
    """The page that answered the form has the form's address: opened again, it is the trace."""
    return RedirectResponse(context.url("trace", id=id or None), status_code=303)


def _nothing_here(request: Request, path: str, context: ContextDep) -> Response:
    return _message(request, context, "Not found", f"There is no page at {request.url.path}.", 404)


async def _refused(request: Request, error: Exception) -> Response:
    """A refusal as a page where a person asked, as JSON where a program did."""
    assert isinstance(error, HTTPException)
    if error.status_code == 401 and "text/html" in request.headers.get("accept", ""):
        from monitoring.pages.render import login_page

        airflow = request.scope["root_path"].removesuffix("/nightfleet")
        asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        login = f"{airflow}/api/v2/auth/login?next={quote(asked, safe='')}"
        return HTMLResponse(login_page(login), status_code=401, headers=error.headers)
    return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)


def make_app() -> FastAPI:
    """The app, with every library its pages need imported."""
    app = FastAPI(title="Nightfleet", docs_url=None, redoc_url=None, openapi_url=None)
    router = APIRouter(dependencies=[Depends(context_of)])
    for path, name in PAGES.items():
        module = importlib.import_module(f"monitoring.pages.{name}")
        router.add_api_route(path, _page_route(module), methods=READ, response_class=HTMLResponse, name=name)
    router.add_api_route("/models", _first_of("models"), methods=READ, name="models")
    router.add_api_route("/data", _first_of("datasets"), methods=READ, name="datasets")
    router.add_api_route("/dags/{dag_id}", _of_dag, methods=READ, name="dag")
    router.add_api_route("/static/{name}", _static, methods=READ, name="static")
    router.add_api_route("/embedded/{path:path}", _embedded, methods=READ, name="embedded")
    router.add_api_route("/actions/{action}", _act, methods=["POST"], name="action")
    router.add_api_route("/actions/reproduce", _after_reproduction, methods=READ, name="after_reproduction")
    router.add_api_route(
        "/{path:path}",
        _nothing_here,
        methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"],
        name="nothing",
    )
    # Prometheus has no login: a dependency of its own, which lets in its token alone.
    app.add_api_route(
        "/metrics", metrics_route(_lake), methods=READ, name="metrics", dependencies=[Depends(may_scrape)]
    )
    app.include_router(router)
    app.add_exception_handler(HTTPException, _refused)
    app.add_middleware(BodyLimit)
    app.add_middleware(_Headers)
    return app


__all__ = ["HEADERS", "PAGES", "answer", "context_of", "make_app"]

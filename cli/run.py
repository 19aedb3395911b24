"""`run` and `up`: an installation, started, driven, and ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date

from rich.console import Console

from cli.airflow_api import AirflowApi
from cli.chain import Chain, Plan, make_plan
from cli.installation import Installation, airflow_environment, prepare, start
from cli.processes import ComponentDied, Supervisor, sole_supervisor
from cli.summary import print_summary
from cli.view import LiveView
from config.calendar import ONE_DAY
from config.catalog.load import Catalog
from config.errors import NightfleetError
from config.settings import MLFLOW_LOGIN, Settings
from lake.lake import Lake, open_lake
from lake.leftovers import rotate
from lake.storage import reports
from training.registry.containers import (
    INSTALLATION_LABEL,
    EngineUnavailable,
    engine,
    installation_id,
    remove_containers,
)

_DAG_SECONDS = 120.0


def dag_ids(catalog: Catalog) -> set[str]:
    """Every DAG the catalog makes."""
    datasets = {f"{d.name}_{kind}" for d in catalog.datasets for kind in ("ingest", "history")}
    return datasets | {f"{m.name}_{kind}" for m in catalog.models for kind in ("train", "score", "monitor")}


@contextmanager
def running(
    settings: Settings, catalog: Catalog, console: Console, *, for_people: bool = False
) -> Iterator[tuple[Installation, Supervisor, AirflowApi]]:
    """Everything started and healthy; everything ended when the block is left."""
    with sole_supervisor(settings.home) as lock:
        yield from _running(settings, catalog, console, lock, for_people)


def _running(
    settings: Settings, catalog: Catalog, console: Console, lock: int, for_people: bool
) -> Iterator[tuple[Installation, Supervisor, AirflowApi]]:
    installation = prepare(settings)
    began = time.monotonic()
    _remove_containers(settings, console)
    for log in (settings.home / "logs").glob("*.log"):
        rotate(log, largest_bytes=settings.log_file_mb * 2**20)
    with Supervisor(settings.home / "logs", airflow_environment(installation), (lock,)) as supervisor:
        with console.status("starting MLflow and Airflow (api-server, dag-processor, scheduler)"):
            start(installation, supervisor, catalog, for_people=for_people)
            api = AirflowApi(installation.airflow_url, "admin", installation.admin_password)
            make_pools(api, settings)
            for _missing in api.wait_for_dags(dag_ids(catalog), _DAG_SECONDS):
                supervisor.check()
        console.print(
            f"MLflow and Airflow are up, {len(dag_ids(catalog))} DAGs parsed: {time.monotonic() - began:.0f} s"
        )
        try:
            yield installation, supervisor, api
        finally:
            api.close()
    _remove_containers(settings, console)  # what was training when everything was ended


def make_pools(api: AirflowApi, settings: Settings) -> None:
    """The pools that trainings queue in, sized to the machine or to the settings."""
    pools = {
        "training": (
            settings.training_pool_gb,
            "GB of memory that trainings may take together; a training takes its training.memory_gb",
        ),
        "training_gpu": (max(1, settings.training_pool_gpus), "GPUs that trainings may take together"),
    }
    for name, (slots, description) in pools.items():
        body = {"slots": slots, "description": description, "include_deferred": False}
        if api.call("POST", "/pools", json={"name": name, **body}, accept=(409,)).status_code == 409:
            api.call("PATCH", f"/pools/{name}", json={"name": name, **body})


def _remove_containers(settings: Settings, console: Console) -> None:
    """Remove training containers of this installation whose task has gone with the Airflow that ran it."""
    if settings.runner == "process":
        return
    try:
        client = engine()
    except EngineUnavailable:
        return
    for container in remove_containers(client, {INSTALLATION_LABEL: installation_id(settings)}):
        console.print(f"removed the training container {container} of an earlier Airflow")


def run_nights(
    settings: Settings,
    console: Console,
    *,
    nights: int,
    start: date | None,
    only: list[str] | None = None,
    whole: bool = False,
) -> int:
    """The whole of `run`; returns the exit code."""
    lake = open_lake(settings)
    plan = make_plan(lake, nights, start, only, whole=whole)
    began = time.monotonic()
    view = LiveView(console)
    with running(settings, lake.catalog, console) as (installation, supervisor, api):
        chain = Chain(lake, api, supervisor, settings.home / "airflow" / "logs", view)
        problem: NightfleetError | None = None
        try:
            _drive(lake, chain, plan)
        except ComponentDied:
            raise
        except NightfleetError as error:
            problem = error
        finally:
            view.close()
        print_summary(console, lake, installation, chain, problem, time.monotonic() - began)
    return 1 if problem else 0


def _drive(lake: Lake, chain: Chain, plan: Plan) -> None:
    if plan.history:
        chain.history(plan.history)
    wanted = {
        model.name: as_of
        for model, as_of in plan.first_models(lake.catalog)
        if not _has_champion(lake, model.name, as_of)
    }
    if wanted:
        chain.train(wanted, "the first run: there is no champion yet")
        chain.require_champions(wanted)
    for wave in plan.nights:
        chain.night(wave)


def _has_champion(lake: Lake, model: str, as_of: date) -> bool:
    return any(p.effective_from <= as_of + ONE_DAY for p in lake.ledger(model).read().promotions)


def keep_up(settings: Settings, console: Console, *, replay_seconds: float | None) -> None:
    """The whole of `up`: until Ctrl-C, or until a component dies."""
    lake = open_lake(settings)
    with running(settings, lake.catalog, console, for_people=True) as (installation, supervisor, api):
        folder = settings.home / "secrets"
        console.print(
            f"open     {installation.pages_url}  user admin, password {installation.admin_password} (also in "
            f"{folder / 'admin_password'})",
            soft_wrap=True,
        )
        console.print(
            f"         users operator and viewer see the same with fewer buttons; their passwords are in {folder}",
            soft_wrap=True,
        )
        console.print(f"Airflow  {installation.airflow_url}")
        console.print(
            f"MLflow   {installation.mlflow_url}  user {settings.mlflow_user}, password in {folder / MLFLOW_LOGIN}",
            soft_wrap=True,
        )
        console.print(f"reports  {reports(settings).uri()}")
        console.print("Ctrl-C ends everything.")
        if replay_seconds is None:
            while True:
                supervisor.check()
                time.sleep(1.0)
        view = LiveView(console)
        chain = Chain(lake, api, supervisor, settings.home / "airflow" / "logs", view)
        plan = make_plan(lake, 100_000, None)
        _drive(lake, chain, Plan(plan.first_nights, plan.history, ()))
        for wave in plan.nights:
            released = time.monotonic()
            for name, day in wave.items():
                chain.release(name, day)
                console.print(f"released {name} {day}")
            while time.monotonic() - released < replay_seconds:
                supervisor.check()
                time.sleep(0.5)
        console.print("the replays have ended; everything stays up until Ctrl-C")
        while True:
            supervisor.check()
            time.sleep(1.0)

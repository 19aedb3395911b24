"""What the executor imports before it forks, and when its scheduler rests."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import mlops_executor
import pytest
from airflow.executors.local_executor import LocalExecutor

from config.catalog.load import load_catalog
from serving.predictors import FAMILIES, preloaded_libraries


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is imported; the libraries and stages themselves are not, since they take seconds."""
    names: list[str] = []
    real = importlib.import_module
    families = {library for family in FAMILIES for library in preloaded_libraries(family)}
    slow = families | {*mlops_executor._LIBRARIES, *mlops_executor._STAGES}

    def record(name: str) -> object:
        names.append(name)
        return None if name in slow else real(name)

    monkeypatch.setattr(importlib, "import_module", record)
    return names


def test_the_libraries_of_every_candidate_are_preloaded(imported: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = load_catalog()
    engines = catalog.model("engine_rul")
    monkeypatch.setattr(
        mlops_executor, "load_catalog", lambda settings: catalog.model_copy(update={"models": (engines,)})
    )
    second = next(trainer.family for trainer in engines.candidates if trainer.family == "random_forest")
    others = {trainer.family for trainer in engines.trainers} - {second}
    alone = set(preloaded_libraries(second)) - {name for other in others for name in preloaded_libraries(other)}
    assert alone, "no other trainer of the model needs its library, so it is imported for this one"
    imported.clear()
    mlops_executor.preload()
    assert alone <= set(imported)


def test_an_unknown_family_is_the_training_s_error(imported: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = load_catalog()
    trainer = catalog.models[0].trainer.model_copy(update={"family": "oracle"})
    entry = catalog.models[0].model_copy(update={"trainer": trainer, "candidates": ()})
    known = {name for family in FAMILIES for name in preloaded_libraries(family)}
    monkeypatch.setattr(
        mlops_executor, "load_catalog", lambda settings: catalog.model_copy(update={"models": (entry,)})
    )
    imported.clear()
    mlops_executor.preload()
    assert imported
    assert not known & set(imported)


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlops_executor.WarmLocalExecutor:
    monkeypatch.setattr(
        mlops_executor, "conf", ConfigWith(sql_alchemy_conn=f"sqlite:///{tmp_path / 'airflow.db'}?timeout=30")
    )
    (tmp_path / "airflow.db").write_bytes(b"")
    monkeypatch.setattr(LocalExecutor, "heartbeat", lambda self: None)
    return mlops_executor.WarmLocalExecutor(parallelism=1)


class ConfigWith:
    def __init__(self, **values: str) -> None:
        self._values = values

    def get(self, _section: str, key: str, **_named: str) -> str:
        return self._values[key]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of each rest between two looks; they pass at once."""
    slept: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(mlops_executor, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    return slept


def test_the_scheduler_rests_while_nothing_runs_and_nobody_writes(
    executor: mlops_executor.WarmLocalExecutor, looks: list[float], tmp_path: Path
) -> None:
    executor.heartbeat()
    assert sum(looks) == pytest.approx(mlops_executor._LONGEST_REST_SECONDS, abs=mlops_executor._LOOK_SECONDS)
    looks.clear()
    (tmp_path / "airflow.db-wal").write_bytes(b"a run was triggered")
    executor.heartbeat()
    assert looks == [], "written since the last round: the next round must not wait"
    executor.heartbeat()
    assert looks, "nothing since"


@pytest.mark.parametrize("what", ["running", "queued_tasks", "event_buffer"])
def test_it_does_not_rest_while_there_is_work(
    executor: mlops_executor.WarmLocalExecutor, looks: list[float], what: str
) -> None:
    setattr(executor, what, {"a task": "of tonight"})
    executor.heartbeat()
    assert looks == []


def test_it_does_not_rest_where_the_database_is_a_server(
    executor: mlops_executor.WarmLocalExecutor, looks: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlops_executor, "conf", ConfigWith(sql_alchemy_conn="postgresql://db/airflow"))
    mlops_executor.WarmLocalExecutor(parallelism=1).heartbeat()
    assert looks == []

"""What the executor imports before it forks."""

from __future__ import annotations

import importlib

import mlops_executor
import pytest

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


def test_the_libraries_of_every_candidate_are_preloaded(imported: list[str]) -> None:
    second = load_catalog().model("engine_rul").candidates[0].family
    others = {trainer.family for model in load_catalog().models for trainer in model.trainers} - {second}
    alone = set(preloaded_libraries(second)) - {name for other in others for name in preloaded_libraries(other)}
    assert alone, "no other trainer of the catalog needs its library, so it is imported for this one"
    imported.clear()
    mlops_executor.preload()
    assert alone <= set(imported)


def test_an_unknown_family_is_the_training_s_error(imported: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = load_catalog()
    trainer = catalog.models[0].trainer.model_copy(update={"family": "oracle"})
    entry = catalog.models[0].model_copy(update={"trainer": trainer})
    known = {name for family in FAMILIES for name in preloaded_libraries(family)}
    monkeypatch.setattr(
        mlops_executor, "load_catalog", lambda settings: catalog.model_copy(update={"models": (entry,)})
    )
    imported.clear()
    mlops_executor.preload()
    assert imported
    assert not known & set(imported)

"""One prepared lake for the whole package; a test that changes it takes a copy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from lake.lake import Lake
from tests import toy
from tests.monitoring import scenario
from tests.serving.scenario import use_linear


@pytest.fixture(params=["sqlite", "postgres"])
def sql_lake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lake]:
    """An empty lake of the toy catalog, with its projections in SQLite and, as another test, in Postgres."""
    made = toy.toy_lake(tmp_path)
    if request.param == "postgres":
        made = Lake(made.settings.model_copy(update={"sql_url": request.getfixturevalue("postgres_url")}), made.catalog)
    yield made
    with made.engine.begin() as connection:
        metadata = sa.MetaData()
        metadata.reflect(connection)
        metadata.drop_all(connection)
    made.engine.dispose()


@pytest.fixture(scope="package")
def _linear() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    use_linear(patch)
    yield
    patch.undo()


@pytest.fixture(scope="package")
def promoted(tmp_path_factory: pytest.TempPathFactory, _linear: None) -> Lake:
    """Inputs of all nights, a champion, nothing scored yet."""
    folder = tmp_path_factory.mktemp("promoted")
    lake = toy.toy_lake(folder)
    scenario.inputs(lake)
    scenario.champion(lake, tmp_path_factory.mktemp("training-set"))
    lake.engine.dispose()
    return lake


@pytest.fixture(scope="package")
def scored(promoted: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """All nights scored and the gate's decision stored; not to be changed."""
    lake = scenario.copy_of(promoted, tmp_path_factory.mktemp("scored"))
    scenario.decide_gate(lake)
    scenario.score_all(lake)
    return lake


@pytest.fixture
def fresh(promoted: Lake, tmp_path: Path) -> Lake:
    """A copy of `promoted` to be changed and scored."""
    return scenario.copy_of(promoted, tmp_path)


@pytest.fixture
def night(scored: Lake, tmp_path: Path) -> Lake:
    """A copy of `scored` to be changed."""
    return scenario.copy_of(scored, tmp_path)

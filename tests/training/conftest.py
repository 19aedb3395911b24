"""What the tests of training share: models trained once a session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.jobs import trained_job


@pytest.fixture(autouse=True)
def _own_import_path() -> Iterator[None]:
    """MLflow puts a loaded model's own copy of our packages in front of ours, and leaves it there."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(scope="session")
def trained_xgboost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job of the XGBoost family. Copy it before changing it."""
    return trained_job("xgboost", tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def trained_keras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job of the Keras family. Copy it before changing it."""
    return trained_job("keras", tmp_path_factory.getbasetemp())

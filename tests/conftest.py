"""Fixtures that tests of several packages share."""

from __future__ import annotations

from pathlib import Path

import pytest

from lake.lake import Lake
from tests import toy


@pytest.fixture
def toy_lake(tmp_path: Path) -> Lake:
    """A lake with the catalog of `tests/toy.py`, still empty; `toy.toy_lake(folder, ...)` makes others."""
    return toy.toy_lake(tmp_path)

"""Three nights in a real Airflow, for tests that only look."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.three_nights import ThreeNights, three_nights


@pytest.fixture(scope="package")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreeNights]:
    """The three nights, and Airflow after them."""
    with three_nights(tmp_path_factory.mktemp("nights")) as running:
        yield running

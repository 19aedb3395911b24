"""Airflow's REST API as `run` and `up` ask it."""

from __future__ import annotations

import httpx
import pytest

from cli.airflow_api import AirflowApi

LONGEST_PAGE = 100  # Airflow's own [api] maximum_page_limit


@pytest.fixture
def api() -> AirflowApi:
    """An Airflow of 230 DAGs, which gives 100 entries at most, whatever is asked for."""
    names = [f"dag_{number:03}" for number in range(230)]

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/importErrors"):
            return httpx.Response(200, json={"import_errors": [], "total_entries": 0})
        first, limit = int(request.url.params["offset"]), min(int(request.url.params["limit"]), LONGEST_PAGE)
        page = [{"dag_id": name} for name in names[first : first + limit]]
        return httpx.Response(200, json={"dags": page, "total_entries": len(names)})

    api = AirflowApi.__new__(AirflowApi)
    api._client = httpx.Client(base_url="http://airflow", transport=httpx.MockTransport(answer))
    return api


def test_a_list_that_is_longer_than_a_page_comes_whole(api: AirflowApi) -> None:
    assert [dag["dag_id"] for dag in api.listed("/dags", "dags")] == [f"dag_{number:03}" for number in range(230)]


def test_more_dags_than_a_page_holds_are_waited_for(api: AirflowApi) -> None:
    assert list(api.wait_for_dags({"dag_000", "dag_229"}, 0.0)) == [set()]

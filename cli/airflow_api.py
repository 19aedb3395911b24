"""The few calls of Airflow's REST API that drive and watch a chain."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx

from config.errors import NightfleetError, TransientError

_PAGE = 100


class AirflowRefused(NightfleetError):
    """The API answered with an error that will not pass by itself."""


class AirflowUnreachable(TransientError):
    """The API did not answer, or with a server error, several times in a row."""


class AirflowApi:
    """A client with a token; SQLite's occasional `database is locked` (a 500) is tried again."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30)
        answer = self._client.post("/auth/token", json={"username": user, "password": password})
        if answer.status_code >= 300:
            raise AirflowRefused(f"login as {user} at {url} got {answer.status_code}: {answer.text[:300]}")
        self._client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    def call(self, method: str, path: str, *, accept: tuple[int, ...] = (), **arguments: Any) -> httpx.Response:
        """One request below `/api/v2`; statuses in `accept` are returned, other errors raise."""
        problem = ""
        for attempt in range(6):
            try:
                answer = self._client.request(method, f"/api/v2{path}", **arguments)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if answer.status_code < 300 or answer.status_code in accept:
                    return answer
                problem = f"{answer.status_code}: {answer.text[:500]}"
                if answer.status_code < 500:
                    raise AirflowRefused(f"{method} {path} got {problem}")
            time.sleep(0.2 * 2**attempt)
        raise AirflowUnreachable(f"{method} {path} failed six times; the last answer: {problem}")

    def listed(self, path: str, key: str, **params: str | int) -> list[dict[str, Any]]:
        """Every entry of a list, page after page: Airflow gives no more than `[api] maximum_page_limit` at once, 100 by
        default, whatever is asked for.

        Args:
            key: of the entries in the answer.
        """
        entries: list[dict[str, Any]] = []
        while True:
            page = self.call("GET", path, params={**params, "limit": _PAGE, "offset": len(entries)}).json()
            entries += page[key]
            if not page[key] or len(entries) >= page["total_entries"]:
                return entries

    def trigger(
        self,
        dag_id: str,
        run_id: str,
        *,
        partition_key: str | None = None,
        conf: dict[str, Any] | None = None,
        note: str | None = None,
    ) -> bool:
        """Start a run; False when a run of that id exists already."""
        body: dict[str, Any] = {"logical_date": None, "dag_run_id": run_id, "conf": conf or {}}
        if partition_key:
            body["partition_key"] = partition_key
        if note:
            body["note"] = note
        return self.call("POST", f"/dags/{dag_id}/dagRuns", json=body, accept=(409,)).status_code != 409

    def run(self, dag_id: str, run_id: str) -> dict[str, Any] | None:
        """One run, None when there is none."""
        answer = self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}", accept=(404,))
        return None if answer.status_code == 404 else dict(answer.json())

    def clear(self, dag_id: str, run_id: str) -> None:
        """Clear the failed tasks of a run, so that it goes on where it stopped."""
        self.call(
            "POST",
            f"/dags/{dag_id}/clearTaskInstances",
            json={"dry_run": False, "dag_run_id": run_id, "only_failed": True, "reset_dag_runs": True},
        )

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Task instances of a run."""
        return self.listed(f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", "task_instances")

    def result(self, dag_id: str, run_id: str, task_id: str) -> Any:
        """What the task returned, None when it returned nothing."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        answer = self.call("GET", path, accept=(404,), params={"deserialize": "false"})
        return None if answer.status_code == 404 else answer.json().get("value")

    def wait_for_dags(self, dag_ids: set[str], seconds: float) -> Iterator[set[str]]:
        """Yield the DAGs still missing until all are there and parsed.

        Args:
            seconds: how long to wait for the next of them.
        Raises:
            AirflowRefused: a DAG file does not parse, or no further DAG came for so long.
        """
        deadline, fewest = time.monotonic() + seconds, len(dag_ids)
        while True:
            errors = self.call("GET", "/importErrors").json()["import_errors"]
            if errors:
                raise AirflowRefused(f"{errors[0]['filename']} does not parse:\n{errors[0]['stack_trace']}")
            parsed = {dag["dag_id"] for dag in self.listed("/dags", "dags", order_by="dag_id")}
            missing = dag_ids - parsed
            yield missing
            if not missing:
                return
            if len(missing) < fewest:
                deadline, fewest = time.monotonic() + seconds, len(missing)
            if time.monotonic() > deadline:
                raise AirflowRefused(
                    f"for {seconds:.0f} s no further DAG came, and Airflow still has no DAG "
                    f"{sorted(missing)}. Look at the dag-processor's log."
                )
            time.sleep(0.3)

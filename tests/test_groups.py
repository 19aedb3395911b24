from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from config.settings import ROOT
from tests import groups
from tests.groups import OneAirflowAtATime

HEAVY = ["tests/e2e/test_real_nights.py", "tests/e2e/toy_nights", "containers"]
LIGHT = [f"tests/lake/test_{letter}.py" for letter in "abcdef"]


class Worker:
    """A worker of pytest-xdist, as far as its scheduler asks."""

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.shutting_down = False
        self.sent: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        self.sent += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def test_two_workers_never_have_an_airflow_each(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(
        getvalue=lambda _name: ["popen", "popen"], option=SimpleNamespace(loadscopereorder=False, debug=False)
    )
    monkeypatch.setattr("xdist.scheduler.loadscope.parse_tx_spec_config", lambda _config: ["popen", "popen"])
    scheduler: Any = OneAirflowAtATime(config, None)
    collection = [f"x.py::test_{n}@{group}" for group in [*HEAVY, *LIGHT] for n in range(4)]
    workers = [Worker("one"), Worker("two")]
    for worker in workers:
        scheduler.add_node(worker)
    for worker in workers:
        scheduler.add_node_collection(worker, collection)
    scheduler.schedule()
    order: list[str] = []
    while any(worker.sent for worker in workers):
        for worker in workers:
            if worker.sent:
                index = worker.sent.pop(0)
                order.append(collection[index].rsplit("@")[1])
                scheduler.mark_test_complete(worker, index)
            busy = [{collection[n].rsplit("@")[1] for n in each.sent} & set(HEAVY) for each in workers]
            assert sum(map(bool, busy)) <= 1, order
    assert sorted(order) == sorted(node_id.rsplit("@")[1] for node_id in collection), "every test ran once"
    assert order[0] == HEAVY[0], "the first group of the list begins"


@pytest.mark.parametrize(
    "place", sorted({*groups.SECONDS, *groups._SLOW, *groups._FOLDERS, *groups._FILES} - {"containers"})
)
def test_what_is_listed_is_there(place: str) -> None:
    file, _, name = place.partition("::")
    assert (ROOT / file).exists(), f"tests/groups.py lists {file}, which was moved: change it there."
    assert not name or f"def {name}(" in (ROOT / file).read_text(), (
        f"{file} has no {name}: change it in tests/groups.py."
    )

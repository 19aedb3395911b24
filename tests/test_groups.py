from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from config.settings import ROOT
from tests import groups
from tests.groups import OneAirflowAtATime

HEAVY = {
    "tests/e2e/test_real_nights.py": ["tests/e2e/test_real_nights.py"],
    "tests/e2e/toy_nights": ["tests/e2e/toy_nights/test_a.py", "tests/e2e/toy_nights/test_b.py"],
    "containers": sorted(groups.CONTAINERS),
}
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
    files = [*(file for files in HEAVY.values() for file in files), *LIGHT]
    collection = [f"{file}::test_[{n}]" for file in files for n in range(4)]
    workers = [Worker("one"), Worker("two")]
    for worker in workers:
        scheduler.add_node(worker)
    for worker in workers:
        scheduler.add_node_collection(worker, collection)
    scheduler.schedule()
    order: list[str] = []
    ran_by: dict[str, set[str]] = {}

    def group(node_id: str) -> str:
        return groups.group_of(node_id.partition("::")[0])

    while any(worker.sent for worker in workers):
        for worker in workers:
            if worker.sent:
                index = worker.sent.pop(0)
                order.append(collection[index])
                ran_by.setdefault(group(collection[index]), set()).add(worker.gateway.id)
                scheduler.mark_test_complete(worker, index)
            busy = [{group(collection[n]) for n in each.sent} & set(HEAVY) for each in workers]
            assert sum(map(bool, busy)) <= 1, order
    assert sorted(order) == sorted(collection), "every test ran once"
    assert order[0] == collection[0], "the first group of the list begins"
    assert set(map(len, ran_by.values())) == {1}, f"a group is divided: {ran_by}"


def test_a_file_stays_in_one_worker(tmp_path: Path) -> None:
    """In the real pytest-xdist: a fixture of a file is made once."""
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]")
    for letter in "ab":
        (tmp_path / f"test_{letter}.py").write_text(
            "import os, pytest\n"
            "@pytest.mark.parametrize('n', range(20))\n"
            "def test_it(n):\n"
            f"    with open(r'{tmp_path}/ran', 'a') as file:\n"
            f"        print('{letter}', os.environ['PYTEST_XDIST_WORKER'], file=file)\n"
        )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.groups",
        "-n",
        "2",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = Counter((tmp_path / "ran").read_text().splitlines())
    assert sorted(ran.values()) == [20, 20], ran


@pytest.mark.parametrize(
    "place", sorted({*groups.SECONDS, *groups._SLOW, *groups._FOLDERS, *groups._FILES} - {"containers"})
)
def test_what_is_listed_is_there(place: str) -> None:
    file, _, name = place.partition("::")
    assert (ROOT / file).exists(), f"tests/groups.py lists {file}, which was moved: change it there."
    assert not name or f"def {name}(" in (ROOT / file).read_text(), (
        f"{file} has no {name}: change it in tests/groups.py."
    )

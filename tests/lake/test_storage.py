"""The door to where state lies: on the local file system, and on one without renames, links and times of change."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from pyarrow._fs import _MockFileSystem

from lake import storage
from lake.artifact import folder_digests
from lake.lake import Lake
from lake.storage import LeadsOutside, ObjectStore, advisory_lock, artifact_folder, artifacts, link_or_copy, reports
from tests import toy

FILES = {"model/weights.bin": b"\0\1" * 500, "job.json": b"{}", "signature.json": b"s", "manifest.json": b"m"}
DONE = "manifest.json"


def in_memory(cache: Path | None = None) -> ObjectStore:
    """A store on pyarrow's file system in memory, whose files appear as an object store's do: no file of it is renamed,
    linked or locked.
    """
    filesystem = _MockFileSystem()
    filesystem.create_dir("bucket")
    return ObjectStore(NoFolders(filesystem), "bucket/root", cache=cache)


class NoFolders(fs.PyFileSystem):  # type: ignore[misc]  # pyarrow ships no types
    """Makes a folder with its first file, and refuses whatever an object store has not."""

    def __init__(self, filesystem: Any) -> None:
        super().__init__(_Objects(filesystem))


class _Objects(fs.FileSystemHandler):  # type: ignore[misc]  # pyarrow ships no types
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def get_type_name(self) -> str:
        return "objects in memory"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> Any:
        return self.inner.get_file_info(paths)

    def get_file_info_selector(self, selector: Any) -> Any:
        return self.inner.get_file_info(selector)

    def open_input_stream(self, path: str) -> Any:
        return self.inner.open_input_stream(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self.inner.create_dir(path.rpartition("/")[0], recursive=True)
        return self.inner.open_output_stream(path)

    def _refuse(self, *arguments: Any, **named: Any) -> Any:
        raise AssertionError("an object store cannot do this")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _refuse
    move = copy_file = open_input_file = open_append_stream = _refuse


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return ObjectStore(fs.LocalFileSystem(), str(tmp_path / "store"))
    return in_memory(cache=tmp_path / "cache")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "source"


def test_put_read_and_list(store: ObjectStore, source: Path) -> None:
    assert not store.exists("rides/2024-01-01/drift.html")
    assert store.size("rides") is None
    assert store.names("rides") == []
    with pytest.raises(FileNotFoundError):
        store.read("rides/2024-01-01/drift.html")
    uri = store.put("rides/2024-01-01/drift.html", b"page")
    assert uri == store.uri("rides/2024-01-01/drift.html")
    store.put("rides/2024-01-02/drift.html", source / "model" / "weights.bin")
    store.put("rides/2024-01-01/drift.html", b"another page")
    assert store.read("rides/2024-01-01/drift.html") == b"another page"
    assert store.read("rides/2024-01-01/drift.html", at_most=7) == b"another"
    assert store.read("rides/2024-01-02/drift.html") == FILES["model/weights.bin"]
    assert (store.size("rides/2024-01-01/drift.html"), store.size("rides/2024-01-01")) == (12, None)
    assert store.names("rides") == ["2024-01-01", "2024-01-02"]
    assert store.keys("rides") == ["rides/2024-01-01/drift.html", "rides/2024-01-02/drift.html"]


def test_what_looks_compressed_is_bytes_like_any_other(store: ObjectStore) -> None:
    store.put("rows.csv.gz", b"not gzip")
    assert store.read("rows.csv.gz") == b"not gzip"


def test_a_folder_counts_from_its_last_file_on(store: ObjectStore, source: Path) -> None:
    order: list[str] = []
    put = store.put

    def watched(key: str, content: bytes | Path) -> str:
        order.append(key)
        assert not store.exists(f"rides/abc/{DONE}")
        return put(key, content)

    store.put = watched  # type: ignore[method-assign]
    store.put_folder("rides/abc", source, last=DONE)
    assert order[-1] == f"rides/abc/{DONE}"
    assert sorted(order) == sorted(f"rides/abc/{name}" for name in FILES)
    assert folder_digests(store.folder("rides/abc", last=DONE)) == folder_digests(source)


def test_a_folder_without_its_last_file_is_not_put(store: ObjectStore, source: Path) -> None:
    (source / DONE).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no manifest.json, which completes a folder. Nothing was put."):
        store.put_folder("rides/abc", source, last=DONE)
    assert store.keys("rides") == []


def test_a_copy_of_what_lies_elsewhere_is_made_once_and_never_of_a_half(source: Path, tmp_path: Path) -> None:
    far = in_memory(cache=tmp_path / "cache")
    far.put("rides/abc/job.json", b"half")
    assert not far.folder("rides/abc", last=DONE).exists()
    far.put_folder("rides/abc", source, last=DONE)
    copy = far.folder("rides/abc", last=DONE)
    assert copy.is_relative_to(tmp_path / "cache")
    assert folder_digests(copy) == folder_digests(source)
    before = (copy / DONE).stat().st_ino
    assert far.folder("rides/abc", last=DONE) == copy
    assert (copy / DONE).stat().st_ino == before
    assert [path.name for path in copy.parent.iterdir()] == ["abc"]


KILLED = """
import os, signal, sys
from pathlib import Path
from pyarrow import fs
from lake import storage
store = storage.ObjectStore(fs.LocalFileSystem(), sys.argv[1])
write = store._write
def half(target, content):
    if target.rpartition("/")[2].startswith(sys.argv[3]):
        with open(target, "wb") as file:
            file.write(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)
    write(target, content)
store._write = half
store.put_folder("rides/abc", Path(sys.argv[2]), last="manifest.json")
"""


@pytest.mark.parametrize("name", ["job.json", "manifest.json"])
def test_killed_in_a_put_nothing_is_half_there_and_a_retry_completes_it(
    source: Path, tmp_path: Path, name: str
) -> None:
    local = ObjectStore(fs.LocalFileSystem(), str(tmp_path / "store"))
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "store"), str(source), f".{name}."], check=False, timeout=60
    )
    assert ended.returncode == -signal.SIGKILL
    assert not local.exists(f"rides/abc/{DONE}")
    assert not local.exists(f"rides/abc/{name}")
    assert all(local.read(key) == FILES[key.removeprefix("rides/abc/")] for key in local.keys("rides"))
    assert not [listed for listed in local.names("rides/abc") if listed.startswith(".")]
    local.put_folder("rides/abc", source, last=DONE)
    assert {key.removeprefix("rides/abc/"): local.read(key) for key in local.keys("rides")} == FILES


def test_readers_see_one_of_two_conflicting_puts(store: ObjectStore) -> None:
    contents = [bytes([number]) * 200_000 for number in range(4)]
    store.put("page.html", contents[0])
    with ThreadPoolExecutor(4) as pool:
        puts = [pool.submit(store.put, "page.html", content) for content in contents * 5]
        while not all(put.done() for put in puts):
            # In memory a stream shows what is written so far; only a real object store, and a file system, do not.
            assert store.uri().startswith("bucket") or store.read("page.html") in contents
    assert all(put.result() == store.uri("page.html") for put in puts)
    assert store.read("page.html") in contents
    assert store.names() == ["page.html"]


def test_reports_behind_a_link_are_refused_and_artifacts_are_not(toy_lake: Lake, tmp_path: Path) -> None:
    settings = toy_lake.settings
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "page").write_text("secret")
    for folder in (settings.reports, settings.artifacts):
        folder.mkdir(parents=True)
        (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert artifacts(settings).read("linked/page") == b"secret"
    for key in ("linked/page", "../../elsewhere/page"):
        with pytest.raises(LeadsOutside, match="is, or lies behind, a link"):
            reports(settings).read(key)
        with pytest.raises(LeadsOutside):
            reports(settings).size(key)


def test_a_file_s_second_place_is_a_copy_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"rows")
    link_or_copy(tmp_path / "file", tmp_path / "linked")
    assert (tmp_path / "linked").stat().st_ino == (tmp_path / "file").stat().st_ino

    def refuse(*_arguments: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("lake.storage.os.link", refuse)
    link_or_copy(tmp_path / "file", tmp_path / "copied")
    assert (tmp_path / "copied").read_bytes() == b"rows"
    assert (tmp_path / "copied").stat().st_ino != (tmp_path / "file").stat().st_ino
    with pytest.raises(FileNotFoundError):
        link_or_copy(tmp_path / "nothing", tmp_path / "other")
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        link_or_copy(tmp_path / "nothing", tmp_path / "other")


def test_a_version_s_folder_is_its_place_among_the_artifacts(toy_lake: Lake) -> None:
    settings = toy_lake.settings
    assert artifact_folder(settings, "ride_minutes", "0123") == settings.artifacts / "ride_minutes" / "0123"
    assert storage.version_key("ride_minutes", "0123", "job.json") == "ride_minutes/0123/job.json"


# ---- locks -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgres"])
def locked_lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    lake = toy.toy_lake(tmp_path)
    if request.param == "postgres":
        url = request.getfixturevalue("empty_postgres")
        lake = Lake(lake.settings.model_copy(update={"sql_url": url}), lake.catalog)
    return lake


def test_a_lock_is_one_s_at_a_time_and_others_may_write_meanwhile(
    locked_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_LOCK_TRY_SECONDS", 0.05)
    waited = threading.Event()

    def second() -> str:
        with advisory_lock(locked_lake.engine, "feast"):
            waited.set()
            return "second"

    with ThreadPoolExecutor(1) as pool:
        with advisory_lock(locked_lake.engine, "feast"):
            other = pool.submit(second)
            # What the holder and others write to the database goes through, and another lock is free.
            assert locked_lake.publications is not None
            with advisory_lock(locked_lake.engine, "artifacts"):
                assert not waited.wait(0.3)  # longer than one try of the waiting one
        assert other.result(timeout=30) == "second"


HOLDER = """
import sys, time
from lake.lineage import create_engine
from lake.storage import advisory_lock
with advisory_lock(create_engine(sys.argv[1]), "feast"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_who_dies_gives_the_lock_back(locked_lake: Lake) -> None:
    locked_lake.engine.connect().close()  # the folder is there
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, locked_lake.settings.database_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        taken = threading.Event()

        def take() -> None:
            with advisory_lock(locked_lake.engine, "feast"):
                taken.set()

        thread = threading.Thread(target=take)
        thread.start()
        assert not taken.wait(0.3)
        os.kill(holder.pid, signal.SIGKILL)
        assert taken.wait(30)
        thread.join()
    finally:
        holder.kill()
        holder.wait()


def test_a_failing_block_gives_the_lock_back(locked_lake: Lake) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError), advisory_lock(locked_lake.engine, "feast"):
            raise RuntimeError

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from config.settings import ROOT
from lake.leftovers import SETTLED_SECONDS, held, is_leftover, remove, rotate, try_folder

LONG_AGO = time.time() - SETTLED_SECONDS - 60


def aged(path: Path) -> Path:
    """The path, as if it and all in it had been written long ago."""
    for each in (*path.rglob("*"), path):
        os.utime(each, (LONG_AGO, LONG_AGO), follow_symlinks=False)
    return path


def left(root: Path, name: str) -> Path:
    (root / name / "inner").mkdir(parents=True)
    (root / name / "inner" / "rows.parquet").write_bytes(b"rows")
    return root / name


def test_a_new_try_takes_what_dead_ones_left_and_nothing_else(tmp_path: Path) -> None:
    dead, young, written = aged(left(tmp_path, "dead")), left(tmp_path, "young"), left(tmp_path, "written")
    (tmp_path / "elsewhere").mkdir()
    aged(written)
    (written / "inner" / "rows.parquet").write_bytes(b"more rows")
    os.utime(written / "inner", (LONG_AGO, LONG_AGO))
    with try_folder(tmp_path, "next") as mine:
        assert mine.stat().st_mode & 0o077 == 0
        assert not dead.exists()
        assert young.is_dir(), "a try may have made it this moment"
        assert written.is_dir(), "somebody writes there"
    assert not mine.exists()


def test_what_a_live_try_holds_stays_however_old_it_is(tmp_path: Path) -> None:
    with try_folder(tmp_path, "slow") as slow:
        aged(slow)
        assert not is_leftover(slow)
        with try_folder(tmp_path, "next"):
            assert slow.is_dir()
    kept = aged(left(tmp_path, "kept"))
    with held(kept), held(kept):
        assert not is_leftover(kept)
    assert is_leftover(kept)


@pytest.mark.parametrize("end", ["killed", "forked"])
def test_a_try_holds_its_folder_as_long_as_a_process_of_it_lives(tmp_path: Path, end: str) -> None:
    if end == "forked":  # a stage's workers go on when the stage has died
        with held(left(tmp_path, "try")):
            context = multiprocessing.get_context("fork")
            child_waits, told = context.Pipe()
            worker = context.Process(target=child_waits.recv)
            worker.start()
        aged(tmp_path / "try")
        assert not is_leftover(tmp_path / "try")
        told.send("end")
        worker.join()
    else:
        code = (
            "import sys; from pathlib import Path; from lake.leftovers import try_folder\n"
            f"with try_folder(Path({str(tmp_path)!r}), 'try') as folder:\n"
            "    print(folder, flush=True); sys.stdin.read()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        folder = aged(Path(process.stdout.readline().strip()))
        assert not is_leftover(folder)
        process.kill()
        process.communicate()
        assert folder.is_dir()
    assert all(is_leftover(aged(path)) for path in tmp_path.iterdir())


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    outside = aged(left(tmp_path, "outside"))
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "link").symlink_to(outside)
    aged(tmp_path / "scratch")
    with try_folder(tmp_path / "scratch", "next"):
        assert not (tmp_path / "scratch" / "link").is_symlink()
    assert (outside / "inner" / "rows.parquet").is_file()
    remove(tmp_path / "gone already")


def test_a_log_that_has_grown_is_renamed_once(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    rotate(log, largest_bytes=10)
    log.write_text("123456789\n")
    with log.open("a") as writer:
        rotate(log, largest_bytes=11)
        assert log.is_file()
        rotate(log, largest_bytes=10)
        assert not log.exists()
        writer.write("a line of a stage that had it open\n")
    (renamed,) = tmp_path.glob("events-*.jsonl")
    assert renamed.read_text().splitlines() == ["123456789", "a line of a stage that had it open"]

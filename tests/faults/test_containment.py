"""What a trainer leaves in its job folder reaches nothing outside of it, whatever it is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lake.contained import UnsafeFile, check_contained, copy_contained, open_contained
from lake.lake import Lake
from tests.training.jobs import write_job
from training.registry import curves
from training.registry.attempt import Attempt, Ended, host_folder
from training.registry.curves import CurveStream
from training.registry.runner import run_job


class Hostile:
    """A runner whose trainer leaves something in the folder, and says that it ended well."""

    name, image = "docker", "nightfleet-training:0123"

    def __init__(self, leave: Callable[[Path], None]) -> None:
        self._leave = leave

    def prepare(self, say: Callable[[str], None]) -> None:
        """Nothing is left of an earlier try."""

    def run(self, attempt: Attempt) -> Ended:
        """Leave it."""
        self._leave(attempt.job_dir)
        return Ended(0, [])

    def cancel(self) -> None:
        """Nothing runs."""


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**9)


@pytest.mark.parametrize(
    ("name", "leave"),
    [
        ("importances.json", lambda path: path.symlink_to("/etc/hostname")),
        ("manifest.json", lambda path: path.symlink_to("/etc/hostname")),
        ("model", lambda path: path.symlink_to("/etc")),
        ("checkpoints", lambda path: path.symlink_to("/etc")),
        ("study", os.mkfifo),
        ("curves.jsonl", sparse),
        ("search.json", sparse),
    ],
)
def test_a_folder_with_a_link_a_pipe_or_a_sparse_file_is_not_used_and_not_written_into(
    toy_lake: Lake, tmp_path: Path, name: str, leave: Callable[[Path], None]
) -> None:
    job_dir = write_job(tmp_path / "job", "xgboost")
    before = {path.name for path in job_dir.iterdir()}
    for _ in range(2):  # the second try meets what the first one left
        runner = Hostile(lambda folder: None if os.path.lexists(folder / name) else leave(folder / name))
        with pytest.raises(UnsafeFile, match=rf"{name}.*nothing of this job is used"):
            run_job(toy_lake, "ride_minutes", job_dir, runner=runner, say=lambda line: None)
    assert {path.name for path in job_dir.iterdir()} == before | {name}
    assert json.loads((host_folder(job_dir) / "where.json").read_text())["runner"] == "docker"


def test_what_an_equal_job_left_is_not_taken_through_a_link(toy_lake: Lake, tmp_path: Path) -> None:
    trained = write_job(tmp_path / "jobs" / "first", "xgboost", params={"n_estimators": 2})
    run_job(toy_lake, "ride_minutes", trained, say=lambda line: None)
    (trained / "importances.json").unlink()
    (trained / "importances.json").symlink_to("/etc/hostname")
    second = write_job(tmp_path / "jobs" / "second", "xgboost", params={"n_estimators": 2})
    said: list[str] = []
    run_job(toy_lake, "ride_minutes", second, say=said.append)
    assert not any("equal to" in line for line in said)
    assert json.loads((second / "importances.json").read_text())


@pytest.mark.parametrize("name", ["link/secret", "secret_link", "../secret", "/etc/hostname", "link"])
def test_no_way_out_of_a_folder_is_followed(tmp_path: Path, name: str) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "job"
    for made in (outside, folder):
        made.mkdir()
    for secret in (outside / "secret", tmp_path / "secret"):
        secret.write_text("secret")
    (folder / "link").symlink_to(outside)
    (folder / "secret_link").symlink_to(outside / "secret")
    with pytest.raises(UnsafeFile):
        open_contained(folder, name)
    with pytest.raises(UnsafeFile):
        copy_contained(folder, name, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_what_is_regular_and_small_is_copied(tmp_path: Path) -> None:
    (tmp_path / "job" / "model").mkdir(parents=True)
    (tmp_path / "job" / "model" / "weights").write_bytes(b"12345")
    assert check_contained(tmp_path / "job") == ["model/weights"]
    copy_contained(tmp_path / "job", "model/weights", tmp_path / "copy", at_most=5)
    assert (tmp_path / "copy").read_bytes() == b"12345"
    with pytest.raises(UnsafeFile, match="has 5 bytes, at most 4"):
        copy_contained(tmp_path / "job", "model/weights", tmp_path / "second", at_most=4)


def test_curves_are_read_once_and_in_bounded_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "_MOST_BYTES", 100)
    lines = [json.dumps({"metric": "mae", "step": step, "value": 1.0}) + "\n" for step in range(20)]
    (tmp_path / "curves.jsonl").write_text("".join(lines))
    stream = CurveStream(tmp_path, "http://127.0.0.1:9", "run", print)
    pieces = []
    while piece := stream._new_points():
        pieces.append(piece)
    assert [step for piece in pieces for _, step, _ in piece] == list(range(20))
    assert max(len(piece) for piece in pieces) <= 3
    assert stream._new_points() == []
    with (tmp_path / "curves.jsonl").open("a") as file:
        file.write(lines[0].replace('"step": 0', '"step": 20'))
    assert stream._new_points() == [("mae", 20, 1.0)]


@pytest.mark.parametrize("content", [b"0" * 20_000, b"[" * 4_000 + b"\n", b'{"metric": "mae"}\n', b"\xff\n"])
def test_a_file_of_curves_that_holds_none_is_one_typed_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "curves.jsonl").write_bytes(content)
    with pytest.raises(UnsafeFile):
        CurveStream(tmp_path, "http://127.0.0.1:9", "run", print)._new_points()

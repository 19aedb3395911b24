"""Checkpoints are whole, of this job, verified; the last but one is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.checkpoints import STATE_FILE, Checkpoints


def writing(text: str):
    return lambda folder: (folder / "weights.bin").write_text(text)


def test_the_newest_is_found_with_its_state(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "a", 0)
    assert checkpoints.load("network") is None
    for epoch in (1, 2, 3):
        checkpoints.save("network", writing(f"epoch {epoch}"), {"epoch": epoch, "best": (0.1, None)})
    found = Checkpoints(tmp_path, "a", 0).load("network")
    assert found is not None
    assert (found.folder / "weights.bin").read_text() == "epoch 3"
    assert found.state == {"epoch": 3, "best": [0.1, None]}
    assert not found.finished
    assert len(list(tmp_path.iterdir())) == 2


def test_another_job_or_stage_does_not_find_it(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "a", 0).save("minutes", writing("x"), {})
    assert Checkpoints(tmp_path, "b", 0).load("minutes") is None
    assert Checkpoints(tmp_path, "a", 0).load("minutes_interval") is None
    with pytest.raises(ValueError, match="a stage is named"):
        Checkpoints(tmp_path, "a", 0).load("../minutes")


@settings(max_examples=40)
@given(position=st.floats(0, 1, exclude_max=True), which=st.sampled_from(["weights.bin", STATE_FILE]))
def test_a_damaged_one_gives_way_to_the_one_before(
    tmp_path_factory: pytest.TempPathFactory, position: float, which: str
) -> None:
    folder = tmp_path_factory.mktemp("c")
    checkpoints = Checkpoints(folder, "a", 0)
    for epoch in (1, 2):
        checkpoints.save("network", writing(f"weights of epoch {epoch}"), {"epoch": epoch})
    newest = max(folder.iterdir()) / which
    content = bytearray(newest.read_bytes())
    index = int(position * len(content))
    content[index] ^= 1
    newest.write_bytes(bytes(content))
    found = checkpoints.load("network")
    # A flipped space between two JSON tokens changes nothing; anything else is seen.
    assert found is not None
    assert found.state["epoch"] == 1 or (found.folder / "weights.bin").read_text() == "weights of epoch 2"


def test_a_kill_while_writing_leaves_the_last(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "a", 0)
    checkpoints.save("network", writing("whole"), {"epoch": 1})

    def killed(folder: Path) -> None:
        (folder / "weights.bin").write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save("network", killed, {"epoch": 2})
    found = checkpoints.load("network")
    assert found is not None
    assert found.state == {"epoch": 1}


def test_due_after_the_interval() -> None:
    now = [0.0]
    checkpoints = Checkpoints(Path("unused"), "a", 60, clock=lambda: now[0])
    assert not checkpoints.due()
    now[0] = 60
    assert checkpoints.due()

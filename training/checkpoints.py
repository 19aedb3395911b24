"""Checkpoints of a running training: whole or not there, verified before they are read, of this job or of none."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lake.artifact import ArtifactMismatch, combined_digest, folder_digests, verify_files
from serving.predictors.contract import read_json, write_json

CHECKPOINTS_FOLDER = "checkpoints"
STATE_FILE = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """One saved stage.

    Attributes:
        folder: the files that the trainer wrote, verified.
        state: what it said beside them, for example the epoch.
        finished: whether the stage had been completed.
    """

    folder: Path
    state: Mapping[str, Any]
    finished: bool


class Checkpoints:
    """Keeps the newest checkpoint of each stage of one training (a stage is one booster, one network).

    Args:
        folder: where they lie; survives a kill.
        identity: digest of all that decides the result; a checkpoint of another identity is not found.
        every_seconds: how much work may be lost.
        clock: seconds that only grow.
    """

    def __init__(
        self, folder: Path, identity: str, every_seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._identity, self._every_seconds, self._clock = folder, identity, every_seconds, clock
        self._last = clock()

    def due(self) -> bool:
        """Whether the interval has passed since the last checkpoint, or since the start."""
        return self._clock() - self._last >= self._every_seconds

    def save(
        self, stage: str, write: Callable[[Path], None], state: Mapping[str, Any], *, finished: bool = False
    ) -> None:
        """Replace the stage's checkpoint.

        Args:
            write: writes the trainer's files into the empty folder it is given.
            state: JSON; equal for equal progress.
            finished: the stage is complete, and a retry takes it as it is.
        """
        name = _checked(stage)
        attempt = self._folder / f"{name}.partial-{os.getpid()}"
        shutil.rmtree(attempt, ignore_errors=True)
        attempt.mkdir(parents=True)
        write(attempt)
        files = folder_digests(attempt)
        number = max((int(path.name.rsplit(".", 1)[1]) for path in self._saved(name)), default=0) + 1
        document = {"identity": self._identity, "state": dict(state), "finished": finished, "files": files}
        write_json(attempt / STATE_FILE, document | {"digest": _digest(document)})
        for path in attempt.iterdir():  # a machine that stops right after the rename must not leave empty files
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        attempt.rename(self._folder / f"{name}.{number}")
        for older in self._saved(name):
            if (
                int(older.name.rsplit(".", 1)[1]) < number - 1
            ):  # the last but one stays until the next: one damaged file costs one interval
                shutil.rmtree(older)
        self._last = self._clock()

    def load(self, stage: str) -> Checkpoint | None:
        """The newest whole checkpoint of the stage, or None."""
        for folder in sorted(self._saved(_checked(stage)), key=lambda path: -int(path.name.rsplit(".", 1)[1])):
            try:
                document = read_json(folder / STATE_FILE)
                digest = document.pop("digest")
                if document["identity"] != self._identity or digest != _digest(document):
                    continue
                verify_files(folder, document["files"])
            except (OSError, ValueError, KeyError, AttributeError, ArtifactMismatch):
                continue  # damaged: the one before it, or the beginning
            return Checkpoint(folder, document["state"], bool(document["finished"]))
        return None

    def _saved(self, name: str) -> list[Path]:
        return [path for path in self._folder.glob(f"{name}.*") if re.fullmatch(re.escape(name) + r"\.\d+", path.name)]


def _digest(document: Mapping[str, Any]) -> str:
    return combined_digest({STATE_FILE: json.dumps(document, sort_keys=True)})


def _checked(stage: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", stage):
        raise ValueError(f"a stage is named {stage!r}; needs lower-case letters, digits and _")
    return stage

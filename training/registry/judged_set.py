"""The test set of a training: its description, its files, and the proof that they are what was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import serving.predictors
from config.calendar import BadInterval, Interval
from config.errors import NightfleetError
from lake.artifact import file_digest
from lake.lake import Lake
from lake.lineage import Input
from serving.signed import signed_files
from training.registry.register import Registered

Floats = npt.NDArray[np.float64]


class GateEvidenceMissing(NightfleetError):
    """What the gate must judge by is not there."""


class GateEvidenceChanged(NightfleetError):
    """What the gate must judge by is not what was written when the training set was built."""


TEST_FILE = "test_set.parquet"


@dataclass(frozen=True)
class JudgedSet:
    """A training set's description and its two files."""

    as_of: date
    training_path: Path
    test_path: Path
    training_digest: str
    test_digest: str
    windows: Mapping[str, Interval]
    pins: Mapping[str, int]
    inputs: Sequence[Input]

    @property
    def versions(self) -> dict[str, int]:
        """Delta version each table was read at: the newest of its partitions'."""
        versions: dict[str, int] = {}
        for item in self.inputs:
            versions[item.table] = max(versions.get(item.table, 0), item.version)
        return versions

    @property
    def test_inputs(self) -> list[Input]:
        """Partitions of the nights of the test window."""
        return [item for item in self.inputs if item.data_date in self.windows["test"]]


def read_document(path: Path) -> dict[str, Any]:
    """A training set's description, as it was written.

    Raises:
        GateEvidenceMissing, GateEvidenceChanged: it is not there, or is no JSON.
    """
    if not path.is_file():
        raise GateEvidenceMissing(
            f"{path} does not exist: the gate cannot know what was trained on which nights. Nothing was judged. Train "
            "again."
        )
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise GateEvidenceChanged(
            f"{path} is not a JSON document ({error}). Nothing was judged. Train again."
        ) from error


def read_windows(document: Mapping[str, Any], path: Path) -> dict[str, Interval]:
    """The nights of each split, by a description that was read from `path`.

    Raises:
        GateEvidenceChanged: it does not say them.
    """
    try:
        return {
            split: Interval(
                date.fromisoformat(document["windows"][split]["start"]),
                date.fromisoformat(document["windows"][split]["end"]),
            )
            for split in ("train", "validation", "test")
        }
    except (BadInterval, KeyError, TypeError, ValueError) as error:
        raise GateEvidenceChanged(
            f"{path} does not say which nights were trained on ({error!r}). Nothing was judged. Train again."
        ) from error


def read_set(path: Path, job_dir: Path) -> JudgedSet:
    """The set that the description at `path` names; the training set lies in `job_dir`, the test set beside `path`.

    Raises:
        GateEvidenceMissing, GateEvidenceChanged: the description is not there, or is none.
    """
    document = read_document(path)
    windows = read_windows(document, path)
    try:
        return JudgedSet(
            as_of=date.fromisoformat(document["as_of"]),
            training_path=job_dir / Path(document["training_path"]).name,
            test_path=path.with_name(TEST_FILE),
            training_digest=document["training_digest"],
            test_digest=document["test_digest"],
            windows=windows,
            pins=dict(document["pins"]),
            inputs=[
                Input(i["table"], date.fromisoformat(i["data_date"]), i["digest"], i["version"])
                for i in document["inputs"]
            ],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise GateEvidenceChanged(
            f"{path} does not describe a training set ({error!r}). Nothing was judged. Train again."
        ) from error


def verify_set(judged: JudgedSet, registered: Registered, lake: Lake) -> None:
    """The files are those the description names, and the model was trained from them."""
    for what, path, digest in (
        ("test set", judged.test_path, judged.test_digest),
        ("training set", judged.training_path, judged.training_digest),
    ):
        if not path.is_file():
            raise GateEvidenceMissing(
                f"the {what} {path} does not exist. Nothing was judged, the champion stays. Train again."
            )
        found = file_digest(path)
        if found != digest:
            raise GateEvidenceChanged(
                f"the {what} {path} has digest {found[:12]}…, it was written with {digest[:12]}…: its bytes were "
                "changed. "
                "Nothing was judged, the champion stays. Train again."
            )
    with signed_files(lake.settings, registered.model, registered.artifact_digest, documents_only=True) as folder:
        trained_on = serving.predictors.read_manifest(folder)["training_set_digest"]
    if trained_on != judged.training_digest:
        raise GateEvidenceChanged(
            f"{registered.model} version {registered.version} was trained on a set of digest {trained_on[:12]}…, this "
            f"job's is {judged.training_digest[:12]}…: "
            "its test set may hold nights the model has seen. Nothing was judged. Judge it with its own job, or train "
            "again."
        )

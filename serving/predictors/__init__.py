"""Trained models, loaded from verified bytes and predicting in batches: one file a family.

A family's file defines `load(folder, contract) -> Predictor`, `PRELOAD`, the modules worth importing once for many
processes, and, where it has an explainer of its own, `explain(folder, contract, sample) -> Shapley`.

A team keeps families of its own in `families/<name>` of its catalog folder: see `serving.predictors.brought`.

Part of the training image: imports nothing of ours but `config.errors` and `lake.artifact`.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from config.errors import NightfleetError
from lake.artifact import ArtifactMismatch, combined_digest, verify_files
from serving.predictors.brought import FAMILY_FOLDER, FamilyCode, brought
from serving.predictors.contract import Contract, Predictor
from serving.predictors.shapley import Sample, Shapley

# One way of computing everywhere: TensorFlow's other kernels, which it takes by itself on some machines, give other
# last bits. It reads this once, when it is imported.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

# A file here that defines `load` is a family.
FAMILIES = tuple(
    sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if "\ndef load(" in path.read_text(encoding="utf-8")
    )
)
MANIFEST_FILE = "manifest.json"
Explainer = Callable[[Path, Contract, Sample], Shapley]

__all__ = [
    "FAMILIES",
    "MANIFEST_FILE",
    "BadManifest",
    "Contract",
    "Explainer",
    "Predictor",
    "UnknownFamily",
    "explainer_of",
    "load_model_folder",
    "load_predictor",
    "preloaded_libraries",
    "read_manifest",
]


class UnknownFamily(NightfleetError):
    """No code trains or loads models of that family."""


class BadManifest(NightfleetError):
    """There is no manifest, or it is not one."""


def check_family(family: str) -> str:
    """The family, if there is code for it.

    Raises:
        UnknownFamily: there is none.
    """
    if family not in FAMILIES and family not in brought():
        known = ", ".join([*FAMILIES, *brought()])
        raise UnknownFamily(
            f"there is no model family {family!r}. Known: {known}. Fix `trainer.family` in the model's catalog file, "
            "or add the family: a folder families/<name> with trainer.py and predictor.py in your catalog folder."
        )
    return family


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished training job or of a stored model.

    Raises:
        BadManifest: it is missing or unreadable.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise BadManifest(f"{path} does not exist, so no training has finished there. Train the model again.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        artifacts = manifest["artifacts"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadManifest(
            f"{path} is not a manifest ({error}). Its bytes were changed; restore it, or train the model again."
        ) from error
    if not isinstance(artifacts, dict) or "model/contract.json" not in artifacts:
        raise BadManifest(
            f"{path} lists no model/contract.json among its artifacts. Its bytes were changed; restore it, or train "
            "the model again."
        )
    for name in artifacts:
        if name.startswith("/") or ".." in name.split("/"):
            raise BadManifest(f"{path} lists the artifact {name!r}, which lies outside its folder. Nothing was loaded.")
    return dict(manifest)


def load_predictor(folder: Path, *, artifact_digest: str | None = None) -> Predictor:
    """Load the model below `folder` after checking every byte of it.

    Args:
        folder: holds `manifest.json` and `model/`; a job folder, or `<artifacts>/<model>/<artifact digest>`.
        artifact_digest: what the manifest's list of files must combine to; by default the folder's name, where that is
            a digest.
    Raises:
        BadManifest: there is none, or it is damaged.
        ArtifactMismatch: a file is missing or its bytes were changed, or the list is another one than `artifact_digest`
            names.
        UnknownFamily: no code loads it.
    """
    manifest = read_manifest(folder)
    if artifact_digest is None and re.fullmatch(r"[0-9a-f]{64}", folder.name):
        artifact_digest = folder.name
    digest = combined_digest(manifest["artifacts"])
    if artifact_digest is not None and digest != artifact_digest:
        raise ArtifactMismatch(
            f"{folder / MANIFEST_FILE} lists files of digest {digest[:12]}…, wanted is {artifact_digest[:12]}…: it was "
            "changed. Nothing was loaded."
        )
    verify_files(folder, manifest["artifacts"])
    unlisted = {p.relative_to(folder).as_posix() for p in (folder / "model").rglob("*") if p.is_file()} - set(
        manifest["artifacts"]
    )
    if unlisted:
        raise ArtifactMismatch(
            f"{folder} holds {min(unlisted)}, which the manifest does not list. Nothing was loaded. Remove it, or "
            "train the model again."
        )
    return load_model_folder(folder / "model")


def load_model_folder(folder: Path) -> Predictor:
    """Load a model's own folder, whose bytes the caller has just written or verified.

    Raises:
        UnknownFamily: no code loads it.
    """
    contract = Contract.read(folder)
    predictor: Predictor = _module(contract.family, folder).load(folder, contract)
    return predictor


def explainer_of(family: str, folder: Path) -> Explainer | None:
    """The own `explain(model folder, contract, sample)` of a family, None where its file has none.

    Args:
        folder: the model's own, whose bytes the caller has verified.
    Raises:
        UnknownFamily: there is no such family.
    """
    return getattr(_module(family, folder), "explain", None)


def preloaded_libraries(family: str) -> tuple[str, ...]:
    """Modules that take long to import and that every process with a model of the family imports.

    Raises:
        UnknownFamily: there is no such family.
    """
    return tuple(_module(family).PRELOAD)


def _module(family: str, folder: Path | None = None) -> ModuleType:
    """The code that serves a family: a model's own where it brought some, and the family is not one of ours."""
    if family not in FAMILIES and folder is not None and (folder / FAMILY_FOLDER).is_dir():
        return FamilyCode.read(family, folder / FAMILY_FOLDER).module("predictor")
    if family in brought():
        return brought()[family].module("predictor")
    return importlib.import_module(f"serving.predictors.{check_family(family)}")

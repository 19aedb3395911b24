"""What a model version rests on, as its trainer stored it beside the version's files, and other documents that lie
there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from config.catalog.model import ModelEntry
from config.settings import Settings
from lake.storage import artifacts, version_key

IMPORTANCES_FILE = "importances.json"
_LARGEST_FILE = 4_000_000


@dataclass(frozen=True)
class Importances:
    """What a version rests on, as its trainer measured it; `shares` is empty and `missing` says why where that is not
    known.

    Attributes:
        shares: by feature, mean over the outputs of its share of the whole, in [0, 1].
    """

    version: int | None
    family: str = ""
    shares: Mapping[str, float] = field(default_factory=dict)
    missing: str | None = None


def read_importances(
    settings: Settings, entry: ModelEntry, version: int | None, artifact_digest: str | None
) -> Importances:
    """What the trainer stored beside a version's files; checked to be shares of this model's outputs, else `missing`
    says what is wrong.
    """
    if version is None or artifact_digest is None:
        return Importances(None, missing="no version had scored a night by the end of the period")
    store, key = artifacts(settings), version_key(entry.name, artifact_digest, IMPORTANCES_FILE)
    size = store.size(key)
    if size is None:
        return Importances(version, missing=f"version {version} has no {IMPORTANCES_FILE} beside its files")
    problem = None
    try:
        if size > _LARGEST_FILE:
            problem = f"has {size:,} bytes, more than the {_LARGEST_FILE:,} that are read"
        else:
            document = json.loads(store.read(key))
            problem = _problem(document, entry)
    except (OSError, ValueError, RecursionError) as error:
        problem = f"cannot be read ({type(error).__name__})"
    if problem:
        return Importances(version, missing=f"{IMPORTANCES_FILE} of version {version} {problem}")
    shares: dict[str, float] = {}
    for by_feature in document.values():
        for name, share in by_feature.items():
            shares[name] = shares.get(name, 0.0) + float(share) / len(document)
    if not shares:
        return Importances(version, missing=f"the trainer of version {version} measured no importances")
    return Importances(
        version,
        str(read_document(settings, version_key(entry.name, artifact_digest, "manifest.json")).get("family", "")),
        shares,
    )


def _problem(document: Any, entry: ModelEntry) -> str | None:
    if not isinstance(document, dict) or not document or not all(isinstance(part, dict) for part in document.values()):
        return "does not hold shares by output and feature"
    strange = sorted(set(document) - set(entry.outputs))
    if strange:
        return f"names an output that the model does not have: {strange[0][:60]!r}"
    shares = [share for part in document.values() for share in part.values()]
    if not all(isinstance(share, (int, float)) and not isinstance(share, bool) and 0 <= share <= 1 for share in shares):
        return "holds a share that lies outside 0 to 1"
    return None


def read_document(settings: Settings, key: str) -> Mapping[str, Any]:
    """A JSON object among a version's files, for links and names; empty where it is not there or is none."""
    try:
        document = json.loads(artifacts(settings).read(key))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}

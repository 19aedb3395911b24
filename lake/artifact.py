"""Digests of files and folders; part of the training image, so it needs nothing but the standard library."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from config.errors import NightfleetError


class ArtifactMismatch(NightfleetError):
    """A file's bytes are not those its digest names."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: Path, *, exclude: frozenset[str] = frozenset()) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by its path relative to it, in sorted order."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {name: file_digest(path) for path in files if (name := path.relative_to(folder).as_posix()) not in exclude}


def combined_digest(digests: dict[str, str]) -> str:
    """One digest of a set of named digests."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def verify_files(folder: Path, digests: dict[str, str]) -> None:
    """Check the bytes of every named file.

    Raises:
        ArtifactMismatch: a file is missing, or its bytes have another digest.
    """
    for name, expected in digests.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactMismatch(f"{path} is missing, though the manifest lists it. Restore it, or train again.")
        actual = file_digest(path)
        if actual != expected:
            raise ArtifactMismatch(
                f"{path} has digest {actual[:12]}…, the manifest says {expected[:12]}…: its bytes were changed. "
                "Nothing was loaded."
            )

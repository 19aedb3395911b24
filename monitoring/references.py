"""What the nights of a model version are compared with: the profile that was stored and signed beside its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from config.catalog.model import ModelEntry
from config.settings import Settings
from lake.assignment import Assignment, scored_by
from lake.lake import Lake
from lake.lineage import Publication
from lake.signature import UntrustedModel
from lake.storage import artifacts, version_key
from serving.signed import signed_files
from training.registry.reference import (
    READABLE_FORMATS,
)


@dataclass(frozen=True)
class VersionReference:
    """The profile stored with a model version; `profile` is empty and `missing` says why where there is none.

    Attributes:
        version: MLflow's number.
        profile: as `training.registry.reference.build_reference` made it.
    """

    version: int
    artifact_digest: str
    profile: Mapping[str, Any]
    missing: str | None = None

    @property
    def window(self) -> int:
        """Nights that one judgement covers."""
        return int(self.profile.get("window_nights", 1))

    def described(self) -> str:
        """What numbers are compared with, for the metrics table."""
        if self.missing:
            return f"version {self.version}"
        return f"version {self.version}, trained on {self.profile['first']} to {self.profile['last']}"


def load_reference(settings: Settings, model: str, version: int, artifact_digest: str) -> VersionReference:
    """The reference profile beside a version's files, as it was signed; a version without one, or whose files are not
    as they were signed, is *not evaluated*, with the reason.

    Raises:
        MissingSecret: there is no key to verify with.
    """

    def without(why: str) -> VersionReference:
        return VersionReference(version, artifact_digest, {}, why)

    if not artifacts(settings).exists(version_key(model, artifact_digest, "reference.json")):
        return without(f"version {version} has no reference.json beside its files; register it again")
    try:
        with signed_files(settings, model, artifact_digest, documents_only=True) as folder:
            profile = json.loads((folder / "reference.json").read_bytes())
    except UntrustedModel as error:
        return without(f"reference.json of version {version} is not trusted: {str(error).splitlines()[0]}")
    except ValueError:
        return without(f"reference.json of version {version} is not JSON; register it again")
    if profile.get("format") not in READABLE_FORMATS:
        needed = " or ".join(map(str, READABLE_FORMATS))
        why = f"reference.json of version {version} has format {profile.get('format')}, needs {needed}; train it again"
        return without(why)
    return VersionReference(version, artifact_digest, profile)


References = Mapping[date, Mapping[str, VersionReference]]  # by night and role


def references_of(
    lake: Lake, model: str, scored: Mapping[date, Publication]
) -> dict[date, dict[str, VersionReference]]:
    """By night and role: the version that scored it, as the publication recorded it, with its reference."""
    loaded: dict[str, VersionReference] = {}

    def reference(assignment: Assignment) -> VersionReference:
        digest = assignment.artifact_digest
        if digest not in loaded:
            loaded[digest] = load_reference(lake.settings, model, assignment.version, digest)
        return loaded[digest]

    return {
        day: {assignment.role: reference(assignment) for assignment in scored_by(day, publication.details)}
        for day, publication in scored.items()
    }


def feature_profiles(lake: Lake, entry: ModelEntry, reference: VersionReference) -> dict[str, Mapping[str, Any]]:
    """Profiles of the features, calendar columns left out: they follow from the date alone."""
    declared = lake.catalog.feature_columns(entry)
    columns: Mapping[str, Mapping[str, Any]] = reference.profile.get("columns", {})
    return {name: profile for name, profile in columns.items() if not (name in declared and declared[name].calendar)}

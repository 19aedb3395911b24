"""Judge a challenger: may this version score from the next night on?

Both models predict the same rows, those of the nights after the training and validation windows of both, with the
predictors that score every night. Days are resampled, not rows, and each output's improvement must reach `better_by`
with the catalog's confidence. A first champion passes the same test against the trivial baseline.

Segments. A segment refuses when the challenger is worse there than `worst` times the incumbent *with the same
confidence*: the lower bound of the error ratio lies above it. The ratio itself would refuse on noise: with two dozen
segments of a few hundred rows in two weeks, some lie 5 % above an incumbent that is no better. The rule holds for first
champions too, whose incumbent is the baseline: being better on the whole is no licence to be proven worse than guessing
for one carrier.

A decision is stored once with all its evidence, and never rewritten; the same judgement asked for again is the same
decision.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from config.errors import NightfleetError
from lake.lake import Lake
from lake.ledger import LedgerSnapshot, Promotion
from lake.rollouts import RolloutLine
from lake.storage import artifact_folder
from training.registry.decision import (
    Decision,
    incumbent_of,
    is_signed,
    store_decision,
    stored_decisions,
)
from training.registry.job import TRAINING_SET_FILE, checked_job, gate_folder
from training.registry.judged_set import (
    read_set,
    verify_set,
)
from training.registry.judgement import Judgement
from training.registry.numbers import VersionNumberTaken
from training.registry.register import Registered


class ForeignVersion(NightfleetError):
    """What was handed over is not a version of the model."""


def judge_registered(
    lake: Lake, model: str, job_dir: str | Path, registered: Mapping[str, Any], *, run_id: str
) -> dict[str, Any]:
    """`judge`, with arguments and result as JSON documents; `registered` has the fields of `Registered`."""
    handed = registered_from_json(lake, model, registered)
    return judge(lake, model, checked_job(lake, model, job_dir), handed, run_id=run_id).to_json()


def registered_from_json(lake: Lake, model: str, document: Mapping[str, Any]) -> Registered:
    """A `Registered` from its fields as JSON, which another process handed over: where its files lie follows from the
    digest, and is not taken from there.

    Raises:
        ForeignVersion: it is of another model, or its digest is none.
    """
    digest = str(document["artifact_digest"])
    if document["model"] != model or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ForeignVersion(
            f"version {document['version']!r} of {document['model']!r} with digest {digest[:80]!r} was handed over: "
            f"needs a version of {model} and a SHA-256. Nothing was read. Clear `register` to hand over what it stored."
        )
    return Registered(
        model=model,
        version=int(document["version"]),
        artifact_digest=digest,
        mlflow_run_id=document["mlflow_run_id"],
        as_of=date.fromisoformat(str(document["as_of"])),
        folder=artifact_folder(lake.settings, model, digest),
    )


def judge(lake: Lake, model: str, job_dir: Path, registered: Registered, *, run_id: str) -> Decision:
    """Judge a registered version, and store the decision; a judgement that was made already is returned as it was.

    Args:
        job_dir: the training job, its test set in `<job_dir>.gate`.
        registered: the version; its files are read from the content-addressed folder that would score.
    Returns:
        promote; refuse, with every reason; or not_evaluated, where too few nights lie after both models' windows.
    Raises:
        VersionNumberTaken: the ledger knows the number by other files. No verdict.
        GateEvidenceMissing, GateEvidenceChanged: the test set, the training set or their description is not there or
            was edited. No verdict.
        BadManifest, ArtifactMismatch, UntrustedModel, ModelMissing: the files of challenger or champion are missing,
            changed or unsigned. No verdict.
    """
    entry = lake.model(model)
    judged = read_set(gate_folder(job_dir) / TRAINING_SET_FILE, job_dir)
    verify_set(judged, registered, lake)
    snapshot, rollouts = lake.ledger(model).read(), lake.rollouts(model).read()
    _check_number((*snapshot.promotions, *rollouts.lines), registered)
    champion = _champion(snapshot, registered.version)
    subject = {
        "artifact_digest": registered.artifact_digest,
        "test_digest": judged.test_digest,
        "training_digest": judged.training_digest,
        "catalog_digest": lake.catalog.digest(model),
    }
    cited = {line.evidence_digest for line in snapshot.promotions}
    cited |= {line.evidence_digest for line in rollouts.lines if line.kind == "started"}
    made = _already_judged(lake, model, registered.version, judged.as_of, subject, champion, cited)
    if made is not None:
        return made
    evidence = Judgement(lake, entry, judged, registered, champion).evidence(subject)
    return store_decision(lake, evidence, run_id=run_id, inputs=judged.test_inputs)


def _check_number(lines: Iterable[Promotion | RolloutLine], registered: Registered) -> None:
    """One number names one set of files and one set of files has one number, else the champion in force would be taken
    for the challenger itself, or for another.
    """
    version, digest = registered.version, registered.artifact_digest
    for line in lines:
        if (line.version == version) != (line.artifact_digest == digest):
            raise VersionNumberTaken(
                f"version {line.version} of {registered.model} is {line.artifact_digest[:12]}… in the ledger, but "
                f"{digest[:12]}… was handed over as version {version}. Nothing was judged, the champion stays.\n"
                "  Clear `register`: it gives each version the number that the ledger knows, or a new one."
            )


def _champion(snapshot: LedgerSnapshot, version: int) -> Promotion | None:
    """The newest promotion of another version: a version that was promoted since is not its own incumbent."""
    others = [p for p in snapshot.promotions if p.version != version]
    return max(others, key=lambda p: (p.effective_from, p.sequence), default=None)


def _already_judged(
    lake: Lake,
    model: str,
    version: int,
    as_of: date,
    subject: Mapping[str, str],
    champion: Promotion | None,
    cited: Collection[str],
) -> Decision | None:
    """The signed decision on the same files with the same rules against the same incumbent; one that a ledger cites
    stands whoever is champion now.
    """
    same = [
        d
        for _, _, d in stored_decisions(lake, model, as_of)
        if d.version == version and d.evidence["subject"] == subject
    ]
    for decision in reversed(same):
        made_here = is_signed(lake, decision) and decision.incumbent_version == _against(decision, champion)
        if decision.evidence_digest in cited or made_here:
            return decision
    return None


def _against(decision: Decision, champion: Promotion | None) -> int | None:
    unusable = incumbent_of(decision.evidence).get("unusable_champion")
    if unusable is not None and champion is not None and unusable["version"] == champion.version:
        return None
    return champion.version if champion else None

"""Make a version champion, or take it back: the ledger first, MLflow's alias after it.

The ledger decides who scores which night. MLflow's `champion` alias and its tags only show it: they are written after
the ledger, may lag when MLflow is down, and are repaired from the ledger by every later run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from config.calendar import ONE_DAY, data_date_of
from config.errors import NightfleetError
from lake.artifact import verify_files
from lake.lake import Lake
from lake.ledger import LedgerSnapshot, Promotion
from lake.lineage import PartitionNotReady
from lake.promotions import project_promotions
from lake.signed_lines import LedgerConflict
from lake.storage import artifact_folder
from lake.stored_rollouts import project_rollouts
from lake.tables import named_table
from serving.predictors import read_manifest
from training.registry.approval import ReasonMissing, approval_of
from training.registry.decision import Decision, check_signed, incumbent_of, read_decisions
from training.registry.origin import verify_origin
from training.registry.register import Registered
from training.registry.tracking import MlflowUnavailable, answered, tracking_client

ALIAS = "champion"
log = logging.getLogger(__name__)


class StaleDecision(NightfleetError):
    """The decision was made on something else than is asked to be promoted, or against a champion that no longer is
    one.
    """


class NothingToRollBackTo(NightfleetError):
    """There is no former champion."""


class ModelFilesDamaged(NightfleetError):
    """The files of a version are missing or are not those that were judged."""


@dataclass(frozen=True)
class AliasState:
    """What MLflow shows after a repair.

    Attributes:
        version: the champion by the ledger, None where there is none.
        changed: how many aliases and tags had to be set.
        warning: why MLflow could not be brought in line, else None; the ledger is right all the same.
    """

    version: int | None
    changed: int
    warning: str | None


def promotion_json(promotion: Promotion) -> dict[str, Any]:
    """A line of the ledger as JSON."""
    plain = {
        name: value.isoformat() if isinstance(value, date) else value for name, value in promotion.__dict__.items()
    }
    return plain


def promote(lake: Lake, decision: Decision, registered: Registered, *, by: str) -> Promotion | None:
    """Write a passed challenger to the ledger; the same decision again finds its line there and writes nothing.

    Then MLflow's alias is brought in line; where it is down this is a warning in the log, and a later run's repair.

    Args:
        by: the run that promotes. Where the catalog asks for approval, the ledger names the person who gave it in that
            run.
    Returns:
        The ledger's line, or None where the verdict is not `promote`.
    Raises:
        NotApproved: the catalog asks for a person's approval, and that run has none of this evidence; nothing is
            written.
        StaleDecision: it was made on another version, or against another champion than the one in force.
        DecisionNotSigned: this installation's gate did not make it; nothing is written.
        LedgerUntrusted: a line of the ledger is not ours; nothing is written.
        ModelFilesDamaged: the version's files are missing or are not those that were judged; nothing is written.
        LedgerConflict: another promotion was written in between; nothing is written.
    """
    if decision.verdict != "promote":
        repair_alias(lake, decision.model)
        return None
    check_same(decision, registered)
    ledger = lake.ledger(decision.model)
    seen = ledger.read()
    promotion = written(seen, decision)
    if promotion is None:
        line = checked_promotion(lake, decision, registered.artifact_digest, by=by, seen=seen)
        try:
            promotion = written(ledger.append(line, seen=seen), decision)
        except LedgerConflict:
            promotion = written(ledger.read(), decision)  # the same task, run twice at once
            if promotion is None:
                raise
    assert promotion is not None  # the line was appended just now
    repair_alias(lake, decision.model)
    return promotion


def checked_promotion(
    lake: Lake, decision: Decision, artifact_digest: str, *, by: str, seen: LedgerSnapshot
) -> Promotion:
    """The line that makes a passed challenger champion from the next night on; not written yet.

    Raises:
        as `promote`.
    """
    check_signed(lake, decision)
    if lake.model(decision.model).approval == "required":
        by = f"{approval_of(lake, decision, run_id=by).by} ({by})"
    check_incumbent(decision, seen)
    check_files_of(lake, decision.model, decision.version, artifact_digest)
    decided_at = datetime.now(UTC)
    return Promotion(
        model=decision.model,
        version=decision.version,
        trained_until=decision.as_of,
        effective_from=max(effective_from(lake, decision.model, decided_at=decided_at, seen=seen), decision.as_of),
        decided_at=decided_at,
        by=by,
        artifact_digest=artifact_digest,
        evidence_digest=decision.evidence_digest,
    )


def rollback(
    lake: Lake, model: str, *, by: str, reason: str, version: int | None = None, run_id: str | None = None
) -> Promotion:
    """Make a former champion champion again, from the next night on; nights already scored keep theirs.

    Rolled back twice, it is the one before that. The line cites the evidence that version was once promoted with.

    Args:
        by: the person.
        reason: why; kept in the ledger.
        version: the former champion wanted; the last one by default.
        run_id: run on whose behalf it is done; the same run again finds its line and writes nothing.
    Raises:
        ReasonMissing: the reason is empty; nothing is written.
        NothingToRollBackTo: the model never had another champion, or that version was none; nothing is written.
        ModelFilesDamaged: the former champion's files are missing, were changed or are not signed; nothing is written.
        LedgerConflict: another promotion was written in between; nothing is written.
    """
    if not reason.strip():
        raise ReasonMissing(
            f"{model} was not rolled back: no reason was given. Nothing was written. Say why; it is kept in the ledger."
        )
    ledger = lake.ledger(model)
    seen = ledger.read()
    if run_id is not None:
        by = f"{by} ({run_id})"
        done = next((p for p in seen.promotions if p.kind == "rollback" and p.by.endswith(f"({run_id})")), None)
        if done is not None:
            repair_alias(lake, model)
            return done
    former = _former(model, _tenures(seen), version)
    check_files_of(lake, model, former.version, former.artifact_digest)
    decided_at = datetime.now(UTC)
    line = Promotion(
        model=model,
        version=former.version,
        trained_until=former.trained_until,
        effective_from=effective_from(lake, model, decided_at=decided_at, seen=seen),
        decided_at=decided_at,
        by=by,
        artifact_digest=former.artifact_digest,
        evidence_digest=former.evidence_digest,
        kind="rollback",
        reason=reason.strip(),
    )
    written = ledger.append(line, seen=seen).promotions[-1]
    repair_alias(lake, model)
    return written


def _former(model: str, tenures: list[Promotion], version: int | None) -> Promotion:
    if len(tenures) < 2:
        has = f"version {tenures[0].version} is its only champion so far" if tenures else "it never had a champion"
        raise NothingToRollBackTo(
            f"{model} cannot be rolled back: {has}. Nothing was written. Train another version (`{model}_train`)."
        )
    former = next((p for p in reversed(tenures[:-1]) if version is None or p.version == version), None)
    if former is None:
        known = ", ".join(str(p.version) for p in tenures[:-1])
        raise NothingToRollBackTo(
            f"{model} cannot be rolled back to version {version}: former champions are {known}, version "
            f"{tenures[-1].version} is champion. Nothing was written."
        )
    return former


def effective_from(
    lake: Lake, model: str, *, decided_at: datetime | None = None, seen: LedgerSnapshot | None = None
) -> date:
    """First data date that a promotion decided now may score: the first whose cutoff is not before the decision.

    In a replay, where "now" is the newest cutoff, that is the night after the newest one whose features are all
    published. A live data set also counts the clock. Never a night that has predictions, nor one before the last
    promotion's first.

    Raises:
        PartitionNotReady: no night's features are published.
    """
    entry = lake.model(model)
    dataset = lake.dataset(entry.dataset)
    newest = {table.name: lake.publications.newest(table) for table in lake.feature_tables(entry).values()}
    missing = [table for table, publication in newest.items() if publication is None]
    if missing:
        raise PartitionNotReady(
            f"{missing[0]} has no partition at all, so no night can be the first that {model} scores.\n"
            f"  Run `{missing[0].partition('/')[0]}_history`, then clear this task."
        )
    candidates = [min(p.data_date for p in newest.values() if p is not None) + ONE_DAY]
    if dataset.replay is None:
        candidates.append(data_date_of(decided_at or datetime.now(UTC), dataset.time_zone))
    scored = lake.publications.newest(named_table(lake.settings, f"{model}/predictions", {}, ()))
    if scored is not None:
        candidates.append(scored.data_date + ONE_DAY)
    candidates += [p.effective_from for p in (seen or lake.ledger(model).read()).promotions]
    return max(candidates)


def repair_alias(lake: Lake, model: str) -> AliasState:
    """Bring SQL's `promotions` and `rollouts`, then MLflow's `champion` alias and stage tags in line with the ledgers;
    sets only what differs.

    Tags of a version: `stage` (champion, former champion), `gate` (its newest verdict). Never raises for MLflow's sake:
    the warning is logged and returned, and the next run repairs.
    """
    snapshot = lake.ledger(model).read()
    project_promotions(lake, model, seen=snapshot)
    project_rollouts(lake, model)
    newest = snapshot.newest
    wanted = _wanted_tags(snapshot, read_decisions(lake, model))
    version = newest.version if newest else None
    if not wanted:
        return AliasState(version, 0, None)
    try:
        changed = _project(lake, model, version, wanted, {p.version: p.artifact_digest for p in snapshot.promotions})
    except MlflowUnavailable as error:
        warning = (
            f"{model}: MLflow may not show version {version} as champion yet. Scoring goes by the ledger; the next run"
            f" tries again. {error}"
        )
        log.warning("%s", warning)
        return AliasState(version, 0, warning)
    except ModelFilesDamaged as error:
        log.warning("%s", error)
        return AliasState(version, 0, str(error))
    return AliasState(version, changed, None)


def alias_problem(lake: Lake, model: str) -> str | None:
    """How MLflow's champion differs from the ledger's, None where it does not; nothing is written.

    Raises:
        MlflowUnavailable: it does not answer.
    """
    from mlflow.exceptions import MlflowException

    newest = lake.ledger(model).read().newest
    if newest is None:
        return None
    client = tracking_client(lake.settings)
    try:
        shown = int(client.get_model_version_by_alias(model, ALIAS).version)
    except MlflowException:
        return f"MLflow shows no champion, the ledger says version {newest.version}"
    if shown == newest.version:
        return None
    return f"MLflow shows version {shown} as champion, the ledger says version {newest.version}"


def _wanted_tags(snapshot: LedgerSnapshot, decisions: list[Decision]) -> dict[int, dict[str, str]]:
    wanted: dict[int, dict[str, str]] = {}
    for decision in decisions:
        wanted.setdefault(decision.version, {})["gate"] = decision.verdict
    for promotion in snapshot.promotions:
        wanted.setdefault(promotion.version, {})["stage"] = "former champion"
    if snapshot.newest is not None:
        wanted[snapshot.newest.version]["stage"] = "champion"
    return wanted


def _project(
    lake: Lake,
    model: str,
    version: int | None,
    wanted: Mapping[int, Mapping[str, str]],
    digests: Mapping[int, str],
) -> int:
    from mlflow.exceptions import MlflowException

    client = tracking_client(lake.settings)
    changed = 0
    with answered(lake.settings):
        there = {
            int(v.version): v
            for v in client.search_model_versions(f"name = '{model}'")
            # A number that MLflow gave again, after its database was lost, is another version there.
            if v.tags.get("artifact_digest") in {None, digests.get(int(v.version), v.tags.get("artifact_digest"))}
        }
        for number, tags in wanted.items():
            if number not in there:
                continue
            for key, value in tags.items():
                if there[number].tags.get(key) != value:
                    client.set_model_version_tag(model, str(number), key, value)
                    changed += 1
        if version is None:
            return changed
        if version not in there:
            raise ModelFilesDamaged(
                f"MLflow has no version {version} of {model}, which the ledger names champion: its alias was not set. "
                "Scoring needs only the files. "
                "Restore MLflow's database, or train again."
            )
        try:
            shown = int(client.get_model_version_by_alias(model, ALIAS).version)
        except MlflowException:
            shown = None  # no alias yet, or that of a version that was deleted
        if shown != version:
            client.set_registered_model_alias(model, ALIAS, str(version))
            changed += 1
    return changed


def _tenures(snapshot: LedgerSnapshot) -> list[Promotion]:
    """Champions one after another, the newest last; what was rolled back is taken off again."""
    stack: list[Promotion] = []
    for promotion in sorted(snapshot.promotions, key=lambda p: p.sequence):
        if promotion.kind == "rollback":
            while stack and stack[-1].version != promotion.version:
                stack.pop()
        elif not stack or stack[-1].version != promotion.version:
            stack.append(promotion)
    return stack


def written(snapshot: LedgerSnapshot, decision: Decision) -> Promotion | None:
    """The line that a decision was promoted with, None where it has none."""
    same = (
        p
        for p in snapshot.promotions
        if (p.kind, p.version, p.evidence_digest) == ("promotion", decision.version, decision.evidence_digest)
    )
    return next(same, None)


def check_same(decision: Decision, registered: Registered) -> None:
    """Refuse a decision on other bytes than those that are registered; raises StaleDecision."""
    judged = decision.evidence["subject"]["artifact_digest"]
    if (decision.model, decision.version) != (
        registered.model,
        registered.version,
    ) or judged != registered.artifact_digest:
        raise StaleDecision(
            f"the decision is on {decision.model} version {decision.version} with files {judged[:12]}…, asked to "
            f"promote is {registered.model} version "
            f"{registered.version} with files {registered.artifact_digest[:12]}…. Nothing was promoted. Judge that "
            "version first."
        )


def check_incumbent(decision: Decision, seen: LedgerSnapshot) -> None:
    """The champion now is the one the challenger was measured against, whether or not that one could score; raises
    StaleDecision.
    """
    newest = seen.newest
    now = newest.version if newest is not None else None
    unusable = incumbent_of(decision.evidence).get("unusable_champion")
    then = unusable["version"] if unusable else decision.incumbent_version
    if now != then and now != decision.version:
        raise StaleDecision(
            f"{decision.model} version {decision.version} was judged against {decision.incumbent}, but version {now} "
            "is champion now. "
            f"Nothing was promoted. Clear the gate's task to judge against version {now}."
        )


def check_files_of(lake: Lake, model: str, version: int, artifact_digest: str) -> None:
    """The signature, MLflow's word on it, and every byte of the version's files; raises ModelFilesDamaged."""
    folder: Path = artifact_folder(lake.settings, model, artifact_digest)
    try:
        manifest = read_manifest(folder)
        verify_origin(lake, model, version, artifact_digest)
        verify_files(folder, manifest["artifacts"])
    except NightfleetError as error:
        raise ModelFilesDamaged(
            f"{model} version {version} cannot become champion. Nothing was written.\n  {error}"
        ) from error

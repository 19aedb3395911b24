"""Walk everything that has a digest, say what is damaged, and rebuild what follows from Delta.

Partitions are compared with the index and their files, stored versions with their signatures, and the projections (SQL,
Feast's registry, the online store, MLflow's alias) with Delta. What is rebuilt is what follows from Delta. Delta's own
partitions are made again by the stage that publishes them; decisions, approvals, requests, actions, promotions
and rollouts are said nowhere else, and come from a backup alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from config.errors import NightfleetError
from features.definitions import apply_anew, registry_problems
from features.materialize import online_problems, rebuild_online
from lake.artifact import verify_files as verify_artifacts
from lake.chain import LedgerUntrusted
from lake.delta import table_location
from lake.lake import Lake
from lake.metrics import SQL_TABLE as METRICS_SQL
from lake.metrics import metrics_table, project_metrics
from lake.projection import outdated_dates
from lake.promotions import project_promotions, stored_promotions
from lake.storage import artifacts
from lake.stored_rollouts import project_rollouts, stored_rollouts
from lake.tables import LakeTable, feature_table, quarantine_table, raw_table, valid_table
from lake.verify import Damage, altered_dates, verify_files, verify_table
from monitoring import retraining_requests
from monitoring.alerting import actions
from serving.predictions import predictions_table
from serving.predictors import read_manifest
from serving.projection import bring_predictions, sql_name
from serving.signed import signed_files
from training.registry import approval, decision
from training.registry.promotion import alias_problem, repair_alias

_REPAIR = "`python -m cli repair`"
_DIGEST_DIGITS = 64
_BACKUP = "Restore its files from a backup: nothing else says what they said."


def verify(lake: Lake) -> Iterator[Damage]:
    """Everything that is not as it was written; nothing is repaired. Reads the whole lake."""
    known = set()
    for table, remedy in _tables(lake):
        known.add(table.name)
        yield from verify_table(lake, table, remedy=remedy)
    root = Path(table_location(lake.settings).uri)
    for log in sorted(root.rglob("_delta_log")):
        name = log.parent.relative_to(root).as_posix()
        if name not in known:  # ledgers, and tables of models that are no longer in the catalog
            yield from verify_files(table_location(lake.settings, name), name)
    for model in lake.catalog.models:
        yield from _versions(lake, model.name)
    yield from verify_projections(lake)
    for table, sql_table, keep_replaced in _projected(lake):
        outdated = outdated_dates(lake, table, sql_table, keep_replaced=keep_replaced)
        days = [d for d in altered_dates(lake, table, sql_table, keep_replaced=keep_replaced) if d not in outdated]
        if days:
            said = f"rows of {len(days)} data dates are not those of the lake, the first is {days[0]}"
            yield Damage("SQL", f"{sql_table} of {table.name}", said, _REPAIR)


def verify_projections(lake: Lake) -> Iterator[Damage]:
    """What SQL, Feast and MLflow do not show as Delta has it; reads no partition."""
    for table, sql_table, keep_replaced in _projected(lake):
        days = outdated_dates(lake, table, sql_table, keep_replaced=keep_replaced)
        if days:
            said = f"{len(days)} data dates are not as in the lake, the first is {days[0]}"
            yield Damage("SQL", f"{sql_table} of {table.name}", said, _REPAIR)
    for model in lake.catalog.models:
        try:
            promotions = lake.ledger(model.name).read().promotions
            rollouts = lake.rollouts(model.name).read().lines
        except LedgerUntrusted as error:
            yield Damage("ledger", model.name, *str(error).split("\n  ", 1))
            continue
        shown = stored_rollouts(lake, [model.name]).get(model.name)
        counts = {
            "promotions": (len(stored_promotions(lake, [model.name])), len(promotions)),
            "rollouts": (len(shown.lines) if shown else 0, len(rollouts)),
        }
        for ledger, (in_sql, in_lake) in counts.items():
            if in_sql != in_lake:
                lines = "promotions" if ledger == "promotions" else "lines"
                said = f"{in_sql} {lines}, the ledger has {in_lake}"
                yield Damage("SQL", f"{ledger} of {model.name}", said, _REPAIR)
    for missing in registry_problems(lake):
        yield Damage("Feast", missing, "is missing", _REPAIR)
    for dataset in lake.catalog.datasets:
        for view, problem in online_problems(lake, dataset.name).items():
            yield Damage("online store", f"{dataset.name}/{view}", problem, _REPAIR)


def verify_aliases(lake: Lake) -> Iterator[Damage]:
    """Champions that MLflow does not show as the ledger has them.

    Raises:
        MlflowUnavailable: it does not answer.
    """
    for model in lake.catalog.models:
        problem = alias_problem(lake, model.name)
        if problem:
            yield Damage("MLflow", model.name, problem, _REPAIR)


def repair(lake: Lake, *, run_id: str) -> Iterator[str]:
    """Rebuild every projection from Delta, whole; yields what was done, a line each."""
    for dataset in lake.catalog.datasets:
        yield from _repair_metrics(lake, dataset.name)
    for model in lake.catalog.models:
        yield from _repair_metrics(lake, model.name)
        yield f"SQL: {bring_predictions(lake, model.name, anew=True):,} predictions of {model.name}"
        rows = retraining_requests.project_requests(lake, model.name, anew=True)
        rows += decision.project_decisions(lake, model.name, anew=True)
        rows += approval.project_approvals(lake, model.name, anew=True)
        rows += project_promotions(lake, model.name) + project_rollouts(lake, model.name)
        yield f"SQL: {rows:,} requests, decisions, answers, promotions and rollouts of {model.name}"
    yield f"SQL: {actions.project_actions(lake, anew=True):,} actions"
    apply_anew(lake)
    yield "Feast: the registry holds the catalog"
    for dataset in lake.catalog.datasets:
        done = rebuild_online(lake, dataset.name, run_id=run_id)
        if done is not None:
            yield f"online store: {done.rows:,} entities of {dataset.name}, as of {done.interval}"
    for model in lake.catalog.models:
        state = repair_alias(lake, model.name)
        if state.warning:
            yield f"MLflow: {state.warning}"
        elif state.version is not None:
            yield f"MLflow: version {state.version} of {model.name} is shown as champion"


def _repair_metrics(lake: Lake, subject: str) -> Iterator[str]:
    for group in _groups(lake, subject):
        yield f"SQL: {project_metrics(lake, subject, group, anew=True):,} metrics of {subject}, {group}"


def _groups(lake: Lake, subject: str) -> list[str]:
    folder = Path(table_location(lake.settings, f"{subject}/metrics").uri)
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _tables(lake: Lake) -> Iterator[tuple[LakeTable, str]]:
    """Every table of the catalog, and how a partition of it is made again."""
    settings = lake.settings
    for dataset in lake.catalog.datasets:
        clear = f"of `{dataset.name}_ingest` for {{data_date}}."
        restate = f"`python -m cli restate {dataset.name} {{data_date}} {{data_date}}`."
        for table in dataset.tables:
            yield raw_table(settings, dataset, table), f"Clear `ingest` {clear} Where its source has changed: {restate}"
            yield valid_table(settings, dataset, table), f"Clear `validate` {clear}"
            yield quarantine_table(settings, dataset, table), f"Clear `validate` {clear}"
        for view in dataset.features:
            yield feature_table(settings, dataset, view), f"Clear `transform` {clear}"
        for group in _groups(lake, dataset.name):
            yield metrics_table(settings, dataset.name, group), f"Clear `validate` {clear}"
    for model in lake.catalog.models:
        predictions = predictions_table(settings, model, lake.dataset(model.dataset))
        yield predictions, f"Clear `score` of `{model.name}_score` for {{data_date}}."
        for group in _groups(lake, model.name):
            yield metrics_table(settings, model.name, group), f"Clear `{model.name}_monitor` for {{data_date}}."
    for record, _, _ in _records(lake):
        yield record, _BACKUP


def _records(lake: Lake) -> Iterator[tuple[LakeTable, str, bool]]:
    """Tables of what people and the gate decided, and the SQL table of each."""
    for model in lake.catalog.models:
        yield decision.decisions_table(lake, model.name), decision.SQL_TABLE, False
        yield approval.approvals_table(lake, model.name), approval.SQL_TABLE, False
        yield retraining_requests.requests_table(lake, model.name), retraining_requests.SQL_TABLE, False
    yield actions.actions_table(lake), actions.SQL_TABLE, False


def _projected(lake: Lake) -> Iterator[tuple[LakeTable, str, bool]]:
    """Every table that SQL shows, its SQL table, and whether that keeps replaced rows."""
    for subject in [*(d.name for d in lake.catalog.datasets), *(m.name for m in lake.catalog.models)]:
        for group in _groups(lake, subject):
            yield metrics_table(lake.settings, subject, group), METRICS_SQL, False
    for model in lake.catalog.models:
        yield predictions_table(lake.settings, model, lake.dataset(model.dataset)), sql_name(model.name), True
    yield from _records(lake)


def _versions(lake: Lake, model: str) -> Iterator[Damage]:
    """Signature and bytes of every stored version, those included that a ledger alone knows."""
    stored = {name for name in artifacts(lake.settings).names(model) if len(name) == _DIGEST_DIGITS}
    try:
        known = {line.artifact_digest for line in lake.ledger(model).read().promotions}
        known |= {line.artifact_digest for line in lake.rollouts(model).read().lines}
    except LedgerUntrusted:
        known = set()  # `verify_projections` says so
    for digest in sorted(stored | known):
        try:
            with signed_files(lake.settings, model, digest) as copy:
                verify_artifacts(copy, read_manifest(copy)["artifacts"])
        except NightfleetError as error:
            remedy = "Restore its folder from a backup, or train the model again and roll back until then."
            yield Damage("model", f"{model} {digest[:12]}…", str(error), remedy)

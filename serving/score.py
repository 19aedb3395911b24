"""Score data dates of a model, each with the versions that its own night's plan assigns."""

from __future__ import annotations

import functools
import logging
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from config.calendar import Interval
from config.catalog.model import ModelEntry
from config.errors import NightfleetError, TransientError
from config.settings import Settings
from features.retrieval import retrieve
from lake.assignment import (
    CHALLENGER,
    CHAMPION,
    Assignment,
    Plan,
    champion_in,
    check_plan,
    plan_as_published,
    plan_of,
    recorded,
    scored_by,
)
from lake.delta import table_location
from lake.events import logged
from lake.lake import Lake, StageResult
from lake.ledger import LedgerSnapshot
from lake.lineage import Input, Publication
from lake.publish import Published, StalePublish, publish
from lake.rollouts import RolloutSnapshot, following
from lake.signed_lines import LedgerConflict
from lake.storage import artifact_folder
from lake.tables import LakeTable
from serving.predictions import check_outputs, check_served, input_digests, prediction_ids, predictions_table
from serving.predictors import Predictor
from serving.rollout.units import served_rows
from serving.signed import ModelMissing, load_signed

BATCH_ROWS = 65_536
_ATTEMPTS = 4
Planned = Callable[[LedgerSnapshot, RolloutSnapshot, date], Plan]
log = logging.getLogger(__name__)


class OtherChampion(NightfleetError):
    """A night was scored by other versions than its plan now gives for it."""


class AlreadyScored(NightfleetError):
    """A night is scored, and scoring it again would change its rows."""


@dataclass(frozen=True)
class Tenure:
    """Consecutive nights with the same assignments."""

    interval: Interval
    plan: Plan


@dataclass(frozen=True)
class ChangedInput:
    """A partition that a night was scored from, and what is published in its place now (None: nothing)."""

    table: str
    data_date: date
    recorded: str
    published: str | None


@dataclass(frozen=True)
class StaleNight:
    """A night whose predictions were computed from partitions that have been rewritten since."""

    data_date: date
    changed: tuple[ChangedInput, ...]


@logged("score")
def score(lake: Lake, model: str, interval: Interval, *, run_id: str, planned: Planned = plan_of) -> StageResult:
    """Publish `<model>/predictions` of the interval: one row per entity of the spine and assignment of its night, of
    which exactly one is served.

    Rows stream from retrieval through the predictor into the table; memory does not grow with them. A night without
    entities is published empty and named in `details["empty_nights"]`, with `details["status"] == "warning"`;
    `details["empty"]` is true when no night had any.

    Args:
        planned: gives a night's assignments from the two ledgers. A night that is published keeps the plan it was
            published with; one whose plan changed while it was computed is computed anew, before anything is written.
    Raises:
        NoChampion: a night has none; nothing is computed.
        BadPlan: a night's assignments do not serve each entity exactly once; nothing is computed.
        PartitionNotReady: an input partition is not published; nothing is written.
        ModelMissing, UntrustedModel, ArtifactMismatch: a version's files are not there, not signed, or not the
            promoted ones.
        FeatureMissing, BadPredictions: the version needs a feature that is gone, or predicts what must not be
            published; nothing is written.
        OtherChampion: a night was scored by other versions before; it keeps them.
        AlreadyScored: a night is scored, and its rows would change now; `rescore` does that on purpose.
        StalePublish: another run published in between.
        LedgerConflict: the plan changed again and again while the interval was computed; nothing is written.
    """
    return _score(lake, model, interval, run_id=run_id, rewrite=False, planned=planned)


@logged("rescore")
def rescore(lake: Lake, model: str, interval: Interval, *, run_id: str, planned: Planned = plan_of) -> StageResult:
    """As `score`, but rows of scored nights may change, for example after a `restate`: still by the versions each night
    had.

    Raises:
        as `score`, save AlreadyScored.
    """
    return _score(lake, model, interval, run_id=run_id, rewrite=True, planned=planned)


def stale_predictions(lake: Lake, model: str) -> list[StaleNight]:
    """Scored nights whose recorded inputs are no longer what is published, in date order; `rescore` brings them up to
    date.
    """
    entry = lake.model(model)
    scored = lake.publications.current(predictions_table(lake.settings, entry, lake.dataset(entry.dataset)))
    names = {item.table for publication in scored.values() for item in publication.inputs}
    # Only the name and the place of a table matter here: it is its publications that are compared.
    tables = {name: LakeTable(name, table_location(lake.settings, name), pa.schema([]), ()) for name in sorted(names)}
    published = {
        name: {day: p.digest for day, p in lake.publications.current(table).items()} for name, table in tables.items()
    }
    stale = []
    for day, publication in scored.items():
        changed = tuple(
            ChangedInput(item.table, item.data_date, item.digest, now)
            for item in publication.inputs
            if (now := published[item.table].get(item.data_date)) != item.digest
        )
        if changed:
            stale.append(StaleNight(day, changed))
    return stale


@functools.lru_cache(maxsize=8)
def _loaded(settings: Settings, model: str, artifact_digest: str) -> Predictor:
    return load_signed(settings, model, artifact_digest)


def load_version(settings: Settings, model: str, version: int, artifact_digest: str) -> Predictor:
    """The predictor of a promoted version, from verified bytes; each version is loaded once per process.

    Raises:
        ModelMissing: its folder is not there.
        UntrustedModel: it is not signed with our key, or not as signed.
        ArtifactMismatch: a file in it is missing or was changed.
    """
    folder = artifact_folder(settings, model, artifact_digest)
    if not folder.is_dir():
        raise ModelMissing(
            f"{model} version {version} was promoted, but its files are not in {folder}. Nothing was scored.\n"
            "  Restore that folder from a backup or from the version's MLflow artifacts, or go back to the champion "
            f"before it (`rollback {model}`)."
        )
    return _loaded(settings, model, artifact_digest)


class _ChallengerFailed(Exception):
    """A challenger could not be loaded, failed while it predicted, or predicted what must not be published."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error).partition("\n")[0] or type(error).__name__)
        self.error = error


class _PlanChanged(Exception):
    """While a night was computed, its rollout was rolled back or moved on."""


@contextmanager
def _blamed(assignment: Assignment) -> Iterator[None]:
    """A failure of a challenger is its own, whatever it is; a full disk or a lost connection is nobody's."""
    try:
        yield
    except (TransientError, OSError):
        raise
    except Exception as error:
        if assignment.role != CHALLENGER:
            raise
        raise _ChallengerFailed(error) from error


def _score(lake: Lake, model: str, interval: Interval, *, run_id: str, rewrite: bool, planned: Planned) -> StageResult:
    """A night never waits for a challenger: one that fails is rolled back, and the champion serves all."""
    for _ in range(_ATTEMPTS):
        try:
            return _scored(lake, model, interval, run_id=run_id, rewrite=rewrite, planned=planned)
        except _ChallengerFailed as failed:
            if not _withdrawn(lake, model, interval, failed, run_id):
                raise failed.error from failed
        except _PlanChanged:
            log.warning("%s: the rollout changed while %s was computed; it is computed anew", model, interval)
    raise LedgerConflict(
        f"the rollouts of {model} changed {_ATTEMPTS} times while {interval} was computed. Nothing was written. Clear "
        "the task."
    )


def _withdrawn(lake: Lake, model: str, interval: Interval, failed: _ChallengerFailed, run_id: str) -> bool:
    """Roll the running rollout back from the first night on that is not scored; whether the interval's plan has changed
    by that. What was scored keeps its plan, and so its error.
    """
    ledger = lake.rollouts(model)
    seen = ledger.read()
    running = seen.running
    entry = lake.model(model)
    newest = lake.publications.newest(predictions_table(lake.settings, entry, lake.dataset(entry.dataset)))
    if running is None or (newest is not None and newest.data_date >= interval.start):
        return False
    reason = f"the challenger could not score {interval}: {failed}"
    effective = max(interval.start, running.started.effective_from)
    line = following(running, "rolled_back", by=run_id, reason=reason, effective_from=effective)
    try:
        ledger.append(line, seen=seen)
    except LedgerConflict:
        return (ledger.read().running or running).last.sequence != running.last.sequence
    log.warning("%s: the rollout of version %d is rolled back: %s", model, running.version, reason)
    return True


def _scored(lake: Lake, model: str, interval: Interval, *, run_id: str, rewrite: bool, planned: Planned) -> StageResult:
    entry = lake.model(model)
    table = predictions_table(lake.settings, entry, lake.dataset(entry.dataset))
    ledger, rollouts = lake.ledger(model).read(), lake.rollouts(model).read()
    before = lake.publications.current(table, interval)
    tenures = _tenures(model, ledger, rollouts, interval, before, planned)
    _keep_attribution(table, before, tenures)
    # The champion first: where all files are gone, no challenger is to blame.
    assigned = sorted((a for tenure in tenures for a in tenure.plan), key=lambda a: a.role == CHALLENGER)
    predictors = {a.artifact_digest: _predictor(lake, model, a) for a in assigned}

    seen = _Seen()
    with lake.scratch(f"score-{model}") as folder:
        retrieval = retrieve(lake, model, interval, folder=folder)
        scoring = _Scoring(entry, table, tenures, predictors, seen, folder)
        assignments = recorded((tenure.interval, tenure.plan) for tenure in tenures)
        named: dict[str, Any] = {"ledger_version": ledger.delta_version, "assignments": assignments}
        if any(len(tenure.plan) > 1 for tenure in tenures):
            named["scoring"] = seen.by_role  # filled while the rows stream, before they are committed
        lineage = replace(
            lake.lineage(model, run_id, **named),
            inputs={day: tuple(retrieval.inputs.get(day, ())) for day in interval},
        )
        # A scored night may only be replaced on purpose: saying that it holds nothing makes any other rows a conflict.
        replaces = {day: before[day].digest if day in before and rewrite else None for day in interval}
        # Rows that come out equal from rewritten inputs are committed once more, so that they cite what is published
        # and are stale no longer.
        relabel = {day for day, p in before.items() if rewrite and _digests(p.inputs) != _digests(lineage.inputs[day])}
        batches = _as_planned(
            scoring.batches(_rebatched(retrieval.reader())),
            lambda: (
                lake.rollouts(model).read().lines == rollouts.lines
                or _tenures(model, ledger, lake.rollouts(model).read(), interval, before, planned) == tenures
            ),
        )
        rows = pa.RecordBatchReader.from_batches(table.schema, batches)
        try:
            published = publish(
                lake.publications,
                table,
                rows,
                interval,
                replaces=replaces,
                lineage=lineage,
                scratch=folder,
                relabel=relabel,
            )
        except StalePublish as error:
            now = lake.publications.digests(table, interval)
            unchanged = [day for day, publication in before.items() if now[day] == publication.digest]
            if rewrite or not unchanged:
                raise
            raise AlreadyScored(_already_scored(lake, entry, interval, unchanged)) from error
    return StageResult(
        "score",
        model,
        str(interval),
        published.rows,
        len(published.committed),
        _details(tenures, ledger, published, retrieval.too_late, seen),
    )


def _as_planned(batches: Iterator[pa.RecordBatch], holds: Callable[[], bool]) -> Iterator[pa.RecordBatch]:
    """All batches; raises _PlanChanged at their end, before they are committed, where the plan holds no longer."""
    yield from batches
    if not holds():
        raise _PlanChanged


def _predictor(lake: Lake, model: str, assignment: Assignment) -> Predictor:
    with _blamed(assignment):
        return load_version(lake.settings, model, assignment.version, assignment.artifact_digest)


def _tenures(
    model: str,
    ledger: LedgerSnapshot,
    rollouts: RolloutSnapshot,
    interval: Interval,
    before: Mapping[date, Publication],
    planned: Planned,
) -> tuple[Tenure, ...]:
    """Consecutive nights of one plan each; raises NoChampion for a night without a champion."""

    def plan(day: date) -> Plan:
        if day not in before:
            return planned(ledger, rollouts, day)
        return plan_as_published(ledger, rollouts, day, scored_by(day, before[day].details), planned)

    tenures = []
    nights = [(day, check_plan(model, day, plan(day))) for day in interval]
    for same, group in groupby(nights, key=lambda night: night[1]):
        days = [day for day, _ in group]
        tenures.append(Tenure(Interval.closed(days[0], days[-1]), same))
    return tuple(tenures)


def _digests(inputs: Iterable[Input]) -> set[tuple[str, date, str]]:
    return {(item.table, item.data_date, item.digest) for item in inputs}


def _keep_attribution(table: LakeTable, before: Mapping[date, Publication], tenures: Sequence[Tenure]) -> None:
    for tenure in tenures:
        now = {(a.role, a.version, a.artifact_digest) for a in tenure.plan}
        for day in tenure.interval:
            if day not in before:
                continue
            recorded_plan = scored_by(day, before[day].details)
            if {(a.role, a.version, a.artifact_digest) for a in recorded_plan} != now:
                raise OtherChampion(
                    f"{table.name} for {day} was scored by {_named(recorded_plan)}, but the ledger now gives "
                    f"{_named(tenure.plan)} for that night. Nothing was written: a scored night keeps its champion.\n"
                    f"  A promotion or rollback took effect in the past: look at the lines of "
                    f"{table.name.removesuffix('/predictions')}/promotions with effective_from up to {day}. "
                    "Score only nights that are not scored yet."
                )


def _named(plan: Plan) -> str:
    """Versions as an error names them; the role where it is another than the champion's."""
    return " and ".join(
        f"{'' if a.role == CHAMPION else f'{a.role} '}version {a.version} (artifact {a.artifact_digest[:12]}…)"
        for a in plan
    )


@dataclass
class _Seen:
    """What passed by in the stream, for the result: rows, and the values that are not null of each feature."""

    rows: int = 0
    values: Counter[str] = field(default_factory=Counter)
    # What guardrails of a rollout need of each role, as the publication keeps it; empty while there is no challenger.
    by_role: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, role: str, seconds: float, rows: pa.Table, features: Iterable[str]) -> None:
        """Add what a piece of rows took in that role, and how many of its features had a value."""
        kept = self.by_role.setdefault(role, {"seconds": 0.0, "peak_mib": 0.0, "rows": 0, "values": {}})
        kept["seconds"] = round(kept["seconds"] + seconds, 3)
        kept["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
        kept["rows"] += rows.num_rows
        for name in features:
            kept["values"][name] = kept["values"].get(name, 0) + rows.num_rows - rows[name].null_count


def _rebatched(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """The same rows in pieces of `BATCH_ROWS`: a predictor's cost per call is paid rarely."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in reader:
        while batch.num_rows:
            part = batch.slice(0, BATCH_ROWS - rows)
            batch = batch.slice(part.num_rows)
            held.append(part)
            rows += part.num_rows
            if rows == BATCH_ROWS:
                yield pa.Table.from_batches(held)
                held, rows = [], 0
    if rows:
        yield pa.Table.from_batches(held)


@dataclass(frozen=True)
class _Scoring:
    """Predictions of retrieved rows, in the order of the table's key: in a night one role after the other."""

    entry: ModelEntry
    table: LakeTable
    tenures: Sequence[Tenure]
    predictors: Mapping[str, Predictor]
    seen: _Seen
    folder: Path

    def batches(self, pieces: Iterator[pa.Table]) -> Iterator[pa.RecordBatch]:
        """Prediction rows of pieces that are sorted by `(data_date, *entity)`."""
        waiting = _Waiting(self.folder, self.table.schema)
        for piece in pieces:
            for tenure, rows in _by_tenure(piece, self.tenures):
                # One role needs no order among roles: its nights stay together, so that it is asked rarely.
                for night in [rows] if len(tenure.plan) == 1 else _by_night(rows):
                    yield from waiting.of_other_nights(night["data_date"][0].as_py())
                    first, *others = self._predicted(tenure.plan, night)
                    yield from first.to_batches()
                    waiting.add(others)
        yield from waiting.of_other_nights(None)

    def _predicted(self, plan: Plan, rows: pa.Table) -> list[pa.Table]:
        """The same rows as each assignment predicts them."""
        parts = []
        served = served_rows(plan, rows)
        for assignment in plan:
            predictor = self.predictors[assignment.artifact_digest]
            began = time.perf_counter()
            with _blamed(assignment):
                scored = predict_rows(self.entry, assignment, predictor, rows, served=served[assignment.role])
            self.seen.values.update({name: len(rows) - rows[name].null_count for name in predictor.feature_columns})
            if len(plan) > 1:
                self.seen.note(assignment.role, time.perf_counter() - began, rows, predictor.feature_columns)
            parts.append(scored.select(self.table.schema.names).cast(self.table.schema).combine_chunks())
        self.seen.rows += rows.num_rows
        check_served(self.entry, parts, times=1 if champion_in(plan) else 0)
        return parts


class _Waiting:
    """Rows of a night's later roles, on disk until its first role is through: memory does not grow with them."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder, self._schema = folder, schema
        self._night: date | None = None
        self._writers: list[pa.RecordBatchFileWriter] = []

    def add(self, parts: Sequence[pa.Table]) -> None:
        """Keep rows of the present night, one part a role."""
        for number, part in enumerate(parts):
            if number == len(self._writers):
                self._writers.append(pa.ipc.new_file(self._path(number), self._schema))
            self._writers[number].write_table(part)

    def of_other_nights(self, night: date | None) -> Iterator[pa.RecordBatch]:
        """The rows that wait, role by role, unless they are of that night, which is the present one from now on."""
        if night == self._night:
            return
        writers, self._writers, self._night = self._writers, [], night
        for number, writer in enumerate(writers):
            writer.close()
            with pa.ipc.open_file(self._path(number)) as reader:
                yield from (reader.get_batch(place) for place in range(reader.num_record_batches))

    def _path(self, number: int) -> str:
        return str(self._folder / f"waiting-{number}.arrow")


def predict_rows(
    entry: ModelEntry, assignment: Assignment, predictor: Predictor, rows: pa.Table, *, served: pa.Array
) -> pa.Table:
    """Prediction rows, all columns of the predictions table, for n retrieved rows.

    Args:
        served: which of them this version serves, booleans (n,).
    Raises:
        FeatureMissing: the version reads a feature that `rows` does not have.
        BadPredictions: an output is not what may be published.
    """
    rows = rows.combine_chunks()
    features = tuple(predictor.feature_columns)
    digests = input_digests(rows, features)
    outputs = predictor.predict(rows)
    role, version = assignment.role, assignment.version
    check_outputs(entry, outputs, rows.num_rows, version=version)
    columns: dict[str, Any] = {
        "role": pa.repeat(role, rows.num_rows),
        "model": pa.repeat(entry.name, rows.num_rows),
        "version": pa.repeat(pa.scalar(version, pa.int64()), rows.num_rows),
        "artifact_digest": pa.repeat(assignment.artifact_digest, rows.num_rows),
        **{name: rows[name] for name in entry.entity},
        "target_time_utc": rows["target_time_utc"],
        **{name: outputs[name] for name in entry.output_columns},
        "input_digest": digests,
        "served": served,
        "data_date": rows["data_date"],
    }
    scored = pa.table(columns)
    ids = prediction_ids(scored, model=entry.name, version=version, role=role, entity=entry.entity)
    return scored.append_column("prediction_id", ids)


def _by_tenure(piece: pa.Table, tenures: Sequence[Tenure]) -> Iterator[tuple[Tenure, pa.Table]]:
    """The rows of a sorted piece, cut where the plan changes."""
    dates = _day_numbers(piece)
    for tenure in tenures:
        first, last = dates.searchsorted([_days(tenure.interval.start), _days(tenure.interval.end)])
        if last > first:
            yield tenure, piece.slice(int(first), int(last - first))


def _by_night(rows: pa.Table) -> Iterator[pa.Table]:
    """Sorted rows, cut where the night changes."""
    cuts = [0, *(np.flatnonzero(np.diff(_day_numbers(rows))) + 1).tolist(), rows.num_rows]
    for first, last in pairwise(cuts):
        yield rows.slice(first, last - first)


def _day_numbers(rows: pa.Table) -> npt.NDArray[np.int32]:
    numbers: npt.NDArray[np.int32] = rows["data_date"].combine_chunks().cast(pa.int32()).to_numpy()
    return numbers


def _days(day: date) -> int:
    return (day - date(1970, 1, 1)).days


def _details(
    tenures: Sequence[Tenure], ledger: LedgerSnapshot, published: Published, too_late: int, seen: _Seen
) -> dict[str, Any]:
    empty_nights = [str(day) for day, publication in published.publications.items() if publication.rows == 0]
    without_values = sorted(name for name, count in seen.values.items() if count == 0) if seen.rows else []
    warnings = []
    if empty_nights:
        warnings.append(
            "nothing to score on "
            f"{', '.join(empty_nights[:3])}{f' and {len(empty_nights) - 3} more' if len(empty_nights) > 3 else ''}: "
            "the spine has no entity with a target time in the next day; the night is published, empty"
        )
    if without_values:
        warnings.append(f"{len(without_values)} features have no value in any row: {', '.join(without_values[:5])}")
    details: dict[str, Any] = {
        "status": "warning" if warnings else "ok",
        "empty": published.rows == 0,
        "reason": "; ".join(warnings),
        "empty_nights": empty_nights,
        "features_without_values": without_values,
        "too_late": too_late,
        "ledger_version": ledger.delta_version,
        "versions": {str(t.interval): {a.role: a.version for a in t.plan} for t in tenures},
    }
    return details


def _already_scored(lake: Lake, entry: ModelEntry, interval: Interval, days: Sequence[date]) -> str:
    stale = {night.data_date: night for night in stale_predictions(lake, entry.name)}
    night = next((day for day in days if day in stale), None)
    if night:
        because = stale[night].changed[0]
        cause = f"{because.table} for {because.data_date} was rewritten since"
    else:
        cause = "its inputs are the same, so the code, a library or the catalog changed since"
    return (
        f"{entry.name}/predictions is published for {night or Interval.closed(days[0], days[-1])}, and scoring it "
        f"again would change its rows: {cause}. "
        "Nothing was written.\n"
        f"  To replace what was published, on purpose, run `python -m cli rescore {entry.name} {interval.start} "
        f"{interval.last}`."
    )

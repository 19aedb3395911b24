"""Score data dates of a model, each with the champion of its own night."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import groupby
from typing import Any

import pyarrow as pa

from config.calendar import Interval
from config.catalog.model import ModelEntry
from config.errors import NightfleetError
from config.settings import Settings
from features.retrieval import retrieve
from lake.events import logged
from lake.lake import Lake, StageResult
from lake.ledger import LedgerSnapshot, Promotion
from lake.lineage import Input, Publication
from lake.publish import Published, StalePublish, publish
from lake.tables import LakeTable
from serving.predictions import CHAMPION, check_outputs, input_digests, prediction_ids, predictions_table
from serving.predictors import Predictor
from serving.signed import ModelMissing, load_signed

BATCH_ROWS = 65_536


class OtherChampion(NightfleetError):
    """A night was scored by another champion than the ledger now gives for it."""


class AlreadyScored(NightfleetError):
    """A night is scored, and scoring it again would change its rows."""


@dataclass(frozen=True)
class Reign:
    """Consecutive nights with one champion."""

    interval: Interval
    champion: Promotion


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
def score(lake: Lake, model: str, interval: Interval, *, run_id: str) -> StageResult:
    """Publish `<model>/predictions` of the interval: one row per entity of the spine, scored by the champion of its
    night.

    Rows stream from retrieval through the predictor into the table; memory does not grow with them. A night without
    entities is published empty and named in `details["empty_nights"]`, with `details["status"] == "warning"`;
    `details["empty"]` is true when no night had any.

    Raises:
        NoChampion: a night has none; nothing is computed.
        PartitionNotReady: an input partition is not published; nothing is written.
        ModelMissing, UntrustedModel, ArtifactMismatch: the champion's files are not there, not signed, or not the
            promoted ones.
        FeatureMissing, BadPredictions: the version needs a feature that is gone, or predicts what must not be
            published; nothing is written.
        OtherChampion: a night was scored by another champion before; it keeps it.
        AlreadyScored: a night is scored, and its rows would change now; `rescore` does that on purpose.
        StalePublish: another run published in between.
    """
    return _score(lake, model, interval, run_id=run_id, rewrite=False)


@logged("rescore")
def rescore(lake: Lake, model: str, interval: Interval, *, run_id: str) -> StageResult:
    """As `score`, but rows of scored nights may change, for example after a `restate`: still by the champion each night
    had.

    Raises:
        as `score`, save AlreadyScored.
    """
    return _score(lake, model, interval, run_id=run_id, rewrite=True)


def stale_predictions(lake: Lake, model: str) -> list[StaleNight]:
    """Scored nights whose recorded inputs are no longer what is published, in date order; `rescore` brings them up to
    date.
    """
    entry = lake.model(model)
    scored = lake.publications.current(predictions_table(lake.settings, entry, lake.dataset(entry.dataset)))
    names = {item.table for publication in scored.values() for item in publication.inputs}
    # Only the name and the place of a table matter here: it is its publications that are compared.
    tables = {name: LakeTable(name, lake.settings.lake / name, pa.schema([]), ()) for name in sorted(names)}
    published = {
        name: {day: p.digest for day, p in lake.publications.current(table).items()} for name, table in tables.items()
    }
    stale = []
    for day, publication in scored.items():
        changed = tuple(
            ChangedInput(item.table, item.data_date, item.digest, found)
            for item in publication.inputs
            if (found := published[item.table].get(item.data_date)) != item.digest
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
    folder = settings.artifacts / model / artifact_digest
    if not folder.is_dir():
        raise ModelMissing(
            f"{model} version {version} was promoted, but its files are not in {folder}. Nothing was scored.\n"
            "  Restore that folder from a backup or from the version's MLflow artifacts, or go back to the champion "
            f"before it (`rollback {model}`)."
        )
    return _loaded(settings, model, artifact_digest)


def _score(lake: Lake, model: str, interval: Interval, *, run_id: str, rewrite: bool) -> StageResult:
    entry = lake.model(model)
    table = predictions_table(lake.settings, entry, lake.dataset(entry.dataset))
    ledger = lake.ledger(model).read()
    reigns = _reigns(ledger, interval)
    before = lake.publications.current(table, interval)
    _keep_attribution(table, before, reigns)
    predictors = {
        r.champion.artifact_digest: load_version(lake.settings, model, r.champion.version, r.champion.artifact_digest)
        for r in reigns
    }

    seen = _Seen()
    with lake.scratch(f"score-{model}") as folder:
        retrieval = retrieve(lake, model, interval, folder=folder)
        batches = _predicted(entry, table, _rebatched(retrieval.reader()), reigns, predictors, seen)
        lineage = replace(
            lake.lineage(
                model, run_id, role=CHAMPION, ledger_version=ledger.delta_version, champions=_champions(reigns)
            ),
            inputs={day: tuple(retrieval.inputs.get(day, ())) for day in interval},
        )
        # A scored night may only be replaced on purpose: saying that it holds nothing makes any other rows a conflict.
        replaces = {day: before[day].digest if day in before and rewrite else None for day in interval}
        # Rows that come out equal from rewritten inputs are committed once more, so that they cite what is published
        # and are stale no longer.
        relabel = {day for day, p in before.items() if rewrite and _digests(p.inputs) != _digests(lineage.inputs[day])}
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
        _details(reigns, ledger, published, retrieval.too_late, seen),
    )


def _reigns(ledger: LedgerSnapshot, interval: Interval) -> tuple[Reign, ...]:
    """Consecutive nights of one champion each; raises NoChampion for a night without."""
    nights = [(day, ledger.champion_of(day)) for day in interval]
    reigns = []
    for champion, group in groupby(nights, key=lambda night: night[1]):
        days = [day for day, _ in group]
        reigns.append(Reign(Interval.closed(days[0], days[-1]), champion))
    return tuple(reigns)


def _digests(inputs: Iterable[Input]) -> set[tuple[str, date, str]]:
    return {(item.table, item.data_date, item.digest) for item in inputs}


def _champions(reigns: Sequence[Reign]) -> list[dict[str, Any]]:
    """Reigns as they are recorded in the commit."""
    return [
        {
            "first": r.interval.start.isoformat(),
            "last": r.interval.last.isoformat(),
            "version": r.champion.version,
            "artifact_digest": r.champion.artifact_digest,
            "sequence": r.champion.sequence,
        }
        for r in reigns
    ]


def recorded_champion(publication: Publication) -> dict[str, Any]:
    """Version, artifact digest and ledger sequence that a night's rows were published with."""
    day = publication.data_date.isoformat()
    found: dict[str, Any] = next(c for c in publication.details["champions"] if c["first"] <= day <= c["last"])
    return found


def _keep_attribution(table: LakeTable, before: Mapping[date, Publication], reigns: Sequence[Reign]) -> None:
    for reign in reigns:
        for day in reign.interval:
            if day not in before:
                continue
            then, now = recorded_champion(before[day]), reign.champion
            if (then["version"], then["artifact_digest"]) != (now.version, now.artifact_digest):
                raise OtherChampion(
                    f"{table.name} for {day} was scored by version {then['version']} (artifact "
                    f"{then['artifact_digest'][:12]}…), "
                    f"but the ledger now gives version {now.version} (artifact {now.artifact_digest[:12]}…) for that "
                    "night. Nothing was written: "
                    "a scored night keeps its champion.\n"
                    f"  A promotion or rollback took effect in the past: look at the lines of {now.model}/promotions "
                    f"with effective_from up to {day}. "
                    "Score only nights that are not scored yet."
                )


@dataclass
class _Seen:
    """What passed by in the stream, for the result: rows, and the values that are not null of each feature."""

    rows: int = 0
    values: Counter[str] = field(default_factory=Counter)


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


def _predicted(
    entry: ModelEntry,
    table: LakeTable,
    pieces: Iterator[pa.Table],
    reigns: Sequence[Reign],
    predictors: Mapping[str, Predictor],
    seen: _Seen,
) -> Iterator[pa.RecordBatch]:
    for piece in pieces:
        for champion, rows in _by_reign(piece, reigns):
            predictor = predictors[champion.artifact_digest]
            scored = predict_rows(entry, champion.version, champion.artifact_digest, predictor, rows)
            seen.rows += rows.num_rows
            seen.values.update({name: len(rows) - rows[name].null_count for name in predictor.feature_columns})
            yield from scored.select(table.schema.names).cast(table.schema).combine_chunks().to_batches()


def predict_rows(
    entry: ModelEntry, version: int, artifact_digest: str, predictor: Predictor, rows: pa.Table
) -> pa.Table:
    """Prediction rows, all columns of the predictions table, for n retrieved rows.

    Raises:
        FeatureMissing: the version reads a feature that `rows` does not have.
        BadPredictions: an output is not what may be published.
    """
    rows = rows.combine_chunks()
    features = tuple(predictor.feature_columns)
    digests = input_digests(rows, features)
    outputs = predictor.predict(rows)
    check_outputs(entry, outputs, rows.num_rows, version=version)
    columns: dict[str, Any] = {
        "role": pa.repeat(CHAMPION, rows.num_rows),
        "model": pa.repeat(entry.name, rows.num_rows),
        "version": pa.repeat(pa.scalar(version, pa.int64()), rows.num_rows),
        "artifact_digest": pa.repeat(artifact_digest, rows.num_rows),
        **{name: rows[name] for name in entry.entity},
        "target_time_utc": rows["target_time_utc"],
        **{name: outputs[name] for name in entry.output_columns},
        "input_digest": digests,
        "data_date": rows["data_date"],
    }
    scored = pa.table(columns)
    ids = prediction_ids(scored, model=entry.name, version=version, role=CHAMPION, entity=entry.entity)
    return scored.append_column("prediction_id", ids)


def _by_reign(piece: pa.Table, reigns: Sequence[Reign]) -> Iterator[tuple[Promotion, pa.Table]]:
    """The rows of a sorted piece, cut where the champion changes."""
    dates = piece["data_date"].combine_chunks().cast(pa.int32()).to_numpy()
    for reign in reigns:
        first, last = dates.searchsorted([_days(reign.interval.start), _days(reign.interval.end)])
        if last > first:
            yield reign.champion, piece.slice(int(first), int(last - first))


def _days(day: date) -> int:
    return (day - date(1970, 1, 1)).days


def _details(
    reigns: Sequence[Reign], ledger: LedgerSnapshot, published: Published, too_late: int, seen: _Seen
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
        "versions": {str(r.interval): r.champion.version for r in reigns},
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

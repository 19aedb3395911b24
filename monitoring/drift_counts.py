"""Counting for drift: rows of each night per bin of the profiles that it is compared with."""

# ruff: noqa: S608 (names come from the typed catalog, quoted)
from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from config.calendar import ONE_DAY, Interval
from config.catalog.data import Dataset
from config.catalog.model import ModelEntry
from features.retrieval import Retrieval, retrieve, spine_table
from lake.lake import Lake
from lake.lineage import Input, Publication
from lake.tables import LakeTable
from monitoring.references import References, VersionReference, feature_profiles
from training.registry.reference import (
    Counts,
    ExactSum,
    as_numbers,
    count_bins,
    exact_sum,
    is_categorical,
)


@dataclass
class NightCounts:
    """Rows of one night, per (artifact digest, column) its rows per bin and its nulls, and the sum of each column of
    numbers.
    """

    rows: int = 0
    sums: dict[str, ExactSum] = field(default_factory=dict)
    counts: dict[tuple[str, str], Counts] = field(default_factory=dict)
    nulls: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(
        self, reference: VersionReference, profiles: Mapping[str, Mapping[str, Any]], rows: pa.RecordBatch | pa.Table
    ) -> None:
        """Count rows of this night into the bins of that version's profiles; columns that are not there are left
        out.
        """
        together = np.zeros(rows.num_rows, dtype=np.int64)
        for name, profile in profiles.items():
            if not _comparable(rows.schema, name, profile):
                continue
            counts, nulls = count_bins(rows.column(name), profile, together, 1)
            key = (reference.artifact_digest, name)
            self.counts[key] = self.counts[key] + counts[0] if key in self.counts else counts[0]
            self.nulls[key] = self.nulls.get(key, 0) + int(nulls[0])

    def add_sums(self, names: Iterable[str], rows: pa.RecordBatch | pa.Table) -> None:
        """Add up those columns of this night that are numbers; once a batch, whatever versions it is counted for."""
        for name in names:
            if name in rows.schema.names and _is_number(rows.schema.field(name).type):
                self.sums[name] = self.sums.get(name, ExactSum()) + exact_sum(as_numbers(rows.column(name)))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _comparable(schema: pa.Schema, name: str, profile: Mapping[str, Any]) -> bool:
    if name not in schema.names:
        return False
    kind = schema.field(name).type
    text: bool = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind)
    return bool(text == (profile["kind"] == "categorical"))


def longest_window(versions: Mapping[str, VersionReference]) -> int:
    """Nights of the longest window among those versions."""
    return max(reference.window for reference in versions.values())


def _wanted(interval: Interval, references: References) -> dict[date, dict[str, VersionReference]]:
    """By night that must be counted: the versions whose bins it is counted in, by artifact digest."""
    wanted: dict[date, dict[str, VersionReference]] = {}
    for day in interval:
        for reference in references[day].values():
            for back in range(reference.window):
                wanted.setdefault(day - back * ONE_DAY, {})[reference.artifact_digest] = reference
    return wanted


def count_features(
    lake: Lake,
    entry: ModelEntry,
    dataset: Dataset,
    interval: Interval,
    scored: Mapping[date, Publication],
    references: References,
) -> tuple[dict[date, NightCounts], dict[date, list[Input]]]:
    """Counts of every night that some window holds and that is published, and the partitions they come from."""
    wanted = _wanted(interval, references)
    first = first_available(lake, entry, Interval(min(wanted), interval.end), interval.start)
    whole = Interval(first, interval.end)
    with lake.scratch("drift") as folder:
        retrieval = retrieve(lake, entry.name, whole, folder=folder)
        nights = _count(lake, entry, retrieval, wanted, whole)
        read = dict(retrieval.inputs)
    for day in whole:
        if day not in scored or _same_inputs(lake, entry, scored[day].inputs, read[day]):
            continue
        # Rewritten since it was scored: what is judged are the features that were scored, at the versions of then.
        pins, spine_version = pinned_versions(lake, entry, scored[day].inputs)
        with lake.scratch("drift") as folder:
            then = retrieve(lake, entry.name, Interval.of(day), pins=pins, spine_version=spine_version, folder=folder)
            nights |= _count(lake, entry, then, wanted, Interval.of(day))
            read |= then.inputs
    inputs: dict[date, list[Input]] = {}
    for day in interval:
        for back in range(longest_window(references[day])):
            inputs.setdefault(day, []).extend(read.get(day - back * ONE_DAY, []))
    return nights, inputs


def pinned_versions(lake: Lake, entry: ModelEntry, inputs: Iterable[Input]) -> tuple[dict[str, int], int | None]:
    """Delta version of each view, and of the spine's table, at which a night was scored.

    The highest version among a table's partitions: each of them was the newest of its night when the night was scored,
    so none was replaced between its own version and that one.
    """
    pins: dict[str, int] = {}
    for item in inputs:
        pins[item.table] = max(pins.get(item.table, 0), item.version)
    tables = lake.feature_tables(entry)
    views = {view: pins[table.name] for view, table in tables.items() if table.name in pins}
    spine = entry.spine.table
    return views, pins.get(f"{entry.dataset}/valid/{spine}") if spine else None


def _same_inputs(lake: Lake, entry: ModelEntry, then: Iterable[Input], now: Iterable[Input]) -> bool:
    prefixes = tuple(f"{dataset.name}/" for dataset in lake.catalog.datasets_of(entry))
    return {(i.table, i.data_date, i.digest) for i in then if i.table.startswith(prefixes)} == {
        (i.table, i.data_date, i.digest) for i in now
    }


def first_available(lake: Lake, entry: ModelEntry, whole: Interval, judged: date) -> date:
    """First night from which on every input of retrieval is published without a gap, at the latest `judged`."""
    tables = list(lake.feature_tables(entry).values())
    spine = spine_table(lake, entry)
    if spine is not None:
        tables.append(spine)
    first = whole.start
    if first == judged:
        return judged
    for table in tables:
        there = lake.publications.current(table, Interval(whole.start, judged))
        missing = [day for day in Interval(whole.start, judged) if day not in there]
        if missing:
            first = max(first, missing[-1] + ONE_DAY)
    return first


def _count(
    lake: Lake,
    entry: ModelEntry,
    retrieval: Retrieval,
    wanted: Mapping[date, Mapping[str, VersionReference]],
    nights: Interval,
) -> dict[date, NightCounts]:
    counted = {day: NightCounts() for day in nights}
    profiles: dict[str, dict[str, Mapping[str, Any]]] = {}
    for batch in retrieval.reader():
        for day, rows in _by_night(batch):
            counted[day].rows += rows.num_rows
            for digest, reference in wanted.get(day, {}).items():
                if digest not in profiles:
                    profiles[digest] = feature_profiles(lake, entry, reference)
                counted[day].add(reference, profiles[digest], rows)
            counted[day].add_sums(
                dict.fromkeys(name for digest in wanted.get(day, {}) for name in profiles[digest]), rows
            )
    return counted


def _by_night(batch: pa.RecordBatch) -> Iterator[tuple[date, pa.RecordBatch]]:
    """A batch sorted by data date, cut at each change of it."""
    dates = np.asarray(batch.column("data_date").cast(pa.int32()))
    bounds: npt.NDArray[np.int64] = np.concatenate([[0], np.flatnonzero(np.diff(dates)) + 1, [len(dates)]])
    for begin, end in itertools.pairwise(bounds):
        if end > begin:
            yield date(1970, 1, 1) + timedelta(days=int(dates[begin])), batch.slice(int(begin), int(end - begin))


def count_predictions(
    lake: Lake,
    entry: ModelEntry,
    table: LakeTable,
    interval: Interval,
    scored: Mapping[date, Publication],
    references: References,
) -> dict[str, dict[date, NightCounts]]:
    """By role: counts of each night's predictions in that role."""
    wanted = _wanted(interval, references)
    roles = sorted({role for day in interval for role in references[day]})
    nights = {role: {day: NightCounts() for day in wanted if day in scored} for role in roles}
    outputs = sorted(
        {
            name
            for versions in references.values()
            for reference in versions.values()
            for name in reference.profile.get("predictions", {})
            if name in table.schema.names
        }
    )
    # A class is compared by its values, even where it is a number.
    texts = {name for name, kind in entry.drift_types.items() if is_categorical(kind)}
    columns = (f'CAST("{name}" AS VARCHAR) AS "{name}"' if name in texts else f'"{name}"' for name in outputs)
    listed = ", ".join(['"data_date"', *columns])
    with lake.duckdb() as connection:
        table.register(connection, "p", [day for day in wanted if day in scored])
        for role, counted in nights.items():
            query = connection.sql(f"SELECT {listed} FROM p WHERE role = ? ORDER BY data_date", params=[role])
            for batch in query.to_arrow_reader(65_536):
                for day, rows in _by_night(batch):
                    counted[day].rows += rows.num_rows
                    for reference in wanted[day].values():
                        counted[day].add(reference, reference.profile.get("predictions", {}), rows)
                    counted[day].add_sums(outputs, rows)
    return nights

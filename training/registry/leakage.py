"""Look for the future in a training set, by building what each night knew and computing again.

A view's SQL runs over many nights at once, with later partitions in its reach; a view that forgets `superseded_on`, or
joins a later day's rows, gives features that no night could have had. Such a model shines in every test and fails in
service. So for some nights the valid tables are copied to a lake that ends, physically, at cutoff(T), the view runs
there, and every feature cell is compared. Labels and spine rows are checked for all nights, against the revisions that
were known.
"""

# ruff: noqa: S608 (names come from the typed catalog, quoted; values are dates and numbers of ours)
from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa

from config.calendar import ONE_DAY, Interval, cutoff
from config.catalog.data import Dataset
from config.catalog.load import ModelView
from config.catalog.model import ModelEntry
from config.errors import NightfleetError
from config.masking import HIDDEN, shown_row
from features.labels import is_mature, label_as_number
from features.retrieval import spine_table
from features.transform import compute_view, inputs_of_view
from lake.duck import read_parquet
from lake.lake import Lake, register_nights
from lake.publish import publish
from lake.tables import CLOSED_COLUMN, DUCKDB_TYPES, LakeTable, feature_table, valid_table

NIGHTS = 3
_SHOWN = 20
_PER_CELL = 3
_BATCH_ROWS = 131_072


class NothingToAudit(NightfleetError):
    """A training set without rows, or feature partitions that are not published: nothing can be compared."""


@dataclass(frozen=True)
class Finding:
    """One cell that differs from what its night knew.

    Attributes:
        kind: feature: the feature partition; retrieved: a training or test row; label: a label; spine: the row itself;
            immature: its night.
        source: view or table.
        column: `(row)` where a whole row is missing on one side.
        recorded, known: the value there is, and the value of the lake cut off at the night (labels: at the as-of
            night).
    """

    kind: Literal["feature", "retrieved", "label", "spine", "immature"]
    source: str
    column: str
    night: date
    entity: Mapping[str, Any]
    recorded: Any
    known: Any

    def __str__(self) -> str:
        of = ", ".join(f"{name} {value}" for name, value in self.entity.items())
        where = {"feature": "the feature partition has", "retrieved": "the training set has"}.get(
            self.kind, "the training set has"
        )
        return (
            f"{self.source}.{self.column}, night {self.night}, {of}: {where} {self.recorded}, what was known gives"
            f" {self.known}."
        )


@dataclass(frozen=True)
class Audit:
    """What was compared, and what differs.

    Attributes:
        nights: those whose features were computed again.
        cells: feature cells compared; `rows`: rows whose label and spine were checked.
        differing: cells and rows that differ, all of them; `findings` shows some.
    """

    nights: tuple[date, ...]
    cells: int
    rows: int
    differing: int
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def summary(self) -> str:
        """One line."""
        nights = ", ".join(str(night) for night in self.nights)
        if not self.differing:
            recomputed = f"{len(self.nights)} night{'' if len(self.nights) == 1 else 's'} recomputed"
            return f"{recomputed} ({nights}), all {self.cells} feature cells and {self.rows} labels as known then"
        return (
            f"{self.differing} of {self.cells} feature cells (nights {nights}) and {self.rows} labels differ from what"
            " was known then"
        )

    def to_json(self) -> dict[str, Any]:
        """As a JSON document."""
        findings = [
            {
                "kind": f.kind,
                "source": f.source,
                "column": f.column,
                "night": f.night.isoformat(),
                "entity": {name: _plain(value) for name, value in f.entity.items()},
                "recorded": _plain(f.recorded),
                "known": _plain(f.known),
            }
            for f in self.findings
        ]
        return {
            "nights": [night.isoformat() for night in self.nights],
            "cells": self.cells,
            "rows": self.rows,
            "differing": self.differing,
            "findings": findings,
            "seconds": round(self.seconds, 3),
        }


@dataclass
class _Tally:
    """Counts of one audit while it runs."""

    cells: int
    differing: int
    findings: list[Finding]

    def add(self, cells: int, differing: int, findings: Sequence[Finding]) -> None:
        self.cells += cells
        self.differing += differing
        self.findings += findings


def audit(
    lake: Lake,
    model: str,
    *,
    as_of: date,
    files: Sequence[Path],
    pins: Mapping[str, int],
    versions: Mapping[str, int] | None = None,
    nights: int = NIGHTS,
    seed: int = 7,
) -> Audit:
    """Compare a training set with what was known.

    Args:
        as_of: night whose knowledge the labels may use.
        files: Parquet files of the rows, training and test.
        pins: Delta version by feature view, as the rows were retrieved with.
        versions: Delta version by valid table that labels and spine were read at; the newest where left out.
        nights: how many nights to compute again: the last one, others drawn with `seed`, and beside them the night
            before the newest correction, where features that see corrections too early differ most surely.
    Raises:
        NothingToAudit: the files hold no row, or a pinned feature partition is not there.
    """
    begun = time.perf_counter()
    entry = lake.model(model)
    dataset = lake.dataset(entry.dataset)
    tally = _Tally(0, 0, [])
    with lake.duckdb() as connection:
        connection.execute(f"CREATE TEMP VIEW rows AS SELECT * FROM {read_parquet(files)}")
        present = [row[0] for row in connection.execute("SELECT DISTINCT data_date FROM rows ORDER BY ALL").fetchall()]
        if not present:
            raise NothingToAudit(
                f"{', '.join(str(p) for p in files)} hold no row: there is nothing to compare. Build the training set "
                "again."
            )
        rows = _count(connection, "rows")
        _audit_labels(connection, lake, entry, dataset, as_of, versions or {}, tally)
        _audit_spine(connection, lake, entry, dataset, Interval.closed(present[0], present[-1]), versions or {}, tally)
        if not is_mature(lake, model, present[-1], as_of=as_of):
            known = f"a label may change until {entry.label.matures_after} after its target time"
            tally.add(
                0,
                1,
                [
                    Finding(
                        "immature", entry.label.table, entry.label.column, present[-1], {}, f"rows as of {as_of}", known
                    )
                ],
            )
        sampled = _sample(connection, lake, entry, present, nights, seed)
        for night in sampled:
            with _cut_lake(lake, entry, night, pins) as cut:
                for view in lake.catalog.views(entry):
                    _audit_view(connection, lake, cut, entry, view, night, pins[view.name], tally)
    personal = lake.catalog.personal_columns(entry)
    findings = tuple(_masked(finding, personal) for finding in tally.findings[:_SHOWN])
    return Audit(tuple(sampled), tally.cells, rows, tally.differing, findings, time.perf_counter() - begun)


def _sample(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    entry: ModelEntry,
    present: Sequence[date],
    nights: int,
    seed: int,
) -> list[date]:
    others = list(present[:-1])
    drawn = np.random.default_rng(seed).permutation(len(others))[: nights - 1].tolist()
    chosen = {present[-1], *(others[i] for i in drawn)}
    span = Interval.closed(present[0], present[-1] + ONE_DAY)
    corrected: list[date] = []
    for dataset, name in _tables_read(lake, entry):
        valid_table(lake.settings, dataset, name).register(connection, "corrections", span)
        corrected += [
            row[0]
            for row in connection.execute("SELECT DISTINCT data_date FROM corrections WHERE revision > 0").fetchall()
        ]
    exposed = [day - ONE_DAY for day in corrected if day - ONE_DAY in set(present)]
    return sorted(chosen | set(exposed and [max(exposed)]))


def _tables_read(lake: Lake, entry: ModelEntry) -> list[tuple[Dataset, str]]:
    """Data set and name of every table that the model's views are computed from."""
    read = {(v.dataset.name, table): v.dataset for v in lake.catalog.views(entry) for table in v.declared.reads}
    return [(read[key], key[1]) for key in sorted(read)]


# ---- labels and spine --------------------------------------------------------------------------------------------


def _audit_labels(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    entry: ModelEntry,
    dataset: Dataset,
    as_of: date,
    versions: Mapping[str, int],
    tally: _Tally,
) -> None:
    """Each row's label is the newest revision with `known_at <= cutoff(as_of)`."""
    table = valid_table(lake.settings, dataset, entry.label.table)
    dates = [day for day in lake.publications.current(table) if day <= as_of]
    table.register(connection, "label_rows", dates, versions.get(table.name))
    key = _names(dataset.tables[entry.label.table].key)
    entity = _names(entry.entity)
    instant = cutoff(as_of, dataset.time_zone).isoformat()
    closed = f'"{CLOSED_COLUMN}"' if table.closes else "false"
    absent = "NULL" if entry.label.absent is None else f"CAST({entry.label.absent!r} AS DOUBLE)"
    known = f"CASE WHEN nf__closed IS NOT FALSE THEN {absent} ELSE known_label END"
    connection.execute(f"""
        CREATE OR REPLACE TEMP VIEW label_audit AS
        WITH known AS (
            SELECT {entity}, {label_as_number(entry)} AS known_label, {closed} AS nf__closed
            FROM (SELECT * FROM label_rows WHERE known_at_utc <= TIMESTAMPTZ '{instant}') SEMI JOIN rows
              USING ({entity})
            QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY data_date DESC, revision DESC) = 1
        )
        SELECT rows.data_date, {_names(entry.entity, "rows")}, label AS recorded, {known} AS known
        FROM rows LEFT JOIN known USING ({entity}) WHERE label IS DISTINCT FROM {known}
        """)
    _collect(connection, "label_audit", "label", entry.label.table, entry.label.column, entry.entity, tally)


def _audit_spine(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    entry: ModelEntry,
    dataset: Dataset,
    span: Interval,
    versions: Mapping[str, int],
    tally: _Tally,
) -> None:
    """Each row was known at its night, for a target after its cutoff."""
    register_nights(connection, span, dataset.time_zone)
    entity = _names(entry.entity, "rows")
    recorded = "rows.target_time_utc AS recorded"
    table = spine_table(lake, entry)
    if table is not None:
        dates = [day for day in lake.publications.current(table) if day <= span.last]
        table.register(connection, "spine_rows", dates, versions.get(table.name))
        # A step is no row of the table: only its entity is looked up.
        named = [name for name in entry.entity if name in table.schema.names and name != entry.spine.step_column]
        same = [f'rows."{name}" = s."{name}"' for name in named]
        if entry.spine.target_time is not None:
            same.append(f's."{entry.spine.target_time}" = rows.target_time_utc')
        known_then = "s.data_date <= rows.data_date AND s.known_at_utc <= nights.cutoff_utc"
        unknown = f"NOT EXISTS (SELECT 1 FROM spine_rows AS s WHERE {' AND '.join(same)} AND {known_then})"
    else:
        unknown = "false"
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP VIEW spine_audit AS
        SELECT rows.data_date, {entity}, {recorded}, 'no such row' AS known
        FROM rows JOIN nights USING (data_date) WHERE rows.target_time_utc < nights.cutoff_utc OR {unknown}
        """
    )
    _collect(connection, "spine_audit", "spine", entry.spine.source, "(row)", entry.entity, tally)


def _masked(finding: Finding, personal: Collection[str]) -> Finding:
    """Without values of personal columns: findings are stored with the decision, and shown."""
    masked = replace(finding, entity=shown_row(finding.entity, personal))
    if {finding.column, f"{finding.source}__{finding.column}"}.intersection(personal):
        return replace(masked, recorded=HIDDEN, known=HIDDEN)
    return masked


def _collect(
    connection: duckdb.DuckDBPyConnection,
    relation: str,
    kind: Literal["feature", "retrieved", "label", "spine"],
    source: str,
    column: str,
    entity: Sequence[str],
    tally: _Tally,
    *,
    cells: int = 0,
) -> None:
    """Count the rows of `relation(data_date, entity…, recorded, known)`; keep the first few."""
    differing = _count(connection, relation)
    findings = []
    if differing:
        order = _names(("data_date", *entity))
        for row in (
            connection.sql(f"SELECT * FROM {relation} ORDER BY {order} LIMIT {_PER_CELL}").to_arrow_table().to_pylist()
        ):
            findings.append(
                Finding(
                    kind,
                    source,
                    column,
                    row["data_date"],
                    {name: row[name] for name in entity},
                    row["recorded"],
                    row["known"],
                )
            )
    tally.add(cells, differing, findings)


# ---- features ----------------------------------------------------------------------------------------------------


@contextmanager
def _cut_lake(lake: Lake, entry: ModelEntry, night: date, pins: Mapping[str, int]) -> Iterator[Lake]:
    """A lake of its own that holds, of every table the model's views read, what was known at the night's cutoff and
    nothing else.
    """
    with lake.scratch("leakage") as home:
        cut = Lake(lake.settings.model_copy(update={"home": home, "sql_url": ""}), lake.catalog)
        try:
            versions = _versions_then(lake, entry, night, pins)
            windows: dict[str, tuple[LakeTable, Interval]] = {}
            for view in lake.catalog.views(entry):
                for table, window in inputs_of_view(lake, view.dataset.name, view.view, night):
                    known = windows.get(table.name)
                    windows[table.name] = (table, min(known[1], window) if known else window)
            for dataset, name in _tables_read(lake, entry):
                source = valid_table(lake.settings, dataset, name)
                _copy_known(
                    lake,
                    cut,
                    source,
                    valid_table(cut.settings, dataset, name),
                    windows[source.name][1],
                    versions.get(source.name),
                    dataset,
                )
            yield cut
        finally:
            cut.engine.dispose()


def _versions_then(lake: Lake, entry: ModelEntry, night: date, pins: Mapping[str, int]) -> dict[str, int]:
    """Delta version of each valid table that the night's features were computed from, so that a later rewrite is no
    finding.
    """
    versions: dict[str, int] = {}
    for view in lake.catalog.views(entry):
        table = feature_table(lake.settings, view.dataset, view.view)
        published = lake.publications.current(table, Interval.of(night), as_of_version=pins[view.name])
        if night not in published:
            raise NothingToAudit(
                f"{table.name} had no partition {night} at version {pins[view.name]}, though the training set was "
                "built from it. "
                f"Nothing was judged. Run `{view.dataset.name}_ingest` for {night}, then train again."
            )
        for item in published[night].inputs:
            versions[item.table] = max(versions.get(item.table, 0), item.version)
    return versions


def _copy_known(
    lake: Lake, cut: Lake, source: LakeTable, target: LakeTable, window: Interval, version: int | None, dataset: Dataset
) -> None:
    """Publish, in the cut lake, the rows of the window's partitions whose `known_at` is not after the last one's
    cutoff.
    """
    order = _names(("data_date", *target.key))
    instant = cutoff(window.last, dataset.time_zone).isoformat()
    with lake.duckdb() as connection, cut.scratch("cut") as scratch:
        source.register(connection, "source", window, version)
        rows = connection.sql(
            f"SELECT * FROM source WHERE known_at_utc <= TIMESTAMPTZ '{instant}' ORDER BY {order}"
        ).to_arrow_reader(_BATCH_ROWS)
        # Columns of the catalog may be not-null; the reader says nullable, and `publish` checks the values.
        batches = (batch.cast(target.schema) for batch in rows)
        reader = pa.RecordBatchReader.from_batches(target.schema, batches)
        publish(
            cut.publications,
            target,
            reader,
            window,
            replaces={},
            lineage=cut.lineage(dataset.name, "leakage audit"),
            scratch=scratch,
        )


def _audit_view(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    cut: Lake,
    entry: ModelEntry,
    view: ModelView,
    night: date,
    pin: int,
    tally: _Tally,
) -> None:
    """The view's partition of the night, and what the night's rows got from it, against the view computed on the cut
    lake.
    """
    declared = view.declared
    table = feature_table(lake.settings, view.dataset, view.view)
    recomputed = compute_view(cut, view.dataset.name, view.view, Interval.of(night))
    connection.register("recomputed", recomputed)
    table.register(connection, "recorded", [night], pin)
    keys = declared.entities
    entity = ", ".join(f'coalesce(a."{name}", b."{name}") AS "{name}"' for name in keys)
    same = " AND ".join(f'a."{name}" = b."{name}"' for name in keys)
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE both_sides AS
        SELECT DATE '{night}' AS data_date, {entity}, a.event_timestamp IS NOT NULL AS was_recorded,
          b.event_timestamp IS NOT NULL AS was_known,
            {", ".join(f'a."{name}" AS "recorded {name}", b."{name}" AS "known {name}"' for name in declared.columns)}
        FROM recorded AS a FULL JOIN recomputed AS b ON {same}
        """)
    rows = _count(connection, "both_sides")
    one_sided = (
        f"(SELECT data_date, {_names(keys)}, if(was_recorded, 'a row', 'no row') AS recorded, if(was_known, 'a row', "
        "'no row') AS known "
        "FROM both_sides WHERE was_recorded <> was_known)"
    )
    _collect(connection, one_sided, "feature", view.name, "(row)", keys, tally, cells=rows)
    _collect_columns(
        connection,
        "both_sides WHERE was_recorded AND was_known",
        "feature",
        view.name,
        list(declared.columns),
        keys,
        rows,
        tally,
    )
    _audit_retrieved(connection, lake, entry, view, night, pin, table, tally)


def _audit_retrieved(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    entry: ModelEntry,
    view: ModelView,
    night: date,
    pin: int,
    table: LakeTable,
    tally: _Tally,
) -> None:
    """What the night's rows hold against the newest partition within the TTL that has their entity; the night's own as
    computed again.
    """
    declared = view.declared
    zone = view.dataset.time_zone
    oldest = (
        cutoff(night, zone) - declared.ttl if declared.ttl else datetime.min.replace(tzinfo=cutoff(night, zone).tzinfo)
    )
    first = night - declared.ttl - ONE_DAY if declared.ttl else view.dataset.first_data_date
    dates = [
        day
        for day in lake.publications.current(table, Interval.closed(min(first, night), night), as_of_version=pin)
        if day < night
    ]
    table.register(connection, "earlier", [day for day in dates if cutoff(day, zone) >= oldest], pin)
    columns = _names(("data_date", *declared.entities, *declared.columns))
    same = " AND ".join(f'r."{name}" = f."{name}"' for name in declared.entities)
    kinds = {name: DUCKDB_TYPES[column.type] for name, column in declared.columns.items()}
    pairs = ", ".join(
        f'CAST(r."{view.name}__{n}" AS {kinds[n]}) AS "recorded {n}", f."{n}" AS "known {n}"' for n in declared.columns
    )
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE retrieved AS
        WITH r AS (SELECT row_number() OVER () AS row_number_, * FROM rows WHERE data_date = DATE '{night}'),
        f AS (SELECT {columns} FROM earlier UNION ALL SELECT {columns} FROM recomputed)
        SELECT r.data_date, {_names(entry.entity, "r")},
            {pairs}
        FROM r LEFT JOIN f ON {same}
        QUALIFY row_number() OVER (PARTITION BY r.row_number_ ORDER BY f.data_date DESC NULLS LAST) = 1
        """)
    _collect_columns(
        connection,
        "retrieved",
        "retrieved",
        view.name,
        list(declared.columns),
        entry.entity,
        _count(connection, "retrieved"),
        tally,
    )


def _collect_columns(
    connection: duckdb.DuckDBPyConnection,
    relation: str,
    kind: Literal["feature", "retrieved"],
    view: str,
    columns: Sequence[str],
    entity: Sequence[str],
    rows: int,
    tally: _Tally,
) -> None:
    """One pass counts every column's differences; only columns that have some are looked at again."""
    counts = ", ".join(f'count(*) FILTER (WHERE "recorded {name}" IS DISTINCT FROM "known {name}")' for name in columns)
    differing = connection.execute(f"SELECT {counts} FROM {relation}").fetchall()[0]
    where = "AND" if " WHERE " in relation else "WHERE"
    for name, count in zip(columns, differing, strict=True):
        if not count:
            tally.add(rows, 0, [])
            continue
        cells = (
            f'(SELECT data_date, {_names(entity)}, "recorded {name}" AS recorded, "known {name}" AS known '
            f'FROM {relation} {where} "recorded {name}" IS DISTINCT FROM "known {name}")'
        )
        _collect(connection, cells, kind, view, name, entity, tally, cells=rows)


def _count(connection: duckdb.DuckDBPyConnection, relation: str) -> int:
    # `fetchall`, not `fetchone`: a result that is not read to its end keeps the connection from taking new relations.
    return int(connection.execute(f"SELECT count(*) FROM {relation}").fetchall()[0][0])


def _names(columns: Sequence[str], table: str = "") -> str:
    prefix = f"{table}." if table else ""
    return ", ".join(f'{prefix}"{name}"' for name in columns)


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value.isoformat() if isinstance(value, date | datetime) else str(value)

"""Validation: raw rows that break no rule become valid, the others go to quarantine with every rule they broke.

The suites of each table are Great Expectations' (features/expectations.py). One SQL pass compiled from them marks the
rows; GX's data docs are drawn from what it marked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa

from config.calendar import ONE_DAY, Interval, cutoff
from config.catalog.checks import Freshness, RowCount, TableRule, check_name
from config.catalog.data import Dataset, Table
from config.durations import format_duration
from config.errors import NightfleetError
from features.expectations import (
    BAD_SHARE,
    CompiledRule,
    Suite,
    compile_suite,
    marking_sql,
    night_suite,
    row_suite,
    table_bounds,
    table_measure,
)
from features.sources.columns import EVERY_NIGHT
from features.sources.values import without_nan
from lake.events import logged
from lake.lake import Lake, StageResult, register_nights
from lake.lineage import Input, Publication
from lake.metrics import Metric, Status, metrics_table, publish_metrics
from lake.publish import publish
from lake.tables import (
    ARROW_TYPES,
    CLOSED_COLUMN,
    DUCKDB_TYPES,
    LakeTable,
    quarantine_table,
    raw_table,
    valid_table,
)

_EXAMPLES = 3
_BATCH_ROWS = 131_072
SCORE = "quality_score"
UNDECLARED = "undeclared_column"
MISSING = "missing_column"


class DataRejected(NightfleetError):
    """A night broke a check that stops; nothing was published for it."""


@dataclass(frozen=True)
class TableCheck:
    """A table rule on one night. `value` None: not evaluated, `reason` says why.

    Attributes:
        ahead: of a freshness, the rows that lie too far after the cutoff to count; `furthest` is the last of them.
    """

    rule: TableRule
    value: float | None
    reason: str | None
    reference: str | None
    ahead: int = 0
    furthest: datetime | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the value lies within the rule's bounds; None when not evaluated."""
        if self.value is None:
            return None
        low, high = table_bounds(self.rule)
        return (low is None or self.value >= low) and (high is None or self.value <= high)

    @property
    def bound(self) -> float:
        """The bound that is broken, or the nearest one."""
        low, high = table_bounds(self.rule)
        if low is None or high is None:
            return float(low if high is None else high)  # type: ignore[arg-type]  # a rule has at least one bound
        if self.value is None:
            return low
        return low if abs(self.value - low) <= abs(self.value - high) else high


@dataclass(frozen=True)
class TableNight:
    """The verdict on one table on one night.

    Attributes:
        rows: those that came; what closes a key (`deletes: close`) is none of them.
        closed: keys closed.
        broken: rows that broke each rule, by the rule's name; a row may break several.
        without_values: rules that passed over every row they are about, because a value is missing.
    """

    table: str
    data_date: date
    rows: int
    closed: int
    bad_rows: int
    broken: Mapping[str, int]
    without_values: frozenset[str]
    checks: tuple[TableCheck, ...]

    def unseen(self, check: str) -> str | None:
        """Why a rule had nothing to look at, None where it had."""
        if not self.rows:
            return "the night has no rows"
        return "every row that it is about lacks a value" if check in self.without_values else None

    @property
    def bad_share(self) -> float:
        """Share of rows that broke any rule; 0 without rows."""
        return self.bad_rows / self.rows if self.rows else 0.0

    @property
    def score(self) -> float | None:
        """Share of rows that broke no rule, times the share of evaluated table checks that hold; in [0, 1], None
        without rows.
        """
        if not self.rows:
            return None
        evaluated = [check.holds for check in self.checks if check.holds is not None]
        return (1.0 - self.bad_share) * (sum(evaluated) / len(evaluated) if evaluated else 1.0)


@dataclass(frozen=True)
class _Marked:
    """A table's rows of the interval, marked, in DuckDB table `marked_<name>`."""

    name: str
    raw: LakeTable
    valid: LakeTable
    quarantine: LakeTable
    inputs: Mapping[date, Publication]
    rules: list[CompiledRule]
    nights: Mapping[date, TableNight]


@logged("validate")
def validate(lake: Lake, dataset: str, interval: Interval, *, run_id: str) -> StageResult:
    """Judge the raw partitions of every table of a data set, and publish valid, quarantine and quality metrics of each
    night.

    In a bulk interval the nights before the first one that stops are published, then `DataRejected` is raised.

    Raises:
        PartitionNotReady: a raw partition, or the night before the interval, is not published.
        DataRejected: a night's bad rows exceed `quality.stop_share`, or a check with `severity: stop` does not hold.
    """
    entry = lake.dataset(dataset)
    replaces = {
        table.name: lake.publications.digests(table, interval)
        for name in entry.tables
        for table in (valid_table(lake.settings, entry, name), quarantine_table(lake.settings, entry, name))
    }
    metrics_before = lake.publications.digests(metrics_table(lake.settings, dataset, "quality"), interval)
    raw = {name: _require_raw(lake, entry, name, interval) for name in entry.tables}
    with lake.duckdb() as connection:
        marked = [_mark(lake, entry, name, interval, raw[name], connection) for name in entry.tables]
        stopping = [
            night for table in marked for night in table.nights.values() if _stops(entry.tables[table.name], night)
        ]
        first_stop = min((night.data_date for night in stopping), default=None)
        until = first_stop or interval.last
        docs = _write_docs(lake, entry, Interval.closed(interval.start, until), marked, connection)
        passed = _passed(interval, first_stop)
        committed = rows = 0
        if passed is not None:
            for table in marked:
                committed += _publish(lake, dataset, table, passed, replaces, run_id, connection)
                rows += sum(table.nights[day].rows for day in passed)
            metrics = [
                metric
                for table in marked
                for day in passed
                for metric in (
                    *_differing(dataset, table, day),
                    *_metrics(dataset, entry.tables[table.name], table, table.nights[day]),
                )
            ]
            inputs = {day: [table.inputs[day].as_input() for table in marked] for day in passed}
            before = {day: metrics_before[day] for day in passed}
            committed += len(
                publish_metrics(
                    lake, dataset, "quality", metrics, passed, run_id=run_id, inputs=inputs, replaces=before
                ).committed
            )
        if first_stop is not None:
            raise DataRejected(
                _rejection(entry, marked, [n for n in stopping if n.data_date == first_stop], passed, docs, connection)
            )
    bad: dict[str, int] = {}
    for table in marked:
        for night in table.nights.values():
            for check, count in night.broken.items():
                if count:
                    bad[f"{table.name}: {check}"] = bad.get(f"{table.name}: {check}", 0) + count
    details = {
        "quarantined": sum(night.bad_rows for table in marked for night in table.nights.values()),
        "reasons": dict(sorted(bad.items(), key=lambda item: (-item[1], item[0]))),
        "data_docs": docs,
    }
    return StageResult("validate", dataset, str(interval), rows, committed, details)


def _require_raw(lake: Lake, dataset: Dataset, name: str, interval: Interval) -> dict[date, Publication]:
    raw = raw_table(lake.settings, dataset, name)
    remedy = f"Run `{dataset.name}_ingest` for the missing nights, then clear this task."
    published = lake.publications.require(
        raw, interval, needed_by=f"Validating {dataset.name} for data date {interval}", remedy=remedy
    )
    before = interval.start - ONE_DAY
    if interval.start > dataset.first_data_date:
        valid = valid_table(lake.settings, dataset, name)
        lake.publications.require(
            valid,
            Interval.of(before),
            needed_by=f"Validating {dataset.name} for data date {interval.start}",
            remedy=remedy,
        )
    return published


# ---- marking ---------------------------------------------------------------------------------------------------


def _mark(
    lake: Lake,
    dataset: Dataset,
    name: str,
    interval: Interval,
    inputs: Mapping[date, Publication],
    connection: duckdb.DuckDBPyConnection,
) -> _Marked:
    raw = raw_table(lake.settings, dataset, name)
    table = dataset.tables[name]
    raw.register(connection, f"raw_{name}", list(interval), max(p.version for p in inputs.values()))
    columns = without_nan(raw.schema, table)
    stands = f' WHERE NOT "{CLOSED_COLUMN}"' if raw.closes else ""
    connection.execute(f'CREATE OR REPLACE TEMP VIEW "read_{name}" AS SELECT {columns} FROM "raw_{name}"{stands}')  # noqa: S608 (names from the typed catalog)
    rules = compile_suite(row_suite(dataset, name), f"read_{name}")
    connection.execute(f'CREATE OR REPLACE TABLE "marked_{name}" AS {marking_sql(rules, f"read_{name}")}')
    newest = [rule for rule in table.table_rules if isinstance(rule, Freshness)]
    counts = [f"count_if(nf__broken_{number}) AS nf__broken_{number}" for number in range(len(rules))]
    empty = [
        f"count_if({rule.applies}) > 0 AND count_if({rule.applies} AND NOT {rule.missing}) = 0 AS nf__empty_{number}"
        for number, rule in enumerate(rules)
        if rule.missing is not None
    ]
    maxima = [expression for rule in newest for expression in _newest(rule)]
    rows = ("data_date", "count(*) AS nf__rows", "count(broken_rules) AS nf__bad")
    selected = ", ".join([*rows, *counts, *empty, *maxima])
    register_nights(connection, interval, dataset.time_zone, name="nf__nights")
    marked = f'(SELECT data_date, cutoff_utc AS nf__cutoff FROM nf__nights) JOIN "marked_{name}" USING (data_date)'  # noqa: S608 (names from the typed catalog)
    by_night = connection.sql(f"SELECT {selected} FROM {marked} GROUP BY data_date").to_arrow_table()  # noqa: S608 (as above)
    counted = {row["data_date"]: row for row in by_night.to_pylist()}
    valid, quarantine = valid_table(lake.settings, dataset, name), quarantine_table(lake.settings, dataset, name)
    row_counts = {day: int(counted[day]["nf__rows"]) if day in counted else 0 for day in interval}
    closed = dict.fromkeys(interval, 0)
    if raw.closes:
        query = f'SELECT data_date, count(*) FROM "raw_{name}" WHERE "{CLOSED_COLUMN}" GROUP BY data_date'  # noqa: S608 (as above)
        closed |= dict(connection.execute(query).fetchall())
    history = _history(lake, valid, quarantine, table, interval) | row_counts
    nights = {}
    for day in interval:
        row = counted.get(day, {})
        checks = tuple(_judge(rule, day, row_counts[day], row, history, dataset) for rule in table.table_rules)
        broken = {rule.check: int(row.get(f"nf__broken_{number}", 0)) for number, rule in enumerate(rules)}
        without = frozenset(rule.check for number, rule in enumerate(rules) if row.get(f"nf__empty_{number}"))
        bad = int(row.get("nf__bad", 0))
        nights[day] = TableNight(name, day, row_counts[day], closed[day], bad, broken, without, checks)
    return _Marked(name, raw, valid, quarantine, inputs, rules, nights)


def _newest(rule: Freshness) -> tuple[str, ...]:
    """What a night's freshness is judged by: the newest row that counts, how many lie too far ahead, and the last."""
    column = f'"{rule.column}"'
    ahead = f"{column} > nf__cutoff + to_seconds({rule.max_ahead // timedelta(seconds=1)})"
    return (
        f'max({column}) FILTER (NOT {ahead}) AS "nf__newest_{rule.column}"',
        f'count_if({ahead}) AS "nf__ahead_{rule.column}"',
        f'max({column}) FILTER ({ahead}) AS "nf__furthest_{rule.column}"',
    )


def _history(lake: Lake, valid: LakeTable, quarantine: LakeTable, table: Table, interval: Interval) -> dict[date, int]:
    """Rows of the validated nights that the row counts of `interval` are held against."""
    weeks = max((rule.weeks for rule in table.table_rules if isinstance(rule, RowCount)), default=0)
    if not weeks:
        return {}
    before = Interval(interval.start - timedelta(weeks=weeks), interval.start)
    aside = lake.publications.current(quarantine, before)
    return {
        day: p.rows - p.closed + aside[day].rows
        for day, p in lake.publications.current(valid, before).items()
        if day in aside
    }


def _judge(
    rule: TableRule, day: date, rows: int, row: Mapping[str, Any], history: Mapping[date, int], dataset: Dataset
) -> TableCheck:
    if isinstance(rule, RowCount):
        earlier = [
            history[past] for week in range(1, rule.weeks + 1) if (past := day - timedelta(weeks=week)) in history
        ]
        weekday = f"{day:%A}s"
        if not earlier:
            return TableCheck(rule, None, f"no earlier {weekday} to compare with", None)
        mean = sum(earlier) / len(earlier)
        if not mean:
            return TableCheck(rule, None, f"the last {len(earlier)} {weekday} had no rows", None)
        return TableCheck(rule, rows / mean, None, f"{rows} rows, mean of the last {len(earlier)} {weekday} {mean:g}")
    newest: datetime | None = row.get(f"nf__newest_{rule.column}")
    ahead, furthest = int(row.get(f"nf__ahead_{rule.column}", 0)), row.get(f"nf__furthest_{rule.column}")
    if newest is None:
        up_to = " up to the cutoff" if ahead else ""
        return TableCheck(rule, None, f"no row with a {rule.column}{up_to}", None, ahead, furthest)
    end = cutoff(day, dataset.time_zone)
    return TableCheck(
        rule,
        (end - newest) / timedelta(hours=1),
        None,
        f"newest {rule.column} {newest:%Y-%m-%d %H:%M} UTC, cutoff {end:%Y-%m-%d %H:%M} UTC",
        ahead,
        furthest,
    )


def _passed(interval: Interval, first_stop: date | None) -> Interval | None:
    """The nights to publish: those before the first one that stops; None when there are none."""
    if first_stop is None:
        return interval
    return Interval(interval.start, first_stop) if first_stop > interval.start else None


def _stops(table: Table, night: TableNight) -> bool:
    if night.rows and night.bad_share > table.quality.stop_share:
        return True
    return any(check.rule.severity == "stop" and check.holds is False for check in night.checks)


# ---- Great Expectations ----------------------------------------------------------------------------------------


def _write_docs(
    lake: Lake,
    dataset: Dataset,
    interval: Interval,
    marked: Sequence[_Marked],
    connection: duckdb.DuckDBPyConnection,
) -> str:
    """Write GX's pages of every suite over the nights of `interval`; returns the path of their index."""
    from features.data_docs import write_data_docs
    from features.suite_result import suite_result

    suites: dict[str, Suite] = {}
    results: dict[str, Any] = {}
    for table in marked:
        entry = dataset.tables[table.name]
        by_row, by_night = row_suite(dataset, table.name), night_suite(dataset, table.name)
        suites |= {by_row["name"]: by_row, by_night["name"]: by_night}
        results[by_row["name"]] = suite_result(
            by_row,
            f"marked_{table.name}",
            connection,
            where=f"data_date <= DATE '{interval.last.isoformat()}'",
            without_examples={name for name, column in entry.columns.items() if column.pii},
        )
        nights = f"nights_of_{table.name}"
        connection.register(nights, _nights_table(entry, [table.nights[day] for day in interval]))
        rules = compile_suite(by_night, nights)
        connection.execute(f'CREATE OR REPLACE TEMP TABLE "marked_{nights}" AS {marking_sql(rules, nights)}')
        results[by_night["name"]] = suite_result(by_night, f"marked_{nights}", connection)
    return str(write_data_docs(lake.settings, dataset.name, interval, suites, results))


def _nights_table(table: Table, nights: Sequence[TableNight]) -> pa.Table:
    columns: dict[str, Any] = {
        "data_date": pa.array([night.data_date for night in nights], pa.date32()),
        "row_count": pa.array([night.rows for night in nights], pa.int64()),
        "bad_rows": pa.array([night.bad_rows for night in nights], pa.int64()),
        "bad_share": pa.array([night.bad_share for night in nights], pa.float64()),
    }
    for number, rule in enumerate(table.table_rules):
        columns[table_measure(rule)] = pa.array([night.checks[number].value for night in nights], pa.float64())
    return pa.table(columns)


# ---- publishing ------------------------------------------------------------------------------------------------


def _publish(
    lake: Lake,
    dataset: str,
    table: _Marked,
    interval: Interval,
    replaces: Mapping[str, Mapping[date, str | None]],
    run_id: str,
    connection: duckdb.DuckDBPyConnection,
) -> int:
    """Publish quarantine, then valid; returns the partitions that were committed."""
    inputs: dict[date, list[Input]] = {day: [table.inputs[day].as_input()] for day in interval}
    closed = {day.isoformat(): night.closed for day, night in table.nights.items() if night.closed}
    lineage = dataclasses.replace(
        lake.lineage(dataset, run_id, **({"closed": closed} if table.valid.closes else {})), inputs=inputs
    )
    committed = 0
    # Valid last: it is what the next stage waits for, and where it is, quarantine is too.
    for target, kept in ((table.quarantine, "broken_rules IS NOT NULL"), (table.valid, "broken_rules IS NULL")):
        columns = ", ".join(f'"{name}"' for name in target.schema.names)
        order = ", ".join(f'"{name}" NULLS LAST' for name in ("data_date", *target.key))
        rows = f'SELECT {columns} FROM "marked_{table.name}" WHERE {kept}'  # noqa: S608 (names from the typed catalog)
        if target.closes:
            rows += f" UNION ALL {_closings(table)}"
        query = (
            f"SELECT * FROM ({rows})"  # noqa: S608 (as above)
            f" WHERE data_date >= DATE '{interval.start.isoformat()}' AND data_date < DATE '{interval.end.isoformat()}'"
            f" ORDER BY {order}"
        )
        reader = connection.sql(query).to_arrow_reader(_BATCH_ROWS)
        before = {day: replaces[target.name][day] for day in interval}
        with lake.scratch("validate") as scratch:
            published = publish(
                lake.publications, target, reader, interval, replaces=before, lineage=lineage, scratch=scratch
            )
        committed += len(published.committed)
    return committed


# What stands in a closing's columns that hold no null. No reader sees it; instants are its night's own, so that the
# files' statistics name that night.
_CLOSED_VALUES = {"BOOLEAN": "false", "VARCHAR": "''", "DATE": "data_date", "TIMESTAMPTZ": "known_at_utc"}


def _closings(table: _Marked) -> str:
    """SELECT of the rows of raw that close a key, as the valid table has them."""
    kept = (*table.valid.key, "known_at_utc", "data_date", CLOSED_COLUMN)
    columns = [
        f'"{f.name}"' if f.nullable or f.name in kept else f'{_closed_value(f)} AS "{f.name}"'
        for f in table.valid.schema
    ]
    return f'SELECT {", ".join(columns)} FROM "raw_{table.name}" WHERE "{CLOSED_COLUMN}"'  # noqa: S608 (names from the typed catalog)


def _closed_value(column: pa.Field) -> str:
    kind = next(DUCKDB_TYPES[name] for name, arrow in ARROW_TYPES.items() if arrow == column.type)
    return f"CAST({_CLOSED_VALUES.get(kind, '0')} AS {kind})"


def _metrics(dataset: str, entry: Table, table: _Marked, night: TableNight) -> Iterator[Metric]:
    """One row per check, and the quality score; `column` is `<table>.<column>`, or the table for what concerns it as a
    whole.
    """
    warn, stop = entry.quality.warn_share, entry.quality.stop_share

    def metric(check: str, status: Status, column: str = "", **values: Any) -> Metric:
        name = f"{table.name}.{column}" if column else table.name
        return Metric(dataset, night.data_date, night.data_date, check, status, column=name, **values)

    def share_metric(check: str, count: int, column: str = "") -> Metric:
        why = night.unseen(check)
        if why is not None:
            return metric(check, "not_evaluated", column, threshold=warn, n=night.rows, reason=why)
        share = count / night.rows
        status: Status = "warning" if share > warn else "ok"
        if share > stop:
            status = "failing"
        reason = f"{count} of {night.rows} rows" if count else None
        return metric(
            check,
            status,
            column,
            value=share,
            threshold=stop if status == "failing" else warn,
            n=night.rows,
            reason=reason,
        )

    for rule in table.rules:
        yield share_metric(rule.check, night.broken[rule.check], rule.columns[0] if len(rule.columns) == 1 else "")
    yield share_metric(BAD_SHARE, night.bad_rows)
    yield from (
        metric(f"future({column})", column=column, n=night.rows, threshold=0.0, **told)
        for column, told in _ahead(night)
    )
    for check in night.checks:
        column = check.rule.column if isinstance(check.rule, Freshness) else ""
        name = check_name(check.rule)
        if check.value is None:
            yield metric(name, "not_evaluated", column, n=night.rows, reason=check.reason)
        else:
            status: Status = "ok"
            if not check.holds:
                status = "warning" if check.rule.severity == "warn" else "failing"
            yield metric(
                name,
                status,
                column,
                value=check.value,
                threshold=check.bound,
                n=night.rows,
                reason=check.reference,
                reference=check.reference,
            )
    if night.score is None:
        yield metric(SCORE, "not_evaluated", n=0, reason="the night has no rows")
    else:
        yield metric(
            SCORE, "ok" if night.score >= 1 - warn else "warning", value=night.score, threshold=1 - warn, n=night.rows
        )


def _differing(dataset: str, table: _Marked, day: date) -> Iterator[Metric]:
    """One row per column in which the night's delivery differs from the catalog, where that says to warn."""
    told = table.inputs[day].details.get("differences", {})
    for column, missing in told.get(day.isoformat(), told.get(EVERY_NIGHT, [])):
        yield Metric(
            dataset,
            day,
            day,
            MISSING if missing else UNDECLARED,
            "warning",
            column=f"{table.name}.{column}",
            n=table.nights[day].rows,
            reason="the source lacks it: null in every row" if missing else "the source has it, the catalog does not",
        )


def _ahead(night: TableNight) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each column that is judged for freshness, the rows that lie too far ahead to count."""
    for check in night.checks:
        if not isinstance(check.rule, Freshness):
            continue
        told: dict[str, Any] = {"status": "warning" if check.ahead else "ok", "value": float(check.ahead)}
        if check.furthest is not None:
            allowed = f" by more than {format_duration(check.rule.max_ahead)}" if check.rule.max_ahead else ""
            told["reason"] = (
                f"{check.ahead} of {night.rows} rows lie after the cutoff{allowed}, the furthest at "
                f"{check.furthest:%Y-%m-%d %H:%M} UTC; they do not count for freshness"
            )
        yield check.rule.column, told


# ---- refusal ---------------------------------------------------------------------------------------------------


def _rejection(
    dataset: Dataset,
    marked: Sequence[_Marked],
    nights: Sequence[TableNight],
    passed: Interval | None,
    docs: str,
    connection: duckdb.DuckDBPyConnection,
) -> str:
    tables = {table.name: table for table in marked}
    lines = []
    for night in nights:
        entry, name = dataset.tables[night.table], f"{dataset.name}/raw/{night.table}"
        if night.rows and night.bad_share > entry.quality.stop_share:
            lines.append(
                f"{name} for {night.data_date}: {night.bad_rows} of {night.rows} rows break a rule, share "
                f"{night.bad_share:.3f}, "
                f"more than stop_share {entry.quality.stop_share:g}."
            )
            worst = sorted(
                ((count, check) for check, count in night.broken.items() if count), key=lambda item: (-item[0], item[1])
            )
            for count, check in worst:
                lines.append(f"  {check}: {count} rows, share {count / night.rows:.3f}")
            lines += [
                f"    for example {row}"
                for row in _examples(entry, tables[night.table], night, worst[0][1], connection)
            ]
        for judged in night.checks:
            if judged.rule.severity == "stop" and judged.holds is False:
                low, high = table_bounds(judged.rule)
                bounds = " and ".join(
                    [
                        *([f"at least {low:g}"] if low is not None else []),
                        *([f"at most {high:g}"] if high is not None else []),
                    ]
                )
                lines.append(
                    f"{name} for {night.data_date}: {check_name(judged.rule)} is {judged.value:.3f}, needs {bounds} "
                    f"({judged.reference})."
                )
    before = f"The nights {passed} before it are published." if passed else "Nothing was published."
    lines.append(
        f"  {before} See {docs}. Fix the source and run `restate`, or change the check or `quality` of the table in "
        "the catalog, then clear this task."
    )
    return "\n".join(lines)


def _examples(
    entry: Table, table: _Marked, night: TableNight, check: str, connection: duckdb.DuckDBPyConnection
) -> list[dict[str, str]]:
    number = next(i for i, rule in enumerate(table.rules) if rule.check == check)
    shown = [*entry.key, *(c for c in table.rules[number].columns if c not in entry.key)]
    columns = ", ".join(f'CAST("{c}" AS VARCHAR) AS "{c}"' for c in shown if not entry.columns[c].pii)
    order = ", ".join(f'"{c}"' for c in table.raw.key)
    query = (
        f'SELECT {columns} FROM "marked_{table.name}" WHERE nf__broken_{number} AND data_date = ?'  # noqa: S608
        f" ORDER BY {order} LIMIT {_EXAMPLES}"
    )
    examples: list[dict[str, str]] = connection.sql(query, params=[night.data_date]).to_arrow_table().to_pylist()
    return examples

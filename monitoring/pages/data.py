"""Data: the nights of a data set as a calendar, how good their rows were, and the rows that were set aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import duckdb
import sqlalchemy as sa
from deltalake.exceptions import DeltaError

from config.calendar import BadInterval, Interval, parse_data_date
from config.catalog.checks import check_name
from config.catalog.data import Dataset
from features.expectations import BAD_SHARE, row_rules
from features.validate import SCORE
from lake.delta import PartitionDamaged, TableDamaged
from lake.lake import Lake
from lake.metric_queries import METRICS, Row, fetch, these
from lake.storage import ObjectStore, reports
from monitoring.alerting.runs import FAILED, Run, read_runs
from monitoring.pages.data_calendar import calendar_chart, score_charts, state_counts
from monitoring.pages.data_nights import (
    DEFINITIONS,
    Night,
    Part,
    bounds_of,
    expected_nights,
    nights_of,
    parts_of,
    together,
)
from monitoring.pages.data_quarantine import CSV_ROWS, PAGE_ROWS, read_quarantine
from monitoring.pages.page import BadAddress, Column, Context, Kind, NotFound, Page, Table, read_date, shortened
from monitoring.pages.run_links import run_url, runs_on_record

TEMPLATE = "data.html.jinja"
_ALL = "all"
_FIRST_YEAR, _LAST_YEAR = 1900, 2200


def page(context: Context, *, query: Mapping[str, str], dataset: str) -> Page:
    """Nights of a year, one night closely, and its quarantine.

    Raises:
        NotFound, BadAddress: data set, table or night that are not there; a date, a year, a page that are none.
    """
    entry = context.dataset(dataset)
    lake = context.lake
    parts = parts_of(lake, entry)
    chosen = _chosen(parts, query, entry)
    bounds = bounds_of(lake, parts)
    if not bounds:
        return Page(
            f"Data: {entry.title}",
            TEMPLATE,
            {"dataset": entry, "nothing": True, "ingest_url": context.dag_url(f"{dataset}_ingest")},
        )
    first, newest = min(low for low, _ in bounds.values()), max(high for _, high in bounds.values())
    night = read_date(query.get("night"), "night")
    year = _year(query.get("year"), night or newest)
    period = Interval(date(year, 1, 1), date(year + 1, 1, 1))
    runs = read_runs(lake, subjects=[dataset], kinds=["ingest", "history"], keys=period)
    expected = expected_nights(context, entry, first, newest, period, runs)
    nights = nights_of(lake, entry, parts, bounds, period, expected)
    if night is None:
        night = max((day for of_night in nights.values() for day in of_night), default=None)
    elif not any(night in of_night for of_night in nights.values()):
        raise NotFound(
            f"{dataset} has no night {night}: the first is {first}, the newest is {newest}. Choose one of these."
        )

    shown = [part for part in parts if chosen is None or part is chosen]
    address = _Address(context, dataset, year, chosen.key if chosen else None)
    slug = address.slug
    whole = together(shown, nights)
    tables: list[Table] = []
    values: dict[str, Any] = {
        "dataset": entry,
        "nothing": False,
        "year": year,
        "night": night,
        "first": first,
        "newest": newest,
        "definitions": DEFINITIONS,
        "counts": state_counts(whole),
        "models": _models(context, entry),
        "choices": _choices(address, parts, night),
        "chosen": chosen.key if chosen else "",
        "years": [
            {"year": y, "url": address.of_year(y), "here": y == year}
            for y in range(first.year, max(newest.year, year) + 1)
        ],
        "ingest_url": context.dag_url(f"{dataset}_ingest"),
        "quarantine": None,
    }
    charts = [calendar_chart(address, whole, year), *score_charts(lake, address, entry, shown, period)]
    if night is not None:
        on_that_night = [of_night[night].published for of_night in nights.values() if night in of_night]
        on_record = runs_on_record(lake, [dataset], (published.run_id for published in on_that_night if published))
        docs = data_docs_folder(reports(lake.settings), dataset, night)
        tables.append(_night_table(address, entry, parts, nights, night, docs, on_record))
        around = sorted({day for of_night in nights.values() for day in of_night})
        values |= {
            "before": next(({"day": d, "url": address.of_night(d)} for d in reversed(around) if d < night), None),
            "after": next(({"day": d, "url": address.of_night(d)} for d in around if d > night), None),
            "night_states": next((n["states"] for n in whole if n["day"] == night), ()),
        }
        with_rows = chosen or _most_quarantined(parts, nights, night)
        tables.append(_runs_table(context, _runs_of(runs, night)))
        if with_rows is not None and with_rows.quarantine:
            browser = _quarantine(context, address, entry, with_rows, nights[with_rows.key].get(night), night, query)
            values["quarantine"] = browser
            tables += [browser["rules_table"], browser["table"]] if browser["table"] else [browser["rules_table"]]
    tables.append(_broken_rules(lake, address, entry, period, slug, shown))
    tables.append(_nights_table(context, address, entry, whole, slug, runs))
    values["by_name"] = {table.name.partition("__")[0]: table for table in tables}
    return Page(f"Data: {entry.title}", TEMPLATE, values, tuple(tables), tuple(charts))


# ---- the address -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Address:
    """Makes addresses of this page that keep what is chosen."""

    context: Context
    dataset: str
    year: int
    part: str | None

    @property
    def slug(self) -> str:
        """Stands at the end of a CSV's name: `table=` of the address names the CSV then, and says by it what it is
        about.
        """
        return _slug(self.part)

    def of_year(self, year: int) -> str:
        return self.context.url("data", self.dataset, year=year, table=self.part)

    def of_night(self, night: date, part: str | None = None, **more: Any) -> str:
        return self.context.url("data", self.dataset, table=part or self.part, night=night, **more)

    def of_part(self, part: str | None, night: date | None) -> str:
        return self.context.url("data", self.dataset, table=part, night=night, year=None if night else self.year)


def _slug(part: str | None) -> str:
    return _ALL if part is None else f"of__{part.replace('/', '__')}"


def _chosen(parts: Sequence[Part], query: Mapping[str, str], entry: Dataset) -> Part | None:
    wanted = query.get("table") or ""
    if query.get("format") == "csv":
        _, _, slug = wanted.partition("__")
        return next((part for part in parts if _slug(part.key) == slug), None)
    if not wanted:
        return None
    chosen = next((part for part in parts if part.key == wanted), None)
    if chosen is None:
        raise NotFound(
            f"{entry.name} has no table {shortened(wanted)}. It has: {', '.join(part.key for part in parts)}."
        )
    return chosen


def _year(text: str | None, shown: date) -> int:
    if not text:
        return shown.year
    if not (text.isascii() and text.isdigit() and _FIRST_YEAR <= int(text[:5]) <= _LAST_YEAR):
        raise BadAddress(f"year is {shortened(text)}, needs a year from {_FIRST_YEAR} to {_LAST_YEAR}.")
    return int(text)


def _page_number(text: str | None, pages: int) -> int:
    if not text:
        return 1
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= pages):
        raise BadAddress(f"page is {shortened(text)}, needs a number from 1 to {pages}.")
    return int(text)


def _models(context: Context, entry: Dataset) -> list[dict[str, str]]:
    return [
        {"name": m.name, "url": context.url("models", m.name)}
        for m in context.lake.catalog.readers_of(entry.name)
        if m.name in context.models
    ]


def _choices(address: _Address, parts: Sequence[Part], night: date | None) -> list[dict[str, Any]]:
    choices = [{"label": "all tables", "url": address.of_part(None, night), "here": address.part is None}]
    choices += [
        {"label": _label(part.key), "url": address.of_part(part.key, night), "here": address.part == part.key}
        for part in parts
    ]
    return choices


def _label(key: str) -> str:
    return key.replace("features/", "features: ")


# ---- tables ----------------------------------------------------------------------------------------------------


def _night_table(
    address: _Address,
    entry: Dataset,
    parts: Sequence[Part],
    nights: Mapping[str, Mapping[date, Night]],
    night: date,
    docs: str | None,
    on_record: frozenset[tuple[str, str]],
) -> Table:
    rows = []
    for part in parts:
        one = nights[part.key].get(night)
        if one is None:
            continue
        row: dict[str, Any] = {
            "table": _label(part.key),
            "table_url": address.of_part(part.key, night),
            "state": one.states[0],
            "also": list(one.states[1:]),
        }
        row |= {"rows": one.rows, "quarantined": one.quarantined, "closed": one.closed, "score": one.score}
        if one.quarantined:
            row["quarantined_url"] = address.of_night(night, part.key) + "#quarantine"
        if one.quarantined is not None and one.rows:
            row["share"] = one.quarantined / one.rows
        if one.published:
            p = one.published
            row |= {"valid": one.kept if part.quarantine else None, "newest_at": p.newest_at, "commits": p.times}
            row |= {"version": p.version, "digest": p.digest[:12], "run": p.run_id}
            row["run_url"] = run_url(
                address.context, on_record, p.run_id, f"{entry.name}_ingest", f"{entry.name}_history"
            )
        if (
            docs
            and part.quarantine
            and (name := docs_page(reports(address.context.lake.settings), entry.name, docs, part.key))
        ):
            row |= {
                "docs": "data docs",
                "docs_url": address.context.url("embedded", "data_docs", entry.name, docs, name),
            }
        rows.append(row)
    columns = (
        Column("table", "table", link="table_url"),
        Column("state", "state", "status"),
        Column("also", "also"),
        Column("rows", "rows", "number"),
        Column("valid", "valid", "number"),
        Column("quarantined", "quarantined", "number", link="quarantined_url"),
        Column("share", "share", "percent"),
        Column("closed", "keys closed", "number"),
        Column("score", "quality score", "number"),
        Column("docs", "Great Expectations", link="docs_url"),
        Column("newest_at", "published", "date"),
        Column("commits", "commits", "number"),
        Column("version", "version", "number"),
        Column("digest", "digest"),
        Column("run", "DAG run", link="run_url"),
    )
    return Table("night", f"Every table on the night of {night}.", columns, rows)


def _nights_table(
    context: Context,
    address: _Address,
    entry: Dataset,
    whole: Sequence[Mapping[str, Any]],
    slug: str,
    runs: Sequence[Run],
) -> Table:
    failed = {run.partition_key: run for run in runs if run.state == FAILED}
    rows = []
    for night in reversed(whole):
        run = failed.get(night["day"].isoformat())
        rows.append(
            {
                **night,
                "state": night["states"][0],
                "also": list(night["states"][1:]),
                "night_url": address.of_night(night["day"]),
            }
            | (
                {}
                if run is None
                else {"failed": _failure(run), "failed_url": context.dag_url(run.dag_id, run.run_id, run.failed_task)}
            )
            | (
                {"rows": None, "valid": None, "quarantined": None, "closed": None}
                if night["states"][0] == "missing" and not night["rows"]
                else {}
            )
        )
    columns = (
        Column("day", "night", "date", link="night_url"),
        Column("state", "state", "status"),
        Column("also", "also"),
        Column("rows", "rows", "number"),
        Column("valid", "valid", "number"),
        Column("quarantined", "quarantined", "number"),
        Column("closed", "keys closed", "number"),
        Column("score", "lowest quality score", "number"),
        Column("first_at", "first published", "date"),
        Column("newest_at", "newest commit", "date"),
        Column("commits", "commits", "number"),
        Column("failed", "failed run", link="failed_url"),
    )
    said = f"of {_label(address.part)}" if address.part else "of all tables together"
    return Table(f"nights__{slug}", f"All {len(rows)} nights of {address.year}, {said}.", columns, rows, folded=True)


def _failure(run: Run) -> str:
    first = (run.error or "").strip().splitlines()
    return f"{run.failed_task or run.dag_id}: {first[0][:160]}" if first else f"{run.failed_task or run.dag_id} failed"


def _runs_of(runs: Sequence[Run], night: date) -> list[Run]:
    return [run for run in runs if run.partition_key == night.isoformat()]


def _runs_table(context: Context, runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        row = {
            "dag": run.dag_id,
            "run": run.run_id,
            "state": run.state,
            "started": run.started_at,
            "ended": run.ended_at,
            "note": run.note,
        }
        row |= {"run_url": context.dag_url(run.dag_id, run.run_id), "dag_url": context.dag_url(run.dag_id)}
        if run.state == FAILED:
            row |= {"failed": _failure(run), "failed_url": context.dag_url(run.dag_id, run.run_id, run.failed_task)}
        rows.append(row)
    columns = (
        Column("dag", "DAG", link="dag_url"),
        Column("run", "run", link="run_url"),
        Column("state", "state", "status"),
        Column("started", "started", "date"),
        Column("ended", "ended", "date"),
        Column("failed", "failed task", link="failed_url"),
        Column("note", "note"),
    )
    empty = "No run of this night is on record: the history DAG or a command published it."
    return Table("runs", "Runs of this night.", columns, rows, empty=empty)


def _broken_rules(
    lake: Lake, address: _Address, entry: Dataset, period: Interval, slug: str, shown: Sequence[Part]
) -> Table:
    rows = []
    keys = {part.key for part in shown}
    for broken in _sums_of_rules(lake, entry.name, period):
        table = broken["column"].partition(".")[0]
        if table in keys:
            on_night = broken["check"].startswith(("row_count(", "freshness(", "future("))
            rule = None if on_night else broken["check"]
            row = {
                "table": table,
                "rule": broken["check"],
                "judges": "rows" if rule else "the night",
                "broken": int(broken["broken"]) if rule else None,
            }
            rows.append(
                row
                | {name: broken[name] for name in ("nights", "first", "last")}
                | {"last_url": address.of_night(broken["last"], table, rule=rule)}
            )
    rows.sort(key=lambda row: (-(row["broken"] or 0), -row["nights"], row["table"], row["rule"]))
    columns = (
        Column("table", "table"),
        Column("rule", "rule"),
        Column("judges", "judges"),
        Column("broken", "rows that broke it", "number"),
        Column("nights", "nights", "number"),
        Column("first", "first", "date"),
        Column("last", "last", "date", link="last_url"),
    )
    return Table(
        f"rules__{slug}",
        f"Rules broken in {address.year}; a row may break several.",
        columns,
        rows,
        empty="No rule was broken.",
    )


def _sums_of_rules(lake: Lake, dataset: str, period: Interval) -> list[Row]:
    """Rows and nights of each broken rule, summed by the database: a year has many thousand metrics."""
    c = METRICS.c
    on_night = sa.or_(c.check.like("row_count(%"), c.check.like("freshness(%"), c.check.like("future(%"))
    broken = sa.or_(sa.and_(on_night, c.status.in_(["warning", "failing"])), sa.and_(sa.not_(on_night), c.value > 0))
    query = (
        sa.select(
            c.column,
            c.check,
            sa.func.sum(sa.func.round(c.value * c.n)).label("broken"),
            sa.func.count().label("nights"),
            sa.func.min(c.about_date).label("first"),
            sa.func.max(c.about_date).label("last"),
        )
        .where(*these([dataset], judged=period), c.check.not_in([SCORE, BAD_SHARE]), broken)
        .group_by(c.column, c.check)
    )
    return [dict(row._mapping) for row in fetch(lake, query)]


# ---- Great Expectations ----------------------------------------------------------------------------------------


def data_docs_folder(store: ObjectStore, dataset: str, night: date) -> str | None:
    """The folder of data docs that tells of a night: its own, else the shortest interval that holds it; None where
    there is none.
    """
    folders = []
    for name in store.names(f"data_docs/{dataset}"):
        first, _, last = name.partition("..")
        try:
            interval = Interval.closed(parse_data_date(first), parse_data_date(last or first))
        except BadInterval:
            continue  # `suites`
        if night in interval:
            folders.append((len(interval), name))
    return min(folders)[1] if folders else None


def docs_page(store: ObjectStore, dataset: str, folder: str, table: str) -> str | None:
    """The page of a table's rows in that folder, None where it is not there."""
    name = f"{dataset}.{table}.html"
    return name if store.exists(f"data_docs/{dataset}/{folder}/{name}") else None


# ---- quarantine ------------------------------------------------------------------------------------------------


def _most_quarantined(parts: Sequence[Part], nights: Mapping[str, Mapping[date, Night]], night: date) -> Part | None:
    counted = [
        ((one.quarantined or 0), part)
        for part in parts
        if part.quarantine and (one := nights[part.key].get(night)) and one.published
    ]
    return max(counted, key=lambda pair: pair[0])[1] if counted else None


def _quarantine(
    context: Context,
    address: _Address,
    entry: Dataset,
    part: Part,
    one: Night | None,
    night: date,
    query: Mapping[str, str],
) -> dict[str, Any]:
    """What the browser of rows set aside shows: rules with their counts, and one page of rows."""
    rule, slug, declared = query.get("rule") or None, _slug(part.key), entry.tables[part.key].columns
    columns = (Column("rule", "rule", link="rule_url"), Column("rows", "rows that broke it", "number"))
    rules_table = Table(
        f"night_rules__{slug}", f"Rules that rows of {part.key} broke on the night of {night}.", columns, []
    )
    values: dict[str, Any] = {
        "part": part.key,
        "rule": rule,
        "rules_table": rules_table,
        "table": None,
        "unreadable": None,
    }
    if one is None or one.published is None or not one.quarantined:
        return values
    known = [check_name(r) for r in row_rules(entry.tables[part.key])]
    is_csv = query.get("format") == "csv"  # which holds all rows, whatever page it was asked for on
    try:
        rows = read_quarantine(
            context.lake,
            entry,
            part.key,
            night,
            known,
            rule=rule,
            page=lambda pages: 1 if is_csv else _page_number(query.get("page"), pages),
            page_rows=CSV_ROWS if is_csv else PAGE_ROWS,
        )
    except (DeltaError, duckdb.Error, OSError, TableDamaged, PartitionDamaged) as error:
        return values | {
            "unreadable": f"{entry.name}/quarantine/{part.key} cannot be read for {night}: {shortened(str(error), 300)}"
        }
    if rule is not None and rule not in rows.counts:
        raise NotFound(
            f"no row of {part.key} broke {shortened(rule)} on the night of {night}. Broken were: "
            f"{', '.join(rows.counts) or 'none'}."
        )
    counted = sorted(rows.counts.items(), key=lambda item: (-item[1], item[0]))
    rules = [
        {"rule": name, "rows": count, "rule_url": f"{address.of_night(night, part.key, rule=name)}#quarantine"}
        for name, count in counted
    ]
    shown = [
        Column("broken_rules", "broke"),
        *(_column(name, column.type, column.unit) for name, column in declared.items()),
    ]
    shown += [Column("known_at_utc", "known at", "date"), Column("revision", "revision", "number")]
    first = (rows.page - 1) * PAGE_ROWS + 1
    which = f"that broke {rule}" if rule else "quarantined"
    said = f"{part.key} {which} on the night of {night}, with every rule they broke"
    caption = f"Rows {first:,} to {first + len(rows.rows) - 1:,} of {rows.total:,} of {said}."
    if rows.total > CSV_ROWS:
        caption += f" The CSV holds the first {CSV_ROWS:,}; the others are in the lake's table of rows set aside."

    def page_url(number: int) -> str | None:
        return (
            f"{address.of_night(night, part.key, rule=rule, page=number)}#quarantine"
            if 1 <= number <= rows.pages
            else None
        )

    return values | {
        "rules_table": replace(rules_table, rows=rules),
        "table": Table(f"quarantine__{slug}", caption, tuple(shown), rows.rows),
        "masked": [name for name, column in declared.items() if column.pii],
        "page": rows.page,
        "pages": rows.pages,
        "previous_url": page_url(rows.page - 1),
        "next_url": page_url(rows.page + 1),
        "all_url": f"{address.of_night(night, part.key)}#quarantine",
    }


_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("int32", "int64", "float64"), "number"),
    **dict.fromkeys(("date", "timestamp"), "date"),
}


def _column(name: str, kind: str, unit: str | None) -> Column:
    return Column(
        name,
        name,
        _KINDS.get(kind, "text"),
        unit or "",
    )

"""Rows that validation set aside: one partition, one page of it at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from config.catalog.data import Dataset
from lake.lake import Lake
from lake.tables import quarantine_table

PAGE_ROWS = 50
CSV_ROWS = 100_000  # of a night: more than that many rows set aside are read with SQL or DuckDB
MASKED = "(personal data)"
_LONGEST_CELL = 300


@dataclass(frozen=True)
class SetAside:
    """One page of a night's rows that were set aside.

    Attributes:
        counts: rows that broke each rule, over the whole night.
        total: rows in all, of the rule that was asked for.
        page, pages: this page's number, from 1, and how many there are.
        rows: cells by column; `broken_rules` is the list of names.
    """

    counts: dict[str, int]
    total: int
    page: int
    pages: int
    rows: list[dict[str, Any]]


def read_quarantine(
    lake: Lake,
    entry: Dataset,
    table: str,
    night: date,
    known: Sequence[str],
    *,
    rule: str | None,
    page: Callable[[int], int],
    page_rows: int = PAGE_ROWS,
) -> SetAside:
    """One page of the rows of one quarantine partition, as it is now.

    DuckDB reads that partition's files alone, within its memory limit, and keeps one page; texts are cut, so that a
    page stays a page. Columns with personal data are never read.

    Args:
        page_rows: how many rows a page has.
        known: names of the table's rules; a name may hold what separates them.
        page: gives the number of the page to read, from 1, for the number of pages there are.
    """
    target = quarantine_table(lake.settings, entry, table)
    declared = entry.tables[table].columns
    cells = []
    for name, column in declared.items():
        quoted = '"' + name.replace('"', '""') + '"'
        if column.pii:
            cells.append(f"'{MASKED}' AS {quoted}")
        elif column.type == "string":
            short = f"left({quoted}, {_LONGEST_CELL}) || '… (' || length({quoted}) || ' characters)'"
            cells.append(f"CASE WHEN length({quoted}) > {_LONGEST_CELL} THEN {short} ELSE {quoted} END AS {quoted}")
        else:
            cells.append(quoted)
    order = ", ".join('"' + name.replace('"', '""') + '" NULLS LAST' for name in target.key)
    where, given = ("WHERE contains('; ' || broken_rules || '; ', '; ' || ? || '; ')", [rule]) if rule else ("", [])
    with lake.duckdb() as connection:
        target.register(connection, "aside", [night])
        groups = connection.sql("SELECT broken_rules, count(*) AS n FROM aside GROUP BY broken_rules").fetchall()
        counts: dict[str, int] = {}
        for broken, count in groups:
            for name in rules_in(broken, known):
                counts[name] = counts.get(name, 0) + count
        total = int(connection.execute(f"SELECT count(*) FROM aside {where}", given).fetchall()[0][0])  # noqa: S608 (a fixed text)
        pages = max(1, -(-total // page_rows))
        number = page(pages)
        listed = f"broken_rules, {', '.join(cells)}, known_at_utc, revision"
        query = (
            f"SELECT {listed} FROM aside {where} ORDER BY {order} LIMIT {page_rows} OFFSET {(number - 1) * page_rows}"  # noqa: S608 (names from the catalog)
        )
        rows = connection.sql(query, params=given).to_arrow_table().to_pylist()
    for row in rows:
        row["broken_rules"] = list(rules_in(row["broken_rules"], known))
    return SetAside(counts, total, number, pages, rows)


def rules_in(broken: str, known: Sequence[str]) -> tuple[str, ...]:
    """The rules that a row's `broken_rules` names: those of today's catalog where they are all, else what the separator
    gives.
    """
    whole = f"; {broken}; "
    named = [name for name in known if f"; {name}; " in whole]
    return tuple(named) if "; ".join(named) == broken else tuple(broken.split("; "))

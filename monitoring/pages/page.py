"""What a page is made of: who reads it, tables, charts, and the two things an address can get wrong."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote, urlencode

from config.calendar import ONE_DAY, BadInterval, Interval, parse_data_date
from config.catalog.data import Dataset
from config.catalog.model import ModelEntry
from config.errors import NightfleetError
from lake.lake import Lake

Role = Literal["viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")
Kind = Literal["text", "number", "percent", "change", "date", "status"]
_LONGEST_PERIOD_DAYS = 3_660
_FIRST_YEAR, _LAST_YEAR = 1900, 2200


class NotFound(NightfleetError):
    """The address names something that is not there."""


class BadAddress(NightfleetError):
    """A part of the address is not what it has to be."""


class NotAllowed(NightfleetError):
    """The person's role does not allow this."""


@dataclass(frozen=True)
class Viewer:
    """The person who reads. `name` is shown and recorded, `role` decides what may be done."""

    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """Whether this person has at least that role."""
        return ROLES.index(self.role) >= ROLES.index(role)


@dataclass(frozen=True)
class Context:
    """Everything a page may look at besides its own address.

    Attributes:
        now: aware, UTC.
        base: path below which all pages lie, without a slash at the end.
        airflow_url: path or address of Airflow's UI, without a slash at the end.
        mlflow_url: address of MLflow for a person's browser, empty where there is none.
        models, datasets: names that this person may see, in the catalog's order.
        csrf_token: goes into every form, as `csrf_token`.
        notice: what the last action did, shown once at the top.
    """

    lake: Lake
    viewer: Viewer
    now: datetime
    models: tuple[str, ...]
    datasets: tuple[str, ...]
    base: str = "/nightfleet"
    airflow_url: str = ""
    mlflow_url: str = ""
    csrf_token: str = ""
    notice: str = ""

    def model(self, name: str) -> ModelEntry:
        """A model this person may see.

        Raises:
            NotFound: there is none of that name; the message names those there are.
        """
        if name not in self.models:
            raise NotFound(
                f"there is no model {shortened(name)}. There are: {', '.join(self.models) or 'none you may see'}."
            )
        return self.lake.model(name)

    def dataset(self, name: str) -> Dataset:
        """A data set this person may see; NotFound as with `model`."""
        if name not in self.datasets:
            raise NotFound(
                f"there is no data set {shortened(name)}. There are: {', '.join(self.datasets) or 'none you may see'}."
            )
        return self.lake.dataset(name)

    def url(self, *parts: str | date, **query: Any) -> str:
        """Address of a page: parts of the path, then what is not None of the query."""
        path = "/".join([self.base, *(quote(str(part), safe="") for part in parts)])
        return _with_query(path if parts else f"{self.base}/", query)

    def dag_url(self, dag_id: str, run_id: str | None = None, task_id: str | None = None) -> str:
        """Address of a DAG, one of its runs, or a task of a run in Airflow's UI."""
        path = f"{self.airflow_url}/dags/{quote(dag_id, safe='')}"
        path += f"/runs/{quote(run_id, safe='')}" if run_id else ""
        return path + (f"/tasks/{quote(task_id, safe='')}" if run_id and task_id else "")

    def mlflow_run_url(self, experiment_id: str, run_id: str) -> str:
        """Address of a run in MLflow, empty where MLflow's address is not known."""
        return f"{self.mlflow_url}/#/experiments/{quote(experiment_id)}/runs/{quote(run_id)}" if self.mlflow_url else ""


def _with_query(path: str, query: Mapping[str, Any]) -> str:
    given = {name.rstrip("_"): str(value) for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


@dataclass(frozen=True)
class Column:
    """One column of a table. `change`: a share with its sign. `link` names the row's key that holds an address for this
    cell.
    """

    key: str
    label: str
    kind: Kind = "text"
    unit: str = ""
    link: str = ""


@dataclass(frozen=True)
class Table:
    """Rows that are shown, and downloaded as CSV, the same.

    Attributes:
        name: in `?format=csv&table=<name>`; letters, digits, underscores.
        caption: what the table says, in a sentence; read out by screen readers.
        rows: cells by column key. Numbers stay numbers: the template rounds what it shows, the CSV does not.
        folded: shown closed, the caption as its handle.
        same: what is the same in every row (model, output, period): columns of the CSV alone, before the others.
        stacked: on a narrow screen each row is a card, and nothing has to be scrolled sideways.
        empty: what stands there when there are no rows.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: Sequence[Mapping[str, Any]]
    folded: bool = False
    empty: str = "Nothing here."
    stacked: bool = False
    same: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chart:
    """An ECharts option, JSON only. `page.js` adds colours of the theme, tooltips without HTML, and follows the width.

    Attributes:
        description: the same in words, for who does not see it.
        links: addresses by category of the x axis; a click on a point there follows it.
    """

    name: str
    title: str
    option: Mapping[str, Any]
    description: str
    height_px: int = 260
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """What a page module returns. `values` are the template's own variables."""

    title: str
    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()

    def table(self, name: str | None) -> Table:
        """The table of that name, the first for None; NotFound names those there are."""
        for table in self.tables:
            if name in (None, "", table.name):
                return table
        raise NotFound(
            f"this page has no table {shortened(name or '')}. It has: "
            f"{', '.join(t.name for t in self.tables) or 'none'}."
        )


# ---- parts of addresses ----------------------------------------------------------------------------------------


def shortened(text: str, longest: int = 80) -> str:
    """Quoted, and cut where it is long: what an address said, for a message."""
    return repr(text if len(text) <= longest else text[: longest - 1] + "…")


def read_date(text: str | None, name: str) -> date | None:
    """A date of an address, None where it was left out.

    Raises:
        BadAddress: it is not a date `YYYY-MM-DD`.
    """
    if text is None or not text.strip():
        return None
    try:
        day = parse_data_date(text.strip())
    except BadInterval as error:
        raise BadAddress(f"{name} is {shortened(text)}, needs a date such as 2013-07-01.") from error
    if not _FIRST_YEAR <= day.year <= _LAST_YEAR:
        raise BadAddress(f"{name} is {day}, needs a year from {_FIRST_YEAR} to {_LAST_YEAR}.")
    return day


def read_period(
    start: str | None, end: str | None, *, newest: date | None, nights: int, names: tuple[str, str] = ("from", "to")
) -> Interval:
    """The period of an address, both ends included; by default the `nights` up to `newest`.

    Raises:
        BadAddress: an end is not a date, the first lies after the last, or the period is longer than ten years.
        NotFound: the address leaves it open and there is no night yet.
    """
    first, last = read_date(start, names[0]), read_date(end, names[1])
    if last is None:
        if newest is None and first is None:
            raise NotFound("there is no night to show yet. Run the first one (`make run`) or trigger the ingest DAG.")
        last = max(newest or first, first or newest)  # type: ignore[type-var]  # one of them is a date
    assert last is not None
    first = first or last - timedelta(days=nights - 1)
    if first > last:
        raise BadAddress(f"{names[0]} is {first}, which is after {names[1]}, {last}. Swap them.")
    if (last - first).days >= _LONGEST_PERIOD_DAYS:
        raise BadAddress(f"{first} to {last} is longer than ten years. Choose a shorter period.")
    return Interval(first, last + ONE_DAY)


# ---- CSV -------------------------------------------------------------------------------------------------------

# Where a cell begins for some spreadsheet (many split at `;`, whatever is quoted), before what begins a formula; its
# fullwidth form does, too.
_FORMULA = re.compile(r"(^|[;\t\r\n])(?=[\s\0]*[=+\-@\uff1d\uff0b\uff0d\uff20])|^(?=[\t\r\n])")


def to_csv(table: Table, *, origin: str = "") -> str:
    """The table as CSV with a header of keys; every value as it is, not as it is shown, and of a link its address, too.

    Texts are quoted, and what a spreadsheet would take for a formula gets an apostrophe before it.

    Args:
        origin: stands before addresses of these pages, so that they can be opened from a spreadsheet.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n", quoting=csv.QUOTE_NONNUMERIC)
    links = [column.link for column in table.columns if column.link]
    header = [column.key + (f" [{column.unit}]" if column.unit else "") for column in table.columns]
    writer.writerow([*table.same, *header, *links])
    same = [_csv_cell(value) for value in table.same.values()]
    for row in table.rows:
        cells = [_csv_cell(row.get(column.key)) for column in table.columns]
        writer.writerow([*same, *cells, *(_csv_cell(_address(row.get(link), origin)) for link in links)])
    return out.getvalue()


def _address(url: str | None, origin: str) -> str | None:
    return origin + url if url and url.startswith("/") else url


def _csv_cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (list, tuple)):
        value = "; ".join(str(_csv_cell(item)) for item in value)
    if isinstance(value, str):
        return _FORMULA.sub(r"\1'", value)
    return value.isoformat() if isinstance(value, (date, datetime)) else value

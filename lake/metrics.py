"""The metrics table: one schema for every check, in Delta (`<subject>/metrics/<group>`) and in the indexed SQL table
`metrics`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from config.calendar import Interval
from config.errors import NightfleetError
from config.settings import Settings
from lake.delta import table_location
from lake.lake import Lake
from lake.lineage import Input
from lake.migrations import METRICS
from lake.projection import project
from lake.publish import Published, publish
from lake.tables import DATA_DATE, LakeTable

Status = Literal["ok", "warning", "failing", "not_evaluated"]
STATUSES: tuple[Status, ...] = ("ok", "warning", "failing", "not_evaluated")
SQL_TABLE = "metrics"
KEY = ("subject", "check", "column", "segment", "about_date", "role", "model_version")
# The second answers whole by itself how long an alarm has lasted.
INDEXES = (
    ("subject", "data_date"),
    ("subject", "check", "column", "segment", "about_date", "status", "data_date", "role", "model_version"),
)

METRIC_SCHEMA = pa.schema(
    [
        pa.field("subject", pa.string(), nullable=False),
        pa.field("about_date", pa.date32(), nullable=False),
        pa.field("check", pa.string(), nullable=False),
        pa.field("column", pa.string(), nullable=False),
        pa.field("segment", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("lower", pa.float64()),
        pa.field("upper", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("n", pa.int64()),
        pa.field("reference", pa.string()),
        pa.field("role", pa.string()),
        pa.field("model_version", pa.int64()),
        DATA_DATE,
    ]
)


class BadMetric(NightfleetError):
    """A metric row says something the schema does not allow."""


@dataclass(frozen=True)
class Metric:
    """One number about one night. `(subject, check, column, segment, role, model_version)` is the fingerprint of its
    alarm.

    Attributes:
        subject: data set or model.
        about_date: the night that is judged.
        data_date: the night whose knowledge judges it (labels mature later); the partition.
        column: the column, table or view meant, empty when it is the subject as a whole.
        segment: `column=value` of a part of the rows, empty for all of them.
        value, lower, upper: the number, and its confidence interval where there is one.
        threshold: what `value` is held against.
        n: rows that the number rests on.
        reference: what it is compared with, for people, for example a model version and the window it was trained on.
        role, model_version: whose predictions it is about; None where it is about no version: a data set, a model's
            runs.
    """

    subject: str
    about_date: date
    data_date: date
    check: str
    status: Status
    column: str = ""
    segment: str = ""
    value: float | None = None
    lower: float | None = None
    upper: float | None = None
    threshold: float | None = None
    reason: str | None = None
    n: int | None = None
    reference: str | None = None
    role: str | None = None
    model_version: int | None = None


def metrics_table(settings: Settings, subject: str, group: str) -> LakeTable:
    """`<subject>/metrics/<group>`; one writer per group."""
    name = f"{subject}/metrics/{group}"
    return LakeTable(name, table_location(settings, name), METRIC_SCHEMA, KEY, added=METRICS)


def metric_rows(metrics: Iterable[Metric]) -> pa.Table:
    """Metrics as Arrow rows."""
    rows = list(metrics)
    columns = {f.name: pa.array([getattr(m, f.name) for m in rows], f.type, from_pandas=True) for f in METRIC_SCHEMA}
    return pa.table(columns, schema=METRIC_SCHEMA)


def publish_metrics(
    lake: Lake,
    subject: str,
    group: str,
    rows: pa.Table | Sequence[Metric],
    interval: Interval,
    *,
    run_id: str,
    inputs: Mapping[date, Sequence[Input]] | None = None,
    replaces: Mapping[date, str | None] | None = None,
) -> Published:
    """Make `rows` the metrics of that group in `interval`, in Delta, then in SQL; SQL is repaired even when nothing is
    committed.

    Args:
        rows: columns as in METRIC_SCHEMA; columns left out are null, `column` and `segment` empty. NaN is stored as
            null.
        replaces: what the stage saw there when it began (`lake.publications.digests`); None: what is there now.
    Raises:
        BadMetric: a status that is none, a row of another subject, or `not_evaluated` and `failing` without a reason.
    """
    table = metrics_table(lake.settings, subject, group)
    before = replaces if replaces is not None else lake.publications.digests(table, interval)
    checked = _checked(rows if isinstance(rows, pa.Table) else metric_rows(rows), subject, table.name)
    lineage = dataclasses.replace(lake.lineage(subject, run_id), inputs=dict(inputs or {}))
    with lake.scratch("metrics") as scratch:
        published = publish(
            lake.publications, table, checked, interval, replaces=before, lineage=lineage, scratch=scratch
        )
    project_metrics(lake, subject, group)
    return published


def project_metrics(lake: Lake, subject: str, group: str, *, anew: bool = False) -> int:
    """Bring the SQL table `metrics` up to date with that group, all its nights; rows written."""
    return project(lake, metrics_table(lake.settings, subject, group), SQL_TABLE, indexes=INDEXES, anew=anew)


def read_metrics(lake: Lake, subject: str, group: str, interval: Interval | None = None) -> pa.Table:
    """Metrics of that group, sorted by data date and key; no rows when there are none."""
    return metrics_table(lake.settings, subject, group).read(interval)


def _checked(rows: pa.Table, subject: str, name: str) -> pa.Table:
    count = rows.num_rows
    for field in METRIC_SCHEMA:
        if field.name not in rows.column_names and (field.nullable or field.name in {"column", "segment"}):
            blank = pa.nulls(count, field.type) if field.nullable else pa.repeat(pa.scalar("", field.type), count)
            rows = rows.append_column(field, blank)
    for name_of in ("value", "lower", "upper", "threshold"):
        index, column = rows.column_names.index(name_of), rows[name_of].cast(pa.float64())
        rows = rows.set_column(
            index, pa.field(name_of, pa.float64()), pc.if_else(pc.fill_null(pc.is_nan(column), False), None, column)
        )
    for column_name, allowed in (("status", STATUSES), ("subject", (subject,))):
        wrong = (
            rows.filter(pc.invert(pc.is_in(rows[column_name], value_set=pa.array(allowed))))
            if column_name in rows.column_names
            else rows.slice(0, 0)
        )
        if wrong.num_rows:
            raise BadMetric(
                f"{name}: {column_name} is {wrong[column_name][0].as_py()!r}, needs one of {', '.join(allowed)}. "
                "Nothing was written."
            )
    unreasoned = pc.and_(
        pc.is_in(rows["status"], value_set=pa.array(["failing", "not_evaluated"])),
        pc.equal(pc.fill_null(rows["reason"], ""), ""),
    )
    if pc.any(unreasoned, min_count=0).as_py():
        check = rows.filter(unreasoned)["check"][0].as_py()
        raise BadMetric(
            f"{name}: check {check!r} is failing or not evaluated without a reason. Nothing was written. Say why in "
            "`reason`."
        )
    return rows

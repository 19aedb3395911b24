"""Reports for the eyes: one self-contained HTML page each for drift and performance of a night, drawn by Evidently.

The numbers are those of the metrics table: Evidently is handed each column's statistic and limit and draws the
distributions.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from config.calendar import ONE_DAY, Interval
from config.catalog.model import ModelEntry
from features.retrieval import retrieve
from lake.assignment import CHAMPION, scored_by
from lake.events import logged
from lake.lake import Lake, StageResult
from lake.lineage import Publication
from lake.metrics import metrics_table
from lake.storage import ObjectStore, reports
from monitoring import drift, performance
from monitoring.drift_counts import first_available, pinned_versions
from monitoring.pages.document import document
from monitoring.pages.page import Column, Table
from monitoring.references import VersionReference, feature_profiles, references_of
from monitoring.wording import shown
from serving.predictions import predictions_table
from serving.signed import ModelMissing, signed_files
from training.registry.reference import SAMPLE_FILE, SAMPLE_ROWS, as_numbers

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 4
_PERFORMANCE_ROWS = 100_000
_NEW_CATEGORIES = 5
_OTHER = "(other)"
_LARGEST = 1e12
# Nothing may be loaded from anywhere: what a page needs is in it.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)
_ORDER = {"failing": 0, "warning": 1, "not_evaluated": 2, "ok": 3}
_scores: ContextVar[Mapping[str, float]] = ContextVar("scores")

Row = Mapping[str, Any]


@dataclass
class _Page:
    """What our part of a page says."""

    title: str
    facts: list[str]
    rows: Sequence[Row]
    notes: list[str] = field(default_factory=list)


@logged("report")
def report(lake: Lake, model: str, interval: Interval, *, run_id: str) -> StageResult:
    """Write `drift.html` and `performance.html` of each night below `<reports>/<model>/<data_date>/`; nothing where
    they are up to date.

    A page appears whole or not at all. A night without rows, or without labels, gets a page that says *not evaluated*
    and why.

    Args:
        run_id: the run that asks; it is not written into the pages, so that the same night gives the same page.
    Raises:
        PartitionNotReady: drift or performance of a night is not measured yet.
    """
    entry = lake.model(model)
    dataset = lake.dataset(entry.dataset)
    measured = {
        group: lake.publications.require(
            metrics_table(lake.settings, model, group),
            interval,
            needed_by=f"The reports of {model}",
            remedy=f"Run `{model}_monitor` for it: its tasks `drift` and `performance` come first.",
        )
        for group in (drift.GROUP, performance.GROUP)
    }
    scored = lake.publications.current(predictions_table(lake.settings, entry, dataset))
    store = reports(lake.settings)
    files, written = [], 0
    for day in interval:
        judged = performance.maturing(lake, model, day)
        for group, write, nights in ((drift.GROUP, _drift_page, [day]), (performance.GROUP, _performance_page, judged)):
            stamp = _stamp(measured[group][day])
            for role in _roles(scored, nights):
                name = f"{group}.html" if role == CHAMPION else f"{group}-{role}.html"
                key = f"{model}/{day.isoformat()}/{name}"
                files.append(store.uri(key))
                if _is_current(store, key, stamp):
                    continue
                rows = metrics_table(lake.settings, model, group).read([day]).to_pylist()
                rows = [row for row in rows if row["role"] in (role, None)]
                store.put(key, write(lake, entry, day, role, rows, scored, stamp).encode())
                written += 1
    return StageResult("report", model, str(interval), len(files), written, {"files": files[:60], "written": written})


# ---- pages -----------------------------------------------------------------------------------------------------


def _roles(scored: Mapping[date, Publication], nights: Iterable[date]) -> list[str]:
    """Roles in which some version scored one of those nights, and the champion's, whose page is always there."""
    roles = {a.role for night in nights if night in scored for a in scored_by(night, scored[night].details)}
    return sorted(roles | {CHAMPION})


def _title(what: str, entry: ModelEntry, role: str) -> str:
    return f"{what}: {entry.title}" + ("" if role == CHAMPION else f", {role}")


def _drift_page(
    lake: Lake,
    entry: ModelEntry,
    day: date,
    role: str,
    rows: Sequence[Row],
    scored: Mapping[date, Publication],
    stamp: str,
) -> str:
    reference = references_of(lake, entry.name, {day: scored[day]})[day][role]
    volume = next((row["n"] for row in rows if row["check"] == "volume"), None)
    counted = scored[day].rows if volume is None else volume
    facts = [f"data date {day}", reference.described(), f"{counted:,} rows scored"]
    page = _Page(_title("Drift", entry, role), facts, rows)
    share = next((row for row in rows if row["check"] == "drift_share"), None)
    if share is not None:
        page.facts.append(f"{share['status'].replace('_', ' ')}: {share['reason']}")
    if reference.window > 1:
        page.facts.append(f"each column over {reference.window} nights")
    numbers = {row["column"]: row for row in rows if _is_drawn(row)}
    if not numbers:
        return _whole(page, f"not evaluated: {share['reason'] if share else 'nothing was measured'}", stamp)
    sample = _signed_sample(lake, entry, reference)
    if sample is None:
        return _whole(
            page,
            f"not drawn: version {reference.version} has no {SAMPLE_FILE} beside its files; register it again",
            stamp,
        )
    profiles = {**feature_profiles(lake, entry, reference), **reference.profile.get("predictions", {})}
    profiles = {name: profile for name, profile in profiles.items() if name in numbers}
    personal = sorted(lake.catalog.personal_columns(entry).intersection(profiles))
    page.notes += [f"{name} is personal data: it is measured, but not drawn" for name in personal]
    profiles = {name: profile for name, profile in profiles.items() if name not in personal}
    current = _current_rows(lake, entry, day, role, reference, scored, profiles)
    before = _reference_rows(sample, profiles)
    drawn: dict[str, tuple[Any, Any]] = {}
    for name, profile in profiles.items():
        pair = _column_pair(name, before.get(name), current.get(name), profile, page.notes)
        if pair is None:
            page.notes.append(f"{name} is measured, but not drawn: one side of the sample has no value")
        else:
            drawn[name] = pair
    unjudged = [row for row in rows if row["status"] == "not_evaluated" and row["column"] and _is_drift(row)]
    page.notes += [f"{row['column']} is not evaluated: {row['reason']}" for row in unjudged]
    if not drawn:
        return _whole(page, "not drawn: no column has values on both sides", stamp)
    outputs = set(reference.profile.get("predictions", {}))
    return _whole(page, None, stamp, _evidently_drift(drawn, profiles, numbers, entry.retrain.drift.share, outputs))


def _is_drawn(row: Row) -> bool:
    measured = row["value"] is not None and row["threshold"] is not None and row["status"] != "not_evaluated"
    return bool(row["column"]) and measured and _is_drift(row)


def _is_drift(row: Row) -> bool:
    return bool(row["check"].startswith("drift_") or row["check"] == "prediction_drift")


def _performance_page(
    lake: Lake,
    entry: ModelEntry,
    day: date,
    role: str,
    rows: Sequence[Row],
    scored: Mapping[date, Publication],
    stamp: str,
) -> str:
    dataset = lake.dataset(entry.dataset)
    nights = sorted({row["about_date"] for row in rows})
    judged = [night for night in nights if night in scored and scored[night].rows]
    about = ", ".join(map(str, nights)) or "none"
    facts = [f"data date {day}", f"nights whose labels became mature: {about}"]
    page = _Page(_title("Performance", entry, role), facts, rows)
    if not nights:
        return _whole(page, "not evaluated: no night became mature in this one", stamp)
    page.facts += sorted({f"{row['about_date']} scored by {row['reference']}" for row in rows if row["reference"]})
    reasons = sorted({str(row["reason"]) for row in rows if row["status"] == "not_evaluated"})
    if not judged:
        return _whole(page, f"not evaluated: {'; '.join(reasons)}", stamp)
    measured = [performance.outcomes(lake, entry, dataset, night, day, role=role) for night in judged]
    label = np.concatenate([item[0] for item in measured])
    predicted = {name: np.concatenate([item[2][name] for item in measured]) for name in entry.judged_columns}
    came = ~np.isnan(label)
    if not came.any():
        return _whole(page, f"not evaluated: {'; '.join(reasons)}", stamp)
    chosen = np.flatnonzero(came)
    if len(chosen) > _PERFORMANCE_ROWS:
        chosen = chosen[:: -(-len(chosen) // _PERFORMANCE_ROWS)]
        page.notes.append(f"drawn from {len(chosen):,} of {int(came.sum()):,} rows; the table above is of all of them")
    return _whole(
        page,
        None,
        stamp,
        _evidently_performance(entry, label[chosen], {n: v[chosen] for n, v in predicted.items()}, page.notes),
    )


# ---- rows to draw ----------------------------------------------------------------------------------------------


def _current_rows(
    lake: Lake,
    entry: ModelEntry,
    day: date,
    role: str,
    reference: VersionReference,
    scored: Mapping[date, Publication],
    profiles: Mapping[str, Any],
) -> dict[str, pa.ChunkedArray]:
    """At most SAMPLE_ROWS rows of the window, features as they were scored and predictions as they were published:
    every n-th, in key order.
    """
    dataset = lake.dataset(entry.dataset)
    window = Interval(day - (reference.window - 1) * ONE_DAY, day + ONE_DAY)
    pins, spine_version = pinned_versions(lake, entry, scored[day].inputs)
    window = Interval(first_available(lake, entry, window, day), window.end)
    columns: dict[str, pa.ChunkedArray] = {}
    with lake.scratch("report") as folder:
        retrieved = retrieve(lake, entry.name, window, pins=pins, spine_version=spine_version, folder=folder)
        names = [name for name in profiles if name in retrieved.schema.names]
        if names:
            columns = _every_nth(retrieved.reader(), names, retrieved.rows)
    table = predictions_table(lake.settings, entry, dataset)
    nights = [night for night in window if night in scored]
    outputs = [name for name in profiles if name in entry.output_columns]
    if outputs:
        listed = ", ".join(f'"{name}"' for name in outputs)
        keys = ", ".join(f'"{name}"' for name in entry.entity)
        with lake.duckdb() as connection:
            table.register(connection, "p", nights)
            rows = connection.sql("SELECT count(*) FROM p WHERE role = ?", params=[role]).fetchall()[0][0]
            query = f"SELECT {listed} FROM p WHERE role = ? ORDER BY data_date, {keys}"  # noqa: S608 (names from the typed catalog, quoted)
            reader = connection.sql(query, params=[role]).to_arrow_reader(65_536)
            columns |= _every_nth(reader, outputs, rows)
    return columns


def _every_nth(batches: Iterable[pa.RecordBatch], names: Sequence[str], rows: int) -> dict[str, pa.ChunkedArray]:
    step = max(-(-rows // SAMPLE_ROWS), 1)
    parts: dict[str, list[pa.Array]] = {name: [] for name in names}
    seen = 0
    for batch in batches:
        picked = pa.array(np.arange(-seen % step, batch.num_rows, step))
        seen += batch.num_rows
        for name in names:
            parts[name].append(batch.column(name).take(picked))
    return {name: pa.chunked_array(arrays) for name, arrays in parts.items() if arrays}


def _signed_sample(lake: Lake, entry: ModelEntry, reference: VersionReference) -> bytes | None:
    """The sample of the training window that is stored with a version, as it was signed; None where there is none."""
    try:
        with signed_files(lake.settings, entry.name, reference.artifact_digest, documents_only=True) as folder:
            path = folder / SAMPLE_FILE
            return path.read_bytes() if path.is_file() else None
    except ModelMissing:
        return None


def _reference_rows(sample: bytes, profiles: Mapping[str, Any]) -> dict[str, pa.ChunkedArray]:
    """Sampled features of the train split, and predictions of the rows that are their reference (null elsewhere)."""
    rows = pq.read_table(pa.BufferReader(sample))
    train = rows.filter(pc.equal(rows["split"], "train"))
    return {
        name: (rows if "split" in profile else train)[name]
        for name, profile in profiles.items()
        if name in rows.column_names
    }


def _column_pair(
    name: str,
    before: pa.ChunkedArray | None,
    after: pa.ChunkedArray | None,
    profile: Mapping[str, Any],
    notes: list[str],
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """Values of reference and current, fit to be drawn: None where a side has none.

    Categories are those of the profile, a few new ones, and `(other)`; they are escaped, because Evidently writes them
    into scripts as they are. Infinities are drawn at the largest finite value, huge values in a larger unit (noted).
    """
    if before is None or after is None:
        return None
    if profile["kind"] == "categorical":
        known = list(profile["categories"])
        text = after.cast(pa.string())
        new = pc.value_counts(text.filter(pc.invert(pc.is_in(text, value_set=pa.array([*known, None], pa.string())))))
        ranked = sorted((-int(item["counts"].as_py()), str(item["values"].as_py())) for item in new)
        shown = pa.array([*known, *(value for _, value in ranked[:_NEW_CATEGORIES])], pa.string())
        sides = []
        for column in (before.cast(pa.string()), text):
            kept = column.drop_null()
            named = pc.if_else(pc.is_in(kept, value_set=shown), kept, _OTHER).combine_chunks().dictionary_encode()
            labels = np.array([html.escape(value) for value in named.dictionary.to_pylist()], dtype=object)
            sides.append(labels[np.asarray(named.indices)] if len(kept) else np.empty(0, dtype=object))
    else:
        sides = [values[~np.isnan(values)] for values in (as_numbers(before), as_numbers(after))]
        finite = np.concatenate([values[np.isfinite(values)] for values in sides])
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (-1.0, 1.0)
        scale = max(abs(low), abs(high))
        scale = scale if scale > 1 / _LARGEST**2 else 0.0
        unit = 10.0 ** math.ceil(math.log10(scale / _LARGEST)) if scale > _LARGEST else 1.0
        if unit > 1:
            notes.append(f"{name} is drawn in units of {unit:.0e}")
        # Histograms fail on values that differ by less than a double can tell apart in ten bins.
        sides = [np.round(np.clip(values, low, high) / (scale or 1.0), 9) * (scale or 1.0) / unit for values in sides]
    return (sides[0], sides[1]) if len(sides[0]) and len(sides[1]) else None


# ---- Evidently -------------------------------------------------------------------------------------------------


def _injected(reference: Any, _current: Any, _kind: Any, threshold: float) -> tuple[float, bool]:
    """The number that was measured before, in place of one that Evidently would compute from the sample."""
    score = _scores.get()[reference.name]
    return score, score > threshold


@cache
def _drift_method(label: str) -> str:
    """Register our statistic with Evidently, once; returns its name there."""
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    name = f"nightfleet_{label}"
    register_stattest(
        StatTest(name=name, display_name=label, allowed_feature_types=[ColumnType.Numerical, ColumnType.Categorical]),
        _injected,
    )
    return name


def _evidently_drift(
    drawn: Mapping[str, tuple[Any, Any]],
    profiles: Mapping[str, Any],
    numbers: Mapping[str, Row],
    share: float,
    outputs: set[str],
) -> str:
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift
    from evidently.presets import DataDriftPreset

    class ColumnsTable(DataDriftPreset):  # type: ignore[misc]
        """The preset without its second drawing of every column, which it computes and does not show."""

        def generate_metrics(self, context: Any) -> Any:
            return super().generate_metrics(context)[:1]

    names = {name: html.escape(name) for name in drawn}
    methods = {
        name: _drift_method(
            f"{profiles[name]['method'].upper()} against {profiles[name]['windows']} windows of the training"
        )
        for name in drawn
    }
    features = [name for name in drawn if name not in outputs]
    metrics: list[Any] = []
    if features:
        metrics.append(
            ColumnsTable(
                columns=[names[name] for name in features],
                drift_share=share,
                per_column_method={names[name]: methods[name] for name in features},
                per_column_threshold={names[name]: float(numbers[name]["threshold"]) for name in features},
                include_tests=False,
            )
        )
    metrics += [
        ValueDrift(column=names[name], method=methods[name], threshold=float(numbers[name]["threshold"]))
        for name in drawn
        if name in outputs
    ]
    definition = DataDefinition(
        numerical_columns=[names[name] for name in drawn if profiles[name]["kind"] == "numeric"],
        categorical_columns=[names[name] for name in drawn if profiles[name]["kind"] == "categorical"],
    )
    before, after = (_frame({names[name]: pair[side] for name, pair in drawn.items()}) for side in (0, 1))
    token = _scores.set({names[name]: float(numbers[name]["value"]) for name in drawn})
    try:
        with np.errstate(all="ignore"):  # correlations of constant columns, which are not shown
            snapshot = Report(metrics, include_tests=False).run(
                Dataset.from_pandas(after, data_definition=definition),
                Dataset.from_pandas(before, data_definition=definition),
            )
    finally:
        _scores.reset(token)
    return str(snapshot.get_html_str(as_iframe=False))


def _frame(columns: Mapping[str, npt.NDArray[Any]]) -> pd.DataFrame:
    """Columns of different lengths side by side, missing values at the end: each is drawn by itself."""
    import pandas as pd

    return pd.DataFrame({name: pd.Series(values) for name, values in columns.items()})


def _evidently_performance(
    entry: ModelEntry,
    label: npt.NDArray[np.float64],
    predicted: Mapping[str, npt.NDArray[np.float64]],
    notes: list[str],
) -> str | None:
    os.environ.setdefault("DO_NOT_TRACK", "1")
    import evidently
    import evidently.metrics
    import evidently.presets
    import pandas as pd

    columns: dict[str, Any] = {}
    definitions: dict[str, list[Any]] = {"regression": [], "classification": []}
    presets: list[
        Any
    ] = []  # without include_tests=False, which these presets of this version of Evidently do not survive
    said: list[str] = []
    for name, output in entry.outputs.items():
        safe = html.escape(name)
        task = output.evidently(name, safe, label, predicted)
        if isinstance(task, str):
            notes.append(f"{name} is not drawn: {task}")
            continue
        columns |= task.columns
        family = "regression" if task.preset == "RegressionPreset" else "classification"
        definitions[family].append(getattr(evidently, task.definition)(name=safe, **task.arguments))
        drawn = [getattr(evidently.metrics, metric) for metric in task.metrics]
        presets += [draw(**{f"{family}_name": safe}) for draw in drawn or [getattr(evidently.presets, task.preset)]]
        said += task.notes
    if not presets:
        return None
    notes += dict.fromkeys(said)
    definition = evidently.DataDefinition(**{family: tasks or None for family, tasks in definitions.items()})
    with np.errstate(all="ignore"):
        snapshot = evidently.Report(presets, include_tests=False).run(
            evidently.Dataset.from_pandas(pd.DataFrame(columns), data_definition=definition), None
        )
    return str(snapshot.get_html_str(as_iframe=False))


# ---- HTML ------------------------------------------------------------------------------------------------------


def _whole(page: _Page, message: str | None, stamp: str, drawn: str | None = None) -> str:
    """Our part of the page, and Evidently's below it where something was drawn."""
    rows = sorted(
        page.rows,
        key=lambda row: (_ORDER[row["status"]], row["check"], row["column"], row["segment"], row["about_date"]),
    )
    alarming = [row for row in rows if row["status"] in {"failing", "warning"}]
    values = {
        "title": page.title,
        "facts": page.facts,
        "message": message,
        "notes": page.notes,
        "alarming": _table("beyond", "Beyond a limit.", alarming),
        # Where nothing is drawn the numbers are all there is.
        "every": _table("all", f"All {len(rows)} numbers of this night", rows, folded=drawn is not None),
    }
    ours = document("report.html.jinja", values, title=page.title, policy=_POLICY, stamp=stamp)
    if drawn is None:
        return ours.whole()
    start, opening, rest = drawn.partition("<head>")
    if not opening:
        raise ValueError("Evidently's page has no <head>: another version of it writes other pages")
    before, _, after = rest.partition("<body")
    attributes, _, inner = after.partition(">")
    return f"{start.lstrip()}<head>{ours.head}{before}<body{attributes}>{ours.body}{inner}"


def _table(name: str, caption: str, rows: Sequence[Row], *, folded: bool = False) -> Table:
    segments = (Column("segment", "segment"),) if any(row["segment"] for row in rows) else ()
    columns = (
        Column("check", "check"),
        Column("column", "column"),
        *segments,
        Column("about_date", "about", "date"),
        Column("value", "value", "number"),
        Column("limit", "limit", "number"),
        Column("n", "rows", "number"),
        Column("status", "status", "status"),
        Column("reason", "reason"),
    )
    return Table(name, caption, columns, [{**row, "limit": _limit(row)} for row in rows], folded=folded)


def _limit(row: Row) -> Any:
    if row["check"] == "volume" and row["lower"] is not None:
        return f"{shown(row['lower'])} to {shown(row['upper'])}"
    return row["threshold"]


def _stamp(publication: Publication) -> str:
    """Names the numbers and their inputs: equal stamp, equal page."""
    inputs = sorted((item.table, item.data_date.isoformat(), item.digest) for item in publication.inputs)
    return hashlib.sha256(json.dumps([FORMAT, publication.digest, inputs]).encode()).hexdigest()


def _is_current(store: ObjectStore, key: str, stamp: str) -> bool:
    return store.exists(key) and stamp.encode() in store.read(key, at_most=4_096)
